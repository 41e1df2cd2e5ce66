"""What MLflow shows of a block while it is trained: what its checkpoints hold, each point once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qbench.block import Block, Setting, plan
from qbench.executors import run_blocks
from qbench.publish import default_uri, publish, publish_unfinished
from qbench.running import unfinished
from qbench.table import load_table
from qbench.trial import Result, RunFolder

pytestmark = pytest.mark.filterwarnings("default")  # MLflow and what it imports warn as they like

UCI = load_table("uci")
ONLY = {"dataset": ("iris",), "model": ("linear",)}


class Stopped(BaseException):
    """What ends a training like Ctrl-C."""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path, UCI, create=True)


def trained(folder: RunFolder, until: float) -> Block:
    """A block of two seeds, trained up to a fraction of it, with a checkpoint at each step."""
    (block,) = plan(folder, UCI.cells(ONLY, reduced="quick"), 2)

    def stop(_: Block, fraction: float) -> None:
        if until < 1 and fraction >= until:
            raise Stopped

    try:
        for _ in run_blocks(folder, [block], Setting(save_every=0), on_progress=stop):
            pass
    except Stopped:
        pass
    return block


def trials(uri: str) -> Iterator[tuple[str, Any, dict[str, list[tuple[int, float, int]]]]]:
    """Key, run and curves of each trial in a store."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("uci")
    assert experiment is not None
    for run in client.search_runs([experiment.experiment_id]):
        if key := run.data.tags.get("quadnets.trial"):
            yield (
                key,
                run,
                {
                    name: sorted(
                        (m.step, m.value, m.timestamp)
                        for m in client.get_metric_history(run.info.run_id, name)
                    )
                    for name in run.data.metrics
                },
            )


def curves(result: Result) -> dict[str, list[tuple[int, float, int]]]:
    times = [int(1000 * at) for at in result.time]
    return {
        name: list(zip(result.step, values, times, strict=True))
        for name, values in result.history.items()
    }


def test_curves_of_a_block_in_training_are_those_of_its_checkpoint(folder: RunFolder) -> None:
    uri = default_uri(folder.out)
    block = trained(folder, until=0.3)
    assert list(unfinished(folder)) == []  # nobody is training it
    assert publish_unfinished(folder, uri) == 0
    with folder.lock(block.name):  # somebody is
        found = {trial.key: trial for trial in unfinished(folder)}
        assert publish_unfinished(folder, uri) == 2
        first = list(trials(uri))
        assert publish_unfinished(folder, uri) == 2  # once more changes nothing
    assert [(key, points) for key, _, points in trials(uri)] == [(k, c) for k, _, c in first]
    assert {key for key, _, _ in first} == set(found)
    for key, run, points in first:
        trial = found[key]
        assert run.info.status == "RUNNING"
        assert "quadnets.complete" not in run.data.tags
        assert run.info.start_time == int(1000 * trial.started)
        times = [int(1000 * at) for at in trial.time]
        assert 0 < trial.step[-1] < 100
        assert points == {
            name: list(zip(trial.step, values, times, strict=True))
            for name, values in trial.history.items()
        }


def test_what_was_shown_live_is_completed_and_nothing_doubles(folder: RunFolder) -> None:
    uri = default_uri(folder.out)
    block = trained(folder, until=0.3)
    with folder.lock(block.name):
        publish_unfinished(folder, uri)
    live = {key: run.info.run_id for key, run, _ in trials(uri)}
    trained(folder, until=1)  # from its checkpoint on
    results = {result.key: result for result in folder.results(UCI.cells(ONLY, reduced="quick"))}
    assert [r.environment.interruptions for r in results.values()] == [1, 1]
    assert publish(results.values(), uri, folder.out) == 2
    assert publish_unfinished(folder, uri) == 0
    for key, run, points in trials(uri):
        assert run.info.run_id == live[key]
        assert run.info.status == "FINISHED"
        assert run.data.tags["quadnets.complete"] == "true"
        assert {name: points[name] for name in results[key].history} == curves(results[key])
