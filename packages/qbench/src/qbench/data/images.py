"""Image datasets: bytes in memory, a fixed test part, and how bytes become inputs."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn import model_selection
from torch import Tensor

from qbench.catalogue import DATASETS
from qbench.data.root import check_files, data_root
from qbench.data.tabular import arrays
from qbench.errors import UserError
from qbench.recipe import Recipe

Part = tuple[Tensor, Tensor]
"""Images ``(N, C, H, W)`` uint8 and their classes ``(N,)`` int64."""

_VALIDATION_SEED = 0
_ORDER_SEED = 1
_given: dict[str, tuple[Part, Part]] = {}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def load_images(name: str, root: Path | None = None) -> tuple[Part, Part]:
    """Training and test images of a dataset, as they were published.

    Raises ``UserError`` naming file, folder and the command that mends it, for images that are not
    under ``root``, or damaged.

    >>> (x, y), (test_x, test_y) = load_images("digits32")
    >>> x.shape, x.dtype, test_y.shape
    (torch.Size([1437, 1, 32, 32]), torch.uint8, torch.Size([360]))
    """
    if name in _given:
        return _given[name]
    if name == "digits32":
        return _digits()
    return _from_files(name, data_root(root))


def give_images(name: str, stored: tuple[Part, Part]) -> None:
    """Have :func:`load_images` answer with these images, for a process that has no files."""
    _given[name] = stored


@lru_cache(maxsize=2)
def _from_files(name: str, root: Path) -> tuple[Part, Part]:
    from torchvision import datasets

    check_files(name, root)
    if name == "cifar10":
        train, test = datasets.CIFAR10(root, train=True), datasets.CIFAR10(root, train=False)
        return _channels_first(train.data, train.targets), _channels_first(test.data, test.targets)
    # torchvision's MNIST would prefer an old cache beside these files, which nobody checked
    folder = root / DATASETS[name].folder
    return _idx_files(folder, "train"), _idx_files(folder, "t10k")


def _channels_first(images: np.ndarray[Any, Any], classes: list[int]) -> Part:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(classes)


def _idx_files(folder: Path, part: str) -> Part:
    from torchvision.datasets import mnist

    images = mnist.read_image_file(str(folder / f"{part}-images-idx3-ubyte"))
    classes = mnist.read_label_file(str(folder / f"{part}-labels-idx1-ubyte"))
    return images.unsqueeze(1), classes


@lru_cache(maxsize=1)
def _digits() -> tuple[Part, Part]:
    """8×8 digits of 17 grey levels, each pixel four by four; a fifth of each class is the test."""
    x, y = arrays("digits")
    levels = np.rint(x * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    images = levels.repeat(4, axis=2).repeat(4, axis=3)
    train_x, test_x, train_y, test_y = model_selection.train_test_split(
        images, y, test_size=0.2, stratify=y, random_state=0
    )
    return (
        (torch.from_numpy(train_x), torch.from_numpy(train_y.astype(np.int64))),
        (torch.from_numpy(test_x), torch.from_numpy(test_y.astype(np.int64))),
    )


def parts(stored: tuple[Part, Part], recipe: Recipe) -> tuple[Part, Part, Part]:
    """Training, validation and test images of a recipe; the same for every seed.

    The validation part is drawn from the training images; what a reduced run takes of the rest, and
    of the test images, are the first so many of a random order.

    Raises ``UserError`` where the validation part leaves nothing to train on.
    """
    (x, y), test = stored
    if recipe.validation >= len(y):
        raise UserError(
            f"validation: {recipe.validation} of {len(y)} images leaves none to train on"
        )
    order = _order(len(y), _VALIDATION_SEED)
    chosen, rest = order[: recipe.validation], order[recipe.validation :]
    # in the published order, so that without validation nothing is moved
    rest = rest.sort().values
    train = (x[rest], y[rest]) if recipe.validation else (x, y)
    return (
        _some(train, recipe.train_samples),
        (x[chosen], y[chosen]),
        _some(test, recipe.test_samples),
    )


def _some(part: Part, count: int | None) -> Part:
    x, y = part
    if count is None or count >= len(y):
        return part
    chosen = _order(len(y), _ORDER_SEED)[:count]
    return x[chosen], y[chosen]


def _order(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def preparation(pixels: str, train: Tensor) -> Callable[[Tensor], Tensor]:
    """The function from bytes ``(..., C, H, W)`` to float32 inputs.

    ``standardised`` takes mean and standard deviation of each channel over the training images.

    >>> centred = preparation("centred", torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
    >>> centred(torch.tensor([[[0, 255]]], dtype=torch.uint8))
    tensor([[[-1.,  1.]]])
    """
    mean, std = normalisation(pixels, train)
    scale = (1.0 / (255.0 * std)).view(-1, 1, 1)
    shift = (-mean / std).view(-1, 1, 1)
    if scale.unique().numel() == 1 and not shift.any():
        factor = scale.unique().item()
        return lambda x: x.to(torch.float32, copy=True).mul_(factor)

    @lru_cache
    def on(device: torch.device) -> tuple[Tensor, Tensor]:
        # copied once: a copy in every step would wait for the device in every step
        return scale.to(device), shift.to(device)

    def prepare(x: Tensor) -> Tensor:
        scale, shift = on(x.device)
        return x.to(torch.float32, copy=True).mul_(scale).add_(shift)

    return prepare


def _histogram(values: Tensor) -> Tensor:
    """The share of each byte: ``(256,)``."""
    counts = sum(torch.bincount(part.flatten(), minlength=256) for part in values.split(4096))
    return torch.as_tensor(counts, dtype=torch.float64) / values.numel()


def normalisation(pixels: str, train: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, of pixels from 0 to 1: ``(C,)`` each."""
    channels = train.shape[1]
    if pixels == "standardised":
        levels = torch.arange(256, dtype=torch.float64) / 255
        share = torch.stack([_histogram(train[:, i]) for i in range(channels)])  # (C, 256)
        mean = share @ levels
        variance = (share * (levels - mean.unsqueeze(1)) ** 2).sum(1)
        return mean.float(), variance.sqrt().float()
    if pixels == "imagenet":
        mean, std = (torch.tensor(values) for values in IMAGENET)
        # grey images are grey in all three channels
        return (mean, std) if channels == 3 else (mean.mean(0, keepdim=True), std.mean(0, True))
    shift, scale = {"raw": (0.0, 1 / 255), "unit": (0.0, 1.0), "centred": (0.5, 0.5)}[pixels]
    return torch.full((channels,), shift), torch.full((channels,), scale)
