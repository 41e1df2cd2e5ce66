"""How far blocks that are being trained have come: the curves in their newest checkpoints."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbench.activity import Activity, activities
from qbench.frozen import Scalar
from qbench.table import Cell, Reduction
from qbench.trial import RunFolder

_LONGEST_HEADER = 2**28


@dataclass(frozen=True)
class Unfinished:
    """A trial that is being trained, as its last checkpoint has it; ``started`` and ``time`` are in
    seconds since 1970."""

    key: str
    axes: dict[str, Scalar]
    seed: int
    reduced: Reduction | None
    started: float
    step: tuple[int, ...]
    time: tuple[float, ...]
    history: dict[str, tuple[float, ...]]


def unfinished(folder: RunFolder) -> Iterator[Unfinished]:
    """The trials of blocks that a process is training and that have a checkpoint."""
    for activity, is_held in activities(folder):
        if is_held and activity.state == "running":
            # it may end, and its checkpoint go, at any moment
            with suppress(OSError, ValueError, KeyError, TypeError):
                yield from _trials(folder, activity)


def _trials(folder: RunFolder, activity: Activity) -> list[Unfinished]:
    # by its step; files of others that may lie there have other names
    ours = folder.checkpoint_path(activity.block).glob("[0-9]*-*.safetensors")
    newest = max(ours, default=None)
    if newest is None:
        return []
    values = _header(newest)
    cell = Cell(folder.table, activity.axes, activity.reduced)
    return [
        Unfinished(
            key=cell.trial_key(seed),
            axes=cell.axes,
            seed=seed,
            reduced=activity.reduced,
            started=values["facts"]["started"],
            step=tuple(curve["step"]),
            time=tuple(curve["time"]),
            history={name: tuple(points) for name, points in curve["metrics"].items()},
        )
        for seed, curve in zip(values["seeds"], values["curves"], strict=True)
        if not folder.has(cell, seed)
    ]


def _header(path: Path) -> dict[str, Any]:
    """What a checkpoint holds beside its tensors, which are not read."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LONGEST_HEADER:
            raise ValueError(f"{path}: a header of {length} bytes")
        values: dict[str, Any] = json.loads(
            json.loads(file.read(length))["__metadata__"]["quadnets"]
        )
    return values
