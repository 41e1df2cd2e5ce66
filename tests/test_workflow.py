"""What CI does with a pull request of the leaderboard, its shell lines as they stand."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def script() -> str:
    text = (ROOT / ".github" / "workflows" / "leaderboard.yml").read_text(encoding="utf-8")
    return str(yaml.safe_load(text)["jobs"]["verify"]["steps"][-1]["run"])


def git(folder: Path, *arguments: str) -> str:
    names = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    command = ["git", *names, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A clone at the branch that pull requests are for; its origin has them, as GitHub does."""
    origin = tmp_path / "origin"
    (origin / "leaderboard").mkdir(parents=True)
    git(origin, "init", "-q", "-b", "main")
    for name in ("kept", "changed", "removed"):
        (origin / "leaderboard" / f"{name}.json").write_text("{}\n")
    (origin / "measure.py").write_text("ours\n")
    git(origin, "add", "-A")
    git(origin, "commit", "-q", "-m", "base")
    git(tmp_path, "clone", "-q", str(origin), "clone")
    return tmp_path / "clone"


def pull_request(base: Path, changes: dict[str, str | None]) -> None:
    """Number 1: these files with this text, or without those that have none."""
    origin = base.parent / "origin"
    git(origin, "checkout", "-q", "-b", "theirs")
    for name, text in changes.items():
        path = origin / name
        if text is None:
            path.unlink()
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    git(origin, "add", "-A")
    git(origin, "commit", "-q", "-m", "theirs")
    git(origin, "update-ref", "refs/pull/1/head", "HEAD")


def said_to_uv(base: Path) -> list[list[str]]:
    """Run the step with a ``uv`` that writes down what it is called with."""
    programs, log = base.parent / "bin", base.parent / "log"
    programs.mkdir()
    uv = programs / "uv"
    uv.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" >> '{log}'\nprintf '\\n' >> '{log}'\n")
    uv.chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "NUMBER": "1"}
    subprocess.run(["bash", "-e", "-c", script()], cwd=base, check=True, env=environment)
    lines = log.read_text().splitlines() if log.exists() else []
    return [line.split("\0")[:-1] for line in lines]


def test_the_entries_that_changed_are_measured_by_the_code_of_the_base(base: Path) -> None:
    hostile = "leaderboard/$(touch pwned) --all.json"
    pull_request(
        base,
        {
            "leaderboard/new.json": "[1]\n",
            "leaderboard/changed.json": "[2]\n",
            hostile: "[3]\n",
            "leaderboard/removed.json": None,
            "measure.py": "theirs\n",
            "leaderboard/code.py": "theirs\n",
        },
    )
    fetch, *measured = said_to_uv(base)
    assert fetch == ["run", "qbench", "data", "fetch"]
    start = ["run", "qbench", "leaderboard", "verify", "--dry-run", "--"]
    assert all(command[: len(start)] == start for command in measured)
    names = [name for command in measured for name in command[len(start) :]]
    assert {"new", "changed"} <= set(names)
    assert not {"kept", "removed", "code"} & set(names)
    assert (base / "leaderboard" / "new.json").read_text() == "[1]\n"
    assert (base / "measure.py").read_text() == "ours\n"
    assert not (base / "leaderboard" / "code.py").exists()
    assert not list(base.glob("pwned*"))


def test_a_pull_request_that_only_removes_an_entry_measures_nothing(base: Path) -> None:
    pull_request(base, {"leaderboard/removed.json": None})
    assert said_to_uv(base) == []
