"""Accuracy, measured in one way: a network, a dataset of timm's factory, its own preprocessing."""

import math
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from timm.data.config import resolve_data_config
from timm.data.dataset_factory import create_dataset
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchvision.datasets import DatasetFolder, ImageFolder

from qzoo.errors import WeightsError
from qzoo.index import get_provenance
from qzoo.provenance import Evaluation

TOLERANCE = 0.05
"""Percentage points by which a measurement may differ from what is known."""

_SPLITS = ("train", "training", "test", "val", "valid", "validation", "eval", "evaluation")


def evaluate(
    model: nn.Module,
    dataset: str | Dataset[Any],
    *,
    root: str | Path | None = None,
    split: str = "test",
    batch_size: int = 256,
    device: torch.device | str | None = None,
    workers: int = 0,
    download: bool = False,
    progress: bool = False,
    observe: Callable[[Tensor, Tensor], None] | None = None,
) -> Evaluation:
    """Top-1 accuracy, and mean cross entropy, over all images of a dataset.

    Args:
        model: a classifier of timm's; its ``pretrained_cfg`` says how images are prepared. Computes
            in eval mode, and comes back as it was.
        dataset: a name of timm's factory, such as ``"torch/cifar10"``, ``"torch/image_folder"``, or
            a dataset of (image, label) pairs that prepares its images itself.
        root: the folder that holds a dataset given by name.
        split: which part of a dataset given by name; ``"test"`` is never to choose by.
        batch_size: images per step; has no effect on the result but for rounding.
        device: where to compute; by default where the model is.
        workers: processes that load images.
        download: whether torchvision may download a dataset given by name.
        progress: whether to show a bar on standard error.
        observe: is called with the logits ``(B, classes)`` and labels ``(B,)`` of each batch, in
            float32: for measuring more than accuracy, such as ``qcore.MarginMeter().update``.

    Raises ``FileNotFoundError`` where the dataset is not, or not whole, under ``root``, and
    ``ValueError`` for an unknown name or split, an empty dataset, a device that is not there, for
    images or labels that the model has no channels or classes for, and where logits are not finite.

    >>> images = torch.randn(6, 3, 8, 8)
    >>> model = timm.create_model("qresnet20", num_classes=2)
    >>> data = torch.utils.data.TensorDataset(images, torch.zeros(6, dtype=torch.long))
    >>> evaluate(model, data).images
    6
    """
    named = isinstance(dataset, str)
    name = dataset if isinstance(dataset, str) else type(dataset).__name__
    if isinstance(dataset, str):
        dataset = _named(dataset, root, split, model, download)
    else:
        _check_pairs(dataset, name)
    images, correct, loss = 0, 0, 0.0
    with eval_mode(model, device) as like, torch.inference_mode():
        loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers)
        for x, labels in track(
            loader, name, console=Console(stderr=True), transient=True, disable=not progress
        ):
            x, labels = x.to(like.device, like.dtype), labels.to(like.device)
            channels = getattr(model, "in_chans", x.shape[1])
            if x.shape[1] != channels:
                raise ValueError(_other_channels(name, x.shape[1], channels))
            logits = model(x)
            _check_logits(logits, labels, name)
            logits = logits.float()
            images += len(labels)
            correct += int((logits.argmax(1) == labels).sum())
            loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
            if observe is not None:
                observe(logits, labels)
    if not images:
        raise ValueError(f"dataset={name!r} has no images")
    if not math.isfinite(loss):
        raise ValueError(f"logits on dataset={name!r} are not finite: the weights diverged")
    return Evaluation(
        dataset=name,
        split=split if named else None,
        images=images,
        top1=100.0 * correct / images,
        loss=loss / images,
    )


class Verification(NamedTuple):
    """What the index says of weights, and what they were measured to have."""

    known: Evaluation
    measured: Evaluation

    @property
    def difference(self) -> float:
        """Measured less known top-1 accuracy, in percentage points."""
        return round(self.measured.top1 - self.known.top1, 6)

    @property
    def holds(self) -> bool:
        """Whether they agree to 0.05 points, over as many images."""
        same_size = self.measured.images == self.known.images
        return same_size and abs(self.difference) <= TOLERANCE


def verify(name: str, root: str | Path, **options: Any) -> Verification:
    """Measure the accuracy of weights of the index again.

    Args:
        name: of weights, ``model.tag`` or a model with a default tag.
        root: the folder that holds the dataset.
        options: as for :func:`evaluate`.

    Raises :class:`qzoo.WeightsError` for weights that are not there or whose row has no accuracy,
    and as :func:`evaluate`.
    """
    row = get_provenance(name)
    known = row.evaluation
    if known is None or known.split is None:
        raise WeightsError(f"the index has no accuracy of {row.name} to compare with")
    model = timm.create_model(row.name, pretrained=True)
    return Verification(
        known, evaluate(model, known.dataset, root=root, split=known.split, **options)
    )


@contextmanager
def eval_mode(model: nn.Module, device: torch.device | str | None = None) -> Iterator[Tensor]:
    """A model in eval mode, on a device; afterwards each of its parts is as it was.

    Gives a tensor of the model's device and dtype.
    """
    modes = [(module, module.training) for module in model.modules()]
    first = next(model.parameters(), torch.empty(0))
    was_on = first.device
    try:
        model.eval()
        if device is not None:
            try:
                model.to(device)
            except (RuntimeError, AssertionError) as error:  # the latter without CUDA
                reason = str(error).splitlines()[0]
                raise ValueError(f"device={str(device)!r} cannot be used: {reason}") from None
        yield next(model.parameters(), torch.empty(0, device=device))
    finally:
        if device is not None:
            model.to(was_on)
        for module, training in modes:
            module.training = training


def _named(
    name: str, root: str | Path | None, split: str, model: nn.Module, download: bool
) -> Dataset[Any]:
    """A dataset of timm's factory whose images are prepared as the model wants them."""
    if root is None:
        raise ValueError(f"dataset={name!r} needs root=, the folder that holds it")
    if not Path(root).is_dir():
        raise FileNotFoundError(f"root={str(root)!r} is no folder: give the one that holds {name}")
    if name.startswith("torch/") and split not in _SPLITS:
        raise ValueError(f"split={split!r} is not known: choose from {', '.join(_SPLITS)}")
    if not hasattr(model, "pretrained_cfg"):
        raise ValueError(
            f"model is a {type(model).__name__} without a pretrained_cfg, which says how images of "
            f"dataset={name!r} are to be prepared: give a model of timm's, or a dataset of your own"
        )
    unknown = (
        f"dataset={name!r} is none that timm knows: give for example torch/cifar10, torch/mnist, "
        "or torch/image_folder"
    )
    if "/" not in name:
        raise ValueError(unknown)
    try:
        dataset = create_dataset(name, root=str(root), split=split, download=download)
    except AssertionError:
        raise ValueError(unknown) from None
    except ImportError as error:
        raise ValueError(f"dataset={name!r} needs a library that is not there: {error}") from None
    except (RuntimeError, OSError) as error:
        raise _not_there(name, root, split, str(error).splitlines()[0]) from None
    if type(dataset) is ImageFolder and Path(dataset.root) == Path(root):
        # without a folder of the split timm takes all images of the root, of whatever split; its
        # subclasses, such as ImageNet, have a root that holds their splits
        raise _not_there(name, root, split, f"it has no {split}/")
    config = resolve_data_config({}, model=model)
    wanted = config["input_size"][0]
    if isinstance(dataset, DatasetFolder) and wanted == 1:
        dataset.loader = _load_grey  # files in a folder have as many channels as one asks for
    if not isinstance(dataset, IterableDataset) and len(dataset):
        bands = len(dataset[0][0].getbands())
        if bands != wanted or len(config["mean"]) not in (1, bands):
            raise ValueError(_other_channels(name, bands, wanted))
    dataset.transform = create_transform(**config, is_training=False)
    return cast(Dataset[Any], dataset)


def _not_there(name: str, root: str | Path, split: str, reason: str) -> FileNotFoundError:
    way_out = "give the folder that holds it, or download=True (--download)"
    if name == "torch/image_folder":
        way_out = (
            f"give the folder that holds {split}/ with a folder of images for each class; that "
            "of digits32 is written by: qbench data fetch digits32 --data FOLDER"
        )
    return FileNotFoundError(f"{name} is not, or not whole, under {root} ({reason}): {way_out}")


def _load_grey(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("L")


def _check_pairs(dataset: Dataset[Any], name: str) -> None:
    """Look at the first pair of a dataset of somebody's own."""
    if isinstance(dataset, DataLoader):
        raise ValueError("dataset is a DataLoader: give the dataset that it loads, its .dataset")
    if not isinstance(dataset, Sized) or not len(dataset):
        return
    pair = dataset[0]
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(
            f"dataset={name!r} gives no (image, label) pairs, but {type(pair).__name__}"
        )
    if not isinstance(pair[0], Tensor):
        raise ValueError(
            f"dataset={name!r} gives images as {type(pair[0]).__name__}: give it a transform, such "
            "as timm.data.create_transform(**timm.data.resolve_data_config(model=model))"
        )


def _other_channels(name: str, given: int, wanted: int) -> str:
    return (
        f"images of dataset={name!r} have {given} channels, the model is made for {wanted}: make "
        f"it with in_chans={given}, and say so in its pretrained_cfg's input_size, mean and std"
    )


def _check_logits(logits: object, labels: Tensor, name: str) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not logits.shape[1]:
        raise ValueError(
            "the model gives no logits of shape (B, num_classes): give a classifier, neither "
            "features_only nor with num_classes=0"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(
            f"dataset={name!r} has label {low if low < 0 else high}, the model has "
            f"{logits.shape[1]} classes: give the dataset that it was trained for"
        )
