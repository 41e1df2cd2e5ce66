"""The loop: gradient descent as written, seeds that do not see each other, divergence as a
result."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qbench.build import build_model
from qbench.data import Problem, load_problem
from qbench.loop import Curve, Training
from qbench.recipe import Recipe
from qbench.stack import side_by_side
from qbench.table import Cell, load_table
from qcore import normalized_margin

UCI = load_table("uci")


def train(models: list[nn.Module], problem: Problem, recipe: Recipe) -> list[Curve]:
    seeds = range(len(models))
    return Training(side_by_side(models), problem, recipe, seeds).run()


def recorded(curves: list[Curve]) -> list[tuple[object, ...]]:
    """All but the times."""
    return [(curve.step, curve.metrics, curve.snapshots, curve.diverged_at) for curve in curves]


def run(cell: Cell, seeds: list[int], **recipe: object) -> list[Curve]:
    chosen = Recipe.model_validate({**cell.recipe.model_dump(), **recipe})
    problem = load_problem(cell.dataset, chosen, seeds)
    models = [
        build_model(cell.model, problem.shape, problem.classes, chosen.init_scale, seed)
        for seed in seeds
    ]
    return train(models, problem, chosen)


def cell(dataset: str, model: str, scaling: str = "maxabs") -> Cell:
    only = {"dataset": (dataset,), "model": (model,)}
    return next(UCI.cells(only, {"scaling": (scaling,)}))


def test_the_loop_is_plain_full_batch_gradient_descent() -> None:
    spec = cell("wine", "rank2")
    curve = run(spec, [3], epochs=30, log_every=1)[0]
    problem = load_problem("wine", spec.recipe, [3])
    model = build_model(spec.model, (13,), 3, 1.0, seed=3)
    (factors,) = model.parameters()
    for step in range(31):
        logits = model(problem.train.x[0])
        loss = F.cross_entropy(logits, problem.train.y[0])
        assert curve.metrics["train_loss"][step] == pytest.approx(loss.item(), rel=1e-5)
        margin = normalized_margin(logits, problem.train.y[0])
        assert curve.metrics["margin"][step] == pytest.approx(margin.item(), abs=1e-5)
        (gradient,) = torch.autograd.grad(loss, factors)
        if step < 30:
            with torch.no_grad():
                factors -= spec.recipe.lr * gradient
    right = (model(problem.test.x[0]).argmax(-1) == problem.test.y[0]).double().mean().item()
    assert curve.metrics["test_accuracy"][-1] == pytest.approx(100 * right)
    assert curve.step == list(range(31))


@pytest.mark.parametrize("model", list(UCI.grid.model))
@pytest.mark.parametrize("dataset", ["iris", "wisconsin"])
def test_a_seed_does_not_depend_on_its_neighbours(dataset: str, model: str) -> None:
    together = run(cell(dataset, model), list(range(10)), epochs=50, log_every=1)
    alone = run(cell(dataset, model), [7], epochs=50, log_every=1)[0]
    difference = torch.tensor(together[7].metrics["train_loss"]) - torch.tensor(
        alone.metrics["train_loss"]
    )
    assert difference.abs().max() < 1e-5


def test_a_diverged_neighbour_changes_nothing() -> None:
    spec = cell("wine", "rank2")
    recipe = spec.recipe.model_copy(update={"epochs": 50, "log_every": 1})
    problem = load_problem("wine", recipe, [0, 1])
    models = [build_model(spec.model, (13,), 3, 1.0, seed) for seed in (0, 1)]
    by_itself = build_model(spec.model, (13,), 3, 1.0, seed=0)
    (alone,) = train([by_itself], load_problem("wine", recipe, [0]), recipe)
    with torch.no_grad():
        models[1].factors.mul_(1e20)
    kept, lost = train(models, problem, recipe)
    assert lost.diverged_at is not None
    assert lost.diverged_at < 50
    assert kept.diverged_at is None
    difference = torch.tensor(kept.metrics["train_loss"]) - torch.tensor(
        alone.metrics["train_loss"]
    )
    assert difference.abs().max() < 1e-5


def test_the_same_block_gives_the_same_bits() -> None:
    first, second = (run(cell("wine", "rank1"), [0, 1, 2], epochs=200) for _ in range(2))
    assert recorded(first) == recorded(second)


@pytest.mark.parametrize("model", ["linear", "rank1", "rank4-affine"])
def test_divergence_is_recorded_with_its_first_step_at_any_thinning(model: str) -> None:
    spec = cell("wine", model, scaling="raw")
    every_step = run(spec, [0, 1], epochs=120, log_every=1, lr=0.1)
    thinned = run(spec, [0, 1], epochs=120, log_every=50, lr=0.1)
    for fine, coarse in zip(every_step, thinned, strict=True):
        assert fine.diverged_at == coarse.diverged_at
        if fine.diverged_at is not None:
            assert max(fine.step) == fine.diverged_at - 1
            assert all(torch.tensor(v).isfinite().all() for v in fine.metrics.values())
    # the linear layer's steps are bounded; squares of raw features of the order of 1000 are not
    assert (every_step[0].diverged_at is not None) == (model != "linear")


def test_seeds_start_from_their_own_seed_alone_and_leave_the_global_state() -> None:
    spec = UCI.grid.model["rank2"]
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    first = build_model(spec, (4,), 3, 1.0, seed=5)
    assert torch.equal(torch.rand(1), expected)
    second = build_model(spec, (4,), 3, 1.0, seed=5)
    other = build_model(spec, (4,), 3, 1.0, seed=6)
    assert torch.equal(first.factors, second.factors)
    assert not torch.equal(first.factors, other.factors)


@pytest.mark.parametrize("model", list(UCI.grid.model))
def test_init_scale_scales_the_outputs_at_the_start(model: str) -> None:
    x = torch.randn(7, 4)
    small = build_model(UCI.grid.model[model], (4,), 3, 0.1, seed=0)(x)
    large = build_model(UCI.grid.model[model], (4,), 3, 1.0, seed=0)(x)
    torch.testing.assert_close(large, 10 * small, rtol=1e-4, atol=1e-6)
