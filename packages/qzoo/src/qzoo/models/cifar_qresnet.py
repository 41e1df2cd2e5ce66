"""QResNets for 32×32 images: residual networks whose 3×3 convolutions are quadratic.

Papers: Fan et al., "On Expressivity and Trainability of Quadratic Networks", arXiv 2110.06081, for
the quadratic neuron and its initialisation; He et al., "Deep Residual Learning for Image
Recognition", arXiv 1512.03385, section 4.2, for the three-stage network and its option-A shortcuts.
The stem and the classifier stay linear.

``ReLinear``, which the tags' names mention, is a way to train such a network, not an activation.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from timm.layers.classifier import create_classifier
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn

import qcore

__all__ = ["ARCHITECTURES", "CifarQResNet", "OptionAShortcut", "QuadraticBlock"]

ARCHITECTURES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "qresnet20": {"depths": (3, 3, 3), "widths": (16, 32, 64)},
    }
)
"""Arguments of :class:`CifarQResNet` by model name: a new size is a new row."""

_POOLS = ("avg", "max", "avgmax", "catavgmax", "")


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
                "this shortcut only adds channels; give widths that do not decrease"
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


class QuadraticBlock(nn.Module):
    r"""A residual block of two quadratic convolutions.

    .. math:: y = \mathrm{ReLU}(\mathrm{BN}(q_2(\mathrm{ReLU}(\mathrm{BN}(q_1(x))))) + s(x))

    with 3×3 quadratic convolutions :math:`q` with bias, batch norms BN, and the option-A shortcut
    :math:`s`, the identity where the shape stays.

    Args:
        in_channels, out_channels: channels of input and output; the latter may not be fewer.
        stride: of the first convolution and of the shortcut.
        neuron: a name of :data:`qcore.CATALOGUE`, or a :class:`qcore.Neuron`.
        device, dtype: as everywhere in torch.

    Shapes: input ``(B, in_channels, H, W)``, output ``(B, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)``.

    Cost: with the default neuron, three times the parameters and multiply-adds of the linear block.

    Raises ``ValueError`` for an unknown neuron, and for fewer output than input channels.

    Source: the network of arXiv 2110.06081's CIFAR-10 experiments.

    >>> QuadraticBlock(16, 32, stride=2)(torch.randn(2, 16, 8, 8)).shape
    torch.Size([2, 32, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        neuron: str | qcore.Neuron = "quadratic",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv1 = qcore.QuadraticConv2d(
            in_channels, out_channels, 3, stride, padding=1, neuron=neuron, **factory
        )
        self.bn1 = nn.BatchNorm2d(out_channels, **factory)
        self.act1 = nn.ReLU()
        self.conv2 = qcore.QuadraticConv2d(
            out_channels, out_channels, 3, padding=1, neuron=neuron, **factory
        )
        self.bn2 = nn.BatchNorm2d(out_channels, **factory)
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = (
            nn.Identity() if same_shape else OptionAShortcut(in_channels, out_channels, stride)
        )
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The block's formula."""
        residual = self.act1(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return self.act2(residual + self.shortcut(x))


class CifarQResNet(nn.Module):
    """A residual network for small images whose block convolutions are quadratic, as a timm model.

    A linear 3×3 convolution with batch norm and ReLU, stages of :class:`QuadraticBlock`, each stage
    after the first at half the resolution, global pooling, and a linear classifier. Usually made by
    ``timm.create_model("qresnet20", ...)``, which passes these arguments on and refuses others.

    Args:
        depths: blocks per stage.
        widths: channels per stage; the stem has those of the first. They may not decrease.
        neuron: the neuron of all block convolutions: a name of :data:`qcore.CATALOGUE`, or a
            :class:`qcore.Neuron`; everything else stays equal.
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the input.
        global_pool: ``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"``, or ``""`` for none, which
            needs ``num_classes=0``.
        drop_rate: probability in [0, 1] of dropping a pooled feature in training.
        device, dtype: as everywhere in torch.

    At the start each neuron is its linear reference, whose weights are Kaiming normal (fan in): the
    network computes what it would with ``neuron="linear"``. Neurons without a reference, and stem,
    classifier and biases, start as PyTorch starts them.

    Shapes: input ``(B, in_chans, H, W)`` of any size, output ``(B, num_classes)``.

    Cost: QResNet-20 has 806 266 parameters at 10 classes and 121 million multiply-adds per 32×32
    image, three times those of ResNet-20.

    Raises ``ValueError`` for an unknown neuron or pooling, for sizes below 1, for widths that
    decrease, and for depths and widths of unequal length.

    Source: arXiv 2110.06081 and its authors' code; arXiv 1512.03385, section 4.2.

    >>> model = CifarQResNet(depths=(1, 1), widths=(4, 8), neuron="compact", num_classes=5)
    >>> model(torch.randn(2, 3, 28, 28)).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 3),
        widths: Sequence[int] = (16, 32, 64),
        *,
        neuron: str | qcore.Neuron = "quadratic",
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(depths, widths, in_chans)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(widths[0], **factory)
        self.act1 = nn.ReLU()
        self.feature_info = [{"num_chs": widths[0], "reduction": 1, "module": "act1"}]

        stages = []
        channels = widths[0]
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(QuadraticBlock(channels, width, stride, neuron=neuron, **factory))
                channels = width
            stages.append(nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": width, "reduction": 2**i, "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)

        self.num_features = channels
        self._make_head(num_classes, global_pool, **factory)
        self.head_drop = nn.Dropout(drop_rate)
        self.init_weights()

    def _make_head(self, num_classes: int, global_pool: str, **factory: Any) -> None:
        if global_pool not in _POOLS:
            raise ValueError(f"global_pool={global_pool!r} is not allowed: choose from {_POOLS}")
        if num_classes < 0:
            raise ValueError(
                f"num_classes={num_classes} is not allowed: give 1 or more, or 0 for no classifier"
            )
        if not global_pool and num_classes:
            raise ValueError(
                "global_pool='' leaves an image, which a classifier with "
                f"num_classes={num_classes} cannot take: give num_classes=0 as well, or a pooling"
            )
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=global_pool, **factory
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def init_weights(self) -> None:
        """Draw the linear references anew, and move every quadratic convolution to them.

        Neurons without a linear reference, the stem, the classifier and the biases of references
        are left as they are.
        """
        for layer in self.modules():
            if isinstance(layer, qcore.Quadratic) and isinstance(layer.reference, nn.Conv2d):
                nn.init.kaiming_normal_(layer.reference.weight)
                qcore.ReLinear().init_(layer)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns by which timm groups parameters: the stem, then stages or (default) blocks."""
        return {
            "stem": r"^(?:conv1|bn1)\.",
            "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)",
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training recomputes each block in the backward pass instead of storing it."""
        self.grad_checkpointing = enable

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The classifier, or its name; with ``num_classes=0`` it is an ``nn.Identity``."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new, untrained classifier; ``global_pool=None`` keeps the pooling.

        Raises ``ValueError`` as the class does.
        """
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        like = self.conv1.weight
        self._make_head(num_classes, pool, device=like.device, dtype=like.dtype)
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def forward_features(self, x: Tensor) -> Tensor:
        """``(B, in_chans, H, W)`` to the last stage's ``(B, num_features, H', W')``, unpooled."""
        x = self.act1(self.bn1(self.conv1(x)))
        if self.grad_checkpointing and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            return checkpoint_seq(self.stages, x, flatten=True)
        return self.stages(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, drop and classify.

        With ``pre_logits`` the classifier is left out: the features are ``(B, head_hidden_size)``,
        or ``(B, num_features, H', W')`` with ``global_pool=""``.
        """
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_chans, H, W)`` to logits ``(B, num_classes)``."""
        return self.forward_head(self.forward_features(x))


def _check_sizes(depths: Sequence[int], widths: Sequence[int], in_chans: int) -> None:
    if len(depths) != len(widths) or not depths:
        raise ValueError(
            f"depths={tuple(depths)} and widths={tuple(widths)} do not match: "
            "give one of each per stage, for one stage or more"
        )
    for name, sizes in (("depths", depths), ("widths", widths), ("in_chans", (in_chans,))):
        if min(sizes) < 1:
            raise ValueError(f"{name} has {min(sizes)}, which is not allowed: give 1 or more")


def _cfg() -> dict[str, Any]:
    """What the published CIFAR-10 scripts feed the network; ImageNet's mean and std are theirs."""
    return {
        "input_size": (3, 32, 32),
        "num_classes": 10,
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "conv1",
        "classifier": "fc",
        "paper_name": "On Expressivity and Trainability of Quadratic Networks",
        "paper_ids": "arXiv:2110.06081",
    }


default_cfgs = generate_default_cfgs({f"{name}.relinear_c10": _cfg() for name in ARCHITECTURES})


def _entry(name: str) -> Callable[..., CifarQResNet]:
    """The function that timm calls for the model ``name``; timm reads the name off the function."""

    def create(pretrained: bool = False, **kwargs: Any) -> CifarQResNet:
        arguments = {**ARCHITECTURES[name], **kwargs}
        features = {
            "out_indices": tuple(range(len(arguments["widths"]) + 1)),
            "flatten_sequential": True,
        }
        return build_model_with_cfg(
            CifarQResNet, name, pretrained, feature_cfg=features, **arguments
        )

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"The model ``{name}``, a :class:`CifarQResNet`; see ``timm.create_model``."
    return create


for _name in ARCHITECTURES:
    globals()[_name] = register_model(_entry(_name))
