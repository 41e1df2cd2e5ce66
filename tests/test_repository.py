"""What the repository promises about itself."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TEST_COMMAND = "pip install uv && uv run nox"
MAIN_COMMAND = "pip install uv && uv run qbench run uci"


def tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


def test_the_two_commands_stand_at_the_top_of_the_readme() -> None:
    top = (ROOT / "README.md").read_text(encoding="utf-8")[:1500]
    assert MAIN_COMMAND in top.splitlines()
    assert TEST_COMMAND in top.splitlines()


def test_the_workflow_and_ci_run_the_readmes_test_command() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    assert TEST_COMMAND in steps
    assert TEST_COMMAND in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()


def test_no_lock_file_and_no_registry_address_is_committed() -> None:
    address = re.compile(rb"https?://[^\s\"']*(pypi\.|pythonhosted|registry\.npmjs|/simple\b)")
    files = tracked_files()
    assert ROOT / "uv.lock" not in files
    assert files, "git lists no files"
    named = [str(path) for path in files if address.search(path.read_bytes())]
    assert named == []


@pytest.mark.parametrize("package", ["qcore", "qzoo", "qbench"])
def test_every_dependency_has_a_lower_bound_and_every_package_is_typed(package: str) -> None:
    folder = ROOT / "packages" / package
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11"
    assert project["dependencies"]
    assert [name for name in project["dependencies"] if ">=" not in name] == []
    assert (folder / "src" / package / "py.typed").exists()
    assert (folder / "README.md").exists()


def test_versions_are_pinned_by_date() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["uv"]
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}T00:00:00Z", settings["exclude-newer"])
