"""What a run needs of this machine, checked before it begins."""

from collections.abc import Iterable
from pathlib import Path

import torch

from qbench.data.root import check_files, data_root, downloadable
from qbench.errors import UserError
from qbench.table import Cell


def check_data(cells: Iterable[Cell], root: Path | None) -> None:
    """Raises ``UserError`` for image data that the cells need and that is not whole."""
    needed = {cell.dataset for cell in cells}
    for name in downloadable():
        if name in needed:
            check_files(name, data_root(root))


def check_device(device: str) -> None:
    """Raises ``UserError`` for a device that this machine does not have."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu")


def check_compile(device: str) -> None:
    """Raises ``UserError`` where ``torch.compile`` does not work on the device.

    It is tried out, for what it needs depends on the device and on torch's version. That takes
    seconds, and up to half a minute where torch has compiled nothing before.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.ones(8, device=device))
    except Exception as error:
        # what torch wraps around the reason begins with the name of its backend
        reason = str(getattr(error, "inner_exception", error)).strip().partition("\n")[0]
        raise UserError(
            f"--compile: torch cannot compile here ({reason or type(error).__name__}); leave it "
            "out, or install a C++ compiler"
        ) from error
