"""The report on the terminal."""

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from qbench.report.claims import ClaimReport, Verdict
from qbench.report.numbers import CellReport, Report
from qbench.table import Scalar

_SYMBOLS: dict[Verdict, tuple[str, str]] = {
    "holds": ("✓", "green"),
    "does not hold": ("✗", "red"),
    "not decided": ("?", "yellow"),
    "not tested": ("–", "dim"),
}


def print_report(report: Report, console: Console) -> None:
    """Print the report: notes, one table per dataset, the claims, and what the open choices do."""
    console.print(render(report))


def render(report: Report) -> RenderableType:
    """The report as something rich can print."""
    parts: list[RenderableType] = [
        Text.assemble((report.title, "bold"), f"  ({report.paper}, {report.shows})")
    ]
    for note in report.notes:
        style = "bold red" if note.startswith(("REDUCED", "PARTIAL")) else "yellow"
        parts.append(Padding(Text(note, style=style), (0, 0, 0, 2)))
    combinations = _combinations(report.cells)
    main = combinations[0]
    for dataset in _datasets(report.cells):
        cells = [c for c in report.cells if c.axes["dataset"] == dataset]
        rows = [cell for cell in cells if _choices(cell, report) == main]
        if rows:
            parts.append(_dataset_grid(report, str(dataset), rows))
    if len(combinations) > 1:
        parts.append(_choices_grid(report, combinations))
    parts += _claims_grids(report, combinations)
    parts.append(Text(_closing(report), style="dim"))
    return Group(*parts)


def _closing(report: Report) -> str:
    cpu = f"{report.hardware.get('cpu', 'unknown processor')}, {report.threads} threads"
    return (
        "mean ± std over n seeds; loss: training; Δ and p against the control: paired t-test, Holm "
        "over all cells of the same choices.\n"
        f"✓ holds, ✗ does not hold, ? not decided (p ≥ 0.05), – not tested.\n"
        f"{report.recorded} trials, {report.seconds:.0f} s of training on "
        f"{report.hardware.get('gpu', cpu)}, torch {report.versions['torch']}."
    )


def _dataset_grid(report: Report, dataset: str, cells: Sequence[CellReport]) -> Grid:
    shown = ", ".join(f"{name}={value}" for name, value in _choices(cells[0], report))
    metric = cells[0].metric.replace("_", " ") + (
        " %" if cells[0].metric.endswith("accuracy") else ""
    )
    grid = _grid(f"{dataset} ({shown})")
    grid.add_column("model", no_wrap=True)
    grid.add_column(metric, justify="right")
    grid.add_column("n", justify="right")
    has_control = any(cell.difference is not None for cell in cells)
    if has_control:
        grid.add_column("Δ", justify="right", no_wrap=True)
        grid.add_column("p", justify="right", no_wrap=True)
    grid.add_column("loss", justify="right", no_wrap=True)
    grid.add_column("the paper claims")
    for cell in cells:
        row: list[RenderableType] = [str(cell.axes["model"]), _mean(cell), str(cell.n)]
        if has_control:
            row += [
                "" if cell.difference is None else f"{cell.difference:+.1f}",
                "" if cell.p_value is None else _p_value(cell.p_value),
            ]
        loss = cell.others.get("train_loss")
        grid.add_row(*row, "" if loss is None else f"{loss.mean:.3f}", _claimed(cell, report))
    return grid


def _grid(title: str) -> Grid:
    return Grid(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )


def _claimed(cell: CellReport, report: Report) -> Text:
    parts = []
    if cell.claim is not None:
        spread = f" ± {cell.claim.spread:g}" if cell.claim.spread is not None else ""
        parts.append(Text(f"{cell.claim.value:g}{spread}"))
    for claim in report.claims:
        same = all(cell.axes[name] == value for name, value in claim.choices.items())
        if same and claim.dataset == cell.axes["dataset"] and claim.subject == cell.axes["model"]:
            symbol, style = _SYMBOLS[claim.verdict]
            parts.append(Text.assemble((symbol, style), f" {claim.short}"))
    return Text("\n").join(parts)


def _choices_grid(report: Report, combinations: Sequence[tuple[tuple[str, Scalar], ...]]) -> Grid:
    varied = [name for name, values in report.choices.items() if len(values) > 1]
    metric = report.cells[0].metric.replace("_", " ")
    grid = _grid(f"What the paper leaves open decides: {metric} by {', '.join(varied)}")
    grid.add_column("dataset")
    grid.add_column("model", no_wrap=True)
    for combination in combinations:
        label = ", ".join(str(value) for name, value in combination if name in varied)
        grid.add_column(label, justify="right", no_wrap=True)
    by_place = {
        (cell.axes["dataset"], cell.axes["model"], _choices(cell, report)): cell
        for cell in report.cells
    }
    for dataset in _datasets(report.cells):
        models = dict.fromkeys(c.axes["model"] for c in report.cells)
        for model in models:
            cells = [by_place.get((dataset, model, combination)) for combination in combinations]
            if any(cells):
                grid.add_row(
                    str(dataset), str(model), *("" if c is None else _mean(c) for c in cells)
                )
        grid.add_section()
    return grid


def _claims_grids(
    report: Report, combinations: Sequence[tuple[tuple[str, Scalar], ...]]
) -> Iterator[Grid]:
    """A grid for each claim: one row per dataset, the verdicts under every combination."""
    varied = [name for name, values in report.choices.items() if len(values) > 1]
    alone = len(combinations) == 1
    for statement in dict.fromkeys(claim.statement for claim in report.claims):
        claims = [claim for claim in report.claims if claim.statement == statement]
        grid = _grid(f"Claim: {statement}  ({claims[0].source})")
        grid.add_column("dataset")
        for combination in combinations:
            label = ", ".join(str(value) for name, value in combination if name in varied)
            grid.add_column(label or "verdict")
        if alone:
            grid.add_column("measured")
        by_place = {(claim.dataset, tuple(claim.choices.items())): claim for claim in claims}
        for dataset in dict.fromkeys(claim.dataset for claim in claims):
            found = [by_place.get((dataset, combination)) for combination in combinations]
            row: list[RenderableType] = [str(dataset), *(_verdict(c, alone) for c in found)]
            grid.add_row(*row, *([found[0].why] if alone and found[0] else []))
        yield grid


def _verdict(claim: ClaimReport | None, in_words: bool) -> Text:
    symbol, style = _SYMBOLS[claim.verdict if claim else "not tested"]
    words = f" {claim.verdict}" if claim and in_words else ""
    return Text(symbol + words, style=style)


def _mean(cell: CellReport) -> Text:
    diverged = Text()
    if cell.diverged:
        diverged = Text(f"{cell.diverged} of {cell.diverged + cell.n} diverged", style="red")
        if cell.diverged_at is not None:
            first, last = cell.diverged_at
            diverged.append(f" at step {first}" + (f"–{last}" if last != first else ""))
    if cell.mean is None:
        return diverged
    digits = 1 if cell.metric.endswith("accuracy") else 4
    spread = "" if cell.std is None else f" ± {cell.std:.{digits}f}"
    text = Text(f"{cell.mean:.{digits}f}{spread}")
    return Text.assemble(diverged, "; ", text) if cell.diverged else text


def _p_value(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _choices(cell: CellReport, report: Report) -> tuple[tuple[str, Scalar], ...]:
    return tuple((name, cell.axes[name]) for name in report.choices)


def _combinations(cells: Iterable[CellReport]) -> list[tuple[tuple[str, Scalar], ...]]:
    grid = ("dataset", "model")
    return list(
        dict.fromkeys(
            tuple((name, value) for name, value in cell.axes.items() if name not in grid)
            for cell in cells
        )
    )


def _datasets(cells: Iterable[CellReport]) -> list[Scalar]:
    return list(dict.fromkeys(cell.axes["dataset"] for cell in cells))
