"""Results are written whole or not at all, and only results are read."""

import json
import math
import os
from pathlib import Path

import pytest

from qbench.block import plan
from qbench.errors import UserError
from qbench.executors import run_blocks
from qbench.report.files import report_of
from qbench.status import status_of, statuses
from qbench.table import Cell, load_table
from qbench.trial import RunFolder, commit, read_result, write_whole

XOR = load_table("xor")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "runs with ünïcode", XOR, create=True)
    for _ in run_blocks(made, plan(made, XOR.cells(), 1)):
        pass
    return made


def test_a_result_survives_its_file(folder: RunFolder) -> None:
    (result,) = folder.results(XOR.cells())
    path = folder.result_path(result.key)
    assert path == folder.out / "xor" / result.key / "result.json"
    assert read_result(path) == result
    assert folder.write(result).read_text() == path.read_text()


def test_a_result_of_before_a_choice_was_left_open_is_at_its_default(folder: RunFolder) -> None:
    (result,) = folder.results(XOR.cells())
    assert result.axes["lr"] == 0.1
    path = folder.result_path(result.key)
    known = json.loads(path.read_text())
    del known["axes"]["lr"]
    path.write_text(json.dumps(known))
    (found,) = folder.recorded()
    assert found == result
    assert Cell(XOR, read_result(path).axes).trial_key(0) == result.key
    report, drawn = report_of(folder)
    assert [cell.axes["lr"] for cell in report.cells] == [0.1]
    assert list(drawn) == [result]
    (status,) = statuses(folder)
    assert (status.choices, status.recorded) == ({}, 1)


def test_a_result_says_where_it_was_made(folder: RunFolder) -> None:
    (result,) = folder.results(XOR.cells())
    environment = result.environment
    assert environment.hardware["cores"] == os.cpu_count()
    assert environment.versions["torch"]
    assert environment.block == (0,)
    assert environment.seconds > 0
    assert environment.commit == commit()
    assert result.resolved["recipe"]["lr"] == 0.1


def test_a_file_that_is_no_result_is_named_with_the_way_out(folder: RunFolder) -> None:
    (result,) = folder.results(XOR.cells())
    path = folder.result_path(result.key)
    whole = path.read_text()
    newer = json.dumps({**json.loads(whole), "from_the_future": 1})
    for text in (whole[: len(whole) // 2], "", "[]", "\0", newer):
        path.write_text(text)
        with pytest.raises(UserError, match=r"result\.json is not a result .* run again"):
            list(folder.results(XOR.cells()))


def test_a_result_of_a_later_qbench_is_never_said_to_be_deleted(folder: RunFolder) -> None:
    (result,) = folder.results(XOR.cells())
    path = folder.result_path(result.key)
    later = {**json.loads(path.read_text()), "schema_version": 2, "from_the_future": 1}
    path.write_text(json.dumps(later))
    said = r"result\.json was written by a later version of qbench: install that, pip install --upg"
    with pytest.raises(UserError, match=said):
        list(folder.results(XOR.cells()))
    with pytest.raises(UserError, match=said):
        status_of(folder, list(XOR.cells()), 1)
    assert json.loads(path.read_text()) == later


def test_a_result_of_another_version_is_void_whatever_it_holds(folder: RunFolder) -> None:
    (result,) = folder.results(XOR.cells())
    path = folder.result_path(result.key)
    old = {**json.loads(path.read_text()), "version": 0, "axes": {"gone": 1}, "no_longer": True}
    path.write_text(json.dumps(old))
    assert list(folder.results(XOR.cells())) == []


def test_values_that_are_not_finite_survive_the_file(folder: RunFolder) -> None:
    (result,) = folder.results(XOR.cells())
    history = {**result.history, "test_loss": (1.0, math.inf, math.nan)}
    metrics = {**result.metrics, "test_loss": math.inf}
    path = folder.write(result.model_copy(update={"history": history, "metrics": metrics}))
    json.loads(path.read_text(), parse_constant=pytest.fail)
    restored = read_result(path)
    assert restored.metrics["test_loss"] == math.inf
    assert str(restored.history["test_loss"]) == "(1.0, inf, nan)"


def test_foreign_files_in_the_folder_are_left_alone(folder: RunFolder) -> None:
    (folder.path / "notes").mkdir()
    (folder.path / "notes" / "mine.txt").write_text("keep")
    (folder.path / "result.json").write_text("not ours")
    assert len(list(folder.results(XOR.cells()))) == 1
    assert (folder.path / "notes" / "mine.txt").read_text() == "keep"


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_whole(path, "old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["file", "below a file", "proc"])
def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    blocker = tmp_path / "blocker"
    blocker.write_text("")
    out = {"file": blocker, "below a file": blocker / "runs", "proc": Path("/proc/runs")}[kind]
    with pytest.raises(UserError, match=r"cannot write to .*: choose another folder with --out"):
        RunFolder(out, XOR, create=True)
    assert blocker.read_text() == ""
