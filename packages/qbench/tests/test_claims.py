"""Verdicts: every way a claim can stand to what was measured, and the numbers around them."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from qbench.errors import UserError
from qbench.metrics import QUANTITIES
from qbench.report.numbers import Report, build_report, to_json
from qbench.table import Cell, Reduction, Table, load_table, parse_table
from qbench.trial import Environment, Result

TABLE = """
id: toy
version: 1
title: A toy
paper: arXiv 0000.00000
shows: Table 1
control: linear
main_metric: test_accuracy
grid:
  dataset: [iris]
  model: {linear: {kind: linear}, rank1: {kind: low_rank, rank: 1}}
recipe: {epochs: 10}
unstated:
  scaling: {default: maxabs, also: [raw, minmax], why: it is not stated}
seeds: 4
quick: {seeds: 2, recipe: {epochs: 2}}
claims:
"""
ORDER = "  - {order: [linear, rank1], by: test_accuracy, per: panel, source: S}\n"
LOSS = "  - {order: [linear, rank1], by: train_loss, per: panel, source: S}\n"
CLOSE = "  - {close: [linear, rank1], by: test_accuracy, within: 1.0, per: panel, source: S}\n"
VALUE = "  - {cell: {model: rank1}, metric: test_accuracy, value: 90, spread: 0.5, source: S}\n"
RISES = "  - {rises: test_accuracy, per: panel, source: S}\n"
LIMIT = "  - {limit: test_accuracy, to: 90.0, within: 1.0, per: panel, source: S}\n"


def table(claims: str) -> Table:
    return parse_table(TABLE + claims, "toy.yaml")


def result(cell: Cell, seed: int, accuracy: float | None, **changes: Any) -> Result:
    history = {
        "test_accuracy": (10.0, accuracy or 0.0),
        "train_loss": (1.0, 100 - (accuracy or 0.0)),
    }
    facts: dict[str, Any] = {
        "key": cell.trial_key(seed),
        "table": cell.table.id,
        "version": cell.table.version,
        "axes": cell.axes,
        "seed": seed,
        "resolved": cell.resolved,
        "reduced": cell.reduced,
        "status": "finished" if accuracy is not None else "diverged",
        "diverged_at": None if accuracy is not None else 7 + seed,
        "parameters": 12,
        "multiply_adds": 12,
        "metrics": {k: v[-1] if accuracy is not None else None for k, v in history.items()},
        "step": (0, 10),
        "time": (1000.0, 1002.0),
        "weights": "0" * 64,
        "history": history,
        "snapshots": {},
        "environment": Environment(
            commit="c0ffee",
            versions={"torch": "2"},
            hardware={"cpu": "a cpu", "cores": 2},
            threads=2,
            device="cpu",
            started=1000.0 + hash(cell.key) % 1000,
            seconds=2.0,
            block=(0, 1, 2, 3),
        ),
    }
    return Result.model_validate({**facts, **changes})


def results(
    made: Table,
    linear: Sequence[float | None],
    rank1: Sequence[float | None],
    *,
    reduced: Reduction | None = None,
    scaling: str = "maxabs",
) -> tuple[list[Cell], list[Result]]:
    cells = list(made.cells(choices={"scaling": (scaling,)}, reduced=reduced))
    values = {"linear": linear, "rank1": rank1}
    found = [
        result(cell, seed, accuracy)
        for cell in cells
        for seed, accuracy in enumerate(values[str(cell.axes["model"])])
    ]
    return cells, found


@pytest.mark.parametrize(
    ("claims", "linear", "rank1", "verdict", "why"),
    [
        (
            ORDER,
            [80, 81, 80, 82],
            [90, 91, 91, 90],
            "holds",
            "80.75 < 90.50, difference +9.75 (95 %: +7.75 … +11.75), p < 0.001",
        ),
        (
            ORDER,
            [80, 90, 80, 90],
            [81, 82, 95, 86],
            "not decided",
            "85.00 < 86.00, difference +1.00 (95 %: −14.97 … +16.97), p = 0.",
        ),
        (
            ORDER,
            [90, 91, 90, 92],
            [80, 82, 80, 81],
            "does not hold",
            "measured 90.75 and 80.75, difference −10.00 (95 %: −11.30 … −8.70), p < ",
        ),
        (
            ORDER,
            [90, 91, 90, 92],
            [91, 89, 92, 90],
            "not decided",
            "measured 90.75 and 90.50, difference −0.25 (95 %: −3.53 … +3.03), p = ",
        ),
        (ORDER, [80, 80, 80], [90, 90, 90], "not decided", "80.00 < 90.00, no variation to test"),
        (ORDER, [90, 90, 90, 90], [90, 90, 90, 90], "not decided", "measured 90.00 and 90.00, no "),
        (ORDER, [80], [90], "not decided", "80.00 < 90.00, too few seeds to test"),
        (ORDER, [80, 80], [], "not tested", "no results for rank1"),
        (ORDER, [80, 80], [90, None], "does not hold", "rank1 diverged in 1 of 2"),
        (
            ORDER,
            [80, None],
            [90, 91],
            "not decided",
            "linear diverged in 1 of 2, else 80.00; rank1 diverged in none of 2, else 90.50, p = ",
        ),
        (
            ORDER,
            [None] * 4,
            [90, 91, 20, 90],  # of the 70 ways to choose 4 of 8, 2 are so one-sided
            "holds",
            "linear diverged in 4 of 4; rank1 diverged in none of 4, else 72.75, p = 0.029",
        ),
        (
            ORDER,
            [None],
            [90],
            "not decided",
            "linear diverged in 1 of 1; rank1 diverged in none of ",
        ),
        (
            ORDER,
            [None, 50, 51, 52],
            [90, 91, 89, 90],
            "holds",
            "linear diverged in 1 of 4, else 51.00; rank1 diverged in none of 4, else 90.00, p = ",
        ),
        (
            ORDER,
            [None, *[95] * 9],
            [*range(81, 91)],  # behind nine of ten
            "does not hold",
            "linear diverged in 1 of 10, else 95.00; rank1 diverged in none of 10, else 85.50, p ",
        ),
        (
            LOSS,
            [None] * 4,
            [90, 91, 20, 90],
            "holds",
            "linear diverged in 4 of 4; rank1 diverged in none of 4, else 27.2500, p = 0.029",
        ),
        (
            ORDER,
            [None] * 4,
            [90, 91, None, 90],
            "does not hold",
            "linear diverged in 4 of 4; rank1 diverged in 1 of 4",
        ),
        (
            LOSS,
            [80, 81, 80, 82],
            [90, 91, 91, 90],
            "holds",
            "19.2500 > 9.5000, difference −9.7500 (95 %: −11.7522 … −7.7478), p < 0.001",
        ),
        (
            CLOSE,
            [90.0, 90.2, 90.1],
            [90.1, 90.1, 90.2],
            "holds",
            "90.10 and 90.13: 0.03 (95 %: −0.25 … 0.32) apart, p",
        ),
        (
            CLOSE,
            [90.0, 91.0, 90.0],
            [90.5, 90.0, 90.6],
            "not decided",
            "90.33 and 90.37: 0.03 (95 %: −2.19 … 2.26) ap",
        ),
        (
            CLOSE,
            [90.0, 90.2],
            [95.0, 95.1],
            "does not hold",
            "90.10 and 95.05: 4.95 (95 %: 4.31 … 5.59) apart, p = 0.",
        ),
        (
            CLOSE,
            [90.0, 90.2, 90.6],
            [91.0, 91.9, 91.6],
            "not decided",
            "90.27 and 91.50: 1.23 (95 %: 0.23 … 2.24) ap",
        ),
        (CLOSE, [90.0], [90.0], "not decided", "90.00 and 90.00, too few seeds to test"),
        (CLOSE, [90.0, 91.0], [90.0, 91.0], "holds", "90.50 and 90.50: 0.00 apart"),
        (VALUE, [], [89.2, 89.3, 89.4], "holds", "measured 89.30, 95 % interval 89.05 … 89.55"),
        (VALUE, [], [90, 90], "not decided", "an interval needs 3 seeds or more"),
        (VALUE, [], [89.0, 89.1, 89.2], "does not hold", "measured 89.10, 95 % interval 88.85"),
        (RISES, [80], [90], "holds", "never falls between recorded steps"),
        (RISES, [80], [5], "does not hold", "falls at step 10"),
        (LIMIT, [89.5], [90.7], "holds", "ends at 90.7, the furthest of 2"),
        (LIMIT, [89.5], [95], "does not hold", "ends at 95.0"),
    ],
)
def test_a_claim_gets_its_verdict(
    claims: str, linear: list[float], rank1: list[float], verdict: str, why: str
) -> None:
    made = table(claims)
    (claim,) = build_report(made, *results(made, linear, rank1)).claims
    assert claim.verdict == verdict
    assert claim.why.startswith(why)
    assert claim.choices == {"scaling": "maxabs"}


@pytest.mark.parametrize(("said", "read"), [(False, None), (True, "quick"), ("budget", "budget")])
def test_reports_of_before_there_were_two_kinds_are_read(said: object, read: object) -> None:
    made = table(ORDER)
    report = build_report(made, *results(made, [80, 81], [90, 91]))
    text = json.dumps({**json.loads(report.model_dump_json()), "reduced": said})
    assert Report.model_validate_json(text).reduced == read


def test_a_reduced_run_decides_nothing_and_says_so() -> None:
    made = table(ORDER)
    report = build_report(made, *results(made, [80, 81], [90, 91], reduced="quick"))
    assert report.reduced
    assert report.claims[0].verdict == "not tested"
    assert report.claims[0].why.startswith("reduced run: ")
    assert report.warnings[0].startswith(
        "REDUCED RUN: 2 steps instead of 10 and 2 seeds instead of 4"
    )
    assert report.command == "qbench run toy --quick"


def test_a_reduced_run_names_every_field_of_every_cell_that_is_reduced() -> None:
    text = TABLE.replace(
        "dataset: [iris]", "dataset: {iris: {}, wine: {recipe: {epochs: 30, lr: 0.1}}}"
    ).replace("{epochs: 2}", "{epochs: 2, lr: 0.1, log_every: 7}")
    made = parse_table(text + ORDER, "toy.yaml")
    cells = list(made.cells(reduced="quick"))
    found = [result(cell, seed, 90.0) for cell in cells for seed in range(2)]
    assert build_report(made, cells, found).warnings == [
        "REDUCED RUN: 2 steps instead of 10 or 30, lr 0.1 instead of 0.01 and 2 seeds instead of "
        "4; no number here is the table's."
    ]


def test_where_a_table_departs_from_the_paper_is_its_first_note() -> None:
    made = parse_table(TABLE + ORDER + "departs: [wine is left out.]\n", "toy.yaml")
    assert build_report(made, *results(made, [80] * 4, [90] * 4)).notes[0] == (
        "Other than in the paper, on purpose: wine is left out."
    )


def test_a_diverged_trial_is_counted_and_never_in_a_mean() -> None:
    made = table(ORDER)
    report = build_report(made, *results(made, [80, 81, 82, 83], [90, None, 92, None]))
    cell = report.cells[1]
    assert (cell.mean, cell.n, cell.diverged, cell.diverged_at) == (91.0, 2, 2, (8, 10))
    assert report.notes[-1].startswith(
        "2 of 8 trials diverged (a loss that is not finite, or has exploded) at step 8 to 10."
    )


def test_all_diverged_leaves_no_mean() -> None:
    made = table(ORDER)
    report = build_report(made, *results(made, [80, 81, 82, 83], [None] * 4))
    cell = report.cells[1]
    assert (cell.mean, cell.std, cell.n, cell.diverged, cell.p_value) == (None, None, 0, 4, None)


def test_a_partial_run_cannot_be_taken_for_a_full_one() -> None:
    made = table(ORDER)
    report = build_report(made, *results(made, [80, 81, 82, 83], [90]))
    assert (report.recorded, report.expected) == (5, 8)
    assert "PARTIAL: 5 of 8 trials are recorded." in report.warnings
    more_seeds = build_report(made, *results(made, [80] * 6, [90]))
    assert (more_seeds.recorded, more_seeds.expected) == (7, 10)


def test_a_report_of_two_machines_says_how_many_trials_each_ran() -> None:
    made = table(ORDER)
    cells, here = results(made, [80, 81, 82, 83], [90, 91, 92, 93])
    assert build_report(made, cells, here).machines == "cpu a cpu, cores 2"
    later = here[-1].environment.model_copy(
        update={"hardware": {"cpu": "a cpu", "cores": 8, "gpu": "a gpu"}, "started": 1e9}
    )
    there = here[-1].model_copy(update={"environment": later})
    report = build_report(made, cells, [*here[:-1], there])
    assert report.machines == "a cpu (7 trials) and a gpu (1 trial)"
    earlier = report.model_copy(update={"processors": {}})  # as reports of before have none
    assert earlier.machines == "cpu a cpu, cores 8, gpu a gpu"


def test_what_the_outcome_depends_on_is_said_with_the_command_for_the_rest() -> None:
    made = table(ORDER)
    note = build_report(made, *results(made, [80] * 4, [90] * 4)).notes[0]
    assert note == (
        "The outcome may depend on scaling: it is not stated. Shown: maxabs; for the rest "
        "(raw, minmax): qbench run toy --axis scaling=all"
    )


def test_that_the_outcome_depends_on_a_choice_is_said_when_all_of_it_was_run() -> None:
    made = table(ORDER)
    runs = [results(made, [80] * 4, [90] * 4, scaling=s) for s in ("maxabs", "raw", "minmax")]
    report = build_report(
        made, [c for cs, _ in runs for c in cs], [r for _, rs in runs for r in rs]
    )
    assert report.notes == [
        "The outcome may depend on scaling: it is not stated. All its values are shown."
    ]
    assert report.command == "qbench run toy --axis scaling=all"


def test_every_choice_gets_its_own_verdict_and_its_own_correction() -> None:
    made = table(ORDER)
    cells, found = results(made, [80, 81, 80, 82], [90, 91, 91, 90])
    others, more = results(made, [95, 96, 95, 96], [90, 91, 91, 90], scaling="raw")
    report = build_report(made, cells + others, found + more)
    assert [(c.choices["scaling"], c.verdict) for c in report.claims] == [
        ("maxabs", "holds"),
        ("raw", "does not hold"),
    ]
    assert report.choices == {"scaling": ["maxabs", "raw"]}
    assert report.command == "qbench run toy --axis scaling=maxabs,raw"
    alone = build_report(made, cells, found)
    assert alone.cells[1].p_value == report.cells[1].p_value


def test_the_claimed_value_stands_beside_the_measured_one() -> None:
    made = table(VALUE)
    cell = build_report(made, *results(made, [80] * 4, [89.0, 89.5, 90.0, 90.5])).cells[1]
    assert cell.claim is not None
    assert (cell.claim.value, cell.claim.spread, cell.claim.source) == (90.0, 0.5, "S")
    assert cell.mean == 89.75
    assert cell.difference == 9.75


def test_the_seconds_of_a_block_are_counted_once() -> None:
    made = table(ORDER)
    report = build_report(made, *results(made, [80] * 4, [90] * 4))
    assert [cell.seconds for cell in report.cells] == [2.0, 2.0]
    assert [report.core_seconds(cell) for cell in report.cells] == [4.0, 4.0]


def test_the_seconds_of_cores_are_those_of_the_threads_of_each_block() -> None:
    made = table(ORDER)
    cells, found = results(made, [80] * 4, [90] * 4)
    alone = {"threads": 1, "started": 5000.0, "seconds": 7.0, "block": (3,)}
    at = found[3].environment.model_copy(update=alone)
    found[3] = found[3].model_copy(update={"environment": at})  # a seed of linear
    report = build_report(made, cells, found)
    assert [cell.seconds for cell in report.cells] == [9.0, 2.0]
    assert [report.core_seconds(cell) for cell in report.cells] == [2 * 2.0 + 7.0, 4.0]
    # a report of before: by the threads of its latest trial
    before = [cell.model_copy(update={"core_seconds": None}) for cell in report.cells]
    assert report.threads == 1
    assert [report.core_seconds(cell) for cell in before] == [9.0, 2.0]


def test_the_json_has_the_fields_that_others_rely_on() -> None:
    made = table(VALUE)
    found = to_json(build_report(made, *results(made, [80] * 4, [90.0, 90.5, 89.5, 90.0])))
    assert {
        "table",
        "version",
        "reduced",
        "commit",
        "hardware",
        "versions",
        "cells",
        "claims",
    } <= set(found)
    cell = {
        "axes",
        "metric",
        "mean",
        "std",
        "n",
        "diverged",
        "interval95",
        "p_value",
        "claim",
        "seconds",
    }
    assert cell <= set(found["cells"][0])
    assert found["cells"][1]["axes"] == {"dataset": "iris", "model": "rank1", "scaling": "maxabs"}
    assert found["cells"][1]["claim"] == {"value": 90.0, "spread": 0.5, "source": "S"}
    assert {"text", "source", "choices", "verdict"} <= set(found["claims"][0])


AT_BEST = (
    TABLE.replace("dataset: [iris]", "dataset: [iris, wine]\n  lr: [0.01, 0.1]")
    + """\
  - order: [linear, rank1]
    by: test_accuracy
    at_best: {axis: lr, chosen_by: validation_accuracy}
    per: panel
    source: S
"""
)


def at_best(
    places: dict[tuple[str, float, str], Sequence[tuple[float, float] | None]], text: str = AT_BEST
) -> Report:
    """The report of trials with this test and validation accuracy, by dataset, lr and model."""
    made = parse_table(text, "toy.yaml")
    cells = list(made.cells())
    found = []
    for cell in cells:
        place = (cell.dataset, float(cell.axes["lr"]), str(cell.axes["model"]))
        for seed, pair in enumerate(places.get(place, ())):
            metrics = dict(zip(("test_accuracy", "validation_accuracy"), pair or (), strict=False))
            found.append(result(cell, seed, pair[0] if pair else None, metrics=metrics))
    return build_report(made, cells, found)


def test_each_model_is_taken_where_validation_is_best_for_it_and_never_the_test() -> None:
    report = at_best(
        {
            # better on test at 0.1, and chosen at 0.01
            ("iris", 0.01, "linear"): [(80.0, 85.0), (81.0, 86.0), (80.5, 85.0)],
            ("iris", 0.1, "linear"): [(95.0, 70.0), (95.0, 71.0), (95.0, 70.0)],
            ("iris", 0.01, "rank1"): [(70.0, 60.0), (70.0, 60.0), (70.0, 60.0)],
            ("iris", 0.1, "rank1"): [(90.0, 88.0), (91.5, 88.0), (90.5, 88.0)],
            ("wine", 0.1, "linear"): [(80.0, 80.0)],
        }
    )
    iris, wine = report.claims
    assert (iris.panel, iris.verdict) == ("iris", "holds")
    assert iris.text == "linear < rank1 in test accuracy, each at its best lr on iris"
    assert iris.why == (
        "80.50 < 90.67, difference +10.17 (95 %: +9.45 … +10.88), p < 0.001; "
        "lr: linear at 0.01, rank1 at 0.1"
    )
    assert (iris.seeds, wine.seeds) == ((3, 3), (0, 1))
    assert (wine.panel, wine.verdict) == ("wine", "not tested")
    assert wine.why == "no results for rank1; lr: linear at 0.1"
    assert "validation_accuracy" in report.measured


def test_a_value_at_which_trials_diverged_is_not_chosen() -> None:
    report = at_best(
        {
            ("iris", 0.01, "linear"): [(80.0, 80.0), (81.0, 80.0), (80.5, 80.0)],
            ("iris", 0.1, "linear"): [(99.0, 99.0), (99.0, 99.0), None],
            ("iris", 0.01, "rank1"): [(90.0, 90.0), (91.5, 90.0), (90.5, 90.0)],
            ("iris", 0.1, "rank1"): [None, None, None],
        }
    )
    assert report.claims[0].why.startswith("80.50 < 90.67, difference +10.17 ")
    assert report.claims[0].why.endswith("; lr: linear at 0.01, rank1 at 0.01")


def test_a_model_that_diverges_at_every_value_refutes_what_is_claimed_of_it() -> None:
    report = at_best(
        {
            ("iris", 0.01, "linear"): [(80.0, 80.0), (81.0, 80.0), (80.5, 80.0)],
            ("iris", 0.01, "rank1"): [(90.0, 90.0), (91.5, 90.0), None],
            ("iris", 0.1, "rank1"): [None, None, None],
        }
    )
    claim = report.claims[0]
    assert claim.verdict == "does not hold"
    assert claim.why.startswith("rank1 diverged in 1 of 3; lr: linear at 0.01, rank1 at 0.01")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("axis: lr", "axis: l", "at_best: unknown axis 'l': did you mean 'lr'? Allowed: lr"),
        ("axis: lr", "axis: model", "at_best: unknown axis 'model'"),
        ("per: panel", "per: pooled", "at_best: a value is chosen in each panel, so that none"),
        ("chosen_by: validation_accuracy", "chosen_by: validation", "unknown metric 'validation'"),
    ],
)
def test_what_is_best_needs_an_axis_and_a_metric_that_are_there(
    old: str, new: str, said: str
) -> None:
    with pytest.raises(UserError) as caught:
        parse_table(AT_BEST.replace(old, new), "toy.yaml")
    assert said in str(caught.value)


DIMENSION = "  - {order: [linear, rank1], by: dimension, per: panel, source: S}\n"


@pytest.mark.parametrize(
    ("linear", "rank1", "verdict", "why"),
    [
        ([3, 3], [5, 5], "holds", "3 < 5, the same for every seed"),
        ([5, 5], [5, 5], "does not hold", "measured 5 and 5, the same for every seed"),
        ([3, 3], [4, 5], "not decided", "3 < 4.5, difference +1.5 (95 %: −4.9 … +7.9), p = 0.205"),
    ],
)
def test_what_is_counted_and_the_same_for_every_seed_needs_no_test(
    linear: list[float], rank1: list[float], verdict: str, why: str
) -> None:
    made = table(DIMENSION)
    found = [
        result(cell, seed, 90.0, metrics={"test_accuracy": 90.0, "dimension": value})
        for cell, values in zip(made.cells(), (linear, rank1), strict=True)
        for seed, value in enumerate(values)
    ]
    (claim,) = build_report(made, list(made.cells()), found).claims
    assert (claim.verdict, claim.why) == (verdict, why)


def test_the_panels_of_a_pooled_claim_are_one_sample_of_each_seed() -> None:
    datasets = ["iris", "wine", "wisconsin", "digits"]
    text = TABLE.replace("dataset: [iris]", f"dataset: [{', '.join(datasets)}]")
    pooled = "  - {order: [linear, rank1], by: test_accuracy, per: pooled, source: S}\n"
    made = parse_table(text + pooled, "toy.yaml")
    gains = (2.0, 1.0, -0.5)  # of a seed, the same in every panel
    found = [
        result(cell, seed, 80.0 + (gain if cell.axes["model"] == "rank1" else 0.0))
        for cell in made.cells()
        for seed, gain in enumerate(gains)
    ]
    (claim,) = build_report(made, list(made.cells()), found).claims
    # three seeds do not decide it, however many panels they were run in: twelve would, at p = 0.015
    assert claim.verdict == "not decided"
    assert claim.why.startswith("80.00 < 80.83, difference +0.83 (95 %: −2.29 … +3.96), p = 0.37")


def test_a_pooled_claim_is_made_once_for_all_panels_and_pairs_within_them() -> None:
    text = TABLE.replace("dataset: [iris]", "dataset: [iris, wine]")
    pooled = "  - {order: [linear, rank1], by: test_accuracy, per: pooled, source: S}\n"
    made = parse_table(text + pooled, "toy.yaml")
    found = []
    for cell in made.cells():
        base = {"iris": 60.0, "wine": 90.0}[cell.dataset]
        gain = 0.0 if cell.axes["model"] == "linear" else 2.0
        found += [result(cell, seed, base + gain + 0.1 * seed * (gain + 1)) for seed in range(3)]
    (claim,) = build_report(made, list(made.cells()), found).claims
    assert claim.panel == "all panels together"
    # paired within panels: 30 points between them are no spread
    assert claim.verdict == "holds"
    assert claim.text.endswith("on all panels together")


def test_a_seed_that_diverged_in_one_panel_of_a_pooled_claim_is_behind_the_others() -> None:
    text = TABLE.replace("dataset: [iris]", "dataset: [iris, wine]")
    pooled = "  - {order: [linear, rank1], by: test_accuracy, per: pooled, source: S}\n"
    made = parse_table(text + pooled, "toy.yaml")
    accuracies = {
        ("linear", "iris"): 95.0,  # which rank1's mean over both panels does not reach
        ("linear", "wine"): None,
        ("rank1", "iris"): 96.0,
        ("rank1", "wine"): 60.0,
    }
    found = [
        result(cell, seed, accuracies[str(cell.axes["model"]), cell.dataset])
        for cell in made.cells()
        for seed in range(4)
    ]
    (claim,) = build_report(made, list(made.cells()), found).claims
    assert (claim.verdict, claim.why) == (
        "holds",
        "linear diverged in 4 of 8; rank1 diverged in none of 8, else 78.00, p = 0.029",
    )


def test_trials_that_diverged_count_as_not_learned() -> None:
    learned = "  - {order: [rank1, linear], by: learned, per: panel, source: S}\n"
    made = parse_table(
        (TABLE + learned).replace("main_metric: test_accuracy", "main_metric: learned"), "toy.yaml"
    )
    linear, rank1 = made.cells()
    found = [
        result(linear, seed, 90.0, history={"train_accuracy": (10.0, 95.0)}) for seed in range(6)
    ] + [
        result(rank1, seed, None if seed < 4 else 20.0, history={"train_accuracy": (10.0, 20.0)})
        for seed in range(6)
    ]
    report = build_report(made, list(made.cells()), found)
    assert [cell.mean for cell in report.cells] == [100.0, 0.0]
    assert [cell.n for cell in report.cells] == [6, 6]
    (claim,) = report.claims
    assert claim.verdict == "not decided"  # every pair differs alike: nothing to test against
    assert claim.why.startswith("0.00 < 100.00")


INTERIOR = (
    "  - {interior: [linear, rank1, rank2], by: test_accuracy, chosen_by: validation_accuracy, "
    "per: panel, source: S}\n"
)


@pytest.mark.parametrize(
    ("inner", "verdict"), [(92.0, "holds"), (90.05, "not decided"), (85.0, "does not hold")]
)
def test_an_inner_optimum_must_beat_both_ends(inner: float, verdict: str) -> None:
    text = TABLE.replace("rank: 1}}", "rank: 1}, rank2: {kind: low_rank, rank: 2}}")
    made = parse_table(text + INTERIOR, "toy.yaml")
    found = []
    for cell in made.cells():
        accuracy = {"linear": 90.0, "rank1": inner, "rank2": 90.0}[str(cell.axes["model"])]
        found += [
            result(
                cell,
                seed,
                accuracy + noise,
                metrics={"test_accuracy": accuracy + noise, "validation_accuracy": 80.0},
            )
            for seed, noise in enumerate(
                (0.3, -0.1, 0.2, 0.05) if cell.axes["model"] == "rank1" else (0.1, 0.2, -0.2, 0.0)
            )
        ]
    (claim,) = build_report(made, list(made.cells()), found).claims
    assert claim.verdict == verdict
    assert claim.why.startswith("rank1 is chosen; against linear ")


def interior(accuracies: dict[str, Sequence[float | None]]) -> Any:
    """The verdict on an inner optimum, of models by the accuracies of their seeds; the higher
    ``validation_accuracy``, the later the model stands."""
    names = ", ".join(f"{name}: {{kind: low_rank, rank: {i}}}" for i, name in enumerate("abcd", 1))
    text = TABLE.replace("linear: {kind: linear}, rank1: {kind: low_rank, rank: 1}", names)
    claim = INTERIOR.replace("linear, rank1, rank2", "a, b, c, d")
    made = parse_table(text.replace("control: linear\n", "") + claim, "toy.yaml")
    found = []
    for place, cell in enumerate(made.cells()):
        for seed, value in enumerate(accuracies[str(cell.axes["model"])]):
            known = {"test_accuracy": value, "validation_accuracy": 10.0 * place}
            found.append(result(cell, seed, value, **({} if value is None else {"metrics": known})))
    (report,) = build_report(made, list(made.cells()), found).claims
    return report


def test_an_inner_value_that_diverged_is_not_chosen_and_refutes_nothing() -> None:
    ends = {"a": [80.0, 80.1, 80.3], "d": [80.2, 80.0, 80.1]}
    one = interior({**ends, "b": [90.0, 90.2, 90.1], "c": [95.0, None, 95.0]})
    assert one.verdict == "holds"
    assert one.why.startswith("b is chosen; against a 80.13 < 90.10")
    none = interior({**ends, "b": [90.0, None, 90.1], "c": [95.0, None, 95.0]})
    assert (none.verdict, none.why) == ("does not hold", "every inner value diverged")
    end = interior({**ends, "b": [90.0] * 3, "c": [95.0] * 3, "d": [80.0, None, 80.0]})
    assert (end.verdict, end.why) == ("not decided", "d diverged in 1 of 3")


def test_one_better_end_refutes_an_inner_optimum_whatever_the_other_says() -> None:
    inner = {"b": [80.0, 80.1, 80.3], "c": [85.0, 85.2, 85.1]}
    for better, open_end in (("a", "d"), ("d", "a")):
        found = interior({**inner, better: [90.0, 90.3, 90.1], open_end: [85.2, 84.9, 85.0]})
        assert found.verdict == "does not hold"


def test_a_pooled_claim_says_how_many_panels_it_rests_on() -> None:
    text = TABLE.replace("dataset: [iris]", "dataset: [iris, wine, digits]")
    pooled = "  - {order: [linear, rank1], by: test_accuracy, per: pooled, source: S}\n"
    made = parse_table(text + pooled, "toy.yaml")
    found = [
        result(cell, seed, (60.0 if cell.axes["model"] == "linear" else 62.0) + seed**2)
        for cell in made.cells({"dataset": ("iris", "wine")})
        for seed in range(3)
        if (cell.dataset, cell.axes["model"]) != ("wine", "linear")
    ]
    (claim,) = build_report(made, list(made.cells()), found).claims
    assert claim.panel == "1 of 3 panels together"


def test_the_direction_of_an_order_is_that_of_the_pairs() -> None:
    made = table(ORDER)
    linear, rank1 = made.cells()
    # the linear model was run on two good seeds more, which pull its mean up
    found = [result(linear, s, v) for s, v in enumerate([80.0, 81.0, 82.5, 99.0, 99.0])]
    found += [result(rank1, s, v) for s, v in enumerate([82.0, 83.2, 84.4])]
    (claim,) = build_report(made, list(made.cells()), found).claims
    assert claim.verdict == "holds"
    assert claim.why.startswith(
        "measured 88.30 and 83.20, difference +2.03 (95 %: +1.65 … +2.41), p "
    )


def test_the_claimed_values_of_a_table_stand_beside_its_cells() -> None:
    made = load_table("cifar-heads")
    cells = list(made.cells())
    found = [result(cell, seed, 92.0 + seed / 10) for cell in cells for seed in range(2)]
    report = build_report(made, cells, found)
    claimed = {
        (cell.panel, cell.axes["model"]): cell.claim.value for cell in report.cells if cell.claim
    }
    assert len(claimed) == 25
    assert claimed["cifar10, depth 10", "linear"] == 92.20
    assert claimed["cifar10, depth 18", "rank3"] == 93.67


@pytest.mark.parametrize(
    ("linear", "verdict", "why"),
    [
        ([90.5, 89.2], "not tested", "ends at 89.2, the furthest of 2; no results for rank1"),
        ([90.5, 80.0], "does not hold", "ends at 80.0, the furthest of 2; no results for rank1"),
        ([90.5, None], "does not hold", "linear diverged in 1 of 2; no results for rank1"),
    ],
)
def test_one_model_refutes_what_is_said_of_every_one(
    linear: list[float | None], verdict: str, why: str
) -> None:
    made = table(LIMIT)
    (claim,) = build_report(made, *results(made, linear, [])).claims
    assert (claim.verdict, claim.why) == (verdict, why)


def test_one_model_that_never_falls_says_nothing_of_the_others() -> None:
    made = table(RISES)
    (claim,) = build_report(made, *results(made, [80], [])).claims
    expected = "never falls between recorded steps; no results for rank1"
    assert (claim.verdict, claim.why) == ("not tested", expected)


def margins(made: Table, histories: Mapping[str, tuple[float, ...]]) -> Report:
    """A report of one trial of each model, with its margin along training."""
    cells = list(made.cells())
    found = [
        result(cell, 0, 90.0, history={"margin": histories[str(cell.axes["model"])]})
        for cell in cells
    ]
    return build_report(made, cells, found)


@pytest.mark.parametrize(
    ("margin", "rises", "fall"),
    [
        ((0.1, 0.2, 0.3), 100.0, 0.0),
        ((0.3, 0.2, 0.1), 0.0, 100.0),
        ((0.2, 0.2), 100.0, 0.0),
        ((0.0, 0.3, 0.2, 0.1, 0.4), 50.0, 50.0),  # from 0.3 to 0.1, of a range of 0.4
        ((0.0, 0.3, 0.1, 0.4), 200 / 3, 50.0),  # the same way, recorded less often
        ((0.0, 0.2, 0.1, 0.3, 0.2, 0.4), 60.0, 25.0),  # small falls do not add up
        ((0.0, 0.4, 0.3, 0.35, 0.1), 50.0, 75.0),  # a rise between does not end a fall
    ],
)
def test_how_often_and_how_far_the_margin_falls(
    margin: tuple[float, ...], rises: float, fall: float
) -> None:
    often, far = (QUANTITIES[name].derive for name in ("margin_rises", "margin_drawdown"))
    assert often is not None
    assert far is not None
    assert often({"margin": margin}) == pytest.approx(rises)
    assert far({"margin": margin}) == pytest.approx(fall)
    assert math.isnan(far({"margin": ()}))


def test_a_limit_says_of_which_models_it_is_and_stands_once_for_each_source() -> None:
    made = table(
        "".join(
            "  - {limit: margin_drawdown, to: 0, within: 5, "
            f"models: [{model}], source: {source}}}\n"
            for model, source in (("linear", "S"), ("rank1", "S"), ("rank1", "not claimed"))
        )
    )
    report = margins(made, {"linear": (0.0, 1.0), "rank1": (0.0, 1.0, 0.9)})
    limit = "largest fall of the margin relative to its range is within 5 of 0"
    assert [(claim.statement, claim.source, claim.verdict) for claim in report.claims] == [
        (f"linear: {limit}", "S", "holds"),
        (f"rank1: {limit}", "S", "does not hold"),
        (f"rank1: {limit}", "not claimed", "does not hold"),
    ]


def test_a_limit_of_which_no_trial_has_a_value_is_not_tested() -> None:
    made = table("  - {limit: margin_correlation, to: 1.0, within: 0.2, per: panel, source: S}\n")
    found = [result(cell, seed, 90.0) for cell in made.cells() for seed in range(2)]
    (claim,) = build_report(made, list(made.cells()), found).claims
    assert claim.verdict == "not tested"
    assert claim.why == "no trial has a value of correlation of margin and test accuracy"
