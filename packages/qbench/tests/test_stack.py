"""Stacked replicas compute, and train, what each replica computes alone."""

import pytest
import torch
from torch import nn

from qbench.stack import Stacked, side_by_side
from qcore import LowRankForm, QuadraticForm, QuadraticLinear

MODULES = {
    "linear": lambda: nn.Linear(6, 3, bias=False),
    "dense": lambda: QuadraticForm(6, 3),
    "dense-blocked": lambda: QuadraticForm(40, 3, affine=True),
    "low-rank": lambda: LowRankForm(6, 3, rank=2),
    "signed-affine": lambda: LowRankForm(6, 3, rank=2, signed=True, affine=True),
    "deep": lambda: nn.Sequential(QuadraticLinear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
    "batch-norm": lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)),
}


def replicas(name: str, count: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [MODULES[name]().double() for _ in range(count)]


def width(module: nn.Module) -> int:
    return next(m.in_features for m in module.modules() if hasattr(m, "in_features"))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", MODULES)
def test_stacked_training_follows_each_replica_alone(name: str, count: int) -> None:
    alone, stacked = replicas(name, count), side_by_side(replicas(name, count))
    x = torch.randn(count, 20, width(alone[0]), dtype=torch.double)
    optimizer = torch.optim.SGD(stacked.parameters(), lr=0.01)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.01) for module in alone]
    for _ in range(10):
        optimizer.zero_grad()
        stacked(x).square().mean((1, 2)).sum().backward()
        optimizer.step()
        for k, module in enumerate(alone):
            optimizers[k].zero_grad()
            module(x[k]).square().mean().backward()
            optimizers[k].step()
    for k, module in enumerate(alone):
        expected = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        found = {
            **dict(stacked.module.named_parameters()),
            **dict(stacked.module.named_buffers()),
        }
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert found[key].shape == ((count, *value.shape) if count > 1 else value.shape)
            mine = found[key][k] if count > 1 else found[key]
            torch.testing.assert_close(mine.detach(), value.detach(), rtol=1e-9, atol=1e-12)
        assert list(stacked.replica_state(k)) == list(module.state_dict())
        by_itself = stacked.replica(k).eval()
        torch.testing.assert_close(by_itself(x[k]), module.eval()(x[k]), rtol=1e-9, atol=1e-12)
        module.train()


def test_the_state_of_a_replica_is_a_detached_copy() -> None:
    stacked = Stacked(replicas("linear", 2))
    copy = stacked.replica_state(1)
    before = copy["weight"].clone()
    with torch.no_grad():
        stacked.module.weight.zero_()
    assert torch.equal(copy["weight"], before)
    assert not copy["weight"].requires_grad


def test_the_replicas_themselves_are_left_alone() -> None:
    originals = replicas("linear", 2)
    stacked = Stacked(originals)
    with torch.no_grad():
        stacked.module.weight.zero_()
    assert all(module.weight.abs().sum() > 0 for module in originals)


def test_frozen_parameters_stay_frozen() -> None:
    originals = replicas("linear", 2)
    for module in originals:
        module.requires_grad_(False)
    assert not any(p.requires_grad for p in Stacked(originals).parameters())


def test_what_cannot_be_stacked_is_refused() -> None:
    with pytest.raises(ValueError, match="replicas is empty"):
        Stacked([])
    with pytest.raises(ValueError, match="replicas differ in their parameters' names or shapes"):
        Stacked([nn.Linear(2, 3), nn.Linear(3, 3)])
