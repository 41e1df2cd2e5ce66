"""The dense quadratic form by matrix products over blocks of its triangle, where they lie.

The plain formula copies the triangle into matrices in each step, and its gradient back. Here a
block without the diagonal is multiplied as it stands in the parameter, and its gradient written to
its place in the parameter's; only the blocks on the diagonal, in which two triangles interlace, are
copied. At 784 features that is 9/16 of the multiply-adds of the full square.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

if TYPE_CHECKING:
    from qcore.forms import QuadraticForm

_SMALLEST = 256  # features from which it was measured to be faster than the formula
_LEAF = 100  # triangles up to this size are not halved again
_TILE = 2**22  # projections, out times features for each sample, that a CPU works off together


class _Block(NamedTuple):
    """A summand ``x[rows]ᵀ M x[columns]``, and where M lies in the parameter."""

    rows: slice
    columns: slice
    place: tuple[slice, slice, slice]
    kind: str  # "full", or the triangle of M that is meant: "upper" or "lower"


def can_block(form: "QuadraticForm") -> bool:
    """Whether the form is large enough for blocks to be faster than the formula."""
    return form.size >= _SMALLEST


def blocked_form(form: "QuadraticForm", x: Tensor) -> Tensor:
    """``xᵀ A_k x`` for each k; ``x`` has the appended 1 of an affine form."""
    samples = x.reshape(-1, form.size)
    parts = [
        _Blocked.apply(tile, form.triangle, form) for tile in samples.split(_tile(form, samples))
    ]
    y = parts[0] if len(parts) == 1 else torch.cat(parts)
    return y.view(*x.shape[:-1], form.out_features)


def _tile(form: "QuadraticForm", x: Tensor) -> int:
    """How many samples go together: on a CPU those whose projections its cache holds."""
    if x.device.type != "cpu":
        return max(len(x), 1)
    return max(_TILE // max(form.out_features * form.size, 1), 1)


class _Blocked(Function):
    """``√2 Σ xᵀ M x`` over the blocks M, where diagonals count 1/√2: see ``QuadraticForm``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, triangle: Tensor, form: "QuadraticForm") -> Tensor:
        ctx.form = form
        scaled = (x * math.sqrt(2.0)).expand(form.out_features, -1, -1)
        projected = x.new_empty(form.out_features, *x.shape)  # (out, B, n): M x[columns] by rows
        packed, weights = form.packed(triangle), _leaf_weights(x)
        begun = 0
        for block in _blocks(form.size, _LEAF):
            matrix = _matrix(packed, block, weights)
            product = torch.bmm(scaled[..., block.columns], matrix.transpose(1, 2))
            if block.rows.start >= begun:
                projected[..., block.rows] = product
                begun = block.rows.stop
            else:
                projected[..., block.rows].add_(product)
        ctx.save_for_backward(x, triangle, projected if ctx.needs_input_grad[0] else None)
        product = projected * x if ctx.needs_input_grad[0] else projected.mul_(x)
        return product.sum(-1).t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, triangle, projected = ctx.saved_tensors
        form: QuadraticForm = ctx.form
        needs_x, needs_triangle, _ = ctx.needs_input_grad
        # the formula has derivatives of every order, and for a batch of gradients at once
        if torch.is_grad_enabled() or _is_batch_of_gradients(grad):
            wanted = [t for t, needed in ((x, needs_x), (triangle, needs_triangle)) if needed]
            again = torch.is_grad_enabled()
            with torch.enable_grad():
                y = form.formula(x, triangle)
                found = iter(torch.autograd.grad(y, wanted, grad, create_graph=again))
            return next(found) if needs_x else None, next(found) if needs_triangle else None, None
        grads = grad.t().unsqueeze(-1)  # (out, B, 1)
        weighted = grads * x
        d_triangle = _d_triangle(form, triangle, weighted, x) if needs_triangle else None
        d_x = None
        if needs_x:
            packed, weights = form.packed(triangle), _leaf_weights(x)
            d_x = (projected * grads).sum(0)
            for block in _blocks(form.size, _LEAF):
                product = torch.bmm(weighted[..., block.rows], _matrix(packed, block, weights))
                d_x[:, block.columns].add_(product.sum(0), alpha=math.sqrt(2.0))
        return d_x, d_triangle, None


def _d_triangle(form: "QuadraticForm", triangle: Tensor, weighted: Tensor, x: Tensor) -> Tensor:
    """The gradient of the triangle; ``weighted`` is x times the gradient of each output."""
    found = torch.empty_like(triangle)
    packed, lower = form.packed(found), _leaf_weights(x).t() > 0
    scaled = (x * math.sqrt(2.0)).expand(form.out_features, -1, -1)
    # an upper triangle also writes below its diagonal, to what others write after it
    order = ("upper", "lower", "full")
    for block in sorted(_blocks(form.size, _LEAF), key=lambda block: order.index(block.kind)):
        target = packed[block.place]
        left = weighted[..., block.rows].transpose(1, 2)
        product = torch.bmm(left, scaled[..., block.columns])
        if block.kind != "full":
            product.diagonal(dim1=1, dim2=2).mul_(math.sqrt(0.5))
        if block.kind == "lower":
            below = lower[: target.shape[1], : target.shape[1]]
            torch.where(below, product, target, out=target)
        else:
            target.copy_(product)
    return found


def _is_batch_of_gradients(grad: Tensor) -> bool:
    """Whether autograd runs for several gradients at once: ``jacobian(vectorize=True)``."""
    batched = torch._C._dispatch_key_parse("Batched")
    return torch._C._are_functorch_transforms_active() or torch._C._dispatch_keys(grad).has(batched)


@cache
def _blocks(size: int, leaf: int) -> list[_Block]:
    """The blocks of a form of that size; the first with some row has all rows after it."""
    large, small = (size + 1) // 2, size // 2
    # as QuadraticForm.packed lays them out: the square beside both triangles, one turned around
    upper = _triangle("upper", 0, large, 0, small + 1 - size % 2, leaf)
    if small == 0:
        return list(upper)
    place = (slice(None), slice(0, large), slice(0, small))
    square = _Block(slice(0, large), slice(large, size), place, "full")
    return [square, *upper, *_triangle("lower", large, small, size % 2, small, leaf)]


def _triangle(kind: str, start: int, size: int, top: int, left: int, leaf: int) -> Iterator[_Block]:
    """A triangle of features from ``start`` on: a rectangle and two triangles, these in the same
    way, down to the size ``leaf``."""
    half = size // 2 if size > leaf else size
    first, second = slice(start, start + half), slice(start + half, start + size)
    rows, columns = slice(top, top + half), slice(left, left + half)
    below, beside = slice(top + half, top + size), slice(left + half, left + size)
    whole = slice(None)
    if half == size:
        yield _Block(first, first, (whole, rows, columns), kind)
        return
    if kind == "upper":
        yield _Block(first, second, (whole, rows, beside), "full")
    yield from _triangle(kind, start, half, top, left, leaf)
    if kind == "lower":
        yield _Block(second, first, (whole, below, columns), "full")
    yield from _triangle(kind, start + half, size - half, top + half, left + half, leaf)


def _leaf_weights(x: Tensor) -> Tensor:
    """What the entries of an upper triangle count: 1, and 1/√2 on the diagonal."""
    weights = torch.ones(_LEAF, _LEAF, dtype=x.dtype, device=x.device).triu_()
    weights.diagonal().fill_(math.sqrt(0.5))
    return weights


def _matrix(packed: Tensor, block: _Block, weights: Tensor) -> Tensor:
    """M of a block; of a triangle without what lies on its other side."""
    matrix = packed[block.place]
    if block.kind == "full":
        return matrix
    mask = weights[: matrix.shape[1], : matrix.shape[1]]
    return matrix * (mask if block.kind == "upper" else mask.t())
