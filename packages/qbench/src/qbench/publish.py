"""Results to MLflow: a replica of the run folder, and the only place that knows MLflow.

``publish`` may be called any number of times with the same results: a trial is found again by the
tag ``quadnets.trial``, its metrics carry the trial's own times, and it is tagged
``quadnets.complete`` last.

As a program it is the process that records beside the training: it reads paths of result files,
one per line, from standard input, and publishes them to every target::

    python -m qbench.publish --out runs --to sqlite:///runs/mlflow.db
"""

import argparse
import hashlib
import json
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from qbench.errors import UserError, without_password
from qbench.running import Unfinished, unfinished
from qbench.store import check_store, reason
from qbench.table import Table, load_table
from qbench.trial import Result, RunFolder, read_result

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

_ATTEMPTS = 3
_METRICS_PER_CALL = 1000  # more is refused by the server
_LOOK_EVERY = 30.0  # seconds between two looks at what is being trained
_GATHER = 10.0  # seconds: each publish searches the whole store, so many results share one


def default_uri(out: Path) -> str:
    """The SQLite store beside the results."""
    return f"sqlite:///{(out / 'mlflow.db').resolve()}"


def publish(results: Iterable[Result], uri: str, out: Path) -> int:
    """Bring a tracking store up to date with these results; returns how many trials were new to it.

    Each trial becomes a child run of its table's parent run. A trial that is there in part is
    completed, one that is complete is left alone. ``out`` holds the lock of the target, so that of
    two callers one waits.
    """
    wanted = list(results)
    if not wanted:
        return 0
    added: set[str] = set()
    with _locked(out, uri):
        client = _client(uri)
        for attempt in range(_ATTEMPTS):
            try:
                for replica, own in _replicas(client, wanted):
                    added.update(result.key for result in own if replica.add(result))
                break
            except Exception:  # whatever MLflow and what it talks through may raise
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(2.0**attempt)
        if attempt:
            deque(_replicas(client, wanted), 0)  # a request given up may have been carried out
    return len(added)


def _replicas(
    client: "MlflowClient", wanted: Sequence[Result]
) -> Iterator[tuple["_Replica", list[Result]]]:
    """Each table's runs as they are there now, with those of these results that belong to it."""
    for table in dict.fromkeys(result.table for result in wanted):
        yield _Replica(client, load_table(table)), [r for r in wanted if r.table == table]


def publish_unfinished(folder: RunFolder, uri: str) -> int:
    """Bring a tracking store up to date with what is being trained, as far as there are
    checkpoints; returns how many trials there are.

    Only what a checkpoint holds is sent: a run that is killed goes on from there, with the same
    points, so that none is there twice.
    """
    found = list(unfinished(folder))
    if found:
        with _locked(folder.out, uri):
            replica = _Replica(_client(uri), folder.table)
            for trial in found:
                replica.follow(trial)
    return len(found)


def _locked(out: Path, uri: str) -> FileLock:
    """The lock of a target, for those that publish from the same folder."""
    scheme, _, path = uri.partition("sqlite:///")
    same = f"sqlite:///{Path(path).resolve()}" if path and not scheme else uri.rstrip("/")
    name = hashlib.sha256(os.fsencode(same)).hexdigest()[:16]
    return FileLock(out / f".publish-{name}.lock")


def reach(uri: str) -> int:
    """The number of experiments in a tracking store, which says that it answers.

    Raises ``UserError`` with the reason where it does not.
    """
    try:
        return len(_client(uri).search_experiments())
    except Exception as error:  # whatever MLflow and what it talks through may raise
        raise UserError(reason(uri, error)) from error


def _client(uri: str) -> "MlflowClient":
    check_store(uri)
    try:
        Path.home()
    except RuntimeError:  # MLflow asks for one while it is imported
        os.environ["HOME"] = tempfile.gettempdir()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # what fails is said in a sentence
    # an absent server is reported within a minute; and a request is never repeated blindly, for a
    # slow server may have carried it out: publish looks at what is there before it tries again
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


class _Replica:
    """One table's runs in a tracking store, of which each trial has one.

    A request that was given up may have been carried out later: of two runs of a trial the complete
    one stays, of two parents the one with more children.
    """

    def __init__(self, client: "MlflowClient", table: Table) -> None:
        self.client = client
        self.table = table
        experiment = client.get_experiment_by_name(table.id)
        self.experiment = (
            experiment.experiment_id if experiment else client.create_experiment(table.id)
        )
        every = list(self._all_runs())
        self.runs: dict[str, Run] = {}
        for run in sorted(every, key=lambda run: "quadnets.complete" not in run.data.tags):
            if trial := run.data.tags.get("quadnets.trial"):
                if trial in self.runs:
                    client.delete_run(run.info.run_id)
                else:
                    self.runs[trial] = run
        children = Counter(run.data.tags.get("mlflow.parentRunId") for run in every)
        version = str(table.version)
        parents = [
            run.info.run_id
            for run in every
            if run.data.tags.get("quadnets.table_version") == version
        ]
        self.parent, *others = sorted(parents, key=children.__getitem__, reverse=True) or [""]
        for other in others:
            client.delete_run(other)
        if not self.parent:
            self.parent = self._create_parent()

    def _all_runs(self) -> Iterator[Any]:
        token = None
        while True:
            page = self.client.search_runs([self.experiment], page_token=token, max_results=1000)
            yield from page
            token = page.token
            if not token:
                return

    def _create_parent(self) -> str:
        tags = {
            "quadnets.table_version": str(self.table.version),
            "quadnets.paper": self.table.paper,
            "quadnets.shows": self.table.shows,
            "mlflow.note.content": f"{self.table.title} ({self.table.paper}, {self.table.shows})",
        }
        name = f"{self.table.id} v{self.table.version}"
        run = self.client.create_run(self.experiment, run_name=name, tags=tags)
        self.client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    def add(self, result: Result) -> bool:
        """Create or complete the run of a trial; False where it was complete already."""
        from mlflow.entities import Metric, Param, RunTag

        environment = result.environment
        started = int(environment.started * 1000)
        ended = started + int(environment.seconds * 1000)
        run_id = self._begun(result, started)
        if run_id is None:
            return False
        seconds = Metric("block_seconds", environment.seconds, ended, 0)
        self._log(run_id, [*_points(result), seconds])
        # the tag that makes it complete goes last, in the same transaction as what never changes
        self.client.log_batch(
            run_id,
            params=[Param(key, value) for key, value in _params(result).items()],
            tags=[RunTag(key, value) for key, value in _tags(result).items()],
        )
        self.client.set_terminated(
            run_id, "FAILED" if result.status == "diverged" else "FINISHED", end_time=ended
        )
        self.client.set_tag(run_id, "quadnets.complete", "true")
        return True

    def follow(self, trial: Unfinished) -> None:
        """Create the run of a trial that is being trained, and send its curves so far."""
        run_id = self._begun(trial, int(1000 * trial.started))
        if run_id is not None:
            self._log(run_id, _points(trial))

    def _begun(self, trial: Result | Unfinished, started: int) -> str | None:
        """The run of a trial, created where there is none; None where it is complete.

        One of a training that began at another time, and was given up, goes.
        """
        known = self.runs.get(trial.key)
        if known is not None:
            if "quadnets.complete" in known.data.tags:
                return None
            if known.info.start_time == started:
                return str(known.info.run_id)
            self.client.delete_run(known.info.run_id)
        name = " ".join(str(value) for value in trial.axes.values())
        run = self.client.create_run(
            self.experiment,
            start_time=started,
            run_name=f"{name} seed {trial.seed}{f' {trial.reduced}' if trial.reduced else ''}",
            tags={"quadnets.trial": trial.key, "mlflow.parentRunId": self.parent},
        )
        self.runs[trial.key] = run
        return str(run.info.run_id)

    def _log(self, run_id: str, metrics: Sequence["Metric"]) -> None:
        for first in range(0, len(metrics), _METRICS_PER_CALL):
            self.client.log_batch(run_id, metrics=metrics[first : first + _METRICS_PER_CALL])


def _points(trial: Result | Unfinished) -> list["Metric"]:
    """The curves' finite points."""
    from mlflow.entities import Metric

    return [
        Metric(name, value, int(1000 * at), step)
        for name, values in trial.history.items()
        for step, at, value in zip(trial.step, trial.time, values, strict=True)
        if math.isfinite(value)
    ]


def _params(result: Result) -> dict[str, str]:
    known: dict[str, Any] = {
        **{f"model.{key}": value for key, value in result.resolved["model"].items()},
        **result.recipe.model_dump(mode="json"),
        **result.axes,
        "seed": result.seed,
        "parameters": result.parameters,
    }
    return {key: str(value) for key, value in known.items()}


def _tags(result: Result) -> dict[str, str]:
    environment = result.environment
    facts: dict[str, Any] = {
        "status": result.status,
        "diverged_at": result.diverged_at,
        "reduced": result.reduced or "no",
        "commit": environment.commit,
        "device": environment.device,
        "threads": environment.threads,
        "block": environment.block,
        **{f"hardware.{key}": value for key, value in environment.hardware.items()},
        **{f"version.{key}": value for key, value in environment.versions.items()},
    }
    return {f"quadnets.{key}": str(value) for key, value in facts.items() if value is not None}


class Publisher:
    """A process beside a table's training that publishes result files as they come, and of what is
    still being trained the curves in its checkpoints.

    The training never waits for it: ``send`` writes a path to its pipe, ``close`` waits until all
    is published and returns what went wrong, an empty text if nothing did.
    """

    def __init__(self, out: Path, uris: Sequence[str], table: str) -> None:
        # MLflow takes UTF-8 alone for a path, whatever this terminal has
        command = [sys.executable, "-X", "utf8", "-m", "qbench.publish"]
        command += ["--out", str(out), "--table", table]
        for uri in uris:
            command += ["--to", uri]
        self._sent: set[str] = set()
        # a file, not a pipe: nobody reads while the training runs, and a full pipe would block
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - close() ends it
        self._process = subprocess.Popen(  # noqa: S603 - our own module, arguments as a list
            command,
            stdin=subprocess.PIPE,
            stderr=self._errors,
            stdout=subprocess.DEVNULL,
            text=True,
            # Ctrl-C is for the training; the record of what ended goes on. No session of its own:
            # Linux shares processors between sessions first, and idle is so within one only
            process_group=0,
        )

    def send(self, folder: RunFolder, results: Iterable[Result] | None = None) -> None:
        """Hand over results of a folder, by default all in it; each goes once."""
        for result in folder.recorded() if results is None else results:
            if result.key not in self._sent:
                self._sent.add(result.key)
                self._write(folder.result_path(result.key))

    def _write(self, path: Path) -> None:
        if self._process.stdin is not None and self._process.poll() is None:
            try:
                # whatever letters and ends of lines its name has
                self._process.stdin.write(f"{json.dumps(str(path))}\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                return  # it has died; close tells why, and the next run catches up

    def end(self) -> None:
        """Tell it to stop after what it has been sent, without waiting."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # it has died; the next run catches up
                self._process.stdin.close()
        self._errors.close()

    def close(self) -> str:
        """Wait for the last result to be published; returns the reason where one was not."""
        self._process.communicate()
        with self._errors as file:
            file.seek(0)
            lines = file.read().decode(errors="replace").strip().splitlines()
        if self._process.returncode == 0:
            return ""
        return without_password(lines[-1]) if lines else "it was ended"


def main() -> None:
    """Publish the results named on standard input, and what is being trained, until it ends."""
    parser = argparse.ArgumentParser(prog="python -m qbench.publish", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run folders")
    parser.add_argument("--table", required=True, help="the table that is run")
    parser.add_argument("--to", action="append", required=True, help="tracking URI; repeatable")
    arguments = parser.parse_args()
    _run_when_idle(True)
    folder = RunFolder(arguments.out, load_table(arguments.table))
    failed: dict[str, str] = {}
    doubtful: set[str] = set()  # where a request was given up that may be carried out later
    unsent: dict[str, list[Result]] = {uri: [] for uri in arguments.to}
    for lines in _batches():
        results = [read_result(Path(json.loads(line))) for line in lines]
        for uri in arguments.to:
            unsent[uri] += results
            try:
                publish(unsent[uri], uri, arguments.out)
                publish_unfinished(folder, uri)
                if uri in doubtful:
                    with _locked(folder.out, uri):
                        _Replica(_client(uri), folder.table)
                    doubtful.discard(uri)
            except Exception as error:
                failed[uri] = reason(uri, error)
                doubtful.add(uri)
            else:
                unsent[uri].clear()
                failed.pop(uri, None)
    if failed:
        print(*failed.values(), sep="; ", file=sys.stderr)
        sys.exit(1)


def _run_when_idle(wanted: bool) -> None:
    """Whether this process takes only processor time that nothing else wants.

    While there is training to come, it does: training's threads wait for one another, so that on
    few cores whatever takes a share slows them all. Systems without such a policy leave it as it
    is, and so do those that let nobody but root leave it again.
    """
    if hasattr(os, "SCHED_IDLE"):
        policy = os.SCHED_IDLE if wanted else os.SCHED_OTHER
        with suppress(PermissionError):
            os.sched_setscheduler(os.getpid(), policy, os.sched_param(0))


def _batches() -> Iterator[list[str]]:
    """Lines of standard input: those that come within ``_GATHER`` of a first one together, and none
    where there was none for ``_LOOK_EVERY``."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        # in a thread of its own, so that the sender's pipe never fills while a store is slow
        try:
            for line in sys.stdin:
                lines.put(line.rstrip("\n"))
            _run_when_idle(False)  # the sender waits for the rest
        finally:
            lines.put("")

    threading.Thread(target=read, daemon=True).start()
    ended = False
    while not ended:
        batch: list[str] = []
        until = time.monotonic() + _LOOK_EVERY
        while not ended:
            try:
                line = lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if not batch:
                until = time.monotonic() + _GATHER
            ended = not line
            if line:
                batch.append(line)
        if batch or not ended:
            yield batch


if __name__ == "__main__":
    main()
