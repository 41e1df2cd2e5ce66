"""Making entries: of weights in a folder, on the Hub or in the zoo, and of runs of our tables."""

import json
import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qbench.catalogue import DATASETS
from qbench.errors import UserError, first_problem
from qbench.leaderboard.boards import BOARDS, all_datasets, board_of, get_board
from qbench.leaderboard.entry import (
    Entry,
    Run,
    Seed,
    Selection,
    entry_path,
    machine,
    read_entry,
    write_entry,
)
from qbench.report.statistics import summarize
from qbench.report.wording import format_value
from qbench.table import Cell, load_table, table_names
from qbench.trial import Result, RunFolder, read_result
from qzoo import Provenance, WeightsError
from qzoo.folder import read_folder
from qzoo.hub import HUB_FILE, download
from qzoo.index import RECORD, RECORD_TYPE, get_provenance, read_records

_HOUSE = "Quadnets"
_CONFIG = "config.json"
_POINTS = 100  # of a curve


def submit(
    source: str | None,
    folder: Path,
    *,
    key: str | None = None,
    out: Path = Path("runs"),
    board: str | None = None,
    identifier: str | None = None,
    title: str | None = None,
    replace: bool = False,
    selection: Selection = "last epoch",
    **claim: Any,
) -> Entry:
    """Make an entry and write it to ``folder``; nothing is measured, nothing is copied.

    Args:
        source: a folder of weights, ``ORG/NAME`` of the Hub, or a name of the zoo's weights.
        folder: of the entries.
        key: of a trial under ``out``, or its beginning: the entry is of its cell, over its seeds
            0, 1, … as far as they are recorded.
        out: the folder of results.
        board: where the entry belongs; by default to the dataset that it was measured on.
        identifier: of the entry; by default made of what it is.
        title: by default the name of weights, or table, model and choices of a run.
        replace: whether an entry of that id may be replaced by another.
        selection: which epoch's weights were taken.
        claim: fields of :class:`qbench.leaderboard.entry.Claim`; those left out come from the
            record of the weights and from the run.

    Raises ``UserError`` for what is not there, does not fit together, or is no valid entry; nothing
    is written then.
    """
    if source is None and key is None:
        raise UserError(
            "nothing to submit: give a folder of weights, a name on the Hub, or --run KEY"
        )
    if source is not None and key is not None:
        raise UserError(f"{source!r} are weights, {key!r} is a run: submit each by itself")
    if key is not None and claim.get("accuracy") is not None:
        raise UserError("the accuracy of a run is the mean over its seeds: leave out --accuracy")
    if key is not None and claim.get("training_seconds") is not None:
        raise UserError("a run has measured its seconds itself: leave out --training-seconds")
    if board is not None:
        get_board(board)
    weights, record = (None, None) if source is None else _weights(source)
    run, cell = (None, None) if key is None else _run(out, key)
    dataset = _dataset(record, cell, board)
    given = {name: value for name, value in claim.items() if value is not None}
    facts = {**_known(weights, record, run), **given}
    for field, what in (
        ("accuracy", "the claimed test accuracy in percent, --accuracy"),
        ("authors", "who claims it, --authors"),
    ):
        if field not in facts:
            raise UserError(f"the entry lacks {field}: give {what}")
    name = title or _title(record, cell)
    reduced = record.reduced if record is not None else bool(cell and cell.reduced)
    entry = _validated(
        {
            "id": identifier or _identifier(weights, record, cell),
            "board": board_of(dataset),
            "dataset": dataset,
            "title": name,
            "claim": facts,
            "submitted": datetime.now(UTC).date(),
            "selection": selection,
            "reduced": reduced,
            "weights": weights,
            "provenance": record,
            "run": run,
        }
    )
    return _put(entry, folder, replace=replace)


def _put(entry: Entry, folder: Path, *, replace: bool) -> Entry:
    path = entry_path(folder, entry.id)
    if (twin := _twin(entry, folder)) is not None:
        what = "this run is" if entry.run is not None else "these weights are"
        raise UserError(f"{what} entry {twin} already, and no board has one twice: submit another")
    if path.exists():
        old = read_entry(path)
        kept = {"submitted": old.submitted, "measurement": old.measurement}
        if entry.model_copy(update=kept) == old:
            return old
        if not replace:
            same = "the same" if _is_same(entry, old) else "another"
            raise UserError(
                f"{path} is an entry of {same} {'run' if old.run else 'file'}, by "
                f"{old.claim.authors}: submit another, with an --id of its own, or replace it on "
                "purpose, --replace"
            )
    write_entry(entry, folder)
    return entry


def _twin(entry: Entry, folder: Path) -> str | None:
    """Another entry in the folder of the same weights, or of the same run, by its name."""
    for path in sorted(folder.glob("*.json")):
        other = read_entry(path)
        if other.id != entry.id and other.selection == entry.selection and _is_same(entry, other):
            return other.id
    return None


def _is_same(entry: Entry, other: Entry) -> bool:
    """Whether two entries are of the same file, or share trials."""
    if entry.run is not None and other.run is not None:
        return bool({one.key for one in entry.run.seeds} & {one.key for one in other.run.seeds})
    if entry.provenance is not None and other.provenance is not None:
        return entry.provenance.sha256 == other.provenance.sha256
    return False


def _validated(fields: dict[str, Any]) -> Entry:
    try:
        return Entry.model_validate(fields)
    except ValidationError as error:
        raise UserError(f"this is no entry of the leaderboard: {first_problem(error)}") from error


def _weights(source: str) -> tuple[str, Provenance]:
    """What the entry says of where weights are, and their record."""
    try:
        if Path(source).is_dir():
            return f"local-dir:{source}", read_folder(source).record
        if source.startswith((".", "/", "~")) or source.count("/") > 1:
            raise UserError(f"there is no folder {source!r}: make one with qzoo.save_weights")
        if "/" in source:
            return f"hf-hub:{source}", _of_hub(source)
        row = get_provenance(source)
        return row.name, row
    except WeightsError as error:
        raise UserError(f"{source!r} cannot be submitted: {error}") from error


def _of_hub(source: str) -> Provenance:
    """The record of a repository, whose weights and preprocessing have to be what it says."""
    repository, _, revision = source.partition("@")
    record = read_records(download(repository, RECORD, None, revision or None), RECORD_TYPE)
    record.check(download(repository, HUB_FILE, None, revision or None))
    config = download(repository, _CONFIG, None, revision or None)
    try:
        said = json.loads(config.read_bytes())["pretrained_cfg"]
        pairs = {
            key: (list(said[key]), list(getattr(record.preprocessing, key)))
            for key in ("mean", "std")
        }
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{_CONFIG} of {repository} has no pretrained_cfg with mean and std, which says how "
            "images are prepared: publish it with qzoo publish"
        ) from None
    for key, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise UserError(
                f"{_CONFIG} of {repository} prepares images with {key} {theirs}, and its {RECORD} "
                f"says {ours}: one of them is wrong, and so will be the accuracy"
            )
    return record


def find_result(out: Path, key: str) -> Result:
    """The result whose key begins with ``key``, of whatever table.

    Raises ``UserError`` for none, and for several.
    """
    if not re.fullmatch("[0-9a-f]{1,16}", key):
        raise UserError(f"{key!r} is no key: give the 16 digits of a folder under {out}/TABLE/")
    paths = [
        path
        for table in table_names()
        for path in sorted((out / table).glob(f"{key}*/result.json"))
    ]
    if not paths:
        raise UserError(
            f"no trial in {str(out)!r} has a key that begins with {key!r}: make one with qbench "
            "run, or name its folder with --out"
        )
    if len(paths) > 1:
        shown = ", ".join(f"{path.parent.name} ({path.parent.parent.name})" for path in paths[:5])
        raise UserError(f"{key!r} is the beginning of several keys: {shown}. Give more of it")
    return read_result(paths[0])


def _run(out: Path, key: str) -> tuple[Run, Cell]:
    """The run that a trial is of: its cell over all seeds recorded."""
    one = find_result(out, key)
    table = load_table(one.table)
    if one.version != table.version:
        raise UserError(
            f"trial {one.key} is of version {one.version} of table {table.id}, which is at version "
            f"{table.version}: run it again"
        )
    cell = Cell(table, one.axes, one.reduced)
    results = sorted(
        (r for r in RunFolder(out, table).recorded() if r.cell_key == one.cell_key),
        key=lambda result: result.seed,
    )
    results = [result for place, result in enumerate(results) if result.seed == place]
    if not results:
        raise UserError(f"seed 0 of the run of {one.key} is not recorded: run it, too")
    if "test_accuracy" not in one.metrics:
        raise UserError(
            f"trial {one.key} of table {table.id} measured no test accuracy: no board compares it"
        )
    latest = max(results, key=lambda result: result.environment.started).environment
    run = {
        "table": table.id,
        "version": table.version,
        "axes": one.axes,
        "seeds": [
            Seed(
                key=result.key,
                seed=result.seed,
                accuracy=result.value("test_accuracy"),
                seconds=result.environment.seconds / max(1, len(result.environment.block)),
                curve=kept(result.history.get("test_accuracy", ())),
            )
            for result in results
        ],
        "steps": kept(one.step),
        "parameters": one.parameters,
        "multiply_adds": one.multiply_adds,
        "commit": latest.commit,
        "versions": latest.versions,
        "hardware": latest.hardware,
    }
    try:
        return Run.model_validate(run), cell
    except ValidationError as error:
        raise UserError(f"trial {one.key} cannot be submitted: {first_problem(error)}") from error


def kept(values: Sequence[Any]) -> tuple[Any, ...]:
    """A curve's points, or where there are many so many evenly chosen ones, first and last too.

    >>> kept(range(1000))[:3], kept(range(1000))[-1], len(kept(range(1000)))
    ((0, 10, 20), 999, 100)
    """
    last = len(values) - 1
    if last < _POINTS:
        return tuple(values)
    return tuple(values[round(place * last / (_POINTS - 1))] for place in range(_POINTS))


def _dataset(record: Provenance | None, cell: Cell | None, board: str | None) -> str:
    """The dataset of an entry: the run's, or the one that the weights were measured on."""
    if cell is not None:
        board_of(cell.dataset)
        if board is not None and cell.dataset not in BOARDS[board].datasets:
            raise UserError(
                f"the run is on {cell.dataset}, which belongs to board {board_of(cell.dataset)}, "
                f"not to {board}"
            )
        return cell.dataset
    measured = record.evaluation.dataset if record and record.evaluation else None
    known = [name for name in all_datasets() if DATASETS[name].timm]
    on = [name for name in known if DATASETS[name].timm == measured]
    if board is not None and on and board_of(on[0]) != board:
        raise UserError(
            f"the weights were measured on {on[0]}, which belongs to board {board_of(on[0])}, not "
            f"to {board}"
        )
    found = on if board is None else [name for name in known if name in BOARDS[board].datasets]
    if len(found) != 1:
        raise UserError(
            "the weights do not say which dataset they are for: name the board, --board "
            f"{' or '.join(dict.fromkeys(board_of(name) for name in known))}"
        )
    return found[0]


def _known(weights: str | None, record: Provenance | None, run: Run | None) -> dict[str, Any]:
    """What record and run say of the claim."""
    facts: dict[str, Any] = {}
    if record is not None:
        accuracy = record.evaluation.top1 if record.evaluation else record.claimed
        facts = {"accuracy": accuracy, "hardware": machine(record.hardware)}
        if weights == record.name:  # the zoo's own
            facts["authors"] = _HOUSE
    if run is not None:
        of_seeds = summarize(list(run.accuracies.values()))
        if of_seeds is None:
            raise UserError("all seeds of the run diverged: there is no accuracy to claim")
        facts |= {
            "accuracy": of_seeds.mean,
            "training_seconds": run.seconds,
            "hardware": machine(run.hardware),
        }
    return {name: value for name, value in facts.items() if value is not None}


def _choices(cell: Cell) -> list[str]:
    """What a cell was run with, other than by default."""
    defaults = cell.table.defaults
    return [
        f"{axis} {format_value(value)}"
        for axis, value in cell.axes.items()
        if axis not in ("dataset", "model") and value != defaults.get(axis)
    ]


def _title(record: Provenance | None, cell: Cell | None) -> str:
    if record is not None:
        return record.name
    assert cell is not None  # noqa: S101 - an entry has one of the two
    return ", ".join([str(cell.axes["model"]), *_choices(cell)])


def _identifier(weights: str | None, record: Provenance | None, cell: Cell | None) -> str:
    """An id made of what the entry is."""
    if record is not None and weights is not None:
        source, _, rest = weights.partition(":")
        return slug([rest.partition("@")[0] if source == "hf-hub" else record.name])
    assert cell is not None  # noqa: S101 - an entry has one of the two
    reduced = [cell.reduced] if cell.reduced else []
    parts = [cell.table.id, cell.dataset, str(cell.axes["model"]), *_choices(cell), *reduced]
    return slug(parts)


def slug(parts: Sequence[str]) -> str:
    """Words as an id: small letters, digits and hyphens, 80 at most.

    >>> slug(["uci", "iris", "rank1-affine", "init_scale 0.1"])
    'uci-iris-rank1-affine-init-scale-0-1'
    """
    plain = unicodedata.normalize("NFKD", " ".join(parts)).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:80].strip("-") or "entry"
