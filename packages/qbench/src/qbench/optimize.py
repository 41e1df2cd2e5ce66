"""Optimiser, schedule, strategy, clipping and precision, as a recipe names them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR

from qbench.recipe import Ramp, Recipe
from qbench.stack import Single, Stacked
from qcore import CosineSchedule, LinearSchedule, ReLinear


def make_strategy(recipe: Recipe, steps_per_epoch: int) -> ReLinear | None:
    """ReLinear, where the recipe has it, with its ramps over all steps."""
    steps = recipe.epochs * steps_per_epoch
    given: dict[str, Any] = {
        name: _schedule(value, steps) if isinstance(value, Ramp) else value
        for name, value in recipe.strategy.relinear.items()
    }
    return ReLinear(**given) if given else None


def _schedule(ramp: Ramp, steps: int) -> LinearSchedule | CosineSchedule:
    made = LinearSchedule if ramp.shape == "linear" else CosineSchedule
    return made(ramp.start, ramp.end, steps)


def make_optimizer(model: nn.Module, recipe: Recipe, strategy: ReLinear | None) -> Optimizer:
    """The optimiser over all parameters, with the strategy inside its steps."""
    groups: Any = (
        strategy.param_groups(model, recipe.lr, recipe.weight_decay)
        if strategy
        else model.parameters()
    )
    if recipe.optimizer == "sgd":
        optimizer: Optimizer = torch.optim.SGD(
            groups, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    else:
        optimizer = torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay)
    return strategy.attach(optimizer) if strategy else optimizer


def make_schedule(optimizer: Optimizer, recipe: Recipe, steps_per_epoch: int) -> LRScheduler | None:
    """The schedule, which takes a step after each of the optimiser's; None for a constant rate."""
    steps = recipe.epochs * steps_per_epoch
    if recipe.schedule == "step":
        drops = [epoch * steps_per_epoch for epoch in recipe.milestones]
        return LambdaLR(
            optimizer, lambda step: recipe.factor ** sum(step >= drop for drop in drops)
        )
    if recipe.schedule == "cosine":
        return CosineAnnealingLR(optimizer, steps)
    if recipe.schedule == "one_cycle":
        return OneCycleLR(optimizer, recipe.lr, total_steps=max(steps, 1), cycle_momentum=False)
    return None


@torch.no_grad()
def clip_gradients(
    model: Stacked | Single, optimizer: Optimizer, most: float, strategy: ReLinear | None = None
) -> None:
    """Scale the gradient of each seed down to the norm ``most``, as torch does for one model; with
    a strategy, as :meth:`qcore.ReLinear.clip_grad_norm_` does."""
    if isinstance(model, Single):
        if strategy is not None:
            strategy.clip_grad_norm_(optimizer, most)
        else:
            nn.utils.clip_grad_norm_(model.parameters(), most)
        return
    # both of these have one norm for all, and this one for each seed
    groups = optimizer.param_groups
    factors = strategy.rate_factors(optimizer) if strategy is not None else [1.0] * len(groups)
    gradients: list[Tensor] = []
    norms: list[Tensor] = []
    for group, factor in zip(groups, factors, strict=True):
        for gradient in (p.grad for p in group["params"] if p.grad is not None):
            gradients.append(gradient)
            norms.append(factor * gradient.flatten(1).norm(dim=1))
    scale = (most / (torch.stack(norms).norm(dim=0) + 1e-6)).clamp(max=1.0)  # (S,)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Whether CUDA's float32 products are TF32: only where that is the recipe's precision."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allowed = name == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def autocast(recipe: Recipe, device: str) -> AbstractContextManager[object]:
    """The context of forward passes in half precision; it does nothing for the others."""
    if not recipe.half:
        return nullcontext()
    return torch.autocast(device, dtype=getattr(torch, recipe.precision))


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors, such as momenta, under ``<parameter>.<name>``."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value
        for index, of in state.items()
        for name, value in of.items()
        if isinstance(value, Tensor)
    }
