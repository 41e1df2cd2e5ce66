"""Where image data lies, whether it is whole, and how it comes there."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from qbench.catalogue import DATASETS
from qbench.errors import UserError

VARIABLE = "QBENCH_DATA"

# SHA-256 of the unpacked files of the original releases. CIFAR-10's are torchvision's own MD5.
_FILES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "mnist": {
            "train-images-idx3-ubyte": (
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
            ),
            "train-labels-idx1-ubyte": (
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
            ),
            "t10k-images-idx3-ubyte": (
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
            ),
            "t10k-labels-idx1-ubyte": (
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
            ),
        },
        "fmnist": {
            "train-images-idx3-ubyte": (
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
            ),
            "train-labels-idx1-ubyte": (
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
            ),
            "t10k-images-idx3-ubyte": (
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
            ),
            "t10k-labels-idx1-ubyte": (
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
            ),
        },
        "cifar10": {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
    }
)


def data_root(root: Path | None = None) -> Path:
    """The folder of image data: given, or ``QBENCH_DATA``, or ``~/.cache/quadnets/data``."""
    if root is not None:
        return root
    chosen = os.environ.get(VARIABLE)
    return Path(chosen) if chosen else Path.home() / ".cache" / "quadnets" / "data"


def downloadable() -> list[str]:
    """The datasets that lie in files."""
    return list(_FILES)


def problem_with(name: str, root: Path) -> str:
    """What is wrong with a dataset's files, in words; empty where they are whole."""
    for file in _FILES[name]:
        if found := _problem_with_file(name, root, file):
            return found
    return ""


def _problem_with_file(name: str, root: Path, file: str) -> str:
    folder, expected = root / DATASETS[name].folder, _FILES[name][file]
    if not (folder / file).is_file():
        return f"{file} is missing in {folder}"
    kind = "md5" if len(expected) == 32 else "sha256"
    # it tells whole files from damaged ones, and guards nothing
    digest = hashlib.new(kind, usedforsecurity=False)
    digest.update((folder / file).read_bytes())
    found = digest.hexdigest()
    if found != expected:
        return f"{file} in {folder} is damaged: its {kind} is {found}, not {expected}"
    return ""


def check_files(name: str, root: Path) -> None:
    """Raises ``UserError`` for a dataset that is not whole under ``root``."""
    if found := problem_with(name, root):
        raise UserError(
            f"{DATASETS[name].words} cannot be read: {found}. Download it with qbench data fetch "
            f"{name} --data {root}, or name another folder with --data or {VARIABLE}"
        )


def fetch(name: str, root: Path) -> bool:
    """Download a dataset by torchvision, unless it is whole already; returns whether it did.

    Raises ``UserError`` where that fails.
    """
    import torchvision

    if not problem_with(name, root):
        return False
    info = DATASETS[name]
    for file in _FILES[name]:  # torchvision takes what is there for whole
        if _problem_with_file(name, root, file):
            (root / info.folder / file).unlink(missing_ok=True)
    kind = getattr(torchvision.datasets, info.torchvision)
    try:
        kind(root, train=True, download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{info.words} could not be downloaded to {root} ({' '.join(str(error).split())}): "
            f"without a network, copy its files to {root / info.folder} and run qbench data check"
        ) from error
    check_files(name, root)
    return True
