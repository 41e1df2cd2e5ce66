"""One model over two processes that torchrun starts: the curve of one process, recorded once."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from qbench.block import plan
from qbench.executors import run_blocks
from qbench.table import Table, parse_table
from qbench.trial import Result, RunFolder

# the processes run this: a table that is none of the package's, on the command line all the same
PROGRAM = """
import sys
from qbench import cli, commands_run
from qbench.table import parse_table

with open(sys.argv.pop(1), encoding="utf-8") as file:
    table = parse_table(file.read(), "together.yaml")
commands_run.load_table = lambda name: table
cli.main()
"""

LAYERS = """
id: together
version: 1
title: Networks without batch norm
paper: none
shows: nothing
main_metric: test_accuracy
seeds: 2
grid:
  dataset: [digits32]
  model:
    mlp: {kind: mlp, hidden: [16, 16], neuron: quadratic}
    tuned: {kind: mlp, hidden: [16, 16], neuron: quadratic, recipe: {strategy: {gamma: 0.5}}}
    summed: {kind: low_rank, rank: 2, recipe: {reduction: sum, lr: 0.0001, margin_weight: 0.5}}
    running: {kind: low_rank, rank: 2, recipe: {train_metrics: running, clip_norm: 0.1}}
recipe:
  {lr: 0.03, batch_size: 100, train_samples: 537, test_samples: 201, epochs: 6, log_every: 5}
"""

NETWORK = """
id: together
version: 1
title: A network with batch norm
paper: none
shows: nothing
main_metric: test_accuracy
seeds: 1
grid:
  dataset: [digits32]
  model:
    net: {kind: zoo, name: cifar_resnet20, options: {depths: [1, 1, 1], widths: [4, 4, 4]}}
recipe: {lr: 0.01, batch_size: 24, train_samples: 96, test_samples: 41, epochs: 2, log_every: 2}
"""


def command(place: Path, text: str, *options: str) -> list[str]:
    (place / "together.yaml").write_text(text)
    (place / "program.py").write_text(PROGRAM)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    files = [str(place / "program.py"), str(place / "together.yaml")]
    return [*start, *files, "run", "together", "--out", str(place / "runs"), *options]


def together(place: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(place, text, *options), capture_output=True, text=True, check=False
    )


def here(place: Path, table: Table) -> list[Result]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = RunFolder(place / "here", table, create=True)
    for _ in run_blocks(folder, plan(folder, table.cells(), table.seeds)):
        pass
    torch.set_num_threads(before)
    return list(folder.results(table.cells()))


def recorded(place: Path, table: Table) -> list[Result]:
    return list(RunFolder(place / "runs", table).results(table.cells()))


def test_two_processes_give_the_curve_of_one(tmp_path: Path) -> None:
    table = parse_table(LAYERS, "together.yaml")
    done = together(tmp_path, LAYERS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("8 trials run in") == 1  # the first speaks for both
    assert "SyncBatchNorm" not in done.stdout
    alone, shared = here(tmp_path, table), recorded(tmp_path, table)
    assert [result.key for result in shared] == [result.key for result in alone]
    for one, two in zip(alone, shared, strict=True):
        assert (one.environment.processes, two.environment.processes) == (1, 2)
        assert two.step == one.step
        assert len(one.step) in (8, 9)  # the last batch of an epoch has 37 samples
        assert set(two.history) == set(one.history)
        for name, curve in one.history.items():
            assert two.history[name] == pytest.approx(curve, abs=1e-4), name
        assert one.history["train_loss"][-1] < 0.95 * one.history["train_loss"][0]


def test_batch_norm_of_shares_is_told_of(tmp_path: Path) -> None:
    table = parse_table(NETWORK, "together.yaml")
    done = together(tmp_path, NETWORK)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert said.count("torch's SyncBatchNorm needs a GPU") == 1
    (result,) = recorded(tmp_path, table)
    assert result.status == "finished"
    assert all(torch.tensor(curve).isfinite().all() for curve in result.history.values())


def test_a_block_that_fails_is_told_of_by_the_first(tmp_path: Path) -> None:
    wrong = "wrong: {kind: low_rank, rank: 1, start: {no_such_parameter: [1.0]}}"
    text = LAYERS.replace("    mlp:", f"    {wrong}\n    mlp:")
    done = together(tmp_path, text, "--only", "model=wrong")
    assert done.returncode != 0
    assert done.stdout.count("failed: digits32 wrong: ") == 1
    assert done.stderr.count("qbench: 1 of 1 blocks failed: digits32 wrong: ") == 1


def process_of(rank: int, place: Path) -> int | None:
    """A process that torchrun has started on a program in this folder."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_ours = str(place / "program.py").encode() in (process / "cmdline").read_bytes()
            variables = (process / "environ").read_bytes().split(b"\0")
            if is_ours and f"RANK={rank}".encode() in variables:
                return int(process.name)
    return None


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
def test_a_killed_process_ends_all_and_the_next_run_does_what_is_missing(tmp_path: Path) -> None:
    text = LAYERS.replace("epochs: 6", "epochs: 300").replace("log_every: 5", "log_every: 100")
    table = parse_table(text, "together.yaml")
    with (tmp_path / "said").open("w") as said:
        run = subprocess.Popen(
            command(tmp_path, text, "--only", "model=mlp"), stdout=said, stderr=said
        )
        while not list(tmp_path.glob("runs/together/.activity/*.json")):
            assert run.poll() is None
            time.sleep(0.05)
        other = process_of(1, tmp_path)
        assert other is not None
        os.kill(other, signal.SIGKILL)
        assert run.wait(timeout=300) != 0
    assert process_of(0, tmp_path) is None
    assert recorded(tmp_path, table) == []
    done = together(tmp_path, text, "--only", "model=mlp")
    assert done.returncode == 0, done.stderr
    assert [result.environment.processes for result in recorded(tmp_path, table)] == [2, 2]


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        (
            LAYERS.replace("batch_size: 100, ", "").replace("train_metrics: running, ", ""),
            [],
            "qbench: torchrun with 2 processes is for training in small batches: this is training "
            "on whole ones; use --jobs to run several trials at once",
        ),
        (
            LAYERS.replace("batch_size: 100", "batch_size: 4"),
            [],
            "qbench: torchrun with 2 processes: the smallest batch of an epoch has 1 samples; use "
            "at most as many processes",
        ),
        (
            LAYERS,
            ["--jobs", "2"],
            "qbench: torchrun has started several processes, which train each block together: "
            "leave out --jobs and --ray",
        ),
    ],
    ids=["whole batches", "too small a batch", "with --jobs"],
)
def test_what_cannot_be_shared_is_one_sentence(
    tmp_path: Path, text: str, options: list[str], sentence: str
) -> None:
    done = together(tmp_path, text, *options)
    assert done.returncode != 0
    assert done.stderr.count(sentence) == 1
    assert not list(tmp_path.glob("runs/together/*/result.json"))
