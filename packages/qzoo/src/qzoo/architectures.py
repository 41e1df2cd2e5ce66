"""The registered models as data: the arguments of their classes by name.

A model is registered where a paper or a table of the bench names it; all else goes by keyword.
"""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

Arguments = Mapping[str, Any]

_THREE_STAGES: Arguments = {"widths": (16, 32, 64), "shortcut": "A"}
_FOUR_STAGES: Arguments = {"widths": (64, 128, 256, 512), "shortcut": "B"}

_SIZES: Mapping[int, Arguments] = {
    20: {**_THREE_STAGES, "depths": (3, 3, 3)},
    32: {**_THREE_STAGES, "depths": (5, 5, 5)},
    44: {**_THREE_STAGES, "depths": (7, 7, 7)},
    56: {**_THREE_STAGES, "depths": (9, 9, 9)},
    110: {**_THREE_STAGES, "depths": (18, 18, 18)},
    152: {**_THREE_STAGES, "depths": (25, 24, 25), "residual": "rezero"},
    1202: {**_THREE_STAGES, "depths": (200, 200, 200)},
    10: {**_FOUR_STAGES, "depths": (1, 1, 1, 1)},
    12: {**_FOUR_STAGES, "depths": (2, 1, 1, 1)},
    14: {**_FOUR_STAGES, "depths": (2, 2, 1, 1)},
    16: {**_FOUR_STAGES, "depths": (2, 2, 2, 1)},
    18: {**_FOUR_STAGES, "depths": (2, 2, 2, 2)},
}

_LINEAR: Arguments = {"neuron": "linear", "bias": False}
_COMPACT: Arguments = {"neuron": "compact"}
_REZERO: Arguments = {"residual": "rezero"}
_RMS: Arguments = {"rms_norm": True}
_HEADS: Mapping[str, Arguments] = {
    **{f"rank{rank}": {"head": "low_rank", "rank": rank} for rank in (1, 2, 3, 4)},
    "dense": {"head": "dense"},
}

# Linear networks with as many parameters as a quadratic one of the same depths: within 0.1 % of
# qresnet20, 32, 44, 56 and 110, 0.9 % above qresnet10 and 0.5 % below qresnet18.
_MATCHED: Mapping[int, tuple[int, ...]] = {
    **dict.fromkeys((20, 32, 44, 56, 110), (28, 55, 111)),
    **dict.fromkeys((10, 18), (110, 220, 440, 880)),
}


# Fashion-MNIST's convolution: of a paper that names none, the first that qbench's table ``fmnist``
# tries: 8 channels, kernel 5, stride 3.
_CONVOLUTION: Arguments = {"convolution": (8, 5, 3)}


def _rows() -> Iterator[tuple[str, Arguments]]:
    for size, row in _SIZES.items():
        yield f"qresnet{size}", row
    for size in (20, 32, 44, 56, 110):
        yield f"qresnet{size}_compact", {**_SIZES[size], **_COMPACT}
        yield f"qresnet{size}_rezero", {**_SIZES[size], **_REZERO}
        yield f"qresnet{size}_rms", {**_SIZES[size], **_RMS}
    for size in (20, 10, 18):
        for suffix, head in _HEADS.items():
            yield f"qresnet{size}_{suffix}", {**_SIZES[size], **head}
    for size in (20, 32, 44, 56, 110, 10, 12, 14, 16, 18):
        yield f"cifar_resnet{size}", {**_SIZES[size], **_LINEAR}
        for suffix, head in _HEADS.items():
            yield f"cifar_resnet{size}_{suffix}", {**_SIZES[size], **_LINEAR, **head}
    for size, widths in _MATCHED.items():
        yield f"cifar_resnet{size}_w{widths[0]}", {**_SIZES[size], **_LINEAR, "widths": widths}


def _diqnn_rows() -> Iterator[tuple[str, Arguments]]:
    for suffix, row in (("", {}), ("_conv", _CONVOLUTION)):
        yield f"diqnn{suffix}", {"head": "dense", **row}
        for rank in range(1, 11):
            yield f"diqnn{suffix}_rank{rank}", {"head": "low_rank", "rank": rank, **row}


CIFAR_QRESNETS: Mapping[str, Arguments] = MappingProxyType(dict(_rows()))
"""Arguments of :class:`qzoo.CifarQResNet` by model name."""

DIQNNS: Mapping[str, Arguments] = MappingProxyType(dict(_diqnn_rows()))
"""Arguments of :class:`qzoo.DIQNN` by model name."""

ARCHITECTURES: Mapping[str, Arguments] = MappingProxyType({**CIFAR_QRESNETS, **DIQNNS})
"""Arguments by model name, of all classes."""


def default_tag(name: str) -> str:
    """The tag of a model's default input and classes.

    >>> default_tag("qresnet20"), default_tag("qresnet20_rms"), default_tag("diqnn_rank4")
    ('relinear_c10', 'c10', 'mnist')
    """
    if name in DIQNNS:
        return "fmnist" if "convolution" in DIQNNS[name] else "mnist"
    row = CIFAR_QRESNETS.get(name, {})
    # a norm stands in for the strategy
    return tag_of("c10", relinear=row.get("neuron") != "linear" and not row.get("rms_norm"))


def tag_of(data: str, *, relinear: bool) -> str:
    """The usual tag of weights, from the short name of their data and whether ReLinear trained
    them.

    >>> tag_of("digits", relinear=True), tag_of("digits", relinear=False)
    ('relinear_digits', 'digits')
    """
    return f"relinear_{data}" if relinear else data


def convolved(size: Sequence[int], convolution: Sequence[int]) -> tuple[int, int]:
    """Height and width of what a convolution without padding makes of an image.

    >>> convolved((28, 28), (8, 5, 3))
    (8, 8)
    """
    _, kernel, stride = convolution
    height, width = ((side - kernel) // stride + 1 for side in size)
    return height, width


def get_architecture(name: str) -> Arguments:
    """The arguments of that model.

    Raises ``ValueError`` naming near matches for a name that is not registered.

    >>> get_architecture("qresnet20")["depths"]
    (3, 3, 3)
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    near = get_close_matches(name, ARCHITECTURES, n=3)
    hint = f"near matches are {', '.join(near)}" if near else "qzoo list shows all"
    raise ValueError(f"no model is named {name!r}: {hint}")
