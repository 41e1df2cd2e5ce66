"""The classifier that a table's entry describes."""

import torch
from torch import nn

from qbench.table import ModelSpec
from qcore import LowRankForm, QuadraticForm


def build_classifier(
    spec: ModelSpec, features: int, classes: int, init_scale: float, seed: int
) -> nn.Module:
    """A layer from ``features`` to ``classes``, its parameters drawn under ``seed`` alone.

    The global random state is left as it was. ``init_scale`` scales the outputs at the start: for
    the linear layer it multiplies PyTorch's initial weights.

    >>> build_classifier(ModelSpec(kind="low_rank", rank=2), 4, 3, 1.0, seed=0)
    LowRankForm(in_features=4, out_features=3, rank=2, signed=False, affine=False)
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = _build(spec, features, classes, init_scale)
    with torch.no_grad():
        for name, values in spec.start.items():
            parameter = model.get_parameter(name)
            parameter.copy_(torch.tensor(values, dtype=parameter.dtype))
    return model


def _build(spec: ModelSpec, features: int, classes: int, init_scale: float) -> nn.Module:
    if spec.kind == "linear":
        linear = nn.Linear(features, classes, bias=False)
        with torch.no_grad():
            linear.weight.mul_(init_scale)
        return linear
    if spec.rank is None:
        return QuadraticForm(features, classes, affine=spec.affine, init_scale=init_scale)
    return LowRankForm(features, classes, spec.rank, affine=spec.affine, init_scale=init_scale)
