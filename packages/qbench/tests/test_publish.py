"""MLflow as a replica: real stores and a real server, published to any number of times."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qbench.block import plan
from qbench.executors import run_blocks
from qbench.publish import Publisher, default_uri, publish
from qbench.table import load_table
from qbench.trial import Result, RunFolder

pytestmark = pytest.mark.filterwarnings("default")  # MLflow and what it imports warn as they like

UCI = load_table("uci")
ONLY = {"dataset": ("iris",), "model": ("linear", "rank1")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    made = RunFolder(tmp_path_factory.mktemp("runs"), UCI, create=True)
    for _ in run_blocks(made, plan(made, UCI.cells(ONLY, reduced="quick"), 2)):
        pass
    return made


@pytest.fixture(scope="module")
def found(folder: RunFolder) -> list[Result]:
    return list(folder.results(UCI.cells(ONLY, reduced="quick")))


@pytest.fixture(scope="module")
def store(folder: RunFolder, found: list[Result]) -> str:
    uri = default_uri(folder.out)
    assert publish(found, uri, folder.out) == 4
    return uri


def runs(uri: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("uci")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def points(uri: str, run_id: str, key: str) -> list[tuple[int, float, int]]:
    from mlflow import MlflowClient

    history = MlflowClient(tracking_uri=uri).get_metric_history(run_id, key)
    return [(m.step, m.value, m.timestamp) for m in history]


def test_one_parent_run_and_one_child_for_each_trial(store: str, found: list[Result]) -> None:
    everything = runs(store)
    parents = [run for run in everything if "quadnets.table_version" in run.data.tags]
    children = [run for run in everything if "quadnets.trial" in run.data.tags]
    assert len(parents) == 1
    assert {run.data.tags["quadnets.trial"] for run in children} == {r.key for r in found}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert {run.data.tags["quadnets.complete"] for run in children} == {"true"}
    assert {run.info.status for run in everything} == {"FINISHED"}


def test_a_child_carries_params_metrics_and_circumstances(store: str, found: list[Result]) -> None:
    by_trial = {run.data.tags.get("quadnets.trial"): run for run in runs(store)}
    for result in found:
        run = by_trial[result.key]
        assert run.data.params["model"] == result.axes["model"]
        assert run.data.params["scaling"] == "maxabs"
        assert run.data.params["seed"] == str(result.seed)
        assert run.data.params["epochs"] == "100"
        assert run.data.metrics["test_accuracy"] == result.metrics["test_accuracy"]
        assert run.data.metrics["block_seconds"] == result.environment.seconds
        assert run.data.tags["quadnets.reduced"] == "quick"
        assert run.data.tags["quadnets.version.torch"] == result.environment.versions["torch"]
        assert run.data.tags["quadnets.hardware.cpu"]
        assert run.info.start_time == int(result.environment.started * 1000)
        curve = points(store, run.info.run_id, "train_loss")
        assert [(step, value) for step, value, _ in curve] == [
            *zip(result.step, result.history["train_loss"], strict=True)
        ]


def test_publishing_again_changes_nothing(
    store: str, folder: RunFolder, found: list[Result]
) -> None:
    before = {run.info.run_id: run.to_dictionary() for run in runs(store)}
    curves = {run_id: points(store, run_id, "train_loss") for run_id in before}
    assert publish(found, store, folder.out) == 0
    assert {run.info.run_id: run.to_dictionary() for run in runs(store)} == before
    assert {run_id: points(store, run_id, "train_loss") for run_id in before} == curves


def test_a_run_published_in_part_is_completed_and_nothing_doubles(
    tmp_path: Path, found: list[Result]
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'part.db'}"
    assert publish(found[:1], uri, tmp_path) == 1
    client = MlflowClient(tracking_uri=uri)
    (run,) = [run for run in runs(uri) if "quadnets.trial" in run.data.tags]
    curve = points(uri, run.info.run_id, "train_loss")
    client.delete_tag(run.info.run_id, "quadnets.complete")
    assert publish(found[:1], uri, tmp_path) == 1
    (again,) = [run for run in runs(uri) if "quadnets.trial" in run.data.tags]
    assert again.info.run_id == run.info.run_id
    assert points(uri, run.info.run_id, "train_loss") == curve
    assert again.data.tags["quadnets.complete"] == "true"


def test_a_diverged_trial_is_a_failed_run_with_its_step(tmp_path: Path) -> None:
    out = RunFolder(tmp_path, UCI, create=True)
    cells = list(
        UCI.cells(
            {"dataset": ("wine",), "model": ("rank1",)}, {"scaling": ("raw",)}, reduced="quick"
        )
    )
    for _ in run_blocks(out, plan(out, cells, 1)):
        pass
    (result,) = out.results(cells)
    assert result.status == "diverged"
    uri = default_uri(tmp_path)
    publish([result], uri, tmp_path)
    (run,) = [run for run in runs(uri) if "quadnets.trial" in run.data.tags]
    assert run.info.status == "FAILED"
    assert run.data.tags["quadnets.diverged_at"] == str(result.diverged_at)


def test_the_publisher_says_what_it_could_not_record_and_records_the_rest(
    tmp_path: Path, folder: RunFolder, found: list[Result]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}"  # bound and not listening: refused
        alive = f"sqlite:///{tmp_path / 'alive.db'}"
        publisher = Publisher(tmp_path, [dead, alive], "uci")
        publisher.send(folder, found)
        problem = publisher.close()
    assert dead in problem
    assert "\n" not in problem
    assert len([run for run in runs(alive) if "quadnets.trial" in run.data.tags]) == 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, mlflow_server: Any) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as started:
        yield started.uri


def test_a_run_is_recorded_on_a_server_as_well(tmp_path: Path, server: str) -> None:
    command = [sys.executable, "-m", "qbench", "run", "uci", "--quick", "--seeds", "2"]
    command += ["--only", "dataset=iris", "--only", "model=linear", "--out", str(tmp_path)]
    command += ["--tracking-uri", server]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "not all is recorded" not in done.stderr
    assert f"\nMLflow: {server}, or mlflow ui --backend-store-uri sqlite:" in done.stdout
    run_folder = RunFolder(tmp_path, UCI)
    only = {"dataset": ("iris",), "model": ("linear",)}
    results = list(run_folder.results(UCI.cells(only, reduced="quick")))
    assert publish(results, server, tmp_path) == 0
    for uri in (server, default_uri(tmp_path)):
        trials = [run for run in runs(uri) if "quadnets.trial" in run.data.tags]
        assert {run.data.tags["quadnets.trial"] for run in trials} == {r.key for r in results}
        assert len(trials) == 2
        assert {run.data.tags["quadnets.complete"] for run in trials} == {"true"}


@pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None,
    reason="root cannot put down its privileges here: no setpriv",
)
def test_the_publisher_ends_where_it_may_not_raise_its_priority(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qbench.publish", "--out", tmp_path]
    command += ["--table", "uci", "--to", "sqlite://"]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set", "-sys_nice", *command]
    done = subprocess.run(command, input=b"", capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
