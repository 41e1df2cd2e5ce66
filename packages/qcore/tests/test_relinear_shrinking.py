"""α and β of ReLinear: shrinking towards the linear reference after each step."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR

from qcore import CATALOGUE, CosineSchedule, QuadraticLinear, ReLinear

DOUBLE = torch.float64
WITHOUT_REFERENCE = [name for name, neuron in CATALOGUE.items() if not neuron.reference]


def optimizer_for(model, strategy, lr):
    return strategy.attach(SGD(strategy.param_groups(model, lr)))


def still_step(model, strategy, lr=0.125):
    """One step without gradients: what remains is the shrinking."""
    optimizer = optimizer_for(model, strategy, lr=lr)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def shrunk(values, alpha, threshold):
    """sign(αθ) · max(|αθ| − t, 0), written out for each number."""
    return [math.copysign(max(abs(alpha * v) - threshold, 0.0), v) for v in values]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    alpha=st.tuples(*[st.floats(0, 1)] * 2),
    beta=st.tuples(*[st.floats(1e-3, 1)] * 2),
    gamma=st.floats(0, 1),
    lr=st.floats(0, 1),
)
def test_alpha_and_beta_shrink_as_written_out(alpha, beta, gamma, lr):
    model = QuadraticLinear(5, 3, dtype=DOUBLE)
    before = {name: p.flatten().tolist() for name, p in model.named_parameters()}
    still_step(model, ReLinear(gamma, alpha=alpha, beta=beta), lr)
    for name, parameter in model.named_parameters():
        factors = {"r": (1.0, 1.0), "g": (alpha[0], beta[0]), "b": (alpha[1], beta[1])}[name[0]]
        expected = shrunk(before[name], factors[0], lr * (1 / factors[1] - 1))
        assert parameter.flatten().tolist() == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("factor", ["alpha", "beta"])
def test_zero_shrinks_to_the_linear_network_from_anywhere_even_at_rate_zero(factor, quadratic_net):
    model = quadratic_net()
    still_step(model, ReLinear(**{factor: 0.0}), lr=0.0)
    x = torch.randn(5, 4, dtype=DOUBLE)
    linear = nn.Sequential(model[0], nn.Tanh(), model[2]["r"], nn.Tanh(), model[4]["l"])
    assert torch.equal(model(x), linear(x))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"neuron": "product_linear"}, {"l.weight", "r.weight"}),
        ({"neuron": "bilinear", "rank": 2}, {"l.weight", "l.bias", "q.factors"}),
        ({"neuron": "qres"}, {"r.weight", "c.bias"}),
    ],
    ids=["product_linear", "bilinear", "qres"],
)
def test_shrinking_spares_the_factor_that_keeps_the_gradient_alive(options, kept):
    model = QuadraticLinear(4, 3, **options)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    still_step(model, ReLinear(alpha=0.5))
    after = dict(model.named_parameters())
    assert {name for name in before if torch.equal(before[name], after[name])} == kept
    for name in before.keys() - kept:
        torch.testing.assert_close(after[name].detach(), 0.5 * before[name])


def test_the_threshold_of_beta_follows_the_scheduler_and_alpha_its_schedule():
    model = QuadraticLinear(4, 3, dtype=DOUBLE)
    strategy = ReLinear(0.0, alpha=CosineSchedule(1.0, 0.5, steps=2), beta=0.8)
    optimizer = optimizer_for(model, strategy, lr=0.1)
    scheduler = ExponentialLR(optimizer, gamma=0.5)
    expected = model["b"].weight.flatten().tolist()
    for t, alpha in enumerate([1.0, 0.75, 0.5, 0.5]):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        scheduler.step()
        expected = shrunk(expected, alpha, 0.1 * 0.5**t * 0.25)
        assert model["b"].weight.flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", WITHOUT_REFERENCE)
def test_shrinking_needs_a_linear_reference(name):
    text = (
        f"layer 'QuadraticLinear' has neuron '{name}', which has no linear reference: "
        "choose one that has, e.g. 'quadratic', 'compact' or 'qres'"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        ReLinear(alpha=0.5).param_groups(QuadraticLinear(4, 3, neuron=name), lr=0.1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"alpha": 1.5},
            "alpha=1.5 for g is not allowed: choose from 0 (the linear network) to 1 (free)",
        ),
        (
            {"beta": (1, -1)},
            "beta=-1 for b is not allowed: choose from 0 (the linear network) to 1 (free)",
        ),
        (
            {"gamma": (0.5, lambda t: 2.0 - t)},
            "gamma=2.0 for b at step 0 is not allowed: "
            "choose from 0 (the linear network) to 1 (free)",
        ),
        (
            {"alpha": [0.1, 0.2]},
            "alpha=[0.1, 0.2] is not allowed: give a number, a schedule, or a pair (g, b)",
        ),
        (
            {"weight_decay": 1e-4},
            "weight_decay=0.0001 is not allowed: choose 'reference' or 'published'; "
            "its strength goes to param_groups(model, lr=..., weight_decay=...)",
        ),
    ],
    ids=["alpha", "beta", "schedule", "list", "weight decay"],
)
def test_wrong_arguments_are_refused(options, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        ReLinear(**options)
