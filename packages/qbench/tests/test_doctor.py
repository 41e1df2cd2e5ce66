"""What ``qbench doctor`` finds on this machine, and what it says of what is lacking."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qbench.doctor import Check, examine

pytestmark = pytest.mark.filterwarnings("default")  # MLflow and what it imports warn as they like


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qbench", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def of(checks: list[Check], what: str) -> list[Check]:
    return [check for check in checks if check.what == what]


def test_what_is_not_good_comes_with_what_to_do(tmp_path: Path) -> None:
    checks = examine(tmp_path, tmp_path)
    assert [check.what for check in checks if check.verdict == "bad"] == []
    names = list(dict.fromkeys(check.what for check in checks))
    assert names[:4] == ["Python", "torch", "threads", "GPU"]
    assert names[-4:] == ["data", "results", "MLflow", "Ray"]
    assert all(check.found for check in checks)
    assert all(bool(check.advice) == (check.verdict != "good") for check in checks)


def test_missing_data_names_the_file_and_the_command(tmp_path: Path) -> None:
    mnist, _, cifar10 = of(examine(tmp_path, tmp_path), "data")
    assert mnist.verdict == cifar10.verdict == "lacking"
    assert "train-images-idx3-ubyte" in mnist.found
    assert f"qbench data fetch mnist --data {tmp_path}" in mnist.advice
    assert f"qbench data fetch cifar10 --data {tmp_path}" in cifar10.advice


def test_a_store_that_is_broken_or_away_is_lacking_and_nothing_worse(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database, whatever its name says")
    server = "http://me:secret@127.0.0.1:9"
    installed, broken, away = of(examine(tmp_path, tmp_path, server), "MLflow")
    assert installed.verdict == "good"
    assert broken.verdict == away.verdict == "lacking"
    assert "mlflow.db" in broken.found
    assert "file is not a database" in broken.found
    assert away.found.startswith("http://me:***@127.0.0.1:9: ")
    assert "secret" not in away.found
    assert "qbench sync" in away.advice


def test_results_that_cannot_be_written_are_bad_and_the_exit_status_says_so(tmp_path: Path) -> None:
    taken = tmp_path / "runs"
    taken.write_text("a file where the folder should be")
    said = doctor("--out", str(taken), "--data", str(tmp_path), "--json")
    assert said.returncode == 1
    (results,) = [check for check in json.loads(said.stdout) if check["what"] == "results"]
    assert results["verdict"] == "bad"
    assert "--out" in results["advice"]


def test_the_table_fits_80_columns_and_names_everything(tmp_path: Path) -> None:
    said = doctor("--out", str(tmp_path / "later" / "runs"), "--data", str(tmp_path))
    assert said.returncode == 0, said.stderr
    assert max(map(len, said.stdout.splitlines())) <= 80
    for check in examine(tmp_path):
        assert f" {check.what} " in said.stdout
