"""The report as one HTML file that needs nothing else: no network, no script."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from importlib import resources
from pathlib import Path
from types import MappingProxyType

import jinja2
from markupsafe import Markup, escape

from qbench.errors import UserError
from qbench.metrics import Metric
from qbench.report.claims import ClaimReport
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
    metric_with_unit,
)
from qbench.trial import write_whole

_DRAWN = frozenset(
    {"svg", "title", "metadata", "defs", "style", "g", "path", "use", "text", "tspan", "image"}
    | {"clipPath", "pattern", "rect", "rdf:RDF", "cc:Work", "dc:title"}
)
"""The elements that matplotlib draws with."""


@dataclass(frozen=True)
class ClaimRow:
    """A claim with what became of it under each combination of choices, in their order."""

    text: str
    source: str
    verdicts: tuple[ClaimReport | None, ...]
    summary: str
    tone: Tone


@dataclass(frozen=True)
class Run:
    """The cells of one panel under one combination of choices."""

    label: str
    choices: Choices
    cells: tuple[CellReport, ...]


def write_page(report: Report, figures: Mapping[str, str], path: Path) -> None:
    """Write the report's page to ``path``, with the figures, SVG by name, inside.

    ``report.json`` is expected beside it under the same stem, and named there.
    """
    write_whole(path, render_page(report, figures, path.with_suffix(".json").name))


def render_page(
    report: Report,
    figures: Mapping[str, str],
    json_name: str,
    *,
    links: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The report's page as text; everything from the report is escaped.

    ``links`` are the addresses of other pages by their titles, where it is part of a site.
    """
    template = new_environment().from_string(read_part("page.html.j2"))
    return template.render(
        report=report,
        style=Markup(read_part("style.css")),  # noqa: S704 - our own file
        links=links,
        json_name=json_name,
        paper_url=_paper_url(report.paper),
        labels=[report.label([choices]) for choices in report.combinations],
        tallies=[_tally(report, choices) for choices in report.combinations],
        verdicts=VERDICTS,
        claims=claim_rows(report),
        panels=[(panel, runs_of(report, panel)) for panel in report.panels],
        has_claims=any(cell.claim or report.claims_of(cell) for cell in report.cells),
        figures=[inline_svg(name, svg) for name, svg in figures.items()],
    )


def new_environment() -> jinja2.Environment:
    """How our pages become text: all that is put in is escaped, and nothing may be missing."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment


def read_part(name: str) -> str:
    """A file of this folder that pages are made of."""
    return (resources.files("qbench.report") / name).read_text(encoding="utf-8")


def claim_rows(report: Report) -> list[ClaimRow]:
    """Each claim once, with a verdict for each combination of choices and a summary of them."""
    combinations = report.combinations
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


def _summary(report: Report, by_verdict: Mapping[Verdict, Sequence[Choices]]) -> tuple[str, Tone]:
    """For which of several combinations of choices a claim holds, and the tone to say it in.

    Empty for a single combination.
    """
    combinations = [choices for found in by_verdict.values() for choices in found]
    if len(combinations) == 1:
        return "", "none"
    each = report.varied[0] if len(report.varied) == 1 else "combination of choices"
    holding, undecided, untested = (
        by_verdict.get(verdict, ()) for verdict in ("holds", "not decided", "not tested")
    )
    if len(untested) == len(combinations):
        return f"not tested for any {each}", "none"
    if len(holding) + len(untested) == len(combinations):
        where = f"for {report.label(holding)}, and was tested for no other"
        return f"holds {where if untested else f'for every {each}'}", "good"
    if holding:
        refuted = by_verdict.get("does not hold", ())
        if len(holding) <= len(refuted) + len(undecided) or untested:
            return f"holds only for {report.label(holding)}", "open"
        words = (
            f"{word} for {report.label(found)}"
            for word, found in (("not", refuted), ("not decided", undecided))
            if found
        )
        return f"holds, but {'; '.join(words)}", "open"
    if undecided:
        return f"holds for no {each}; not decided for {report.label(undecided)}", "open"
    return f"holds for no {each}" + (" tested" if untested else ""), "bad"


def _tally(report: Report, choices: Choices) -> list[tuple[Verdict, str]]:
    """How many claims got each verdict under these choices, in words."""
    given = [claim.verdict for claim in report.claims if tuple(claim.choices.items()) == choices]
    plural = {"holds": "hold", "does not hold": "do not hold"}
    return [
        (verdict, f"{count} {verdict if count == 1 else plural.get(verdict, verdict)}")
        for verdict in VERDICTS
        if (count := given.count(verdict))
    ]


def runs_of(report: Report, panel: str) -> list[Run]:
    """The cells of a panel under each combination of choices, in their order."""
    by_choices: dict[Choices, list[CellReport]] = {choices: [] for choices in report.combinations}
    for cell in report.cells:
        if cell.panel == panel:
            by_choices[report.choices_of(cell)].append(cell)
    return [
        Run(report.label([choices]), choices, tuple(cells)) for choices, cells in by_choices.items()
    ]


@dataclass(frozen=True)
class Inline:
    """A figure as it stands in a page, and what it shows in words."""

    svg: Markup
    label: str


def inline_svg(name: str, svg: str) -> Inline:
    """A figure that :func:`to_svg` made as an ``svg`` element whose ids are its own, described by
    its title.

    Raises ``UserError`` for what was not made so, which may hold anything.
    """
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    found = re.search(r"<title>(.*?)</title>", svg, re.DOTALL)
    width = re.search(r'width="([\d.]+)pt" height="[\d.]+pt"', svg)
    is_named = re.fullmatch(r"[\w-]+", name)
    if found is None or width is None or not is_named or not _is_drawing(svg):
        raise UserError(f"figure {name} was not drawn by qbench report: draw it again")
    label = unescape(found.group(1))
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<title>.*?</title>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(\bxlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"<style.*?</style>", "", svg, count=1, flags=re.DOTALL)
    # never so small that its text cannot be read: its box scrolls then; never blown up either
    points = float(width.group(1))
    size = f'style="min-width: {points:.0f}px; max-width: {1.4 * points:.0f}px"'
    svg = svg.replace(width.group(0), size, 1)
    marked = svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    return Inline(Markup(marked), label)  # noqa: S704 - matplotlib escapes the names that it draws


def _is_drawing(svg: str) -> bool:
    """Whether an SVG has nothing but what matplotlib draws with: no script, no link, no event."""
    inside = svg[svg.index("<svg") :]
    for piece in inside.split("<")[1:]:
        tag = piece.partition(">")[0]
        found = re.fullmatch(r'/?([A-Za-z:]+)((?:\s+[\w:-]+="[^"]*")*)\s*/?', tag)
        if found is None or found.group(1) not in _DRAWN:
            return False
        for attribute, value in re.findall(r'([\w:-]+)="([^"]*)"', found.group(2)):
            if attribute.lower().startswith("on"):
                return False
            if attribute.endswith("href") and not value.startswith(("#", "data:image/png;")):
                return False
    return inside.count("<style") <= 1 and not re.search(r"url\((?!#)|@import", inside)


def _heading(metric: Metric) -> str:
    words = metric_with_unit(metric)
    return words[0].upper() + words[1:]


def _paper_url(paper: str) -> str | None:
    found = re.fullmatch(r"arXiv (\d{4}\.\d{4,5})", paper)
    return f"https://arxiv.org/abs/{found.group(1)}" if found else None


FILTERS = MappingProxyType(
    {
        "number": format_number,
        "p": format_p,
        "text": format_value,
        "count": format_count,
        "metric": _heading,
        "interval": format_interval,
    }
)
"""How a template says a number, a p-value, a value of an axis, a metric."""
