"""Run folders that are half written, read-only, somebody else's or of another version: what is
there is never lost, and one sentence says what stops a command."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qbench.block import plan
from qbench.executors import run_blocks
from qbench.table import load_table
from qbench.trial import RunFolder

XOR = load_table("xor")


def qbench(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qbench", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def content(folder: Path) -> dict[str, bytes | None]:
    """Every file of a folder; None for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def run_once(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A folder with a result: look, but do not touch."""
    made = RunFolder(tmp_path_factory.mktemp("runs"), XOR, create=True)
    for _ in run_blocks(made, plan(made, XOR.cells(), 1)):
        pass
    return made


@pytest.fixture
def folder(tmp_path: Path, run_once: RunFolder) -> RunFolder:
    """A copy of it, to do harm to."""
    shutil.copytree(run_once.out, tmp_path / "runs")
    return RunFolder(tmp_path / "runs", XOR)


def of_a_path(text: str) -> str:
    record = json.loads(text)
    return json.dumps({**record, "key": "../../../etc/x"})


def of_another_trial(text: str) -> str:
    record = json.loads(text)
    return json.dumps({**record, "key": "0123456789abcdef"})


def with_a_file_elsewhere(text: str) -> str:
    record = json.loads(text)
    return json.dumps({**record, "files": {"../../x": "0" * 64}})


@pytest.mark.parametrize("command", ["report", "status"])
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda text: text[: len(text) // 2], " is not a result of this version of qbench (Invali"),
        (lambda _: "", " is not a result of this version of qbench (Invalid JSON: EOF while parsi"),
        (lambda _: "[" * 100_000, " is not a result of this version of qbench (Invalid JSON: recu"),
    ],
    ids=["half", "empty", "deep"],
)
def test_a_result_that_is_half_there_is_named_and_left_as_it_is(
    folder: RunFolder, command: str, harm: Callable[[str], str], said: str
) -> None:
    (path,) = folder.path.glob("*/result.json")
    path.write_text(harm(path.read_text(encoding="utf-8")), encoding="utf-8")
    before = content(folder.path)
    done = qbench(command, "xor", "--out", "runs", cwd=folder.out.parent)
    assert done.returncode == 2
    shown = path.relative_to(folder.out.parent)
    assert done.stderr.startswith(f"qbench: {shown}{said}")
    assert done.stderr.endswith("): delete its folder and run again\n")
    assert done.stderr.count("\n") == 1
    assert content(folder.path) == before


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (of_a_path, "is not a result of this version of qbench (key: String should match pattern"),
        (with_a_file_elsewhere, "(files.../../x.[key]: String should match pattern"),
        (of_another_trial, "is the result of trial 0123456789abcdef, not of the one that its fold"),
    ],
)
def test_a_result_that_names_other_places(
    folder: RunFolder, harm: Callable[[str], str], said: str
) -> None:
    (path,) = folder.path.glob("*/result.json")
    path.write_text(harm(path.read_text(encoding="utf-8")), encoding="utf-8")
    done = qbench("report", "xor", "--out", "runs", cwd=folder.out.parent)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_does_not_go_on_over_a_result_that_is_half_there(folder: RunFolder) -> None:
    (path,) = folder.path.glob("*/result.json")
    path.write_bytes(path.read_bytes()[:500])
    before = content(folder.path)
    done = qbench("run", "xor", "--out", "runs", cwd=folder.out.parent)
    assert done.returncode == 2
    assert " is not a result of this version of qbench (" in done.stderr
    assert content(folder.path) == before


def test_only_what_stands_beside_a_result_is_written_there(folder: RunFolder) -> None:
    (result,) = folder.recorded()
    with pytest.raises(ValueError, match=r"^'\.\./x' is no file that stands beside a result$"):
        folder.write(result, {"../x": b"content"})


def test_results_of_another_version_of_the_table_are_kept_and_not_reported(
    folder: RunFolder,
) -> None:
    (path,) = folder.path.glob("*/result.json")
    old = {**json.loads(path.read_text(encoding="utf-8")), "version": 99, "no_longer": True}
    path.write_text(json.dumps(old), encoding="utf-8")
    done = qbench("report", "xor", "--out", "runs", cwd=folder.out.parent)
    assert done.returncode == 2
    assert done.stderr.startswith("qbench: no results of table 'xor' in 'runs'")
    assert json.loads(path.read_text(encoding="utf-8")) == old


def test_what_somebody_else_put_there_counts_for_nothing_and_stays(folder: RunFolder) -> None:
    (path,) = folder.path.glob("*/result.json")
    shutil.copytree(path.parent, folder.path / f"{path.parent.name} (copy)")
    shutil.copytree(path.parent, folder.path / "old")
    (folder.path / "notes").mkdir()
    (folder.path / "notes" / "result.json").write_text("mine", encoding="utf-8")
    (folder.path / "gone").symlink_to("nowhere")
    (folder.path / "0123456789abcdef").mkdir()
    (folder.path / "fedcba9876543210").write_text("mine", encoding="utf-8")
    (folder.out / "notes.txt").write_text("mine", encoding="utf-8")
    before = content(folder.out)
    done = qbench("report", "xor", "--out", "runs", "--json", cwd=folder.out.parent)
    assert done.returncode == 0, done.stderr
    assert {cell["n"] for cell in json.loads(done.stdout)["cells"]} == {1}
    done = qbench("status", "xor", "--out", "runs", "--json", cwd=folder.out.parent)
    (status,) = json.loads(done.stdout)
    assert (status["finished"], status["expected"]) == (1, 1)
    assert content(folder.out) == before


@pytest.fixture
def read_only(folder: RunFolder) -> Iterator[RunFolder]:
    """A run folder to which nobody can write, not even who may do everything."""
    root = os.geteuid() == 0
    if root:
        mounted = subprocess.run(["mount", "--bind", folder.out, folder.out], check=False)
        if mounted.returncode:
            pytest.skip("root writes to any folder here, and cannot mount one")
        subprocess.run(["mount", "-o", "remount,ro,bind", folder.out], check=True)
    else:
        for path in [folder.out, *folder.out.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    if root:
        subprocess.run(["umount", folder.out], check=True)
    else:
        for path in [folder.out, *folder.out.rglob("*")]:
            path.chmod(0o755)


def test_a_read_only_folder_is_read(read_only: RunFolder) -> None:
    cwd = read_only.out.parent
    before = content(read_only.out)
    done = qbench("status", "xor", "--out", "runs", "--json", cwd=cwd)
    assert (done.returncode, json.loads(done.stdout)[0]["finished"]) == (0, 1)
    done = qbench("report", "xor", "--out", "runs", "--json", cwd=cwd)
    assert (done.returncode, json.loads(done.stdout)["table"]) == (0, "xor")
    done = qbench("run", "xor", "--out", "runs", cwd=cwd)
    assert done.returncode == 2
    assert done.stderr.startswith("qbench: cannot write to 'runs' (")
    assert done.stderr.endswith("): choose another folder with --out\n")
    done = qbench("report", "xor", "--out", "runs", cwd=cwd)
    assert done.returncode == 2
    assert done.stderr.startswith(("qbench: Read-only file system (", "qbench: Permission denied"))
    assert done.stderr.endswith("; what was finished is kept: repair that, run again\n")
    assert done.stderr.count("\n") == 1
    assert content(read_only.out) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "cuda"], "qbench: --device cuda: torch sees no CUDA device here; use --devi"),
        (["--compile"], "qbench: --compile: torch cannot compile here (No working C++ compiler "),
        (["--ray", "127.0.0.1:9"], "qbench: --ray 127.0.0.1:9: no connection to that cluster ("),
        (["--axis", "lr=7"], "qbench: unknown lr '7'"),
    ],
)
def test_a_run_that_is_refused_leaves_no_folder(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "there").mkdir()
    done = qbench(
        *("run", "xor", *arguments, "--out", "there/new/runs"),
        cwd=tmp_path,
        CUDA_VISIBLE_DEVICES="",
        CXX="/nowhere/c++",
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"),  # what was compiled needs no compiler
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(said)
    assert list((tmp_path / "there").iterdir()) == []


def test_missing_data_leaves_no_folder_either(tmp_path: Path) -> None:
    done = qbench("run", "mnist", "--out", "runs", "--data", "data", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("qbench: MNIST is not whole: train-images-idx3-ubyte is missing ")
    assert list(tmp_path.iterdir()) == []
