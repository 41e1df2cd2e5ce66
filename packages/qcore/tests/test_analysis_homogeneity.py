"""The degree of homogeneity, measured: lemma 1 of DIQNN and what lies around it."""

import copy
import math
import re

import pytest
import torch
from torch import nn

from qcore import LowRankForm, QuadraticConv2d, QuadraticForm, QuadraticLinear
from qcore.analysis import homogeneity_degree

SIZES = [5, 4, 3, 4, 3]


def stack(build, layers):
    return nn.Sequential(*(build(SIZES[i], SIZES[i + 1]) for i in range(layers)))


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("build", "degree"),
    [
        (lambda i, o: LowRankForm(i, o, rank=2), lambda n: 2 ** (n + 1) - 2),
        (lambda i, o: QuadraticForm(i, o), lambda n: 2**n - 1),
        # factors twice and signs once: d = 2 d + 3
        (lambda i, o: LowRankForm(i, o, rank=2, signed=True), lambda n: 3 * (2**n - 1)),
        (lambda i, o: nn.Sequential(nn.Linear(i, o, bias=False), nn.ReLU()), lambda n: n),
        (lambda i, o: QuadraticLinear(i, o, neuron="product"), lambda n: 2 ** (n + 1) - 2),
        (lambda i, o: QuadraticLinear(i, o, neuron="squared_input"), lambda n: 2**n - 1),
    ],
    ids=["low_rank", "dense", "low_rank_signed", "linear", "product", "squared_input"],
)
def test_the_degree_of_stacked_layers(build, degree, layers):
    assert homogeneity_degree(stack(build, layers)) == degree(layers)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_eulers_identity_holds_with_the_degree(layers):
    # ⟨∂_θ Φ_i, θ⟩ = L Φ_i, the second half of lemma 1
    model = stack(lambda i, o: LowRankForm(i, o, rank=2, dtype=torch.float64), layers)
    output = model(torch.randn(5, dtype=torch.float64))[0]
    gradients = torch.autograd.grad(output, list(model.parameters()))
    pairs = zip(gradients, model.parameters(), strict=True)
    euler = sum((g * p).sum() for g, p in pairs)
    torch.testing.assert_close(euler, homogeneity_degree(model) * output)


def test_a_whole_convolutional_network_with_its_inputs():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), LowRankForm(64, 3, rank=1)
    )
    assert homogeneity_degree(model, torch.randn(5, 3, 6, 6)) == 4


def test_frozen_parameters_are_constants():
    model = stack(lambda i, o: LowRankForm(i, o, rank=2), 2)
    model[0].requires_grad_(False)
    assert homogeneity_degree(model) == 2
    model.requires_grad_(False)
    text = "model Sequential has no trainable parameters; undo requires_grad_(False) for those"
    with pytest.raises(ValueError, match=re.escape(text)):
        homogeneity_degree(model)


def test_a_single_affine_layer_is_homogeneous_and_two_are_not():
    assert homogeneity_degree(QuadraticForm(4, 3, affine=True)) == 1
    assert homogeneity_degree(nn.Linear(4, 3)) == 1
    two = stack(lambda i, o: QuadraticForm(i, o, affine=True), 2)
    text = r"^model Sequential is not homogeneous in its parameters: at the best degree, .*, "
    with pytest.raises(ValueError, match=text + r"f\(tθ\) departs from t\^d f\(θ\) by "):
        homogeneity_degree(two)


def test_a_bias_that_starts_at_zero_is_noticed():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].bias.zero_()
    with pytest.raises(ValueError, match="is not homogeneous"):
        homogeneity_degree(model)


@pytest.mark.parametrize("neuron", ["quadratic", "qres", "compact", "bilinear"])
def test_neurons_whose_terms_have_different_degrees(neuron):
    model = QuadraticLinear(4, 3, neuron=neuron)
    if neuron in ("compact", "bilinear"):  # every term is linear in the parameters
        assert homogeneity_degree(model) == 1
    else:
        with pytest.raises(ValueError, match="tolerance=1e-06; leave out offsets and the biases"):
            homogeneity_degree(model)


def test_the_degree_may_be_broken():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2, bias=False)

        def forward(self, x):
            return self.linear(x).abs().sqrt()

    assert homogeneity_degree(Root()) == pytest.approx(0.5, abs=1e-12)


def test_the_model_is_not_changed():
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Dropout(0.5), LowRankForm(3, 2, rank=1))
    before = copy.deepcopy(model.state_dict())
    assert homogeneity_degree(model) == 4  # dropout is off: eval mode
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.dtype == torch.float32 and p.grad is None for p in model.parameters())


def test_unknown_inputs_and_zero_outputs_are_refused():
    convolution = QuadraticConv2d(3, 4, 3, neuron="product")
    text = (
        "model QuadraticConv2d does not begin with a layer that has in_features; give inputs as x="
    )
    with pytest.raises(ValueError, match=f"^{text}$"):
        homogeneity_degree(convolution)
    assert homogeneity_degree(convolution, torch.randn(2, 3, 5, 5)) == 2
    with pytest.raises(ValueError, match=r"^the model's outputs have the norm 0: a degree needs"):
        homogeneity_degree(convolution, torch.zeros(2, 3, 5, 5))
    with pytest.raises(ValueError, match=r"^the model's outputs have the norm nan: a degree needs"):
        homogeneity_degree(convolution, torch.full((2, 3, 5, 5), math.nan))
