"""Accuracy: counted by hand, on real images, and what is asked in vain."""

import math
import os

import pytest
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import qzoo
from qzoo.evaluation import Verification


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
    assert (found.images, found.top1, found.split) == (4, 50.0, None)
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
    if channels == 1:
        with pytest.raises(ValueError, match=r"have 1 channels, the model is made for 3: make it"):
            qzoo.evaluate(model, name, root=root)
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
            "use download=True to download it): give the folder that holds it, or download=True (-",
        ),
        ("torch/cifar11", {"root": "{}"}, ValueError, "dataset='torch/cifar11' is none that timm "),
        ("cifar10", {"root": "{}"}, ValueError, "dataset='cifar10' is none that timm knows: give "),
        (
            "torch/cifar10",
            {"root": "{}", "split": "tset"},
            ValueError,
            "split='tset' is not known: choose from train, training, test, val, valid, validation",
        ),
        ("hfds/x", {"root": "{}"}, ValueError, "dataset='hfds/x' needs a library that is not the"),
        (numbered([-1]), {}, ValueError, "dataset='TensorDataset' has label -1, the model has 3 c"),
        (numbered([0]), {"device": "gpu"}, ValueError, "device='gpu' cannot be used: "),
        (
            "torch/image_folder",
            {"root": "{}"},
            FileNotFoundError,
            "torch/image_folder is not, or not whole, under {0} (Couldn't find any class folder in "
            "{0}.): give the folder that holds test/ with a folder of images for each class; that",
        ),
        (
            DataLoader(numbered([0])),
            {},
            ValueError,
            "dataset is a DataLoader: give the dataset that",
        ),
        (
            [torch.zeros(1)],
            {},
            ValueError,
            "dataset='list' gives no (image, label) pairs, but Tens",
        ),
        ([(Image.new("L", (2, 2)), 0)], {}, ValueError, "dataset='list' gives images as Image: gi"),
        (numbered([]), {}, ValueError, "dataset='TensorDataset' has no images"),
        (numbered([0, 3]), {}, ValueError, "dataset='TensorDataset' has label 3, the model has 3 "),
        (
            TensorDataset(torch.zeros(2, 3, 2, 2), torch.zeros(2)),
            {},
            ValueError,
            "images of dataset='TensorDataset' have 3 channels, the model is made for 1: make it ",
        ),
    ],
)
def test_what_is_asked_in_vain(dataset, options, kind, text, tmp_path):
    options = {key: value.format(tmp_path) for key, value in options.items()}
    model = Fixed(torch.zeros(2, 3))
    model.pretrained_cfg = {"input_size": (1, 2, 2)}
    with pytest.raises(kind) as caught:
        qzoo.evaluate(model, dataset, **options)
    assert str(caught.value).startswith(text.format(tmp_path))
    assert model.training


def test_a_folder_that_holds_no_such_split_is_not_measured_as_one(images, draw):
    with pytest.raises(FileNotFoundError) as caught:
        qzoo.evaluate(draw("qresnet20_compact"), "torch/image_folder", root=images, split="train")
    assert str(caught.value).startswith(
        f"torch/image_folder is not, or not whole, under {images} (it has no train/): give the "
        "folder that holds train/ with a folder of images for each class; that of digits32"
    )


def test_everything_is_afterwards_as_it_was(draw):
    model = draw("qresnet20_compact", depths=(1,), widths=(4,)).train()
    model.stem.eval()  # its batch norm is frozen
    modes = [part.training for part in model.modules()]
    moves, move = [], model.to
    model.to = lambda target: moves.append(str(target)) or move(target)
    data = TensorDataset(torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))
    qzoo.evaluate(model, data, device="cpu")
    assert moves == ["cpu", "cpu"]  # there, and back
    assert [part.training for part in model.modules()] == modes
    with pytest.raises(ValueError, match=r"^device='nowhere' cannot be used"):
        qzoo.evaluate(model, data, device="nowhere")
    assert [part.training for part in model.modules()] == modes


def test_a_bar_on_standard_error(capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich then draws into a file
    logits = torch.zeros(4, 2)
    qzoo.evaluate(Fixed(logits), numbered([0, 1, 1, 0]), batch_size=1)
    assert capsys.readouterr() == ("", "")
    qzoo.evaluate(Fixed(logits), numbered([0, 1, 1, 0]), batch_size=1, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "TensorDataset" in err


def test_a_move_leaves_what_can_be_trained(draw):
    class Moved(type(draw("qresnet20_compact"))):
        def to(self, *_):  # as a move to another device: new tensors
            return self._apply(torch.clone)

    model = Moved(depths=(1,), widths=(4,))
    data = TensorDataset(torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))
    qzoo.evaluate(model, data, device="cpu")
    model(data.tensors[0]).sum().backward()
    assert model.fc.weight.grad is not None


@pytest.mark.parametrize("options", [{"features_only": True}, {"num_classes": 0}])
def test_no_classifier(options):
    model = timm.create_model("qresnet20_compact", depths=(1,), widths=(4,), **options)
    data = TensorDataset(torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))
    if "num_classes" in options:
        model.fc = torch.nn.Unflatten(1, (2, 2))
    with pytest.raises(ValueError, match=r"^the model gives no logits of shape"):
        qzoo.evaluate(model, data)


def test_named_images_for_a_model_that_says_nothing(images):
    with pytest.raises(ValueError, match=r"^model is a Fixed without a pretrained_cfg, which says"):
        qzoo.evaluate(Fixed(torch.zeros(2, 3)), "torch/image_folder", root=images)


@pytest.mark.parametrize(
    ("known", "measured", "images", "holds"),
    [
        (90.0, 90.05, 10_000, True),
        (90.05, 90.0, 10_000, True),
        (90.0, 90.06, 10_000, False),
        (90.0, 89.94, 10_000, False),
        (90.0, 90.0, 9_999, False),
        (77.13, 77.18, 10_000, True),
    ],
)
def test_to_005_points(known, measured, images, holds):
    one = qzoo.Evaluation(dataset="d", split="test", images=10_000, top1=known, loss=0.1)
    two = one.model_copy(update={"top1": measured, "images": images})
    assert Verification(one, two).holds is holds


def test_every_distance_of_5_in_10000_images_holds():
    one = qzoo.Evaluation(dataset="d", split="test", images=10_000, top1=0.0, loss=0.1)
    for correct in range(9_995):
        known = one.model_copy(update={"top1": 100.0 * correct / 10_000})
        measured = one.model_copy(update={"top1": 100.0 * (correct + 5) / 10_000})
        assert Verification(known, measured).holds


def test_a_network_that_diverged():
    logits = torch.tensor([[0.0, float("nan")], [float("inf"), 0.0]])
    for rows in (logits[:1], logits[1:]):
        with pytest.raises(ValueError, match=r"^logits .* are not finite: the weights diverged$"):
            qzoo.evaluate(Fixed(rows), numbered([1]))


def test_any_timm_model(images):
    model = timm.create_model("test_resnet", num_classes=10)
    assert qzoo.evaluate(model, "torch/image_folder", root=images, batch_size=30).images == 30
