"""The report as one HTML file that needs nothing else: no network, no script."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from qbench.report.claims import ClaimReport, Verdict
from qbench.report.figures import (
    Choices,
    choices_of,
    combinations_of,
    control_of,
    label_of,
    mark_of,
    to_svg,
)
from qbench.report.numbers import CellReport, Report
from qbench.table import Scalar
from qbench.trial import write_whole

_VERDICTS: dict[Verdict, tuple[str, str]] = {
    "holds": ("✓", "good"),
    "does not hold": ("✗", "bad"),
    "not decided": ("?", "open"),
    "not tested": ("–", "none"),
}
_METRICS = {
    "test_accuracy": "Test accuracy, %",
    "train_accuracy": "Training accuracy, %",
    "test_loss": "Test loss, nats",
    "train_loss": "Training loss, nats",
    "margin": "Margin Δμ",
}


@dataclass(frozen=True)
class ClaimRow:
    """A claim with what became of it under each combination of choices, in their order."""

    text: str
    source: str
    verdicts: tuple[ClaimReport | None, ...]
    summary: str
    tone: str


@dataclass(frozen=True)
class Run:
    """The cells of one dataset under one combination of choices."""

    label: str
    choices: Choices
    cells: tuple[CellReport, ...]


def write_page(report: Report, figures: Mapping[str, Figure], path: Path) -> None:
    """Write the report's page to ``path``, with the figures inside.

    ``report.json`` is expected beside it under the same stem, and named there.
    """
    write_whole(path, render_page(report, figures, path.with_suffix(".json").name))


def render_page(report: Report, figures: Mapping[str, Figure], json_name: str) -> str:
    """The report's page as text; everything from the report is escaped."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=format_number, p=format_p, text=_text, name=_metric, interval=_interval
    )
    template = resources.files("qbench.report") / "page.html.j2"
    combinations = combinations_of(report)
    banner = ("REDUCED", "PARTIAL")
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        report=report,
        json_name=json_name,
        paper_url=_paper_url(report.paper),
        mark=mark_of(report),
        banners=[note for note in report.notes if note.startswith(banner)],
        notes=[note for note in report.notes if not note.startswith(banner)],
        combinations=combinations,
        labels=[label_of(report, [choices]) for choices in combinations],
        varied=[name for name, values in report.choices.items() if len(values) > 1],
        tallies=[_tally(report, choices) for choices in combinations],
        verdicts=_VERDICTS,
        claims=claim_rows(report),
        datasets=_datasets(report),
        claims_of=lambda cell: _claims_of(cell, report),
        control=control_of(report),
        has_claims=any(c.claim or _claims_of(c, report) for c in report.cells),
        figures=[
            (name, figure.get_label(), inline_svg(name, figure)) for name, figure in figures.items()
        ],
    )


def claim_rows(report: Report) -> list[ClaimRow]:
    """Each claim once, with a verdict for each combination of choices and a summary of them."""
    combinations = combinations_of(report)
    rows = []
    for text, source in dict.fromkeys((claim.text, claim.source) for claim in report.claims):
        found = {
            tuple(claim.choices.items()): claim
            for claim in report.claims
            if (claim.text, claim.source) == (text, source)
        }
        verdicts = tuple(found.get(choices) for choices in combinations)
        by_verdict: dict[Verdict, list[Choices]] = {}
        for choices, claim in zip(combinations, verdicts, strict=True):
            by_verdict.setdefault(claim.verdict if claim else "not tested", []).append(choices)
        summary, tone = _summary(report, by_verdict)
        rows.append(ClaimRow(text, source, verdicts, summary, tone))
    return rows


def _summary(report: Report, by_verdict: Mapping[Verdict, Sequence[Choices]]) -> tuple[str, str]:
    """For which of several combinations of choices a claim holds, and the tone to say it in.

    Empty for a single combination.
    """
    combinations = [choices for found in by_verdict.values() for choices in found]
    if len(combinations) == 1:
        return "", "none"
    varied = [name for name, values in report.choices.items() if len(values) > 1]
    each = varied[0] if len(varied) == 1 else "combination of choices"
    holding, undecided, untested = (
        by_verdict.get(verdict, ()) for verdict in ("holds", "not decided", "not tested")
    )
    if len(untested) == len(combinations):
        return f"not tested for any {each}", "none"
    if len(holding) + len(untested) == len(combinations):
        return f"holds for every {each}" + (" tested" if untested else ""), "good"
    if holding:
        return f"holds only for {label_of(report, holding)}", "open"
    if undecided:
        return f"holds for no {each}; not decided for {label_of(report, undecided)}", "open"
    return f"holds for no {each}" + (" tested" if untested else ""), "bad"


def _tally(report: Report, choices: Choices) -> list[tuple[Verdict, str]]:
    """How many claims got each verdict under these choices, in words."""
    given = [claim.verdict for claim in report.claims if tuple(claim.choices.items()) == choices]
    plural = {"holds": "hold", "does not hold": "do not hold"}
    return [
        (verdict, f"{count} {verdict if count == 1 else plural.get(verdict, verdict)}")
        for verdict in _VERDICTS
        if (count := given.count(verdict))
    ]


def _datasets(report: Report) -> list[tuple[str, list[Run]]]:
    names = dict.fromkeys(cell.axes["dataset"] for cell in report.cells)
    return [(str(name), list(_runs(report, name))) for name in names]


def _runs(report: Report, dataset: Scalar) -> Iterable[Run]:
    for choices in combinations_of(report):
        cells = tuple(
            cell
            for cell in report.cells
            if cell.axes["dataset"] == dataset and choices_of(cell, report) == choices
        )
        yield Run(label_of(report, [choices]), choices, cells)


def _claims_of(cell: CellReport, report: Report) -> list[ClaimReport]:
    """The claims that praise this cell's model, under its choices."""
    return [
        claim
        for claim in report.claims
        if claim.dataset == cell.axes["dataset"]
        and claim.subject == cell.axes["model"]
        and tuple(claim.choices.items()) == choices_of(cell, report)
    ]


def inline_svg(name: str, figure: Figure) -> Markup:
    """The figure as an ``svg`` element whose ids are its own, described by the figure's label."""
    svg = to_svg(figure)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(\bxlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"<style.*?</style>", "", svg, count=1, flags=re.DOTALL)
    # never so small that its text cannot be read: its box scrolls then; never blown up either
    width = 72 * figure.get_size_inches()[0]
    size = f'style="min-width: {width:.0f}px; max-width: {1.4 * width:.0f}px"'
    svg = re.sub(r'width="[^"]*pt" height="[^"]*pt"', size, svg, count=1)
    label = escape(figure.get_label())
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))  # noqa: S704


def format_number(value: float | None, metric: str, sign: bool = False) -> str:
    """Accuracies with one decimal, all else with four; large numbers as powers of ten.

    >>> format_number(97.249, "test_accuracy"), format_number(-0.5, "margin", sign=True)
    ('97.2', '−0.5000')
    >>> format_number(154346196.8, "train_loss"), format_number(None, "margin")
    ('1.54e+08', '–')
    """
    if value is None:
        return "–"
    digits = 1 if metric.endswith("accuracy") else 4
    form = f"{'+' if sign else ''}.{digits}f" if abs(value) < 1e4 else ".2e"
    shown = f"{value:{form}}"
    if not sign and shown.startswith("-") and not shown.strip("-0."):
        shown = shown[1:]
    return shown.replace("-", "−")


def format_p(value: float | None) -> str:
    """A p-value with three decimals.

    >>> format_p(0.0031), format_p(1e-9), format_p(None)
    ('0.003', '<0.001', '')
    """
    if value is None:
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _interval(value: tuple[float, float] | None, metric: str) -> str:
    if value is None:
        return ""
    return f"{format_number(value[0], metric)} … {format_number(value[1], metric)}"


def _metric(metric: str) -> str:
    return _METRICS.get(metric, metric)


def _text(value: Scalar) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _paper_url(paper: str) -> str | None:
    found = re.fullmatch(r"arXiv (\d{4}\.\d{4,5})", paper)
    return f"https://arxiv.org/abs/{found.group(1)}" if found else None
