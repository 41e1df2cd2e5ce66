"""Quadratic forms as classifiers, their parameter under the name by which timm knows one."""

from typing import Any

from torch import Tensor

import qcore


class DenseHead(qcore.QuadraticForm):
    """A :class:`qcore.QuadraticForm` whose triangle is the parameter ``weight``.

    Args, shapes, cost, errors: those of the form.

    >>> [name for name, _ in DenseHead(64, 10).named_parameters()]
    ['weight']
    """

    weight: Tensor

    def __init__(self, in_features: int, out_features: int, **options: Any) -> None:
        super().__init__(in_features, out_features, **options)
        self.register_parameter("weight", self._parameters.pop("triangle"))

    @property
    def triangle(self) -> Tensor:  # type: ignore[override]
        """The stored triangles: ``(out, n(n+1)/2)``."""
        return self.weight


class LowRankHead(qcore.LowRankForm):
    """A :class:`qcore.LowRankForm` whose factors are the parameter ``weight``.

    Args, shapes, cost, errors: those of the form.

    >>> [name for name, _ in LowRankHead(64, 10, rank=2, signed=True).named_parameters()]
    ['signs', 'weight']
    """

    weight: Tensor

    def __init__(self, in_features: int, out_features: int, rank: int, **options: Any) -> None:
        super().__init__(in_features, out_features, rank, **options)
        self.register_parameter("weight", self._parameters.pop("factors"))

    @property
    def factors(self) -> Tensor:  # type: ignore[override]
        """The factors c: ``(out, rank, n)``."""
        return self.weight
