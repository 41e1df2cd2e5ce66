"""First and second derivatives of every neuron and form, against finite differences."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from qcore import CATALOGUE, LowRankForm, QuadraticConv2d, QuadraticForm, QuadraticLinear

VECTORS, IMAGES = (2, 3), (1, 2, 3, 3)
CASES = {
    "form": (QuadraticForm, (3, 2), {}, VECTORS),
    "form-affine": (QuadraticForm, (3, 2), {"affine": True}, VECTORS),
    "lowrank": (LowRankForm, (3, 2), {"rank": 2}, VECTORS),
    "lowrank-signed": (LowRankForm, (3, 2), {"rank": 2, "signed": True}, VECTORS),
    "lowrank-affine": (LowRankForm, (3, 2), {"rank": 1, "affine": True}, VECTORS),
    "lowrank-signed-affine": (
        LowRankForm,
        (3, 2),
        {"rank": 2, "signed": True, "affine": True},
        VECTORS,
    ),
    "linear-bilinear-rank": (QuadraticLinear, (3, 2), {"neuron": "bilinear", "rank": 2}, VECTORS),
    "conv-bilinear-rank": (QuadraticConv2d, (2, 2, 2), {"neuron": "bilinear", "rank": 2}, IMAGES),
    **{f"linear-{k}": (QuadraticLinear, (3, 2), {"neuron": k}, VECTORS) for k in CATALOGUE},
    **{f"conv-{k}": (QuadraticConv2d, (2, 2, 2), {"neuron": k}, IMAGES) for k in CATALOGUE},
}


def as_function(layer):
    """The layer as a function of its input and its parameters."""
    names = [name for name, _ in layer.named_parameters()]

    def function(x, *values):
        return functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    return function


@pytest.mark.parametrize("case", CASES)
def test_first_and_second_derivatives(case):
    constructor, sizes, options, shape = CASES[case]
    layer = constructor(*sizes, **options, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    inputs = (x, *layer.parameters())
    assert gradcheck(as_function(layer), inputs)
    assert gradgradcheck(as_function(layer), inputs, fast_mode=True)


@pytest.mark.parametrize("affine", [False, True], ids=["pure", "affine"])
def test_derivatives_of_a_form_large_enough_for_row_blocks(affine):
    layer = QuadraticForm(34, 1, affine=affine, dtype=torch.float64)
    x = torch.randn(2, 34, dtype=torch.float64, requires_grad=True)
    inputs = (x, *layer.parameters())
    assert gradcheck(as_function(layer), inputs, fast_mode=True)
    assert gradgradcheck(as_function(layer), inputs, fast_mode=True)
