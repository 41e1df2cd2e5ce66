"""Tracking stores that are locked, damaged or of another version: no result is lost, nothing in
the store is changed, and one sentence says why."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from qbench.block import plan
from qbench.executors import run_blocks
from qbench.publish import default_uri, publish
from qbench.table import load_table
from qbench.trial import RunFolder

pytestmark = pytest.mark.filterwarnings("default")  # MLflow and what it imports warn as they like

XOR = load_table("xor")
AGAIN = ". Nothing is lost: run the same command again."


def qbench(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qbench", *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A folder with a result."""
    made = RunFolder(tmp_path_factory.mktemp("runs"), XOR, create=True)
    for _ in run_blocks(made, plan(made, XOR.cells(), 1)):
        pass
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, folder: RunFolder) -> Path:
    """A store of MLflow's with that result: look, but do not touch."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    assert publish(folder.recorded(), f"sqlite:///{path}", path.parent) == 1
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program is in the middle of writing to a database."""
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


def trials(path: Path) -> int:
    with closing(sqlite3.connect(path)) as store:
        (row,) = store.execute("SELECT count(*) FROM tags WHERE key = 'quadnets.complete'")
    return int(row[0])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20_000])


def no_database(path: Path) -> None:
    path.write_text("this is no database, whatever its name says", encoding="utf-8")


def of_somebody_else(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE experiments (mine INTEGER)")
        other.commit()


def of_a_newer_mlflow(path: Path) -> None:
    with closing(sqlite3.connect(path)) as store:
        store.execute("UPDATE alembic_version SET version_num = 'fedcba987654'")
        store.commit()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (
            no_database,
            "it is damaged (file is not a database): move it away, and the results are recorded "
            "in a new one by qbench sync",
        ),
        (
            cut,
            "it is damaged (database disk image is malformed): move it away, and the results are "
            "recorded in a new one by qbench sync",
        ),
        (of_somebody_else, "it is the database of another program: name another file"),
        (
            of_a_newer_mlflow,
            "its tables are those of another version of MLflow (fedcba987654, not SCHEMA): install "
            "the version that made them, bring older ones up to date with mlflow db upgrade, or "
            "record in another store",
        ),
    ],
)
def test_a_store_that_is_none_of_ours_is_left_as_it_is(
    tmp_path: Path, folder: RunFolder, store: Path, harm: Callable[[Path], None], said: str
) -> None:
    with closing(sqlite3.connect(store)) as good:
        ((schema,),) = good.execute("SELECT version_num FROM alembic_version")
    path = shutil.copy(store, tmp_path / "mlflow.db")
    harm(path)
    before = path.read_bytes()
    uri = f"sqlite:///{path}"
    done = qbench("sync", "--to", uri, "--out", str(folder.out), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        f"qbench: {uri}: {said.replace('SCHEMA', schema)}{AGAIN}\n",
    )
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_store_that_another_program_has_locked(
    tmp_path: Path, folder: RunFolder, store: Path
) -> None:
    path = shutil.copy(store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{path}"
    with locked(path):
        done = qbench("sync", "--to", uri, "--out", str(folder.out), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        f"qbench: {uri}: another program has locked it: end that, or wait until it is done{AGAIN}"
        "\n",
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("what?.db", "MLflow finds no file by a path with ? in it: record elsewhere, with qbench "),
        (
            "#1.db",
            "MLflow finds no file by a path with # in it: record elsewhere, with qbench sync",
        ),
        ("20%25.db", "MLflow finds no file by a path with % in it: record elsewhere, with qbench "),
        ("none/x.db", "{}/none is no folder that can be written to"),
        ("folder", "it cannot be written (unable to open database file)"),
    ],
)
def test_a_path_at_which_no_store_can_be(
    tmp_path: Path, folder: RunFolder, name: str, said: str
) -> None:
    (tmp_path / "folder").mkdir()
    uri = f"sqlite:///{tmp_path}/{name}"
    done = qbench("sync", "--to", uri, "--out", str(folder.out), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"qbench: {uri}: {said.format(tmp_path)}")
    assert done.stderr.endswith(f"{AGAIN}\n")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_run_keeps_its_results_where_the_store_beside_them_is_of_no_use(
    tmp_path: Path, store: Path
) -> None:
    out = tmp_path / "runs"
    out.mkdir()
    path = shutil.copy(store, out / "mlflow.db")
    with locked(path):
        done = qbench("run", "xor", "--out", str(out), cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == (
        f"qbench: not all is recorded in MLflow ({default_uri(out)}: another program has locked it:"
        f" end that, or wait until it is done); the results are safe in {out / 'xor'}, and the next"
        " run records them.\n"
    )
    assert len(RunFolder(out, XOR).recorded()) == 1
    path.unlink()
    done = qbench("sync", "--to", default_uri(out), "--out", str(out), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert trials(path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
