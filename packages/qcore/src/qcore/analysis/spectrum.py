"""The spectrum of quadratic forms, and how it relates to the inputs that excite them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qcore.analysis.spike_triggered import SpikeTriggeredAverage
from qcore.forms import LowRankForm, QuadraticForm


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues and eigenvectors of ``out`` forms over n inputs, largest magnitude first.

    ``values`` ``(out, n)``; ``vectors`` ``(out, n, n)`` with the eigenvectors as rows:
    ``vectors[k, i]`` belongs to ``values[k, i]``. Each has length 1, and its entry of largest
    magnitude is positive.
    """

    values: Tensor
    vectors: Tensor


def spectrum(head: QuadraticForm | LowRankForm) -> Spectrum:
    r"""The eigenvalues and eigenvectors of each form's symmetric matrix, sorted by magnitude.

    .. math:: A_k = \sum_i \lambda_{k,i}\, a_{k,i} a_{k,i}^\top, \qquad
        |\lambda_{k,1}| \ge |\lambda_{k,2}| \ge \dots

    Args:
        head: a :class:`qcore.QuadraticForm` or :class:`qcore.LowRankForm`. An affine one has
            n = ``in_features + 1``: the appended constant is the last coordinate.

    Shapes: values ``(out, n)``, vectors ``(out, n, n)``, both float64.

    Cost: ``O(out·n³)`` operations and ``out·n²`` numbers, for a low-rank form as well.

    Raises ``TypeError`` for another module.

    Source: DIQNN (arXiv 2307.13609), eq. 2 and figure 2.

    >>> head = LowRankForm(3, 1, rank=2, signed=True)
    >>> with torch.no_grad():
    ...     _ = head.factors.copy_(torch.tensor([[[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]]))
    >>> spectrum(head).values
    tensor([[-4.,  1.,  0.]], dtype=torch.float64)
    >>> spectrum(head).vectors[0, 0]
    tensor([0., 1., 0.], dtype=torch.float64)
    """
    _check_form(head)
    values, columns = torch.linalg.eigh(head.matrix.detach().double())
    order = values.abs().argsort(dim=-1, descending=True, stable=True)  # (out, n)
    values = values.gather(-1, order)
    vectors = columns.mT.gather(1, order.unsqueeze(-1).expand_as(columns))  # (out, n, n), rows
    largest = vectors.gather(-1, vectors.abs().argmax(-1, keepdim=True))
    return Spectrum(values, torch.where(largest < 0, -vectors, vectors))


def eigenvector_similarity(
    head: QuadraticForm | LowRankForm, average: SpikeTriggeredAverage
) -> Tensor:
    r"""How much each form's leading eigenvector looks like each class's spike-triggered average.

    .. math:: C_{kj} = \frac{|\langle a_{k,1}, \bar x_j \rangle|}{\lVert a_{k,1} \rVert
        \lVert \bar x_j \rVert}

    The absolute value is taken because an eigenvector has no sign. The paper compares both as
    pictures, class by class: the diagonal. The other entries are the control: averages of inputs
    with a common mean resemble each other, so a diagonal is telling where it exceeds its row.

    Args:
        head: the forms, one per class. The constant of an affine form is no input and is left out
            of its eigenvectors.
        average: what :func:`spike_triggered_average` found for the inputs of this head.

    Shapes: ``(out, classes)``, float64, in [0, 1]; NaN for classes that were never predicted.

    Cost: that of :func:`spectrum`.

    Raises ``TypeError`` for a module that is no form, ``ValueError`` for averages of another size.

    Source: DIQNN (arXiv 2307.13609), section 3.2 and supplement 1.2.

    >>> head = QuadraticForm(2, 2)
    >>> head.matrix = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, -2.0]]])
    >>> average = SpikeTriggeredAverage(torch.tensor([[3.0, 0.0], [3.0, 4.0]]), torch.ones(2))
    >>> eigenvector_similarity(head, average)
    tensor([[1.0000, 0.6000],
            [0.0000, 0.8000]], dtype=torch.float64)
    """
    _check_form(head)
    means = average.mean.flatten(1).double()  # (classes, n)
    if means.shape[1] != head.in_features:
        raise ValueError(
            f"average has inputs of {means.shape[1]} numbers, but the head takes "
            f"in_features={head.in_features}; average over the inputs of the head itself"
        )
    leading = spectrum(head).vectors[:, 0, : head.in_features].to(means.device)
    unit = leading / leading.norm(dim=1, keepdim=True)
    return (unit @ (means / means.norm(dim=1, keepdim=True)).mT).abs()


def _check_form(head: object) -> None:
    if not isinstance(head, QuadraticForm | LowRankForm):
        raise TypeError(
            f"head is a {type(head).__name__}, but a spectrum needs a QuadraticForm or "
            'LowRankForm; the form of a bilinear layer is layer["q"]'
        )
