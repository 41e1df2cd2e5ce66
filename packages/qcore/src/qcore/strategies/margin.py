"""The normalised margin Δμ of DIQNN (arXiv 2307.13609, eq. 4)."""

from typing import Literal

import torch
from torch import Tensor


def normalized_margin(
    logits: Tensor, target: Tensor, reduction: Literal["mean", "none"] = "mean"
) -> Tensor:
    r"""The lead of the true class over the best other one, relative to the length of the output.

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
