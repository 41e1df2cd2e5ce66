"""Every test starts from the same random state; Triton kernels run on CPU, interpreted.

And the models that several files test, as fixtures that build them.
"""

import os

# read when Triton is first imported, which torch may do at any time
os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from torch import nn

from qcore import QuadraticLinear


@pytest.fixture(autouse=True)
def seeded():
    """Seed torch before each test, and use one thread: tensors this small gain nothing by more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def quadratic_net():
    """Builds a small model with all three kinds of parameters; matrices only without ``bias``."""

    def build(bias=True):
        return nn.Sequential(
            nn.Linear(4, 4, bias),
            nn.Tanh(),
            QuadraticLinear(4, 4, bias),
            nn.Tanh(),
            QuadraticLinear(4, 3, bias, neuron="bilinear"),
        ).to(torch.float64)

    return build


@pytest.fixture
def conv_net():
    """Builds a small model of ordinary layers, batch norm and dropout among them."""

    def build():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(4, 5),
        )

    return build


@pytest.fixture
def layer_and_input():
    """Builds, by name, each kind of ordinary layer that surgery can replace, and an input."""
    layers = {
        "linear": (nn.Linear, (6, 4), {}, (3, 5, 6)),
        "conv1d": (nn.Conv1d, (4, 6, 3), {"stride": 2}, (2, 4, 9)),
        "conv2d": (nn.Conv2d, (4, 6, 3), {"padding": "same"}, (2, 4, 7, 7)),
        "conv3d": (nn.Conv3d, (2, 3, 2), {}, (2, 2, 4, 4, 4)),
        "dilated": (nn.Conv2d, (4, 6, (3, 2)), {"dilation": 2}, (2, 4, 7, 7)),
        "reflect": (
            nn.Conv2d,
            (4, 6, 3),
            {"padding": 1, "padding_mode": "reflect"},
            (2, 4, 7, 7),
        ),
        "grouped": (nn.Conv2d, (4, 6, 3), {"groups": 2}, (2, 4, 7, 7)),
        "depthwise": (nn.Conv2d, (4, 4, 3), {"groups": 4}, (2, 4, 7, 7)),
        "transposed1d": (nn.ConvTranspose1d, (4, 6, 3), {}, (2, 4, 5)),
        "transposed2d": (nn.ConvTranspose2d, (4, 6, 3), {"stride": 2, "groups": 2}, (2, 4, 5, 5)),
        "transposed3d": (nn.ConvTranspose3d, (2, 3, 2), {}, (2, 2, 3, 3, 3)),
    }

    def build(name, bias):
        kind, sizes, options, shape = layers[name]
        return kind(*sizes, **options, bias=bias), torch.randn(shape)

    return build
