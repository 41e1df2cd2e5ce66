"""The degree of homogeneity of a model in its parameters."""

import math

import torch
from torch import Tensor, nn

from qcore.analysis.parametric import as_function, generic, placed, random_inputs

# Close to 1, so that the power of a deep network stays inside the number format.
_FACTORS = (0.8, 0.9, 1.1, 1.25)
_INPUTS = 16


def homogeneity_degree(
    model: nn.Module, x: Tensor | None = None, *, tolerance: float = 1e-6, seed: int = 0
) -> float:
    r"""The degree d with which the outputs grow when all trainable parameters are scaled.

    .. math:: f(x, t\theta) = t^d f(x, \theta) \quad \text{for all } t > 0

    For l stacked layers without bias, :math:`d = 2^{l+1} - 2` for :class:`qcore.LowRankForm` as in
    the paper (each layer squares its factors and its input), :math:`2^l - 1` for
    :class:`qcore.QuadraticForm`, and l for linear layers, with or without ReLU between them. A
    constant that is not scaled along, such as an offset, or a bias before a further layer, ends
    homogeneity.

    d is measured in double precision at several t, at parameters in general position: the model's
    own plus normal noise of their size, so that a bias that starts at 0 is noticed. A value within
    ``tolerance`` of a whole number is returned as that number.

    Args:
        model: any model, run in eval mode; it is not changed. Frozen parameters are constants.
        x: inputs to measure at; None draws 16 standard normal ones for a model that begins with a
            layer of known ``in_features``.
        tolerance: largest departure ``‖f(tθ) − t^d f(θ)‖ / ‖t^d f(θ)‖`` that still counts as
            homogeneous.
        seed: of the noise and of the inputs.

    Shapes: x as the model takes it, with a leading batch dimension.

    Cost: five forward passes and a double precision copy of the model.

    Raises ``ValueError`` where the model is not homogeneous (with the departure), its outputs are
    all 0 or not finite, it has no trainable parameters, or its input shape is unknown.

    Source: DIQNN (arXiv 2307.13609), definition 1 and lemma 1.

    >>> from qcore import LowRankForm, QuadraticForm
    >>> homogeneity_degree(nn.Sequential(LowRankForm(3, 4, rank=2), LowRankForm(4, 2, rank=1)))
    6.0
    >>> homogeneity_degree(nn.Sequential(QuadraticForm(3, 4), QuadraticForm(4, 2)))
    3.0
    """
    function, theta = as_function(model)
    generator = torch.Generator().manual_seed(seed)
    theta = generic(theta, generator)
    x = placed(random_inputs(model, _INPUTS, generator) if x is None else x, theta)
    with torch.no_grad():
        base = function(theta, x)
        scaled = {t: function({k: t * p for k, p in theta.items()}, x) for t in _FACTORS}
    size = base.norm().item()
    sizes = {t: outputs.norm().item() for t, outputs in scaled.items()}
    if not all(math.isfinite(s) and s > 0 for s in (size, *sizes.values())):
        raise ValueError(
            f"the model's outputs have the norm {size:g}: a degree needs outputs that are finite "
            "and not all 0; give other inputs as x="
        )
    estimates = [math.log(sizes[t] / size) / math.log(t) for t in _FACTORS]
    degree = sum(estimates) / len(estimates)
    if abs(degree - round(degree)) <= tolerance:
        degree = float(round(degree))
    departure = max(
        (outputs - t**degree * base).norm().item() / (t**degree * size)
        for t, outputs in scaled.items()
    )
    if departure > tolerance:
        raise ValueError(
            f"model {type(model).__name__} is not homogeneous in its parameters: at the best "
            f"degree, {degree:.3g}, f(tθ) departs from t^d f(θ) by {departure:.2g}, "
            f"tolerance={tolerance:g}; leave out offsets and the biases before further layers"
        )
    return degree
