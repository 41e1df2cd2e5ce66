"""What the tables cost: measured where they were run, extrapolated for the rest."""

from collections import defaultdict

from qbench.catalogue import DATASETS
from qbench.cost import A100, cell_cost, table_cost
from qbench.report.numbers import CellReport, Report
from qbench.report.wording import format_count, format_duration, listed
from qbench.table import Cell, load_table

_HEAD = """# What the tables cost

Made by `docs/measured.py` from `results/`. A *core-hour* is an hour of one core: there were as many
processes as cores, of one thread each. *Measured* is the time of all trials in `results/`, under
whatever choices they were run. *The whole table* has all its cells and seeds under the default
choices. Where not all of it was run, its time is extrapolated: its multiply-adds are counted, and
done at the pace of those trials of the table that did not diverge, in the precision in which they
were run. The time on one A100 is an estimate from its data sheet, at 20 % of its float32 peak;
nothing was run on one. `qbench list` estimates both for the machine that it runs on.
"""
_EPOCHS = """## An epoch of CIFAR-10

50 000 training images and the test on 10 000, by one core while the other trains as well.
"""


def _pace(found: list[Report], *, networks: bool) -> tuple[float, set[str]] | None:
    """Multiply-adds per second of a core, and the precisions in which they were done; None where
    no trial of that kind was run to its end."""
    work, seconds, precisions = 0.0, 0.0, set()
    for report in found:
        table = load_table(report.table)
        for measured in report.cells:
            cell = Cell(table, measured.axes, report.reduced)
            cost = cell_cost(cell, measured.trials)
            if measured.diverged or bool(cost.networks) != networks or not cost.multiply_adds:
                continue
            work += cost.multiply_adds
            seconds += measured.seconds * report.threads
            precisions.add(cell.recipe.precision)
    return (work / seconds, precisions) if seconds else None


def _here(name: str, found: list[Report]) -> str:
    """Core-hours of the whole table: measured where it was run, else extrapolated."""
    table = load_table(name)
    whole = table_cost(table)
    default = [
        (report.threads, cell)
        for report in found
        if not report.reduced
        for cell in report.cells
        if table.defaults.items() <= cell.axes.items()
    ]
    if sum(cell.trials for _, cell in default) >= whole.trials:
        return format_hours(sum(threads * cell.seconds for threads, cell in default) / 3600)
    parts = {True: whole.networks, False: whole.forms}
    hours, precisions = 0.0, set()
    for kind, multiply_adds in parts.items():
        if not multiply_adds:
            continue
        if (pace := _pace(found, networks=kind)) is None:
            return "not measured"
        hours += multiply_adds / pace[0] / 3600
        precisions |= pace[1]
    said = "" if precisions == {"float32"} else f", {listed(sorted(precisions))}"
    return f"{format_hours(hours)} (extrapolated{said})"


def _row(name: str, found: list[Report]) -> str:
    whole = table_cost(load_table(name))
    cells = [
        f"`{name}`",
        format_count(sum(report.recorded for report in found)),
        format_hours(sum(map(_core_seconds, found)) / 3600),
        format_count(whole.trials),
        f"{whole.multiply_adds:.0e}" if whole.multiply_adds else "–",
        _here(name, found),
        format_duration(whole.hours(A100) * 3600),
    ]
    return f"| {' | '.join(cells)} |"


def _core_seconds(report: Report) -> float:
    return report.seconds * report.threads


def format_hours(hours: float) -> str:
    """Hours with two digits.

    >>> format_hours(0.0312), format_hours(7.25), format_hours(123.4)
    ('0.031', '7.2', '120')
    """
    digits = float(f"{hours:.2g}")
    return format_count(round(digits)) if digits >= 10 else f"{digits:g}"


def tables(found: list[Report]) -> str:
    """A row for each table that was run, and their sum."""
    reports: dict[str, list[Report]] = defaultdict(list)
    for report in found:
        reports[report.table].append(report)
    lines = [
        "| table | trials | measured, core-hours | trials of the whole table | its multiply-adds | "
        "its core-hours here | on one A100, estimated |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(_row(name, of_table) for name, of_table in reports.items()),
    ]
    trials = format_count(sum(report.recorded for report in found))
    hours = format_hours(sum(map(_core_seconds, found)) / 3600)
    machines = listed(sorted({str(report.hardware.get("cpu")) for report in found}))
    return (
        "\n".join(lines) + f"\n\nTogether {trials} trials in {hours} core-hours, on {machines}.\n"
    )


def epochs(found: list[Report]) -> str:
    """A row for each network that was trained on CIFAR-10: an epoch, and the published training."""
    lines = [
        "| network | precision | images per second | an epoch | 200 epochs |",
        "|---|---|---:|---:|---:|",
    ]
    samples = DATASETS["cifar10"].train
    rows: dict[tuple[str, str], tuple[CellReport, float]] = {}
    for report in found:
        table = load_table(report.table)
        for measured in report.cells:
            cell = Cell(table, measured.axes, report.reduced)
            rate = measured.samples_per_second
            if cell.dataset == "cifar10" and rate and cell.zoo_name:
                rows.setdefault((cell.zoo_name, cell.recipe.precision), (measured, rate))
    for (name, precision), (_, rate) in sorted(rows.items(), key=lambda row: -row[1][1]):
        seconds = samples / rate
        cells = [f"`{name}`", precision, f"{rate:,.0f}", f"{seconds:.0f} s"]
        lines.append(f"| {' | '.join([*cells, format_duration(200 * seconds)])} |")
    return "\n".join(lines) + "\n"


def page(found: list[Report]) -> str:
    """The page: tables, then epochs of CIFAR-10."""
    return f"{_HEAD}\n{tables(found)}\n{_EPOCHS}\n{epochs(found)}"
