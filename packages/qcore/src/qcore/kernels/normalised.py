"""Quadratic convolutions with a norm, divided by it after the convolution instead of before.

The root mean square of a sample is one number, so :math:`w (x / \\rho) = (w x) / \\rho`: the
convolutions see x and x² as they are, and no normalised input is formed or kept. The backward pass
goes through both norms without another convolution: what a sample's norm does to the loss is the
inner product of a gradient and a value that are there anyway.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from qcore.kernels.convolution import Geometry, convolution_backward, convolve, with_offset


class Normalised(Function):
    """``r·g + b`` for convolutions r of x, g (with offset 1) of x/rms(x) and b of x²/rms(x²)."""

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
        """The value; ``recompute`` of the two factors are not kept."""
        squared = x * x
        of_x, of_squared = _inverse_rms(x), _inverse_rms(squared)
        r, g = _factors(x, w_r, w_g, b_r, b_g, of_x, geometry)
        kept = (r if recompute < 2 else None, g if recompute < 1 else None)
        ctx.save_for_backward(x, w_r, w_g, w_b, b_r, b_g, of_x, of_squared, *kept)
        ctx.geometry = geometry
        y = convolve(squared, w_b, None, geometry).mul_(of_squared)
        if b_b is not None:
            y.add_(_per_channel(b_b, x))
        return y.addcmul_(r, g)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients, through both norms."""
        x, w_r, w_g, w_b, b_r, b_g, of_x, of_squared, r, g = ctx.saved_tensors
        geometry: Geometry = ctx.geometry
        squared = x * x
        # a gradient of the gradient must see how all of these come from x
        if torch.is_grad_enabled():
            of_x, of_squared = _inverse_rms(x), _inverse_rms(squared)
            r, g = _factors(x, w_r, w_g, b_r, b_g, of_x, geometry)
        elif r is None:
            r, g = _factors(x, w_r, w_g, b_r, b_g, of_x, geometry)
        elif g is None:
            g = _second(x, w_g, b_g, of_x, geometry)
        needs = ctx.needs_input_grad
        each = tuple(range(2, x.dim()))  # the places of an image
        of_g = grad * r
        dx, dw, db = convolution_backward(
            torch.cat([grad * g, of_g * of_x], 1),
            x,
            torch.cat([w_r, w_g]),
            geometry,
            [needs[0], needs[1] or needs[2], needs[4]],
        )
        dsquared, dw_b, _ = convolution_backward(
            grad * of_squared, squared, w_b, geometry, [needs[0], needs[3], False]
        )
        if dx is not None and dsquared is not None:
            # with ρ = (mean x² + ε)^-½ and L's slope in ρ: dρ/dx = -ρ³ x / n, and so of x²
            without = g - _per_channel(with_offset(b_g, w_g.new_ones(len(w_g))), x)
            size = math.prod(x.shape[1:])
            slope = -_total(of_g * without) * of_x**2 / size
            slope_of_squared = -_total(dsquared * squared) * of_squared**2 / size
            through = torch.addcmul(dsquared, squared, slope_of_squared.to(x.dtype))
            dx = torch.addcmul(dx, x, 2 * through + slope.to(x.dtype))
        dw_r, dw_g = (None, None) if dw is None else dw.chunk(2)
        return (
            dx,
            dw_r if needs[1] else None,
            dw_g if needs[2] else None,
            dw_b,
            None if db is None else db.chunk(2)[0],
            of_g.sum((0, *each)) if needs[5] else None,
            grad.sum((0, *each)) if needs[6] else None,
            None,
            None,
        )


def _inverse_rms(x: Tensor) -> Tensor:
    """One over the root mean square of each sample, as ``nn.functional.rms_norm`` takes it."""
    wide = x.dtype if x.dtype == torch.float64 else torch.float32
    sizes = tuple(range(1, x.dim()))
    norm = torch.linalg.vector_norm(x, dim=sizes, keepdim=True, dtype=wide)
    mean = norm * norm / math.prod(x.shape[1:])
    return (mean + torch.finfo(wide).eps).rsqrt().to(x.dtype)


def _total(x: Tensor) -> Tensor:
    """The sum over each sample."""
    wide = x.dtype if x.dtype == torch.float64 else torch.float32
    return x.sum(tuple(range(1, x.dim())), keepdim=True, dtype=wide)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.dim() - 2))


def _factors(
    x: Tensor,
    w_r: Tensor,
    w_g: Tensor,
    b_r: Tensor | None,
    b_g: Tensor | None,
    of_x: Tensor,
    geometry: Geometry,
) -> tuple[Tensor, Tensor]:
    """r, and g with its offset."""
    return convolve(x, w_r, b_r, geometry), _second(x, w_g, b_g, of_x, geometry)


def _second(x: Tensor, w_g: Tensor, b_g: Tensor | None, of_x: Tensor, geometry: Geometry) -> Tensor:
    """g with its offset."""
    offset = with_offset(b_g, w_g.new_ones(len(w_g)))
    return torch.addcmul(_per_channel(offset, x), convolve(x, w_g, None, geometry), of_x)
