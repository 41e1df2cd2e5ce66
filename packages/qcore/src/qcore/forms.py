"""Quadratic forms ``f_k(x) = xᵀ A_k x`` as layers: dense, and of low rank.

Paper: DIQNN, arXiv 2307.13609.
"""

import math

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

# From this many features on, the triangle is worked off in row blocks: 5/8 of the multiply-adds
# of the full square at 4 blocks, which pays once the blocks are large enough to multiply fast.
_BLOCKED_FROM = 32
_BLOCKS = 4


class QuadraticForm(nn.Module):
    r"""One dense quadratic form per output, symmetric by construction.

    .. math:: f_k(x) = x^\top A_k x = \sum_i A_{k,ii} x_i^2 + 2 \sum_{i<j} A_{k,ij} x_i x_j

    Only one triangle of each ``A_k`` is stored, its off-diagonal entries as ``√2·A_ij``: the
    Frobenius product of two symmetric matrices is then the dot product of their stored triangles,
    so that gradient descent on the triangle follows, step for step, the paper's on the full matrix
    from a symmetric start.

    With ``affine=True`` a constant 1 is appended to ``x``, so that the linear and the constant term
    are inside the form.

    Args:
        in_features: length n of the input.
        out_features: number of forms.
        affine: append a constant 1 to the input.
        init_scale: standard deviation of an output at the start for an input with ``‖x‖² = n``
            (n counts the appended 1), 0 or more. The triangle starts as independent normal numbers
            of standard deviation ``init_scale / n``: the Gaussian orthogonal ensemble.
        device, dtype: as everywhere in torch.

    Shapes: input ``(..., in_features)``, output ``(..., out_features)``; leading dimensions are
    free.

    Cost: ``out·n(n+1)/2`` parameters (the paper counts all ``out·n²`` entries) and, in 4 row
    blocks from 32 features on, ``5/8·out·n²`` multiply-adds per sample.

    Raises ``ValueError`` for negative sizes or ``init_scale``, or an input of another length.

    Source: DIQNN, eq. 1 and footnote 1.

    >>> form = QuadraticForm(3, 2)
    >>> x = torch.ones(5, 3)
    >>> torch.allclose(form(x), torch.einsum("bi,kij,bj->bk", x, form.matrix, x), atol=1e-6)
    True
    """

    triangle: Tensor
    __jit_unused_properties__ = ("matrix",)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        affine: bool = False,
        *,
        init_scale: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_nonnegative(
            in_features=in_features, out_features=out_features, init_scale=init_scale
        )
        self.in_features = in_features
        self.out_features = out_features
        self.affine = affine
        self.init_scale = init_scale
        self.size = in_features + int(affine)
        self._block = -(-self.size // _BLOCKS) if self.size >= _BLOCKED_FROM else max(self.size, 1)
        entries = self.size * (self.size + 1) // 2
        self.triangle = nn.Parameter(
            torch.empty(out_features, entries, device=device, dtype=dtype)
        )  # (out, n(n+1)/2), row by row, off-diagonals times √2
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the forms anew, as described under ``init_scale``."""
        with torch.no_grad():
            self.triangle.normal_(0.0, self.init_scale / max(self.size, 1))

    def upper(self) -> Tensor:
        """The forms as upper triangular matrices U with ``xᵀ U x = f(x)``: ``(out, n, n)``."""
        n = self.size
        index = torch.triu_indices(n, n, device=self.triangle.device)  # rows, columns
        scaled = torch.where(index[0] == index[1], self.triangle, self.triangle * math.sqrt(2.0))
        flat = self.triangle.new_zeros(self.out_features, n * n)
        return flat.index_copy(1, index[0] * n + index[1], scaled).unflatten(1, [n, n])

    @property
    def matrix(self) -> Tensor:
        """The symmetric matrices ``A_k``: ``(out, n, n)``; gradients flow through it.

        It can be set to other symmetric matrices of that shape; ``ValueError`` for any else.
        """
        upper = self.upper()
        return (upper + upper.transpose(1, 2)) / 2

    @matrix.setter
    def matrix(self, value: Tensor) -> None:
        expected = (self.out_features, self.size, self.size)
        if value.shape != expected:
            raise ValueError(
                f"matrix has shape {tuple(value.shape)}, but this form takes {expected}"
            )
        if not torch.equal(value, value.transpose(1, 2)):
            raise ValueError(
                "matrix is not symmetric; a form only sees the symmetric part, (A + Aᵀ) / 2"
            )
        row, column = torch.triu_indices(self.size, self.size, device=value.device)
        entries = value[:, row, column]
        with torch.no_grad():
            self.triangle.copy_(torch.where(row == column, entries, entries * math.sqrt(2.0)))

    def forward(self, x: Tensor) -> Tensor:
        """``xᵀ A_k x`` for each k: ``(..., in_features)`` to ``(..., out_features)``."""
        x = _checked_input(x, self.in_features, self.affine)
        upper = self.upper()
        total = x.new_zeros(x.shape[:-1] + (self.out_features,))  # noqa: RUF005 - scripts only so
        for start in range(0, max(self.size, 1), self._block):  # size 0 has gradients as well
            rows = upper[:, start : start + self._block, start:]  # (out, block, n - start)
            projected = functional.linear(x[..., start:], rows.flatten(0, 1))  # (..., out·block)
            projected = projected.unflatten(-1, [self.out_features, rows.shape[1]])
            total = total + (projected * x[..., None, start : start + self._block]).sum(-1)
        return total

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"affine={self.affine}"
        )


class LowRankForm(nn.Module):
    r"""One quadratic form of rank ``rank`` per output: a sum of squared projections.

    .. math:: f_k(x) = \sum_{i=1}^{r} \sigma_{k,i} \langle c_{k,i}, x \rangle^2

    With ``signed=False``, as in the paper, every ``σ = 1``: outputs are non-negative. With
    ``signed=True`` the signs are trainable real numbers, starting at +1, −1, +1, …: any symmetric
    matrix of that rank can be reached.

    With ``affine=True`` a constant 1 is appended to ``x``; linear and constant terms are then
    inside the form exactly for signed rank two and up.

    Args:
        in_features: length n of the input.
        out_features: number of forms.
        rank: number r of squared projections per form, 1 or more.
        signed: trainable ``.signs``.
        affine: append a constant 1 to the input.
        init_scale: standard deviation of an output at the start for an input with ``‖x‖² = n``
            (n counts the appended 1), 0 or more: the factors start as independent normal numbers
            of variance ``init_scale / (n √(2r))``.
        device, dtype: as everywhere in torch.

    Shapes: input ``(..., in_features)``, output ``(..., out_features)``; ``.factors``
    ``(out_features, rank, n)``, ``.signs`` ``(out_features, rank)``.

    Cost: ``out·r·n`` parameters and multiply-adds per sample, r times the linear layer.

    Raises ``ValueError`` for negative sizes or ``init_scale``, a rank below 1, or an input of
    another length.

    Source: DIQNN (arXiv 2307.13609), eq. 3.

    >>> form = LowRankForm(4, 3, rank=2)
    >>> form.factors.shape, form.signs.shape, form(torch.randn(7, 4)).shape
    (torch.Size([3, 2, 4]), torch.Size([3, 2]), torch.Size([7, 3]))
    """

    factors: Tensor
    signs: Tensor
    __jit_unused_properties__ = ("matrix",)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        signed: bool = False,
        affine: bool = False,
        *,
        init_scale: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_nonnegative(
            in_features=in_features, out_features=out_features, init_scale=init_scale
        )
        if rank < 1:
            raise ValueError(
                f"rank={rank} is not allowed: a form has at least one factor (rank >= 1)"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self.signed = signed
        self.affine = affine
        self.init_scale = init_scale
        self.size = in_features + int(affine)
        self.factors = nn.Parameter(
            torch.empty(out_features, rank, self.size, device=device, dtype=dtype)
        )
        signs = torch.empty(out_features, rank, device=device, dtype=dtype)
        if signed:
            self.signs = nn.Parameter(signs)
        else:
            self.register_buffer("signs", signs, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the factors anew, as described under ``init_scale``, and alternate the signs."""
        with torch.no_grad():
            variance = self.init_scale / (max(self.size, 1) * math.sqrt(2 * self.rank))
            self.factors.normal_(0.0, math.sqrt(variance))
            self.signs.fill_(1.0)
            if self.signed:
                self.signs[:, 1::2] = -1.0

    @property
    def matrix(self) -> Tensor:
        """The symmetric matrices ``A_k = Σ σ c cᵀ``: ``(out, n, n)``; gradients flow through it."""
        product = torch.einsum("kr,kri,krj->kij", self.signs, self.factors, self.factors)
        return (product + product.transpose(1, 2)) / 2  # symmetric to the last bit

    def forward(self, x: Tensor) -> Tensor:
        """``Σ σ ⟨c, x⟩²`` for each k: ``(..., in_features)`` to ``(..., out_features)``."""
        x = _checked_input(x, self.in_features, self.affine)
        projected = functional.linear(x, self.factors.flatten(0, 1))  # (..., out·rank)
        squared = projected.square().unflatten(-1, [self.out_features, self.rank])
        return (squared * self.signs).sum(-1) if self.signed else squared.sum(-1)

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"signed={self.signed}, affine={self.affine}"
        )


def _check_nonnegative(**numbers: float) -> None:
    for name, value in numbers.items():
        if value < 0:
            raise ValueError(f"{name}={value} is not allowed: give 0 or more")


def _checked_input(x: Tensor, in_features: int, affine: bool) -> Tensor:
    """``x`` with the constant 1 appended where the form is affine; refuses another length."""
    if x.shape[-1] != in_features:
        raise ValueError(
            f"the input has shape {list(x.shape)}, but its last dimension must be "
            f"in_features={in_features}"
        )
    return functional.pad(x, (0, 1), value=1.0) if affine else x


# a symbolic trace calls it as it stands: a shape cannot be checked before there is one
fx.wrap("_checked_input")
