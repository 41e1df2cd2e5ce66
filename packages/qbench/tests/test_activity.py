"""What blocks are doing stands in files: while they run, and after they failed or were left."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from qbench import activity
from qbench.activity import Recorder, activities, recorded
from qbench.block import Block, plan
from qbench.executors import run_blocks
from qbench.frozen import Scalar
from qbench.table import load_table
from qbench.trial import RunFolder

UCI = load_table("uci")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path, UCI, create=True)


def running(folder: RunFolder) -> AbstractContextManager[Recorder]:
    """A block, called x, for as long as it runs."""
    axes: dict[str, Scalar] = {"dataset": "iris", "model": "rank1"}
    return recorded(folder, "x", axes, (0,), reduced=None)


def two_blocks(folder: RunFolder) -> list[Block]:
    only = {"dataset": ("iris",), "model": ("linear", "rank1")}
    return plan(folder, UCI.cells(only, reduced="quick"), 2)


def test_a_block_that_runs_has_a_file_and_one_that_ended_has_none(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity, "_EVERY", 0.0)  # every word of progress is written
    blocks = two_blocks(folder)
    fractions: dict[Block, list[float]] = {block: [] for block in blocks}
    started = time.time()

    def look(block: Block, fraction: float) -> None:
        found = activities(folder)
        if fraction == 1.0 and not found:
            return  # the word that comes after the end
        ((seen, is_held),) = found
        assert is_held
        assert (seen.block, seen.axes, seen.seeds) == (block.name, block.cell.axes, (0, 1))
        assert (seen.state, seen.reduced) == ("running", "quick")
        assert (seen.host, seen.pid) == (socket.gethostname(), os.getpid())
        assert started <= seen.started <= seen.updated <= time.time()
        assert (seen.reason, seen.traceback) == ("", "")
        assert seen.fraction == fraction
        fractions[block].append(fraction)

    for _ in run_blocks(folder, blocks, on_progress=look):
        assert activities(folder) == []
    assert list(fractions.values()) == [[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]] * 2
    assert list(folder.activity_path("x").parent.iterdir()) == []


def test_how_far_a_block_has_come_is_written_now_and_then(folder: RunFolder) -> None:
    with running(folder) as record:
        record.at(0.1)
        ((seen, _),) = activities(folder)
    assert seen.fraction == 0.0  # 5 seconds are not over


def test_a_block_that_failed_leaves_the_reason_and_the_traceback(folder: RunFolder) -> None:
    def half_of_it() -> None:
        with running(folder):
            raise ValueError("too large\nby far")

    with pytest.raises(ValueError, match="too large"):
        half_of_it()
    ((seen, is_held),) = activities(folder)
    assert not is_held
    assert (seen.state, seen.reason) == ("failed", "ValueError: too large")
    assert "in half_of_it" in seen.traceback
    assert seen.traceback.endswith("ValueError: too large\nby far\n")


def test_a_block_tried_again_and_ended_well_leaves_nothing(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="once"), running(folder):
        raise ValueError("once")
    with running(folder):
        ((seen, _),) = activities(folder)
        assert (seen.state, seen.reason, seen.traceback) == ("running", "", "")
    assert activities(folder) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from qbench.block import plan
from qbench.executors import run_blocks
from qbench.table import load_table
from qbench.trial import RunFolder

table = load_table("uci")
folder = RunFolder(Path(sys.argv[1]), table, create=True)
only = {"dataset": ("iris",), "model": ("linear", "rank1")}

def end(block, fraction):
    if fraction == 0.4:
        os.kill(os.getpid(), signal.SIGKILL)

for _ in run_blocks(folder, plan(folder, table.cells(only, reduced="quick"), 2), on_progress=end):
    pass
"""


def test_a_block_whose_process_was_killed_is_seen_as_nobodys(folder: RunFolder) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, folder.out])
    assert process.wait() == -signal.SIGKILL
    ((seen, is_held),) = activities(folder)
    first, second = two_blocks(folder)
    assert not is_held
    assert (seen.block, seen.pid, seen.state) == (first.name, process.pid, "running")
    with folder.lock(first.name):  # somebody takes it up
        assert [held for _, held in activities(folder)] == [True]
    for _ in run_blocks(folder, [first, second]):
        pass
    assert activities(folder) == []


def test_an_interrupted_block_is_no_failed_one(folder: RunFolder) -> None:
    def interrupt(_: Block, fraction: float) -> None:
        if fraction == 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run_blocks(folder, two_blocks(folder), on_progress=interrupt))
    ((seen, is_held),) = activities(folder)
    assert not is_held
    assert (seen.state, seen.reason) == ("running", "")


@pytest.mark.parametrize("hindrance", ["no folder", "a part that stays"])
def test_where_the_file_cannot_be_written_blocks_run_all_the_same(
    folder: RunFolder, hindrance: str
) -> None:
    # permissions would not do: whoever may do everything runs tests, too
    home = folder.activity_path("x").parent
    blocks = two_blocks(folder)
    if hindrance == "no folder":
        home.write_text("in the way")
    else:
        part = home / f".{blocks[0].name}.json.1.part"
        (part / "in the way").mkdir(parents=True)
    assert [len(results) for _, results in run_blocks(folder, blocks)] == [2, 2]
    assert activities(folder) == []


def test_what_a_killed_writer_left_is_cleared(folder: RunFolder) -> None:
    path = folder.activity_path("x")
    path.parent.mkdir()
    left, of_another = (path.with_name(f".{name}.json.1.part") for name in ("x", "y"))
    left.touch()
    of_another.touch()
    with running(folder):
        assert not left.exists()
        assert of_another.exists()


def test_a_file_that_is_none_of_ours_is_passed_over(folder: RunFolder) -> None:
    home = folder.activity_path("x").parent
    home.mkdir()
    (home / "y.json").write_text("{")
    with running(folder):
        content = json.loads(folder.activity_path("x").read_text())
        (home / "z.json").write_text(json.dumps({**content, "more": 1}))
        assert [seen.block for seen, _ in activities(folder)] == ["x"]


def test_looking_at_blocks_is_no_hold_on_them(folder: RunFolder) -> None:
    path = folder.activity_path("x")
    with running(folder):
        content = path.read_bytes()
    path.write_bytes(content)
    assert [is_held for _, is_held in activities(folder)] == [False]
    with folder.lock("x").acquire(timeout=0):
        pass


def test_where_locks_cannot_be_tried_the_file_is_believed(folder: RunFolder) -> None:
    with running(folder):
        content = folder.activity_path("x").read_text()
    # as in the folder of somebody else, but so that it holds for whoever may do everything
    shutil.rmtree(folder.path / ".locks")
    (folder.path / ".locks").write_text("in the way")
    for state, is_held in [("running", True), ("failed", False)]:
        folder.activity_path("x").write_text(content.replace("running", state))
        assert [held for _, held in activities(folder)] == [is_held]
