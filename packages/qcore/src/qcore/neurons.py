"""The catalogue of quadratic neurons: each formula is an entry of data, not a class.

A neuron has *branches*, each an ordinary linear map of ``x``, of ``x²``, or a quadratic form of ``x``;
its output is a sum of products of branches. Adding a neuron means adding one entry to ``CATALOGUE``.

The letters are fixed: ``r`` reference or first factor, ``g`` second factor, ``b`` squared input,
``l`` extra linear map, ``q`` quadratic form, ``c`` a constant of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal

Lift = Literal["x", "x2", "form", "one"]


@dataclass(frozen=True)
class Branch:
    """One map inside a neuron: what it is applied to, what is added to it, and whether it has a bias.

    ``lift`` says what the map sees: ``"x"`` the input, ``"x2"`` its square, ``"form"`` the map is a
    quadratic form of the input, ``"one"`` the map is a bias alone. ``offset`` is a constant added
    outside the parameters: with ``offset=1`` the value 1 is where the parameters are 0, so that
    initialising at, shrinking towards and decaying towards the linear reference all mean "towards 0".

    >>> Branch(offset=1.0)
    Branch(lift='x', offset=1.0, bias=True)
    """

    lift: Lift = "x"
    offset: float = 0.0
    bias: bool = True


@dataclass(frozen=True)
class Neuron:
    """A quadratic function of the input as data: branches, and the sum of products they enter.

    ``terms`` lists the products: ``(("r", "g"), ("b",))`` is ``r·g + b``. ``reference`` is the branch
    that remains when all quadratic parameters are 0, or None where no such linear layer exists.
    ``source`` says where the formula comes from.

    Raises ``ValueError`` for terms that name no branch, are empty, or are not at most quadratic.

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
        for term in self.terms:
            unknown = [letter for letter in term if letter not in letters]
            if unknown:
                raise ValueError(
                    f"neuron {self.name!r}: term {term} names {unknown[0]!r}, "
                    f"but the branches are {sorted(letters)}"
                )
            degree = sum(_DEGREE[self.branches[letter].lift] for letter in term)
            if not term or degree > 2:
                raise ValueError(
                    f"neuron {self.name!r}: term {term} has degree {degree}; "
                    "a quadratic neuron has terms of one or two factors and degree at most 2"
                )
        unused = letters - {letter for term in self.terms for letter in term}
        if unused:
            raise ValueError(
                f"neuron {self.name!r}: no term uses branch {sorted(unused)[0]!r}; "
                "name it in a term or leave it out"
            )
        if self.reference is not None and (self.reference,) not in self._reduced_terms():
            raise ValueError(
                f"neuron {self.name!r}: reference {self.reference!r} does not remain when the "
                f"quadratic parameters are 0; use reference=None or change the terms"
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
        zero: list[str] = []
        for term in self.terms:
            candidates = [letter for letter in term if letter in self.quadratic]
            if candidates and not set(candidates) & set(zero):
                zero.append(candidates[-1])
        return tuple(zero)

    def _reduced_terms(self) -> list[tuple[str, ...]]:
        """What the terms become where the zero factors are 0: their offset 1 or nothing remains."""
        zero = set(self.zero_at_reference)
        reduced = []
        for term in self.terms:
            rest = tuple(letter for letter in term if letter not in zero)
            gone = [self.branches[letter].offset for letter in term if letter in zero]
            if all(offset == 1.0 for offset in gone):
                reduced.append(rest)
        return reduced

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
        return " + ".join(self._term_text(term) for term in self.terms)

    def _term_text(self, term: tuple[str, ...]) -> str:
        if len(term) == 1:
            return self._branch_text(term[0])
        if term[0] == term[1]:
            return f"({self._branch_text(term[0])})²"
        return "".join(f"({self._branch_text(letter)})" for letter in term)

    def _branch_text(self, letter: str) -> str:
        branch = self.branches[letter]
        if branch.lift == "one":
            return "b"
        if branch.lift == "form":
            return "xᵀ W x"
        maps = [k for k, other in self.branches.items() if other.lift in ("x", "x2")]
        subscript = f"_{letter}" if len(maps) > 1 else ""
        text = f"w{subscript} {'x²' if branch.lift == 'x2' else 'x'}"
        if branch.bias:
            # the papers write c for the constant beside x²; an offset is part of the written b_g
            return f"{text} + {'c' if branch.lift == 'x2' else 'b' + subscript}"
        return f"{text} + {branch.offset:g}" if branch.offset else text

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


_DEGREE: Mapping[Lift, int] = MappingProxyType({"x": 1, "x2": 2, "form": 2, "one": 0})
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
    raise ValueError(f"unknown neuron {name!r}: {hint}The catalogue has {', '.join(CATALOGUE)}")
