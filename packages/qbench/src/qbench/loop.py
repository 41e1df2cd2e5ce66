"""The one training loop: full-batch gradient descent on many seeds at once."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from qbench.data import Problem
from qbench.stack import Stacked
from qbench.table import Recipe
from qcore import normalized_margin


@dataclass(frozen=True)
class Curve:
    """What one seed's training recorded.

    ``step`` counts updates made before the measurement. Metrics are in percent (accuracies), nats
    (losses) or without unit (margin); each list is as long as ``step``. ``diverged_at`` is the
    first step at which the training loss was not finite; nothing from that step on is recorded.
    """

    step: list[int] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    snapshots: dict[int, dict[str, list[object]]] = field(default_factory=dict)
    diverged_at: int | None = None


def train(
    model: Stacked,
    problem: Problem,
    recipe: Recipe,
    on_step: Callable[[int], None] = lambda step: None,
) -> list[Curve]:
    """Train in place and return one curve per seed.

    The loss is the sum over seeds of each seed's mean cross-entropy, so that every seed's gradient
    is its own. Training ends early only when every seed has diverged. ``on_step`` is called at
    each recorded step.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr)
    curves = [Curve() for _ in range(model.replicas)]
    losses: list[Tensor] = []
    for step in range(recipe.epochs + 1):
        logits = model(problem.x_train)
        loss = _loss(logits, problem.y_train)
        losses.append(loss.detach())
        last = step == recipe.epochs
        if last or step % recipe.log_every == 0 or step in recipe.snapshots:
            _mark_diverged(curves, losses, step)
            losses.clear()
            if all(curve.diverged_at is not None for curve in curves):
                break
            _record(curves, step, model, problem, logits.detach(), loss.detach(), recipe)
            on_step(step)
        if last:
            break
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    return curves


def _loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of each seed: ``(S, B, K)`` and ``(S, B)`` to ``(S,)``."""
    # classes in the middle: five times as fast on CPU as classes last, since samples vectorise
    return F.cross_entropy(logits.transpose(1, 2), target, reduction="none").mean(1)


def _mark_diverged(curves: list[Curve], losses: list[Tensor], step: int) -> None:
    """Note, per seed, the first step whose loss was not finite; ``losses`` end at ``step``."""
    bad = ~torch.stack(losses).isfinite()  # (steps, S)
    if not bad.any():
        return
    first_step = step - len(losses) + 1
    for seed, (is_bad, index) in enumerate(
        zip(bad.any(0).tolist(), bad.int().argmax(0).tolist(), strict=True)
    ):
        if is_bad and curves[seed].diverged_at is None:
            curves[seed] = Curve(
                curves[seed].step,
                curves[seed].metrics,
                curves[seed].snapshots,
                diverged_at=first_step + index,
            )


@torch.no_grad()
def _record(
    curves: list[Curve],
    step: int,
    model: Stacked,
    problem: Problem,
    logits: Tensor,
    loss: Tensor,
    recipe: Recipe,
) -> None:
    values = {
        "train_loss": loss,
        "train_accuracy": _accuracy(logits, problem.y_train),
        "margin": normalized_margin(logits, problem.y_train, reduction="none").mean(1),
    }
    if problem.y_test.shape[1]:
        test_logits = model(problem.x_test)
        values["test_loss"] = _loss(test_logits, problem.y_test)
        values["test_accuracy"] = _accuracy(test_logits, problem.y_test)
    columns = {name: value.tolist() for name, value in values.items()}
    for seed, curve in enumerate(curves):
        if curve.diverged_at is not None:
            continue
        curve.step.append(step)
        for name, column in columns.items():
            curve.metrics.setdefault(name, []).append(column[seed])
        if step in recipe.snapshots:
            parameters = model.replica_parameters(seed)
            curve.snapshots[step] = {name: value.tolist() for name, value in parameters.items()}


def _accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Percent correct of each seed."""
    return (logits.argmax(-1) == target).double().mean(1) * 100
