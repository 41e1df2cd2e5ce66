"""What stands on the terminal."""

import io
import re

import pytest
from rich.console import Console

from qbench.block import plan
from qbench.executors import run_blocks
from qbench.report.files import report_of
from qbench.report.numbers import Report
from qbench.report.terminal import print_report
from qbench.report.wording import format_interval
from qbench.table import load_table
from qbench.trial import RunFolder

UCI = load_table("uci")
ONLY = {"dataset": ("wine",), "model": ("linear", "rank1", "dense")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    made = RunFolder(tmp_path_factory.mktemp("runs"), UCI, create=True)
    cells = UCI.cells(ONLY, {"scaling": ("maxabs", "raw")}, reduced="quick")
    for _ in run_blocks(made, plan(made, cells, 2)):
        pass
    return made


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of five combinations of two choices, which are no product."""
    made = RunFolder(tmp_path_factory.mktemp("runs"), UCI, create=True)
    only = {"dataset": ("iris", "wine"), "model": ("linear", "dense")}
    for axes in (
        {"scaling": ("maxabs", "standard"), "test_fraction": (0.2, 0.5)},
        {"test_fraction": (0.1,)},
    ):
        for _ in run_blocks(made, plan(made, UCI.cells(only, axes, reduced="quick"), 1)):
            pass
    return report_of(made, reduced="quick")[0]


def printed(folder: RunFolder, width: int) -> str:
    report, _ = report_of(folder, reduced="quick")
    return as_printed(report, width)


def as_printed(report: Report, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), no_color=True)
    print_report(report, console)
    return console.file.getvalue()


def test_claim_and_measurement_stand_side_by_side(folder: RunFolder) -> None:
    report, _ = report_of(folder, reduced="quick")
    text = printed(folder, 140)
    for cell in report.cells:
        if cell.mean is not None and cell.std is not None:
            assert f"{cell.mean:.1f} ± {cell.std:.1f}" in text
    assert "accuracy > linear" in text
    assert "REDUCED RUN" in text
    assert "PARTIAL" in text
    for cell in report.cells:
        if report.choices_of(cell) == report.combinations[0]:
            assert format_interval(cell.interval95, cell.metric) in text
            assert f" {cell.parameters} " in text
    said = " ".join(text.split())
    assert f"Again: {report.command}" in said
    assert f"commit {(report.commit or 'unknown')[:10]}" in said


def test_divergence_is_shown_in_place_of_the_mean(folder: RunFolder) -> None:
    text = printed(folder, 140)
    assert "2/2 diverged" in text
    assert "2 of 12 trials diverged (a loss that is not finite, or has exploded) at step" in text


def test_choices_stand_side_by_side(folder: RunFolder) -> None:
    text = printed(folder, 140)
    # a title wraps to the width of its grid
    assert "What the paper leaves open decides: test accuracy (%) by scaling" in " ".join(
        text.split()
    )
    assert "maxabs" in text
    assert "raw" in text


def test_of_several_choices_a_combination_is_named_by_what_tells_it_from_the_first(
    many: Report,
) -> None:
    labels = [many.label([choices]) for choices in many.combinations]
    assert labels == [
        "scaling = maxabs, test_fraction = 0.2",
        "test_fraction = 0.1",
        "test_fraction = 0.5",
        "scaling = standard",
        "scaling = standard, test_fraction = 0.5",
    ]
    of_all = "; ".join([labels[0], "test_fraction = 0.1, 0.5", *labels[3:]])
    assert many.label(many.combinations) == of_all
    assert (
        "Combinations of choices are named by what tells them from the first: "
        "scaling = maxabs, test_fraction = 0.2."
    ) in many.notes


def test_no_head_of_a_combination_is_cut(many: Report) -> None:
    text = as_printed(many, 80)
    start = text.index("What the paper leaves open decides")
    assert "…" not in text[start : text.index("Claim:", start)]


def test_many_combinations_are_rows_of_a_claim_none_of_them_cut(many: Report) -> None:
    claim = many.claims[0].model_copy(update={"verdict": "holds"})
    claims = [
        claim.model_copy(
            update={"panel": panel, "choices": dict(choices), "verdict": verdict},
        )
        for choices in many.combinations
        for panel, verdict in (("iris", "holds"), ("wine", "does not hold"))
    ]
    text = as_printed(many.model_copy(update={"claims": claims}), 80)
    shown = text[text.index(f"Claim: {claim.statement}") :]
    assert "iris  wine" in shown
    for choices in many.combinations:
        assert re.search(rf"^ {many.label([choices])} +✓ +✗ *$", shown, re.MULTILINE)


def test_what_two_sources_claim_stands_under_each_with_its_own_verdict(folder: RunFolder) -> None:
    report, _ = report_of(folder, reduced="quick")
    first = report.claims[0]
    claims = [
        first.model_copy(update={"source": source, "verdict": verdict})
        for source, verdict in (("Figure 1", "holds"), ("Footnote 2", "does not hold"))
    ]
    text = " ".join(as_printed(report.model_copy(update={"claims": claims}), 140).split())
    _, at_first, at_second = text.split(f"Claim: {first.statement}")
    assert at_first.startswith(" (Figure 1) ")
    assert f" {first.panel} ✓ " in at_first
    assert at_second.startswith(" (Footnote 2) ")
    assert f" {first.panel} ✗ " in at_second


@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_line_is_wider_than_the_terminal(folder: RunFolder, width: int) -> None:
    assert max(len(line) for line in printed(folder, width).splitlines()) <= width
