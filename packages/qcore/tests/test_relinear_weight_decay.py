"""Weight decay under ReLinear: towards the linear reference, or as published."""

import re

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from qcore import QuadraticLinear, ReLinear

DOUBLE = torch.float64


def optimizer_for(model, strategy, lr=0.125, weight_decay=0.0):
    return strategy.attach(SGD(strategy.param_groups(model, lr, weight_decay)))


def test_weight_decay_that_is_not_given_is_the_optimizers(quadratic_net):
    optimizer = SGD(ReLinear(0.5).param_groups(quadratic_net(), lr=0.2), weight_decay=0.03)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.03}


def test_weight_decay_pulls_towards_the_linear_reference():
    model = QuadraticLinear(4, 3, dtype=DOUBLE)
    optimizer = optimizer_for(model, ReLinear(0.5), lr=1.0, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = {"r": 0.5, "g": 0.75, "b": 0.75}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), kept[name[0]] * before[name])


# --- as published ---


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (SGD, {"momentum": 0.9}),
        (AdamW, {}),
        (torch.optim.Adam, {}),
        (torch.optim.Adagrad, {}),
    ],
    ids=["SGD", "AdamW", "Adam", "Adagrad"],
)
def test_published_weight_decay_steps_as_if_the_parameter_were_b_g(optimizer, options, dtype):
    model = ReLinear().init_(QuadraticLinear(4, 3, dtype=dtype))
    # the arrangement of the scripts: b_g is the parameter, and starts at 1
    theirs = {name: nn.Parameter(p.detach().clone()) for name, p in model.named_parameters()}
    theirs["g.bias"].data.fill_(1.0)
    gamma, settings_ = 0.25, {"lr": 0.05, "weight_decay": 0.1}
    scripts = optimizer(
        [
            {"params": [p], **settings_, "lr": 0.05 * (1 if name[0] == "r" else gamma)}
            for name, p in theirs.items()
        ],
        **options,
    )
    strategy = ReLinear(gamma, weight_decay="published")
    ours = strategy.attach(optimizer(strategy.param_groups(model, **settings_), **options))
    for _ in range(5):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            theirs[name].grad = parameter.grad.clone()
        ours.step()
        scripts.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter + 1.0 if name == "g.bias" else parameter, theirs[name])


def still_step(model, strategy, **options):
    """One step without gradients: what remains is the shrinking."""
    optimizer = optimizer_for(model, strategy, **options)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def test_published_weight_decay_pulls_b_g_and_reference_does_not():
    kept = {}
    for mode in ("published", "reference"):
        model = ReLinear().init_(QuadraticLinear(4, 3, dtype=DOUBLE))
        still_step(model, ReLinear(weight_decay=mode), weight_decay=0.5)
        kept[mode] = 1.0 + model["g"].bias.detach()
    torch.testing.assert_close(kept["published"], torch.full((3,), 1 - 0.125 * 0.5, dtype=DOUBLE))
    assert torch.equal(kept["reference"], torch.ones(3, dtype=DOUBLE))


def test_published_weight_decay_touches_no_bias_where_nothing_decays():
    for options in ({"weight_decay": 0.0}, {"weight_decay": 0.5}):
        model = QuadraticLinear(4, 3)
        before = model["g"].bias.detach().clone()
        optimizer = optimizer_for(model, ReLinear(weight_decay="published"), **options)
        if options["weight_decay"] == 0.0:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # without gradients, torch skips a parameter
        assert torch.equal(model["g"].bias, before)


def test_published_weight_decay_with_a_closure_is_refused():
    optimizer = optimizer_for(QuadraticLinear(4, 3), ReLinear(weight_decay="published"))
    text = (
        "closure is not allowed with weight_decay='published': the step sees b_g in place of its "
        "distance from 1; call step() after backward(), without a closure"
    )
    for step in (lambda: optimizer.step(lambda: 0.0), lambda: optimizer.step(closure=lambda: 0.0)):
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            step()
    optimizer.step(closure=None)
