"""Verification: a file is measured again, or a run run again, in a process with limits."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from qbench.catalogue import DATASETS
from qbench.data.root import check_files, data_root
from qbench.errors import UserError, one_line
from qbench.leaderboard.entry import Entry, Measurement
from qbench.table import Cell, load_table
from qbench.trial import hardware, versions
from qzoo import WeightsError
from qzoo.evaluation import TOLERANCE
from qzoo.hub import HUB_FILE, download, weights_file
from qzoo.index import RECORD, get_provenance

_LONGEST_REASON = 1000
_SPREADS = 2.0  # standard deviations over seeds by which a run may end elsewhere on another machine
_LARGEST_FILE = 4_000_000_000  # bytes

OFFLINE: Mapping[str, str] = MappingProxyType(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "NO_PROXY": "*",
    }
)
_KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "SYSTEMROOT", "TMPDIR")


@dataclass(frozen=True)
class Limits:
    """What measuring one entry may take: seconds, and bytes of memory."""

    seconds: float = 900.0
    memory: int = 16_000_000_000


def verify(entry: Entry, root: Path | None = None, limits: Limits | None = None) -> Entry:
    """Measure an entry; returns it with the measurement beside the claim.

    Weights are evaluated on the full test set of their dataset, prepared as the entry says. A run
    without weights is run again. Both happen in a process that has ``limits``, no connection, and
    nothing of this one's environment. What is downloaded for it is downloaded before, and only
    safetensors.

    Raises ``UserError`` where the test set is not under ``root``, which is not the entry's fault.
    """
    limits = limits or Limits()
    if DATASETS[entry.dataset].torchvision:
        root = data_root(root)
        check_files(entry.dataset, root)
    try:
        with TemporaryDirectory() as folder:
            found = _run(_task(entry, Path(folder), root), limits)
    except (WeightsError, UserError) as error:
        found = {"error": str(error)}
    return entry.model_copy(update={"measurement": _judged(entry, found)})


def _task(entry: Entry, folder: Path, root: Path | None) -> dict[str, Any]:
    """What the other process is told to do."""
    where = {"root": None if root is None else str(root.absolute())}
    if entry.provenance is None:
        run = entry.run
        assert run is not None  # noqa: S101 - an entry has one of the two
        cell = cell_of(entry)
        seeds = [one.seed for one in run.seeds if one.accuracy is not None]
        task = {"table": run.table, "axes": cell.axes, "seeds": seeds, "reduced": entry.reduced}
        return {"kind": "run", **task, **where}
    shutil.copyfile(_file(entry), folder / HUB_FILE)
    (folder / RECORD).write_text(entry.provenance.model_dump_json(), encoding="utf-8")
    claimed = entry.claimed()
    return {
        "kind": "weights",
        "folder": str(folder),
        "dataset": entry.dataset,
        "claimed": claimed,
        **where,
    }


def cell_of(entry: Entry) -> Cell:
    """The cell of a table that an entry's run is of.

    Raises ``UserError`` where the table has changed since, or never had it.
    """
    run = entry.run
    if run is None:
        raise UserError(f"entry {entry.id} has no run")
    table = load_table(run.table)
    if run.version != table.version:
        raise UserError(
            f"the run is of version {run.version} of table {table.id}, which is at version "
            f"{table.version}: run it again and submit that"
        )
    cells = table.cells(
        {axis: (value,) for axis, value in run.axes.items() if axis in table.grid_axes},
        {axis: (value,) for axis, value in run.axes.items() if axis not in table.grid_axes},
        reduced=entry.reduced,
    )
    found = list(cells)
    if len(found) != 1:
        raise UserError(f"the run's axes name {len(found)} cells of table {table.id}, and not one")
    (cell,) = found
    for one in run.seeds:
        if cell.trial_key(one.seed) != one.key:
            raise UserError(
                f"{one.key} is not the key of seed {one.seed} of {table.id} {cell}: it is of "
                "another recipe"
            )
    return cell


def _file(entry: Entry) -> Path:
    """The file of an entry's weights, where it lies here, with its sha256 checked."""
    weights, record = entry.weights, entry.provenance
    if weights is None or record is None:
        raise WeightsError(f"entry {entry.id} has no weights")
    if record.size > _LARGEST_FILE:
        raise WeightsError(f"the file has {record.size:,} bytes: {_LARGEST_FILE:,} are the most")
    source, _, rest = weights.partition(":")
    if source == "local-dir":
        path = Path(rest) / HUB_FILE
    elif source == "hf-hub":
        repository, _, revision = rest.partition("@")
        path = download(repository, HUB_FILE, None, revision or None)
    else:
        path = weights_file(get_provenance(weights))
    record.check(path)
    return path


def _run(task: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """What the process answers, or why it does not."""
    with TemporaryDirectory() as home:
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        with subprocess.Popen(
            [sys.executable, "-I", "-m", "qbench.leaderboard.measure"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**kept, **OFFLINE, "HOME": home, "PYTHONUTF8": "1"},
            start_new_session=True,
        ) as process:
            try:
                task_text = json.dumps({**task, "memory": limits.memory})
                answer, said = process.communicate(task_text, timeout=limits.seconds)
            except subprocess.TimeoutExpired:
                return {"error": f"it did not end within {limits.seconds:g} seconds"}
            finally:
                if process.poll() is None:  # whatever happened, nothing of it goes on
                    os.killpg(process.pid, signal.SIGKILL)
    try:
        found = json.loads(answer)
    except ValueError:
        last = said.strip().splitlines()[-1:] or [f"it ended with status {process.returncode}"]
        return {"error": one_line(last[0])}
    return dict(found)


def _judged(entry: Entry, found: dict[str, Any]) -> Measurement:
    """The verdict about what was measured."""
    about: dict[str, Any] = {
        "subject": entry.subject,
        "measured": datetime.now(UTC).date(),
        "versions": versions(),
        "hardware": hardware("cpu"),
    }
    if "error" in found:
        reason = one_line(found["error"])[:_LONGEST_REASON]
        return Measurement(
            verdict="could not be loaded", reason=reason, claimed=entry.claimed(), **about
        )
    fitting = found.pop("fitting", None)
    accuracies = found.pop("accuracies", None)
    if accuracies is None:
        seeds: tuple[int, ...] = ()
        accuracy, tolerance = found.pop("accuracy"), TOLERANCE
    else:
        seeds = tuple(sorted(map(int, accuracies)))
        if None in accuracies.values():
            lost = [seed for seed, value in accuracies.items() if value is None]
            reason = f"run again, seed {', '.join(lost)} diverged"
            return Measurement(
                verdict="could not be loaded", reason=reason, claimed=entry.claimed(), **about
            )
        accuracy = sum(accuracies.values()) / len(accuracies)
        spread = entry.accuracy.std if entry.accuracy else None
        tolerance = max(TOLERANCE, _SPREADS * (spread or 0.0) / len(seeds) ** 0.5)
    claimed = entry.claimed(seeds)
    difference = round(accuracy - claimed, 6)
    holds = abs(difference) <= tolerance
    return Measurement(
        verdict="verified" if holds else "differs",
        reason=_reason(entry, accuracy, difference, tolerance, seeds, fitting),
        claimed=claimed,
        seeds=seeds,
        accuracy=accuracy,
        difference=difference,
        **found,
        **about,
    )


def _reason(
    entry: Entry,
    accuracy: float,
    difference: float,
    tolerance: float,
    seeds: tuple[int, ...],
    fitting: Mapping[str, Any] | None,
) -> str:
    how = (
        f"{len(seeds)} of {len(entry.run.seeds)} seeds were run again"
        if seeds and entry.run
        else "the file was measured again"
    )
    said = (
        f"{how}: {accuracy:.2f} % where {entry.claimed(seeds):.2f} % are claimed "
        f"({difference:+.2f} points, ±{tolerance:.2f} allowed)"
    )
    if fitting is not None:
        mean, std = (", ".join(f"{value:g}" for value in fitting[key]) for key in ("mean", "std"))
        said += (
            f"; prepared with mean {mean} and std {std} ({fitting['words']}) it has "
            f"{fitting['accuracy']:.2f} %: the preprocessing in the entry is wrong"
        )
    return said
