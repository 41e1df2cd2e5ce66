"""Schedules: factors in [0, 1] that change with the steps of the optimiser.

A number is the constant schedule. Any other function of the step will do in place of these three.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

Schedule = Callable[[int], float]
"""A factor in [0, 1] for each step, counted from 0: the number of steps taken before it."""


@dataclass(frozen=True)
class _Ramp:
    """What goes from ``start`` to ``end`` over ``steps`` steps, by a progress from 0 to 1."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        check_factor(self.start, f"start={self.start!r}")
        check_factor(self.end, f"end={self.end!r}")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps!r} is not allowed: give 1 or more")

    def __call__(self, step: int) -> float:
        """The factor at that step."""
        progress = self._progress(min(step / self.steps, 1.0))
        return (1.0 - progress) * self.start + progress * self.end

    def _progress(self, elapsed: float) -> float:
        """How far along it is when that share of the steps has elapsed."""
        raise NotImplementedError


@dataclass(frozen=True)
class LinearSchedule(_Ramp):
    r"""From ``start`` to ``end`` in a straight line over ``steps`` steps, then constant.

    .. math:: f(t) = (1 - p)\,\text{start} + p\,\text{end}, \quad p = \min(t / \text{steps}, 1)

    Raises ``ValueError`` for ends outside [0, 1] and fewer than one step.

    >>> schedule = LinearSchedule(0.0, 1.0, steps=4)
    >>> [schedule(t) for t in range(6)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """

    def _progress(self, elapsed: float) -> float:
        return elapsed


@dataclass(frozen=True)
class CosineSchedule(_Ramp):
    r"""From ``start`` to ``end`` along half a cosine over ``steps`` steps, then constant.

    .. math::
        f(t) = (1 - p)\,\text{start} + p\,\text{end}, \quad
        p = \tfrac12 - \tfrac12 \cos(\pi \min(t / \text{steps}, 1))

    Raises ``ValueError`` for ends outside [0, 1] and fewer than one step.

    >>> schedule = CosineSchedule(0.0, 1.0, steps=4)
    >>> [round(schedule(t), 3) for t in range(6)]
    [0.0, 0.146, 0.5, 0.854, 1.0, 1.0]
    """

    def _progress(self, elapsed: float) -> float:
        return 0.5 - 0.5 * math.cos(math.pi * elapsed)


@dataclass(frozen=True)
class StepSchedule:
    """A constant between milestones: ``values[i]`` after the i-th of them.

    Args:
        values: the factors, one more than there are milestones.
        milestones: the steps, rising, from which on the next value holds.

    Raises ``ValueError`` for values outside [0, 1], milestones that do not rise from at least 1,
    and another number of values.

    >>> schedule = StepSchedule((0.0, 1e-4, 1e-3), milestones=(2, 4))
    >>> [schedule(t) for t in range(6)]
    [0.0, 0.0, 0.0001, 0.0001, 0.001, 0.001]
    """

    values: tuple[float, ...]
    milestones: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if len(self.values) != len(self.milestones) + 1:
            raise ValueError(
                f"values={self.values} are {len(self.values)} for {len(self.milestones)} "
                "milestones: give one value more than milestones"
            )
        rising = (0, *self.milestones)
        if any(later <= earlier for earlier, later in pairwise(rising)):
            raise ValueError(
                f"milestones={self.milestones} are not allowed: give rising steps from at least 1"
            )
        for value in self.values:
            check_factor(value, f"values={self.values}")

    def __call__(self, step: int) -> float:
        """The factor at that step."""
        return self.values[bisect_right(self.milestones, step)]


def check_factor(value: float, described: str) -> float:
    """The factor itself; ``ValueError`` outside of [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(
            f"{described} is not allowed: choose from 0 (the linear network) to 1 (free)"
        )
    return float(value)
