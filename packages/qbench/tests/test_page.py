"""The page, opened in a real browser."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qbench.report.claims import ClaimReport
from qbench.report.drawing import to_svg
from qbench.report.figures import figures_of
from qbench.report.numbers import Report
from qbench.report.page import claim_rows, write_page
from qbench.report.wording import format_p
from qbench.trial import Result

Made = tuple[Report, list[Result]]
Visit = Any  # of conftest.py


@pytest.fixture(scope="module")
def uci(run_table: Callable[..., Made]) -> Made:
    """Two datasets under two scalings: of raw Wine, the low-rank models diverge."""
    models = ("linear", "dense", "rank1", "rank4")
    report, results = run_table(
        "uci",
        3,
        only={"dataset": ("iris", "wine"), "model": models},
        choices={"scaling": ("maxabs", "raw")},
        reduced="quick",
    )
    verdicts = ("holds", "does not hold", "not decided", "not tested")
    claims = [
        claim.model_copy(update={"verdict": verdicts[index % 4]})
        for index, claim in enumerate(report.claims)
    ]
    return report.model_copy(update={"claims": claims}), results


@pytest.fixture(scope="module")
def xor(run_table: Callable[..., Made]) -> Made:
    return run_table("xor", 1)


def written(made: Made, folder: Path) -> Path:
    path = folder / "report.html"
    drawn = {name: to_svg(figure) for name, figure in figures_of(*made).items()}
    write_page(made[0], drawn, path)
    return path


@pytest.fixture(scope="module")
def pages(uci: Made, xor: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "uci": written(uci, tmp_path_factory.mktemp("uci")),
        "xor": written(xor, tmp_path_factory.mktemp("xor")),
    }


@pytest.mark.parametrize("name", ["uci", "xor"])
def test_the_page_asks_for_nothing_else_and_has_no_error(
    name: str, pages: dict[str, Path], visit: Callable[..., Visit]
) -> None:
    path = pages[name]
    seen = visit(path)
    assert seen.requests == [path.as_uri()]
    assert seen.errors == []
    seen.page.close()


def test_a_page_that_reaches_for_the_network_would_be_seen(
    visit: Callable[..., Visit], tmp_path: Path
) -> None:
    path = tmp_path / "bad.html"
    path.write_text('<img src="https://example.org/x.png" alt="">', encoding="utf-8")
    seen = visit(path)
    assert seen.requests == [path.as_uri(), "https://example.org/x.png"]
    assert seen.errors
    seen.page.close()


def test_every_claim_stands_with_its_verdicts(
    uci: Made, pages: dict[str, Path], visit: Callable[..., Visit]
) -> None:
    report, _ = uci
    page = visit(pages["uci"]).page
    rows = {
        row.locator("th").inner_text().splitlines()[0]: row
        for row in page.locator("table.claims tbody tr").all()
    }
    assert set(rows) == {claim.text for claim in report.claims}
    for text, row in rows.items():
        claims = [claim for claim in report.claims if claim.text == text]
        assert len(claims) == 2
        badges = [badge.inner_text()[2:] for badge in row.locator(".badge").all()]
        assert badges == [claim.verdict for claim in claims]
        assert [why.inner_text() for why in row.locator(".why").all()] == [c.why for c in claims]
        assert claims[0].source in row.inner_text()
    page.close()


def test_every_mean_and_every_divergence_is_shown(
    uci: Made, pages: dict[str, Path], visit: Callable[..., Visit]
) -> None:
    report, _ = uci
    page = visit(pages["uci"]).page
    rows: dict[tuple[str, str, str], str] = {}
    for table in page.locator("details table").all():
        dataset, scaling, *_ = (table.locator("caption").text_content() or "").split(", ")
        for row in table.locator("tbody tr").all():
            model = (row.locator("th").text_content() or "").split()[0]
            rows[dataset, scaling, model] = " ".join((row.text_content() or "").split())
    assert len(rows) == len(report.cells)
    assert any(cell.diverged for cell in report.cells)
    for cell in report.cells:
        scaling = f"scaling = {cell.axes['scaling']}"
        row = rows[str(cell.axes["dataset"]), scaling, str(cell.axes["model"])]
        if cell.mean is not None:
            assert f"{cell.mean:.1f} ± {cell.std:.1f} ({cell.n})" in row
        if cell.diverged and cell.diverged_at:
            assert f"{cell.diverged} of {cell.diverged + cell.n} diverged (step" in row
        if cell.p_value is not None:
            assert format_p(cell.p_value) in row
        assert f" {cell.parameters} " in row
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["uci", "xor"])
def test_a_phone_scrolls_tables_and_never_the_page(
    name: str, scheme: str, pages: dict[str, Path], visit: Callable[..., Visit]
) -> None:
    seen = visit(pages[name], viewport={"width": 390, "height": 800}, color_scheme=scheme)
    assert seen.page.evaluate("document.documentElement.scrollWidth") == 390
    assert seen.page.evaluate("document.body.scrollWidth") <= 390
    ink, paper = seen.page.evaluate(
        "(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))"
    )
    assert (luminance(ink) < luminance(paper)) == (scheme == "light")
    seen.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(
    scheme: str, pages: dict[str, Path], visit: Callable[..., Visit]
) -> None:
    page = visit(pages["uci"], color_scheme=scheme).page
    pairs = page.evaluate(
        """[...document.querySelectorAll("header *, section *:not(.plot *), footer *")]
        .map(element => {
          let behind = element;
          const back = () => getComputedStyle(behind).backgroundColor;
          while (back() === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
          return [getComputedStyle(element).color, back()];
        })"""
    )
    assert len(pairs) > 100
    for ink, paper in {tuple(pair) for pair in pairs}:
        low, high = sorted((luminance(ink), luminance(paper)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, paper)
    page.close()


def test_tables_and_figures_are_named(
    uci: Made, pages: dict[str, Path], visit: Callable[..., Visit]
) -> None:
    page = visit(pages["uci"]).page
    for table in page.locator("table").all():
        assert table.locator("caption").text_content()
    assert page.locator("th:not([scope])").count() == 0
    figures = figures_of(*uci)
    images = page.locator("svg[role=img]").all()
    described = [image.get_attribute("aria-label") for image in images]
    assert described == [figure.get_label() for figure in figures.values()]
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(ids) == len(set(ids))
    page.close()


def test_hostile_text_stays_text(uci: Made, visit: Callable[..., Visit], tmp_path: Path) -> None:
    report, results = uci
    bad = "</title></style><script>document.title='owned'</script><img src=x onerror=alert(1)>"
    cells = [
        cell.model_copy(update={"axes": {**cell.axes, "model": bad}})
        if cell.axes["model"] == "rank4"
        else cell
        for cell in report.cells
    ]
    update = {
        "title": bad,
        "paper": bad,
        "shows": bad,
        "warnings": [bad],
        "notes": [bad],
        "command": bad,
        "models": {bad if m == "rank4" else m: spec for m, spec in report.models.items()},
        "hardware": {"cpu": bad},
        "cells": cells,
        "claims": [c.model_copy(update={"text": bad, "why": bad}) for c in report.claims],
    }
    hostile = report.model_copy(update=update)
    path = written((hostile, results), tmp_path)
    seen = visit(path)
    assert seen.page.locator("script, img").count() == 0
    assert seen.page.locator("h1").inner_text() == bad
    assert seen.page.title().endswith(bad)
    assert seen.requests == [path.as_uri()]
    assert seen.errors == []
    seen.page.close()


def test_the_banner_stands_on_a_reduced_and_on_a_partial_report(uci: Made, tmp_path: Path) -> None:
    report, _ = uci
    warnings = ["REDUCED RUN: few steps.", "PARTIAL: 1 of 2."]
    update = {"reduced": "quick", "expected": report.recorded + 1, "warnings": warnings}
    marked = report.model_copy(update=update)
    path = tmp_path / "report.html"
    write_page(marked, {}, path)
    text = path.read_text(encoding="utf-8")
    assert re.findall(r'class="banner"[^>]*>([^<]*)<', text) == warnings
    assert "<title>REDUCED RUN · PARTIAL: " in text


def test_the_page_says_how_to_run_it_again(uci: Made, pages: dict[str, Path]) -> None:
    report, _ = uci
    text = pages["uci"].read_text(encoding="utf-8")
    assert report.command in text
    assert 'href="report.json"' in text
    for name, why in report.open_choices.items():
        assert f"<dt>{name}</dt>" in text
        assert why in text


def test_the_same_report_gives_the_same_page(
    xor: Made, pages: dict[str, Path], tmp_path: Path
) -> None:
    assert written(xor, tmp_path).read_bytes() == pages["xor"].read_bytes()


@pytest.mark.parametrize(
    ("verdicts", "summary"),
    [
        (["holds", "holds", "holds"], "holds for every scaling"),
        (["holds", "does not hold", "holds"], "holds, but not for scaling = raw"),
        (["holds", "not decided", "holds"], "holds, but not decided for scaling = raw"),
        (["not decided", "does not hold", "holds"], "holds only for scaling = minmax"),
        (["not tested", "does not hold", "holds"], "holds only for scaling = minmax"),
        (
            ["holds", "not tested", "holds"],
            "holds for scaling = maxabs, minmax, and was tested for no other",
        ),
        (
            ["not decided", "does not hold", "does not hold"],
            "holds for no scaling; not decided for scaling = maxabs",
        ),
        (["does not hold"] * 3, "holds for no scaling"),
        (["not tested"] * 3, "not tested for any scaling"),
        (["holds"], ""),
    ],
)
def test_a_claim_is_summed_up_over_the_choices(
    uci: Made, verdicts: list[str], summary: str
) -> None:
    report, _ = uci
    scalings = ["maxabs", "raw", "minmax"][: len(verdicts)]
    cell, claim = report.cells[0], report.claims[0]
    changed: list[ClaimReport] = [
        claim.model_copy(
            update={"verdict": verdict, "choices": {"scaling": scaling, "init_scale": 1.0}}
        )
        for verdict, scaling in zip(verdicts, scalings, strict=True)
    ]
    cells = [cell.model_copy(update={"axes": {**cell.axes, "scaling": s}}) for s in scalings]
    choices = {"scaling": scalings, "init_scale": [1.0]}
    shown = report.model_copy(update={"claims": changed, "cells": cells, "choices": choices})
    (row,) = claim_rows(shown)
    assert row.summary == summary


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(…)``, as WCAG defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
