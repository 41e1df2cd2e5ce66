"""Quadratic convolutions with ``r`` and ``g`` as one convolution and a backward pass of their own.

The plain arrangement keeps ``x``, ``x²``, ``r`` and ``g`` for the backward pass. Here ``x²`` is
formed again, and so are, on request, one or both of the factors.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from qcore.kernels.convolution import Geometry, convolution_backward, convolve, with_offset
from qcore.kernels.normalised import Normalised

if TYPE_CHECKING:
    from qcore.layers import Quadratic

_KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SETTINGS = ("stride", "padding", "dilation", "groups", "padding_mode", "kernel_size")


def can_merge(layer: "Quadratic") -> bool:
    """Whether the layer is the neuron ``quadratic`` over three plain convolutions alike.

    Grouped convolutions, padding other than zeros in numbers, parametrized or hooked modules, and
    a norm over less than all of a sample are not.
    """
    if layer.neuron != "quadratic":
        return False
    branches: list[Any] = list(layer.values())
    first = branches[0]
    return bool(
        type(first) in _KINDS
        and first.groups == 1
        and first.padding_mode == "zeros"
        and not isinstance(first.padding, str)
        and layer.rms_dims in (0, first.weight.dim() - 1)
        and all(
            type(branch) is type(first)
            and not branch._forward_hooks
            and not branch._forward_pre_hooks
            and not branch._backward_hooks
            and not branch._backward_pre_hooks
            and all(getattr(branch, name) == getattr(first, name) for name in _SETTINGS)
            for branch in branches
        )
    )


def merged_convolution(layer: "Quadratic", x: Tensor, recompute: int, dtype: torch.dtype) -> Tensor:
    """The value in ``dtype`` of a layer that ``can_merge``; ``recompute`` as in ``backend``."""
    branches: list[Any] = list(layer.values())
    r, g, b = branches
    batch = x if x.dim() == r.weight.dim() else x.unsqueeze(0)
    tensors = (batch, r.weight, g.weight, b.weight, r.bias, g.bias, b.bias)
    # the casts are autograd's; inside, everything has one type
    cast = [None if tensor is None else tensor.to(dtype) for tensor in tensors]
    function = Normalised if layer.rms_dims else _Merged
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = function.apply(*cast, (r.stride, r.padding, r.dilation), recompute)
    return y if x.dim() == r.weight.dim() else y.squeeze(0)


class _Merged(Function):
    """``r·g + b`` for convolutions r, g (with offset 1) of x and b of x²."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w_r: Tensor,
        w_g: Tensor,
        w_b: Tensor,
        b_r: Tensor | None,
        b_g: Tensor | None,
        b_b: Tensor | None,
        geometry: Geometry,
        recompute: int,
    ) -> Tensor:
        kept: tuple[Tensor | None, Tensor | None] = (None, None)
        if recompute == 1:  # not as one: keeping half of a tensor keeps the whole
            r, g = convolve(x, w_r, b_r, geometry), _second(x, w_g, b_g, geometry)
            kept = (r, None)
        else:
            r, g = _factors(x, w_r, w_g, b_r, b_g, geometry)
            kept = (r, g) if recompute == 0 else (None, None)
        ctx.save_for_backward(x, w_r, w_g, w_b, b_r, b_g, *kept)
        ctx.geometry = geometry
        return convolve(x * x, w_b, b_b, geometry).addcmul_(r, g)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w_r, w_g, w_b, b_r, b_g, r, g = ctx.saved_tensors
        geometry: Geometry = ctx.geometry
        # a gradient of the gradient must see how r and g come from x
        if r is None or torch.is_grad_enabled():
            r, g = _factors(x, w_r, w_g, b_r, b_g, geometry)
        elif g is None:
            g = _second(x, w_g, b_g, geometry)
        needs = ctx.needs_input_grad
        dx, dw, db = convolution_backward(
            torch.cat([grad * g, grad * r], 1),
            x,
            torch.cat([w_r, w_g]),
            geometry,
            [needs[0], needs[1] or needs[2], needs[4] or needs[5]],
        )
        dx2, dw_b, db_b = convolution_backward(
            grad, x * x, w_b, geometry, [needs[0], needs[3], needs[6]]
        )
        if dx is not None and dx2 is not None:
            dx = torch.addcmul(dx, dx2, x, value=2)
        pairs = [(None, None) if pair is None else pair.chunk(2) for pair in (dw, db)]
        halves = [half for pair in pairs for half in pair]  # of w_r, w_g, b_r, b_g
        dw_r, dw_g, db_r, db_g = (
            half if needs[i] else None for half, i in zip(halves, (1, 2, 4, 5), strict=True)
        )
        return dx, dw_r, dw_g, dw_b, db_r, db_g, db_b, None, None


def _factors(
    x: Tensor,
    w_r: Tensor,
    w_g: Tensor,
    b_r: Tensor | None,
    b_g: Tensor | None,
    geometry: Geometry,
) -> tuple[Tensor, Tensor]:
    """r, and g with its offset, by one convolution."""
    one = w_g.new_ones(w_g.shape[0])
    bias = torch.cat([torch.zeros_like(one) if b_r is None else b_r, with_offset(b_g, one)])
    r, g = convolve(x, torch.cat([w_r, w_g]), bias, geometry).chunk(2, 1)
    return r, g


def _second(x: Tensor, w_g: Tensor, b_g: Tensor | None, geometry: Geometry) -> Tensor:
    """g with its offset."""
    return convolve(x, w_g, with_offset(b_g, w_g.new_ones(w_g.shape[0])), geometry)
