"""Killed at any instant and run again, a block ends bit for bit as if nothing had happened."""

import json
import subprocess
import sys
from pathlib import Path

TRIALS = 6


def scenario(name: str, tmp_path: Path, *more: str) -> dict[str, object]:
    program = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, program, name, tmp_path, *more],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_run_killed_at_random_instants(tmp_path: Path, kills: int) -> None:
    found = scenario("killed_at_random", tmp_path, str(kills))
    assert found.pop("interrupted") >= kills // 3  # the others were between two blocks
    assert found == {"trials": TRIALS}


def test_a_run_killed_while_a_file_is_renamed(tmp_path: Path) -> None:
    assert scenario("killed_at_rename", tmp_path) == {"trials": TRIALS}


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(tmp_path: Path) -> None:
    note = "the checkpoint NEW is damaged: going on from the one before it"
    expected = {"trials": TRIALS, **{f"note {i}": note for i in range(4)}}
    assert scenario("corrupted", tmp_path) == expected


def test_a_full_disk_costs_time_and_nothing_else(tmp_path: Path) -> None:
    found = scenario("full_disk", tmp_path)
    assert found["trials"] == TRIALS
    assert "differs" not in found
    # checkpoints do not fit: said once per block, and every result is there
    assert found["notes 70000"] == "\n".join(
        f"no checkpoint of {cell}" for cell in ["digits32 network"] * 2 + ["digits layers"]
    )
    assert found["results 70000"] == TRIALS
    # results do not fit either: the run ends, and leaves nothing half written
    assert "ended by File too large" in str(found["notes 1500"])
    assert found["parts 70000"] == found["parts 1500"] == []


def test_two_processes_share_the_blocks(tmp_path: Path) -> None:
    expected = {"twice": 0, "each": [True, True], "trials": TRIALS, "same": True}
    assert scenario("together", tmp_path) == expected
