"""What is happening to blocks: a file for each that is being run, was interrupted, or failed."""

import os
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from filelock import Timeout
from pydantic import ValidationError

from qbench.frozen import Frozen, Scalar
from qbench.table import RecordedReduction, Reduction
from qbench.trial import RunFolder, clear_parts, write_whole

_EVERY = 5.0
"""Seconds between two records of how far a block has come."""


class Activity(Frozen):
    """A block that has begun and not ended well.

    ``fraction`` of it was done at ``updated``; times are in seconds since 1970. ``reason`` and
    ``traceback`` are those of one that failed.
    """

    block: str
    axes: dict[str, Scalar]
    seeds: tuple[int, ...]
    reduced: RecordedReduction
    state: Literal["running", "failed"]
    host: str
    pid: int
    started: float
    updated: float
    fraction: float = 0.0
    reason: str = ""
    traceback: str = ""


class Recorder:
    """Writes one block's file while the block runs; the last sight of it where it does not end.

    The file is a courtesy: where it cannot be written, training goes on without.
    """

    def __init__(self, path: Path, activity: Activity) -> None:
        self._path, self._activity = path, activity
        self._said = time.monotonic()
        self._write()

    def at(self, fraction: float) -> None:
        """Record how far the block has come, now and then."""
        if time.monotonic() - self._said >= _EVERY:  # the time of day may be set back
            self._change(fraction=fraction)

    def failed(self, error: BaseException) -> None:
        """Record why the block failed."""
        self._change(
            state="failed",
            reason=reason_of(error),
            traceback="".join(traceback.format_exception(error)),
        )

    def _change(self, **changes: object) -> None:
        self._said = time.monotonic()
        self._activity = self._activity.model_copy(update={**changes, "updated": time.time()})
        self._write()

    def _write(self) -> None:
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, self._activity.model_dump_json() + "\n")


@contextmanager
def recorded(
    folder: RunFolder,
    block: str,
    axes: dict[str, Scalar],
    seeds: tuple[int, ...],
    *,
    reduced: Reduction | None,
) -> Iterator[Recorder]:
    """Keep the file of a block whose lock is held: removed at a good end, with the reason at a bad
    one, and left as it was by a kill or an interruption."""
    path = folder.activity_path(block)
    with suppress(OSError):
        clear_parts(path.parent, path.name)
    now = time.time()
    recorder = Recorder(
        path,
        Activity(
            block=block,
            axes=axes,
            seeds=seeds,
            reduced=reduced,
            state="running",
            host=socket.gethostname(),
            pid=os.getpid(),
            started=now,
            updated=now,
        ),
    )
    try:
        yield recorder
    except Exception as error:
        recorder.failed(error)
        raise
    with suppress(OSError):
        path.unlink(missing_ok=True)


def reason_of(error: BaseException) -> str:
    """An error in a line.

    >>> reason_of(ValueError("too large\\nby far"))
    'ValueError: too large'
    """
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def activities(folder: RunFolder) -> list[tuple[Activity, bool]]:
    """The blocks with a file, and whether a process holds the lock of each now."""
    paths = sorted(folder.activity_path("x").parent.glob("*.json"))
    seen = (_seen(folder, path) for path in paths)
    return [(activity, is_held) for activity, is_held in seen if activity is not None]


def _seen(folder: RunFolder, path: Path) -> tuple[Activity | None, bool]:
    """What a file says, and whether a process holds its block's lock."""
    try:
        with folder.lock(path.stem).acquire(timeout=0):
            return _read(path), False  # under the lock: nobody ends or begins the block meanwhile
    except Timeout:
        return _read(path), True
    except OSError:  # a folder of somebody else, whose locks cannot be tried: the file is believed
        activity = _read(path)
        return activity, activity is not None and activity.state == "running"


def _read(path: Path) -> Activity | None:
    """What a file says; None for one that has just been removed, or is none of ours."""
    try:
        return Activity.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
