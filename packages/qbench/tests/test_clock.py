"""A clock that is set back while blocks are trained, recorded and reported."""

import itertools
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qbench import activity
from qbench.activity import activities, recorded
from qbench.block import Setting, plan
from qbench.cli import app
from qbench.executors import run_blocks
from qbench.publish import default_uri, publish
from qbench.report.files import report_of
from qbench.report.numbers import to_json
from qbench.status import status_of
from qbench.table import load_table
from qbench.trial import RunFolder


@pytest.fixture
def backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the time of day is an hour before the last one; how long things take stays."""
    start = time.time()
    hours = itertools.count()
    monkeypatch.setattr(time, "time", lambda: start - 3600.0 * next(hours))


@pytest.mark.usefixtures("backwards")
@pytest.mark.filterwarnings("default")  # MLflow and what it imports warn as they like
def test_training_recording_and_reporting(tmp_path: Path) -> None:
    table = load_table("uci")
    folder = RunFolder(tmp_path, table, create=True)
    cells = list(table.cells({"dataset": ("iris",), "model": ("linear", "rank1")}, reduced="quick"))
    setting = Setting(save_every=0.0)
    seconds = []
    for _, results in run_blocks(folder, plan(folder, cells, 2), setting):
        seconds += [result.environment.seconds for result in results]
    assert len(seconds) == 4
    assert all(0.0 < each < 600.0 for each in seconds)
    found = status_of(folder, cells, 4)
    assert found.left is not None
    assert 0.0 < found.left < 600.0
    report, _ = report_of(folder, reduced="quick")
    measured = [cell for cell in to_json(report)["cells"] if cell["n"]]
    assert [cell["n"] for cell in measured] == [2, 2]
    assert publish(folder.recorded(), default_uri(tmp_path), tmp_path) == 4
    assert publish(folder.recorded(), default_uri(tmp_path), tmp_path) == 0


@pytest.mark.usefixtures("backwards")
def test_networks_that_are_measured_as_they_are_drawn(tmp_path: Path) -> None:
    table = load_table("expressivity")
    folder = RunFolder(tmp_path, table, create=True)
    cells = list(table.cells(reduced="quick"))[:1]
    for _ in run_blocks(folder, plan(folder, cells, 1)):
        pass
    (result,) = folder.results(cells)
    assert 0.0 < result.environment.seconds < 600.0


@pytest.mark.usefixtures("backwards")
def test_how_far_a_block_has_come_is_still_written_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = load_table("uci")
    folder = RunFolder(tmp_path, table, create=True)
    cells = list(table.cells(reduced="quick"))
    monkeypatch.setattr(activity, "_EVERY", 0.0)
    running = recorded(folder, "x", cells[0].axes, (0,), reduced="quick")
    with folder.lock("x"), running as record:
        record.at(0.5)
        ((seen, _),) = activities(folder)
        assert seen.fraction == 0.5
        done = CliRunner().invoke(app, ["status", "uci", "--out", str(tmp_path)])
    assert done.exit_code == 0
    assert "50% after –, process" in " ".join(done.stdout.split())
