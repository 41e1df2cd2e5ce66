"""The Markdown report: the same numbers, and tables that are tables."""

import re
from collections.abc import Callable

import pytest

from qbench.report.markdown import render_markdown
from qbench.report.numbers import Report
from qbench.trial import Result

Run = Callable[..., tuple[Report, list[Result]]]


@pytest.fixture(scope="module")
def report(run_table: Run) -> Report:
    found, _ = run_table("uci", 2, only={"dataset": ("iris",)}, reduced="quick")
    return found


def test_every_line_of_a_table_has_as_many_cells_as_its_head(report: Report) -> None:
    tables = re.findall(r"(?:^\|.*\|\n)+", render_markdown(report), re.MULTILINE)
    assert len(tables) == 2  # claims, and one panel
    for table in tables:
        head, rule, *rows = table.splitlines()
        assert rows
        assert re.fullmatch(r"\|(?:-+:?\|)+", rule)
        cells = [len(re.findall(r"(?<!\\)\|", line)) for line in (head, rule, *rows)]
        assert len(set(cells)) == 1, table


def test_a_reduced_run_says_so_first_and_the_numbers_are_the_reports(report: Report) -> None:
    text = render_markdown(report)
    assert text.index("REDUCED RUN") < text.index("## Claims") < text.index("## Results")
    results = text[text.index("## Results") :].splitlines()
    for cell in report.cells:
        line = next(x for x in results if x.startswith(f"| {cell.axes['model']} "))
        assert f" {cell.mean:.1f}" in line
        assert f"| {cell.parameters} | {cell.multiply_adds} |" in line
    assert f"`{report.command}`" in text
    assert "{" not in text


def test_names_start_no_markup(report: Report) -> None:
    wild = report.model_copy(update={"title": "a|b *c* <script> `d`", "paper": "[x](y)"})
    text = render_markdown(wild)
    assert text.startswith(r"# a\|b \*c\* \<script> \`d\`")
    assert r"\[x\](y)" in text
