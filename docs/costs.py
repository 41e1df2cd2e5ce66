"""What the tables cost: measured where they were run, extrapolated for the rest."""

import math
from collections import defaultdict
from collections.abc import Sequence

from qbench.catalogue import DATASETS
from qbench.cost import A100, A100_STEP, A100_UTILISATION, TRIAL, cell_cost, table_cost
from qbench.leaderboard.standings import of_spec
from qbench.report.numbers import Report
from qbench.report.wording import format_count, listed
from qbench.table import Cell, load_table, table_names

_HEAD = f"""# What the tables cost

Made by `docs/measured.py` from `results/`. A *core-hour* is an hour of one core: trials run side by
side, so that a hundred cores take a hundredth of the time. Here there were two, mostly each with a
process of one thread. The time of a trial that went on with other threads than it began with counts
with those that it ended with.

*Measured* are all trials in `results/`, under whatever choices they were run, reduced ones too.
*The whole table* has all its cells and seeds under the default choices. Where these were run, its
hours are theirs. Else they are extrapolated: its multiply-adds are counted, and done at the pace of
those cells in which nothing diverged, of the table itself where it has some, else of all tables.
Networks were mostly run in bfloat16, for which these processors have instructions; float32 takes
them several times as long. The hours on an A100 are no measurement but its data sheet's float32
without tensor cores, of which {A100_UTILISATION:.0%} are assumed to be reached, with
{1000 * A100_STEP:g} ms a step and {TRIAL:g} s a trial, assumed as well, which are nearly all of it
for classifiers.

Less: `--only` takes a part of a table, such as `--only depth=20`; `--budget` a shorter training and
`--quick` minutes, both marked as reduced; `--axis precision=bfloat16` what half precision saves.
`qbench list` estimates the hours of each table for the machine that it runs on.
"""
_EPOCHS = """## An epoch of CIFAR-10

50 000 training images and the test on 10 000, on one core while a second training runs on the
other; where a network was trained in several tables, the slowest and the fastest. Some of the
slowest had tests of the software beside them as well: the fastest are what a machine of one's own
does.
"""


def _core_hours(reports: Sequence[Report]) -> float:
    return sum(report.core_seconds(cell) for report in reports for cell in report.cells) / 3600


def _pace(found: Sequence[Report], *, networks: bool) -> tuple[float, set[str]] | None:
    """Multiply-adds per hour of a core, and the precisions in which they were done; None where no
    cell of that kind was run without a diverged trial."""
    work, hours, precisions = 0.0, 0.0, set()
    for report in found:
        table = load_table(report.table)
        for measured in report.cells:
            cell = Cell(table, measured.axes, report.reduced)
            cost = cell_cost(cell, measured.trials)
            if measured.diverged or bool(cost.networks) != networks or not cost.multiply_adds:
                continue
            work += cost.multiply_adds
            hours += report.core_seconds(measured) / 3600
            precisions.add(cell.recipe.precision)
    return (work / hours, precisions) if hours else None


def _here(name: str, found: Sequence[Report], every: Sequence[Report]) -> str:
    """Core-hours of the whole table: measured where it was run, else extrapolated."""
    table = load_table(name)
    whole = table_cost(table)
    run = {
        Cell(table, cell.axes).key: (report.core_seconds(cell) / 3600, cell.trials)
        for report in found
        if not report.reduced
        for cell in report.cells
    }
    cells = [run.get(cell.key, (0.0, 0)) for cell in table.cells()]
    if all(trials >= table.seeds for _, trials in cells):
        return format_hours(sum(hours for hours, _ in cells))
    hours, words = 0.0, dict[str, None]()
    for networks, multiply_adds in ((True, whole.networks), (False, whole.forms)):
        if multiply_adds:
            own = _pace(found, networks=networks)
            pace, precisions = own or _pace(every, networks=networks) or (math.nan, set())
            hours += multiply_adds / pace
            where = "" if own else " elsewhere"
            words[f"from {listed(sorted(precisions))}{where}"] = None
    return f"{format_hours(hours)} (extrapolated {listed(words)})"


def _row(name: str, found: Sequence[Report], every: Sequence[Report]) -> str:
    whole = table_cost(load_table(name))
    cells = [
        f"`{name}`",
        format_count(sum(report.recorded for report in found)) if found else "",
        format_hours(_core_hours(found)) if found else "",
        format_count(whole.trials),
        f"{whole.multiply_adds:.0e}" if whole.multiply_adds else "",
        _here(name, found, every),
        format_hours(whole.hours(A100)) if whole.multiply_adds else "",
    ]
    return f"| {' | '.join(cells)} |"


def format_hours(hours: float) -> str:
    """Hours with two digits.

    >>> format_hours(0.0312), format_hours(7.25), format_hours(123.4)
    ('0.031', '7.2', '120')
    """
    digits = float(f"{hours:.2g}")
    return format_count(round(digits)) if digits >= 10 else f"{digits:g}"


def tables(found: Sequence[Report]) -> str:
    """A row for each table, and the sum of what was run."""
    reports: dict[str, list[Report]] = defaultdict(list)
    for report in found:
        reports[report.table].append(report)
    lines = [
        "| table | trials measured | their core-hours | trials of the whole table | its "
        "multiply-adds | its core-hours here | its hours on an A100, estimated |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(_row(name, reports[name], found) for name in table_names()),
    ]
    trials = format_count(sum(report.recorded for report in found))
    machines = listed(
        sorted({name for r in found for name in r.processors or [str(r.hardware.get("cpu"))]})
    )
    together = f"Together {trials} trials in {format_hours(_core_hours(found))} core-hours"
    return "\n".join(lines) + f"\n\n{together}, on {machines}.\n"


def epochs(found: Sequence[Report]) -> str:
    """A row for each network that was trained on CIFAR-10: an epoch, and the published training."""
    samples = DATASETS["cifar10"].train
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    for report in found:
        table = load_table(report.table)
        for measured in report.cells:
            cell = Cell(table, measured.axes, report.reduced)
            if cell.dataset == "cifar10" and measured.samples_per_second:
                rates[_network(cell), cell.recipe.precision].append(measured.samples_per_second)
    lines = [
        "| network | precision | images per second | an epoch | 200 epochs |",
        "|---|---|---:|---:|---:|",
    ]
    for (name, precision), known in sorted(rates.items(), key=lambda row: -max(row[1])):
        seconds = [samples / rate for rate in sorted(known, reverse=True)]
        shown = [
            _range(sorted(known), ""),
            _range(seconds, " s"),
            _range([200 * s / 3600 for s in seconds], " h"),
        ]
        lines.append(f"| {' | '.join([name, precision, *shown])} |")
    return "\n".join(lines) + "\n"


def _network(cell: Cell) -> str:
    return f"`{cell.model.full_name}`, {of_spec(cell.model).neuron}"


def _range(values: Sequence[float], unit: str) -> str:
    ends = dict.fromkeys(f"{value:.3g}" for value in (values[0], values[-1]))
    return " to ".join(ends) + unit


def page(found: Sequence[Report]) -> str:
    """The page: tables, then epochs of CIFAR-10."""
    return f"{_HEAD}\n{tables(found)}\n{_EPOCHS}\n{epochs(found)}"
