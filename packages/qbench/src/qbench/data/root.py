"""Where image data lies, whether it is whole, and how it comes there."""

import hashlib
import os
import shlex
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from http.client import HTTPException
from io import StringIO
from pathlib import Path
from ssl import SSLError
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Literal
from urllib.error import URLError

from qbench.catalogue import DATASETS
from qbench.errors import UserError, one_line

VARIABLE = "QBENCH_DATA"
SILENCE = 60.0
"""Seconds without a byte after which a download is given up."""

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


@dataclass(frozen=True)
class Fault:
    """What is wrong with a dataset's files, at the first one that is not as it was published.

    ``state``: the file is ``missing``; ``damaged``, which another download mends; or in a way that
    no download mends, ``unreadable`` or ``stray``. ``words`` names it and its folder, and ``mend``
    says what to do about it, as the beginning of a sentence.
    """

    state: Literal["missing", "damaged", "unreadable", "stray"]
    file: str
    words: str
    mend: str


def data_root(root: Path | None = None) -> Path:
    """The folder of image data: given, or ``QBENCH_DATA``, or ``~/.cache/quadnets/data``.

    An empty ``QBENCH_DATA`` counts as none. The folder need not be there.

    Raises ``UserError`` where it is no folder.

    >>> data_root(Path("/somewhere/else")).as_posix()
    '/somewhere/else'
    """
    if root is None:
        chosen = os.environ.get(VARIABLE, "").strip()
        root = Path(chosen) if chosen else Path("~", ".cache", "quadnets", "data")
    try:
        root = root.expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{root} is no folder of image data, for there is no such home directory: name a "
            f"folder with --data or {VARIABLE}"
        ) from error
    if root.exists() and not root.is_dir():
        raise UserError(
            f"{root} is a file, not a folder of image data: name one with --data or {VARIABLE}"
        )
    return root


def downloadable() -> list[str]:
    """The datasets that lie in files.

    >>> downloadable()
    ['mnist', 'fmnist', 'cifar10']
    """
    return list(_FILES)


def fetch_command(names: Iterable[str], root: Path) -> str:
    """What to type to have datasets under ``root``, downloaded where they are not whole.

    >>> fetch_command(["mnist", "cifar10"], Path("my data"))
    "qbench data fetch mnist cifar10 --data 'my data'"
    """
    return f"qbench data fetch {' '.join(names)} --data {shlex.quote(str(root))}"


def find_fault(name: str, root: Path) -> Fault | None:
    """The first file of a dataset that is missing, damaged or unreadable under ``root``, if any."""
    return next(_faults(name, root), None)


def _faults(name: str, root: Path) -> Iterator[Fault]:
    folder = root / DATASETS[name].folder
    command = fetch_command([name], root)
    for file, expected in _FILES[name].items():
        kind = "md5" if len(expected) == 32 else "sha256"
        try:
            found = _checksum(folder / file, kind)
        except FileNotFoundError:
            words = f"{file} is missing in {folder}"
            yield Fault("missing", file, words, f"Download it with {command}")
        except OSError as error:
            words = f"{file} in {folder} cannot be read ({error.strerror or error})"
            mend = f"Make it readable, or move it away and run {command}"
            yield Fault("unreadable", file, words, mend)
        else:
            if found != expected:
                words = f"{file} in {folder} is damaged: its {kind} is {found}, not {expected}"
                yield Fault("damaged", file, words, f"Replace it with {command}")


def _checksum(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        # it tells whole files from damaged ones, and guards nothing
        digest = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False))
    return digest.hexdigest()


def check_files(name: str, root: Path) -> None:
    """Raises ``UserError`` for a dataset that is not whole under ``root``.

    >>> check_files("cifar10", Path("/nowhere"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    qbench.errors.UserError: CIFAR-10 is not whole: data_batch_1 is missing in /nowhere/cifar-10...
    """
    if fault := find_fault(name, root):
        raise not_whole(name, fault)


def not_whole(name: str, fault: Fault) -> UserError:
    """The error for a dataset with a fault: which file, which folder, what mends it."""
    return UserError(
        f"{DATASETS[name].words} is not whole: {fault.words}. {fault.mend}, or name another "
        f"folder with --data or {VARIABLE}"
    )


def fetch(name: str, root: Path, *, progress: bool = False) -> bool:
    """Download a dataset by torchvision, unless it is whole already; returns whether it did.

    The download goes to a folder of its own, and its files come to their place when all of them are
    whole. Archives as published that lie under ``root`` are unpacked rather than downloaded.
    ``progress`` shows torchvision's bars on standard error.

    Raises ``UserError`` where the download fails or a file there cannot be replaced, and
    ``OSError`` where ``root`` cannot be written to.
    """
    faults = list(_faults(name, root))
    if not faults:
        return False
    for fault in faults:
        if fault.state == "unreadable":
            raise not_whole(name, fault)
    info = DATASETS[name]
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".fetch-", dir=root) as made:
        staging = Path(made)
        for archive in root.glob(info.archive):
            copy = staging / archive.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(archive, copy)
        with nullcontext() if progress else redirect_stderr(StringIO()):
            _download(name, staging, root)
        if wrong := find_fault(name, staging):
            raise UserError(
                f"{info.words} could not be downloaded to {root}: in what came, {wrong.file} is "
                f"{wrong.state}. Bring its files to {root / info.folder} from elsewhere"
            )
        (root / info.folder).mkdir(parents=True, exist_ok=True)
        for fault in faults:
            (staging / info.folder / fault.file).replace(root / info.folder / fault.file)
    return True


def _download(name: str, staging: Path, root: Path) -> None:
    from torchvision import datasets

    info = DATASETS[name]
    try:
        with _timeout(SILENCE):
            getattr(datasets, info.torchvision)(staging, train=True, download=True)
    except (
        URLError,
        HTTPException,
        ConnectionError,
        TimeoutError,
        SSLError,
        RuntimeError,
    ) as error:
        reason = one_line(error) or type(error).__name__
        raise UserError(
            f"{info.words} could not be downloaded to {root} ({reason}): without a network, bring "
            f"its files to {root / info.folder}, or as they are published to "
            f"{root / info.archive}, and run {fetch_command([name], root)} again"
        ) from error


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Give up on servers that fall silent; torchvision would wait for them for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
