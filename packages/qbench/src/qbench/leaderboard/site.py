"""The leaderboard as static pages, which work from a file and under any path."""

import csv
import io
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import jinja2

from qbench import __version__
from qbench.errors import UserError
from qbench.leaderboard.boards import BOARDS
from qbench.leaderboard.entry import Entry, Verdict, entry_text, machine
from qbench.leaderboard.standings import (
    GROUPS,
    Row,
    cell_of,
    formula_of,
    missing_controls,
    rows_of,
)
from qbench.report.files import read_reports, suffix_of
from qbench.report.numbers import Report
from qbench.report.page import new_environment, read_part, render_page
from qbench.report.wording import format_value
from qbench.table import option_of

_MADE_BY = "qbench leaderboard build"
_MARK = ".quadnets-site"
_FOLDERS = ("boards", "entries", "tables", "data", "static")
_LONGEST = 200
_STATIC = ("site.css", "board.js", "entry.js", "chart.umd.min.js", "chart.LICENSE.md")
_TONES: Mapping[Verdict, tuple[str, str]] = MappingProxyType(
    {
        "verified": ("✓", "good"),
        "differs": ("≠", "bad"),
        "could not be loaded": ("✗", "bad"),
        "not verified": ("–", "none"),
    }
)
_COSTS = (
    ("parameters", "parameters"),
    ("multiply_adds", "multiply-adds of an input"),
    ("seconds", "training seconds of a seed"),
)


def build(entries: Sequence[Entry], results: Path | None, site: Path) -> int:
    """Write the pages of all boards, entries and reported tables to ``site``.

    Args:
        entries: what to show.
        results: a folder with ``TABLE/report.json`` and ``TABLE/figures/*.svg``, such as ``runs``,
            or ``report-budget.json`` and ``figures-budget`` of a table without a full one; None for
            no tables.
        site: the folder of the pages. It is replaced as a whole, once all pages are made, where it
            is empty or an older site; nothing else is ever replaced.

    Returns the number of pages.

    Raises ``UserError`` for a folder that holds anything else, and for a damaged report.
    """
    _check_replaceable(site)
    boards = {name: rows_of(board.datasets, entries) for name, board in BOARDS.items()}
    reports = _reports(results)
    site.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".site-", dir=site.parent) as staging:
        draft = Path(staging) / "site"
        pages = _Pages(draft, [report for report, _ in reports])
        pages.index(boards)
        for name, rows in boards.items():
            pages.board(name, rows)
            for row in rows:
                pages.entry(row)
        for report, figures in reports:
            pages.table(report, figures)
        old = Path(staging) / "old"
        draft.chmod(0o755)
        if site.exists():
            site.rename(old)
        try:
            draft.rename(site)
        except OSError:
            if old.exists():
                old.rename(site)
            raise
    return pages.count


def _check_replaceable(site: Path) -> None:
    """Only a site, or an empty folder, is replaced."""
    if not site.exists():
        return
    there = {path.name for path in site.iterdir()} if site.is_dir() else {""}
    ours = _MARK in there and there <= {_MARK, "index.html", *_FOLDERS}
    if there and not ours:
        raise UserError(
            f"{str(site)!r} holds something else than a site of {_MADE_BY}: choose another folder "
            "with --out"
        )


def _reports(results: Path | None) -> list[tuple[Report, dict[str, str]]]:
    """The reports of a folder, with their figures, in the order of the tables."""
    if results is None:
        return []
    if not results.is_dir():
        raise UserError(f"there is no folder {str(results)!r}: name one with --results")
    return [
        (
            report,
            {
                figure.stem: figure.read_text(encoding="utf-8")
                for figure in sorted(
                    (results / report.table / f"figures{suffix_of(report.reduced)}").glob("*.svg")
                )
            },
        )
        for report in read_reports(results)
    ]


class _Pages:
    """The pages of one site, in a folder of their own."""

    def __init__(self, folder: Path, tables: Sequence[Report]) -> None:
        self._folder = folder
        self.count = 0
        # what every page leads to: a name, a title, and the address from the first page
        self._links = [("index", "Quadnets", "index.html")]
        self._links += [(key, board.title, f"boards/{key}.html") for key, board in BOARDS.items()]
        if tables:
            self._links.append(("tables", "The papers’ tables", "index.html#tables"))
        parts = resources.files("qbench.leaderboard") / "pages"
        self._environment = new_environment()
        self._environment.loader = jinja2.FunctionLoader(
            lambda name: (parts / name).read_text(encoding="utf-8")
        )
        self._environment.filters.update(_FILTERS)
        self._environment.globals.update(
            boards=BOARDS,
            tables=tables,
            links=self._links,
            tones=_TONES,
            version=__version__,
            made=datetime.now(UTC).date().isoformat(),
        )
        for name in _FOLDERS:
            (folder / name).mkdir(parents=True)
        _write(folder / _MARK, f"made by {_MADE_BY}, which replaces this folder\n")
        _write(folder / "static" / "report.css", read_part("style.css"))
        for name in _STATIC:
            _write(folder / "static" / name, (parts / name).read_bytes())

    def index(self, boards: Mapping[str, Sequence[Row]]) -> None:
        """The first page: each board with its leaders, and the tables."""
        overview = [
            (
                name,
                BOARDS[name],
                [
                    first[0]
                    for dataset in BOARDS[name].datasets
                    if (first := [r for r in rows if r.entry.dataset == dataset and _leads(r)])
                ],
                len(rows),
            )
            for name, rows in boards.items()
        ]
        self._page("index.html", "index.html.j2", here="index", overview=overview)

    def board(self, name: str, rows: Sequence[Row]) -> None:
        """A board's page, and its rows as CSV and JSON."""
        board = BOARDS[name]
        present = [d for d in board.datasets if any(row.entry.dataset == d for row in rows)]
        missing: dict[str, list[str]] = {}
        for dataset in present:
            for control in missing_controls([r for r in rows if r.entry.dataset == dataset]):
                missing.setdefault(control, []).append(dataset)
        self._page(
            f"boards/{name}.html",
            "board.html.j2",
            here=name,
            name=name,
            board=board,
            rows=rows,
            present=present,
            missing=missing,
            groups=[group for group in GROUPS if any(row.group == group for row in rows)],
            costs=_COSTS,
        )
        records = [record_of(row) for row in rows]
        _write(self._folder / "data" / f"{name}.csv", to_csv(records))
        text = json.dumps(records, indent=1, ensure_ascii=False, allow_nan=False)
        _write(self._folder / "data" / f"{name}.json", text + "\n")

    def entry(self, row: Row) -> None:
        """An entry's page, and the entry itself beside it."""
        entry = row.entry
        self._page(
            f"entries/{entry.id}.html",
            "entry.html.j2",
            here=entry.board,
            row=row,
            measured_on=machine(entry.measured.hardware) if entry.measured else None,
            formula=formula_of(row.network),
            facts=_facts(entry),
            lines=lines_for(entry),
            curves=_curves(entry),
        )
        _write(self._folder / "entries" / f"{entry.id}.json", entry_text(entry))

    def table(self, report: Report, figures: Mapping[str, str]) -> None:
        """A table's report, as it is, beside the boards."""
        name = report.table
        text = json.dumps(report.model_dump(mode="json"), ensure_ascii=False, allow_nan=False)
        _write(self._folder / "tables" / f"{name}.json", text + "\n")
        links = {title: f"../{address}" for _, title, address in self._links}
        page = render_page(report, figures, f"{name}.json", links=links)
        _write(self._folder / "tables" / f"{name}.html", page)
        self.count += 1

    def _page(self, path: str, template: str, **values: Any) -> None:
        root = "../" * path.count("/")
        page = self._environment.get_template(template).render(root=root, **values)
        _write(self._folder / path, page)
        self.count += 1


def _write(path: Path, content: str | bytes) -> None:
    """Write a file of the draft: the site as a whole is put in its place by a rename."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def _leads(row: Row) -> bool:
    return row.group == "full runs" and row.rank == 1


def lines_for(entry: Entry) -> str:
    """What a reader types to have the weights, or to run it again; nothing for a table that is not
    as it was."""
    if entry.weights is not None and entry.provenance is not None:
        name = entry.weights
        if name.startswith("local-dir:"):
            name = f"hf-hub:ORGANISATION/{entry.provenance.name}"
            said = (
                "# the weights lie in a folder of who submitted them; once they are on the Hub:\n"
            )
        else:
            said = ""
        return (
            f"{said}import qzoo, timm  # pip install quadnets-zoo\n\n"
            f'model = timm.create_model("{name}", pretrained=True).eval()'
        )
    run = entry.run
    assert run is not None  # noqa: S101 - an entry has one of the two
    try:
        cell = cell_of(entry)
    except UserError:
        return ""
    options = [
        part
        for axis, value in cell.axes.items()
        for part in (
            "--only" if axis in cell.table.grid_axes else "--axis",
            f"{axis}={format_value(value)}",
        )
    ]
    words = ["qbench", "run", run.table, *options, "--seeds", str(len(run.seeds))]
    return shlex.join([*words, *option_of(cell.reduced)])


def _facts(entry: Entry) -> list[tuple[str, str]]:
    """What is known of the weights and of the run: names of facts, and the facts."""
    facts: list[tuple[str, str]] = []
    record, run = entry.provenance, entry.run
    if record is not None:
        before = record.preprocessing
        facts += [
            ("Network", record.model),
            ("Weights", f"{record.size:,} bytes, {record.dtype}, sha256 {record.sha256}"),
            ("Input", "×".join(map(str, before.input_size))),
            ("Preprocessing", f"mean {_numbers(before.mean)}, std {_numbers(before.std)}"),
            ("Licence", record.licence),
        ]
    if run is not None:
        axes = ", ".join(f"{axis} {format_value(value)}" for axis, value in run.axes.items())
        facts.append(("Table", f"{run.table}, version {run.version}: {axes}"))
    elif record is not None and record.table is not None:
        version = f", version {record.table_version}" if record.table_version else ""
        facts.append(("Table", f"{record.table}{version}"))
    recipe = record.recipe if record is not None else {}
    for name, value in recipe.items():
        if value not in (None, [], {}, False, 0, 0.0, "none"):
            facts.append((f"recipe: {name}", _plain(value)))
    source = run if run is not None else record
    if source is not None and source.commit:
        facts.append(("Commit", source.commit))
    if source is not None and source.versions:
        facts.append(("Versions", ", ".join(f"{k} {v}" for k, v in source.versions.items())))
    return facts


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items() if one is not None)
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return format_value(value) if isinstance(value, str | float) else str(value)[:_LONGEST]


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _curves(entry: Entry) -> dict[str, Any] | None:
    """The accuracy along training by seed, where a run recorded it."""
    run = entry.run
    if run is None or len(run.steps) < 2:
        return None
    seeds = {one.seed: one.curve for one in run.seeds if len(one.curve) == len(run.steps)}
    return {"step": run.steps, "seeds": seeds} if seeds else None


def record_of(row: Row) -> dict[str, Any]:
    """A row as the downloads have it."""
    entry, found = row.entry, row.entry.measured
    low, high = row.interval95 or (None, None)
    plain, matched = row.difference_to("plain"), row.difference_to("parameter-matched")
    return {
        "id": entry.id,
        "title": entry.title,
        "dataset": entry.dataset,
        "group": row.group,
        "rank": row.rank,
        "neuron": row.network.neuron,
        "head": row.network.head,
        "control": row.network.control,
        "accuracy": row.accuracy,
        "std": row.std,
        "n": row.n,
        "low95": low,
        "high95": high,
        "claimed": entry.claim.accuracy,
        "status": entry.verdict,
        "difference_to_plain_control": plain.mean if plain else None,
        "difference_to_matched_control": matched.mean if matched else None,
        "parameters": row.parameters,
        "multiply_adds": row.multiply_adds,
        "training_seconds": row.seconds,
        "latency_ms": found.latency if found else None,
        "margin": found.margin if found else None,
        "hardware": entry.claim.hardware,
        "authors": entry.claim.authors,
        "paper": entry.claim.paper,
        "url": entry.claim.url,
        "selection": entry.selection,
        "reduced": entry.reduced,
        "submitted": entry.submitted.isoformat(),
    }


def to_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Records as CSV, in which no text begins as a formula of a spreadsheet does.

    >>> print(to_csv([{"title": "=1+1", "rank": -1}]).strip())
    "title","rank"
    "'=1+1","-1"
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)
    if records:
        writer.writerow(records[0].keys())
    for record in records:
        writer.writerow([_harmless(value) for value in record.values()])
    return buffer.getvalue()


def _harmless(value: Any) -> Any:
    if isinstance(value, str) and re.match(r"\s*[=+\-@|%\t\r]", value):
        return f"'{value}"
    return value


def _points(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _percent(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _seconds(value: float) -> str:
    r"""Seconds with three digits that matter.

    >>> _seconds(0.01234), _seconds(12345.6)
    ('0.0123', '12\u202f346')
    """
    return f"{value:,.0f}".replace(",", "\u202f") if value >= 100 else f"{value:.3g}"


_FILTERS = MappingProxyType({"points": _points, "percent": _percent, "seconds": _seconds})
