"""Who stands where: ranks by uncertainty, paired differences, controls, groups that never mix."""

from collections.abc import Sequence
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qbench.errors import UserError
from qbench.leaderboard.entry import Claim, Entry, Measurement, Run, Seed
from qbench.leaderboard.standings import cell_of, missing_controls, of_spec, standings
from qbench.report.statistics import wilson
from qbench.table import Cell, Reduction, load_table, table_names
from qzoo.architectures import ARCHITECTURES
from qzoo.index import get_provenance

UCI = load_table("uci")
CELLS = {str(cell.axes["model"]): cell for cell in UCI.cells({"dataset": ("wine",)})}


def entry_of(
    model: str, accuracies: Sequence[float], cell: Cell | None = None, **changes: Any
) -> Entry:
    """A run with these accuracies, measured again and verified; on Wine, unless a cell is given."""
    cell = cell or CELLS[model]
    seeds = tuple(
        Seed(key=cell.trial_key(seed), seed=seed, accuracy=value, seconds=0.5)
        for seed, value in enumerate(accuracies)
    )
    run = Run(
        table=cell.table.id,
        version=cell.table.version,
        axes=cell.axes,
        seeds=seeds,
        parameters=39,
        multiply_adds=39,
    )
    mean = sum(accuracies) / len(accuracies)
    entry = Entry(
        id=f"{cell.dataset}-{model}",
        board="uci" if cell.dataset == "wine" else cell.dataset,
        dataset=cell.dataset,
        title=model,
        claim=Claim(accuracy=mean, authors="Somebody"),
        submitted=date(2026, 1, 1),
        reduced=False,
        run=run,
    )
    return measured(entry).model_copy(update=changes)


def measured(entry: Entry, verdict: str = "verified", **changes: Any) -> Entry:
    """An entry whose measurement is of what it says."""
    found = Measurement(
        verdict="differs",
        reason="as claimed",
        subject=entry.subject,
        seeds=(0,),
        accuracy=entry.claim.accuracy,
        difference=0.0,
        tolerance=0.5,
        images=36,
        parameters=39,
        multiply_adds=39,
        measured=date(2026, 1, 2),
    )
    found = found.model_copy(update={"verdict": verdict, **changes})
    return entry.model_copy(update={"measurement": found})


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
    assert difference.control == "plain"
    assert difference.interval95 == pytest.approx(interval)


def test_the_matched_control_is_the_one_of_a_row_s_own_size() -> None:
    sizes = {"rank1": 39, "rank4": 156, "relu-as-rank1": 52, "relu-as-rank4": 172, "linear": 39}
    entries = []
    for model, parameters in sizes.items():
        entry = entry_of(model, [80.0 + parameters / 10, 81.0 + parameters / 10])
        entries.append(measured(entry, parameters=parameters))
    rows = {row.entry.title: row for row in standings(entries)}
    # 52 parameters are a third more than 39, and the fewest with which it has as many
    of_first, of_fourth = (
        rows[name].difference_to("parameter-matched") for name in ("rank1", "rank4")
    )
    assert of_first is not None
    assert (of_first.to, of_first.mean) == ("wine-relu-as-rank1", pytest.approx(-1.3))
    assert of_fourth is not None
    assert (of_fourth.to, of_fourth.mean) == ("wine-relu-as-rank4", pytest.approx(-1.6))
    assert missing_controls(list(rows.values())) == []


def test_of_controls_as_large_the_one_trained_alike_is_compared() -> None:
    models = ("rank10", "rank10-clipped", "rank10-normalised")
    models += ("relu-as-rank10", "relu-clipped-as-rank10", "relu-normalised-as-rank10")
    only = {"dataset": ("mnist",), "lr": (0.01,), "model": models}
    entries = [
        measured(entry_of(str(cell.axes["model"]), [90.0, 91.0], cell), parameters=79_000)
        for cell in load_table("matched").cells(only)
    ]
    rows = {row.entry.title: row for row in standings(entries)}
    for model, control in (
        ("rank10", "mnist-relu-as-rank10"),
        ("rank10-clipped", "mnist-relu-clipped-as-rank10"),
        ("rank10-normalised", "mnist-relu-normalised-as-rank10"),
    ):
        found = rows[model].difference_to("parameter-matched")
        assert found is not None
        assert found.to == control
    assert rows["rank10-normalised"].network.head == "rank 10, normalised input"
    assert rows["relu-normalised-as-rank10"].network.neuron == "linear, normalised input"


def test_a_matched_control_of_another_size_is_compared_with_nothing() -> None:
    entries = [
        measured(entry_of("rank4", [90.0, 91.0]), parameters=156),
        measured(entry_of("rank4-affine", [90.0, 91.0]), parameters=168),
        measured(entry_of("rank3-affine", [90.0, 91.0]), parameters=126),
        measured(entry_of("relu-as-rank4", [89.0, 90.0]), parameters=172),
    ]
    found = {
        row.entry.title: row.difference_to("parameter-matched") is not None
        for row in standings(entries)
    }
    # 172 are 2 % more than 168, and 37 % more than 126
    assert found == {
        "rank4": True,
        "rank4-affine": True,
        "rank3-affine": False,
        "relu-as-rank4": False,
    }


def test_seeds_that_were_run_otherwise_do_not_pair() -> None:
    control = entry_of("linear", [90.0, 80.0])
    assert control.run is not None
    (cell,) = UCI.cells({"dataset": ("wine",), "model": ("linear",)}, {"scaling": ("raw",)})
    seeds = tuple(
        one.model_copy(update={"key": cell.trial_key(one.seed)}) for one in control.run.seeds
    )
    run = control.run.model_copy(update={"axes": cell.axes, "seeds": seeds})
    other = measured(control.model_copy(update={"run": run}))
    rows = standings([other, entry_of("rank1", [91.0, 82.0])])
    assert [row.group for row in rows] == ["full runs", "full runs"]
    assert [row.differences for row in rows] == [(), ()]


@pytest.mark.parametrize("less", ["quick", "budget"])
def test_a_reduced_run_is_known_by_its_keys(less: Reduction) -> None:
    table = load_table("relinear")
    (cell,) = table.cells({"depth": (20,), "model": ("free",)}, reduced=less)
    entry = entry_of("linear", [80.0, 82.0])
    assert entry.run is not None
    seeds = [one.model_copy(update={"key": cell.trial_key(one.seed)}) for one in entry.run.seeds]
    facts = {"table": table.id, "version": table.version, "axes": cell.axes, "seeds": tuple(seeds)}
    run = entry.run.model_copy(update=facts)
    reduced = entry.model_copy(update={"reduced": True, "run": run})
    assert cell_of(reduced) == cell
    with pytest.raises(UserError, match=r"is not the key of seed 0 of relinear .* another recipe"):
        cell_of(reduced.model_copy(update={"reduced": False}))


def test_quick_runs_and_runs_on_a_budget_are_never_compared() -> None:
    def of(model: str, less: Reduction, accuracies: Sequence[float]) -> Entry:
        table = load_table("relinear")
        (cell,) = table.cells({"depth": (20,), "model": (model,)}, reduced=less)
        entry = entry_of("linear", accuracies)
        assert entry.run is not None
        seeds = [
            one.model_copy(update={"key": cell.trial_key(one.seed)}) for one in entry.run.seeds
        ]
        facts = {"table": table.id, "version": table.version, "axes": cell.axes}
        run = entry.run.model_copy(update={**facts, "seeds": tuple(seeds)})
        name = f"{model} {less}"
        return measured(entry.model_copy(update={"title": name, "reduced": True, "run": run}))

    rows = standings(
        [
            of("resnet", "budget", [80.0, 81.0, 82.0]),
            of("free", "budget", [83.0, 84.0, 85.0]),
            of("free", "quick", [10.0, 11.0, 12.0]),
        ]
    )
    found = {row.entry.title: (row.group, row.rank, row.difference_to("plain")) for row in rows}
    (_, _, difference) = found["free budget"]
    assert difference is not None
    assert difference.mean == pytest.approx(3.0)
    assert found["free quick"] == ("quick runs", 1, None)
    assert found["resnet budget"][:2] == ("reduced runs", 1)


def test_a_table_without_reduced_runs_has_none_on_a_board() -> None:
    entry = entry_of("linear", [80.0, 82.0])
    assert entry.run is not None
    xor = load_table("xor")
    (cell,) = xor.cells()
    facts = {"table": "xor", "version": xor.version, "axes": cell.axes}
    run = entry.run.model_copy(update=facts)
    with pytest.raises(UserError, match="table xor has no reduced runs, and the entry says that"):
        cell_of(entry.model_copy(update={"reduced": True, "run": run}))


def test_groups_are_never_ranked_with_each_other() -> None:
    poor = entry_of("linear", [50.0, 50.0])
    row = get_provenance("qresnet20.relinear_digits")
    weights = Entry(
        id="weights",
        board="uci",
        dataset="wine",  # it does not matter here on what
        title="weights",
        claim=Claim(accuracy=99.0, authors="Somebody"),
        submitted=date(2026, 1, 1),
        reduced=True,
        weights=row.name,
        provenance=row.model_copy(update={"reduced": True}),
    )
    full = {"reduced": False, "provenance": row}
    others = [
        measured(weights),
        measured(weights.model_copy(update=full | {"selection": "best on test", "title": "best"})),
        entry_of("rank3", [99.0, 99.0], measurement=None),
    ]
    rows = standings([*others, poor])
    assert [(row.entry.title, row.group, row.rank) for row in rows] == [
        ("linear", "full runs", 1),
        ("weights", "reduced runs", 1),
        ("best", "best on test", 1),
        ("rank3", "not verified", None),
    ]


@pytest.mark.parametrize("verdict", ["differs", "could not be loaded"])
def test_a_run_that_is_not_as_claimed_has_no_rank_and_no_accuracy(verdict: str) -> None:
    nothing = {"accuracy": None} if verdict == "could not be loaded" else {}
    invented = measured(entry_of("rank1", [100.0, 100.0]), verdict, difference=-9.0, **nothing)
    (row,) = standings([invented])
    assert (row.rank, row.accuracy, row.group) == (None, None, "not verified")


@pytest.mark.parametrize(
    "change",
    [
        {"reduced": True},
        {"dataset": "iris"},
        {"claim": Claim(accuracy=99.0, authors="Somebody")},
    ],
)
def test_a_measurement_is_of_what_the_entry_said_then(change: dict[str, Any]) -> None:
    entry = entry_of("rank1", [90.0, 92.0])
    assert (entry.verdict, entry.measured) == ("verified", entry.measurement)
    changed = entry.model_copy(update=change)
    assert (changed.verdict, changed.measured, changed.accuracy) == ("not verified", None, None)


def test_another_accuracy_of_a_seed_needs_another_measurement() -> None:
    entry = entry_of("rank1", [90.0, 92.0])
    assert entry.run is not None
    better = [one.model_copy(update={"accuracy": 99.0}) for one in entry.run.seeds]
    run = entry.run.model_copy(update={"seeds": tuple(better)})
    assert entry.model_copy(update={"run": run}).verdict == "not verified"


def test_one_seed_has_the_uncertainty_of_its_test_samples() -> None:
    (row,) = standings([entry_of("rank1", [100.0])])
    assert row.interval95 == pytest.approx(wilson(100.0, 36))
    lucky, steady = entry_of("rank1", [100.0]), entry_of("rank2", [98.0, 98.1, 98.2])
    assert [row.rank for row in standings([lucky, steady])] == [1, 1]


@pytest.mark.parametrize("table", table_names())
def test_every_cell_of_every_table_is_known_for_what_it_is(table: str) -> None:
    """No quadratic network passes for a control, and no control for a quadratic one."""
    for cell in load_table(table).cells():
        network = of_spec(cell.model)
        model, name = cell.model, str(cell.axes["model"])
        options = {**ARCHITECTURES.get(model.full_name, {"neuron": "linear"}), **model.options}
        quadratic = (
            model.kind in ("dense", "low_rank")
            or (model.kind == "mlp" and (model.neuron != "linear" or model.activation == "square"))
            or (
                model.kind == "zoo"
                and (
                    options.get("neuron", "quadratic") != "linear"
                    or options.get("head", "linear") != "linear"
                    or model.quadratize not in (None, "linear")
                )
            )
        )
        assert network.linear == (not quadratic), (table, name, network)
        assert network.linear or network.control is None


def test_networks_whose_depth_is_an_axis_are_what_they_are_called() -> None:
    cells = load_table("relinear").cells({"depth": (20.0,)})
    found = {str(cell.axes["model"]): of_spec(cell.model) for cell in cells}
    controls = {name: network.control for name, network in found.items() if network.linear}
    assert set(controls.values()) == {"plain", "parameter-matched"}
    assert any(network.neuron == "quadratic" for network in found.values())


def test_a_board_says_which_controls_it_lacks() -> None:
    assert missing_controls(standings([entry_of("rank1", [90.0, 91.0])])) == [
        "plain",
        "parameter-matched",
    ]
    rows = standings([entry_of("rank1", [90.0, 91.0]), entry_of("linear", [80.0, 81.0])])
    assert missing_controls(rows) == ["parameter-matched"]


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
