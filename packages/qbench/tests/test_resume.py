"""Killed at any instant and run again, a block ends bit for bit as if nothing had happened."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qbench import checkpoint
from qbench.architecture import ModelSpec
from qbench.block import Block, Setting, plan
from qbench.build import build_model
from qbench.checkpoint import Checkpoints, State
from qbench.data import load_problem
from qbench.executors import run_blocks
from qbench.loop import Training
from qbench.recipe import Recipe
from qbench.stack import side_by_side
from qbench.table import parse_table
from qbench.trial import RunFolder

TRIALS = 6


def scenario(name: str, tmp_path: Path, *more: str) -> dict[str, object]:
    program = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, program, name, tmp_path, *more],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_run_killed_at_random_instants(tmp_path: Path, kills: int) -> None:
    found = scenario("killed_at_random", tmp_path, str(kills))
    assert found.pop("interrupted") >= kills // 3  # the others were between two blocks
    assert found == {"trials": TRIALS}


def test_a_run_killed_while_a_file_is_renamed(tmp_path: Path) -> None:
    assert scenario("killed_at_rename", tmp_path) == {"trials": TRIALS}


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(tmp_path: Path) -> None:
    note = "the checkpoint NEW is damaged: going on from the one before it"
    expected = {"trials": TRIALS, **{f"note {i}": note for i in range(4)}}
    assert scenario("corrupted", tmp_path) == expected


def test_a_full_disk_costs_time_and_nothing_else(tmp_path: Path) -> None:
    found = scenario("full_disk", tmp_path)
    assert found["trials"] == TRIALS
    assert "differs" not in found
    # checkpoints do not fit: said once per block, and every result is there
    assert found["notes 70000"] == "\n".join(
        f"no checkpoint of {cell}" for cell in ["digits32 network"] * 2 + ["digits layers"]
    )
    assert found["results 70000"] == TRIALS
    # results do not fit either: the run ends, and leaves nothing half written
    assert "ended by File too large" in str(found["notes 1500"])
    assert found["parts 70000"] == found["parts 1500"] == []


def test_two_processes_share_the_blocks(tmp_path: Path) -> None:
    expected = {"twice": 0, "each": [True, True], "trials": TRIALS, "same": True}
    assert scenario("together", tmp_path) == expected


NEW, OLD = 20, 10


@pytest.mark.parametrize(
    ("damaged", "notes", "taken"),
    [
        ({}, [], NEW),
        ({NEW: "damaged"}, ["NEW is damaged: going on from the one before it"], OLD),
        (
            {NEW: "of another version of qbench"},
            ["NEW is of another version of qbench: going on from the one before it"],
            OLD,
        ),
        (
            {NEW: "damaged", OLD: "damaged"},
            [
                "NEW is damaged: going on from the one before it",
                "OLD is damaged: beginning again",
            ],
            None,
        ),
        (
            {NEW: "damaged", OLD: "of another version of qbench"},
            [
                "NEW is damaged: going on from the one before it",
                "OLD is of another version of qbench: beginning again",
            ],
            None,
        ),
    ],
    ids=["none", "the newest", "the newest by its format", "both", "each in its way"],
)
def test_a_checkpoint_that_is_of_no_use_is_removed_and_what_follows_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damaged: dict[int, str],
    notes: list[str],
    taken: int | None,
) -> None:
    checkpoints = Checkpoints(tmp_path)
    plain = {"facts": {}, "seeds": [0], "curves": []}
    paths = {}
    for step in (OLD, NEW):
        with monkeypatch.context() as patch:
            if damaged.get(step) == "of another version of qbench":
                patch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
            path = checkpoints.save(State(step, {"x": torch.ones(3)}, plain))
        if damaged.get(step) == "damaged":
            path.write_bytes(path.read_bytes()[:-1])
        paths[path] = "OLD" if step == OLD else "NEW"
    said: list[str] = []
    found = checkpoints.latest(said.append)
    assert (found.step if found else None) == taken
    for path, name in paths.items():
        said = [note.replace(f"the checkpoint {path}", name) for note in said]
    assert said == notes
    assert [path.exists() for path in paths] == [step not in damaged for step in (OLD, NEW)]


def at_its_start(spec: ModelSpec, recipe: Recipe, seeds: list[int]) -> Training:
    problem = load_problem("digits32", recipe, seeds)
    models = [
        build_model(spec, problem.shape, problem.classes, 1.0, seed, recipe.strategy)
        for seed in seeds
    ]
    return Training(side_by_side(models), problem, recipe, seeds)


def stopped_at_every_step(
    spec: ModelSpec, recipe: Recipe, seeds: list[int], folder: Path
) -> Training:
    """Trained a step at a time, each by one that knows of the others by their files alone."""
    checkpoints = Checkpoints(folder)
    while True:
        training = at_its_start(spec, recipe, seeds)
        if (state := checkpoints.latest(pytest.fail)) is not None:
            training.restore(state)
        came_from = training.step

        def save(training: Training = training, came_from: int = came_from) -> None:
            checkpoints.save(training.state())
            if training.step > came_from:
                raise KeyboardInterrupt

        try:
            training.run(save=save, save_every=0.0)
        except KeyboardInterrupt:
            continue
        return training


def ended_with(training: Training) -> list[object]:
    """What must be the same to the last bit: all but the times."""
    state = training.state()
    curves = [(c.step, c.metrics, c.snapshots, c.diverged_at) for c in training.curves]
    tensors = {name: value.tolist() for name, value in state.tensors.items() if name != "random"}
    return [state.step, curves, tensors, state.values["groups"], state.values["scaler"]]


NETWORK = {
    "kind": "zoo",
    "name": "qresnet20",
    "options": {"depths": [1, 1, 1], "widths": [4, 4, 4]},
}


@pytest.mark.parametrize(
    ("spec", "seeds", "recipe"),
    [
        pytest.param(
            {"kind": "mlp", "hidden": (8,), "neuron": "quadratic"},
            [0, 1],
            # of a sum the scaled gradient overflows, so that the scale moves
            {"precision": "float16", "reduction": "sum", "lr": 1e-4, "clip_norm": 1.0},
            id="float16",
        ),
        pytest.param(
            {"kind": "low_rank", "rank": 2},
            [0, 1],
            {"validation": 50, "lr": 0.1},
            id="validation",
        ),
        pytest.param(
            NETWORK,
            [0],
            {
                "batch_size": None,
                "train_metrics": "measured",
                "epochs": 8,
                "lr": 0.1,
                "schedule": "cosine",
                "explosion": 100.0,
            },
            id="full batch, batch norm",
        ),
    ],
)
def test_stopped_at_every_step_it_ends_as_unbroken(
    tmp_path: Path, spec: dict[str, object], seeds: list[int], recipe: dict[str, object]
) -> None:
    common = {"epochs": 2, "batch_size": 24, "momentum": 0.9, "train_samples": 96}
    measured = {"test_samples": 40, "train_metrics": "running", "log_every": 3}
    chosen = Recipe.model_validate({**common, **measured, **recipe})
    model = ModelSpec.model_validate(spec)
    unbroken = at_its_start(model, chosen, seeds)
    unbroken.run()
    assert unbroken.step == 8
    assert all(curve.diverged_at is None for curve in unbroken.curves)
    broken = stopped_at_every_step(model, chosen, seeds, tmp_path)
    assert ended_with(broken) == ended_with(unbroken)
    if chosen.precision == "float16":  # else the scale's own state would not matter
        start = at_its_start(model, chosen, seeds).scaler.get_scale()
        assert 1.0 < unbroken.scaler.get_scale() < start


FROM_ANOTHER = """
id: after
version: 1
title: A network that starts from another
paper: none
shows: nothing
main_metric: test_accuracy
grid:
  dataset: [digits32]
  model:
    trained: &network
      {kind: zoo, name: cifar_resnet20, options: {depths: [1, 1, 1], widths: [4, 4, 4]}}
    tuned:
      {<<: *network, quadratize: compact, after: trained, recipe: {strategy: {gamma: 0.5}}}
recipe:
  lr: 0.01
  momentum: 0.9
  batch_size: 24
  train_samples: 96
  test_samples: 40
  epochs: 2
  log_every: 2
  train_metrics: running
seeds: 1
"""


@pytest.mark.parametrize("stopped", ["trained", "tuned"])
def test_a_network_that_starts_from_another_goes_on_from_its_own_checkpoint(
    tmp_path: Path, stopped: str
) -> None:
    table = parse_table(FROM_ANOTHER, "after.yaml")
    cells = list(table.cells())

    def finished(folder: RunFolder) -> dict[str, tuple[object, ...]]:
        notes: list[str] = []
        setting = Setting(save_every=0.0, on_note=notes.append)
        for _ in run_blocks(folder, plan(folder, cells, 1), setting):
            pass
        assert notes == []
        found = {str(result.axes["model"]): result for result in folder.results(cells)}
        return {
            model: (result.weights, result.metrics, result.step, result.history)
            for model, result in found.items()
        }

    def stop(block: Block, fraction: float) -> None:
        if block.cell.axes["model"] == stopped and fraction == 0.5:
            raise KeyboardInterrupt

    folder = RunFolder(tmp_path / "broken", table, create=True)
    with pytest.raises(KeyboardInterrupt):
        for _ in run_blocks(folder, plan(folder, cells, 1), Setting(save_every=0.0), stop):
            pass
    assert len(list(folder.results(cells))) == ["trained", "tuned"].index(stopped)
    unbroken = finished(RunFolder(tmp_path / "unbroken", table, create=True))
    assert finished(folder) == unbroken
    interruptions = {r.axes["model"]: r.environment.interruptions for r in folder.results(cells)}
    assert interruptions == {"trained": 0, "tuned": 0, stopped: 1}
