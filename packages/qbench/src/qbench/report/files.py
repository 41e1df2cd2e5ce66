"""A table's report from its run folder, and the files it leaves there."""

import json
from pathlib import Path

from pydantic import ValidationError

from qbench.errors import UserError, first_problem
from qbench.report.numbers import Report, build_report, to_json
from qbench.table import Cell, Reduction, Table, option_of, table_names
from qbench.trial import Result, RunFolder, in_order, write_whole


def collect(folder: RunFolder, *, reduced: Reduction | None) -> tuple[list[Cell], list[Result]]:
    """The cells of every combination of choices that has a result, and these results.

    The combination of all defaults comes first; it counts even without results.
    """
    table, recorded = folder.table, folder.recorded()
    run = {
        name: tuple(
            value
            for value in choice.values
            if value == choice.default or any(r.axes.get(name) == value for r in recorded)
        )
        for name, choice in table.unstated.items()
    }
    cells = list(table.cells(choices=run, reduced=reduced))
    results = in_order(recorded, cells)
    with_results = {_choices(table, result.axes) for result in results}
    with_results.add(tuple(table.defaults.values()))
    return [cell for cell in cells if _choices(table, cell.axes) in with_results], results


def report_of(
    folder: RunFolder, *, reduced: Reduction | None = None
) -> tuple[Report, list[Result]]:
    """The report of what the folder holds, and the results behind it.

    Raises ``UserError`` where there is no result yet.
    """
    cells, results = collect(folder, reduced=reduced)
    if not results:
        kind = "reduced results" if reduced else "results"
        command = " ".join(["qbench run", folder.table.id, *option_of(reduced)])
        other = "" if reduced else " (a reduced run is reported with --quick or --budget)"
        raise UserError(
            f"no {kind} of table {folder.table.id!r} in {str(folder.out)!r}{other}: "
            f"make them with {command} --out {folder.out}"
        )
    return build_report(folder.table, cells, results), results


def write_report(report: Report, results: list[Result], folder: RunFolder) -> Path:
    """Write ``report.json``, ``.html`` and ``.md``, and the figures; returns the path of the page.

    Those of a reduced run are called ``report-quick`` and ``figures-quick``, or ``-budget``: they
    never stand in the place of the full ones.
    """
    from qbench.report.drawing import save_figures
    from qbench.report.figures import figures_of
    from qbench.report.markdown import render_markdown
    from qbench.report.page import write_page

    suffix = suffix_of(report.reduced)
    text = json.dumps(to_json(report), indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(folder.path / f"report{suffix}.json", text + "\n")
    figures = figures_of(report, results, folder)
    drawn = save_figures(figures, folder.path / f"figures{suffix}")
    page = folder.path / f"report{suffix}.html"
    write_page(report, drawn, page)
    write_whole(folder.path / f"report{suffix}.md", render_markdown(report))
    return page


def suffix_of(reduced: Reduction | None) -> str:
    """What the names of a report's files end with.

    >>> suffix_of(None), suffix_of("budget")
    ('', '-budget')
    """
    return f"-{reduced}" if reduced else ""


def read_reports(results: Path) -> list[Report]:
    """The reports of a folder in the order of the tables: the full one of each, and the one on a
    budget where there is no other.

    Raises ``UserError`` for a file that is no report, or another version's.
    """
    kinds: tuple[Reduction | None, ...] = (None, "budget")
    found = []
    for table in table_names():
        for kind in kinds:
            path = results / table / f"report{suffix_of(kind)}.json"
            if not path.is_file():
                continue
            try:
                found.append(Report.model_validate_json(path.read_bytes()))
            except ValidationError as error:
                command = " ".join(["qbench report", table, *option_of(kind)])
                raise UserError(
                    f"{path} is no report of this version of qbench ({first_problem(error)}): make "
                    f"it again with {command} --out {results}"
                ) from error
            break
    return found


def _choices(table: Table, axes: dict[str, str | float]) -> tuple[str | float, ...]:
    return tuple(axes[name] for name in table.unstated)
