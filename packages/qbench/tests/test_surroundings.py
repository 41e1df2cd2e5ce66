"""Commands where the disk is full, there is no home directory, terminals know few letters, and
folders have any name."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""A terminal that knows no letters but those of ASCII; Python would by itself not believe it."""

ODD = "my runs ü 中 'q' $HOME\nx"
"""A folder's name with everything that a shell, a URI or a line might trip over."""


def qbench(
    *arguments: str, cwd: Path, before: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*before, sys.executable, "-m", "qbench", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
        timeout=600,
    )


def trials(store: Path) -> int:
    """How many trials an MLflow store has complete."""
    with closing(sqlite3.connect(store)) as found:
        (row,) = found.execute("SELECT count(*) FROM tags WHERE key = 'quadnets.complete'")
    return int(row[0])


def test_a_run_into_a_folder_of_any_name_from_a_terminal_of_ascii(tmp_path: Path) -> None:
    home, cwd = tmp_path / "home", tmp_path / "ä b"
    home.mkdir()
    cwd.mkdir()
    places = {"HOME": str(home), "XDG_CACHE_HOME": str(home), "XDG_CONFIG_HOME": str(home)}
    done = qbench("run", "xor", "--out", ODD, cwd=cwd, **ASCII, **places)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert done.stdout.isascii()
    (result,) = (cwd / ODD / "xor").glob("*/result.json")
    assert json.loads(result.read_bytes())["table"] == "xor"
    assert (cwd / ODD / "xor" / "report.html").is_file()
    assert trials(cwd / ODD / "mlflow.db") == 1
    # nothing is written but there, and what libraries keep for themselves
    assert os.listdir(cwd) == [ODD]
    assert {path.name for path in home.iterdir()} <= {"matplotlib", "fontconfig"}
    assert sorted(os.listdir(tmp_path)) == ["home", "ä b"]
    done = qbench("sync", "--to", f"sqlite:///{cwd}/x.db", "--out", ODD, cwd=cwd, **ASCII)
    assert done.returncode == 2
    assert b": MLflow takes no path that is not UTF-8: set PYTHONUTF8=1 where " in done.stderr
    assert done.stderr.count(b"\n") == 1
    done = qbench("report", "xor", "--json", "--out", ODD, cwd=cwd, **ASCII)
    assert json.loads(done.stdout) == json.loads(
        (cwd / ODD / "xor" / "report.json").read_text(encoding="utf-8")
    )


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["list", "--json"], ["run", "--help"], ["data", "list", "--json"], ["run", "ü"]],
    ids=" ".join,
)
def test_a_terminal_that_lacks_letters_gets_others_in_their_place(
    tmp_path: Path, arguments: list[str]
) -> None:
    done = qbench(*arguments, cwd=tmp_path, COLUMNS="140", **ASCII)
    assert done.returncode == (2 if "ü" in arguments else 0), done.stderr
    assert b"Traceback" not in done.stderr
    assert (done.stdout + done.stderr).isascii()
    if "--json" in arguments:
        again = qbench(*arguments, cwd=tmp_path)
        assert json.loads(done.stdout) == json.loads(again.stdout)


@pytest.fixture
def homeless() -> tuple[str, ...]:
    """What to put before a command that is to find no home directory, neither by HOME nor by the
    list of users."""
    hidden = "for each in passwd nsswitch.conf; do mount --bind /dev/null /etc/$each; done"
    command = f'set -e; {hidden}; unset HOME; exec "$@"'
    before = ("unshare", "--mount", "sh", "-c", command, "sh")
    tried = subprocess.run([*before, "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("there is no way here to take the list of users away")
    code = "import pathlib; pathlib.Path.home()"
    found = subprocess.run([*before, sys.executable, "-c", code], capture_output=True, check=False)
    assert b"Could not determine home directory" in found.stderr
    return before


def test_no_home_directory(tmp_path: Path, homeless: tuple[str, ...]) -> None:
    done = qbench("list", cwd=tmp_path, before=homeless)
    assert done.returncode == 0, done.stderr
    assert b"qbench: measuring this machine once, for a few seconds\n" in done.stderr
    said = (
        b"is no folder of image data, for there is no such home directory: name a folder with "
        b"--data or QBENCH_DATA\n"
    )
    done = qbench("run", "mnist", cwd=tmp_path, before=homeless, QBENCH_DATA="")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"qbench: ~/.cache/quadnets/data " + said
    done = qbench("data", "list", "--data", "~nobody-of-that-name/x", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, b"qbench: ~nobody-of-that-name/x " + said)
    assert os.listdir(tmp_path) == []


def test_a_run_without_a_home_directory(tmp_path: Path, homeless: tuple[str, ...]) -> None:
    done = qbench("run", "xor", "--out", "runs", cwd=tmp_path, before=homeless, QBENCH_DATA="")
    assert done.returncode == 0, done.stderr
    assert b"qbench: not all is recorded" not in done.stderr
    assert trials(tmp_path / "runs" / "mlflow.db") == 1
    assert os.listdir(tmp_path) == ["runs"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_full_costs_nothing_that_was_there(small_disk: Path) -> None:
    command = ["run", "uci", "--quick", "--seeds", "2", "--only", "dataset=iris", "--out", "runs"]
    done = qbench(*command, cwd=small_disk)
    assert done.returncode == 2, done.stderr
    said = done.stderr.decode().splitlines()[-1]
    assert said.startswith("qbench: No space left on device")
    assert said.endswith("; what was finished is kept: repair that, run again")
    assert b"Traceback" not in done.stderr
    folder = small_disk / "runs" / "uci"
    there = {path: path.read_bytes() for path in folder.glob("*/result.json")}
    assert 0 < len(there) < 32
    assert list(small_disk.rglob("*.part")) == []
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    done = qbench(*command, cwd=small_disk)
    assert done.returncode == 0, done.stderr
    assert f"{32 - len(there)} trials run" in done.stdout.decode()
    assert {path: path.read_bytes() for path in there} == there
    assert len(list(folder.glob("*/result.json"))) == 32
    assert trials(small_disk / "runs" / "mlflow.db") == 32
