"""scikit-learn's digits as a folder of PNGs, for those who read images: ``qzoo.evaluate``."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from qbench.catalogue import DATASETS
from qbench.data.images import load_images
from qbench.data.root import Fault, data_root, fetch_command, not_whole
from qbench.data.tabular import Array

NAME = "digits32"
_READ_AS_IMAGES = (".png", ".jpg", ".jpeg")  # what timm takes from such a folder


def find_image_fault(root: Path) -> Fault | None:
    """The first image under ``root`` that is not the dataset's, pixel by pixel, if any.

    An image too many is a fault, since it would be measured with the others.
    """
    expected = dict(_images(root))
    for path, pixels in expected.items():
        if fault := _fault(path, pixels, root):
            return fault
    for part in ("train", "test"):
        for path in sorted((root / DATASETS[NAME].folder / part).rglob("*")):
            if path.suffix.lower() in _READ_AS_IMAGES and path not in expected:
                words = f"{path.name} does not belong in {path.parent}"
                return Fault("stray", path.name, words, "Move it away")
    return None


def write_image_folder(root: Path) -> bool:
    """Write ``digits32/{train,test}/{0..9}/NNNN.png`` under ``root``; returns whether it had to.

    NNNN is an image's position in its part, from 0000 on. Images that are whole are left alone.

    Raises ``UserError`` for what it must not replace: a file that cannot be read, or one too many.
    """
    fault = find_image_fault(root)
    if fault is None:
        return False
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".fetch-", dir=root) as staging:
        half = Path(staging) / "half.png"
        for path, pixels in _images(root):
            fault = _fault(path, pixels, root)
            if fault is not None and fault.state != "unreadable":
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(half)
                os.replace(half, path)
    if fault := find_image_fault(root):
        raise not_whole(NAME, fault)
    return True


@contextmanager
def image_root(dataset: str, root: Path | None = None) -> Iterator[Path]:
    """The folder under which timm's dataset factory finds a dataset's images.

    scikit-learn's digits are written to one that lasts as long as it is used.
    """
    if dataset != NAME:
        yield data_root(root)
        return
    with TemporaryDirectory() as folder:
        write_image_folder(Path(folder))
        yield Path(folder) / DATASETS[NAME].folder


def _images(root: Path) -> Iterator[tuple[Path, Array]]:
    """Where each image lies, and its pixels ``(32, 32)`` uint8."""
    folder = root / DATASETS[NAME].folder
    for part, (x, y) in zip(("train", "test"), load_images(NAME), strict=True):
        for i, (image, digit) in enumerate(zip(x.numpy(), y.tolist(), strict=True)):
            yield folder / part / str(digit) / f"{i:04d}.png", image[0]


def _fault(path: Path, pixels: Array, root: Path) -> Fault | None:
    command = fetch_command([NAME], root)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        words = f"{path.name} is missing in {path.parent}"
        return Fault("missing", path.name, words, f"Write it with {command}")
    except OSError as error:
        words = f"{path.name} in {path.parent} cannot be read ({error.strerror or error})"
        mend = f"Make it readable, or move it away and run {command}"
        return Fault("unreadable", path.name, words, mend)
    try:
        with Image.open(BytesIO(data)) as image:
            whole = image.mode == "L" and np.array_equal(np.asarray(image), pixels)
    except (OSError, SyntaxError, ValueError):  # Pillow's, of files that are no whole PNG
        whole = False
    if not whole:
        words = f"{path.name} in {path.parent} is damaged: its pixels are others"
        return Fault("damaged", path.name, words, f"Replace it with {command}")
    return None
