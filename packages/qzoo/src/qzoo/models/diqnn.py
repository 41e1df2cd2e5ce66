"""DIQNNs: a quadratic form per class, of an image's pixels or behind one convolution.

Paper: Liu et al., "Dendritic Integration Based Quadratic Neural Networks Outperform Traditional
Artificial Ones", arXiv 2307.13609, sections 2 to 4: table 2, figures 1 to 3.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from qzoo.architectures import DIQNNS, Arguments, convolved
from qzoo.models.checks import check_choice, check_classifier, head_options
from qzoo.models.heads import DenseHead, LowRankHead
from qzoo.pretrained import build_model, cfgs_of

__all__ = ["DIQNN"]


class DIQNN(nn.Module):
    r"""One quadratic form per class, of an image's pixels or behind one convolution and ReLU.

    ``logit_k = xᵀ A_k x`` for the flattened ``x``; of rank R, ``logit_k = Σ_r (c_kr · x)²``.
    Usually made by ``timm.create_model("diqnn_rank4", ...)``, which passes these arguments on.

    Args:
        img_size: height and width of the images: the forms are of all pixels at once.
        head: ``"dense"`` for one :class:`qcore.QuadraticForm` per class, ``"low_rank"`` for a
            :class:`qcore.LowRankForm`.
        rank: of the low-rank head.
        signed: trainable signs in a low-rank head.
        affine: linear and constant terms inside the head.
        convolution: channels, kernel and stride of a convolution in front, without padding.
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the input.
        global_pool: ``"flatten"``, or ``""`` to leave an image, which needs ``num_classes=0``.
        drop_rate: probability in [0, 1] of dropping a feature in training.
        device, dtype: as everywhere in torch.

    Shapes: input ``(B, in_chans, *img_size)``, output ``(B, num_classes)``.

    Cost: ``n(n + 1) / 2`` parameters per class for the dense form of n features, ``R n`` for one of
    rank R: 3 077 200 and 31 360 for 784 pixels, ten classes and R = 4.

    Raises ``ValueError`` for another head or pooling, sizes below 1, a kernel that does not fit,
    and a rank or signs that the head does not have.

    Source: arXiv 2307.13609, equations 3 and 4.

    >>> DIQNN(head="low_rank", rank=4)(torch.randn(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 28,
        *,
        head: Literal["dense", "low_rank"] = "dense",
        rank: int | None = None,
        signed: bool = False,
        affine: bool = False,
        convolution: tuple[int, int, int] | None = None,
        num_classes: int = 10,
        in_chans: int = 1,
        global_pool: str = "flatten",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice("head", head, ("dense", "low_rank"))
        if head == "dense" and rank is not None:
            raise ValueError(
                f"rank={rank} is for low-rank heads, but head='dense': choose head='low_rank'"
            )
        self.head_options = head_options(head, rank, signed, affine)
        sides = (img_size, img_size) if isinstance(img_size, int) else img_size
        if len(sides) != 2:
            raise ValueError(f"img_size={img_size} is not allowed: give height and width, or both")
        height, width = sides
        for name, value in (("img_size", min(height, width)), ("in_chans", in_chans)):
            if value < 1:
                raise ValueError(f"{name} has {value}, which is not allowed: give 1 or more")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.head, self.in_chans = head, in_chans
        self.features = nn.Sequential()
        channels = in_chans
        if convolution is not None:
            if len(convolution) != 3 or min(convolution) < 1:
                raise ValueError(
                    f"convolution={convolution} is not allowed: give channels, kernel and stride, "
                    "each 1 or more"
                )
            channels, kernel, stride = convolution
            if kernel > min(height, width):
                raise ValueError(
                    f"convolution={convolution}: a kernel of {kernel} does not fit images of "
                    f"{height}×{width}: choose a smaller one"
                )
            self.features.append(nn.Conv2d(in_chans, channels, kernel, stride, **factory))
            self.features.append(nn.ReLU())
            height, width = convolved((height, width), convolution)
        self.num_features = channels
        self.head_hidden_size = channels * height * width
        self.head_drop = nn.Dropout(drop_rate)
        self._place = factory
        self._make_head(num_classes, global_pool, **factory)

    def _make_head(self, num_classes: int, global_pool: str, **factory: Any) -> None:
        check_classifier(num_classes, global_pool, ("flatten", ""), pooling="'flatten'")
        self.num_classes = num_classes
        self.global_pool = nn.Flatten() if global_pool else nn.Identity()
        form = DenseHead if self.head == "dense" else LowRankHead
        self.fc = (
            form(self.head_hidden_size, num_classes, **self.head_options, **factory)
            if num_classes
            else nn.Identity()
        )

    def init_weights(self) -> None:
        """Draw everything anew, as torch and the forms do; memory may be uninitialised before."""
        for module in self.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns by which timm groups parameters: the convolution, then the classifier."""
        del coarse
        return {"stem": r"^features\.", "blocks": [(r"^fc\.", None)]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """There are no stages to check points of.

        Raises ``ValueError`` for any but ``enable=False``.
        """
        if enable:
            raise ValueError("a DIQNN is one layer deep: gradient checkpointing saves nothing")

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The classifier, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one of the same kind; 0 classes leave it out.

        Raises ``ValueError`` as the class does.
        """
        flat = isinstance(self.global_pool, nn.Flatten) or num_classes > 0
        pool = ("flatten" if flat else "") if global_pool is None else global_pool
        like = next(self.parameters(), None)
        if like is not None:  # else the classifier was left out, and was all that there was
            self._place = {"device": like.device, "dtype": like.dtype}
        self._make_head(num_classes, pool, **self._place)
        for part in (self.global_pool, self.fc):
            part.train(self.training)

    def forward_features(self, x: Tensor) -> Tensor:
        """``(B, in_chans, H, W)`` to what the forms are of, ``(B, num_features, H', W')``."""
        return self.features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Flatten, drop and classify; with ``pre_logits`` ``(B, head_hidden_size)``."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_chans, H, W)`` to logits ``(B, num_classes)``."""
        return self.forward_head(self.forward_features(x))


def _cfg(arguments: Arguments) -> dict[str, Any]:
    """Pixels from 0 to 1, of the one size that the forms have parameters for."""
    convolution: Sequence[int] | None = arguments.get("convolution")
    return {
        "input_size": (1, 28, 28),
        "fixed_input_size": True,
        "num_classes": 10,
        "pool_size": convolved((28, 28), convolution) if convolution else (28, 28),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.0,),
        "std": (1.0,),
        "first_conv": "features.0" if convolution else None,
        "classifier": "fc",
        "paper_name": "Dendritic Integration Based Quadratic Neural Networks Outperform "
        "Traditional Artificial Ones",
        "paper_ids": "arXiv:2307.13609",
    }


default_cfgs = generate_default_cfgs(cfgs_of(DIQNNS, _cfg))


def _entry(name: str) -> Callable[..., DIQNN]:
    """The function that timm calls for the model ``name``; timm reads the name off the function."""

    def create(pretrained: bool = False, **kwargs: Any) -> DIQNN:
        if kwargs.get("features_only"):
            raise ValueError(
                f"features_only=True: {name} is one layer deep, and has no features in between: "
                "take num_classes=0, global_pool='' for what its forms are of"
            )
        return build_model(DIQNN, name, pretrained, **{**DIQNNS[name], **kwargs})

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"The model ``{name}``, a :class:`DIQNN`; see ``timm.create_model``."
    return create


for _name in DIQNNS:
    globals()[_name] = register_model(_entry(_name))
