"""Blocks: only what is missing is run, one process at a time, and a kill loses no finished
result."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from qbench.block import Block, Setting, plan
from qbench.errors import UserError
from qbench.executors import run_blocks
from qbench.loop import Curve, Training
from qbench.machine import check_device
from qbench.table import Cell, load_table
from qbench.trial import Result, RunFolder

UCI = load_table("uci")
ONLY = {"dataset": ("iris",), "model": ("linear", "rank1")}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path, UCI, create=True)


def cells() -> list[Cell]:
    return list(UCI.cells(ONLY, reduced="quick"))


def finish(folder: RunFolder, seeds: int) -> int:
    blocks = plan(folder, cells(), seeds)
    return sum(len(results) for _, results in run_blocks(folder, blocks))


def test_a_second_run_does_only_what_is_missing(folder: RunFolder) -> None:
    assert finish(folder, 2) == 4
    before = {r.key: r for r in folder.results(cells())}
    assert finish(folder, 2) == 0
    assert [block.seeds for block in plan(folder, cells(), 5)] == [(2, 3, 4)] * 2
    assert finish(folder, 5) == 6
    after = {r.key: r for r in folder.results(cells())}
    assert len(after) == 10
    assert before.items() <= after.items()
    assert {r.environment.block for r in after.values()} == {(0, 1), (2, 3, 4)}


def test_a_lost_result_is_run_again_to_the_same_figures(folder: RunFolder) -> None:
    finish(folder, 2)
    first = list(folder.results(cells()))
    folder.result_path(first[1].key).unlink()
    assert finish(folder, 2) == 1
    second = list(folder.results(cells()))
    assert second[1].environment.block == (first[1].seed,)
    assert second[1].metrics["train_loss"] == pytest.approx(
        first[1].metrics["train_loss"], rel=1e-4
    )


def test_progress_ends_at_one(folder: RunFolder) -> None:
    seen: list[tuple[Block, float]] = []
    blocks = plan(folder, cells(), 1)
    for _ in run_blocks(folder, blocks, on_progress=lambda *event: seen.append(event)):
        pass
    for block in blocks:
        fractions = [fraction for other, fraction in seen if other is block]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0


def test_a_block_that_another_process_runs_is_left_for_later(folder: RunFolder) -> None:
    first, second = plan(folder, cells(), 1)
    order: list[Block] = []
    held = threading.Event()

    def hold() -> None:
        with folder.lock(first.name):
            held.set()
            time.sleep(3.0)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    started = time.monotonic()
    for block, results in run_blocks(folder, [first, second]):
        order.append(block)
        assert len(results) == 1
    holder.join()
    assert order == [second, first]
    assert time.monotonic() - started >= 2.0


def test_what_another_process_finished_meanwhile_is_not_run_again(folder: RunFolder) -> None:
    blocks = plan(folder, cells(), 1)
    finish(folder, 1)
    assert [len(results) for _, results in run_blocks(folder, blocks)] == [0, 0]


def test_the_cost_orders_blocks_as_the_clock_does() -> None:
    def cost(dataset: str, model: str, seeds: int) -> float:
        (cell,) = UCI.cells({"dataset": (dataset,), "model": (model,)})
        return Block(cell, tuple(range(seeds))).cost

    assert cost("digits", "dense", 10) > cost("digits", "rank1", 10) > cost("iris", "dense", 10)
    assert cost("iris", "linear", 10) < 10 * cost("iris", "linear", 1)


def test_a_device_that_is_not_there_is_refused() -> None:
    check_device("cpu")
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(UserError, match="--device cuda: torch sees no CUDA device"):
        check_device("cuda")


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_leaves_a_folder_from_which_the_next_goes_on(
    tmp_path: Path, sent: signal.Signals
) -> None:
    # Full blocks, so that the signal falls into training; the results of ended blocks must survive.
    command = [sys.executable, "-m", "qbench", "run", "uci", "--out", str(tmp_path)]
    command += ["--only", "dataset=iris,wine", "--seeds", "2"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # what starts the tests may ignore Ctrl-C, as a shell does for what runs in the background
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    folder = tmp_path / "uci"
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*/result.json"))) < 6:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, sent)
    _, errors = process.communicate(timeout=60)
    there = {path: path.read_bytes() for path in folder.glob("*/result.json")}
    assert 6 <= len(there) < 64
    if sent == signal.SIGINT:
        assert process.returncode == 130
        assert f"{len(there)} trials are recorded" in errors
        assert "Traceback" not in errors
    run_folder = RunFolder(tmp_path, UCI, create=True)
    wanted = list(UCI.cells({"dataset": ("iris", "wine")}))
    remaining = plan(run_folder, wanted, 2)
    assert sum(len(block.seeds) for block in remaining) == 64 - len(there)
    for _, results in run_blocks(run_folder, remaining[:2]):
        assert results
    assert {path: path.read_bytes() for path in there} == there


FROM_ANOTHER = {"dataset": ("digits32",), "model": ("fine-tuned",)}


def started_from_another(folder: RunFolder) -> dict[str, Result]:
    """Fine-tune a network of the table ``upgrade``, of which the one it starts from is missing."""
    wanted = list(folder.table.cells(FROM_ANOTHER, reduced="quick"))
    blocks = plan(folder, wanted, 1)
    assert [block.cell.axes["model"] for block in blocks] == ["trained", "fine-tuned"]
    found = [result for _, results in run_blocks(folder, blocks) for result in results]
    assert plan(folder, wanted, 1) == []
    return {str(result.axes["model"]): result for result in found}


def test_a_network_to_start_from_is_trained_first_and_handed_on(tmp_path: Path) -> None:
    table = load_table("upgrade")
    found = started_from_another(RunFolder(tmp_path, table, create=True))
    before, after = found["trained"], found["fine-tuned"]
    assert before.status == after.status == "finished"
    assert before.history["train_loss"][-1] != after.history["train_loss"][-1]
    assert before.weights != after.weights


def test_what_starts_from_a_diverged_network_counts_as_diverged(tmp_path: Path) -> None:
    table = load_table("upgrade")
    assert table.quick is not None
    explosive = table.quick.model_copy(update={"recipe": {**table.quick.recipe, "lr": 1e9}})
    broken = table.model_copy(update={"quick": explosive})
    found = started_from_another(RunFolder(tmp_path, broken, create=True))
    before, after = found["trained"], found["fine-tuned"]
    assert before.status == after.status == "diverged"
    assert before.diverged_at is not None
    assert (before.diverged_at > 0, after.diverged_at) == (True, 0)
    assert after.metrics.get("test_accuracy") is None
    assert after.history == {}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_convolutions_in_half_precision_have_channels_last_and_float32_stays_as_it_was(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = load_table("combined")
    only = {"dataset": ("digits32",), "model": ("linear",)}
    cells = list(table.cells(only, {"precision": (precision,)}, reduced="quick"))
    seen = []
    run = Training.run

    def watched(self: Training, *arguments: Any, **options: Any) -> list[Curve]:
        (weight,) = (
            p for name, p in self.model.named_parameters() if "stages.0.0.conv1.weight" in name
        )
        seen.append(weight.is_contiguous(memory_format=torch.channels_last))
        return run(self, *arguments, **options)

    monkeypatch.setattr(Training, "run", watched)
    folder = RunFolder(tmp_path, table, create=True)
    for _ in run_blocks(folder, plan(folder, cells, 1), Setting()):
        pass
    assert seen == [precision != "float32"]
