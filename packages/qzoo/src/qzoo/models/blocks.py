"""What the networks are made of: the stem, the residual block, and its shortcuts."""

from collections import OrderedDict
from typing import Any, Literal

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

import qcore

Shortcut = Literal["A", "B"]
Residual = Literal["plain", "rezero"]


class _Foldable(nn.Module):
    """A part of a network whose batch norms can be taken into the convolutions before them."""

    def fuse(self) -> nn.Module:
        """Take the batch norms into the convolutions, in place; outputs in eval mode stay the same.

        ``timm.utils.model.reparameterize_model`` calls it. A convolution whose neuron has no place
        for the scale and the shift, such as ``"product"``, keeps its batch norm.

        Raises ``ValueError`` in train mode.
        """
        return qcore.fold_batchnorm(self, inplace=True, strict=False)


class Stem(_Foldable):
    """A linear 3×3 convolution without bias, batch norm and ReLU.

    Args:
        in_chans, channels: channels of the input and of the output.
        device, dtype: as everywhere in torch.

    Shapes: input ``(B, in_chans, H, W)``, output ``(B, channels, H, W)``.

    >>> Stem(3, 16)(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 16, 8, 8])
    """

    def __init__(
        self,
        in_chans: int,
        channels: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv = nn.Conv2d(in_chans, channels, 3, padding=1, bias=False, **factory)
        self.bn = nn.BatchNorm2d(channels, **factory)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Convolution, batch norm, ReLU."""
        return self.act(self.bn(self.conv(x)))


class OptionAShortcut(nn.Module):
    """A shortcut without parameters: every ``stride``-th pixel, and zero channels on both sides.

    Args:
        in_channels, out_channels: ``out_channels - in_channels`` zero channels are added, half of
            them before and half after; an odd one goes after. For twice the channels this is
            ``out_channels // 4`` on each side.
        stride: step in both directions, starting at the first pixel.

    Shapes: input ``(B, in_channels, H, W)``, output ``(B, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)``:
    that of a 3×3 convolution with this stride and padding 1.

    Raises ``ValueError`` for fewer output than input channels.

    Source: arXiv 1512.03385, section 3.3, option A.

    >>> OptionAShortcut(1, 3, stride=2)(torch.arange(9.0).view(1, 1, 3, 3))[0, :, 0]
    tensor([[0., 0.],
            [0., 2.],
            [0., 0.]])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise ValueError(
                f"out_channels={out_channels} is less than in_channels={in_channels}: "
                "this shortcut only adds channels; give widths that do not decrease, or "
                "shortcut='B'"
            )
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """The input, thinned out and padded with zero channels."""
        x = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(x, [0, 0, 0, 0, self.before, self.after])

    def extra_repr(self) -> str:
        """Step and zero channels, for ``print``."""
        return f"stride={self.stride}, before={self.before}, after={self.after}"


class OptionBShortcut(nn.Sequential):
    """A shortcut by projection: a linear 1×1 convolution without bias, and batch norm.

    Args:
        in_channels, out_channels: channels of input and output.
        stride: of the convolution.
        device, dtype: as everywhere in torch.

    Shapes: input ``(B, in_channels, H, W)``, output ``(B, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)``.

    Source: arXiv 1512.03385, section 3.3, option B.

    >>> OptionBShortcut(4, 8, stride=2)(torch.randn(2, 4, 9, 9)).shape
    torch.Size([2, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False, **factory)
        norm = nn.BatchNorm2d(out_channels, **factory)
        super().__init__(OrderedDict(conv=convolution, bn=norm))


class ResidualBlock(_Foldable):
    r"""A residual block of two 3×3 convolutions, quadratic unless their neuron is ``"linear"``.

    .. math:: y = \mathrm{ReLU}\bigl(\alpha\,\mathrm{BN}(q_2(\mathrm{ReLU}(\mathrm{BN}(q_1(x)))))
        + s(x)\bigr)

    with convolutions :math:`q`, batch norms BN, and the shortcut :math:`s`, the identity where the
    shape stays. α is 1, or with ``residual="rezero"`` a number that starts at 0 and is learned.

    Args:
        in_channels, out_channels: channels of input and output.
        stride: of the first convolution and of the shortcut.
        neuron: a name of :data:`qcore.CATALOGUE`, or a :class:`qcore.Neuron`; ``"linear"`` makes
            ordinary ``nn.Conv2d``.
        rank: of ``"bilinear"``'s forms; None means dense ones.
        rms_norm: whether the quadratic branches see each image divided by its root mean square;
            convolutions of ``"linear"`` have none.
        bias: whether the convolutions have biases.
        shortcut: ``"A"`` pads with zero channels, ``"B"`` projects by a 1×1 convolution, always a
            linear one.
        residual: ``"plain"`` or ``"rezero"``.
        drop_path: probability of leaving out the residual branch for an image, in training.
        device, dtype: as everywhere in torch.

    Shapes: input ``(B, in_channels, H, W)``, output ``(B, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)``.

    Cost: with the default neuron, three times the parameters and multiply-adds of the linear block.

    Raises ``ValueError`` for an unknown neuron, and for fewer output than input channels with
    shortcut A.

    Source: the network of arXiv 2110.06081's CIFAR-10 experiments; arXiv 1512.03385.

    >>> ResidualBlock(16, 32, stride=2)(torch.randn(2, 16, 8, 8)).shape
    torch.Size([2, 32, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        neuron: str | qcore.Neuron = "quadratic",
        rank: int | None = None,
        rms_norm: bool = False,
        bias: bool = True,
        shortcut: Shortcut = "A",
        residual: Residual = "plain",
        drop_path: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}

        def convolution(channels: int, stride: int = 1) -> nn.Module:
            if neuron == "linear":
                return nn.Conv2d(channels, out_channels, 3, stride, 1, bias=bias, **factory)
            return qcore.QuadraticConv2d(
                channels,
                out_channels,
                3,
                stride,
                1,
                bias=bias,
                neuron=neuron,
                rank=rank,
                rms_norm=rms_norm,
                **factory,
            )

        self.conv1 = convolution(in_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels, **factory)
        self.act1 = nn.ReLU()
        self.conv2 = convolution(out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels, **factory)
        gated = residual == "rezero"
        self.rezero = qcore.ReZero(nn.Identity(), **factory) if gated else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            if shortcut == "A":
                self.shortcut = OptionAShortcut(in_channels, out_channels, stride)
            else:
                self.shortcut = OptionBShortcut(in_channels, out_channels, stride, **factory)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The block's formula."""
        residual = self.act1(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        residual = self.drop_path(self.rezero(residual))
        return self.act2(residual + self.shortcut(x))
