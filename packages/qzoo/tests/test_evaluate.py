"""Accuracy: counted by hand, on real images, and what is asked in vain."""

import math
import os

import pytest
import timm
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import qzoo


class Fixed(torch.nn.Module):
    """A "classifier" that says what it is told, image by image."""

    def __init__(self, logits):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.logits, self.num_classes, self.in_chans = logits, logits.shape[1], 1

    def forward(self, x):
        assert not self.training
        return self.logits[x.flatten(1)[:, 0].long()] * self.scale


def numbered(labels):
    """One "image" per label, whose pixels are its number."""
    images = torch.arange(len(labels)).float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return TensorDataset(images, torch.tensor(labels))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_counted_by_hand(batch_size):
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    model = Fixed(logits).train()
    found = qzoo.evaluate(model, numbered([0, 1, 2, 1]), batch_size=batch_size)
    assert (found.images, found.top1) == (4, 50.0)
    by_hand = sum(
        math.log(sum(math.exp(z) for z in row)) - row[label]
        for row, label in zip(logits.tolist(), [0, 1, 2, 1], strict=True)
    )
    assert found.loss == pytest.approx(by_hand / 4, rel=1e-6)
    assert model.training  # as it was


def test_images_are_prepared_as_the_network_wants_them(images, draw):
    model = draw("qresnet20_compact")
    found = qzoo.evaluate(model, "torch/image_folder", root=images)
    correct, loss = 0, 0.0
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    for label in range(10):
        for path in sorted((images / "test" / f"class{label}").iterdir()):
            with Image.open(path) as image:
                pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
            x = (pixels.view(32, 32, 3).permute(2, 0, 1) / 255 - mean) / std
            with torch.no_grad():
                logits = model(x[None])
            correct += int(logits.argmax()) == label
            loss += float(torch.nn.functional.cross_entropy(logits, torch.tensor([label])))
    assert (found.dataset, found.split, found.images) == ("torch/image_folder", "test", 30)
    assert found.top1 == pytest.approx(100 * correct / 30)
    assert found.loss == pytest.approx(loss / 30, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "channels", "count"),
    [("torch/cifar10", 3, 10_000), ("torch/mnist", 1, 10_000), ("torch/fashion_mnist", 1, 10_000)],
)
def test_real_data(name, channels, count, draw):
    root = os.environ.get("QBENCH_DATA")
    if not root:
        pytest.skip("QBENCH_DATA names no folder with real images")
    model = draw("qresnet20_compact", depths=(1,), widths=(4,), in_chans=channels)
    model.pretrained_cfg.update(mean=(0.5,) * channels, std=(0.5,) * channels)
    model.pretrained_cfg["input_size"] = (channels, 28, 28)
    assert qzoo.evaluate(model, name, root=root).images == count


@pytest.mark.parametrize(
    ("dataset", "options", "kind", "text"),
    [
        ("torch/cifar10", {}, ValueError, "dataset='torch/cifar10' needs root=, the folder that h"),
        ("torch/cifar10", {"root": "{}/no"}, FileNotFoundError, "root='{}/no' is no folder: give "),
        (
            "torch/cifar10",
            {"root": "{}"},
            FileNotFoundError,
            "torch/cifar10 is not, or not whole, under {} (Dataset not found or corrupted. You can "
            "use download=True to download it): give the folder that holds it, or let it be downl",
        ),
        ("torch/cifar11", {"root": "{}"}, ValueError, "dataset='torch/cifar11' is none that timm "),
        (
            "torch/image_folder",
            {"root": "{}"},
            FileNotFoundError,
            "torch/image_folder is not, or not whole, under {}",
        ),
        (numbered([]), {}, ValueError, "dataset='TensorDataset' has no images"),
        (numbered([0, 3]), {}, ValueError, "dataset='TensorDataset' has label 3, the model has 3 "),
        (
            TensorDataset(torch.zeros(2, 3, 2, 2), torch.zeros(2)),
            {},
            ValueError,
            "images of dataset='TensorDataset' have 3 channels, the model takes 1: make it with",
        ),
    ],
)
def test_what_is_asked_in_vain(dataset, options, kind, text, tmp_path):
    options = {key: value.format(tmp_path) for key, value in options.items()}
    model = Fixed(torch.zeros(2, 3))
    with pytest.raises(kind) as caught:
        qzoo.evaluate(model, dataset, **options)
    assert str(caught.value).startswith(text.format(tmp_path))
    assert model.training


def test_a_network_that_diverged():
    logits = torch.tensor([[0.0, float("nan")], [float("inf"), 0.0]])
    for rows in (logits[:1], logits[1:]):
        with pytest.raises(ValueError, match=r"^logits .* are not finite: the weights diverged$"):
            qzoo.evaluate(Fixed(rows), numbered([1]))


def test_any_timm_model(images):
    model = timm.create_model("test_resnet", num_classes=10)
    assert qzoo.evaluate(model, "torch/image_folder", root=images, batch_size=30).images == 30
