"""The rates of ReLinear: γ or absolute ones, beside those that schedulers set."""

import math
import re

import pytest
import torch
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    MultiplicativeLR,
    OneCycleLR,
    StepLR,
)

from qcore import LinearSchedule, QuadraticLinear, ReLinear, StepSchedule

DOUBLE = torch.float64


def optimizer_for(model, strategy, optimizer=SGD, lr=0.125, weight_decay=0.0, **options):
    made = optimizer(strategy.param_groups(model, lr, weight_decay), **options)
    return strategy.attach(made)


def names_by_group(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["relinear"]: [names[id(p)] for p in group["params"]] for group in groups}


# --- γ ---


@pytest.mark.parametrize(
    ("gamma", "text"),
    [
        (1.5, "gamma=1.5 for g is not allowed: choose from 0 (the linear network) to 1 (free)"),
        (-0.1, "gamma=-0.1 for g is not allowed: choose from 0 (the linear network) to 1 (free)"),
        (
            float("nan"),
            "gamma=nan for g is not allowed: choose from 0 (the linear network) to 1 (free)",
        ),
        (
            (0.5, 2.0),
            "gamma=2.0 for b is not allowed: choose from 0 (the linear network) to 1 (free)",
        ),
        (
            (0.1, 0.2, 0.3),
            "gamma=(0.1, 0.2, 0.3) is not allowed: give a number or a pair (g, b)",
        ),
    ],
    ids=["large", "negative", "nan", "pair", "triple"],
)
def test_gamma_outside_of_zero_to_one_is_refused(gamma, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        ReLinear(gamma=gamma)


def test_a_schedule_that_leaves_zero_to_one_is_refused_where_it_does():
    model = QuadraticLinear(4, 3)
    optimizer = optimizer_for(model, ReLinear(lambda t: 0.75 * t))
    optimizer.step()
    optimizer.step()
    text = (
        "gamma=1.5 for g at step 2 is not allowed: choose from 0 (the linear network) to 1 (free)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        optimizer.step()


@pytest.mark.parametrize(
    ("gamma", "text"),
    [(1, "ReLinear(gamma=(1, 1))"), ((1e-4, 0.5), "ReLinear(gamma=(0.0001, 0.5))")],
)
def test_print_shows_gamma(gamma, text):
    assert repr(ReLinear(gamma)) == text


GAMMAS = {"number": (0.25, (0.25, 0.25)), "pair": ((0.5, 0.0625), (0.5, 0.0625))}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("gamma", "pair"), GAMMAS.values(), ids=GAMMAS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_step_is_gamma_times_the_plain_step(momentum, gamma, pair, weight_decay, quadratic_net):
    model = quadratic_net()
    lr = 0.125
    optimizer = optimizer_for(
        model, ReLinear(gamma), lr=lr, weight_decay=weight_decay, momentum=momentum
    )
    kind = names_by_group(model, optimizer.param_groups)
    rates = {"linear": lr, "g": pair[0] * lr, "b": pair[1] * lr}
    rate = {name: rates[k] for k, names in kind.items() for name in names}
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    buffers = {name: torch.zeros_like(p) for name, p in expected.items()}
    x = torch.randn(10, 4, dtype=DOUBLE)
    for _ in range(4):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        for name, parameter in model.named_parameters():
            gradient = parameter.grad + weight_decay * expected[name]
            buffers[name] = momentum * buffers[name] + gradient
            expected[name] = expected[name] - rate[name] * buffers[name]
        optimizer.step()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name])


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(SGD, {"momentum": 0.9}), (AdamW, {})],
    ids=["SGD", "AdamW"],
)
def test_gamma_zero_keeps_the_quadratic_parameters_to_the_last_bit(
    optimizer, options, quadratic_net
):
    model = ReLinear().init_(quadratic_net())
    made = optimizer_for(model, ReLinear(0.0), optimizer, weight_decay=0.01, **options)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x = torch.randn(10, 4, dtype=DOUBLE)
    for _ in range(3):
        made.zero_grad()
        model(x).square().mean().backward()
        made.step()
    kinds = names_by_group(model, made.param_groups)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], before[name]) for k in "gb" for name in kinds[k])
    assert all(not torch.equal(after[name], before[name]) for name in kinds["linear"])


# --- schedulers ---


def common_rates(make_scheduler, steps, lr=0.125):
    """The rates that a scheduler gives to an optimiser without ReLinear."""
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def rates_of_a_run(optimizer, scheduler, steps):
    """By how much each group really moves in each step, and the ``lr`` it shows meanwhile."""
    groups = optimizer.param_groups
    moved, shown = [], []
    for _ in range(steps):
        for group in groups:
            for parameter in group["params"]:
                parameter.data.zero_()
                parameter.grad = torch.ones_like(parameter)
        shown.append({g["relinear"]: g["lr"] for g in groups})
        optimizer.step()
        moved.append({g["relinear"]: -g["params"][0].flatten()[0].item() for g in groups})
        scheduler.step()
    return moved, shown


SCHEDULERS = {
    "StepLR": lambda o: StepLR(o, step_size=2, gamma=0.5),
    "LambdaLR": lambda o: LambdaLR(o, lambda t: 0.5 ** (t // 2)),
    "MultiplicativeLR": lambda o: MultiplicativeLR(o, lambda _: 0.5),
    "ExponentialLR": lambda o: ExponentialLR(o, gamma=0.7),
    "CosineAnnealingLR": lambda o: CosineAnnealingLR(o, T_max=5, eta_min=0.01),
    "WarmRestarts": lambda o: CosineAnnealingWarmRestarts(o, T_0=3, eta_min=0.01),
    "OneCycleLR": lambda o: OneCycleLR(o, max_lr=0.4, total_steps=10, cycle_momentum=False),
    "CyclicLR": lambda o: CyclicLR(o, 0.01, 0.4, step_size_up=3, cycle_momentum=False),
}
RATES = {
    "constant": (ReLinear((0.5, 0.25)), lambda t: (0.5, 0.25)),
    "absolute": (ReLinear(lr_g=0.025, lr_b=0.0), lambda t: (0.2, 0.0)),
    "schedule": (
        ReLinear((LinearSchedule(0.0, 1.0, steps=4), StepSchedule((1.0, 0.5), (3,)))),
        lambda t: (min(t / 4, 1.0), 1.0 if t < 3 else 0.5),
    ),
}


@pytest.mark.parametrize("before", [False, True], ids=["scheduler-last", "scheduler-first"])
@pytest.mark.parametrize(("strategy", "factors"), RATES.values(), ids=RATES)
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_factors_and_schedulers_multiply(make, strategy, factors, before):
    model = QuadraticLinear(4, 3, dtype=DOUBLE)
    optimizer = SGD(strategy.param_groups(model, lr=0.125))
    if before:
        scheduler = make(optimizer)
        strategy.attach(optimizer)
    else:
        scheduler = make(strategy.attach(optimizer))
    moved, shown = rates_of_a_run(optimizer, scheduler, 9)
    for t, lr in enumerate(common_rates(make, 9)):
        g, b = factors(t)
        assert shown[t] == pytest.approx(dict.fromkeys(["linear", "g", "b"], lr))
        assert moved[t] == pytest.approx({"linear": lr, "g": g * lr, "b": b * lr})


def test_a_group_added_later_joins_the_others_in_their_schedule(quadratic_net):
    model = quadratic_net()
    model[2].requires_grad_(False)
    strategy = ReLinear(LinearSchedule(0.0, 1.0, steps=4))
    optimizer = optimizer_for(model, strategy)
    optimizer.step()
    optimizer.step()
    model[2].requires_grad_(True)
    late = [{"params": model[2].parameters()}]
    for group in strategy.param_groups(model, lr=0.125, groups=late):
        optimizer.add_param_group(group)
    moved, _ = rates_of_a_run(optimizer, ExponentialLR(optimizer, 1.0), 1)
    assert moved[0] == pytest.approx({"linear": 0.125, "g": 0.0625, "b": 0.0625})


# --- absolute rates ---


@pytest.mark.parametrize("rate", [1e-5, 1e-3, 0.0])
def test_published_rates(rate):
    model = QuadraticLinear(4, 3, dtype=DOUBLE)
    optimizer = optimizer_for(model, ReLinear(lr_g=rate, lr_b=rate), lr=0.1)
    scheduler = StepLR(optimizer, step_size=2, gamma=0.1)
    moved, _ = rates_of_a_run(optimizer, scheduler, 4)
    for t, factor in enumerate([1.0, 1.0, 0.1, 0.1]):
        assert moved[t] == pytest.approx(
            {"linear": 0.1 * factor, "g": rate * factor, "b": rate * factor}
        )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"gamma": 0.5, "lr_g": 1e-5, "lr_b": 1e-5},
            "gamma=0.5 is not allowed with lr_g=1e-05 and lr_b=1e-05: give the factor of the "
            "learning rate, or the rates themselves",
        ),
        (
            {"lr_b": 1e-5},
            "lr_g=None, lr_b=1e-05 is not allowed: give both; 0 where a part is not to train, or "
            "the network has none",
        ),
        (
            {"lr_g": -1.0, "lr_b": 0.0},
            "lr_g=-1.0 is not allowed: give a rate of 0 or more",
        ),
        (
            {"lr_g": 0.0, "lr_b": math.inf},
            "lr_b=inf is not allowed: give a rate of 0 or more",
        ),
    ],
    ids=["with gamma", "one alone", "negative", "infinite"],
)
def test_wrong_absolute_rates_are_refused(options, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        ReLinear(**options)


@pytest.mark.parametrize("kind", ["g", "b"])
def test_an_absolute_rate_above_the_common_one_is_refused(kind, quadratic_net):
    strategy = ReLinear(**{"lr_g": 0.1, "lr_b": 0.1, f"lr_{kind}": 0.2})
    text = (
        f"lr_{kind}=0.2 is not allowed with lr=0.1: choose from 0 (the linear network) to lr (free)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        strategy.param_groups(quadratic_net(), lr=0.1)


def test_an_absolute_rate_keeps_the_ratio_of_the_groups_rates():
    model = QuadraticLinear(4, 3, dtype=DOUBLE)
    halves = [
        {"params": [model["g"].weight], "lr": 0.05},
        {"params": [model["b"].weight]},
    ]
    strategy = ReLinear(lr_g=1e-3, lr_b=1e-3)
    optimizer = strategy.attach(SGD(strategy.param_groups(model, lr=0.1, groups=halves)))
    moved, _ = rates_of_a_run(optimizer, ExponentialLR(optimizer, 1.0), 1)
    assert moved[0] == pytest.approx({"g": 0.5e-3, "b": 1e-3})


def test_print_shows_absolute_rates():
    assert repr(ReLinear(lr_g=1e-5, lr_b=0)) == "ReLinear(lr_g=1e-05, lr_b=0)"
