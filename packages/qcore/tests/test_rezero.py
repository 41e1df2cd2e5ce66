"""ReZero: the gate, alone and with ReLinear."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from qcore import QuadraticLinear, ReLinear, ReZero

DOUBLE = torch.float64


class Residual(nn.Module):
    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + self.branch(x)


def deep(depth, gate):
    """A residual network of quadratic layers, with branches gated or not."""
    blocks = [QuadraticLinear(4, 4) for _ in range(depth)]
    return nn.Sequential(*[Residual(ReZero(b) if gate else b) for b in blocks])


def test_a_residual_network_starts_as_the_identity():
    x = torch.randn(6, 4)
    assert torch.equal(deep(20, gate=True)(x), x)
    assert not torch.allclose(deep(2, gate=False)(x), x)


@pytest.mark.parametrize("gate", [0.0, 1.0, -0.5])
def test_the_output_is_the_gate_times_the_branch(gate):
    module = ReZero(QuadraticLinear(4, 3))
    module.gate.data.fill_(gate)
    x = torch.randn(2, 6, 4)
    assert torch.equal(module(x), gate * module.branch(x))


def test_gradients():
    module = ReZero(QuadraticLinear(3, 2), dtype=DOUBLE).to(DOUBLE)
    module.gate.data.fill_(0.7)
    names, values = zip(*module.named_parameters(), strict=True)

    def function(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    assert gradcheck(function, (torch.randn(4, 3, dtype=DOUBLE, requires_grad=True), *values))


def test_the_gate_learns_first_and_the_branch_from_the_second_step_on():
    model = Residual(ReZero(nn.Linear(4, 4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(6, 4)
    for step in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        assert model.branch.gate.grad != 0
        assert bool(model.branch.branch.weight.grad.any()) == (step == 1)
        optimizer.step()


def test_with_relinear_gates_learn_at_the_full_rate_and_quadratic_parts_at_theirs():
    model = deep(3, gate=True)
    strategy = ReLinear(gamma=1e-3)
    strategy.init_(model)
    optimizer = strategy.attach(torch.optim.SGD(strategy.param_groups(model, lr=0.1)))
    rates = {}
    for row in strategy.summary(model, optimizer).splitlines()[2:]:
        name, part, rate, _ = row.split()
        rates.setdefault(name.split(".", 2)[2], set()).add((part, rate))
    assert rates == {
        "gate": {("linear", "0.1")},
        "branch.r.weight": {("linear", "0.1")},
        "branch.r.bias": {("linear", "0.1")},
        "branch.g.weight": {("g", "0.0001")},
        "branch.g.bias": {("g", "0.0001")},
        "branch.b.weight": {("b", "0.0001")},
        "branch.b.bias": {("b", "0.0001")},
    }
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x = torch.randn(6, 4)
    for _ in range(2):
        optimizer.zero_grad()
        (model(x) - x.square()).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_reset_closes_the_gate_and_leaves_the_branch():
    module = ReZero(nn.Linear(4, 4))
    weight = module.branch.weight.detach().clone()
    module.gate.data.fill_(0.3)
    module.reset_parameters()
    assert module.gate == 0.0
    assert torch.equal(module.branch.weight, weight)


def test_state_dict_names_and_one_parameter_more():
    module = ReZero(nn.Linear(4, 3), dtype=DOUBLE)
    assert list(module.state_dict()) == ["gate", "branch.weight", "branch.bias"]
    assert (module.gate.shape, module.gate.dtype) == ((), DOUBLE)


def test_on_meta_then_to_empty_and_reset():
    module = ReZero(nn.Linear(4, 3, device="meta"), device="meta").to_empty(device="cpu")
    module.reset_parameters()
    module.branch.reset_parameters()
    assert torch.equal(module(torch.randn(2, 4)), torch.zeros(2, 3))


def test_under_autocast_the_gate_does_not_widen_the_branch():
    module = ReZero(nn.Linear(4, 3))
    with torch.autocast("cpu", torch.bfloat16):
        assert module(torch.randn(2, 4)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda module: pickle.loads(pickle.dumps(module)),  # noqa: S301 - our own bytes
        torch.jit.script,
        torch.fx.symbolic_trace,
    ],
    ids=["deepcopy", "pickle", "script", "fx"],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_copies_and_graphs_compute_the_same(copied):
    module = ReZero(nn.Linear(4, 3))
    module.gate.data.fill_(0.5)
    x = torch.randn(2, 4)
    assert torch.equal(copied(module)(x), module(x))
