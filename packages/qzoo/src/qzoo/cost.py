"""What a network costs, counted from its row of data: no model is built."""

from collections.abc import Sequence
from typing import Any

import qcore
from qzoo.architectures import DIQNNS, Arguments, convolved, get_architecture


def cost(
    name: str,
    *,
    num_classes: int = 10,
    in_chans: int | None = None,
    size: int | None = None,
    **arguments: Any,
) -> qcore.Cost:
    """Parameters, and multiply-adds per image, of a registered model.

    Counted are convolutions, products of quadratic neurons, and the head; not batch norms,
    activations, sums, or the squares and norms of inputs, which all neurons of a layer share.

    Args:
        name: a registered name; ``qzoo list`` shows them.
        num_classes, in_chans: as in ``timm.create_model``.
        size: height and width of the images; by default 32, and 28 for a DIQNN.
        arguments: others of :class:`qzoo.CifarQResNet` or :class:`qzoo.DIQNN` in the place of the
            registered ones, as in ``timm.create_model``.

    Raises ``ValueError`` for another name.

    >>> cost("qresnet20")
    Cost(parameters=806266, multiply_adds=120939136)
    >>> cost("diqnn_rank4")
    Cost(parameters=31360, multiply_adds=31400)
    """
    row = {**get_architecture(name), **arguments}
    if name in DIQNNS:
        return _of_diqnn(row, num_classes, in_chans or 1, size or 28)
    return _of_cifar_qresnet(row, num_classes, in_chans or 3, size or 32)


def rounded(count: int) -> str:
    """A number of multiply-adds in a word.

    >>> rounded(120_939_136), rounded(31_400)
    ('121 M', '31 k')
    """
    return f"{count / 1e6:,.0f} M" if count >= 10**6 else f"{count / 1e3:,.0f} k"


def _of_diqnn(row: Arguments, num_classes: int, in_chans: int, size: int) -> qcore.Cost:
    channels, height, width, before = in_chans, size, size, qcore.Cost(0, 0)
    if (convolution := row.get("convolution")) is not None:
        channels, kernel, _ = convolution
        height, width = convolved((size, size), convolution)
        of_one = qcore.get_neuron("linear").cost(kernel**2 * in_chans)
        multiply_adds = channels * of_one.multiply_adds * height * width
        before = qcore.Cost(channels * of_one.parameters, multiply_adds)
    head = _of_head(row, channels * height * width, num_classes)
    return qcore.Cost(
        before.parameters + head.parameters, before.multiply_adds + head.multiply_adds
    )


def _of_head(row: Arguments, channels: int, num_classes: int) -> qcore.Cost:
    features = channels + bool(row.get("affine"))
    if row.get("head", "linear") == "linear":
        of_one = qcore.get_neuron("linear").cost(channels)
    elif row["head"] == "dense":
        triangle = features * (features + 1) // 2
        of_one = qcore.Cost(triangle, triangle + features)
    else:
        rank, signs = row["rank"], row["rank"] * bool(row.get("signed"))
        of_one = qcore.Cost(rank * features + signs, rank * (features + 1) + signs)
    return qcore.Cost(*(num_classes * count for count in of_one))


def _of_cifar_qresnet(row: Arguments, num_classes: int, in_chans: int, size: int) -> qcore.Cost:
    widths: Sequence[int] = row["widths"]
    neuron = qcore.get_neuron(row.get("neuron", "quadratic"))
    if not row.get("bias", True):
        neuron = neuron.without_bias()
    parameters = multiply_adds = 0

    def add(outputs: int, of_one: qcore.Cost, pixels: int) -> None:
        nonlocal parameters, multiply_adds
        parameters += outputs * of_one.parameters
        multiply_adds += outputs * of_one.multiply_adds * pixels

    linear = qcore.get_neuron("linear").without_bias()
    norm = qcore.Cost(2, 0)
    channels = widths[0]
    add(channels, linear.cost(9 * in_chans), size**2)
    add(channels, norm, 0)
    for i, (depth, width) in enumerate(zip(row["depths"], widths, strict=True)):
        if i:
            size = -(-size // 2)
        for _ in range(depth):
            if channels != width and row["shortcut"] == "B":
                add(width, linear.cost(channels), size**2)
                add(width, norm, 0)
            for inputs in (channels, width):
                add(width, neuron.cost(9 * inputs, row.get("neuron_rank")), size**2)
                add(width, norm, 0)
            parameters += row.get("residual") == "rezero"
            channels = width
    head = _of_head(row, channels, num_classes)
    return qcore.Cost(parameters + head.parameters, multiply_adds + head.multiply_adds)
