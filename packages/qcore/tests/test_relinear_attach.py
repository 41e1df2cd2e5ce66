"""Optimisers that ReLinear is attached to: every kind, interrupted, resumed, and misused."""

import copy
import io
import pickle
import re

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from qcore import CosineSchedule, LinearSchedule, QuadraticLinear, ReLinear, StepSchedule

DOUBLE = torch.float64
WITHOUT_A_RATE = ("LBFGS", "Rprop")
OPTIMIZERS = {
    name: value
    for name, value in vars(torch.optim).items()
    if isinstance(value, type)
    and issubclass(value, torch.optim.Optimizer)
    and name not in ("Optimizer", "SparseAdam", *WITHOUT_A_RATE)
}


def optimizer_for(model, strategy, optimizer=SGD, lr=0.125, weight_decay=0.0):
    return strategy.attach(optimizer(strategy.param_groups(model, lr, weight_decay)))


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_optimizer_steps_as_with_the_rates_in_its_own_groups(optimizer, quadratic_net):
    model = quadratic_net(bias=False)
    plain = copy.deepcopy(model)
    gamma = {"linear": 1.0, "g": 0.25, "b": 0.0625}
    attached = optimizer_for(model, ReLinear((0.25, 0.0625)), optimizer, weight_decay=0.01)
    groups = ReLinear().param_groups(plain, lr=0.125, weight_decay=0.01)
    for group in groups:
        group["lr"] *= gamma[group.pop("relinear")]
    ordinary = optimizer(groups)
    x = torch.randn(10, 4, dtype=DOUBLE)
    for _ in range(4):
        for model_, stepped in ((model, attached), (plain, ordinary)):
            stepped.zero_grad()
            model_(x).square().mean().backward()
            stepped.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_attach_restores_the_rates_exactly_and_leaves_the_position_alone():
    model = QuadraticLinear(4, 3)
    optimizer = optimizer_for(model, ReLinear(0.3), lr=0.1)
    before = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    assert {group["lr"] for group in before} == {0.1}
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    after = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    assert after == [group | {"relinear_step": 1} for group in before]


def test_a_step_that_broke_off_leaves_no_trace_in_the_next():
    def interrupted():
        raise KeyboardInterrupt

    model = QuadraticLinear(4, 3, dtype=DOUBLE)
    optimizer = optimizer_for(model, ReLinear(0.5))
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(interrupted)
    before = model["g"].weight.detach().clone()
    model(torch.randn(2, 4, dtype=DOUBLE)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(
        model["g"].weight.detach(), before - 0.5 * 0.125 * model["g"].weight.grad
    )
    assert {group["lr"] for group in optimizer.param_groups} == {0.125}


@pytest.mark.parametrize("weight_decay", ["reference", "published"])
@pytest.mark.parametrize("optimizer", [SGD, AdamW], ids=["SGD", "AdamW"])
def test_a_resumed_run_continues_to_the_last_bit(optimizer, weight_decay, quadratic_net):
    def fresh():
        model = quadratic_net()
        strategy = ReLinear(
            (LinearSchedule(0.0, 1.0, steps=5), StepSchedule((0.1, 0.9), (4,))),
            alpha=CosineSchedule(1.0, 0.9, steps=6),
            beta=0.999,
            weight_decay=weight_decay,
        )
        made = optimizer_for(model, strategy, optimizer, weight_decay=0.01)
        return model, made, CosineAnnealingLR(made, T_max=6)

    def train(model, optimizer, scheduler, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            scheduler.step()

    x = torch.randn(10, 4, dtype=DOUBLE)
    run, resumed = fresh(), fresh()
    train(*run, 3)
    saved = io.BytesIO()
    torch.save([part.state_dict() for part in run], saved)
    saved.seek(0)
    for part, state in zip(resumed, torch.load(saved), strict=True):
        part.load_state_dict(state)
    train(*run, 4)
    train(*resumed, 4)
    for ours, theirs in zip(resumed[0].parameters(), run[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    # a run that forgets its position does not get there
    forgetful = fresh()
    train(*forgetful, 4)
    assert not torch.equal(forgetful[0][2]["g"].weight, run[0][2]["g"].weight)


def test_an_optimizer_without_relinear_steps_as_ever(quadratic_net):
    ReLinear().param_groups(quadratic_net(), lr=0.1)
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    SGD([parameter], lr=0.5).step()
    assert parameter.tolist() == [-0.5, -0.5]


def test_an_optimizer_that_steps_another_is_attached_itself(tmp_path, quadratic_net):
    from torch import distributed
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = quadratic_net()
    plain = copy.deepcopy(model)
    strategy = ReLinear((0.5, 0.25))
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    try:
        groups = strategy.param_groups(model, lr=0.125)
        sharded = strategy.attach(ZeroRedundancyOptimizer(groups, optimizer_class=SGD, lr=0.125))
        whole = optimizer_for(plain, strategy)
        x = torch.randn(10, 4, dtype=DOUBLE)
        for _ in range(3):
            for model_, optimizer in ((model, sharded), (plain, whole)):
                optimizer.zero_grad()
                model_(x).square().mean().backward()
                optimizer.step()
    finally:
        distributed.destroy_process_group()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


# --- misuse ---


NOT_ATTACHED = (
    "optimizer has ReLinear's parameter groups, but is not attached, and would train the "
    "quadratic parameters at the full rate: call strategy.attach(optimizer) first, again after "
    "copying or unpickling an optimizer"
)


def forgot(strategy, model):
    return SGD(strategy.param_groups(model, lr=0.125))


def copied(strategy, model):
    return copy.deepcopy(optimizer_for(model, strategy))


def unpickled(strategy, model):
    return pickle.loads(pickle.dumps(optimizer_for(model, strategy)))  # noqa: S301 - our own bytes


@pytest.mark.parametrize("make", [forgot, copied, unpickled])
def test_a_step_without_attach_is_refused_and_attach_cures_it(make):
    model = QuadraticLinear(4, 3)
    strategy = ReLinear(0.5)
    optimizer = make(strategy, model)
    for group in optimizer.param_groups:  # a copy has parameters of its own
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    before = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    with pytest.raises(RuntimeError, match=f"^{re.escape(NOT_ATTACHED)}$"):
        optimizer.step()
    after = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    strategy.attach(optimizer)
    optimizer.step()
    moved = {
        g["relinear"]: (before_ - g["params"][0]).mean().item()
        for g, before_ in zip(optimizer.param_groups, before[::2], strict=True)
    }
    assert moved == pytest.approx({"linear": 0.125, "g": 0.0625, "b": 0.0625})


FOREIGN_GROUPS = (
    "optimizer has parameter groups that ReLinear.param_groups did not make: build it as "
    "Optimizer(strategy.param_groups(model, lr=...)), then attach; make groups that are added "
    "later in the same way"
)


def attach_to_plain_groups(strategy, model):
    strategy.attach(SGD(model.parameters(), lr=0.1))


def summary_of_plain_groups(strategy, model):
    strategy.summary(model, SGD(model.parameters(), lr=0.1))


def add_a_plain_group(strategy, model):
    optimizer = optimizer_for(model, strategy)
    optimizer.add_param_group({"params": nn.Parameter(torch.zeros(2))})
    optimizer.step()


def attach_twice(strategy, model):
    strategy.attach(strategy.attach(SGD(strategy.param_groups(model, lr=0.1))))


def attach_to_rprop(strategy, model):
    strategy.attach(torch.optim.Rprop(strategy.param_groups(model, lr=0.1)))


def attach_to_lbfgs(strategy, model):
    # one group, which LBFGS takes: it refuses more by itself
    (group,) = strategy.param_groups(model[3], lr=0.1)
    strategy.attach(torch.optim.LBFGS([group]))


@pytest.mark.parametrize(
    ("misuse", "text"),
    [
        (attach_to_plain_groups, FOREIGN_GROUPS),
        (summary_of_plain_groups, FOREIGN_GROUPS),
        (add_a_plain_group, FOREIGN_GROUPS),
        (attach_twice, "optimizer is attached already: attach once"),
        *[
            (
                misuse,
                f"optimizer {name} does not scale a group's step by its learning rate, so "
                "quadratic parameters cannot have a rate of their own: choose another, e.g. SGD "
                "or AdamW",
            )
            for misuse, name in ((attach_to_rprop, "Rprop"), (attach_to_lbfgs, "LBFGS"))
        ],
    ],
    ids=["plain groups", "summary", "plain group later", "twice", "Rprop", "LBFGS"],
)
def test_misuse_of_attach_is_refused(misuse, text):
    model = nn.Sequential(
        QuadraticLinear(4, 4), nn.Tanh(), nn.Linear(4, 4), QuadraticLinear(4, 3, neuron="product")
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        misuse(ReLinear(0.5), model)
