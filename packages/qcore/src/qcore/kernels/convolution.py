"""Convolutions and their gradients as operators, for backward passes of our own."""

import torch
from torch import Tensor

Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Stride, padding and dilation."""


def with_offset(b_g: Tensor | None, one: Tensor) -> Tensor:
    """The constant part of the factor g: its bias, and 1 for each channel."""
    return one if b_g is None else b_g + one


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """A convolution of a batch, not grouped."""
    return torch.convolution(x, weight, bias, *geometry, False, [0] * (x.dim() - 2), 1)


def convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, mask: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients for the input, the weight and the bias, each where ``mask`` asks for it."""
    none = [0] * (x.dim() - 2)
    found = torch.ops.aten.convolution_backward(
        grad, x, weight, [weight.shape[0]], *geometry, False, none, 1, mask
    )
    return tuple(value if wanted else None for value, wanted in zip(found, mask, strict=True))  # type: ignore[return-value]
