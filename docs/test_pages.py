"""Every example of every page runs, and every command that a page shows is one that there is."""

import re
import shlex
from pathlib import Path

import costs
import figures
import measured
import pytest
import typer
from latex2mathml.converter import convert

from qbench.cli import app as qbench_app
from qbench.cost import stored_costs
from qbench.leaderboard.entry import read_entries
from qbench.report.claims import judge
from qbench.report.drawing import to_svg
from qbench.report.wording import format_count
from qbench.table import load_table, table_names
from qzoo.cli import app as qzoo_app
from qzoo.index import package_index

HERE = Path(__file__).parent
PAGES = [
    HERE.parent / "README.md",
    HERE.parent / "CONTRIBUTING.md",
    *sorted(
        path
        for path in HERE.rglob("*.md")
        if not {"_build", "tutorials", "generated"} & set(path.parts)
    ),
]
COMMANDS = {"qbench": qbench_app, "qzoo": qzoo_app}


def name_of(path: Path) -> str:
    return path.relative_to(HERE.parent).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_examples_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(code, str(page), "exec"), names)  # noqa: S102 - the page's own code


def prose(text: str) -> str:
    """A page without its blocks of code; what stands below a figure is no code."""
    block = r"^```(?:(\{figure\}.*?)|.*?)^```$"
    return re.sub(block, r"\1", text, flags=re.DOTALL | re.MULTILINE)


def formulas_of(text: str) -> list[str]:
    """The formulas of a page, which are between dollar signs, and not in code."""
    text = re.sub(r"`[^`\n]*`", "", prose(text))
    return [a or b for a, b in re.findall(r"\$\$(.+?)\$\$|\$([^$]+)\$", text, re.DOTALL)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_formula_is_shown_as_it_was_written(page: Path) -> None:
    """What the converter does not know it leaves as it is."""
    formulas = formulas_of(page.read_text(encoding="utf-8"))
    assert [formula for formula in formulas if "\\" in convert(formula)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_line_of_a_page_is_taken_for_a_comment(page: Path) -> None:
    """One that begins with a percent sign is not shown, as where a paragraph is wrapped there."""
    text = prose(page.read_text(encoding="utf-8"))
    assert [line for line in text.splitlines() if line.lstrip().startswith("%")] == []


def test_a_formula_that_the_converter_does_not_know_is_seen() -> None:
    (formula,) = formulas_of("`$HOME` is no formula, $\\bigl\\langle a \\bigr\\rangle$ is one")
    assert "\\langle" in convert(formula)


def test_formulas_are_found_below_a_figure_and_after_it_and_not_in_code() -> None:
    text = "```{figure} a.svg\n\n$a$\n```\n\n$b$\n\n```sh\necho $c $d\n```\n\n$e$\n"
    assert formulas_of(text) == ["a", "b", "e"]


def commands_of(text: str) -> list[str]:
    """The commands of ours in what a page shows of a shell, without what stands around them."""
    shown = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    shown += re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)
    start = re.compile(r"^(?:[A-Z_]+=\S+ )*(?:uv run )?(?=(?:qbench|qzoo) )")
    parts = re.split(r"\n|&&", "\n".join(shown))
    lines = [part.partition("#")[0].strip() for part in parts]
    return [start.sub("", line) for line in lines if start.match(line)]


def test_commands_are_found_wherever_a_page_shows_them() -> None:
    text = (
        "```sh\nA_B=x uv run qzoo list  # all\n```\nand\n    pip install uv && uv run qbench list\n"
    )
    assert commands_of(text) == ["qzoo list", "qbench list"]
    assert len(commands_of(measured.README.read_text(encoding="utf-8"))) == 10


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    for line in commands_of(page.read_text(encoding="utf-8")):
        program, *rest = shlex.split(line)
        command = typer.main.get_command(COMMANDS[program])
        while isinstance(command, typer.core.TyperGroup):
            name, *rest = rest
            assert name in command.commands, line
            command = command.commands[name]
        command.make_context(command.name, rest)


def test_the_readmes_table_and_picture_are_what_was_measured_and_drawn() -> None:
    text = measured.README.read_text(encoding="utf-8")
    found = measured.reports()
    assert found
    assert text == measured.with_table(text, measured.summary(found)), (
        "results/ has changed: uv run python docs/measured.py"
    )
    claims = measured.CLAIMS.read_text(encoding="utf-8")
    assert claims.endswith(f"\n{measured.page(found)}")
    assert measured.COSTS.read_text(encoding="utf-8") == costs.page(figures.every_report())
    assert measured.PICTURE.read_text(encoding="utf-8") == to_svg(figures.neuron())


def test_every_claim_of_the_papers_stands_on_the_page_whether_it_was_tested_or_not() -> None:
    sections = measured.page(measured.reports()).split("\n## ")
    by_title = {section.removeprefix("## ").splitlines()[0]: section for section in sections}
    for table in map(load_table, table_names()):
        for claim in judge(table, table.defaults, [], None):
            if claim.of_paper:
                statement = claim.statement.replace("|", "\\|")
                assert f"| {statement} on " in by_title[table.title]


def test_entries_of_the_leaderboard_say_what_the_results_do() -> None:
    entries = read_entries(HERE.parent / "leaderboard")
    runs = [(entry, entry.run) for entry in entries if entry.run is not None]
    assert runs
    for entry, run in runs:
        (cell,) = (
            cell
            for report in figures.every_report()
            if (report.table, report.version) == (run.table, run.version)
            and (report.reduced is not None) == entry.reduced
            for cell in report.cells
            if run.axes.items() <= cell.axes.items()
        )
        assert (entry.claim.accuracy, len(run.seeds)) == (cell.mean, cell.trials), entry.id
        assert (run.parameters, run.multiply_adds) == (cell.parameters, cell.multiply_adds)


def test_every_set_of_weights_was_verified_on_the_leaderboard() -> None:
    entries = {entry.weights: entry for entry in read_entries(HERE.parent / "leaderboard")}
    rows = package_index()
    assert rows
    for row in rows.values():
        entry = entries[row.name]
        assert entry.measurement is not None
        assert entry.provenance is not None
        assert entry.measurement.verdict == "verified"
        assert entry.provenance.sha256 == row.sha256
        assert row.evaluation is not None
        assert entry.claim.accuracy == row.evaluation.top1


def test_models_stand_in_the_order_of_their_accuracy_with_what_was_measured() -> None:
    (report,) = (report for report in measured.reports() if report.table == "fmnist")
    rows = [
        [part.strip() for part in line.strip("|").split("|")]
        for line in measured.accuracies(report).splitlines()
        if line.startswith("| `")
    ]
    found = {str(cell.axes["model"]): cell for cell in report.cells}
    assert sorted(name.strip("`") for name, *_ in rows) == sorted(found)
    means = [found[name.strip("`")].mean or 0.0 for name, *_ in rows]
    assert means == sorted(means, reverse=True)
    for name, accuracy, parameters, _ in rows:
        cell = found[name.strip("`")]
        assert accuracy == f"{cell.mean:.1f} ± {cell.std:.1f} ({cell.n})"
        assert parameters == format_count(cell.parameters)


def test_a_model_has_a_column_for_each_way_in_which_it_was_run() -> None:
    (report,) = (report for report in measured.reports() if report.table == "neurons")
    text = measured.accuracies(report)
    assert "| on digits32 | clipping = 0.5 | clipping = none | parameters |" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| `quadratic` |"))
    first, second = (
        next(
            cell
            for cell in report.cells
            if (cell.axes["model"], cell.axes["clipping"]) == ("quadratic", clipping)
        )
        for clipping in ("0.5", "none")
    )
    shown = [part.strip() for part in row.strip("|").split("|")]
    assert shown[1] == f"{first.mean:.1f} ± {first.std:.1f} ({first.n})"
    assert shown[2] == f"{second.mean:.1f} ({second.n}, {second.diverged} diverged)"


def cost_row(table: str) -> list[str]:
    lines = costs.tables(figures.every_report()).splitlines()
    (row,) = (line for line in lines if line.startswith(f"| `{table}` |"))
    return [part.strip() for part in row.strip("|").split("|")]


def test_the_cost_of_a_table_that_was_run_in_full_is_what_was_measured() -> None:
    (report,) = (report for report in measured.reports() if report.table == "rank")
    _, trials, spent, whole_trials, _, here, _ = cost_row("rank")
    assert trials == whole_trials == format_count(report.recorded)
    assert here == spent == costs.format_hours(sum(map(report.core_seconds, report.cells)) / 3600)


def test_the_cost_of_the_rest_goes_by_the_pace_of_what_was_run() -> None:
    """Forward and twice that backward on each training image, and forward on each test image: 12
    epochs of digits in full runs, 10 of CIFAR-10 on a budget."""
    images = {None: 12 * (3 * 1437 + 360), "budget": 10 * (3 * 50_000 + 10_000)}
    done = hours = 0.0
    for report in figures.every_report():
        if report.table == "combined":
            finished = [cell for cell in report.cells if not cell.diverged]
            done += sum(images[report.reduced] * c.trials * c.multiply_adds for c in finished)
            hours += sum(map(report.core_seconds, finished)) / 3600
    whole = stored_costs()["combined"].multiply_adds
    *_, adds, here, _ = cost_row("combined")
    assert adds == f"{whole:.0e}"
    said = "extrapolated from bfloat16 and float32"
    assert here == f"{costs.format_hours(whole / (done / hours))} ({said})"


def test_every_table_has_a_cost_whether_it_was_run_or_not() -> None:
    run = {report.table for report in figures.every_report()}
    for name in table_names():
        _, trials, spent, whole, _, here, _ = cost_row(name)
        assert (trials != "") == (spent != "") == (name in run)
        assert whole == format_count(stored_costs()[name].trials)
        assert float(here.split(" (")[0].replace("\u202f", "")) > 0


def test_there_are_pages() -> None:
    assert len(PAGES) > 8
