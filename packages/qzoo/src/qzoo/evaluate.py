"""Accuracy, measured in one way: a network, a dataset of timm's factory, its own preprocessing."""

import math
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.data.config import resolve_data_config
from timm.data.dataset_factory import create_dataset
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from qzoo.errors import WeightsError
from qzoo.index import get_provenance
from qzoo.provenance import Evaluation


@torch.inference_mode()
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
) -> Evaluation:
    """Top-1 accuracy, and mean cross entropy, over all images of a dataset.

    Args:
        model: a classifier of timm's; its ``pretrained_cfg`` says how images are prepared. Computes
            in eval mode, and comes back in the mode it had.
        dataset: a name of timm's factory, such as ``"torch/cifar10"``, ``"torch/image_folder"``, or
            a dataset of (image, label) pairs that prepares its images itself.
        root: the folder that holds a dataset given by name.
        split: which part of a dataset given by name; ``"test"`` is never to choose by.
        batch_size: images per step; has no effect on the result but for rounding.
        device: where to compute; by default where the model is.
        workers: processes that load images.
        download: whether torchvision may download a dataset given by name.

    Raises ``FileNotFoundError`` where the dataset is not, or not whole, under ``root``, and
    ``ValueError`` for an unknown name, an empty dataset, and for images or labels that the model
    has no channels or classes for, and where logits are not finite.

    >>> images = torch.randn(6, 3, 8, 8)
    >>> model = timm.create_model("qresnet20", num_classes=2)
    >>> data = torch.utils.data.TensorDataset(images, torch.zeros(6, dtype=torch.long))
    >>> evaluate(model, data).images
    6
    """
    name = dataset if isinstance(dataset, str) else type(dataset).__name__
    if isinstance(dataset, str):
        dataset = _named(dataset, root, split, model, download)
    first = next(model.parameters())
    device = torch.device(device) if device is not None else first.device
    was_training, was_on = model.training, first.device
    model.eval().to(device)
    images, correct, loss = 0, 0, 0.0
    try:
        for x, labels in DataLoader(dataset, batch_size=batch_size, num_workers=workers):
            x, labels = x.to(device, first.dtype), labels.to(device)
            _check_batch(model, x, labels, name)
            logits = model(x).float()
            images += len(labels)
            correct += int((logits.argmax(1) == labels).sum())
            loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
    finally:
        model.to(was_on).train(was_training)
    if not images:
        raise ValueError(f"dataset={name!r} has no images")
    if not math.isfinite(loss):
        raise ValueError(f"logits on dataset={name!r} are not finite: the weights diverged")
    return Evaluation(
        dataset=name, split=split, images=images, top1=100.0 * correct / images, loss=loss / images
    )


def verify(name: str, root: str | Path, **options: Any) -> tuple[Evaluation, Evaluation]:
    """What the index says of weights, and what they are measured to have now.

    Args:
        name: of weights, ``model.tag`` or a model with a default tag.
        root: the folder that holds the dataset.
        options: as for :func:`evaluate`.

    Raises :class:`qzoo.WeightsError` for weights that are not there or whose row has no accuracy,
    and as :func:`evaluate`.
    """
    row = get_provenance(name)
    if row.evaluation is None:
        raise WeightsError(f"the index has no accuracy of {row.name} to compare with")
    model = timm.create_model(row.name, pretrained=True)
    known = row.evaluation
    return known, evaluate(model, known.dataset, root=root, split=known.split, **options)


def _named(
    name: str, root: str | Path | None, split: str, model: nn.Module, download: bool
) -> Dataset[Any]:
    """A dataset of timm's factory whose images are prepared as the model wants them."""
    if root is None:
        raise ValueError(f"dataset={name!r} needs root=, the folder that holds it")
    if not Path(root).is_dir():
        raise FileNotFoundError(f"root={str(root)!r} is no folder: give the one that holds {name}")
    config = resolve_data_config({}, model=model)
    try:
        dataset = create_dataset(name, root=str(root), split=split, download=download)
    except AssertionError as error:
        raise ValueError(
            f"dataset={name!r} is none that timm knows ({error}): give for example torch/cifar10, "
            "torch/mnist, or torch/image_folder"
        ) from None
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(
            f"{name} is not, or not whole, under {root} ({str(error).splitlines()[0]}): "
            "give the folder that holds it, or let it be downloaded"
        ) from None
    dataset.transform = create_transform(**config, is_training=False)
    return cast(Dataset[Any], dataset)


def _check_batch(model: nn.Module, x: Tensor, labels: Tensor, name: str) -> None:
    channels = getattr(model, "in_chans", x.shape[1])
    if x.shape[1] != channels:
        raise ValueError(
            f"images of dataset={name!r} have {x.shape[1]} channels, the model takes {channels}: "
            f"make it with in_chans={x.shape[1]}"
        )
    classes = getattr(model, "num_classes", None)
    if classes is not None and int(labels.max()) >= classes:
        raise ValueError(
            f"dataset={name!r} has label {int(labels.max())}, the model has {classes} classes: "
            "give the dataset that it was trained for"
        )
