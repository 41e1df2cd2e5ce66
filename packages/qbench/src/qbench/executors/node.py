"""A block on a node of a cluster: what is sent there, what is done with it, what comes back."""

import math
import os
import socket
import tempfile
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from qbench.block import Block, Setting, keep_freed_memory
from qbench.data.images import Part, give_images
from qbench.data.tabular import Arrays
from qbench.errors import UserError
from qbench.executors.dispatch import Done, Failed
from qbench.executors.here import attempt
from qbench.frozen import Scalar
from qbench.table import Cell, Reduction, Table
from qbench.trial import Result, RunFolder, read_result, versions

Images = tuple[Arrays, Arrays]
"""Training and test images with their classes, as the arrays that are sent."""


@dataclass(frozen=True)
class Job:
    """What all blocks of a run have in common.

    ``out`` is where nodes look for the run folder, which they know by the file ``token`` in it;
    ``packages`` are the versions that they must have.
    """

    out: Path
    token: str
    table: Table
    setting: Setting
    threads: int
    packages: dict[str, str]


@dataclass(frozen=True)
class Record:
    """A result with the files beside it, as it goes from one machine to another."""

    result: str
    files: dict[str, bytes]

    @classmethod
    def read(cls, folder: RunFolder, key: str) -> "Record":
        """The trial ``key`` of a run folder."""
        result = read_result(folder.result_path(key))
        files = {name: folder.read_file(result, name) for name in result.files}
        return cls(result.model_dump_json(), files)

    def write(self, folder: RunFolder) -> Result | None:
        """Record it in a run folder; None where it is recorded already."""
        result = Result.model_validate_json(self.result)
        if folder.result_path(result.key).exists():
            return None
        return read_result(folder.write(result, self.files))


@dataclass(frozen=True)
class Task:
    """A block as it is sent to a node, which has the table.

    ``before`` are the results that it starts from, where it is to be run apart from the run folder.
    """

    axes: dict[str, Scalar]
    reduced: Reduction | None
    seeds: tuple[int, ...]
    wait: bool
    before: tuple[Record, ...] | None = None


@dataclass(frozen=True)
class Said:
    """What has become of a block, as a node says it.

    ``kind`` is that of an event; ``stop`` for what the next block would meet as well, ``system``
    for an error of the node's system with its number and place; ``unseen`` where the node does not
    see the run folder. ``keys`` are those of the results written to the run
    folder, ``records`` those of a block that was run apart from it, and ``activity`` is what that
    left of a failure.
    """

    kind: str
    text: str = ""
    keys: tuple[str, ...] = ()
    records: tuple[Record, ...] = ()
    activity: bytes = b""
    errno: int | None = None
    place: str = ""
    notes: list[str] = field(default_factory=list)


def packages() -> dict[str, str]:
    """The versions of our packages, which must be the same on all nodes."""
    return {name: number for name, number in versions().items() if name.startswith("quadnets-")}


def work(job: Job, task: Task, images: Images | None) -> Said:
    """Run a block: in the run folder where it is seen, or apart from it where the task says so."""
    try:
        return _worked(job, task, images)
    except UserError as error:
        return Said("stop", str(error))
    except OSError as error:
        place = " on ".join(filter(None, [error.filename, socket.gethostname()]))
        return Said("system", error.strerror or str(error), errno=error.errno, place=place)


def _worked(job: Job, task: Task, images: Images | None) -> Said:
    for name, number in packages().items():
        if number != job.packages[name]:
            there = f"{name} {number} on {socket.gethostname()}"
            text = f"{there} is not {job.packages[name]}, as here: install the same on every node"
            return Said("stop", text)
    torch.set_num_threads(job.threads)
    keep_freed_memory()
    block = Block(Cell(job.table, task.axes, task.reduced), task.seeds)
    if images is not None:
        train, test = images
        give_images(block.cell.dataset, (_as_part(train), _as_part(test)))
    if task.before is not None:
        return _apart(job, block, task.before)
    if not os.path.exists(job.out / job.table.id / job.token):
        return Said("unseen")
    return _outcome(RunFolder(job.out, job.table), block, job.setting, wait=task.wait)


def _as_part(arrays: Arrays) -> Part:
    """Arrays in memory that all workers of a node share; nobody writes to images."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        x, y = (torch.from_numpy(array) for array in arrays)
    return x, y


def _apart(job: Job, block: Block, before: tuple[Record, ...]) -> Said:
    """Run a block in a folder of its own, from which its results come back."""
    with tempfile.TemporaryDirectory(prefix="qbench-") as place:
        folder = RunFolder(Path(place), job.table, create=True)
        for record in before:
            record.write(folder)
        # nobody would go on from a checkpoint
        setting = replace(job.setting, save_every=math.inf)
        said = _outcome(folder, block, setting, wait=False)
        left = folder.activity_path(block.name)
        return replace(
            said,
            keys=(),
            records=tuple(Record.read(folder, key) for key in said.keys),
            activity=left.read_bytes() if left.exists() else b"",
        )


def _outcome(folder: RunFolder, block: Block, setting: Setting, *, wait: bool) -> Said:
    notes: list[str] = []
    setting = replace(setting, on_note=notes.append)
    event = attempt(folder, block, setting, lambda block, fraction: None, wait=wait)
    if isinstance(event, Done):
        return Said("done", keys=tuple(result.key for result in event.results), notes=notes)
    if isinstance(event, Failed):
        return Said("failed", event.reason, notes=notes)
    return Said("busy", notes=notes)
