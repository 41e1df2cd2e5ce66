"""Take a folder's weights into the package and its index."""

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from qzoo.errors import WeightsError
from qzoo.evaluation import TOLERANCE, evaluate
from qzoo.folder import WeightsFolder, read_folder
from qzoo.index import FOLDER, index_content, read_index, replace_files
from qzoo.provenance import Dtype, Provenance, fingerprint

LIMIT = 20_000_000
"""Bytes that all weights in the package may have together."""


def bundle(
    folder: str | Path,
    *,
    into: str | Path = FOLDER,
    dtype: Dtype | None = None,
    root: str | Path | None = None,
    hub_only: bool = False,
    replace: bool = False,
) -> Provenance:
    """Add a folder's weights to an index, and the file beside it.

    Args:
        folder: holds ``model.safetensors`` and ``provenance.json``.
        into: the folder with ``index.json``: by default the package's own.
        dtype: None stores what the folder holds; float16 and bfloat16 store tensors of two or more
            dimensions in half the bytes, if the accuracy stays exactly the same, and need ``root``.
        root: the folder that holds the dataset.
        hub_only: add the row alone; the file is on the Hub.
        replace: whether weights of that name may be replaced by others.

    Returns the row. Twice the same changes nothing.

    Raises :class:`qzoo.WeightsError` for a folder that is not whole, for other weights under a name
    that is taken, for an accuracy that changes, and where the file does not fit in: nothing is
    written then.
    """
    into = Path(into)
    weights = read_folder(folder)
    row, content = weights.record, weights.file.read_bytes()
    if dtype not in (None, row.dtype):
        row, content = _halved(weights, dtype, root)
    rows = read_index(into)
    old, path = rows.get(row.name), into / row.filename
    if old == row and hub_only != path.exists() and (hub_only or row.describes(path)):
        return row
    if old is not None and old.sha256 != row.sha256 and not replace:
        raise WeightsError(
            f"{row.name} is in the index with other weights: choose another tag, for who loads "
            "them counts on what they are, or replace them on purpose, replace=True (--replace)"
        )
    others = (other for other in into.glob("*.safetensors") if other != path)
    total = len(content) + sum(other.stat().st_size for other in others)
    if not hub_only and total > LIMIT:
        raise WeightsError(
            f"with {row.name} the package's weights would have {total / 1e6:.1f} MB, and "
            f"{LIMIT / 1e6:.0f} are allowed: store them in float16, or leave the file to the Hub, "
            "hub_only=True (--hub-only)"
        )
    index = {into / "index.json": index_content({**rows, row.name: row})}
    try:
        replace_files(index if hub_only else {path: content, **index})
        if hub_only:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise WeightsError(f"{into} cannot be written: {error.strerror}") from None
    return row


def _halved(
    weights: WeightsFolder, dtype: Dtype, root: str | Path | None
) -> tuple[Provenance, bytes]:
    """Row and file of the weights in fewer bytes, if they are as accurate."""
    row, known = weights.record, weights.record.evaluation
    if dtype == "float32":
        raise WeightsError(f"{weights.file} has {row.dtype}, and no float32 to go back to")
    if root is None or known is None:
        missing = "root= (--data)" if root is None else "an evaluation in the folder's record"
        raise WeightsError(f"dtype={dtype!r} is for weights as accurate as before: give {missing}")

    def stored(value: Tensor) -> Tensor:
        halved = value.is_floating_point() and value.ndim > 1
        return value.to(getattr(torch, dtype)) if halved else value

    state = {name: stored(value) for name, value in weights.state.items()}
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise WeightsError(f"{dtype} cannot hold {row.name}: keep {row.dtype}")
    model = weights.model()
    before = evaluate(model, known.dataset, root=root, split=known.split or "test")
    if before.images != known.images or abs(before.top1 - known.top1) > TOLERANCE:
        raise WeightsError(
            f"{row.name} has {before.top1:.2f} % of {before.images} images under {root}, and "
            f"{known.top1:.2f} % of {known.images} by its record: give the data of the record"
        )
    model.load_state_dict(state)
    after = evaluate(model, known.dataset, root=root, split=known.split or "test")
    if after.top1 != before.top1:
        raise WeightsError(
            f"in {dtype} {row.name} has {after.top1:.2f} % instead of {before.top1:.2f} %: keep "
            f"{row.dtype}, or leave the file to the Hub, hub_only=True (--hub-only)"
        )
    content = safetensors.torch.save(state)
    changed = {"dtype": dtype, "evaluation": after, **fingerprint(content)}
    return row.model_copy(update=changed), content
