"""The index: which weights there are, one :class:`qzoo.Provenance` each."""

import json
import os
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from qzoo.architectures import default_tag
from qzoo.errors import WeightsError
from qzoo.provenance import Provenance

FOLDER = Path(__file__).parent / "weights"
"""The weights inside the package, and the index."""

Records = TypeVar("Records")

RECORD = "provenance.json"
"""The record of one file of weights, beside it."""

RECORD_TYPE = TypeAdapter(Provenance)

_ROWS = TypeAdapter(tuple[Provenance, ...])


def read_index(folder: Path = FOLDER) -> dict[str, Provenance]:
    """The rows of a folder's ``index.json`` by name.

    Raises :class:`qzoo.WeightsError` for a missing or damaged one, and for a name that is there
    twice.
    """
    path = folder / "index.json"
    if not path.is_file():
        raise WeightsError(f"{folder} has no index.json: give the folder of an index")
    rows: dict[str, Provenance] = {}
    for row in read_records(path, _ROWS):
        if row.name in rows:
            raise WeightsError(f"{path}: two rows are named {row.name}: keep the right one")
        rows[row.name] = row
    return rows


def read_records(path: Path, kind: TypeAdapter[Records]) -> Records:
    """What a JSON file holds, as records.

    Raises :class:`qzoo.WeightsError` that names the first thing that is wrong.
    """
    try:
        return kind.validate_json(path.read_bytes())
    except ValidationError as error:
        raise WeightsError(f"{path}: {problem(error)}") from None


def problem(error: ValidationError) -> str:
    """The first thing that is wrong with a record, in one line."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "all of it"
    said = " ".join(f"{where}: {first['msg']}".split())
    # nor what would move a terminal's cursor or change its colours
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in said)
    return "".join(shown)[:500]


def index_content(rows: Mapping[str, Provenance]) -> bytes:
    """Rows as ``index.json`` holds them, sorted by name."""
    records = [rows[name].model_dump(mode="json") for name in sorted(rows)]
    return (json.dumps(records, indent=1) + "\n").encode()


def replace_files(contents: Mapping[Path, bytes]) -> None:
    """Write files, all of them, or where one fails none: each is put in place by a rename.

    Raises ``OSError`` as writing does; what was there before is there again.
    """
    drafts: dict[Path, Path] = {}
    kept: dict[Path, Path | None] = {}
    try:
        for path, content in contents.items():
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            drafts[path] = Path(name)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            drafts[path].chmod(0o644)  # as any file; mkstemp gives 0600
        for path, draft in drafts.items():
            old = draft.with_name(f"{draft.name}.old") if path.exists() else None
            if old:
                os.replace(path, old)
            kept[path] = old
            os.replace(draft, path)
    except BaseException:
        for path, old in kept.items():
            if old:
                os.replace(old, path)
            else:
                path.unlink(missing_ok=True)
        raise
    finally:
        for left in (*drafts.values(), *filter(None, kept.values())):
            left.unlink(missing_ok=True)


@cache
def package_index() -> Mapping[str, Provenance]:
    """The rows of this version of qzoo."""
    return read_index()


def weights_of(model: str) -> list[Provenance]:
    """The rows of a model, whatever their tags."""
    return [row for row in package_index().values() if row.model == model]


def get_provenance(name: str) -> Provenance:
    """The row of ``model.tag``, or of a model's default tag.

    Raises :class:`qzoo.WeightsError` naming what there is instead.

    >>> get_provenance("qresnet20.relinear_imagenet")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    qzoo.errors.WeightsError: qresnet20.relinear_imagenet has no weights...
    """
    rows = package_index()
    full = name if "." in name else f"{name}.{default_tag(name)}"
    if full in rows:
        return rows[full]
    model = full.split(".")[0]
    if of_model := weights_of(model):
        instead = f"{model} has those of {', '.join(row.name for row in of_model)}"
    elif rows:
        instead = f"there are those of {', '.join(rows)}"
    else:
        instead = "this version comes with none; pretrained=False gives an untrained network"
    raise WeightsError(f"{full} has no weights: {instead}")
