"""The dimension of the functional variety: how many directions a network's function can move in."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qcore.analysis.parametric import (
    Function,
    Parameters,
    as_function,
    flatten,
    generic,
    placed,
    random_inputs,
)

_EXTRA = 8  # values of the function beyond the number of parameters
_DRAWS = 3


@dataclass(frozen=True, eq=False)
class FunctionalDimension:
    """``dimension``, beside the number of trainable ``parameters`` and the singular values.

    ``singular_values`` descend from 1; those above the tolerance are counted. A wide gap after the
    counted ones says that the count can be trusted.
    """

    dimension: int
    parameters: int
    singular_values: Tensor


def functional_dimension(
    model: nn.Module, *, tolerance: float = 1e-10, seed: int = 0
) -> FunctionalDimension:
    r"""The generic rank of the map from parameters to the function, by a numerical Jacobian.

    .. math:: \dim = \max_\theta \operatorname{rank}
        \frac{\partial (f(x_1, \theta), \dots, f(x_N, \theta))}{\partial \theta}

    For a polynomial network (identity or square as activation) this is the dimension of its
    functional variety: the closure of the set of polynomials that it can be. What is missing to the
    number of parameters are symmetries, such as a factor moved from one layer to the next. With
    other activations, such as ReLU, it is the dimension near a random θ and on random inputs.

    The Jacobian is computed in float64 at three draws of θ in general position (the model's own
    parameters plus normal noise of their size) and as many standard normal inputs as there are
    unknowns, and some more; rows and columns are scaled to length 1, which changes no rank; the
    largest rank of the three counts.

    Args:
        model: a network that begins with a layer of known ``in_features``; it is not changed.
        tolerance: singular values up to this fraction of the largest one count as 0.
        seed: of parameters and inputs.

    Shapes: the model maps ``(B, in_features)`` to ``(B, *outputs)``.

    Cost: three Jacobians of P × P numbers and their singular values, ``O(P³)``, for P parameters.

    Raises ``ValueError`` for a model without trainable parameters or of unknown input size, and for
    outputs that are not finite.

    Source: the theorem from algebraic geometry of "On Expressivity and Trainability of Quadratic
    Networks" (arXiv 2110.06081); the measure is that of Kileel, Trager and Bruna, "On the
    Expressive Power of Deep Polynomial Neural Networks".

    >>> from qcore import LowRankForm
    >>> found = functional_dimension(LowRankForm(4, 1, rank=2))  # 4·2 less one rotation
    >>> found.dimension, found.parameters
    (7, 8)
    """
    function, theta = as_function(model)
    generator = torch.Generator().manual_seed(seed)
    parameters = sum(value.numel() for value in theta.values())
    spectra = []
    for _ in range(_DRAWS):
        point = generic(theta, generator)
        x = placed(random_inputs(model, parameters + _EXTRA, generator), theta)
        spectra.append(_singular_values(_jacobian(function, point, x)))
    ranks = [int((values > tolerance).sum()) for values in spectra]
    dimension = max(ranks)
    return FunctionalDimension(dimension, parameters, spectra[ranks.index(dimension)])


def _jacobian(function: Function, theta: Parameters, x: Tensor) -> Tensor:
    """All outputs by all parameters: ``(N·outputs, parameters)``."""
    with torch.no_grad():
        outputs = function(theta, x)
    if not outputs.isfinite().all():
        raise ValueError("the model's outputs are not finite: give parameters of a smaller scale")
    jacobian = torch.func.jacrev(lambda theta: function(theta, x))(theta)
    return flatten(jacobian, batch_dims=outputs.ndim).flatten(0, -2).detach()


def _singular_values(matrix: Tensor) -> Tensor:
    """Those of the matrix with rows, then columns, of length 1; relative to the largest."""
    tiny = torch.finfo(matrix.dtype).tiny  # a zero row or column stays as it is
    matrix = matrix / matrix.norm(dim=1, keepdim=True).clamp(min=tiny)
    matrix = matrix / matrix.norm(dim=0, keepdim=True).clamp(min=tiny)
    values = torch.linalg.svdvals(matrix)
    return values / values[0].clamp(min=tiny)
