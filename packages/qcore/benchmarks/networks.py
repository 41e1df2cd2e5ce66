"""QResNet-20 as it was published, with qcore's layers, a norm, and with as many multiply-adds."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import MethodType

import timm
import torch
from paired import Step
from torch import Tensor, nn
from torch.nn import functional

import qcore
import qzoo  # noqa: F401 - registers the models


def published(self: qcore.Quadratic, x: Tensor) -> Tensor:
    """The forward pass of the published layers."""
    return self["r"](x) * (self["g"](x) + 1.0) + self["b"](x.pow(2))


def qresnet20(arrangement: str) -> nn.Module:
    """With qcore's layers, with their norm, as published, or of equal multiply-adds."""
    torch.manual_seed(0)
    model = timm.create_model("qresnet20_rms" if arrangement == "normalised" else "qresnet20")
    for path, layer in list(model.named_modules()):
        if not isinstance(layer, qcore.QuadraticConv2d):
            continue
        if arrangement == "published":
            layer.forward = MethodType(published, layer)
        elif arrangement == "equal":
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, EqualMultiplyAdds(layer))
    return model


class EqualMultiplyAdds(nn.Module):
    """One convolution with three times the outputs, of which a third is used."""

    def __init__(self, layer: qcore.QuadraticConv2d) -> None:
        super().__init__()
        r = layer["r"]
        self.channels = layer.out_channels
        self.convolution = nn.Conv2d(
            r.in_channels, 3 * r.out_channels, r.kernel_size, r.stride, r.padding
        )

    def forward(self, x: Tensor) -> Tensor:
        """The mean of the three thirds, so that every output enters."""
        return self.convolution(x).unflatten(1, (3, self.channels)).mean(1)


def training(
    model: nn.Module,
    x: Tensor,
    setting: Callable[[], AbstractContextManager[None]] = lambda: qcore.backend("auto"),
) -> Step:
    """A step of gradient descent."""
    target = torch.randint(0, 10, (len(x),))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        with setting():
            functional.cross_entropy(model(x), target).backward()
        optimizer.step()

    return step


def inference(model: nn.Module, x: Tensor) -> Step:
    """A forward pass without gradients."""
    model.eval()

    def step() -> None:
        with torch.inference_mode():
            model(x)

    return step


def channels_last(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """The same in the layout in which convolutions are fastest."""
    return (
        model.to(memory_format=torch.channels_last),
        x.to(memory_format=torch.channels_last),
    )
