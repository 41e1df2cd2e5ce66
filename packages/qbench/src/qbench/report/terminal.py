"""The report on the terminal."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from qbench.metrics import QUANTITIES
from qbench.report.claims import LEVEL, ClaimReport
from qbench.report.numbers import CellReport, Choices, Report
from qbench.report.wording import (
    VERDICTS,
    Tone,
    Verdict,
    format_count,
    format_interval,
    format_number,
    format_p,
    format_value,
    metric_name,
    metric_with_unit,
)

_STYLES: dict[Tone, str] = {"good": "green", "bad": "red", "open": "yellow", "none": "dim"}

_WIDE = 120
"""Columns of a terminal that hold intervals and costs, too."""

_SIDE_BY_SIDE = 4
"""Combinations of choices in one grid."""


def print_report(report: Report, console: Console) -> None:
    """Print the report: notes, one table per panel, the claims, and what the open choices do."""
    console.print(render(report, wide=console.width >= _WIDE))


def render(report: Report, *, wide: bool) -> RenderableType:
    """The report as something rich can print; ``wide`` with intervals and costs."""
    parts: list[RenderableType] = [
        Text.assemble((report.title, "bold"), f"  ({report.paper}, {report.shows})")
    ]
    for style, lines in (("bold red", report.warnings), ("yellow", report.notes)):
        parts += [Padding(Text(line, style=style), (0, 0, 0, 2)) for line in lines]
    main = report.combinations[0]
    for panel in report.panels:
        rows = [
            cell for cell in report.cells if cell.panel == panel and report.choices_of(cell) == main
        ]
        if rows:
            parts.append(_panel_grid(report, panel, rows, wide=wide))
    if len(report.combinations) > 1:
        parts += _choices_grids(report)
    parts += _claims_grids(report)
    parts.append(Text(_closing(report), style="dim"))
    return Group(*parts)


def _closing(report: Report) -> str:
    return (
        "mean ± std over n seeds; loss: of training; Δ and p against the control: paired t-test, "
        "Holm over all cells of the same choices (in claims: over the claims).\n"
        f"{', '.join(f'{symbol} {verdict}' for verdict, (symbol, _) in VERDICTS.items())} "
        f"(not decided: p ≥ {LEVEL:g}).\n"
        f"{report.recorded} trials, {report.seconds:.0f} s of training on {report.machines}, "
        f"{report.threads} thread{'s' * (report.threads != 1)}, torch {report.versions['torch']}, "
        f"commit {(report.commit or 'unknown')[:10]}.\nAgain: {report.command}"
    )


def _panel_grid(report: Report, panel: str, cells: Sequence[CellReport], *, wide: bool) -> Grid:
    choices = report.choices_of(cells[0])
    shown = ", ".join(f"{name}={format_value(value)}" for name, value in choices)
    grid = _grid(f"{panel} ({shown})" if shown else panel)
    grid.add_column("model", no_wrap=True)
    # the unit below: every character counts where 80 columns hold claims too
    heading = metric_with_unit(cells[0].metric).replace(" (", "\n(")
    grid.add_column(heading, justify="right")
    grid.add_column("n", justify="right")
    if wide:
        grid.add_column("95 %", justify="right", no_wrap=True)
    has_control = any(cell.difference is not None for cell in cells)
    if has_control:
        grid.add_column("Δ", justify="right", no_wrap=True)
        grid.add_column("p", justify="right", no_wrap=True)
    columns = report.columns[:3]  # 80 characters hold no more; the page and the JSON have all
    for name in columns:
        grid.add_column(QUANTITIES[name].short or metric_name(name), justify="right")
    if wide:
        for heading in ("parameters", "multiply-\nadds", "seconds"):
            grid.add_column(heading, justify="right")
    grid.add_column("the paper claims")
    for cell in cells:
        row: list[RenderableType] = [str(cell.axes["model"]), _mean(cell), str(cell.n)]
        if wide:
            row.append(format_interval(cell.interval95, cell.metric))
        if has_control:
            gap = cell.difference
            row.append("" if gap is None else format_number(gap, cell.metric, sign=True))
            row.append(format_p(cell.p_value))
        for name in columns:
            other = cell.others.get(name)
            row.append("" if other is None else format_number(other.mean, name))
        if wide:
            row += [format_count(cell.parameters), format_count(cell.multiply_adds)]
            row.append(f"{cell.seconds:.1f}")
        grid.add_row(*row, _claimed(cell, report))
    return grid


def _grid(title: str) -> Grid:
    return Grid(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )


def _claimed(cell: CellReport, report: Report) -> Text:
    parts = [
        Text.assemble(_symbol(claim.verdict), f" {claim.short}") for claim in report.claims_of(cell)
    ]
    return Text("\n").join(parts)


def _choices_grids(report: Report) -> Iterator[Grid]:
    """The means under every combination of choices, side by side as far as 80 columns go."""
    varied = ", ".join(report.varied)
    metric = metric_with_unit(report.cells[0].metric)
    by_place = {
        (cell.panel, cell.axes["model"], report.choices_of(cell)): cell for cell in report.cells
    }
    # names of choices stand in the heads where several vary, and need room
    most = _SIDE_BY_SIDE if len(report.varied) == 1 else _SIDE_BY_SIDE - 1
    for first in range(0, len(report.combinations), most):
        combinations = report.combinations[first : first + most]
        grid = _grid(f"What the paper leaves open decides: {metric} by {varied}")
        grid.add_column("panel", no_wrap=True)
        grid.add_column("model", no_wrap=True)
        for choices in combinations:
            grid.add_column(_heading(report, choices), justify="right")
        for panel in report.panels:
            for model in report.models:
                cells = [by_place.get((panel, model, choices)) for choices in combinations]
                if any(cells):
                    grid.add_row(panel, model, *("" if c is None else _brief(c) for c in cells))
            grid.add_section()
        yield grid


def _claims_grids(report: Report) -> Iterator[Grid]:
    """A grid for each claim: one row per panel, the verdicts under every combination; a row per
    combination where these are many."""
    alone = len(report.combinations) == 1
    # the same may be claimed in two places, of other panels
    for statement, source in dict.fromkeys((c.statement, c.source) for c in report.claims):
        claims = [c for c in report.claims if (c.statement, c.source) == (statement, source)]
        word = "Claim" if claims[0].of_paper else "Question"
        grid = _grid(f"{word}: {statement}  ({source})")
        by_place = {(claim.panel, tuple(claim.choices.items())): claim for claim in claims}
        panels = list(dict.fromkeys(claim.panel for claim in claims))
        rows: list[tuple[str, list[ClaimReport | None]]]
        if len(report.combinations) > _SIDE_BY_SIDE:
            grid.add_column("choices")
            for panel in panels:
                grid.add_column(panel or "verdict")
            rows = [
                (report.label([choices]), [by_place.get((panel, choices)) for panel in panels])
                for choices in report.combinations
            ]
        else:
            grid.add_column("panel")
            for choices in report.combinations:
                grid.add_column(_heading(report, choices) or "verdict")
            rows = [
                (str(panel), [by_place.get((panel, choices)) for choices in report.combinations])
                for panel in panels
            ]
        if alone:
            grid.add_column("measured")
        for name, found in rows:
            why = [found[0].why] if alone and found[0] else []
            grid.add_row(name, *(_verdict(claim, alone) for claim in found), *why)
        yield grid


def _heading(report: Report, choices: Choices) -> str:
    """A combination as the head of a narrow column: values without names where these are clear."""
    if len(report.varied) < 2 or choices == report.combinations[0]:
        return ", ".join(format_value(value) for _, value in report.departures(choices))
    return report.label([choices])


def _verdict(claim: ClaimReport | None, in_words: bool) -> Text:
    verdict = claim.verdict if claim else "not tested"
    return Text.assemble(_symbol(verdict), f" {verdict}" if claim and in_words else "")


def _symbol(verdict: Verdict) -> tuple[str, str]:
    symbol, tone = VERDICTS[verdict]
    return symbol, _STYLES[tone]


def _mean(cell: CellReport) -> Text:
    """Mean and spread, and how many trials diverged between which steps."""
    brief = _brief(cell)
    if cell.diverged_at is None:
        return brief
    first, last = cell.diverged_at
    steps = f" at step {first}" + (f"–{last}" if last != first else "")
    return Text.assemble(brief, (steps, "red"))


def _brief(cell: CellReport) -> Text:
    """Mean and spread, and how many trials diverged."""
    parts = []
    if cell.mean is not None:
        spread = "" if cell.std is None else f" ± {format_number(cell.std, cell.metric)}"
        parts.append(Text(f"{format_number(cell.mean, cell.metric)}{spread}"))
    if cell.diverged:
        lost = f"{cell.diverged}/{cell.trials} diverged"
        parts.append(Text(lost, style="red"))
    return Text("; ").join(parts)
