"""The element-wise part of a quadratic layer as Triton kernels: one pass over memory each way.

Plain torch passes over memory for each operation of ``r·(g + 1) + b`` and keeps the sum ``g + 1``.
Here ``x²`` and ``r·(g + offset) + b`` are one kernel each, and so are their backward passes. All
arithmetic is in float32 at least; only results are rounded to the type of the tensors.

Importing this module imports Triton: :mod:`qcore.kernels` does so at the first use.
"""

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op

if TYPE_CHECKING:
    from qcore.layers import Quadratic

_BLOCK = 1024  # elements that one program of a kernel works off


def can_fuse(layer: "Quadratic") -> bool:
    """Whether the neuron is one product of two branches, and one branch more."""
    if sorted(map(len, layer.terms)) != [1, 2]:
        return False
    (r, g), (b,) = sorted(layer.terms, key=len, reverse=True)
    offsets = layer.offsets
    return len({r, g, b}) == 3 and offsets[r] == offsets[b] == 0.0


def fused(layer: "Quadratic", x: Tensor, dtype: torch.dtype) -> Tensor:
    """The value, in ``dtype``, of a layer that ``can_fuse``, by one kernel after its branches."""
    lifts, offsets = layer.lifts, layer.offsets
    squared = square(x) if "x2" in lifts.values() else x
    (r, g), (b,) = sorted(layer.terms, key=len, reverse=True)
    values = [layer[k](squared if lifts[k] == "x2" else x) for k in (r, g, b)]
    if len({(value.shape, value.dtype) for value in values}) > 1:  # branches of the user's own
        return (values[0] * (values[1] + offsets[g]) + values[2]).to(dtype)
    y: Tensor = multiply_add(*values, offsets[g])
    return y


# --- the kernels ---

# (Triton reads annotations when it compiles, and knows no Any: those stay strings)


@triton.jit
def _wide(value: "Any") -> "Any":
    """float32 in place of the narrower types."""
    return value if value.dtype == tl.float64 else value.to(tl.float32)


@triton.jit
def _square_kernel(x: "Any", y: "Any", count: "Any", block: tl.constexpr) -> None:
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < count
    value = _wide(tl.load(x + at, mask=inside))
    tl.store(y + at, value * value, mask=inside)


@triton.jit
def _square_backward_kernel(
    grad: "Any", x: "Any", dx: "Any", count: "Any", block: tl.constexpr
) -> None:
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < count
    value = _wide(tl.load(x + at, mask=inside))
    tl.store(dx + at, 2 * value * _wide(tl.load(grad + at, mask=inside)), mask=inside)


@triton.jit
def _multiply_add_kernel(
    r: "Any", g: "Any", b: "Any", y: "Any", count: "Any", offset: tl.constexpr, block: tl.constexpr
) -> None:
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < count
    factor = _wide(tl.load(g + at, mask=inside)) + offset
    product = _wide(tl.load(r + at, mask=inside)) * factor
    tl.store(y + at, product + _wide(tl.load(b + at, mask=inside)), mask=inside)


@triton.jit
def _multiply_add_backward_kernel(
    grad: "Any",
    r: "Any",
    g: "Any",
    dr: "Any",
    dg: "Any",
    count: "Any",
    offset: tl.constexpr,
    block: tl.constexpr,
) -> None:
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < count
    incoming = _wide(tl.load(grad + at, mask=inside))
    factor = _wide(tl.load(g + at, mask=inside)) + offset
    tl.store(dr + at, incoming * factor, mask=inside)
    tl.store(dg + at, incoming * _wide(tl.load(r + at, mask=inside)), mask=inside)


INTERPRETED = not isinstance(_square_kernel, triton.JITFunction)
"""Whether Triton runs its kernels on CPU: ``TRITON_INTERPRET=1`` where it was first imported."""


def _launch(kernel: Any, like: Tensor, *tensors: Tensor, **constants: float) -> None:
    """Run a kernel over all elements of tensors that are laid out in memory as ``like`` is."""
    count = like.numel()
    if count:
        with torch.cuda.device_of(like):
            kernel[(triton.cdiv(count, _BLOCK),)](*tensors, count, block=_BLOCK, **constants)


def _laid_out_as(like: Tensor, x: Tensor) -> Tensor:
    """``x`` in the memory layout of ``like``."""
    return x if x.stride() == like.stride() else torch.empty_like(like, dtype=x.dtype).copy_(x)


# --- the operators, known to autograd, torch.compile and torch.export ---


@custom_op("qcore::square", mutates_args=())
def square(x: Tensor) -> Tensor:
    """``x²``."""
    y = torch.empty_like(x)
    _launch(_square_kernel, y, _laid_out_as(y, x), y)
    return y


@custom_op("qcore::square_backward", mutates_args=())
def square_backward(grad: Tensor, x: Tensor) -> Tensor:
    """``2·x·grad``."""
    dx = torch.empty_like(x)
    _launch(_square_backward_kernel, dx, _laid_out_as(dx, grad), _laid_out_as(dx, x), dx)
    return dx


@custom_op("qcore::multiply_add", mutates_args=())
def multiply_add(r: Tensor, g: Tensor, b: Tensor, offset: float) -> Tensor:
    """``r·(g + offset) + b`` for tensors of one shape and type."""
    y = torch.empty_like(r)
    inputs = [_laid_out_as(y, value) for value in (r, g, b)]
    _launch(_multiply_add_kernel, y, *inputs, y, offset=offset)
    return y


@custom_op("qcore::multiply_add_backward", mutates_args=())
def multiply_add_backward(
    grad: Tensor, r: Tensor, g: Tensor, offset: float
) -> tuple[Tensor, Tensor]:
    """The gradients for r and g."""
    dr, dg = torch.empty_like(r), torch.empty_like(r)
    inputs = [_laid_out_as(dr, value) for value in (grad, r, g)]
    _launch(_multiply_add_backward_kernel, dr, *inputs, dr, dg, offset=offset)
    return dr, dg


# --- their derivatives, of every order ---


def _keep_square(
    ctx: Any,
    inputs: tuple[Tensor],
    output: Tensor,  # noqa: ARG001 - torch gives it by name
) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_square(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    dx: Tensor = square_backward(grad, x)
    return dx


def _keep_square_backward(
    ctx: Any,
    inputs: tuple[Tensor, Tensor],
    output: Tensor,  # noqa: ARG001 - torch gives it by name
) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_square_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    incoming, x = ctx.saved_tensors
    return 2 * x * grad, 2 * incoming * grad


def _keep_multiply_add(
    ctx: Any,
    inputs: tuple[Tensor, Tensor, Tensor, float],
    output: Tensor,  # noqa: ARG001 - torch passes it by name
) -> None:
    r, g, _, ctx.offset = inputs
    ctx.save_for_backward(r, g)


def _differentiate_multiply_add(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    dr, dg = multiply_add_backward(grad, *ctx.saved_tensors, ctx.offset)
    return dr, dg, grad, None


def _keep_multiply_add_backward(
    ctx: Any,
    inputs: tuple[Tensor, Tensor, Tensor, float],
    output: tuple[Tensor, Tensor],  # noqa: ARG001 - torch passes it by name
) -> None:
    grad, r, g, ctx.offset = inputs
    ctx.save_for_backward(grad, r, g)


def _differentiate_multiply_add_backward(
    ctx: Any, d_dr: Tensor, d_dg: Tensor
) -> tuple[Tensor, Tensor, Tensor, None]:
    grad, r, g = ctx.saved_tensors
    return d_dr * (g + ctx.offset) + d_dg * r, d_dg * grad, d_dr * grad, None


square.register_fake(torch.empty_like)
square.register_autograd(_differentiate_square, setup_context=_keep_square)
square_backward.register_fake(lambda grad, x: torch.empty_like(x))
square_backward.register_autograd(
    _differentiate_square_backward, setup_context=_keep_square_backward
)
multiply_add.register_fake(lambda r, g, b, offset: torch.empty_like(r))
multiply_add.register_autograd(_differentiate_multiply_add, setup_context=_keep_multiply_add)
multiply_add_backward.register_fake(
    lambda grad, r, g, offset: (torch.empty_like(r), torch.empty_like(r))
)
multiply_add_backward.register_autograd(
    _differentiate_multiply_add_backward, setup_context=_keep_multiply_add_backward
)
