"""The index: which weights there are, one :class:`qzoo.Provenance` each."""

import json
import os
import tempfile
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter

from qzoo.errors import WeightsError
from qzoo.provenance import Provenance

FOLDER = Path(__file__).parent / "weights"
"""The weights inside the package, and the index."""

_ROWS = TypeAdapter(tuple[Provenance, ...])


def read_index(folder: Path = FOLDER) -> dict[str, Provenance]:
    """The rows of a folder's ``index.json`` by name.

    Raises ``pydantic.ValidationError`` for a damaged one.
    """
    rows = _ROWS.validate_json((folder / "index.json").read_bytes())
    return {row.name: row for row in rows}


def write_index(rows: Mapping[str, Provenance], folder: Path) -> None:
    """Write a folder's ``index.json``, sorted by name, all or nothing."""
    records = [rows[name].model_dump(mode="json") for name in sorted(rows)]
    replace_file(folder / "index.json", (json.dumps(records, indent=1) + "\n").encode())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file by one rename: whoever reads it sees the old content or the new."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@cache
def package_index() -> Mapping[str, Provenance]:
    """The rows of this version of qzoo."""
    return read_index()


def get_provenance(name: str) -> Provenance:
    """The row of ``model.tag``, or of a model's default tag.

    Raises :class:`qzoo.WeightsError` naming what there is instead.

    >>> get_provenance("qresnet20.relinear_imagenet")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    qzoo.errors.WeightsError: qresnet20.relinear_imagenet has no weights...
    """
    rows = package_index()
    full = name if "." in name else f"{name}.{DEFAULT_TAG}"
    if full in rows:
        return rows[full]
    model = full.split(".")[0]
    of_model = [row.name for row in rows.values() if row.model == model]
    near = get_close_matches(full, rows, n=3)
    if of_model:
        instead = f"{model} has those of {', '.join(of_model)}"
    elif near:
        instead = f"near matches are {', '.join(near)}"
    elif rows:
        instead = f"there are those of {', '.join(rows)}"
    else:
        instead = "this version comes with none; pretrained=False gives an untrained network"
    raise WeightsError(f"{full} has no weights: {instead}")


DEFAULT_TAG = "relinear_c10"
"""The tag of every network's default input and classes: 3×32×32 and 10."""
