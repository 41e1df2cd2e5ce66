"""The normalised margin Δμ of DIQNN (arXiv 2307.13609): its value, a meter of it, and a loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


def normalized_margin(
    logits: Tensor, target: Tensor, reduction: Literal["mean", "none"] = "mean"
) -> Tensor:
    r"""The lead of the true class over the best other one, relative to the norm of the output.

    .. math::
        \Delta\mu = \frac1N \sum_n
            \frac{\Phi_{y_n} - \max_{j \ne y_n} \Phi_j}{\lVert\Phi\rVert_2}

    It lies in [−√2, √2] for any logits and in [−1, 1] where all outputs are non-negative, as those
    of a low-rank form are. It is never clamped; rounding may exceed a bound by a few units in the
    last place. A zero output vector has margin 0.

    Args:
        logits: outputs of the network, ``(..., classes)`` with at least two classes.
        target: the true classes as integers, ``(...)``.
        reduction: ``"mean"`` over all samples (NaN over none), or ``"none"``: a margin per sample.

    Shapes: ``()`` for ``"mean"``, ``(...)`` for ``"none"``. Half precision is computed in float32.

    Raises ``ValueError`` for fewer than two classes, shapes that do not match, or another
    reduction.

    Source: DIQNN, eq. 4.

    >>> normalized_margin(torch.tensor([[3.0, 4.0]]), torch.tensor([1]))
    tensor(0.2000)
    """
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction={reduction!r} is not allowed: choose 'mean' or 'none'")
    if logits.ndim < 1 or logits.shape[-1] < 2:
        raise ValueError(
            f"logits has shape {tuple(logits.shape)}, but a margin needs at least two classes "
            "in the last dimension"
        )
    if target.shape != logits.shape[:-1]:
        raise ValueError(
            f"target has shape {tuple(target.shape)}, but logits of shape {tuple(logits.shape)} "
            f"need {tuple(logits.shape[:-1])}: one class index per sample"
        )
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    # The margin does not depend on the scale of a row; dividing by the largest entry first keeps
    # the squares of very large and very small outputs inside the number format.
    largest = logits.detach().abs().amax(-1, keepdim=True)
    is_zero = largest == 0
    scaled = logits / largest.masked_fill(is_zero, 1.0)
    index = target.unsqueeze(-1)
    true = scaled.gather(-1, index).squeeze(-1)
    others = scaled.scatter(-1, index, float("-inf"))
    lead = true - others.amax(-1)
    # a constant length for zero rows: their lead is 0, and 0/0 would be NaN, in the gradient too
    margin = lead / torch.linalg.vector_norm(scaled.masked_fill(is_zero, 1.0), dim=-1)
    return margin.mean() if reduction == "mean" else margin


@dataclass
class MarginMeter:
    r"""The mean normalised margin over any number of batches, processes and machines.

    .. math:: \Delta\mu = \frac{\sum_n \Delta\mu_n}{N}

    Sum and count are kept apart and the sum in double precision, so that the mean is that of all
    samples at once, however they were divided into batches.

    Args:
        total: sum of the margins so far.
        count: number of samples so far.

    The two are all of its state: a meter pickles, and goes to other processes, as it is.

    Cost: that of :func:`normalized_margin`; a batch's margins are brought to the CPU.

    Raises ``ValueError`` for logits and targets as :func:`normalized_margin` does.

    Source: DIQNN, eq. 4.

    >>> meter = MarginMeter()
    >>> meter.update(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([1, 0]))
    >>> meter.update(torch.tensor([[3.0, 4.0]]), torch.tensor([0]))
    >>> meter.count, round(meter.mean, 6)
    (3, 0.333333)
    """

    total: float = 0.0
    count: int = 0

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch: logits ``(..., classes)`` and targets ``(...)``; no gradient is kept."""
        margins = normalized_margin(logits.detach(), target, reduction="none")
        # to the CPU before double precision, which some accelerators do not have
        self.total += margins.cpu().double().sum().item()
        self.count += margins.numel()

    def merge(self, other: "MarginMeter") -> None:
        """Add what another meter has seen; the other is left as it is."""
        self.total += other.total
        self.count += other.count

    def over_processes(self) -> "MarginMeter":
        """A new meter of what this one has seen in all processes of ``torch.distributed``.

        All processes must call it. Where ``torch.distributed`` is not initialised, it is a copy.
        This meter is left as it is, so that training can go on with it.
        """
        import torch.distributed as dist  # a subsystem that most users of a meter never need

        meters = [self]
        if dist.is_available() and dist.is_initialized():
            gathered: list[MarginMeter | None] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, self)
            meters = [meter for meter in gathered if meter is not None]
        return MarginMeter(
            math.fsum(meter.total for meter in meters), sum(meter.count for meter in meters)
        )

    @property
    def mean(self) -> float:
        """The mean margin so far; NaN over no samples, as a mean is."""
        return self.total / self.count if self.count else math.nan


class MarginRegularizedLoss(nn.Module):
    r"""A loss that rewards the normalised margin.

    .. math:: L(\theta) = L_\text{base}(\theta) - \lambda \, \Delta\mu

    The margin is rewarded, so it is subtracted: λ > 0 widens it.

    Args:
        lam: λ, 0 or more; 0 is the base loss.
        base: any loss of logits and targets; None is ``nn.CrossEntropyLoss()``, as in the paper.
            Where it returns one value per sample, so does this loss, with the sample's own margin.

    Shapes: logits ``(B, classes)``, targets ``(B,)`` of integers; a scalar, or ``(B,)`` where the
    base loss does not reduce.

    Cost: that of the base loss and of :func:`normalized_margin`.

    Raises ``ValueError`` for a negative or infinite ``lam``, and for logits and targets as
    :func:`normalized_margin` does.

    Source: DIQNN, eq. 5.

    >>> loss = MarginRegularizedLoss(lam=0.5)
    >>> logits, target = torch.tensor([[3.0, 4.0]]), torch.tensor([1])
    >>> base = nn.functional.cross_entropy(logits, target)
    >>> torch.equal(loss(logits, target), base - 0.5 * normalized_margin(logits, target))
    True
    """

    def __init__(self, lam: float, base: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        if not 0.0 <= lam < math.inf:
            raise ValueError(
                f"lam={lam!r} is not allowed: give 0 or more; the margin is subtracted already"
            )
        self.lam = lam
        self.base = nn.CrossEntropyLoss() if base is None else base

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The base loss, less λ times the margin."""
        loss = self.base(logits, target)
        margin = normalized_margin(logits, target, "mean" if loss.ndim == 0 else "none")
        return loss - self.lam * margin

    def extra_repr(self) -> str:
        """λ, for ``print``."""
        return f"lam={self.lam:g}"
