"""Optimisers, schedules, clipping and precision against what they are written out to be."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from qbench.optimize import (
    clip_gradients,
    make_optimizer,
    make_schedule,
    make_strategy,
    precision,
)
from qbench.recipe import Recipe
from qbench.stack import side_by_side
from qcore import QuadraticLinear


def rates(recipe: Recipe, steps_per_epoch: int) -> list[float]:
    """The learning rate of every step."""
    optimizer = make_optimizer(nn.Linear(2, 2), recipe, None)
    schedule = make_schedule(optimizer, recipe, steps_per_epoch)
    found = []
    for _ in range(recipe.epochs * steps_per_epoch):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return found


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Recipe(epochs=4, lr=0.5), lambda step: 0.5),
        (
            Recipe(epochs=4, lr=0.5, schedule="step", milestones=(1, 3), factor=0.1),
            lambda step: 0.5 * 0.1 ** ((step >= 3) + (step >= 9)),
        ),
        (
            Recipe(epochs=4, lr=0.5, schedule="cosine"),
            lambda step: 0.25 * (1 + math.cos(math.pi * step / 12)),
        ),
    ],
)
def test_a_schedule_is_its_formula(recipe: Recipe, expected: Callable[[int], float]) -> None:
    assert rates(recipe, 3) == pytest.approx([expected(step) for step in range(12)])


def test_one_cycle_rises_to_the_rate_and_ends_near_nothing() -> None:
    found = rates(Recipe(epochs=10, lr=0.5, schedule="one_cycle", optimizer="adamw"), 10)
    assert max(found) == pytest.approx(0.5)
    assert found.index(max(found)) == pytest.approx(30, abs=1)
    assert found[0] == pytest.approx(0.5 / 25)
    assert found[-1] < 1e-4


def test_sgd_is_momentum_and_weight_decay_written_out() -> None:
    recipe = Recipe(epochs=1, lr=0.1, momentum=0.9, weight_decay=0.01)
    model = nn.Linear(3, 1, bias=False).double()
    weight, velocity = model.weight.detach().clone(), torch.zeros(1, 3, dtype=torch.double)
    optimizer = make_optimizer(model, recipe, None)
    for step in range(5):
        x = torch.arange(3.0, dtype=torch.double) + step
        optimizer.zero_grad()
        (model(x) ** 2).sum().backward()
        optimizer.step()
        velocity = 0.9 * velocity + 2 * (weight @ x).unsqueeze(1) * x + 0.01 * weight
        weight = weight - 0.1 * velocity
    torch.testing.assert_close(model.weight.detach(), weight)


def test_relinear_slows_the_quadratic_parameters_of_stacked_seeds_alike() -> None:
    def moved(replicas: list[nn.Module]) -> dict[str, torch.Tensor]:
        model = side_by_side(replicas)
        before = {name: p.detach().clone() for name, p in model.module.named_parameters()}
        recipe = Recipe(epochs=1, lr=0.1, strategy={"gamma": 0.01})
        optimizer = make_optimizer(model, recipe, make_strategy(recipe, 1))
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        return {name: before[name] - p.detach() for name, p in model.module.named_parameters()}

    for count in (1, 3):
        for name, change in moved([QuadraticLinear(3, 2) for _ in range(count)]).items():
            rate = 0.1 if name.startswith("r") else 0.001
            torch.testing.assert_close(change, torch.full_like(change, rate), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "middle"), [("linear", 0.25), ("cosine", 0.5 - 0.5 * math.cos(math.pi / 4))]
)
def test_a_ramp_takes_relinears_factor_over_all_steps(shape: str, middle: float) -> None:
    gamma = {"start": 0, "end": 1, "shape": shape}
    recipe = Recipe(epochs=2, lr=0.1, strategy={"gamma": gamma})
    strategy = make_strategy(recipe, 6)
    assert strategy is not None
    model = QuadraticLinear(3, 2)
    optimizer = make_optimizer(model, recipe, strategy)
    found = []
    for _ in range(14):
        found.append(strategy.rate_factors(optimizer)[1])
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert (found[0], found[6], found[12], found[13]) == (0.0, pytest.approx(0.5), 1.0, 1.0)
    assert found[3] == pytest.approx(middle)


@pytest.mark.parametrize("norm", [0.1, 3.0, 1e6])
def test_clipping_stacked_seeds_is_torchs_on_each(norm: float) -> None:
    torch.manual_seed(0)
    replicas = [nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)) for _ in range(3)]
    stacked = side_by_side(replicas)
    x = torch.randn(3, 5, 4) * torch.tensor([1.0, 10.0, 0.1]).view(3, 1, 1)
    stacked(x).square().sum().backward()
    clip_gradients(stacked, make_optimizer(stacked, Recipe(epochs=1), None), norm)
    for i, alone in enumerate(replicas):
        alone(x[i]).square().sum().backward()
        nn.utils.clip_grad_norm_(alone.parameters(), norm)
        for name, parameter in alone.named_parameters():
            found = stacked.module.get_parameter(name).grad
            assert found is not None
            torch.testing.assert_close(found[i], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_clipping_by_steps_is_relinears_on_each_seed(gamma: float) -> None:
    torch.manual_seed(0)
    replicas: list[nn.Module] = [QuadraticLinear(4, 3) for _ in range(3)]
    recipe = Recipe(epochs=1, clip_norm=0.5, clip_by="steps", strategy={"gamma": gamma})
    strategy = make_strategy(recipe, 1)
    assert strategy is not None
    stacked = side_by_side(replicas)
    x = torch.randn(3, 5, 4) * torch.tensor([1.0, 10.0, 0.1]).view(3, 1, 1)
    stacked(x).square().sum().backward()
    clip_gradients(stacked, make_optimizer(stacked, recipe, strategy), 0.5, strategy)
    for i, layer in enumerate(replicas):
        alone = side_by_side([layer])
        alone(x[i : i + 1]).square().sum().backward()
        clip_gradients(alone, make_optimizer(alone, recipe, strategy), 0.5, strategy)
        for name, parameter in layer.named_parameters():
            found = stacked.module.get_parameter(name).grad
            assert found is not None
            torch.testing.assert_close(found[i], parameter.grad, rtol=1e-4, atol=1e-6)


def test_a_single_model_is_clipped_as_a_whole() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    model = side_by_side([layer])
    model(torch.randn(1, 5, 4)).square().sum().backward()
    clip_gradients(model, make_optimizer(model, Recipe(epochs=1), None), 0.5)
    gradients = [p.grad for p in layer.parameters() if p.grad is not None]
    assert torch.cat([g.flatten() for g in gradients]).norm().item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(("name", "allowed"), [("float32", False), ("tf32", True)])
def test_tf32_is_used_only_where_the_recipe_names_it(name: str, allowed: bool) -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with precision(name):
        inside = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    assert inside == (allowed, allowed)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "step"}, "milestones belong to schedule step"),
        ({"milestones": (3,)}, "milestones belong to schedule step"),
        ({"train_metrics": "running"}, "a full batch is measured, not running"),
        ({"optimizer": "adamw", "momentum": 0.9}, "momentum belongs to sgd"),
        ({"log_every": 0}, "log_every counts steps from 1 on, or is epoch"),
        ({"strategy": {"vary": "gamma_g"}}, "vary: gamma_g needs a value"),
        ({"clip_by": "steps"}, "clip_by belongs to clip_norm: without one nothing is clipped"),
        ({"strategy": {"gama": 1.0}}, "unknown key 'gama': did you mean 'gamma'?"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        Recipe.model_validate({"epochs": 1, **options})
