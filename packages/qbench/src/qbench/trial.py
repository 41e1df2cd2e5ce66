"""A trial's record and the folder that holds it: the truth about what was measured."""

import hashlib
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qbench.errors import UserError, first_problem
from qbench.frozen import Scalar
from qbench.metrics import QUANTITIES
from qbench.recipe import Recipe
from qbench.table import Cell, RecordedReduction, Table, identity

_VERSIONS = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scikit-learn",
    "quadnets-core",
    "quadnets-zoo",
    "quadnets-bench",
)


Read = TypeVar("Read")

_KEY = re.compile("[0-9a-f]{16}")  # of a trial, and the name of its folder

WEIGHTS = "weights.safetensors"
ARRAYS = "arrays.safetensors"
"""What may stand beside a result: a network's weights, and what figures draw."""

_FILES = r"^(weights|arrays)\.safetensors$"


class Record(BaseModel):
    """A read-only record that we wrote ourselves: ten thousand of them are read at once."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Environment(Record):
    """Where a trial was run: recorded, never part of its identity.

    ``seconds`` is the training time of the whole block that held the trial, over all its
    interruptions, ``block`` its seeds, ``samples_per_second`` what all of them together went
    through in training, ``memory`` the most bytes that the process, or the accelerator, held.
    ``interruptions`` counts how often it was resumed from a checkpoint, ``processes`` how many
    shared each batch.
    """

    commit: str | None
    versions: dict[str, str]
    hardware: dict[str, str | int]
    threads: int
    device: str
    started: float
    seconds: float
    block: tuple[int, ...]
    samples_per_second: float | None = None
    memory: int | None = None
    interruptions: int = 0
    compiled: bool = False
    processes: int = 1


class Result(Record):
    """What a trial left: one cell, one seed.

    ``multiply_adds`` are those of one input. ``metrics`` are the values after the last step, None
    where the trial diverged; ``history`` has those recorded along ``step``, at the times ``time``
    in seconds since 1970. ``files`` are the SHA-256 of what stands beside it:
    ``weights.safetensors`` of networks of the zoo, ``arrays.safetensors`` of what figures draw;
    ``weights`` is that of the final parameters and buffers, kept or not. Accuracies are in percent.
    Values that are not finite are written as text, which JSON can hold.
    """

    model_config = ConfigDict(ser_json_inf_nan="strings")

    schema_version: Literal[1] = 1
    key: str = Field(pattern=r"^[0-9a-f]{16}$")
    table: str
    version: int
    axes: dict[str, Scalar]
    seed: int
    resolved: dict[str, Any]
    reduced: RecordedReduction
    status: Literal["finished", "diverged"]
    diverged_at: int | None
    parameters: int
    multiply_adds: int
    metrics: dict[str, float | None]
    step: tuple[int, ...]
    time: tuple[float, ...]
    history: dict[str, tuple[float, ...]]
    snapshots: dict[int, dict[str, Any]]
    weights: str
    files: dict[Annotated[str, Field(pattern=_FILES)], str] = Field(default={})
    environment: Environment

    @cached_property
    def cell_key(self) -> str:
        """The identity of its cell: of no cell of another version of the table."""
        return identity(self.table, self.version, self.resolved)

    @property
    def recipe(self) -> Recipe:
        """The recipe it was trained by."""
        return Recipe.model_validate(self.resolved["recipe"])

    def value(self, metric: str) -> float | None:
        """The final value of a metric, recorded or derived; None where the trial has none."""
        quantity = QUANTITIES[metric]
        if self.status == "diverged":
            return quantity.of_diverged
        if quantity.derive is None:
            return self.metrics.get(metric)
        value = quantity.derive(self.history)
        return None if math.isnan(value) else value


def values_by_seed(results: Iterable[Result], metric: str) -> dict[int, float]:
    """The final value of a metric by seed, for those that have one."""
    values = {result.seed: result.value(metric) for result in results}
    return {seed: value for seed, value in values.items() if value is not None}


class RunFolder:
    """The results of one table under ``out``: ``<out>/<table>/<key>/result.json``.

    Raises ``UserError`` when the folder cannot be written to, with ``create=True``.
    """

    def __init__(self, out: Path, table: Table, *, create: bool = False) -> None:
        self.out = out
        self.path = out / table.id
        self.table = table
        self._made: list[Path] = []
        if create:
            try:
                places = (self._locks, self.path, *self.path.parents)
                self._made = [place for place in places if not place.exists()]
                self._locks.mkdir(parents=True, exist_ok=True)
                probe = self._locks / f"probe-{os.getpid()}"
                probe.touch()
                probe.unlink()
            except OSError as error:
                raise UserError(
                    f"cannot write to {str(out)!r} ({error.strerror}): "
                    "choose another folder with --out"
                ) from error

    def give_up(self) -> None:
        """Remove the folders that were made for this one, as far as nothing is in them."""
        for place in self._made:
            with suppress(OSError):
                place.rmdir()

    @property
    def _locks(self) -> Path:
        return self.path / ".locks"

    def lock(self, name: str) -> FileLock:
        """The lock whose holder alone runs the block of that name; a killed holder frees it."""
        return FileLock(self._locks / f"{name}.lock")

    def checkpoint_path(self, name: str) -> Path:
        """The folder of the checkpoints of the block of that name."""
        return self.path / ".checkpoints" / name

    def activity_path(self, name: str) -> Path:
        """Where it stands what is happening to the block of that name."""
        return self.path / ".activity" / f"{name}.json"

    def trial_path(self, key: str) -> Path:
        """The folder of the trial ``key``."""
        return self.path / key

    def result_path(self, key: str) -> Path:
        """Where the result of the trial ``key`` stands."""
        return self.trial_path(key) / "result.json"

    def has(self, cell: Cell, seed: int) -> bool:
        """Whether the trial has a result."""
        return self.result_path(cell.trial_key(seed)).exists()

    def write(self, result: Result, files: Mapping[str, bytes] | None = None) -> Path:
        """Write a result, whole or not at all: first what stands beside it, then, by one rename,
        the record itself with the SHA-256 of each file."""
        if strange := (files or {}).keys() - {WEIGHTS, ARRAYS}:
            raise ValueError(f"{min(strange)!r} is no file that stands beside a result")
        folder = self.trial_path(result.key)
        folder.mkdir(parents=True, exist_ok=True)
        clear_parts(folder)
        for name, content in (files or {}).items():
            write_whole(folder / name, content)
        digests = {k: hashlib.sha256(content).hexdigest() for k, content in (files or {}).items()}
        path = self.result_path(result.key)
        complete = result.model_copy(update={"files": digests})
        write_whole(path, complete.model_dump_json() + "\n")
        return path

    def read_file(self, result: Result, name: str) -> bytes:
        """A file beside a result.

        Raises ``UserError`` where it is not there, or not what was written.
        """
        path = self.trial_path(result.key) / name
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != result.files.get(name):
            raise UserError(
                f"{path} is missing or damaged: delete {path.parent} and run the table again"
            )
        return content

    def results(self, cells: Iterable[Cell]) -> Iterator[Result]:
        """The recorded results of these cells, all seeds, in the order of the cells and seeds."""
        yield from in_order(self.recorded(), cells)

    def recorded(self) -> list[Result]:
        """All results of this version of the table, in no order."""
        return [
            result.model_copy(update={"axes": self.table.completed(result.axes)})
            for _, result in self.read_each(read_result)
            if result.version == self.table.version
        ]

    def read_each(self, read: Callable[[Path], Read]) -> Iterator[tuple[str, Read]]:
        """What ``read`` finds in each result's file, by its trial's key, in no order; files of
        other versions of the table that it cannot read are passed over."""
        names = os.listdir(self.path) if self.path.is_dir() else []
        # others are such as a copy that somebody made; a glob would look twice at each of thousands
        for key in filter(_KEY.fullmatch, names):
            path = self.result_path(key)
            try:
                yield key, read(path)
            except (FileNotFoundError, NotADirectoryError):
                continue  # a trial that was killed before its result, or no trial at all
            except UserError:
                if not _is_of_another_version(path, self.table):
                    raise


def in_order(results: Iterable[Result], cells: Iterable[Cell]) -> list[Result]:
    """The results of these cells, in the order of the cells and seeds."""
    order = {cell.key: index for index, cell in enumerate(cells)}
    known = [result for result in results if result.cell_key in order]
    return sorted(known, key=lambda result: (order[result.cell_key], result.seed))


def read_result(path: Path) -> Result:
    """The result in a file; raises ``UserError`` for a file that is none, or another trial's."""
    content = path.read_bytes()
    try:
        result = Result.model_validate_json(content)
    except ValidationError as error:
        raise no_result(path, content, error) from error
    if result.key != path.parent.name:
        raise UserError(
            f"{path} is the result of trial {result.key}, not of the one that its folder is named "
            "after: delete its folder and run again"
        )
    return result


_NEWEST = Result.model_fields["schema_version"].default


def no_result(path: Path, content: bytes, error: ValidationError) -> UserError:
    """What to say of a file that is no result: one of a later qbench is not to be deleted."""
    try:
        later = json.loads(content)["schema_version"] > _NEWEST
    except (ValueError, RecursionError, LookupError, TypeError):
        later = False
    if later:
        return UserError(
            f"{path} was written by a later version of qbench: install that, "
            "pip install --upgrade quadnets-bench, or choose another folder with --out"
        )
    return UserError(
        f"{path} is not a result of this version of qbench "
        f"({first_problem(error)}): delete its folder and run again"
    )


def _is_of_another_version(path: Path, table: Table) -> bool:
    """Whether a result belongs to another version of the table, whatever else the file holds."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False  # no result at all: reading it says so
    return isinstance(found, dict) and found.get("version", table.version) != table.version


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def clear_parts(folder: Path, name: str = "*") -> None:
    """Remove what a process left that was killed while it wrote the file ``name``, or any.

    Whoever calls it is the only one that writes them.
    """
    for part in folder.glob(f".{name}.*.part"):
        part.unlink(missing_ok=True)


@lru_cache
def versions() -> dict[str, str]:
    """The versions that matter for a result."""
    return {"python": platform.python_version()} | {name: version(name) for name in _VERSIONS}


@lru_cache
def hardware(device: str) -> dict[str, str | int]:
    """The processor, its number of cores, and the accelerator where one is used."""
    found: dict[str, str | int] = {"cpu": _cpu_name(), "cores": os.cpu_count() or 0}
    if device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    return found


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@lru_cache
def commit() -> str | None:
    """The commit of this source tree, with ``+`` where files differ from it; None for a wheel."""
    here = Path(__file__).resolve()
    try:
        # a wheel inside somebody else's repository is not a file of that repository
        _git("ls-files", "--error-unmatch", here.name, cwd=here.parent)
        head = _git("rev-parse", "HEAD", cwd=here.parent)
        changed = _git("status", "--porcelain", "--", ":/packages", cwd=here.parent)
        return head + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str, cwd: Path) -> str:
    command = ["git", *arguments]
    done = subprocess.run(  # noqa: S603 - git, with arguments of ours, and no shell
        command, cwd=cwd, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()
