"""How far a run has come, while it runs, after a kill and after a failure; and MLflow's copy."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qbench.activity import recorded
from qbench.block import plan
from qbench.executors import run_blocks
from qbench.status import Status, status_of, statuses
from qbench.table import Table, load_table, parse_table
from qbench.trial import RunFolder

XOR = load_table("xor")
UCI = load_table("uci")
ONLY = {"dataset": ("iris",), "model": ("linear", "rank1")}
TERMINAL = {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "100"}


def qbench(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qbench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)


def run(folder: RunFolder, table: Table, seeds: int, only: dict[str, tuple[str, ...]]) -> None:
    for _ in run_blocks(folder, plan(folder, table.cells(only, reduced="quick"), seeds)):
        pass


def test_trials_that_are_missing_take_as_long_as_those_of_their_cell(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, UCI, create=True)
    cells = list(UCI.cells(ONLY, reduced="quick"))
    before = status_of(folder, cells, 3)
    assert (before.recorded, before.expected, before.left) == (0, 6, None)
    run(folder, UCI, 1, ONLY)
    for key, seconds in zip((cell.trial_key(0) for cell in cells), (10.0, 40.0), strict=True):
        path = folder.result_path(key)
        known = json.loads(path.read_bytes())
        known["environment"]["seconds"] = seconds
        path.write_text(json.dumps(known))
    found = status_of(folder, cells, 3)
    assert (found.finished, found.diverged, found.expected) == (2, 0, 6)
    assert found.left == pytest.approx(2 * 10.0 + 2 * 40.0)
    others = list(UCI.cells({"dataset": ("iris", "wine"), "model": ("linear",)}, reduced="quick"))
    # nothing of wine is there: it takes what iris takes
    assert status_of(folder, others, 2).left == pytest.approx(10.0 + 2 * 10.0)


def test_blocks_under_other_choices_are_a_row_of_their_own(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, UCI, create=True)
    run(folder, UCI, 1, ONLY)
    (raw,) = UCI.cells(
        {"dataset": ("iris",), "model": ("linear",)}, {"scaling": ("raw",)}, reduced="quick"
    )
    alone = status_of(folder, cells := list(UCI.cells(ONLY, reduced="quick")), 3)
    with recorded(folder, raw.key, raw.axes, (0, 1), reduced="quick") as recorder:
        recorder._change(fraction=0.5)
        with folder.lock(raw.key):
            shown = qbench("status", "uci", "--out", str(tmp_path), "--json").stdout
            plain, other = json.loads(shown)
            beside = status_of(folder, cells, 3)
    assert beside == alone  # what runs elsewhere shortens nothing here
    assert (plain["choices"], plain["finished"], plain["running"]) == ({}, 2, [])
    assert other["choices"] == {"scaling": "raw"}
    assert [one["axes"]["scaling"] for one in other["running"]] == ["raw"]
    assert (other["finished"], other["expected"]) == (0, plain["expected"])


def test_what_was_recorded_under_other_choices_is_shown_where_they_stand(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, UCI, create=True)
    only = {"dataset": ("iris",), "model": ("linear",)}
    for choices in ({"scaling": ("standard",), "init_scale": (0.1,)}, {"scaling": ("raw",)}):
        cells = UCI.cells(only, choices, reduced="quick")
        for _ in run_blocks(folder, plan(folder, cells, 1)):
            pass
    shutil.rmtree(folder.path / ".activity")
    (old,) = (path for path in folder.path.glob("*/result.json") if '"raw"' in path.read_text())
    before = folder.path / "0123456789abcdef" / "result.json"
    before.parent.mkdir()
    before.write_text(json.dumps({**json.loads(old.read_text()), "version": 1}))
    shutil.copytree(old.parent, folder.path / "copied by hand")
    shown = json.loads(qbench("status", "uci", "--out", str(tmp_path), "--json").stdout)
    assert [(one["choices"], one["finished"]) for one in shown] == [
        ({"scaling": "raw"}, 1),
        ({"scaling": "standard", "init_scale": 0.1}, 1),
    ]
    said = qbench("status", "--out", str(tmp_path)).stdout
    assert "scaling=raw" in said
    assert "init_scale=0.1" in said


def test_trials_that_choices_share_are_no_row_of_their_own(tmp_path: Path) -> None:
    run(RunFolder(tmp_path, UCI, create=True), UCI, 1, {**ONLY, "model": ("linear",)})
    (trial,) = RunFolder(tmp_path, UCI).recorded()
    rank = load_table("rank")
    folder = RunFolder(tmp_path, rank, create=True)
    other = {"convolution": ("16@3x3/2",)}
    for dataset, seed in (("mnist", 0), ("fmnist", 0), ("fmnist", 1)):
        only = {"dataset": (dataset,), "model": ("linear",)}
        (cell,) = rank.cells(only, other if dataset == "fmnist" else {}, reduced="quick")
        changes = {"key": cell.trial_key(seed), "seed": seed, "axes": cell.axes}
        changes |= {"table": "rank", "version": rank.version, "resolved": cell.resolved}
        folder.write(trial.model_copy(update=changes))
    assert [(status.choices, status.recorded) for status in statuses(folder)] == [
        ({}, 1),
        ({"convolution": "16@3x3/2"}, 3),  # with that of MNIST, which has no convolution
    ]


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run of some seconds under way, its first block begun."""
    command = [sys.executable, "-m", "qbench", "run", "digits", "--only", "model=resnet20"]
    process = subprocess.Popen(
        [*command, "--seeds", "1", "--out", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("digits/.activity/*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait()


def digits(out: Path) -> Status:
    table = load_table("digits")
    return status_of(RunFolder(out, table), list(table.cells()), table.seeds)


def test_a_block_is_running_until_its_process_is_killed_and_then_stopped(
    tmp_path: Path, slow: subprocess.Popen[str]
) -> None:
    (block,) = digits(tmp_path).running
    assert block.pid == slow.pid
    assert (block.axes["model"], block.seeds) == ("resnet20", (0,))
    said = qbench("status", "digits", "--out", str(tmp_path))
    assert said.returncode == 0
    assert f"process {slow.pid} on " in said.stdout
    os.kill(slow.pid, signal.SIGKILL)
    slow.wait()
    after = digits(tmp_path)
    assert after.running == []
    assert [stopped.pid for stopped in after.stopped] == [slow.pid]
    said = qbench("status", "digits", "--out", str(tmp_path))
    assert "it goes on with qbench run digits" in " ".join(said.stdout.split())


def test_why_a_block_failed_is_said_and_its_traceback_kept(tmp_path: Path) -> None:
    text = """
    {id: digits, version: 99, title: T, paper: P, shows: S, main_metric: test_accuracy, seeds: 1,
     recipe: {epochs: 1}, grid: {dataset: [digits32], model: {none: {kind: zoo, name: no_net}}}}
    """
    table = parse_table(text, "digits.yaml")
    folder = RunFolder(tmp_path, table, create=True)
    failed: list[str] = []
    blocks = plan(folder, table.cells(), 1)
    assert list(run_blocks(folder, blocks, on_failure=lambda b, why: failed.append(why))) == []
    assert len(failed) == 1
    assert "no_net" in failed[0]
    (known,) = status_of(folder, list(table.cells()), 1).failed
    assert known.reason == failed[0]
    assert "Traceback (most recent call last)" in known.traceback
    said = qbench("status", "digits", "--out", str(tmp_path))
    assert "failed: digits digits32 none, seed 0:" in said.stdout
    assert "its traceback is in" in said.stdout


def test_all_tables_that_have_begun_are_listed_and_json_says_the_same(tmp_path: Path) -> None:
    run(RunFolder(tmp_path, UCI, create=True), UCI, 1, ONLY)
    run(RunFolder(tmp_path, XOR, create=True), XOR, 1, {})
    shown = qbench("status", "--out", str(tmp_path)).stdout
    rows = [[part.strip() for part in line.split("│")[1:3]] for line in shown.splitlines()[3:5]]
    assert rows == [["uci --quick", "2 of 192"], ["xor", "1 of 1"]]
    found = json.loads(qbench("status", "--out", str(tmp_path), "--json").stdout)
    assert [(one["table"], one["reduced"], one["finished"]) for one in found] == [
        ("uci", "quick", 2),
        ("xor", None, 1),
    ]
    assert qbench("status", "--out", str(tmp_path / "none")).stdout.startswith(
        "Nothing has been run in "
    )


def test_a_watch_looks_again_until_it_is_stopped(tmp_path: Path) -> None:
    run(folder := RunFolder(tmp_path, XOR, create=True), XOR, 1, {})
    command = [sys.executable, "-m", "qbench", "status", "xor", "--watch", "--out", str(tmp_path)]
    shown = tmp_path / "shown.txt"
    with shown.open("w") as file:
        watch = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **TERMINAL},
            # a program that a script starts in the background ignores it, and so do its own
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        wait_until(lambda: "1 of 1" in shown.read_text())
        (result,) = folder.path.glob("*/result.json")
        result.unlink()
        wait_until(lambda: "Nothing has been run" in shown.read_text())
        watch.send_signal(signal.SIGINT)
        _, said = watch.communicate(timeout=30)
    finally:
        watch.kill()
    assert watch.returncode == 130
    assert "Traceback" not in said


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_ten_thousand_trials_are_counted_and_reported_within_seconds(tmp_path: Path) -> None:
    """Processor time, for wall times of a busy machine are no measure; and where others slow the
    processor itself, against the time of reading all the files."""
    folder = RunFolder(tmp_path, UCI, create=True)
    run(folder, UCI, 1, ONLY)
    cells = list(UCI.cells())
    source = folder.result_path(next(UCI.cells(ONLY, reduced="quick")).trial_key(0))
    known = json.loads(source.read_bytes())
    for cell in cells:
        facts = {"resolved": cell.resolved, "axes": cell.axes, "reduced": None}
        for seed in range(160):
            key = cell.trial_key(seed)
            (folder.path / key).mkdir()
            record = {**known, **facts, "key": key, "seed": seed}
            folder.result_path(key).write_text(json.dumps(record))
    began = time.process_time()
    for path in folder.path.glob("*/result.json"):
        json.loads(path.read_bytes())
    most = max(3.0, 10 * (time.process_time() - began))
    for arguments in (["status", "uci", "--seeds", "160"], ["list"], ["report", "uci", "--json"]):
        before = os.times()
        said = qbench(*arguments, *([] if arguments == ["list"] else ["--out", str(tmp_path)]))
        after = os.times()
        assert said.returncode == 0, said.stderr
        assert "10240" in said.stdout or arguments == ["list"]
        user = after.children_user - before.children_user
        assert user + after.children_system - before.children_system < most, arguments
    shutil.rmtree(tmp_path)
