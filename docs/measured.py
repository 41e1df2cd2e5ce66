"""What was measured, from ``results/``, as the tables that the README and the pages show.

    uv run python docs/measured.py

writes the README's table and picture, the page of all claims and that of costs anew; a test
compares them with what they are made of.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

import costs
from figures import every_report, neuron, reports

import qcore
from qbench.report.claims import ClaimReport, judge
from qbench.report.drawing import to_svg
from qbench.report.numbers import CellReport, Report
from qbench.report.page import runs_of
from qbench.report.wording import (
    VERDICTS,
    format_count,
    format_number,
    format_value,
)
from qbench.table import Table, load_table, table_names

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "neuron.svg"
CLAIMS = ROOT / "docs" / "claims.md"
COSTS = ROOT / "docs" / "costs.md"
_HEAD = """# All claims

Made by `docs/measured.py` from `results/`; [what we found](findings.md) explains the verdicts. A
difference is that of the second less the first, the mean over seeds that both were run with, with
its 95 % interval (Student's t); p is of the paired test, or of the rank-sum test where trials of
the model that is claimed to be worse alone diverged, with Holm's correction over the claims under
the same choices.
"""
_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"


def of_paper(report: Report) -> list[ClaimReport]:
    """The paper's claims under the default choices, which come first; not our own comparisons."""
    first = dict(report.combinations[0])
    return [claim for claim in report.claims if claim.choices == first and claim.of_paper]


def not_run(found: list[Report]) -> list[Table]:
    """The tables without results."""
    run = {report.table for report in found}
    return [load_table(name) for name in table_names() if name not in run]


def summary(found: list[Report]) -> str:
    """A row for each table: how many trials, and what became of its claims."""
    lines = [
        "| table | what it reruns | trials | holds | does not hold | not decided | not tested |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for report in found:
        counts = Counter(claim.verdict for claim in of_paper(report))
        cells = [str(counts[verdict] or "") for verdict in VERDICTS]
        mark = f" **({report.mark.lower()})**" if report.mark else ""
        trials = format_count(report.recorded)
        shows = f"{report.title}{mark}"
        lines.append(f"| `{report.table}` | {shows} | {trials} | {' | '.join(cells)} |")
    for table in not_run(found):
        untested = sum(claim.of_paper for claim in judge(table, table.defaults, [], None))
        lines.append(f"| `{table.id}` | {table.title} **(not run)** | 0 | | | | {untested} |")
    return "\n".join(lines)


def claims(report: Report) -> str:
    """A table's claims with what was measured, under each combination of choices that was run."""
    first = dict(report.combinations[0])
    return _rows(
        [
            claim
            for claim in report.claims
            if claim.seeds[0]
            or claim.verdict != "not tested"
            # nothing was run for it
            or (claim.choices == first and (claim.of_paper or not report.reduced))
        ],
        report.varied,
    )


def _rows(found: Iterable[ClaimReport], varied: Collection[str] = ()) -> str:
    lines = [
        "| claim | source | under | verdict | measured | seeds |",
        "|---|---|---|---|---|---:|",
    ]
    for claim in found:
        fewest, most = claim.seeds
        said = ", ".join(
            f"{name} {format_value(value)}"
            for name, value in claim.choices.items()
            if name in varied
        )
        symbol = VERDICTS[claim.verdict][0]
        cells = [
            claim.text,
            claim.source,
            said or "defaults",
            f"{symbol} {claim.verdict}",
            claim.why,
            str(most) if fewest == most else f"{fewest} to {most}",
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def page(found: list[Report]) -> str:
    """All claims of all tables, with how each was run, if it was."""
    parts = []
    for report in found:
        mark = f"**{report.mark}.** " if report.mark else ""
        # + is a commit with changes that were not in it
        commit, plus, _ = (report.commit or "unknown").partition("+")
        parts.append(
            f"## {report.title}\n\n{mark}`{report.command}`: {report.recorded} of "
            f"{report.expected} trials, on {report.machines}, commit "
            f"`{commit[:10]}{plus}`.\n\n{claims(report)}\n"
        )
    for table in not_run(found):
        untested = _rows(judge(table, table.defaults, [], None))
        parts.append(f"## {table.title}\n\n**Not run.** `qbench run {table.id}`\n\n{untested}\n")
    return "\n".join(parts)


def accuracies(report: Report) -> str:
    """A row for each model in every panel, with its accuracy under each combination of choices with
    which as many models were run as with any; the best under the first of them first."""
    parts = []
    for panel in report.panels:
        runs = runs_of(report, panel)
        most = max(len(run.cells) for run in runs)
        runs = [run for run in runs if len(run.cells) == most > 0]
        if not runs:
            continue
        cells = {(str(cell.axes["model"]), run.label): cell for run in runs for cell in run.cells}
        first = {str(cell.axes["model"]): cell for run in reversed(runs) for cell in run.cells}
        varied = [
            name
            for name in dict(runs[0].choices)
            if len({dict(run.choices)[name] for run in runs}) > 1
        ]
        headings = [
            ", ".join(f"{name} = {format_value(dict(run.choices)[name])}" for name in varied)
            for run in runs
        ]
        lines = [
            f"| on {panel} | {' | '.join(text or 'test accuracy (%)' for text in headings)} | "
            "parameters | multiply-adds |",
            f"|---|{'---:|' * len(runs)}---:|---:|",
        ]
        for model, cell in sorted(first.items(), key=lambda pair: -(pair[1].mean or 0.0)):
            values = [_accuracy(cells.get((model, run.label))) for run in runs]
            cost = [format_count(cell.parameters), format_count(cell.multiply_adds)]
            lines.append(f"| `{model}` | {' | '.join([*values, *cost])} |")
        parts.append("\n".join(lines))
    warnings = "".join(f"**{warning}**\n\n" for warning in report.warnings)
    return (
        warnings
        + "\n\n".join(parts)
        + "\n\nTest accuracy in percent: mean ± standard deviation (seeds). "
        f"`{report.command}`\n"
    )


def _accuracy(cell: CellReport | None) -> str:
    if cell is None:
        return "not run"
    spread = f" ± {format_number(cell.std, cell.metric)}" if cell.std is not None else ""
    lost = f", {cell.diverged} diverged" if cell.diverged else ""
    return f"{format_number(cell.mean, cell.metric)}{spread} ({cell.n}{lost})"


def catalogue() -> str:
    """The neurons with what one of them costs."""
    lines = [
        "| neuron | formula | parameters of 64 inputs | multiply-adds |",
        "|---|---|---:|---:|",
    ]
    for name in qcore.CATALOGUE:
        neuron = qcore.get_neuron(name)
        cost = neuron.cost(64)
        lines.append(
            f"| `{name}` | `{neuron.formula}` | {cost.parameters} | {cost.multiply_adds} |"
        )
    return "\n".join(lines) + "\n"


def with_table(text: str, table: str) -> str:
    """The README with this table between its marks."""
    pattern = re.compile(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}", re.DOTALL)
    return pattern.sub(lambda _: f"{_BEGIN}\n{table}\n{_END}", text)


if __name__ == "__main__":
    found = reports()
    text = README.read_text(encoding="utf-8")
    README.write_text(with_table(text, summary(found)), encoding="utf-8")
    CLAIMS.write_text(f"{_HEAD}\n{page(found)}", encoding="utf-8")
    COSTS.write_text(costs.page(every_report()), encoding="utf-8")
    PICTURE.write_text(to_svg(neuron()), encoding="utf-8")
