"""The report as Markdown: for a README, a pull request, a paper's appendix."""

import re
from importlib import resources

import jinja2

from qbench.report.numbers import Report
from qbench.report.page import FILTERS, claim_rows, runs_of


def render_markdown(report: Report) -> str:
    """The report's text; names and sentences in it start no markup of their own."""
    # not a page: what Markdown would take for markup is escaped by the filter `cell`
    environment = jinja2.Environment(
        autoescape=False,  # noqa: S701 - it is no HTML
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(FILTERS, cell=_cell)
    template = resources.files("qbench.report") / "report.md.j2"
    text = environment.from_string(template.read_text(encoding="utf-8")).render(
        report=report,
        labels=[_cell(report.label([choices])) for choices in report.combinations],
        claims=claim_rows(report),
        panels=[(panel, runs_of(report, panel)) for panel in report.panels],
        others=report.columns,
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def _cell(text: str) -> str:
    """Text that keeps to its place in a table, and is shown as it is.

    >>> print(_cell("a|b *c* <d>"))
    a\\|b \\*c\\* \\<d>
    """
    return re.sub(r"([|*_<`\[\]\\])", r"\\\1", " ".join(str(text).split()))
