"""MLflow's copy of the results, through dead servers and killed syncs: all there, nothing twice."""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qbench.block import plan
from qbench.executors import run_blocks
from qbench.publish import default_uri, publish
from qbench.table import load_table
from qbench.trial import Result, RunFolder

pytestmark = pytest.mark.filterwarnings("default")  # MLflow and what it imports warn as they like

UCI = load_table("uci")
SEEDS = 10


def run(out: Path, dataset: str) -> RunFolder:
    """Thirty trials."""
    only = {"dataset": (dataset,), "model": ("linear", "rank1", "rank2")}
    made = RunFolder(out, UCI, create=True)
    for _ in run_blocks(made, plan(made, UCI.cells(only, reduced="quick"), SEEDS)):
        pass
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run(tmp_path_factory.mktemp("runs"), "iris")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, mlflow_server: Any) -> Iterator[Any]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as started:
        yield started


def started(folder: RunFolder, uri: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "qbench", "sync", "--to", uri, "--out", str(folder.out)],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def synced(folder: RunFolder, uri: str) -> tuple[int, str, str]:
    process = started(folder, uri)
    said, errors = process.communicate(timeout=300)
    return process.returncode, " ".join(said.split()), " ".join(errors.split())


def assert_whole(store: str, results: list[Result]) -> None:
    """Every trial is one complete run with every point of its curves, once."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("uci")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = [run for run in found if "quadnets.table_version" in run.data.tags]
    trials: dict[str, Any] = {run.data.tags.get("quadnets.trial"): run for run in found}
    assert len(parents) == 1
    assert len(found) == len(trials)  # with the parent, which has no trial: none is there twice
    for result in results:
        run = trials[result.key]
        assert run.data.tags["quadnets.complete"] == "true"
        assert run.info.status == "FINISHED"
        assert run.data.params["seed"] == str(result.seed)
        for metric, values in result.history.items():
            points = client.get_metric_history(run.info.run_id, metric)
            every = zip(result.step, values, (int(1000 * at) for at in result.time), strict=True)
            recorded = [(p.step, p.value, p.timestamp) for p in points]
            assert sorted(recorded) == sorted(every)


def test_any_number_of_syncs_record_everything_once(tmp_path: Path, folder: RunFolder) -> None:
    uri = f"sqlite:///{tmp_path / 'copy.db'}"
    status, said, errors = synced(folder, uri)
    assert (status, said) == (0, f"30 trials were new to {uri}, 0 were there already."), errors
    status, said, _ = synced(folder, uri)
    assert (status, said) == (0, f"0 trials were new to {uri}, 30 were there already.")
    assert_whole(uri, folder.recorded())


def test_two_syncs_at_once_and_killed_ones_leave_nothing_twice(
    folder: RunFolder, server: Any
) -> None:
    found = folder.recorded()
    for least in (1, 6, 12):  # each dies in the middle of the thirty
        process = started(folder, server.uri)
        while recorded_trials(server.store, found) < least:
            assert process.poll() is None
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert recorded_trials(server.store, found) < 30
    both = [started(folder, server.uri) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    # one waits for the other, and finds all there
    assert any(" 0 trials were new" in " ".join(["", *said.split()]) for said in outputs)
    assert_whole(server.store, folder.recorded())


def test_a_server_killed_while_it_records_has_everything_once(tmp_path: Path, server: Any) -> None:
    folder = run(tmp_path, "wine")
    process = started(folder, server.uri)
    deadline = time.monotonic() + 120
    while not recorded_trials(server.store, folder.recorded()):
        assert process.poll() is None
        assert time.monotonic() < deadline
    server.kill()  # in the middle of the thirty
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert errors.startswith(f"qbench: {server.uri}: ")
    assert "run the same command again" in " ".join(errors.split())
    assert "Traceback" not in errors
    assert 0 < recorded_trials(server.store, folder.recorded()) < 30
    server.start()
    status, _, errors = synced(folder, server.uri)
    assert status == 0, errors
    assert_whole(server.store, folder.recorded())


CUTS = {2: "before", 5: "after", 9: "after", 14: "before"}
"""Which batches' connections are cut: before the server has heard of it, or after it has done it
and before it can say so."""


class Cut(ThreadingHTTPServer):
    """Passes requests on to a server, and cuts the connections of some."""

    daemon_threads = True

    def __init__(self, uri: str) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.behind, self.batches = uri, itertools.count()
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"


class Passing(BaseHTTPRequestHandler):
    server: Cut

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        turn = ""
        if self.path.endswith("/runs/log-batch"):
            turn = CUTS.get(next(self.server.batches), "")
        if turn == "before":
            return self._cut()
        request = urllib.request.Request(  # noqa: S310 - our own server
            self.server.behind + self.path, body or None, dict(self.headers), method=self.command
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                status, said = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, said = error.code, error.read()
        if turn == "after":
            return self._cut()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)
        return None

    do_GET = do_POST = _pass  # noqa: N815 - the library's names

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


def test_connections_cut_in_the_middle_of_batches_lose_and_double_nothing(
    tmp_path: Path, folder: RunFolder, mlflow_server: Any
) -> None:
    home = tmp_path / "server"
    home.mkdir()
    with mlflow_server(home) as behind, Cut(behind.uri) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # MLflow's client tries some requests again by itself: a sync may survive several cuts
        ends = [synced(folder, server.uri) for _ in range(len(CUTS) + 1)]
        failed = [errors for status, _, errors in ends if status == 2]
        assert len(failed) >= 1
        assert all("run the same command again" in errors for errors in failed)
        assert ends[-1][0] == 0
        assert next(server.batches) > max(CUTS)
        assert_whole(behind.store, folder.recorded())
        server.shutdown()


def test_a_slow_server_that_does_late_what_was_given_up_has_everything_once(
    tmp_path: Path, server: Any
) -> None:
    folder = run(tmp_path, "wisconsin")
    process = started(folder, server.uri, MLFLOW_HTTP_REQUEST_TIMEOUT="5")
    pauses = 0
    for least in (1, 8, 15):
        while process.poll() is None and recorded_trials(server.store, folder.recorded()) < least:
            time.sleep(0.01)
        if process.poll() is None:
            server.pause(6.0)  # longer than a request is waited for; then it does that one
            pauses += 1
    _, errors = process.communicate(timeout=300)
    assert pauses > 0
    if process.returncode:  # it was slower than that by itself
        assert errors.startswith(f"qbench: {server.uri}: ")
        status, _, errors = synced(folder, server.uri)
        assert status == 0, errors
    assert_whole(server.store, folder.recorded())


def test_two_runs_of_a_trial_become_one(tmp_path: Path, folder: RunFolder) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'copy.db'}"
    first, second = folder.recorded()[:2]
    assert publish([first, second], uri, tmp_path) == 2
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("uci")
    assert experiment is not None
    for tags in (
        {"quadnets.trial": first.key},
        {"quadnets.trial": second.key},
        {"quadnets.table_version": str(UCI.version)},
    ):
        client.create_run(experiment.experiment_id, tags=tags)
    assert publish([first, second], uri, tmp_path) == 0
    assert_whole(uri, [first, second])


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="no prlimit to limit a file's size by")
def test_a_full_server_is_one_sentence_and_a_later_sync_completes_it(
    tmp_path: Path, folder: RunFolder, mlflow_server: Any
) -> None:
    home = tmp_path / "server"
    home.mkdir()
    with mlflow_server(home) as server:
        server.kill()
        # no room for more than a few trials
        server.start(largest=(home / "server.db").stat().st_size + 2**16)
        status, _, errors = synced(folder, server.uri)
        assert status == 2
        assert errors.startswith(f"qbench: {server.uri}: ")
        assert errors.endswith("Nothing is lost: run the same command again.")
        server.kill()
        server.start()
        assert 0 < recorded_trials(server.store, folder.recorded()) < 30
        status, _, errors = synced(folder, server.uri)
        assert status == 0, errors
        assert_whole(server.store, folder.recorded())


def recorded_trials(store: str, results: list[Result]) -> int:
    """How many of these trials a store has, in part or whole."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("uci")
    if experiment is None:
        return 0
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    return len({r.key for r in results} & {run.data.tags.get("quadnets.trial") for run in found})


def test_a_run_goes_on_while_its_server_is_away_and_records_when_it_is_back(
    tmp_path: Path, server: Any
) -> None:
    only = {"dataset": ("wisconsin",), "model": ("linear", "rank1", "dense")}
    command = [sys.executable, "-m", "qbench", "run", "uci", "--out", str(tmp_path)]
    command += ["--only", "dataset=wisconsin", "--only", "model=linear,rank1,dense"]
    command += ["--seeds", "3", "--tracking-uri", server.uri]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("uci/*/result.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.kill()  # in the middle of the run, which trains on without it
    recorded = len(list(tmp_path.glob("uci/*/result.json")))
    while len(list(tmp_path.glob("uci/*/result.json"))) == recorded < 9:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.start()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    folder = RunFolder(tmp_path, UCI)
    results = list(folder.results(UCI.cells(only)))
    assert len(results) == 9
    if "not all is recorded" in errors:  # it ended before the server was back
        assert server.uri in errors
        status, _, errors = synced(folder, server.uri)
        assert status == 0, errors
    assert_whole(server.store, results)
    assert_whole(default_uri(tmp_path), results)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("http://127.0.0.1:9", "qbench: http://127.0.0.1:9: "),
        ("http://me:secret@127.0.0.1:9", "qbench: http://me:***@127.0.0.1:9: "),
        ("nonsense://x", "qbench: nonsense://x: "),
    ],
)
def test_a_store_that_cannot_be_reached_is_one_sentence(
    folder: RunFolder, target: str, said: str
) -> None:
    status, _, errors = synced(folder, target)
    assert status == 2
    assert errors.startswith(said)
    assert errors.endswith("Nothing is lost: run the same command again.")
    assert "secret" not in errors


def test_nothing_to_sync_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    made = RunFolder(tmp_path, UCI, create=True)
    status, _, errors = synced(made, "sqlite:///x.db")
    assert (status, errors) == (
        2,
        f"qbench: no results in {str(tmp_path)!r}: make them with qbench run, or name --out",
    )
