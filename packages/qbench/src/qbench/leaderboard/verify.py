"""Verification: a file is measured again, or a run run again, in a process with limits."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_url

from qbench.catalogue import DATASETS
from qbench.cost import stacks
from qbench.data.root import check_files, data_root
from qbench.errors import UserError, one_line
from qbench.leaderboard.entry import Entry, Measurement
from qbench.leaderboard.standings import cell_of
from qbench.trial import hardware, versions
from qzoo import WeightsError
from qzoo.evaluation import TOLERANCE
from qzoo.hub import HUB_FILE, NETWORK_ERRORS, download, weights_file
from qzoo.index import RECORD, get_provenance

_LONGEST_REASON = 1000
_AGAIN = 0.5  # points by which a seed that is run again may end elsewhere on another machine,
_SAMPLES = 2.0  # or so many samples of a small test set

_OFFLINE = MappingProxyType({"HF_HUB_OFFLINE": "1", "NO_PROXY": "*"})
_KEPT = (
    *("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT"),
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY"),
)


@dataclass(frozen=True)
class Limits:
    """What measuring one entry may take: seconds, and bytes of memory."""

    seconds: float = 900.0
    memory: int = 16_000_000_000


def verify(entry: Entry, root: Path | None = None, limits: Limits | None = None) -> Entry:
    """Measure an entry; returns it with the measurement beside the claim.

    Weights are evaluated on the full test set of their dataset, prepared as the entry says. A run
    is run again: all its seeds where they train side by side, else one of them, drawn by chance.
    Both happen in a process that has ``limits``, no connection, and nothing of this one's
    environment. What is downloaded for it is downloaded before, and only safetensors.

    Raises ``UserError`` where that says nothing about the entry: the test set is not under
    ``root``, or the Hub cannot be asked.
    """
    limits = limits or Limits()
    if DATASETS[entry.dataset].torchvision:
        root = data_root(root)
        check_files(entry.dataset, root)
    with TemporaryDirectory() as folder:
        try:
            task = _task(entry, Path(folder), root)
        except _UnfitError as error:
            found = {"error": str(error)}
        else:
            found = _run(task, limits)
    return entry.model_copy(update={"measurement": _judged(entry, found)})


class _UnfitError(Exception):
    """The file is not what the entry says."""


def _task(entry: Entry, folder: Path, root: Path | None) -> dict[str, Any]:
    """What the other process is told to do."""
    where = {"root": None if root is None else str(root.absolute())}
    if entry.run is not None:
        try:
            cell = cell_of(entry)
        except UserError as error:
            raise _UnfitError(str(error)) from error
        every = [one.seed for one in entry.run.seeds]
        seeds = every if stacks(cell) else [secrets.choice(every)]
        task: dict[str, Any] = {
            "table": entry.run.table,
            "axes": cell.axes,
            "reduced": cell.reduced,
        }
        return {"kind": "run", "seeds": seeds, **task, **where}
    record = entry.provenance
    assert record is not None  # noqa: S101 - an entry has one of the two
    try:
        shutil.copyfile(_file(entry), folder / HUB_FILE)
    except OSError as error:
        raise _UnfitError(f"its file cannot be read: {error.strerror}") from error
    try:
        record.check(folder / HUB_FILE)
    except WeightsError as error:
        raise _UnfitError(str(error).replace(str(folder / HUB_FILE), "the file")) from error
    (folder / RECORD).write_text(record.model_dump_json(), encoding="utf-8")
    claimed = entry.claim.accuracy
    task = {"folder": str(folder), "dataset": entry.dataset, "claimed": claimed}
    return {"kind": "weights", **task, **where}


def _file(entry: Entry) -> Path:
    """The file of an entry's weights, where it lies here."""
    weights, record = entry.weights, entry.provenance
    assert weights is not None  # noqa: S101 - an entry without a run has them
    assert record is not None  # noqa: S101 - and their record
    source, _, rest = weights.partition(":")
    if source == "local-dir":
        return Path(rest) / HUB_FILE
    try:
        if source != "hf-hub":
            return weights_file(get_provenance(weights))
        repository, _, revision = rest.partition("@")
        url = hf_hub_url(repository, HUB_FILE, revision=revision or None)
        size = get_hf_file_metadata(url).size
        if size != record.size:
            raise _UnfitError(
                f"{repository} has a file of {size} bytes, the entry one of {record.size}"
            )
        return download(repository, HUB_FILE, None, revision or None)
    except WeightsError as error:
        raise UserError(f"{weights} cannot be had: {error}") from error
    except NETWORK_ERRORS as error:
        raise UserError(f"{weights} cannot be had: {one_line(error)}") from error


def _run(task: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """What the process answers, or why it does not."""
    with TemporaryDirectory() as home:
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        with subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", "-m", "qbench.leaderboard.measure"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**kept, **_OFFLINE, "HOME": home, "TMPDIR": home},
            start_new_session=True,
        ) as process:
            try:
                task_text = json.dumps({**task, "memory": limits.memory, "seconds": limits.seconds})
                answer, said = process.communicate(task_text, timeout=limits.seconds)
            except subprocess.TimeoutExpired:
                ended = f"it did not end within {limits.seconds:g} seconds"
                return {"error": f"{ended}; for more of them: qbench leaderboard verify --seconds"}
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

    def lost(reason: str) -> Measurement:
        said = one_line(reason)[:_LONGEST_REASON]
        return Measurement(verdict="could not be loaded", reason=said, **about)

    if "error" in found:
        return lost(found["error"])
    fitting, accuracies = found.pop("fitting", None), found.pop("accuracies", None)
    claimed, tolerance = entry.claim.accuracy, TOLERANCE
    seeds: tuple[int, ...] = ()
    if accuracies is None or entry.run is None:
        accuracy = found.pop("accuracy")
        how = "the file was measured again"
    else:
        again = {int(seed): value for seed, value in accuracies.items()}
        known = {one.seed: one.accuracy for one in entry.run.seeds}
        if strays := [seed for seed in again if (again[seed] is None) != (known[seed] is None)]:
            what = "diverged" if again[strays[0]] is None else "did not diverge"
            return lost(f"run again, seed {strays[0]} {what}")
        there = [seed for seed, value in again.items() if value is not None]
        if not there:
            return lost(f"run again, seed {', '.join(map(str, again))} diverged, as recorded")
        seeds = tuple(sorted(again))
        accuracy = fmean(value for value in again.values() if value is not None)
        claimed = entry.run.mean_of(there)
        # on another machine sums round otherwise, and training carries that on
        tolerance = max(_AGAIN, 100 * _SAMPLES / found["images"]) / len(there) ** 0.5
        how = f"{len(seeds)} of {len(known)} seeds were run again"
    difference = round(accuracy - claimed, 6)
    reason = (
        f"{how}: {accuracy:.2f} % where {claimed:.2f} % are claimed ({difference:+.2f} points, "
        f"±{tolerance:.2f} allowed)"
    )
    holds = abs(difference) <= tolerance
    if fitting is not None:
        reason += f"; {_in_words(fitting)}"
    if entry.run is not None and found["parameters"] != entry.run.parameters:
        holds = False
        reason += f"; it has {found['parameters']} parameters, and not {entry.run.parameters}"
    return Measurement(
        verdict="verified" if holds else "differs",
        reason=reason,
        seeds=seeds,
        accuracy=accuracy,
        difference=difference,
        tolerance=tolerance,
        **found,
        **about,
    )


def _in_words(fitting: Mapping[str, Any]) -> str:
    mean, std = (", ".join(f"{value:g}" for value in fitting[key]) for key in ("mean", "std"))
    return (
        f"prepared with mean {mean} and std {std} ({fitting['words']}) it has "
        f"{fitting['accuracy']:.2f} %: the preprocessing in the entry is wrong"
    )
