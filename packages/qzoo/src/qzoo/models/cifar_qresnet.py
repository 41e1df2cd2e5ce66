"""QResNets for small images: residual networks whose 3×3 convolutions are quadratic.

Papers: Fan et al., "On Expressivity and Trainability of Quadratic Networks", arXiv 2110.06081, for
the quadratic neuron and its initialisation; Liu et al., "Dendritic Integration Based Quadratic
Neural Networks Outperform Traditional Artificial Ones", arXiv 2307.13609, for the quadratic heads;
He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385, for the networks.

``ReLinear``, which the tags' names mention, is a way to train such a network, not an activation.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from timm.layers.classifier import create_classifier
from timm.models import (
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn

import qcore
from qzoo.architectures import CIFAR_QRESNETS
from qzoo.models.blocks import Residual, ResidualBlock, Shortcut, Stem
from qzoo.models.checks import check_choice, check_classifier, head_options
from qzoo.models.heads import DenseHead, LowRankHead
from qzoo.pretrained import build_model, cfgs_of, check_norm

__all__ = ["CifarQResNet"]

Head = Literal["linear", "dense", "low_rank"]

_POOLS = ("avg", "max", "avgmax", "catavgmax", "")


class CifarQResNet(nn.Module):
    """A residual network for small images, with quadratic convolutions or head, as a timm model.

    A linear :class:`Stem`, stages of :class:`ResidualBlock`, each stage after the first at half the
    resolution, global pooling, and a classifier. Usually made by
    ``timm.create_model("qresnet20", ...)``, which passes these arguments on and refuses others.

    Args:
        depths: blocks per stage.
        widths: channels per stage; the stem has those of the first. With shortcut A they may not
            decrease.
        neuron: the neuron of all block convolutions: a name of :data:`qcore.CATALOGUE`, or a
            :class:`qcore.Neuron`; everything else stays equal. ``"linear"`` makes ``nn.Conv2d``.
        rms_norm: whether the quadratic branches of these convolutions see each image divided by its
            root mean square: see :class:`qcore.Quadratic`.
        bias: whether the block convolutions have biases.
        shortcut: ``"A"`` pads with zero channels, ``"B"`` projects by a linear 1×1 convolution.
        residual: ``"plain"``, or ``"rezero"`` for a gate on each residual branch.
        head: the classifier: ``"linear"``, ``"dense"`` for one :class:`qcore.QuadraticForm` per
            class, ``"low_rank"`` for a :class:`qcore.LowRankForm`.
        rank: of the low-rank head; without one, of the forms of ``neuron="bilinear"``.
        neuron_rank: of the forms of ``neuron="bilinear"`` beside a low-rank head.
        signed: trainable signs in a low-rank head.
        affine: linear and constant terms inside a quadratic head.
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the input.
        global_pool: ``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"``, or ``""`` for none, which
            needs ``num_classes=0``.
        drop_rate: probability in [0, 1] of dropping a pooled feature in training.
        drop_path_rate: probability in [0, 1] of leaving out the last block's residual branch for an
            image in training; it rises linearly from 0 at the first.
        device, dtype: as everywhere in torch.

    At the start each neuron is its linear reference, whose weights are Kaiming normal (fan in), as
    are the convolutions of ``neuron="linear"``: the two compute the same. Neurons without a
    reference, and stem, shortcuts, classifier and biases, start as their kinds do.

    Shapes: input ``(B, in_chans, H, W)`` of any size, output ``(B, num_classes)``.

    Cost: QResNet-20 has 806 266 parameters at 10 classes and 121 million multiply-adds per 32×32
    image, three times those of ResNet-20.

    Raises ``ValueError`` for an unknown name of a neuron, head, shortcut, residual or pooling, for
    sizes below 1, for depths and widths of unequal length, for a probability outside [0, 1], and
    for a rank, signs, affine terms or a norm that no part of the network has.

    Source: arXiv 2110.06081 and its authors' code; arXiv 2307.13609, table 3; arXiv 1512.03385.

    >>> model = CifarQResNet(depths=(1, 1), widths=(4, 8), neuron="compact", num_classes=5)
    >>> model(torch.randn(2, 3, 28, 28)).shape
    torch.Size([2, 5])
    """

    feature_info: list[dict[str, Any]]

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 3),
        widths: Sequence[int] = (16, 32, 64),
        *,
        neuron: str | qcore.Neuron = "quadratic",
        rms_norm: bool = False,
        bias: bool = True,
        shortcut: Shortcut = "A",
        residual: Residual = "plain",
        head: Head = "linear",
        rank: int | None = None,
        neuron_rank: int | None = None,
        signed: bool = False,
        affine: bool = False,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(depths, widths, in_chans)
        for name, value, kind in (
            ("shortcut", shortcut, Shortcut),
            ("residual", residual, Residual),
            ("head", head, Head),
        ):
            check_choice(name, value, get_args(kind))
        self.head_options = head_options(head, rank, signed, affine)
        if head != "low_rank" and rank is not None:
            if neuron_rank is not None:
                raise ValueError(
                    f"rank={rank} is the rank of a low-rank head, or of bilinear neurons, which "
                    f"have neuron_rank={neuron_rank} already: choose head='low_rank', or give one "
                    "of them"
                )
            neuron_rank = rank
        if neuron_rank is not None and neuron == "linear":
            raise ValueError(
                f"rank={neuron_rank} is for bilinear neurons and low-rank heads, but "
                f"neuron='linear' and head={head!r}: choose neuron='bilinear' or head='low_rank'"
            )
        if rms_norm and neuron == "linear":  # whose convolutions are torch's
            raise ValueError(
                "rms_norm=True is for what quadratic branches see, and neuron 'linear' has none: "
                "choose another, or rms_norm=False"
            )
        if not 0.0 <= drop_path_rate <= 1.0:
            raise ValueError(
                f"drop_path_rate={drop_path_rate} is not allowed: give a probability from 0 to 1"
            )
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.head = head
        self.rms_norm = rms_norm
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        self.stem = Stem(in_chans, widths[0], **factory)
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": widths[0], "reduction": 1, "module": "stem"}
        ]

        drop_paths = torch.linspace(0.0, drop_path_rate, sum(depths), device="cpu").tolist()
        stages = []
        channels = widths[0]
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for j in range(depth):
                blocks.append(
                    ResidualBlock(
                        channels,
                        width,
                        stride=2 if i > 0 and j == 0 else 1,
                        neuron=neuron,
                        rank=neuron_rank,
                        rms_norm=rms_norm,
                        bias=bias,
                        shortcut=shortcut,
                        residual=residual,
                        drop_path=drop_paths.pop(0),
                        **factory,
                    )
                )
                channels = width
            stages.append(nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": width, "reduction": 2**i, "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)

        self.num_features = channels
        self._make_head(num_classes, global_pool, **factory)
        self.head_drop = nn.Dropout(drop_rate)
        self._move_to_reference()

    def _make_head(self, num_classes: int, global_pool: str, **factory: Any) -> None:
        check_classifier(num_classes, global_pool, _POOLS, pooling="a pooling")
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=global_pool, **factory
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        if num_classes and self.head != "linear":
            form = DenseHead if self.head == "dense" else LowRankHead
            self.fc = form(self.head_hidden_size, num_classes, **self.head_options, **factory)

    def init_weights(self) -> None:
        """Draw everything anew, as the class describes; memory may be uninitialised before.

        >>> model = CifarQResNet(depths=(1,), widths=(4,), device="meta").to_empty(device="cpu")
        >>> model.init_weights()
        """
        for module in self.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
        self._move_to_reference()

    def _move_to_reference(self) -> None:
        for block in self.stages.modules():
            if not isinstance(block, ResidualBlock):
                continue
            for layer in (block.conv1, block.conv2):
                reference = layer.reference if isinstance(layer, qcore.Quadratic) else layer
                if isinstance(reference, nn.Conv2d):
                    nn.init.kaiming_normal_(reference.weight)
                if isinstance(layer, qcore.Quadratic) and reference is not None:
                    qcore.ReLinear().init_(layer)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns by which timm groups parameters: the stem, then stages or (default) blocks."""
        return {
            "stem": r"^stem\.",
            "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)",
        }

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that timm's optimisers should not decay: the gates of ReZero."""
        return {name for name, _ in self.named_parameters() if name.endswith("rezero.gate")}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training recomputes each block in the backward pass instead of storing it."""
        self.grad_checkpointing = enable

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The classifier, or its name; with ``num_classes=0`` it is an ``nn.Identity``."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new, untrained classifier of the same kind; ``global_pool=None`` keeps the pooling.

        Where there is none, which a classifier needs, it becomes ``"avg"``. The classifier has the
        device, dtype and mode of the network, and is frozen where the old one was.

        Raises ``ValueError`` as the class does.
        """
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        if global_pool is None and not pool and num_classes:
            pool = "avg"
        old = list(self.fc.parameters())
        like = next(self.stem.parameters())
        self._make_head(num_classes, pool, device=like.device, dtype=like.dtype)
        for part in (self.global_pool, self.fc):
            part.train(self.training)
        self.fc.requires_grad_(not old or any(parameter.requires_grad for parameter in old))

    def forward_features(self, x: Tensor) -> Tensor:
        """``(B, in_chans, H, W)`` to the last stage's ``(B, num_features, H', W')``, unpooled."""
        x = self.stem(x)
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

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The features, and the outputs of stem (index 0) and stages (from 1) on the way to them.

        Args:
            x: images, ``(B, in_chans, H, W)``.
            indices: which: the last n for a number, these for a sequence, all for None.
            norm: has no effect, for the last layer is not a norm; as timm's other models take it.
            stop_early: compute no stage after the last index.
            output_fmt: ``"NCHW"``, the only one.
            intermediates_only: return the list alone.

        Raises ``ValueError`` for another ``output_fmt``.
        """
        del norm
        check_choice("output_fmt", output_fmt, ("NCHW",))
        taken, last = feature_take_indices(len(self.stages) + 1, indices)
        x = self.stem(x)
        found = [x] if 0 in taken else []
        for i, stage in enumerate(self.stages[:last] if stop_early else self.stages, start=1):
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
            if i in taken:
                found.append(x)
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the stages, and the head, that no intermediate of ``indices`` needs; return these.

        Args:
            indices, prune_norm: as ``indices`` and ``norm`` of :meth:`forward_intermediates`.
            prune_head: drop the classifier in any case.
        """
        del prune_norm
        taken, last = feature_take_indices(len(self.stages) + 1, indices)
        pruned = last < len(self.stages)
        self.stages = self.stages[:last]
        if pruned:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if pruned or prune_head:
            self.reset_classifier(0, "")
        return taken

    def fuse(self) -> "CifarQResNet":
        """Take all batch norms into the convolutions, in place; outputs in eval mode stay the same.

        ``timm.utils.model.reparameterize_model`` does the same to a copy.

        Raises ``ValueError`` in train mode.
        """
        self.stem.fuse()
        for block in self.stages.modules():
            if isinstance(block, ResidualBlock):
                block.fuse()
        return self


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
        "min_input_size": (3, 8, 8),
        "num_classes": 10,
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "stem.conv",
        "classifier": "fc",
        "paper_name": "On Expressivity and Trainability of Quadratic Networks",
        "paper_ids": "arXiv:2110.06081",
    }


def _default_cfgs() -> dict[str, Any]:
    """Every tag of every model, with the size that its own input has before pooling."""
    cfgs = cfgs_of(CIFAR_QRESNETS, lambda _: _cfg())
    for name, cfg in cfgs.items():
        halvings = len(CIFAR_QRESNETS[name.split(".")[0]]["widths"]) - 1
        cfg["pool_size"] = tuple(-(-side // 2**halvings) for side in cfg["input_size"][1:])
    return cfgs


default_cfgs = generate_default_cfgs(_default_cfgs())


def _entry(name: str) -> Callable[..., CifarQResNet]:
    """The function that timm calls for the model ``name``; timm reads the name off the function."""

    def create(pretrained: bool = False, **kwargs: Any) -> CifarQResNet:
        arguments = {**CIFAR_QRESNETS[name], **kwargs}
        if pretrained:
            check_norm(name, arguments.get("rms_norm", False))
        features = {
            "out_indices": tuple(range(len(arguments["widths"]) + 1)),
            "flatten_sequential": True,
        }
        return build_model(
            CifarQResNet,
            name,
            pretrained,
            feature_cfg=features,
            **arguments,
        )

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"The model ``{name}``, a :class:`CifarQResNet`; see ``timm.create_model``."
    return create


for _name in CIFAR_QRESNETS:
    globals()[_name] = register_model(_entry(_name))
