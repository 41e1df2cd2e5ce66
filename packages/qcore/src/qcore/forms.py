"""Quadratic forms ``f_k(x) = xᵀ A_k x`` as layers: dense, and of low rank.

Paper: DIQNN, arXiv 2307.13609.
"""

import math

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from qcore import kernels

# From this many features on, the formula goes by blocks of rows, whose values stay in the cache.
_BLOCKED_FROM = 32


class QuadraticForm(nn.Module):
    r"""One dense quadratic form per output, symmetric by construction.

    .. math:: f_k(x) = x^\top A_k x = \sum_i A_{k,ii} x_i^2 + 2 \sum_{i<j} A_{k,ij} x_i x_j

    Only one triangle of each ``A_k`` is stored, its off-diagonal entries as ``√2·A_ij``: the
    Frobenius product of two symmetric matrices is then the dot product of their stored triangles,
    so that gradient descent on the triangle follows, step for step, the paper's on the full matrix
    from a symmetric start. The triangle is packed into a rectangle, as in LAPACK's rectangular full
    packed format: see :meth:`packed`.

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

    Cost: ``out·n(n+1)/2`` parameters (the paper counts all ``out·n²`` entries); multiply-adds per
    sample ``out·n²``, from 32 features on ``5/8`` of it, on the fast path (:meth:`path`) between
    ``5/8`` and, in large forms, a little over ``1/2``.

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
        self._blocked = self.size >= _BLOCKED_FROM
        entries = self.size * (self.size + 1) // 2
        self.triangle = nn.Parameter(
            torch.empty(out_features, entries, device=device, dtype=dtype)
        )  # (out, n(n+1)/2), off-diagonals times √2
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the forms anew, as described under ``init_scale``."""
        with torch.no_grad():
            self.triangle.normal_(0.0, self.init_scale / max(self.size, 1))

    def packed(self, triangle: Tensor) -> Tensor:
        r"""The rectangle that the triangle, or its gradient, is: a view, not scaled.

        With :math:`p = \lceil n/2 \rceil, q = \lfloor n/2 \rfloor` and

        .. math:: A = \begin{pmatrix} A_{11} & A_{12} \\ A_{12}^\top & A_{22} \end{pmatrix}

        its first q columns are :math:`A_{12}`. In the other q + 1 lie, in the upper triangle, that
        of :math:`A_{11}`, and in the rest the lower triangle of :math:`A_{22}`.

        Shapes: ``(out, n(n+1)/2)`` to ``(out, p, 2q + 1)``.
        """
        return triangle.unflatten(-1, [(self.size + 1) // 2, self.size // 2 * 2 + 1])

    def _halves(self, triangle: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of U, ``xᵀ U x = f(x)``, for the first p features and for the other q."""
        large, small, even = (self.size + 1) // 2, self.size // 2, 1 - self.size % 2
        device = triangle.device
        column = torch.arange(2 * small + 1, device=device)
        gap = column - small - even - torch.arange(large, device=device).unsqueeze(1)
        diagonal = (gap == 0) | ((gap == -1) & (column >= small))
        one = torch.ones([], dtype=triangle.dtype, device=device)
        scale = torch.where(diagonal, one, one * math.sqrt(2.0))
        square, pair = (self.packed(triangle) * scale).split([small, small + 1], -1)
        upper = pair.triu(even)[:, :, even : even + large]
        lower = pair.tril(even - 1)[:, 1 - even :, :small]
        return torch.cat([upper, square], -1), lower.transpose(1, 2)

    def _rows(self, triangle: Tensor) -> list[Tensor]:
        """The rows of U, ``xᵀ U x = f(x)``, in blocks without the zeros to the left of each."""
        if not self._blocked:
            return [_whole(self._halves(triangle))]
        blocks: list[Tensor] = []
        for half in self._halves(triangle):
            middle = half.shape[1] // 2
            first, second = half.split([middle, half.shape[1] - middle], 1)
            blocks += [first, second[:, :, middle:]]
        return blocks

    def upper(self) -> Tensor:
        """The forms as upper triangular matrices U with ``xᵀ U x = f(x)``: ``(out, n, n)``."""
        return _whole(self._halves(self.triangle))

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
        large, even = (self.size + 1) // 2, 1 - self.size % 2
        scale = torch.full_like(value[0], math.sqrt(2.0)).fill_diagonal_(1.0)
        scaled = value * scale
        square, first, second = (
            scaled[:, :large, large:],
            scaled[:, :large, :large],
            scaled[:, large:, large:],
        )
        pair = functional.pad(first.triu(), (even, 0)) + functional.pad(
            second.tril(), (0, 1, 1 - even, 0)
        )
        with torch.no_grad():
            self.packed(self.triangle).copy_(torch.cat([square, pair], -1))

    def forward(self, x: Tensor) -> Tensor:
        """``xᵀ A_k x`` for each k: ``(..., in_features)`` to ``(..., out_features)``."""
        x = _checked_input(x, self.in_features, self.affine)
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            if self.path(x) == "fast":
                return kernels.blocked_form(self, x)
            if kernels.autocast_dtype(x) == torch.float16:  # its range is too narrow for squares
                with torch.autocast(x.device.type, enabled=False):
                    return self.formula(x.float(), self.triangle)
        return self.formula(x, self.triangle)

    def path(self, x: Tensor) -> str:
        """The arithmetic that this input takes here and now: see :func:`qcore.backend`."""
        return kernels.form_path(self, x)

    def formula(self, x: Tensor, triangle: Tensor) -> Tensor:
        """The plain arithmetic, for an ``x`` that has the appended 1 of an affine form."""
        total = x.new_zeros(x.shape[:-1] + (self.out_features,))  # noqa: RUF005 - scripts only so
        start = 0
        for rows in self._rows(triangle):
            stop = start + rows.shape[1]
            projected = functional.linear(x[..., start:], rows.flatten(0, 1))  # (..., out·rows)
            projected = projected.unflatten(-1, [self.out_features, rows.shape[1]])
            total = total + (projected * x[..., None, start:stop]).sum(-1)
            start = stop
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
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            too_narrow = kernels.autocast_dtype(x) == torch.float16  # for the range of squares
            if too_narrow:
                with torch.autocast(x.device.type, enabled=False):
                    return self._formula(x.float())
        return self._formula(x)

    def _formula(self, x: Tensor) -> Tensor:
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


def _whole(halves: tuple[Tensor, Tensor]) -> Tensor:
    """An upper triangular matrix from its rows."""
    top, bottom = halves
    return torch.cat([top, functional.pad(bottom, (top.shape[1], 0))], 1)


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
