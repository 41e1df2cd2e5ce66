"""Gradients clipped by the norm that ReLinear leaves of them."""

import math
import re

import pytest
import torch
from torch import nn
from torch.optim import SGD

from qcore import LinearSchedule, QuadraticLinear, ReLinear

DOUBLE = torch.float64


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), QuadraticLinear(5, 3)).to(DOUBLE)
    model(torch.randn(7, 6, dtype=DOUBLE)).square().sum().backward()
    return model


def attached(model: nn.Module, strategy: ReLinear, lr: float = 0.1) -> SGD:
    optimizer = SGD(strategy.param_groups(model, lr))
    strategy.attach(optimizer)
    return optimizer


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def factor_of(name: str, gamma: tuple[float, float]) -> float:
    return gamma[0] if name.startswith("2.g") else gamma[1] if name.startswith("2.b") else 1.0


@pytest.mark.parametrize("gamma", [(1.0, 1.0), (0.1, 0.01), (0.0, 1.0), (0.0, 0.0)])
@pytest.mark.parametrize("max_norm", [1e-3, 0.5, 1e6])
def test_all_gradients_shrink_alike_to_the_norm_of_the_step(gamma, max_norm):
    model = network()
    strategy = ReLinear(gamma=gamma)
    optimizer = attached(model, strategy)
    before = gradients(model)
    squares = [(factor_of(name, gamma) * g).square().sum() for name, g in before.items()]
    norm = math.sqrt(sum(squares))
    assert strategy.clip_grad_norm_(optimizer, max_norm).item() == pytest.approx(norm)
    scale = min(1.0, max_norm / norm)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, scale * before[name], rtol=1e-4, atol=0)


def test_a_free_network_is_clipped_as_torch_does_it():
    ours, theirs = network(), network()
    strategy = ReLinear(gamma=1.0)
    norm = strategy.clip_grad_norm_(attached(ours, strategy), 0.5)
    known = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    torch.testing.assert_close(norm, known)
    for name, gradient in gradients(ours).items():
        torch.testing.assert_close(gradient, gradients(theirs)[name])


def test_the_linear_part_takes_the_step_of_the_linear_network_where_the_rest_is_held():
    linear = network()[2]["r"]
    model = network()[2]
    strategy = ReLinear(gamma=0.0)
    strategy.clip_grad_norm_(attached(model, strategy), 0.5)
    nn.utils.clip_grad_norm_(linear.parameters(), 0.5)
    torch.testing.assert_close(model["r"].weight.grad, linear.weight.grad)
    # clipped as torch does it, the quadratic gradients take a share of the norm
    counted = network()[2]
    nn.utils.clip_grad_norm_(counted.parameters(), 0.5)
    assert counted["r"].weight.grad.norm() < 0.7 * linear.weight.grad.norm()


def test_factors_that_follow_a_schedule_are_those_of_the_next_step():
    model = network()
    strategy = ReLinear(gamma=LinearSchedule(0.0, 1.0, steps=2))
    optimizer = attached(model, strategy, lr=1e-9)
    found = []
    for _ in range(3):
        found.append(strategy.clip_grad_norm_(optimizer, 1e6).item())
        optimizer.step()
    parts = {"r": [], "q": []}
    for name, gradient in gradients(model).items():
        parts["q" if name.startswith(("2.g", "2.b")) else "r"].append(gradient.flatten())
    linear, quadratic = (torch.cat(part).norm().item() for part in parts.values())
    expected = [math.hypot(linear, factor * quadratic) for factor in (0.0, 0.5, 1.0)]
    assert found == pytest.approx(expected, rel=1e-6)


def test_parameters_without_a_gradient_are_passed_over():
    model = QuadraticLinear(4, 3)
    strategy = ReLinear(gamma=0.1)
    optimizer = attached(model, strategy)
    assert strategy.clip_grad_norm_(optimizer, 1.0).item() == 0.0
    model["r"].weight.grad = torch.full((3, 4), 2.0)
    assert strategy.clip_grad_norm_(optimizer, 1.0).item() == pytest.approx(math.sqrt(48))
    assert model["r"].weight.grad.norm().item() == pytest.approx(1.0)


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan")])
def test_a_norm_of_nothing_is_refused(max_norm):
    model = network()
    strategy = ReLinear()
    optimizer = attached(model, strategy)
    before = gradients(model)
    text = f"max_norm={max_norm} is not allowed: give a norm above 0"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        strategy.clip_grad_norm_(optimizer, max_norm)
    assert all(torch.equal(before[name], g) for name, g in gradients(model).items())


def test_groups_that_relinear_has_not_made_are_refused():
    model = network()
    text = r"parameter groups that ReLinear\.param_groups did not make"
    with pytest.raises(ValueError, match=text):
        ReLinear().clip_grad_norm_(SGD(model.parameters(), lr=0.1), 1.0)


def test_rates_in_place_of_factors_count_as_what_they_are_of_the_common_one():
    model, same = network(), network()
    by_rate, by_factor = ReLinear(lr_g=0.01, lr_b=0.0), ReLinear(gamma=(0.1, 0.0))
    norm = by_rate.clip_grad_norm_(attached(model, by_rate, lr=0.1), 0.5)
    torch.testing.assert_close(norm, by_factor.clip_grad_norm_(attached(same, by_factor), 0.5))
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, gradients(same)[name])


@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_a_gradient_that_is_not_finite_is_seen_in_the_norm(gamma):
    model = network()
    strategy = ReLinear(gamma=gamma)
    optimizer = attached(model, strategy)
    model[2]["g"].weight.grad[0, 0] = math.inf
    assert not strategy.clip_grad_norm_(optimizer, 1.0).isfinite()


def test_gradients_in_float16_are_measured_in_float32():
    model = QuadraticLinear(30, 40).half()
    strategy = ReLinear(gamma=0.001)
    optimizer = attached(model, strategy)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3e3)  # whose squares float16 does not hold
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    squares = [n * (3e3 * (1 if name[0] == "r" else 0.001)) ** 2 for name, n in sizes.items()]
    norm = strategy.clip_grad_norm_(optimizer, 1e4)
    assert norm.item() == pytest.approx(math.sqrt(sum(squares)), rel=1e-3)
    assert model["r"].weight.grad[0, 0].item() == pytest.approx(3e3 * 1e4 / norm.item(), rel=1e-2)
