"""What a network costs, counted from its row of data: no model is built."""

from collections.abc import Sequence

import qcore
from qzoo.models.architectures import get_architecture


def cost(name: str, *, num_classes: int = 10, in_chans: int = 3, size: int = 32) -> qcore.Cost:
    """Parameters, and multiply-adds per image, of a registered model.

    Counted are convolutions, products of quadratic neurons, and the head; not batch norms,
    activations, sums, or the squares of inputs, which all neurons of a layer share.

    Args:
        name: a registered name; ``qzoo list`` shows them.
        num_classes, in_chans: as in ``timm.create_model``.
        size: height and width of the images.

    Raises ``ValueError`` for another name.

    >>> cost("qresnet20")
    Cost(parameters=806266, multiply_adds=120939136)
    """
    row = get_architecture(name)
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
                add(width, neuron.cost(9 * inputs), size**2)
                add(width, norm, 0)
            parameters += row.get("residual") == "rezero"
            channels = width
    if row.get("head", "linear") == "linear":
        add(num_classes, qcore.get_neuron("linear").cost(channels), 1)
    elif row["head"] == "dense":
        triangle = channels * (channels + 1) // 2
        add(num_classes, qcore.Cost(triangle, triangle + channels), 1)
    else:
        rank = row["rank"]
        add(num_classes, qcore.Cost(rank * channels, rank * (channels + 1)), 1)
    return qcore.Cost(parameters, multiply_adds)
