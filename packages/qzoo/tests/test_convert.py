"""Checkpoints of the published ReLinear code: the same outputs from our networks."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from qzoo import convert_relinear_state_dict


class PublishedBlock(nn.Module):
    """The published block by its formula, under the published names."""

    def __init__(self, in_channels, channels, stride, letters, gated):
        super().__init__()
        self.stride, self.letters, self.channels = stride, letters, channels
        for number, (inputs, step) in enumerate([(in_channels, stride), (channels, 1)], start=1):
            for letter in letters:
                layer = nn.Conv2d(inputs, channels, 3, step, 1)
                setattr(self, f"conv{number}{letter}", layer)
            setattr(self, f"bn{number}", nn.BatchNorm2d(channels))
        if gated:
            self.alpha1 = nn.Parameter(torch.zeros(1))

    def convolution(self, number, x):
        r, b = (getattr(self, f"conv{number}{letter}") for letter in "rb")
        if "g" not in self.letters:
            return r(x) + b(x.pow(2))
        return r(x) * getattr(self, f"conv{number}g")(x) + b(x.pow(2))

    def forward(self, x):
        y = functional.relu(self.bn1(self.convolution(1, x)))
        y = self.bn2(self.convolution(2, y))
        if hasattr(self, "alpha1"):
            y = self.alpha1 * y
        if self.stride != 1:
            pad = self.channels // 4
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, pad, pad))
        return functional.relu(y + x)


class Published(nn.Module):
    def __init__(self, letters, gated):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for number, (inputs, channels) in enumerate([(16, 16), (16, 32), (32, 64)], start=1):
            blocks = [
                PublishedBlock(
                    inputs if i == 0 else channels,
                    channels,
                    2 if i == 0 and number > 1 else 1,
                    letters,
                    gated,
                )
                for i in range(3)
            ]
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


KINDS = {
    "qresnet20": ("rgb", False),
    "qresnet20_compact": ("rb", False),
    "qresnet20_rezero": ("rgb", True),
}
every_kind = pytest.mark.parametrize("name", KINDS)


def published(name):
    """A network of the published code with other values in every tensor."""
    torch.manual_seed(0)
    model = Published(*KINDS[name]).eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if "running_var" in key:
                value.uniform_(0.5, 1.5)
            elif "num_batches" in key:
                value.fill_(7)
            else:
                value.normal_(0.0, 0.1)
    return model


@every_kind
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_checkpoint_gives_its_outputs(name, prefix):
    theirs, ours = published(name), timm.create_model(name).eval()
    state = {prefix + key: value for key, value in theirs.state_dict().items()}
    ours.load_state_dict(convert_relinear_state_dict(state, ours))
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert ours.stem.bn.num_batches_tracked == 7


def test_the_offset_of_b_g_is_not_stored():
    theirs, ours = published("qresnet20"), timm.create_model("qresnet20")
    converted = convert_relinear_state_dict(theirs.state_dict(), ours)
    expected = theirs.layer2[1].conv2g.bias - 1.0
    assert torch.equal(converted["stages.1.1.conv2.g.bias"], expected)


def test_counters_may_be_missing():
    state = published("qresnet20").state_dict()
    old = {key: value for key, value in state.items() if "num_batches" not in key}
    ours = timm.create_model("qresnet20")
    ours.load_state_dict(convert_relinear_state_dict(old, ours))
    assert ours.stem.bn.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        (
            "qresnet20",
            lambda state: {**state, "optimizer": torch.zeros(1), "layer1.0.conv3r.bias": None},
            "  not a name of the published code: optimizer, layer1.0.conv3r.bias",
        ),
        (
            "qresnet20",
            lambda state: {k: v for k, v in state.items() if k != "layer1.0.conv1b.bias"},
            "  missing: stages.0.0.conv1.b.bias",
        ),
        (
            "qresnet20_compact",
            lambda state: state,
            "  not in the model: stages.0.0.conv1.g.bias, stages.0.0.conv1.g.weight, "
            "stages.0.0.conv2.g.bias, ... (36 in all)",
        ),
        (
            "qresnet20",
            lambda state: {**state, "linear.bias": torch.zeros(3)},
            "  of another shape: fc.bias is (3,), not (10,)",
        ),
        (
            "qresnet20_rezero",
            lambda _: {
                **published("qresnet20_rezero").state_dict(),
                "layer1.0.alpha1": torch.ones(2),
            },
            "  of another shape: stages.0.0.rezero.gate is (2,), not ()",
        ),
    ],
    ids=["unknown", "missing", "surplus", "shape", "gate"],
)
def test_what_does_not_fit_is_listed(name, change, text):
    model = timm.create_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"^state_dict does not fit the model:\n") as error:
        convert_relinear_state_dict(change(published("qresnet20").state_dict()), model)
    assert str(error.value).splitlines()[1:] == [text]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        (
            "model.pth",
            TypeError,
            "state_dict is a str: give what the file holds, as torch.load(pat",
        ),
        ({"state_dict": {}}, ValueError, "state_dict holds others: give one of them, state_dict['"),
    ],
)
def test_what_is_no_state_dict(given, kind, text):
    with pytest.raises(kind) as caught:
        convert_relinear_state_dict(given, timm.create_model("qresnet20", device="meta"))
    assert str(caught.value).startswith(text)
