"""Polynomials in one variable in exact arithmetic.

Every floating-point number is a whole number over a power of two, and so is every sum and product
of them: with Python's own integers, polynomials of networks are computed without rounding.
"""

from dataclasses import dataclass
from itertools import zip_longest


@dataclass(frozen=True)
class Polynomial:
    """``Σ_i coefficients[i] x^i / 2^exponent`` with whole numbers; the last one is not 0.

    >>> x = Polynomial((0, 1))
    >>> half = Polynomial.constant(0.5)
    >>> square = (x + half) * (x + half)
    >>> square.to_floats(), square.degree, square.sign(-1, 1)
    ([0.25, 1.0, 1.0], 2, 0)
    """

    coefficients: tuple[int, ...] = ()
    exponent: int = 0

    @classmethod
    def constant(cls, value: float) -> "Polynomial":
        """A number, exactly. Raises ``ValueError`` or ``OverflowError`` for NaN and infinity."""
        numerator, denominator = float(value).as_integer_ratio()
        return cls((numerator,) if numerator else (), denominator.bit_length() - 1)

    @property
    def degree(self) -> int:
        """The degree; 0 for constants, 0 itself included."""
        return max(len(self.coefficients) - 1, 0)

    @property
    def is_zero(self) -> bool:
        """Whether it is 0 everywhere."""
        return not self.coefficients

    def __add__(self, other: "Polynomial") -> "Polynomial":
        exponent = max(self.exponent, other.exponent)
        mine, theirs = exponent - self.exponent, exponent - other.exponent
        pairs = zip_longest(self.coefficients, other.coefficients, fillvalue=0)
        total = [(a << mine) + (b << theirs) for a, b in pairs]
        while total and total[-1] == 0:
            total.pop()
        return Polynomial(tuple(total), exponent)

    def __mul__(self, other: "Polynomial") -> "Polynomial":
        if self.is_zero or other.is_zero:
            return Polynomial()
        product = [0] * (len(self.coefficients) + len(other.coefficients) - 1)
        for i, a in enumerate(self.coefficients):
            for j, b in enumerate(other.coefficients):
                product[i + j] += a * b
        return Polynomial(tuple(product), self.exponent + other.exponent)

    def __neg__(self) -> "Polynomial":
        return Polynomial(tuple(-c for c in self.coefficients), self.exponent)

    def equals(self, other: "Polynomial") -> bool:
        """Whether both are the same function, whatever their exponents."""
        return (self + -other).is_zero

    def derivative(self) -> "Polynomial":
        """The derivative by x."""
        terms = enumerate(self.coefficients[1:], start=1)
        return Polynomial(tuple(i * c for i, c in terms), self.exponent)

    def sign(self, numerator: int, shift: int) -> int:
        """Its sign, −1, 0 or 1, at ``x = numerator / 2^shift``."""
        value = 0  # Horner's rule on 2^(shift·degree) times the polynomial
        for i, c in enumerate(reversed(self.coefficients)):
            value = value * numerator + (c << (shift * i))
        return (value > 0) - (value < 0)

    def sign_changes(self, low: int, high: int, shift: int) -> list[int]:
        """Where it changes its sign in ``(low, high) / 2^shift``, as numerators, ascending.

        A root between two neighbouring numerators is given as the lower one, so that the same root
        of two polynomials is the same number; roots one step apart are too close to be told apart.
        A root without a change of sign, such as that of x², is none.
        """
        if self.degree == 0:
            return []
        # Between two roots of the derivative the polynomial is monotone: at most one root there.
        points = [low, *self.derivative().sign_changes(low, high, shift), high]
        found = []
        before, last = 0, low  # the last sign that was not 0, and where it was
        zero: int | None = None  # an exact root since then
        for point in points:
            sign = self.sign(point, shift)
            if sign == 0:
                zero = point if zero is None and point != low else zero
                continue
            if before * sign < 0:
                found.append(self._bisect(last, point, shift) if zero is None else zero)
            before, last, zero = sign, point, None
        return found

    def _bisect(self, low: int, high: int, shift: int) -> int:
        """The root between two points of opposite sign, or its lower neighbour."""
        below = self.sign(low, shift)
        while high - low > 1:
            middle = (low + high) // 2
            sign = self.sign(middle, shift)
            if sign == 0:
                return middle
            low, high = (middle, high) if sign == below else (low, middle)
        return low

    def to_floats(self) -> list[float]:
        """The coefficients, lowest first, each correctly rounded."""
        return [c / (1 << self.exponent) for c in self.coefficients]
