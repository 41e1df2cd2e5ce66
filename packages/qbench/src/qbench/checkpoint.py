"""Checkpoints of a block: one file each, whole or not there, the last two kept.

A file is safetensors: the tensors in its body, everything else as JSON in its header. Its name has
the step and the SHA-256 of its content, so that a damaged one is known by itself.
"""

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from qbench.trial import clear_parts, write_whole

KEPT = 2
FORMAT = 2
"""Rises with every change of what a checkpoint holds; those of another format are of no use."""

_HEADER = "quadnets"
_NEEDED = {"facts", "seeds", "curves"}
_NAME = re.compile(r"\d{12}-([0-9a-f]{64})\.safetensors")


@dataclass(frozen=True)
class State:
    """All that training needs to go on: tensors by name, and plain values."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


class UnfitError(Exception):
    """A checkpoint is whole, and training as it is now cannot go on from it."""


class Checkpoints:
    """The checkpoints of one block, in a folder of their own that has the block's name.

    Other files there are nobody's business: they are neither read nor removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: State) -> Path:
        """Write a checkpoint and remove all but the last two.

        Raises ``OSError`` where there is no room; those before it stay then.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.tensors.items()}
        facts = {"format": FORMAT, "block": self.folder.name, "step": state.step}
        header = {_HEADER: json.dumps({**facts, **state.values})}
        content = safetensors.torch.save(tensors, metadata=header)
        digest = hashlib.sha256(content).hexdigest()
        path = self.folder / f"{state.step:012d}-{digest}.safetensors"
        write_whole(path, content)
        for old in self._newest_first()[KEPT:]:
            old.unlink(missing_ok=True)
        return path

    def latest(self, on_note: Callable[[str], None]) -> State | None:
        """The newest checkpoint that is whole, None where there is none.

        ``on_note`` is told of each that is damaged, or of another format or block, and of what
        follows from it; it is removed.
        """
        while paths := self._newest_first():
            try:
                return self._read(paths[0])
            except ValueError as error:
                self.discard(str(error), on_note)
        return None

    def discard(self, what: str, on_note: Callable[[str], None]) -> None:
        """Remove the newest one, which is of no use, and tell ``on_note`` what it is instead."""
        path, *rest = self._newest_first()
        follows = "going on from the one before it" if rest else "beginning again"
        on_note(f"the checkpoint {path} is {what}: {follows}")
        path.unlink(missing_ok=True)

    def _read(self, path: Path) -> State:
        """Raises ``ValueError`` with what a file is instead."""
        content = path.read_bytes()
        name = _NAME.fullmatch(path.name)
        if name is None or hashlib.sha256(content).hexdigest() != name[1]:
            raise ValueError("damaged")
        try:
            length = int.from_bytes(content[:8], "little")
            values = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_HEADER])
            kind, block, step = values.pop("format"), values.pop("block", None), values.pop("step")
            tensors = safetensors.torch.load(content)
        except (AttributeError, LookupError, SafetensorError, TypeError, ValueError):
            raise ValueError("no checkpoint of qbench") from None
        if kind != FORMAT:
            raise ValueError("of another version of qbench")
        if block != self.folder.name:
            raise ValueError("of another block")
        if not values.keys() >= _NEEDED:
            raise ValueError("no checkpoint of qbench")
        return State(step, tensors, values)

    def remove(self) -> None:
        """Remove them all, once the results are written."""
        for path in self._newest_first():
            path.unlink(missing_ok=True)
        clear_parts(self.folder)
        with suppress(OSError):  # it is not there, or somebody else has a file there
            self.folder.rmdir()

    def _newest_first(self) -> list[Path]:
        found = self.folder.glob("*.safetensors")
        return sorted((path for path in found if _NAME.fullmatch(path.name)), reverse=True)
