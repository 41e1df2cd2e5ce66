"""Datasets as tensors on the device: tables split by seed, images as bytes, augmented there."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qbench.data.problem import Problem, Samples, load_problem

__all__ = ["Problem", "Samples", "load_problem"]


def __getattr__(name: str) -> Any:
    """Import torch only for those who load data: ``qbench data list`` looks at files alone."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from qbench.data import problem

    return getattr(problem, name)
