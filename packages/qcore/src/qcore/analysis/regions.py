"""The classes a model assigns to the points of a plane."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qcore.analysis.evaluation import evaluating, example_parameter

_BATCH = 4096


@dataclass(frozen=True, eq=False)
class DecisionRegions:
    """The predicted class on a grid.

    ``x`` and ``y`` ``(resolution,)`` are the ticks; ``classes[i, j]`` and ``outputs[i, j]`` belong
    to the point ``(x[j], y[i])``: ``classes`` ``(resolution, resolution)``, ``outputs``
    ``(resolution, resolution, classes)``.
    """

    x: Tensor
    y: Tensor
    classes: Tensor
    outputs: Tensor


def decision_regions(
    model: nn.Module,
    extent: tuple[float, float, float, float],
    resolution: int = 161,
    *,
    plane: tuple[Tensor, Tensor, Tensor] | None = None,
) -> DecisionRegions:
    r"""The class with the largest output at each point of a grid over a plane.

    Args:
        model: a classifier; it runs in eval mode and is left as it was.
        extent: left, right, bottom and top of the grid, ends included.
        resolution: points along each axis, 2 or more.
        plane: an origin o and two directions u, v in the space of the inputs; the grid's (x, y) is
            then the input ``o + x·u + y·v``. None is for models with two inputs, which see
            ``(x, y)`` itself.

    Shapes: each tensor of ``plane`` as one input of the model, without a batch dimension.

    Cost: ``resolution²`` samples through the model, 4096 at a time.

    Raises ``ValueError`` for a resolution below 2, an extent without width or height, and outputs
    that are not one row per point.

    Source: DIQNN (arXiv 2307.13609), figure 4, shows such regions on XOR.

    >>> regions = decision_regions(nn.Identity(), (-1.0, 1.0, 0.0, 1.0), resolution=3)
    >>> regions.x, regions.y
    (tensor([-1.,  0.,  1.]), tensor([0.0000, 0.5000, 1.0000]))
    >>> regions.classes  # is y > x?
    tensor([[1, 0, 0],
            [1, 1, 0],
            [1, 1, 0]])
    """
    left, right, bottom, top = extent
    if not (left < right and bottom < top):
        raise ValueError(
            f"extent={extent} is not allowed: give left, right, bottom, top with left < right and "
            "bottom < top"
        )
    if resolution < 2:
        raise ValueError(f"resolution={resolution} is not allowed: give 2 points or more per axis")
    like = example_parameter(model)
    x = torch.linspace(left, right, resolution, device=like.device, dtype=like.dtype)
    y = torch.linspace(bottom, top, resolution, device=like.device, dtype=like.dtype)
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    points = torch.stack([columns, rows], dim=-1).flatten(0, 1)  # (resolution², 2)
    with evaluating(model):
        outputs = torch.cat([model(_on_plane(batch, plane)) for batch in points.split(_BATCH)])
    if outputs.shape[:-1] != points.shape[:1]:
        raise ValueError(
            f"the model's output has shape {tuple(outputs.shape)}, but {len(points)} points need "
            f"({len(points)}, classes)"
        )
    outputs = outputs.unflatten(0, (resolution, resolution))
    return DecisionRegions(x, y, outputs.argmax(-1), outputs)


def _on_plane(points: Tensor, plane: tuple[Tensor, Tensor, Tensor] | None) -> Tensor:
    """The inputs at coordinates ``(B, 2)``: ``(B, *input)``."""
    if plane is None:
        return points
    origin, *directions = (vector.to(points) for vector in plane)
    return origin + torch.tensordot(points, torch.stack(directions), dims=1)
