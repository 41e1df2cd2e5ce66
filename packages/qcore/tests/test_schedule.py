"""Schedules of factors: formulas, ends, range, errors."""

import math
import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcore import CosineSchedule, LinearSchedule, StepSchedule

factors = st.floats(0.0, 1.0)
RAMPS = {"linear": LinearSchedule, "cosine": CosineSchedule}
every_ramp = pytest.mark.parametrize("ramp", RAMPS.values(), ids=RAMPS)
seeded = settings(deadline=None, derandomize=True, max_examples=200)


@every_ramp
@seeded
@given(start=factors, end=factors, steps=st.integers(1, 10**6), data=st.data())
def test_a_ramp_has_its_ends_and_stays_between_zero_and_one(ramp, start, end, steps, data):
    schedule = ramp(start, end, steps)
    step = data.draw(st.integers(0, 2 * steps))
    assert schedule(0) == start
    assert schedule(steps) == schedule(3 * steps) == end
    assert 0.0 <= schedule(step) <= 1.0
    assert min(start, end) - 1e-15 <= schedule(step) <= max(start, end) + 1e-15


def test_ramps_are_their_formulas():
    for t in range(11):
        line, wave = LinearSchedule(0.2, 0.8, 10)(t), CosineSchedule(0.2, 0.8, 10)(t)
        assert line == pytest.approx(0.2 + 0.6 * t / 10)
        assert wave == pytest.approx(0.8 + (0.2 - 0.8) * (1 + math.cos(math.pi * t / 10)) / 2)


def test_steps_change_at_their_milestones():
    schedule = StepSchedule([0.0, 0.5, 1.0], [3, 5])
    assert [schedule(t) for t in range(7)] == [0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    assert StepSchedule((0.25,), ())(9) == 0.25


@pytest.mark.parametrize(
    "schedule",
    [LinearSchedule(0.0, 1.0, 3), CosineSchedule(1.0, 0.5, 3), StepSchedule([0.1, 0.2], [4])],
    ids=lambda schedule: type(schedule).__name__,
)
def test_schedules_are_values(schedule):
    again = pickle.loads(pickle.dumps(schedule))  # noqa: S301 - our own bytes
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert eval(repr(schedule)) == schedule  # noqa: S307 - a dataclass prints as it is built


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: LinearSchedule(-0.1, 1.0, 5),
            "start=-0.1 is not allowed: choose from 0 (the linear network) to 1 (free)",
        ),
        (
            lambda: CosineSchedule(0.0, math.nan, 5),
            "end=nan is not allowed: choose from 0 (the linear network) to 1 (free)",
        ),
        (lambda: CosineSchedule(0.0, 1.0, 0), "steps=0 is not allowed: give 1 or more"),
        (
            lambda: StepSchedule((0.0, 2.0), (1,)),
            "values=(0.0, 2.0) is not allowed: choose from 0 (the linear network) to 1 (free)",
        ),
        (
            lambda: StepSchedule((0.0, 1.0), (1, 2)),
            "values=(0.0, 1.0) are 2 for 2 milestones: give one value more than milestones",
        ),
        (
            lambda: StepSchedule((0.0, 0.5, 1.0), (2, 2)),
            "milestones=(2, 2) are not allowed: give rising steps from at least 1",
        ),
        (
            lambda: StepSchedule((0.0, 0.5), (0,)),
            "milestones=(0,) are not allowed: give rising steps from at least 1",
        ),
    ],
    ids=["start", "end", "steps", "values", "count", "rising", "zero"],
)
def test_wrong_schedules_are_refused(make, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        make()
