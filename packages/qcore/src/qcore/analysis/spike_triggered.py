"""The spike-triggered average: the mean input of each predicted class."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qcore.analysis.evaluation import evaluating, example_parameter


@dataclass(frozen=True, eq=False)
class SpikeTriggeredAverage:
    """``mean`` ``(classes, *input)`` in float64, NaN where ``count`` ``(classes,)`` is 0."""

    mean: Tensor
    count: Tensor


def spike_triggered_average(
    model: nn.Module, loader: Iterable[Tensor | Sequence[Tensor]]
) -> SpikeTriggeredAverage:
    r"""The mean of the inputs that a model assigns to each class.

    .. math:: \bar x_k = \frac{1}{|P_k|} \sum_{n \in P_k} x_n, \qquad
        P_k = \{ n : \arg\max_j f_j(x_n) = k \}

    The model decides, not the label: it is the average input that evokes the highest response from
    output neuron k. For a head inside a network, give the head as the model and its inputs, the
    features, as the loader.

    Args:
        model: a classifier with outputs ``(B, classes)``; it runs in eval mode and is left as it
            was. Batches are moved to the device of its parameters.
        loader: batches of inputs, each a tensor or a sequence that begins with the inputs.

    Shapes: mean ``(classes, *input)``, count ``(classes,)``.

    Cost: one forward pass; memory for one batch and one mean per class.

    Raises ``ValueError`` for a loader without samples, and for outputs that are not
    ``(B, classes)``.

    Source: DIQNN (arXiv 2307.13609), section 3.2 and supplement 1.2.

    >>> x = torch.tensor([[3.0, 1.0], [5.0, 1.0], [0.0, 2.0]])
    >>> average = spike_triggered_average(nn.Identity(), [x[:2], x[2:]])
    >>> average.mean
    tensor([[4., 1.],
            [0., 2.]], dtype=torch.float64)
    >>> average.count
    tensor([2, 1])
    """
    total: Tensor | None = None
    count: Tensor | None = None
    device = example_parameter(model).device
    with evaluating(model):
        for batch in loader:
            inputs = (batch if isinstance(batch, Tensor) else batch[0]).to(device)
            outputs = model(inputs)
            if outputs.shape[:-1] != inputs.shape[:1]:
                raise ValueError(
                    f"the model's output has shape {tuple(outputs.shape)}, but a batch of "
                    f"{len(inputs)} inputs needs ({len(inputs)}, classes)"
                )
            predicted = outputs.argmax(-1)
            if total is None or count is None:
                shape = (outputs.shape[-1], *inputs.shape[1:])
                total = torch.zeros(shape, dtype=torch.float64, device=device)
                count = torch.zeros(outputs.shape[-1], dtype=torch.int64, device=device)
            total.index_add_(0, predicted, inputs.double())
            count.index_add_(0, predicted, torch.ones_like(predicted))
    if total is None or count is None or not count.any():
        raise ValueError("loader has no samples: give at least one batch of inputs")
    per_class = count.view(-1, *[1] * (total.ndim - 1))
    return SpikeTriggeredAverage(total / per_class, count)
