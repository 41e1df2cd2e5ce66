"""Imports go one way, qbench → qzoo → qcore, and the guard that says so can fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("qcore", "qzoo", "qbench")


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(str(root / "packages" / name / "src") for name in PACKAGES)
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_contract_is_kept() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("qcore", "import qzoo"),
        ("qcore", "from qbench import table"),
        ("qzoo", "import qbench"),
        ("qcore", "import numpy"),
        ("qcore", "import timm"),
        ("qzoo", "import mlflow"),
        ("qbench", "import mlflow"),
    ],
)
def test_a_forbidden_import_is_noticed(tmp_path: Path, package: str, line: str) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in PACKAGES:
        source = ROOT / "packages" / name / "src"
        shutil.copytree(source, tmp_path / "packages" / name / "src")
    module = tmp_path / "packages" / package / "src" / package / "intruder.py"
    module.write_text(f"{line}\n", encoding="utf-8")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert f"{package}.intruder" in done.stdout
