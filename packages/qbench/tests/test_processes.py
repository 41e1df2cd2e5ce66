"""Blocks in processes of their own: the same results, whichever of the processes are killed.

Everything here is real: spawned workers, signals, and a limit of the size of files.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pytest
import torch

from qbench.activity import activities
from qbench.block import Block, Setting, plan
from qbench.errors import UserError
from qbench.executors import run_blocks, run_on_processes
from qbench.table import Reduction, load_table, parse_table
from qbench.trial import Result, RunFolder

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="processes are found in /proc"
)

UCI = load_table("uci")

WITH_A_WRONG_MODEL = (
    (resources.files("qbench") / "tables" / "uci.yaml")
    .read_text()
    .replace(
        "    linear: {kind: linear}\n",
        "    linear: {kind: linear}\n"
        "    wrong: {kind: low_rank, rank: 1, start: {no_such_parameter: [1.0]}}\n"
        "    too-large: {kind: linear, convolution: {channels: 1, kernel: 33}}\n",
    )
)
"""The table ``uci`` with a model that has no such parameter, and one that does not fit."""


def blocks_of(
    folder: RunFolder, models: Iterable[str], seeds: int, *, reduced: Reduction | None = "quick"
) -> list[Block]:
    only = {"dataset": ("iris",), "model": tuple(models)}
    return plan(folder, folder.table.cells(only, reduced=reduced), seeds)


def facts(results: Iterable[Result]) -> dict[str, tuple[object, ...]]:
    """What must be the same wherever a trial was run."""
    return {
        r.key: (r.weights, r.metrics, r.step, r.history, r.snapshots, r.environment.block)
        for r in results
    }


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def in_one_process(folder: RunFolder, blocks: Iterable[Block]) -> list[Result]:
    with one_thread():
        return [result for _, results in run_blocks(folder, blocks) for result in results]


def processes() -> dict[int, tuple[int, str]]:
    """The parent and the command line of every process that has not ended."""
    found = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                state, parent = (place / "stat").read_text().rpartition(")")[2].split()[:2]
                command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it has just ended
                continue
            if state != "Z":
                found[int(place.name)] = (int(parent), command)
    return found


def workers_of(pid: int) -> set[int]:
    """The spawned workers of a process."""
    return {
        child
        for child, (parent, command) in processes().items()
        if parent == pid and "spawn_main" in command
    }


def wait_until(condition: Callable[[], object], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- what two workers give -----------------------------------------------------------------------


@dataclass
class Run:
    folder: RunFolder
    blocks: list[Block]
    results: list[Result]
    failed: list[tuple[Block, str]]
    progress: list[tuple[Block, float]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Blocks of Iris on two workers, one of which cannot be built."""
    table = parse_table(WITH_A_WRONG_MODEL, "uci.yaml")
    folder = RunFolder(tmp_path_factory.mktemp("runs"), table, create=True)
    blocks = blocks_of(folder, ["linear", "wrong", "rank1", "dense"], 2)
    run = Run(folder, blocks, [], [], [])
    for _, results in run_on_processes(
        folder,
        blocks,
        jobs=2,
        threads=1,
        on_progress=lambda *event: run.progress.append(event),
        on_failure=lambda *event: run.failed.append(event),
    ):
        run.results += results
    return run


def test_two_workers_give_what_one_process_gives(run: Run, tmp_path: Path) -> None:
    alone = RunFolder(tmp_path, run.folder.table, create=True)
    blocks = [block for block in run.blocks if block.cell.axes["model"] != "wrong"]
    assert facts(run.results) == facts(in_one_process(alone, blocks))
    assert len(run.results) == 6
    written = run.folder.results([block.cell for block in run.blocks])
    assert {result.key: result for result in written} == {r.key: r for r in run.results}
    assert {result.environment.threads for result in run.results} == {1}
    assert {result.environment.interruptions for result in run.results} == {0}


def test_a_block_that_raises_is_told_and_recorded_and_the_others_run(run: Run) -> None:
    ((block, reason),) = run.failed
    assert block.cell.axes["model"] == "wrong"
    assert reason == "AttributeError: LowRankForm has no attribute `no_such_parameter`"
    ((seen, is_held),) = activities(run.folder)
    assert not is_held
    assert (seen.block, seen.state, seen.reason) == (block.name, "failed", reason)
    assert "in build_model" in seen.traceback
    assert seen.pid != os.getpid()


def test_progress_of_a_worker_ends_at_one_where_the_block_does(run: Run) -> None:
    for block in run.blocks:
        fractions = [fraction for other, fraction in run.progress if other is block]
        assert fractions == sorted(fractions)
        assert fractions[-1:] == ([] if block is run.failed[0][0] else [1.0])


def test_no_worker_is_left(run: Run) -> None:
    assert run.results
    assert workers_of(os.getpid()) == set()


MANY = """
id: many
version: 1
title: Networks of which each seed is a block
paper: none
shows: nothing
main_metric: test_accuracy
seeds: 200
grid:
  dataset: [digits32]
  model:
    net: {kind: zoo, name: cifar_resnet20, options: {depths: [1, 1, 1], widths: [2, 2, 2]}}
recipe: {lr: 0.01, batch_size: 8, train_samples: 8, test_samples: 8, epochs: 1}
"""


def test_two_hundred_blocks_are_each_recorded_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, parse_table(MANY, "many.yaml"), create=True)
    blocks = plan(folder, folder.table.cells(), 200)
    assert len(blocks) == 200
    ended = list(run_on_processes(folder, blocks, jobs=2, threads=1))
    assert {block for block, _ in ended} == set(blocks)
    added = [result for _, results in ended for result in results]
    assert sorted(result.seed for result in added) == list(range(200))
    assert {r.key: r.weights for r in folder.recorded()} == {r.key: r.weights for r in added}
    assert len({result.weights for result in added}) == 200
    assert activities(folder) == []
    assert not list(folder.path.glob(".checkpoints/*"))


# --- workers that are killed, and what ends everything -------------------------------------------


def test_a_block_whose_worker_is_killed_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    alone = RunFolder(tmp_path / "unbroken", UCI, create=True)
    unbroken = facts(in_one_process(alone, blocks_of(alone, ["rank1"], 3, reduced=None)))
    folder = RunFolder(tmp_path / "broken", UCI, create=True)
    (block,) = blocks_of(folder, ["rank1"], 3, reduced=None)
    other = blocks_of(folder, ["linear"], 3)[0]
    killed: list[int] = []

    def kill(running: Block, fraction: float) -> None:
        if running is block and not killed and 0 < fraction < 1:
            (pid,) = (seen.pid for seen, _ in activities(folder) if seen.block == block.name)
            assert pid in workers_of(os.getpid())
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)
            # one of its results was there already, and it had no time to say so
            key = block.cell.trial_key(0)
            shutil.copytree(alone.trial_path(key), folder.trial_path(key))

    handed_on: list[Result] = []
    # a checkpoint after every step, so that a thousand of them take seconds
    setting = Setting(save_every=0.0)
    for _, results in run_on_processes(
        folder, [block, other], 2, setting, kill, lambda *event: pytest.fail(str(event)), threads=1
    ):
        handed_on += results
    assert killed
    of_block = [result for result in handed_on if result.key in unbroken]
    assert sorted(result.seed for result in of_block) == [0, 1, 2]
    assert facts(of_block) == unbroken
    assert [r.environment.interruptions for r in of_block if r.seed > 0] == [1, 1]
    assert len(handed_on) == 6
    assert not folder.checkpoint_path(block.name).exists()
    assert activities(folder) == []


def test_what_ended_the_worker_of_a_failed_block_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["qbench.executors.dispatch"], "MOST_LOST", 1)
    folder = RunFolder(tmp_path, UCI, create=True)
    failed: list[str] = []

    def kill(_: Block, fraction: float) -> None:
        if fraction < 1:
            ((seen, _),) = activities(folder)
            os.kill(seen.pid, signal.SIGKILL)

    ended = run_on_processes(
        folder,
        blocks_of(folder, ["rank1"], 1, reduced=None),
        1,
        Setting(save_every=0.0),
        kill,
        on_failure=lambda _, reason: failed.append(reason),
    )
    assert list(ended) == []
    assert failed == ["its process was ended by SIGKILL, perhaps for want of memory (1 times)"]


def test_a_mistake_of_the_user_in_a_worker_ends_everything(tmp_path: Path) -> None:
    table = parse_table(WITH_A_WRONG_MODEL.replace("[iris, ", "[iris, digits32, "), "uci.yaml")
    folder = RunFolder(tmp_path, table, create=True)
    cells = table.cells({"dataset": ("digits32",), "model": ("too-large",)}, reduced="quick")
    with pytest.raises(UserError, match="a convolution of 33×33 does not fit inputs"):
        list(run_on_processes(folder, plan(folder, cells, 1), 1))
    assert workers_of(os.getpid()) == set()


def test_a_folder_in_which_nothing_can_be_written_ends_everything(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, UCI, create=True)
    blocks = blocks_of(folder, ["linear", "rank1"], 1)
    in_the_way = folder.trial_path(blocks[0].cell.trial_key(0))
    in_the_way.write_text("a file where a folder has to be")
    with pytest.raises(OSError, match="File exists") as caught:
        list(run_on_processes(folder, blocks, 2))
    assert caught.value.errno == errno.EEXIST
    assert caught.value.filename == str(in_the_way)
    assert workers_of(os.getpid()) == set()


def test_an_error_of_whoever_is_told_of_progress_is_not_taken_for_the_workers_end(
    tmp_path: Path,
) -> None:
    folder = RunFolder(tmp_path, UCI, create=True)

    def closed(*_: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "the terminal is gone")

    with pytest.raises(BrokenPipeError, match="the terminal is gone"):
        list(run_on_processes(folder, blocks_of(folder, ["linear"], 1), 1, on_progress=closed))
    assert workers_of(os.getpid()) == set()


# --- the command line ----------------------------------------------------------------------------


def command(out: Path, *more: str, jobs: int = 2) -> list[str]:
    """``qbench run uci``."""
    start = [sys.executable, "-m", "qbench", "run", "uci", "--out", str(out)]
    return [*start, "--jobs", str(jobs), *more]


WITH_ITS_OWN_TABLE = """
import sys
import qbench.cli, qbench.commands_run
from qbench.table import parse_table
table = parse_table(sys.argv.pop(1), "uci.yaml")
qbench.commands_run.load_table = lambda name: table
qbench.cli.main()
"""


def test_a_failed_block_is_one_sentence_and_exit_status_1(tmp_path: Path) -> None:
    python, _, _, *rest = command(tmp_path, "--quick", "--seeds", "1", "--only", "dataset=iris")
    rest += ["--only", "model=linear,wrong"]
    program = [python, "-c", WITH_ITS_OWN_TABLE, WITH_A_WRONG_MODEL]
    done = subprocess.run([*program, *rest], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "qbench: 1 of 2 blocks failed: iris wrong maxabs 1 0.2: AttributeError: LowRankForm has no "
        "attribute `no_such_parameter`. "
    )
    assert "1 trials run" in done.stdout
    assert "Traceback" not in done.stdout
    assert len(list((tmp_path / "uci").glob("*/result.json"))) == 1


def test_a_full_disk_is_one_sentence_and_exit_status_2(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    small = (
        1000,
        resource.RLIM_INFINITY,
    )  # bytes of a file: more than locks have, less than results
    done = subprocess.run(
        command(tmp_path, "--quick", "--only", "dataset=iris", jobs=1),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, small),
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "qbench: File too large; what was finished is kept: repair that, run again"
    ]
    assert list((tmp_path / "uci").glob("*/result.json")) == []


@contextmanager
def started(out: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A run in a process group of its own, as a terminal starts it; ended whatever happens."""
    process = subprocess.Popen(
        command(out, "--only", "dataset=iris,wine", *more),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # what starts the tests may ignore Ctrl-C, as a shell does for what runs in the background
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_ctrl_c_ends_the_workers_and_keeps_the_results(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, UCI)

    def results() -> int:
        return len(list(folder.path.glob("*/result.json")))

    with started(tmp_path) as process:
        wait_until(lambda: len(workers_of(process.pid)) == 2)
        workers = workers_of(process.pid)
        for worker in workers:  # in the middle of their first imports: it passes by them
            os.kill(worker, signal.SIGINT)
        wait_until(lambda: results() >= 3)
        assert workers_of(process.pid) == workers
        os.killpg(process.pid, signal.SIGINT)  # as a terminal tells it to all
        _, errors = process.communicate(timeout=60)
        wait_until(lambda: not workers & processes().keys(), 60)
    assert process.returncode == 130
    assert 3 <= results() < 220
    assert f"{results()} trials are recorded" in errors
    assert "Traceback" not in errors
    # blocks were left in the middle, which is no failure of theirs
    assert {(seen.state, is_held) for seen, is_held in activities(folder)} == {("running", False)}


def test_workers_end_when_the_process_that_has_them_is_killed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, UCI)
    with started(tmp_path) as process:
        wait_until(lambda: len(list(folder.path.glob("*/result.json"))) >= 3)
        workers = workers_of(process.pid)
        assert len(workers) == 2
        wait_until(lambda: {seen.pid for seen, _ in activities(folder)} == workers)
        process.kill()
        wait_until(lambda: not workers & processes().keys(), 60)
    # a block that had just ended then has left nothing
    assert {(seen.state, is_held) for seen, is_held in activities(folder)} <= {("running", False)}
