"""What a run needs of this machine, checked before it begins."""

import os
from collections.abc import Iterable
from pathlib import Path

import torch

from qbench.data.root import check_files, data_root, downloadable
from qbench.errors import UserError
from qbench.launch import is_launched
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
    wanted = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if is_launched() else 1
    if device == "cuda" and wanted > torch.cuda.device_count():
        raise UserError(
            f"torchrun has started {wanted} processes on this machine, which has "
            f"{torch.cuda.device_count()} GPUs: use at most as many with --nproc-per-node"
        )


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
