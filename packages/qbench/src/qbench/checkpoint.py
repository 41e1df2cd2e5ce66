"""Checkpoints of a block: one file each, whole or not there, the last two kept.

A file is safetensors: the tensors in its body, everything else as JSON in its header. Its name has
the step and the SHA-256 of its content, so that a damaged one is known by itself.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from qbench.trial import clear_parts, write_whole

KEPT = 2
FORMAT = 1
"""Rises with every change of what a checkpoint holds; those of another format are of no use."""

_HEADER = "quadnets"


@dataclass(frozen=True)
class State:
    """All that training needs to go on: tensors by name, and plain values."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


class Checkpoints:
    """The checkpoints of one block, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: State) -> Path:
        """Write a checkpoint and remove all but the last two.

        Raises ``OSError`` where there is no room; those before it stay then.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.tensors.items()}
        header = {_HEADER: json.dumps({"format": FORMAT, "step": state.step, **state.values})}
        content = safetensors.torch.save(tensors, metadata=header)
        digest = hashlib.sha256(content).hexdigest()
        path = self.folder / f"{state.step:012d}-{digest}.safetensors"
        write_whole(path, content)
        for old in self._newest_first()[KEPT:]:
            old.unlink(missing_ok=True)
        return path

    def latest(self, on_note: Callable[[str], None]) -> State | None:
        """The newest checkpoint that is whole, None where there is none.

        ``on_note`` is told of each that is damaged, or of another format, and of what follows from
        it; it is removed.
        """
        paths = self._newest_first()
        for place, path in enumerate(paths, start=1):
            has_another = place < len(paths)
            follows = "going on from the one before it" if has_another else "beginning again"
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != path.stem.partition("-")[2]:
                on_note(f"the checkpoint {path} is damaged: {follows}")
            elif (state := _read(content)).values.pop("format", None) != FORMAT:
                on_note(f"the checkpoint {path} is of another version of qbench: {follows}")
            else:
                return state
            path.unlink(missing_ok=True)
        return None

    def remove(self) -> None:
        """Remove them all, once the results are written."""
        for path in self._newest_first():
            path.unlink(missing_ok=True)
        clear_parts(self.folder)
        if self.folder.exists():
            self.folder.rmdir()

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"), reverse=True)


def _read(content: bytes) -> State:
    length = int.from_bytes(content[:8], "little")
    values = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_HEADER])
    return State(values.pop("step"), safetensors.torch.load(content), values)
