"""The leaderboard's pages, opened in a real browser."""

import csv
import io
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from qbench.errors import UserError
from qbench.leaderboard.boards import all_datasets
from qbench.leaderboard.entry import Claim, Entry, Measurement, Run, Seed, read_entries
from qbench.leaderboard.site import build, to_csv
from qbench.leaderboard.standings import rows_of
from qbench.report.files import write_report
from qbench.report.numbers import Report
from qbench.table import load_table
from qbench.trial import RunFolder
from qzoo.index import get_provenance

UCI = load_table("uci")
Visit = Any  # of conftest.py

HOSTILE = (
    "<script>document.title='owned'</script>",
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\"><svg onload=document.title='owned'>",
    "' onmouseover='document.title=1' x='",
    "</title><script>document.title='owned'</script>",
    "<!-- --><style>*{display:none}</style>",
    "javascript:document.title='owned'",
    "data:text/html,<script>1</script>",
    "{{ 7 * 7 }}",
    "{% for x in range(9) %}x{% endfor %}",
    "${7*7}",
    '=HYPERLINK("https://example.org";"x")',
    "+1+1",
    "-1+1",
    "@SUM(1)",
    "|calc",
    "%0a=1",
    "&lt;b&gt;",
    "<base href=https://example.org>",
    "<meta http-equiv=refresh content=0;url=https://example.org>",
    "<link rel=stylesheet href=https://example.org/x.css>",
    "<iframe src=https://example.org></iframe>",
    "<form action=https://example.org><input name=q>",
    "שלום עולם מימין לשמאל",
    "مرحبا بالعالم",
    "W" * 80,
    "\u200d\u200c" * 20 + "x",
    "Z̷̢̛̺͇͒̓" * 8,
    "%s%n\\u003cscript\\u003e",
)


def entry_of(number: int, **changes: Any) -> Entry:
    """A verified run on Wine; each has its accuracy and size."""
    cells = list(UCI.cells({"dataset": ("wine",)}))
    cell = cells[number % len(cells)]
    base = 60 + 39.0 * ((number * 7919) % 1000) / 1000
    seeds = tuple(
        Seed(
            key=cell.trial_key(seed),
            seed=seed,
            accuracy=base + 0.1 * seed,
            seconds=0.2 + number / 100,
            curve=(base / 2, base),
        )
        for seed in range(3)
    )
    run = Run(
        table="uci",
        version=UCI.version,
        axes=cell.axes,
        seeds=seeds,
        steps=(0, 100),
        parameters=39 + number,
        multiply_adds=39 + 2 * number,
    )
    entry = Entry(
        id=f"e{number}",
        board="uci",
        dataset="wine",
        title=f"Network {number}",
        claim=Claim(accuracy=base + 0.1, authors=f"Author {number % 7}", training_seconds=1.0),
        submitted=date(2026, 1, 1 + number % 28),
        reduced=False,
        run=run,
    )
    found = Measurement(
        verdict="verified",
        reason="3 of 3 seeds were run again",
        subject=entry.subject,
        seeds=(0, 1, 2),
        accuracy=base + 0.1,
        difference=0.0,
        tolerance=0.5,
        images=36,
        parameters=39 + number,
        multiply_adds=39 + 2 * number,
        latency=0.05,
        threads=1,
        measured=date(2026, 1, 2),
    )
    return entry.model_copy(update={"measurement": found, **changes})


def digits() -> Entry:
    """The zoo's own weights."""
    row = get_provenance("qresnet20.relinear_digits")
    assert row.evaluation is not None
    claim = Claim(accuracy=row.evaluation.top1, authors="Quadnets", url="https://example.org/x")
    return Entry(
        id="qresnet20-relinear-digits",
        board="uci",
        dataset="digits32",
        title=row.name,
        claim=claim,
        submitted=date(2026, 1, 1),
        reduced=False,
        weights=row.name,
        provenance=row,
    )


def chosen_on_test(number: int) -> Entry:
    """In the place of a run on Wine, weights of an epoch that was chosen on the test set."""
    run = entry_of(number)
    assert run.measurement is not None
    told = {"id": run.id, "dataset": run.dataset, "claim": run.claim, "title": "A short run"}
    entry = digits().model_copy(update=told | {"selection": "best on test"})
    said = {"subject": entry.subject, "accuracy": run.claim.accuracy, "seeds": ()}
    return entry.model_copy(update={"measurement": run.measurement.model_copy(update=said)})


@pytest.fixture(scope="module")
def results(run_table: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the report of a table."""
    report, found = run_table("xor", 1)
    out = tmp_path_factory.mktemp("results")
    write_report(report, found, RunFolder(out, load_table("xor"), create=True))
    return out


@pytest.fixture(scope="module")
def site(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve entries of one dataset, one of another, one chosen on the test set, one table."""
    entries = [entry_of(number) for number in range(12)]
    entries += [digits(), chosen_on_test(12)]
    path = tmp_path_factory.mktemp("site") / "site of ours ü"
    build(entries, results, path)
    return path


def shown(seen: Visit) -> list[str]:
    """The ids of the rows that are shown, in their order."""
    return seen.page.eval_on_selector_all(
        "#board tbody tr",
        "rows => rows.filter(r => r.offsetParent).map(r => r.id.slice('row-'.length))",
    )


EVERY = (
    "index.html",
    "boards/uci.html",
    "boards/cifar10.html",
    "entries/e1.html",
    "tables/xor.html",
)


@pytest.mark.parametrize("page", EVERY)
def test_a_page_asks_for_nothing_elsewhere_and_has_no_error(
    page: str, site: Path, visit: Callable[..., Visit]
) -> None:
    seen = visit(site / page)
    seen.page.wait_for_timeout(300)
    assert seen.errors == []
    assert all(url.startswith("file:") for url in seen.requests)
    seen.page.close()


def test_every_link_leads_to_a_page_that_is_there(site: Path) -> None:
    count = 0
    for page in site.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"]*)"', page.read_text(encoding="utf-8")):
            if link.startswith(("https://", "data:", "#")) or (link == "" or "'" in link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve()
            assert target.is_file(), (page, link)
            if anchor:
                assert f'id="{anchor}"' in target.read_text(encoding="utf-8"), (page, link)
            count += 1
    assert count > 100


def test_the_charts_are_drawn(site: Path, visit: Callable[..., Visit]) -> None:
    drawn = """[...document.querySelectorAll("canvas")].map(canvas => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return new Set(new Uint32Array(data.buffer)).size;
    })"""
    for page, number in (("boards/uci.html", 3), ("entries/e1.html", 1)):
        seen = visit(site / page)
        seen.page.wait_for_timeout(500)
        colours = seen.page.evaluate(drawn)
        assert len(colours) == number
        assert min(colours) > 5
        seen.page.close()


def test_rows_are_sorted_by_a_click_and_the_url_remembers(
    site: Path, visit: Callable[..., Visit]
) -> None:
    seen = visit(site / "boards/uci.html")
    page = seen.page
    best = sorted(range(13), key=lambda n: -((n * 7919) % 1000))
    page.get_by_role("button", name="Accuracy").click()
    assert shown(seen) == [f"e{number}" for number in best]
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("Accuracy")
    page.get_by_role("button", name="Accuracy").click()
    assert shown(seen) == [f"e{number}" for number in best[::-1]]
    page.get_by_role("button", name="Parameters").press("Enter")
    assert shown(seen) == [f"e{number}" for number in range(13)]
    assert "sort=parameters" in page.url
    again = visit(page.url)
    assert shown(again) == [f"e{number}" for number in range(13)]
    again.page.close()
    page.close()


def test_filters_live_in_the_url(site: Path, visit: Callable[..., Visit]) -> None:
    seen = visit(site / "boards/uci.html")
    page = seen.page
    page.get_by_label("Search").fill("Network 11")
    assert shown(seen) == ["e11"]
    assert page.locator("#count").inner_text() == "1 of 14 entries"
    page.get_by_label("Runs").select_option("best on test")
    assert shown(seen) == []
    page.get_by_label("Search").fill("")
    assert shown(seen) == ["e12"]
    again = visit(page.url)
    assert shown(again) == ["e12"]
    again.page.get_by_role("button", name="Clear").click()
    again.page.wait_for_timeout(50)
    assert len(shown(again)) == 13
    assert "?" not in again.page.url
    again.page.get_by_label("Dataset").select_option("digits32")
    assert shown(again) == ["qresnet20-relinear-digits"]
    assert seen.errors == again.errors == []
    again.page.close()
    page.close()


def test_a_search_leads_to_what_it_finds_on_other_datasets(
    site: Path, visit: Callable[..., Visit]
) -> None:
    seen = visit(site / "boards/uci.html")
    seen.page.get_by_label("Search").fill("qresnet20")
    assert shown(seen) == []
    seen.page.get_by_role("button", name="1 on digits32").click()
    assert shown(seen) == ["qresnet20-relinear-digits"]
    assert seen.page.get_by_label("Dataset").input_value() == "digits32"
    assert "dataset=digits32" in seen.page.url
    assert seen.page.locator("#elsewhere button").count() == 0
    seen.page.get_by_label("Search").fill("")
    assert seen.page.locator("#elsewhere button").count() == 0  # all is no search
    assert seen.errors == []
    seen.page.close()


def test_a_deep_link_shows_its_row(site: Path, visit: Callable[..., Visit]) -> None:
    seen = visit(f"{(site / 'boards/uci.html').as_uri()}#row-qresnet20-relinear-digits")
    assert shown(seen) == ["qresnet20-relinear-digits"]
    assert seen.page.locator("tr:target").count() == 1
    seen.page.close()


def test_a_url_that_nobody_wrote_does_no_harm(site: Path, visit: Callable[..., Visit]) -> None:
    query = "?sort=-constructor&q=%3Cscript%3E&group=x&dataset=%22&kind=__proto__#__proto__"
    seen = visit(f"{(site / 'boards/uci.html').as_uri()}{query}")
    assert seen.errors == []
    assert shown(seen) == []
    seen.page.close()


def test_from_the_table_to_an_entry_and_back(site: Path, visit: Callable[..., Visit]) -> None:
    seen = visit(site / "index.html")
    page = seen.page
    page.get_by_role("link", name="UCI", exact=True).first.click()
    page.get_by_role("link", name="Network 3", exact=True).click()
    assert page.locator("h1").inner_text() == "Network 3"
    assert "verified" in page.locator("header .badge").first.inner_text()
    command = page.locator("pre code").inner_text()
    assert command.startswith("qbench run uci --only dataset=wine --only model=")
    page.locator("header .kicker a").click()
    assert page.url.endswith("boards/uci.html#row-e3")
    assert seen.errors == []
    page.close()


def test_from_a_table_of_the_papers_to_a_board(site: Path, visit: Callable[..., Visit]) -> None:
    seen = visit(site / "tables/xor.html")
    seen.page.get_by_role("navigation").get_by_role("link", name="UCI", exact=True).click()
    assert seen.page.url.endswith("boards/uci.html")
    assert seen.errors == []
    seen.page.close()


def test_a_row_without_a_control_of_its_size_says_so(tmp_path: Path) -> None:
    ours = read_entries(Path(__file__).parents[3] / "leaderboard")
    build(ours, None, tmp_path / "site")
    pages = tmp_path / "site"
    alone = [
        row.entry.id
        for row in rows_of(all_datasets(), ours)
        if row.difference_to("plain")
        and not row.difference_to("parameter-matched")
        and not row.network.linear
    ]
    said = [
        path.stem
        for path in (pages / "entries").glob("*.html")
        if "No linear network with as many parameters" in path.read_text(encoding="utf-8")
    ]
    assert sorted(said) == sorted(alone) != []
    boards = [path.read_text(encoding="utf-8") for path in (pages / "boards").glob("*.html")]
    assert sum(board.count("none as large") for board in boards) == len(alone)


def test_weights_say_how_to_load_them(site: Path, visit: Callable[..., Visit]) -> None:
    seen = visit(site / "entries/qresnet20-relinear-digits.html")
    lines = seen.page.locator("pre code").inner_text()
    assert 'timm.create_model("qresnet20.relinear_digits", pretrained=True)' in lines
    (code,) = re.findall(r"model = .*", lines)
    namespace: dict[str, Any] = {}
    exec(f"import qzoo, timm\n{code}", namespace)  # noqa: S102 - what we tell people to type
    assert namespace["model"].num_classes == 10
    seen.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", EVERY)
def test_a_phone_scrolls_tables_and_never_the_page(
    page: str, scheme: str, site: Path, visit: Callable[..., Visit]
) -> None:
    seen = visit(site / page, viewport={"width": 390, "height": 800}, color_scheme=scheme)
    seen.page.wait_for_timeout(200)
    assert seen.page.evaluate("document.documentElement.scrollWidth") == 390
    seen.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", EVERY)
def test_axe_finds_no_violation(
    page: str, scheme: str, site: Path, visit: Callable[..., Visit]
) -> None:
    seen = visit(site / page, color_scheme=scheme, bypass_csp=True)
    seen.page.wait_for_timeout(300)
    found = Axe().run(seen.page)
    assert found.violations_count == 0, found.generate_report()
    seen.page.close()


def test_a_keyboard_reaches_everything(site: Path, visit: Callable[..., Visit]) -> None:
    seen = visit(site / "boards/uci.html")
    page = seen.page
    reached = []
    for _ in range(70):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.trim().slice(0, 20)"))
    assert reached[0] == "Skip to the content"
    assert "Accuracy (%)" in reached
    assert "Network 3" in reached
    page.close()


def hostile_entries() -> list[Entry]:
    """Hostile text in every field that takes text."""
    entries = []
    for number, text in enumerate(HOSTILE):
        base = entry_of(number)
        assert base.run is not None
        run = base.run.model_copy(update={"versions": {"torch": text}, "hardware": {"cpu": text}})
        claim = {
            "accuracy": base.claim.accuracy,
            "authors": text,
            "paper": text,
            "hardware": text,
        }
        raw = {**base.model_dump(mode="json"), "title": text[:80], "claim": claim}
        raw["run"] = run.model_dump(mode="json")
        raw["measurement"] = None
        entry = Entry.model_validate_json(json.dumps(raw))
        assert base.measurement is not None
        update = {"subject": entry.subject, "reason": text, "hardware": {"cpu": text[:80]}}
        found = base.measurement.model_copy(update=update)
        entries.append(entry.model_copy(update={"measurement": found}))
    return entries


def test_hostile_entries_stay_text(tmp_path: Path, visit: Callable[..., Visit]) -> None:
    assert len(HOSTILE) == 30
    entries = hostile_entries()
    site = tmp_path / "site"
    build(entries, None, site)
    pages = [site / "index.html", site / "boards" / "uci.html"]
    pages += [site / "entries" / f"{entry.id}.html" for entry in entries]
    for path in pages:
        seen = visit(path)
        seen.page.wait_for_timeout(30)
        assert "owned" not in seen.page.title().replace("'owned'", "")
        assert seen.errors == []
        assert all(url.startswith("file:") for url in seen.requests), seen.requests
        foreign = seen.page.locator("iframe, base, object, embed, meta[http-equiv=refresh], img")
        assert foreign.count() == 0
        assert seen.page.locator("a[href^='javascript:'], a[href^='data:']").count() == 0
        scripts = seen.page.eval_on_selector_all("script", "all => all.map(s => s.src || s.type)")
        assert all("/static/" in one or one == "application/json" for one in scripts)
        assert seen.page.evaluate("getComputedStyle(document.body).display") != "none"
        seen.page.close()
    seen = visit(site / "boards" / "uci.html")
    titles = seen.page.eval_on_selector_all("#board th a bdi", "all => all.map(e => e.textContent)")
    assert sorted(titles) == sorted(text[:80] for text in HOSTILE)
    seen.page.close()


@pytest.mark.parametrize("url", ["javascript:alert(1)", "http://example.org", "https://a b", "//x"])
def test_a_link_is_to_the_web_or_refused(url: str) -> None:
    with pytest.raises(ValueError, match="String should match pattern"):
        Claim(accuracy=1.0, authors="A", url=url)


def test_the_csv_holds_no_formula(tmp_path: Path) -> None:
    build(hostile_entries(), None, tmp_path / "site")
    text = (tmp_path / "site" / "data" / "uci.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 30
    for row in rows:
        for field in ("title", "authors", "paper", "hardware"):
            assert not re.match(r"\s*[=+\-@|%\t\r]", row[field]), row[field]
    numbers = {row["id"]: float(row["accuracy"]) for row in rows}
    known = json.loads((tmp_path / "site" / "data" / "uci.json").read_text(encoding="utf-8"))
    assert numbers == {row["id"]: row["accuracy"] for row in known}
    assert to_csv([]) == ""


def test_two_thousand_entries_are_painted_and_sorted_at_once(
    tmp_path: Path, visit: Callable[..., Visit]
) -> None:
    site = tmp_path / "site"
    build([entry_of(number) for number in range(2000)], None, site)
    # whatever else this machine does only adds: the least counts, of up to ten here
    painted: list[float] = []
    while min(painted, default=math.inf) >= 1000 and len(painted) < 10:
        seen = visit(site / "boards" / "uci.html")
        seen.page.wait_for_timeout(1500)
        paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        painted.append(seen.page.evaluate(paint))
    assert min(painted) < 1000, painted
    page = seen.page
    # against what no sorting can do without, the layout of as many rows in another order, for this
    # machine may be a slow or a busy one: about 1.4 times
    times = page.evaluate(
        """() => {
          const body = document.getElementById("board").tBodies[0];
          const buttons = ["Accuracy (%)", "Parameters", "Entry"].map(name =>
            [...document.querySelectorAll("th button")]
              .find(button => button.textContent.startsWith(name)));
          const steps = [() => body.replaceChildren(...[...body.rows].reverse()),
                         ...buttons.map(button => () => button.click())];
          const least = steps.map(() => Infinity);
          for (let round = 0; round < 5; round++) {
            steps.forEach((step, place) => {
              const start = performance.now();
              step();
              document.body.offsetHeight; // with its layout
              least[place] = Math.min(least[place], performance.now() - start);
            });
          }
          return least;
        }"""
    )
    floor, *sorting = times
    assert max(sorting) < 3 * floor, times
    assert len(shown(seen)) == 100
    page.get_by_role("button", name="Show all rows").click()
    assert len(shown(seen)) == 2000
    seen.page.close()


def test_a_site_is_replaced_and_nothing_else_ever(tmp_path: Path) -> None:
    site = tmp_path / "site"
    build([entry_of(1)], None, site)
    build([entry_of(2)], None, site)
    assert not (site / "entries" / "e1.html").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site"]
    other = tmp_path / "home"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds something else than a site of qbench leaderboard"):
        build([entry_of(1)], None, other)
    assert (other / "thesis.tex").read_text() == "years of work"
    (site / "CNAME").write_text("example.org")
    with pytest.raises(UserError, match=r"holds something else than a site of qbench leaderboard"):
        build([entry_of(1)], None, site)
    assert (site / "CNAME").read_text() == "example.org"


def test_a_build_that_fails_leaves_the_old_site(tmp_path: Path, results: Path) -> None:
    site = tmp_path / "site"
    build([entry_of(1)], None, site)
    before = (site / "index.html").read_bytes()
    bad = tmp_path / "bad" / "xor"
    bad.mkdir(parents=True)
    (bad / "report.json").write_text("{}")
    with pytest.raises(UserError, match=r"report\.json is no report of this version of qbench"):
        build([entry_of(2)], bad.parent, site)
    assert (site / "index.html").read_bytes() == before
    good = (results / "xor" / "report.json").read_bytes()
    (bad / "report.json").write_bytes(good)
    (bad / "figures").mkdir()
    whole = next((results / "xor" / "figures").glob("*.svg")).read_text(encoding="utf-8")
    for hostile in (
        "<script>alert(1)</script>",
        "<g onload='alert(1)'/>",
        "<g/onload=alert(1)>",
        '<image xlink:href="https://example.org/x.png"/>',
        "<image href=https://example.org/x.png>",
        '<rect style="fill: url(https://example.org/x)"/>',
        "<style>@import url(https://example.org/x.css);</style>",
        "<foreignObject></foreignObject>",
    ):
        drawn = whole.replace("</svg>", f"{hostile}</svg>")
        (bad / "figures" / "x.svg").write_text(drawn, encoding="utf-8")
        with pytest.raises(UserError, match=r"figure x was not drawn by qbench report"):
            build([entry_of(2)], bad.parent, site)
    assert (site / "index.html").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "site"]


def test_a_tables_page_is_its_report(
    site: Path, results: Path, visit: Callable[..., Visit]
) -> None:
    folder = RunFolder(results, load_table("xor"))
    seen = visit(site / "tables" / "xor.html")
    report = json.loads((results / "xor" / "report.json").read_text(encoding="utf-8"))
    assert folder.table.title == seen.page.locator("h1").inner_text() == report["title"]
    assert seen.page.locator("figure svg").count() == len(
        list((results / "xor" / "figures").glob("*.svg"))
    )
    seen.page.get_by_role("link", name="Quadnets").click()
    assert seen.page.url.endswith("index.html")
    seen.page.close()


def test_a_run_on_a_budget_is_shown_where_there_is_no_full_one(
    results: Path, tmp_path: Path
) -> None:
    whole = Report.model_validate_json((results / "xor" / "report.json").read_bytes())
    warning = "REDUCED RUN: 10 steps instead of 400."
    less = whole.model_copy(update={"reduced": "budget", "warnings": [warning]})
    folder = tmp_path / "results" / "xor"
    shutil.copytree(results / "xor" / "figures", folder / "figures-budget")
    (folder / "report-budget.json").write_text(less.model_dump_json(), encoding="utf-8")
    build([], folder.parent, tmp_path / "site")
    page = (tmp_path / "site" / "tables" / "xor.html").read_text(encoding="utf-8")
    assert warning in page
    assert page.count("<figure") == len(list((folder / "figures-budget").glob("*.svg")))
    shutil.copy(results / "xor" / "report.json", folder)
    build([], folder.parent, tmp_path / "site")
    assert warning not in (tmp_path / "site" / "tables" / "xor.html").read_text(encoding="utf-8")


def test_an_entry_of_a_table_that_changed_is_shown_as_not_verified(tmp_path: Path) -> None:
    entry = entry_of(1)
    assert entry.run is not None
    old = entry.run.model_copy(update={"version": entry.run.version + 1})
    build([entry.model_copy(update={"run": old})], None, tmp_path / "site")
    (row,) = json.loads((tmp_path / "site" / "data" / "uci.json").read_text(encoding="utf-8"))
    assert (row["rank"], row["accuracy"], row["group"]) == (None, None, "not verified")
    page = (tmp_path / "site" / "entries" / "e1.html").read_text(encoding="utf-8")
    assert "The table is not as it was when this was run." in page


def test_it_is_served_on_this_machine(site: Path, visit: Callable[..., Visit]) -> None:
    command = [sys.executable, "-m", "qbench", "leaderboard", "serve", str(site), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            (url,) = re.findall(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
            seen = visit(f"{url}boards/uci.html")
            assert len(shown(seen)) == 13
            assert seen.errors == []
            seen.page.close()
        finally:
            process.kill()


def test_what_is_no_site_is_not_served(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qbench", "leaderboard", "serve", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "holds no site: make it with qbench leaderboard build" in done.stderr
