"""Who stands where: ranks by uncertainty, paired differences, controls, groups that never mix."""

from collections.abc import Sequence
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qbench.leaderboard.entry import Claim, Entry, Measurement, Run, Seed
from qbench.leaderboard.standings import missing_controls, standings, wilson
from qbench.table import load_table

UCI = load_table("uci")
CELLS = {str(cell.axes["model"]): cell for cell in UCI.cells({"dataset": ("wine",)})}


def entry_of(model: str, accuracies: Sequence[float], **changes: Any) -> Entry:
    """A run on Wine with these accuracies, measured again and verified."""
    cell = CELLS[model]
    seeds = tuple(
        Seed(key=cell.trial_key(seed), seed=seed, accuracy=value, seconds=0.5)
        for seed, value in enumerate(accuracies)
    )
    run = Run(
        table="uci",
        version=UCI.version,
        axes=cell.axes,
        seeds=seeds,
        parameters=39,
        multiply_adds=39,
    )
    mean = sum(accuracies) / len(accuracies)
    entry = Entry(
        id=f"wine-{model}",
        board="uci",
        dataset="wine",
        title=model,
        claim=Claim(accuracy=mean, authors="Somebody"),
        submitted=date(2026, 1, 1),
        reduced=False,
        run=run,
    )
    found = Measurement(
        verdict="verified",
        reason="as claimed",
        subject=seeds[0].key,
        claimed=entry.claimed(range(len(seeds))),
        seeds=tuple(range(len(seeds))),
        accuracy=mean,
        measured=date(2026, 1, 2),
    )
    return entry.model_copy(update={"measurement": found, **changes})


def test_entries_within_each_others_interval_share_a_rank() -> None:
    first = entry_of("rank4", [97.0, 98.0, 99.0])
    close = entry_of("rank3", [96.5, 97.5, 98.0])
    far = entry_of("linear", [80.0, 80.1, 80.2])
    ranks = {row.entry.title: row.rank for row in standings([far, close, first])}
    assert ranks == {"rank4": 1, "rank3": 1, "linear": 3}


def test_an_interval_is_students_over_seeds() -> None:
    values = [90.0, 92.0, 95.0]
    (row,) = standings([entry_of("rank1", values)])
    expected = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    assert row.interval95 == pytest.approx(expected)
    assert (row.n, row.std) == (3, pytest.approx(stats.tstd(values)))


@given(st.integers(0, 500), st.integers(1, 500))
def test_an_interval_of_one_file_is_wilsons_over_its_images(correct: int, more: int) -> None:
    images = correct + more
    low, high = wilson(100 * correct / images, images)
    expected = stats.binomtest(correct, images).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)


def test_the_difference_to_the_control_is_paired_over_seeds() -> None:
    control = entry_of("linear", [90.0, 80.0, 70.0])
    better = entry_of("rank1", [91.0, 82.0, 73.0])
    row = next(row for row in standings([control, better]) if row.entry is better)
    (difference,) = row.differences
    interval = stats.t.interval(0.95, 2, loc=2.0, scale=stats.sem([1.0, 2.0, 3.0]))
    assert (difference.to, difference.mean, difference.n) == ("wine-linear", 2.0, 3)
    assert difference.interval95 == pytest.approx(interval)


def test_seeds_that_were_run_otherwise_do_not_pair() -> None:
    control = entry_of("linear", [90.0, 80.0])
    assert control.run is not None
    axes = {**control.run.axes, "scaling": "raw"}
    other = control.model_copy(update={"run": control.run.model_copy(update={"axes": axes})})
    rows = standings([other, entry_of("rank1", [91.0, 82.0])])
    assert [row.differences for row in rows] == [(), ()]


def test_groups_are_never_ranked_with_each_other() -> None:
    poor = entry_of("linear", [50.0, 50.0])
    others = [
        entry_of("rank1", [99.0, 99.0], reduced=True),
        entry_of("rank2", [99.0, 99.0], selection="best on test"),
        entry_of("rank3", [99.0, 99.0], measurement=None),
    ]
    rows = standings([*others, poor])
    assert [(row.entry.title, row.group, row.rank) for row in rows] == [
        ("linear", "full runs", 1),
        ("rank1", "reduced runs", 1),
        ("rank2", "best on test", 1),
        ("rank3", "not verified", None),
    ]


def test_a_measurement_of_another_file_or_claim_verifies_nothing() -> None:
    entry = entry_of("rank1", [90.0, 92.0])
    assert entry.verdict == "verified"
    assert entry.measurement is not None
    assert entry.run is not None
    stale = entry.measurement.model_copy(update={"subject": "0" * 16})
    assert entry.model_copy(update={"measurement": stale}).verdict == "not verified"
    better = [one.model_copy(update={"accuracy": 99.0}) for one in entry.run.seeds]
    run = entry.run.model_copy(update={"seeds": tuple(better)})
    assert entry.model_copy(update={"run": run}).verdict == "not verified"


def test_a_board_says_which_controls_it_lacks() -> None:
    assert missing_controls(standings([entry_of("rank1", [90.0, 91.0])])) == [
        "plain",
        "parameter-matched",
    ]
    rows = standings([entry_of("rank1", [90.0, 91.0]), entry_of("linear", [80.0, 81.0])])
    assert missing_controls(rows) == ["parameter-matched"]


@pytest.mark.parametrize(
    ("model", "neuron", "head", "control"),
    [
        ("linear", "–", "linear", "plain"),
        ("dense-affine", "–", "dense form, affine", None),
        ("rank4", "–", "rank 4", None),
    ],
)
def test_what_an_entry_is(model: str, neuron: str, head: str, control: str | None) -> None:
    (row,) = standings([entry_of(model, [90.0])])
    assert (row.network.neuron, row.network.head, row.network.control) == (neuron, head, control)


@given(
    st.lists(
        st.lists(st.floats(0, 100, allow_nan=False), min_size=1, max_size=4),
        min_size=1,
        max_size=6,
    )
)
def test_the_best_has_rank_one_and_no_rank_is_above_the_number_of_rows(
    samples: list[list[float]],
) -> None:
    models = list(CELLS)[: len(samples)]
    entries = [entry_of(model, values) for model, values in zip(models, samples, strict=True)]
    rows = standings(entries)
    best = max(rows, key=lambda row: row.accuracy or 0.0)
    assert best.rank == 1
    assert all(row.rank is not None and 1 <= row.rank <= len(rows) for row in rows)
    for one in rows:
        for two in rows:
            if one.interval95 and two.interval95 and one.interval95[0] > two.interval95[1]:
                assert (one.rank or 0) < (two.rank or 0)
