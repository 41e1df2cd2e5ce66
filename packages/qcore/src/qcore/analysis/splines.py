"""The spline that a network of one input is: its pieces and their degrees, counted exactly."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from operator import add, mul

import torch
from torch import Tensor, nn

from qcore.analysis.polynomials import Polynomial
from qcore.forms import LowRankForm, QuadraticForm
from qcore.layers import Constant, Quadratic

_Units = list[Polynomial]
_Map = Callable[[_Units], _Units]

# Breakpoints are told apart down to this fraction of the interval, 2^-60.
_BITS = 60


@dataclass(frozen=True, eq=False)
class SplinePieces:
    """A network of one input over an interval, as a piecewise polynomial of m pieces.

    ``breakpoints`` ``(m − 1,)`` ascending, inside the interval; ``degrees`` ``(m,)``, the largest
    over the outputs; ``coefficients`` ``(m, outputs, highest degree + 1)``, the constant first.
    Coefficients are correctly rounded from exact ones.
    """

    breakpoints: Tensor
    degrees: Tensor
    coefficients: Tensor

    @property
    def count(self) -> int:
        """The number m of pieces."""
        return len(self.degrees)


@dataclass
class _Piece:
    """The values of a layer's units over ``[low, high] / 2^shift``."""

    low: int
    high: int
    units: _Units


def spline_pieces(model: nn.Module, interval: tuple[float, float] = (-1.0, 1.0)) -> SplinePieces:
    r"""The polynomial pieces of a network of one input, each with its degree.

    A network of ReLU layers is a spline: linear pieces where the neurons are linear; pieces of
    degree up to :math:`2^L` after L layers of quadratic neurons; a single polynomial where the only
    nonlinearity is a square (the ``squared_output`` neuron).

    Every unit is an exact polynomial on every piece: parameters are taken as the exact numbers they
    are, and sums, products, degrees and the comparison of neighbours know no rounding. A piece ends
    where some pre-activation changes its sign *and* the outputs change their polynomial: one
    breakpoint of several units counts once, one that cancels downstream not at all. Only the
    position of breakpoints is rounded; two within 2^-60 of the interval's length count as one.

    Args:
        model: an ``nn.Sequential``, nested at will, or one layer: ``nn.Linear``, any neuron of
            :class:`qcore.Quadratic` over such layers, :class:`qcore.QuadraticForm`,
            :class:`qcore.LowRankForm`, ``nn.ReLU``, ``nn.Identity``. It takes one input feature.
        interval: the ends (low, high) between which pieces are counted.

    Shapes: the model maps ``(..., 1)`` to ``(..., outputs)``.

    Cost: pieces × multiply-adds of the network × degree², in Python; numbers double in length with
    each quadratic layer. Meant for small networks: width 32 and three hidden layers take a second.

    Raises ``TypeError`` for other modules, ``ValueError`` for a first layer with other than one
    input, parameters that are not finite, and an interval without length.

    Source: the spline theorem of "On Expressivity and Trainability of Quadratic Networks"
    (arXiv 2110.06081).

    >>> from qcore import QuadraticLinear
    >>> hat = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    >>> curve = nn.Sequential(QuadraticLinear(1, 1, neuron="compact"), nn.ReLU())
    >>> with torch.no_grad():
    ...     for value in (*hat.parameters(), *curve.parameters()):
    ...         _ = value.fill_(1.0)
    ...     _ = curve[0]["b"].bias.fill_(-2.0)
    >>> spline_pieces(hat, (-2.0, 2.0)).breakpoints  # x + 1 > 0
    tensor([-1.], dtype=torch.float64)
    >>> pieces = spline_pieces(curve, (-2.0, 2.0))  # x² + x − 1 > 0
    >>> pieces.count, pieces.degrees
    (3, tensor([2, 0, 2]))
    """
    low, high = map(float, interval)
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"interval={interval} is not allowed: give two finite ends, low < high")
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"parameter {name!r} is not finite: no polynomial has such numbers")
    shift = _shift(low, high)
    pieces = [_Piece(_numerator(low, shift), _numerator(high, shift), [Polynomial((0, 1))])]
    for layer in _layers(model):
        if isinstance(layer, nn.ReLU):
            pieces = [part for piece in pieces for part in _rectify(piece, shift)]
        else:
            polynomial = _map(layer)
            pieces = [_Piece(p.low, p.high, polynomial(p.units)) for p in pieces]
    return _result(_merged(pieces), shift)


def _layers(module: nn.Module) -> list[nn.Module]:
    """The layers in order; nested sequences are opened, identities left out."""
    if isinstance(module, nn.Sequential):
        return [layer for child in module for layer in _layers(child)]
    return [] if isinstance(module, nn.Identity) else [module]


def _map(module: nn.Module) -> _Map:
    """What a layer does to polynomials."""
    if isinstance(module, Quadratic):
        if module.rms_dims:
            raise TypeError(
                f"{type(module).__name__} with rms_dims={module.rms_dims} divides by a root mean "
                "square, and is no spline: leave out its norm"
            )
        return _quadratic(module)
    if isinstance(module, nn.Linear):
        return _linear(module)
    if isinstance(module, LowRankForm):
        return _low_rank(module)
    if isinstance(module, QuadraticForm):
        return _dense(module)
    if isinstance(module, Constant):
        constants = _constants(module.bias)
        return lambda units: constants
    raise TypeError(
        f"{type(module).__name__} is no layer whose spline is known; allowed are nn.Sequential of "
        "nn.Linear, Quadratic, QuadraticForm, LowRankForm, nn.ReLU and nn.Identity"
    )


def _constants(values: Tensor) -> _Units:
    return [Polynomial.constant(value) for value in values.detach().double().tolist()]


def _sum(terms: Iterable[Polynomial]) -> Polynomial:
    return reduce(add, terms, Polynomial())


def _checked(units: _Units, in_features: int, affine: bool = False) -> _Units:
    """The inputs of a layer, with the constant 1 appended where it is affine."""
    if len(units) != in_features:
        raise ValueError(
            f"a layer has in_features={in_features}, but its input has {len(units)}; the model "
            "must begin with in_features=1 and its layers must fit each other"
        )
    return [*units, Polynomial((1,))] if affine else list(units)


def _linear(module: nn.Linear) -> _Map:
    weight = [_constants(row) for row in module.weight]
    bias = _constants(module.bias) if module.bias is not None else [Polynomial()] * len(weight)

    def apply(units: _Units) -> _Units:
        units = _checked(units, module.in_features)
        return [_sum([c, *map(mul, row, units)]) for row, c in zip(weight, bias, strict=True)]

    return apply


def _low_rank(module: LowRankForm) -> _Map:
    factors = [[_constants(row) for row in form] for form in module.factors]
    signs = [_constants(row) for row in module.signs]

    def apply(units: _Units) -> _Units:
        units = _checked(units, module.in_features, module.affine)
        projections = [[_sum(map(mul, row, units)) for row in form] for form in factors]
        return [
            _sum([sign * p * p for sign, p in zip(row, form, strict=True)])
            for row, form in zip(signs, projections, strict=True)
        ]

    return apply


def _dense(module: QuadraticForm) -> _Map:
    with torch.no_grad():
        forms = [[_constants(row) for row in upper] for upper in module.upper()]

    def apply(units: _Units) -> _Units:
        units = _checked(units, module.in_features, module.affine)
        return [
            _sum([x * _sum(map(mul, row, units)) for x, row in zip(units, form, strict=True)])
            for form in forms
        ]

    return apply


def _quadratic(module: Quadratic) -> _Map:
    maps = {letter: _map(branch) for letter, branch in module.items()}
    lifts, offsets, terms = module.lifts, module.offsets, module.terms

    def apply(units: _Units) -> _Units:
        squares = [unit * unit for unit in units]
        values = {}
        for letter, branch in maps.items():
            constant = Polynomial.constant(offsets[letter])
            mapped = branch(squares if lifts[letter] == "x2" else units)
            values[letter] = [value + constant for value in mapped]
        products = [
            [reduce(mul, factors) for factors in zip(*(values[k] for k in term), strict=True)]
            for term in terms
        ]
        return [_sum(summands) for summands in zip(*products, strict=True)]

    return apply


def _rectify(piece: _Piece, shift: int) -> list[_Piece]:
    """ReLU: the piece is cut where units change their sign; negative units become 0."""
    roots = (unit.sign_changes(piece.low, piece.high, shift) for unit in piece.units)
    cuts = sorted({piece.low, piece.high}.union(*roots))
    parts = []
    for low, high in pairwise(cuts):
        kept = [u if _sign_inside(u, low, high, shift) > 0 else Polynomial() for u in piece.units]
        parts.append(_Piece(low, high, kept))
    return parts


def _sign_inside(unit: Polynomial, low: int, high: int, shift: int) -> int:
    """The one sign that a unit has inside an interval, besides 0 at isolated points."""
    finer = (unit.degree + 2).bit_length()
    steps = 1 << finer  # more points inside than the unit has roots, the middle first
    for i in sorted(range(1, steps), key=lambda i: abs(2 * i - steps)):
        sign = unit.sign(low * steps + (high - low) * i, shift + finer)
        if sign:
            return sign
    return 0


def _merged(pieces: list[_Piece]) -> list[_Piece]:
    """Neighbours whose outputs are the same polynomials become one piece."""
    merged = pieces[:1]
    for piece in pieces[1:]:
        last = merged[-1]
        if all(map(Polynomial.equals, last.units, piece.units)):
            merged[-1] = _Piece(last.low, piece.high, last.units)
        else:
            merged.append(piece)
    return merged


def _result(pieces: list[_Piece], shift: int) -> SplinePieces:
    degrees = [max((unit.degree for unit in piece.units), default=0) for piece in pieces]
    size = max(degrees) + 1
    rows = [[unit.to_floats() for unit in piece.units] for piece in pieces]
    return SplinePieces(
        torch.tensor([piece.low / (1 << shift) for piece in pieces[1:]], dtype=torch.float64),
        torch.tensor(degrees),
        torch.tensor(
            [[row + [0.0] * (size - len(row)) for row in units] for units in rows],
            dtype=torch.float64,
        ),
    )


def _shift(low: float, high: float) -> int:
    """The power of two of the grid of breakpoints: both ends are on it, 2^60 steps between."""
    steps = _BITS + 1 - math.frexp(high - low)[1]
    return max(steps, *(end.as_integer_ratio()[1].bit_length() - 1 for end in (low, high)))


def _numerator(end: float, shift: int) -> int:
    numerator, denominator = end.as_integer_ratio()
    return (numerator << shift) // denominator
