"""Checkpoints that are cut, another block's, newer, or none at all: said, and not gone by."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from qbench.block import Block, Setting, plan
from qbench.checkpoint import FORMAT
from qbench.executors import run_blocks
from qbench.running import unfinished
from qbench.table import load_table
from qbench.trial import Result, RunFolder

UCI = load_table("uci")
ONLY = {"dataset": ("iris",), "model": ("linear", "rank1")}


def left_in_the_middle(folder: RunFolder) -> list[Path]:
    """Stop both blocks when they have a checkpoint; returns the newest of each."""

    def stop(_: Block, fraction: float) -> None:
        if fraction >= 0.4:
            raise KeyboardInterrupt

    newest = []
    for block in plan(folder, UCI.cells(ONLY, reduced="quick"), 1):
        with pytest.raises(KeyboardInterrupt):
            list(run_blocks(folder, [block], Setting(save_every=0.0), stop))
        newest.append(max(folder.checkpoint_path(block.name).glob("*.safetensors")))
    return newest


def finished(folder: RunFolder) -> tuple[list[Result], list[str]]:
    """The results once all is run, and what was said meanwhile."""
    notes: list[str] = []
    cells = list(UCI.cells(ONLY, reduced="quick"))
    for _ in run_blocks(folder, plan(folder, cells, 1), Setting(on_note=notes.append)):
        pass
    return list(folder.results(cells)), notes


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """The results of a run that nothing befell."""
    results, notes = finished(RunFolder(tmp_path_factory.mktemp("runs"), UCI, create=True))
    assert notes == []
    return results


def named(content: bytes, path: Path, *, step: int = 999) -> Path:
    """A file beside ``path`` that is called as a checkpoint with that content is."""
    digest = hashlib.sha256(content).hexdigest()
    made = path.with_name(f"{step:012d}-{digest}.safetensors")
    made.write_bytes(content)
    return made


def of_format(path: Path, number: int) -> bytes:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])["__metadata__"]
    header["quadnets"] = json.dumps({**json.loads(header["quadnets"]), "format": number})
    return safetensors.torch.save(safetensors.torch.load(content), metadata=header)


def changed(
    path: Path, tensors: Callable[[dict[str, torch.Tensor]], object], **header: object
) -> bytes:
    """The checkpoint with other tensors, and other plain values; None leaves one out."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    known = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["quadnets"]) | header
    known = {name: value for name, value in known.items() if value is not None}
    loaded = safetensors.torch.load(content)
    tensors(loaded)
    return safetensors.torch.save(loaded, metadata={"quadnets": json.dumps(known)})


@pytest.mark.parametrize(
    ("content", "is_said"),
    [
        (lambda path: of_format(path, FORMAT + 1), "of another version of qbench"),
        (lambda path: of_format(path, 1), "of another version of qbench"),
        (lambda path: b"", "no checkpoint of qbench"),
        (lambda path: b"\xff" * 100, "no checkpoint of qbench"),
        (lambda path: (2**62).to_bytes(8, "little") + b"{}", "no checkpoint of qbench"),
        (lambda path: b"\x80\x04cos\nsystem\n(S'false'\ntR.", "no checkpoint of qbench"),
        (
            lambda path: safetensors.torch.save({"x": torch.ones(2)}),
            "no checkpoint of qbench",
        ),
        (
            lambda path: safetensors.torch.save({"x": torch.ones(2)}, {"quadnets": "[1]"}),
            "no checkpoint of qbench",
        ),
        (lambda path: of_format(path, FORMAT)[:-4], "no checkpoint of qbench"),
        (lambda path: changed(path, dict, seeds=None), "no checkpoint of qbench"),
        (lambda path: changed(path, lambda all_: all_.pop("random")), "of another training"),
        (lambda path: changed(path, dict, groups=[]), "of another training"),
        (
            lambda path: changed(path, lambda all_: all_.update({"model.weight": torch.ones(2)})),
            "of another training",
        ),
    ],
    ids=[
        *("newer", "older", "empty", "noise", "header", "pickle", "weights", "list", "cut"),
        *("no-seeds", "no-random-state", "no-groups", "another-layer"),
    ],
)
def test_a_file_whose_hash_is_right_and_that_is_no_checkpoint(
    tmp_path: Path,
    reference: list[Result],
    content: Callable[[Path], bytes],
    is_said: str,
) -> None:
    folder = RunFolder(tmp_path, UCI, create=True)
    newest, _ = left_in_the_middle(folder)
    wrong = named(content(newest), newest)
    results, notes = finished(folder)
    follows = "going on from the one before it"
    (said,) = notes
    assert said.startswith(f"the checkpoint {wrong} is {is_said}")
    assert said.endswith(f": {follows}")
    assert [result.weights for result in results] == [result.weights for result in reference]
    assert [result.environment.interruptions for result in results] == [1, 1]


def test_the_checkpoint_of_another_block_is_not_gone_by(
    tmp_path: Path, reference: list[Result]
) -> None:
    folder = RunFolder(tmp_path, UCI, create=True)
    first, second = left_in_the_middle(folder)
    kept = list(first.parent.iterdir())
    shutil.copy(second, first.with_name(second.name.replace("0000", "9999", 1)))
    for path in kept:
        path.unlink()
    (wrong,) = first.parent.iterdir()
    results, notes = finished(folder)
    assert notes == [f"the checkpoint {wrong} is of another block: beginning again"]
    assert [result.weights for result in results] == [result.weights for result in reference]
    assert [result.environment.interruptions for result in results] == [0, 1]


def test_files_of_others_beside_checkpoints_stay_and_stop_nothing(
    tmp_path: Path, reference: list[Result]
) -> None:
    folder = RunFolder(tmp_path, UCI, create=True)
    newest, _ = left_in_the_middle(folder)
    mine = [newest.with_name(name) for name in ("model.safetensors", "notes.txt", ".nfs0001")]
    for path in mine:
        path.write_text("mine", encoding="utf-8")
    results, notes = finished(folder)
    assert notes == []
    assert [result.weights for result in results] == [result.weights for result in reference]
    assert sorted(newest.parent.iterdir()) == sorted(mine)
    assert {path.read_text(encoding="utf-8") for path in mine} == {"mine"}


def test_files_of_others_do_not_hide_how_far_a_block_has_come(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, UCI, create=True)
    newest, _ = left_in_the_middle(folder)
    newest.with_name("model.safetensors").write_text("mine", encoding="utf-8")
    with folder.lock(newest.parent.name):  # as if its process were still training
        (trial,) = unfinished(folder)
    assert 0 < trial.step[-1] <= int(newest.name[:12])
    # a checkpoint that is none is passed over, and the reader goes on
    named(safetensors.torch.save({"x": torch.ones(1)}, {"quadnets": "[1]"}), newest)
    with folder.lock(newest.parent.name):
        assert list(unfinished(folder)) == []


def test_where_a_file_stands_in_the_place_of_the_checkpoints(
    tmp_path: Path, reference: list[Result]
) -> None:
    folder = RunFolder(tmp_path, UCI, create=True)
    (folder.path / ".checkpoints").write_text("in the way", encoding="utf-8")
    notes: list[str] = []
    cells = list(UCI.cells(ONLY, reduced="quick"))
    setting = Setting(save_every=0.0, on_note=notes.append)
    for _ in run_blocks(folder, plan(folder, cells, 1), setting):
        pass
    assert [r.weights for r in folder.results(cells)] == [r.weights for r in reference]
    assert [note.partition(" at step")[0] for note in notes] == [
        f"no checkpoint of {cell}" for cell in cells
    ]
    assert (folder.path / ".checkpoints").read_text(encoding="utf-8") == "in the way"
