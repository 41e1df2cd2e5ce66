"""The catalogue of quadratic neurons: each formula is an entry of data, not a class.

A neuron has *branches*, each an ordinary linear map of ``x``, of ``x²``, or a quadratic form of
``x``; its output is a sum of products of branches. Adding a neuron means adding one entry to
``CATALOGUE``.

The letters are fixed: ``r`` reference or first factor, ``g`` second factor, ``b`` squared input,
``l`` extra linear map, ``q`` quadratic form, ``c`` a constant of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal, NamedTuple

Lift = Literal["x", "x2", "form", "one"]
_DEGREE: Mapping[Lift, int] = MappingProxyType({"x": 1, "x2": 2, "form": 2, "one": 0})


@dataclass(frozen=True)
class Branch:
    """One map inside a neuron: what it is applied to, what is added, and whether it has a bias.

    ``lift`` says what the map sees: ``"x"`` the input, ``"x2"`` its square, ``"form"`` the map is a
    quadratic form of the input, ``"one"`` the map is a bias alone. ``offset`` is a constant added
    outside the parameters: with ``offset=1`` the value 1 is where the parameters are 0, so that
    initialising at, shrinking towards and decaying towards the linear reference all mean
    "towards 0".

    Raises ``ValueError`` for another lift.

    >>> Branch(offset=1.0)
    Branch(lift='x', offset=1.0, bias=True)
    """

    lift: Lift = "x"
    offset: float = 0.0
    bias: bool = True

    def __post_init__(self) -> None:
        if self.lift not in _DEGREE:
            raise ValueError(f"lift={self.lift!r} is not allowed: choose from {', '.join(_DEGREE)}")


class Cost(NamedTuple):
    """What one neuron costs: see :meth:`Neuron.cost`."""

    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Neuron:
    """A quadratic function of the input as data: branches, and the sum of products they enter.

    ``terms`` lists the products: ``(("r", "g"), ("b",))`` is ``r·g + b``. ``reference`` is the
    branch that remains when all quadratic parameters are 0, or None where no such linear layer
    exists. ``source`` says where the formula comes from.

    Raises ``ValueError`` where there is no term, a term is empty, names no branch or is not at most
    quadratic, a branch is in no term, or more or less than the reference remains.

    >>> CATALOGUE["quadratic"].formula
    '(w_r x + b_r)(w_g x + b_g) + w_b x² + c'
    >>> CATALOGUE["quadratic"].quadratic
    ('g', 'b')
    """

    name: str
    branches: Mapping[str, Branch]
    terms: tuple[tuple[str, ...], ...]
    reference: str | None
    source: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "branches", MappingProxyType(dict(self.branches)))
        letters = set(self.branches)
        if not self.terms:
            raise ValueError(f"neuron {self.name!r} has no terms: give at least one")
        for term in self.terms:
            unknown = [letter for letter in term if letter not in letters]
            if unknown:
                raise ValueError(
                    f"neuron {self.name!r}: term {term} names {unknown[0]!r}, "
                    f"but the branches are {sorted(letters)}"
                )
            degree = sum(_DEGREE[self.branches[letter].lift] for letter in term)
            if len(term) not in (1, 2) or degree > 2:
                raise ValueError(
                    f"neuron {self.name!r}: term {term} has {len(term)} factors and degree "
                    f"{degree}; a quadratic neuron has terms of one or two factors and degree at "
                    "most 2"
                )
        unused = letters - {letter for term in self.terms for letter in term}
        if unused:
            raise ValueError(
                f"neuron {self.name!r}: no term uses branch {sorted(unused)[0]!r}; "
                "name it in a term or leave it out"
            )
        if self.reference is not None and not self._reduces_to(self.reference):
            raise ValueError(
                f"neuron {self.name!r}: reference {self.reference!r} is not what remains when the "
                "quadratic parameters are 0; use reference=None or change the terms"
            )

    def __reduce__(self) -> tuple[type["Neuron"], tuple[object, ...]]:
        # a read-only mapping does not pickle by itself
        return Neuron, (self.name, dict(self.branches), self.terms, self.reference, self.source)

    @property
    def constants(self) -> tuple[str, ...]:
        """Letters of the branches that are a bias alone, e.g. ``('c',)`` for ``qres``."""
        return tuple(k for k, branch in self.branches.items() if branch.lift == "one")

    @property
    def quadratic(self) -> tuple[str, ...]:
        """Letters whose parameters are quadratic: all but the reference and the constants."""
        return tuple(k for k in self.branches if k != self.reference and k not in self.constants)

    @property
    def zero_at_reference(self) -> tuple[str, ...]:
        """Letters that are 0 at the linear reference: exactly one factor of each quadratic term.

        The other factor keeps its initial value, so that the zero factor receives a gradient.

        >>> CATALOGUE["product_linear"].zero_at_reference
        ('g',)
        """
        factors = [[k for k in self.quadratic if k in term] for term in self.terms]
        zero: set[str] = set()
        for candidates in sorted(factors, key=len):  # one candidate leaves no choice: those first
            if candidates and not zero.intersection(candidates):
                zero.add(candidates[-1])
        return tuple(k for k in self.branches if k in zero)

    def _reduces_to(self, reference: str) -> bool:
        """Whether ``reference``, linear, is all that remains, besides constants, at the zeros."""
        remaining = []
        for term in self.terms:
            offsets = {k: self.branches[k].offset for k in term if k in self.zero_at_reference}
            if 0.0 in offsets.values() or set(term) <= set(self.constants):
                continue
            remaining.append([k for k in term if offsets.get(k) != 1.0])
        return remaining == [[reference]] and self.branches[reference].lift == "x"

    @property
    def formula(self) -> str:
        """The formula as text, generated from the terms.

        >>> for neuron in CATALOGUE.values():
        ...     print(f"{neuron.name:15}{neuron.formula}")
        quadratic      (w_r x + b_r)(w_g x + b_g) + w_b x² + c
        compact        w_r x + b_r + w_b x² + c
        product        (w_r x)(w_g x)
        product_linear (w_r x)(w_g x) + w_l x
        qres           (w_r x)(w_g x) + w_r x + b
        squared_output (w x + b)²
        squared_input  w x²
        bilinear       xᵀ W x + w x + b
        linear         w x + b
        """
        return self._text()

    @property
    def normalised_formula(self) -> str:
        """The formula of a layer with ``rms_norm=True``; rms is the root mean square.

        >>> CATALOGUE["quadratic"].normalised_formula
        '(w_r x + b_r)(w_g x/rms(x) + b_g) + w_b x²/rms(x²) + c'
        >>> CATALOGUE["bilinear"].normalised_formula
        'xᵀ W x/rms(x)² + w x + b'
        """
        return self._text(normalised=self.quadratic)

    def _text(self, normalised: tuple[str, ...] = ()) -> str:
        return " + ".join(self._term_text(term, normalised) for term in self.terms)

    def _term_text(self, term: tuple[str, ...], normalised: tuple[str, ...]) -> str:
        factors = [self._branch_text(letter, letter in normalised) for letter in term]
        if len(term) == 1:
            return factors[0]
        if term[0] == term[1]:
            return f"({factors[0]})²"
        return "".join(f"({factor})" for factor in factors)

    def _branch_text(self, letter: str, normalised: bool) -> str:
        branch = self.branches[letter]
        if branch.lift == "one":
            return "b"
        if branch.lift == "form":
            return "xᵀ W x/rms(x)²" if normalised else "xᵀ W x"
        maps = [k for k, other in self.branches.items() if other.lift in ("x", "x2")]
        subscript = f"_{letter}" if len(maps) > 1 else ""
        seen = "x²" if branch.lift == "x2" else "x"
        text = f"w{subscript} {seen}/rms({seen})" if normalised else f"w{subscript} {seen}"
        if branch.bias:
            # the papers write c for the constant beside x²; an offset is part of the written b_g
            return f"{text} + {'c' if branch.lift == 'x2' else 'b' + subscript}"
        return f"{text} + {branch.offset:g}" if branch.offset else text

    def cost(self, in_features: int, rank: int | None = None) -> Cost:
        """Parameters, and multiply-adds per sample, of one neuron with n inputs.

        The squares of the inputs are not counted, which all neurons of a layer share, nor are
        additions alone. A dense form counts as its triangle, :math:`n(n+1)/2` and n more; what its
        layer multiplies is more, at most the full square.

        Args:
            in_features: n; of a convolution ``in_channels / groups · Π kernel_size``.
            rank: for ``"bilinear"``, the rank of a signed low-rank form; None means a dense one.

        Raises ``ValueError`` for a rank below 1.

        >>> CATALOGUE["quadratic"].cost(64)
        Cost(parameters=195, multiply_adds=193)
        """
        if rank is not None and rank < 1:
            raise ValueError(
                f"rank={rank} is not allowed: a form has at least one factor (rank >= 1)"
            )
        n = in_features
        parameters = multiply_adds = 0
        for branch in self.branches.values():
            if branch.lift == "form":
                entries = n * (n + 1) // 2 if rank is None else rank * (n + 1)
                parameters += entries
                multiply_adds += entries + (n if rank is None else rank)
            elif branch.lift == "one":
                parameters += 1
            else:
                parameters += n + branch.bias
                multiply_adds += n
        return Cost(parameters, multiply_adds + sum(len(term) - 1 for term in self.terms))

    def without_bias(self) -> "Neuron":
        """The same neuron without any bias; offsets stay, so a linear reference remains.

        >>> CATALOGUE["quadratic"].without_bias().formula
        '(w_r x)(w_g x + 1) + w_b x²'
        """
        constants = set(self.constants)
        return replace(
            self,
            branches={
                k: replace(v, bias=False) for k, v in self.branches.items() if k not in constants
            },
            terms=tuple(term for term in self.terms if not constants & set(term)),
        )


_PLAIN = Branch(bias=False)

_ENTRIES = (
    Neuron(
        "quadratic",
        {"r": Branch(), "g": Branch(offset=1.0), "b": Branch("x2")},
        (("r", "g"), ("b",)),
        "r",
        "Fan et al.; ReLinear, arXiv 2110.06081",
    ),
    Neuron(
        "compact",
        {"r": Branch(), "b": Branch("x2")},
        (("r",), ("b",)),
        "r",
        "ReLinear repository, TrainCompactQuadraticNetworksViaReLinear",
    ),
    Neuron(
        "product",
        {"r": _PLAIN, "g": _PLAIN},
        (("r", "g"),),
        None,
        "rank-one format of DIQNN's table 1, arXiv 2307.13609; QuadraLib T4",
    ),
    Neuron(
        "product_linear",
        {"r": _PLAIN, "g": _PLAIN, "l": _PLAIN},
        (("r", "g"), ("l",)),
        "l",
        "QuadraLib, MLSys 2022",
    ),
    Neuron(
        "qres",
        {"r": _PLAIN, "g": _PLAIN, "c": Branch("one")},
        (("r", "g"), ("r",), ("c",)),
        "r",
        "QRes, arXiv 2101.08366",
    ),
    Neuron(
        "squared_output",
        {"r": Branch()},
        (("r", "r"),),
        None,
        "QuadraLib T3; with bias a quadratic activation",
    ),
    Neuron("squared_input", {"b": Branch("x2", bias=False)}, (("b",),), None, "QuadraLib T2"),
    Neuron(
        "bilinear",
        {"q": Branch("form", bias=False), "l": Branch()},
        (("q",), ("l",)),
        "l",
        "DIQNN, arXiv 2307.13609, eq. 1; CQNN; Volterra; QuadraLib T1",
    ),
    Neuron("linear", {"r": Branch()}, (("r",),), "r", "the control in every table"),
)

CATALOGUE: Mapping[str, Neuron] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""Every neuron by name, in the order of the documentation."""

if len(CATALOGUE) != len(_ENTRIES):
    raise RuntimeError("two catalogue entries share a name")


def get_neuron(name: str) -> Neuron:
    """The catalogue's neuron of that name.

    Raises ``ValueError`` naming near matches for a name that is not in ``CATALOGUE``.

    >>> get_neuron("qres").formula
    '(w_r x)(w_g x) + w_r x + b'
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    near = get_close_matches(name, CATALOGUE, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"unknown neuron {name!r}: {hint}The catalogue has {', '.join(CATALOGUE)}; one of your own "
        "is given as a qcore.Neuron"
    )
