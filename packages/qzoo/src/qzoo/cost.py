"""What a network costs, counted from its row of data: no model is built."""

from collections.abc import Sequence
from typing import Any

import qcore
from qzoo.models.architectures import get_architecture


def cost(
    name: str,
    *,
    num_classes: int = 10,
    in_chans: int = 3,
    size: int = 32,
    **arguments: Any,
) -> qcore.Cost:
    """Parameters, and multiply-adds per image, of a registered model.

    Counted are convolutions, products of quadratic neurons, and the head; not batch norms,
    activations, sums, or the squares of inputs, which all neurons of a layer share.

    Args:
        name: a registered name; ``qzoo list`` shows them.
        num_classes, in_chans: as in ``timm.create_model``.
        size: height and width of the images.
        arguments: others of :class:`qzoo.CifarQResNet` in the place of the registered ones, as in
            ``timm.create_model``.

    Raises ``ValueError`` for another name.

    >>> cost("qresnet20")
    Cost(parameters=806266, multiply_adds=120939136)
    """
    row = {**get_architecture(name), **arguments}
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
    features = channels + bool(row.get("affine"))
    if row.get("head", "linear") == "linear":
        add(num_classes, qcore.get_neuron("linear").cost(channels), 1)
    elif row["head"] == "dense":
        triangle = features * (features + 1) // 2
        add(num_classes, qcore.Cost(triangle, triangle + features), 1)
    else:
        rank, signs = row["rank"], row["rank"] * bool(row.get("signed"))
        add(num_classes, qcore.Cost(rank * features + signs, rank * (features + 1) + signs), 1)
    return qcore.Cost(parameters, multiply_adds)
