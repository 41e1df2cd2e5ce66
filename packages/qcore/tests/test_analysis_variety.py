"""The dimension of the functional variety, against the closed forms that are known."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from qcore import LowRankForm, QuadraticForm, QuadraticLinear
from qcore.analysis import functional_dimension


def dimension(model):
    return functional_dimension(model).dimension


@pytest.mark.parametrize(("n", "rank"), [(3, 1), (4, 2), (5, 3), (4, 4), (3, 5)])
@pytest.mark.parametrize("signed", [False, True], ids=["plain", "signed"])
def test_low_rank_forms_are_the_symmetric_matrices_of_that_rank(n, rank, signed):
    r = min(n, rank)
    assert dimension(LowRankForm(n, 1, rank, signed=signed)) == n * r - r * (r - 1) // 2
    assert dimension(LowRankForm(n, 3, rank, signed=signed)) == 3 * (n * r - r * (r - 1) // 2)


@pytest.mark.parametrize(("n", "out"), [(1, 1), (3, 2), (5, 1)])
def test_dense_forms_use_every_parameter(n, out):
    found = functional_dimension(QuadraticForm(n, out))
    assert found.dimension == found.parameters == out * n * (n + 1) // 2


@pytest.mark.parametrize(("n", "hidden", "m"), [(4, 2, 3), (3, 1, 5), (3, 6, 2)])
def test_deep_linear_networks_are_the_matrices_of_that_rank(n, hidden, m):
    model = nn.Sequential(nn.Linear(n, hidden, bias=False), nn.Linear(hidden, m, bias=False))
    r = min(n, hidden, m)
    assert dimension(model) == r * (n + m - r)


@pytest.mark.parametrize(("n", "hidden"), [(4, 2), (3, 2), (5, 4), (2, 5)])
def test_quadratic_activation_is_a_sum_of_squares(n, hidden):
    # y = Σ_j v_j ⟨w_j, x⟩²: again the symmetric matrices of that rank (Kileel, Trager, Bruna)
    model = nn.Sequential(
        QuadraticLinear(n, hidden, bias=False, neuron="squared_output"),
        nn.Linear(hidden, 1, bias=False),
    )
    r = min(n, hidden)
    assert dimension(model) == n * r - r * (r - 1) // 2


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_product_of_two_linear_maps_has_one_scale_to_spare(n):
    found = functional_dimension(QuadraticLinear(n, 1, neuron="product"))
    assert (found.dimension, found.parameters) == (2 * n - 1, 2 * n)


def test_what_one_quadratic_neuron_can_be():
    # (w_r x + b_r)(w_g x + b_g) + w_b x² + c in n = 4 inputs: products of two affine maps (2·5 − 1)
    # plus a diagonal and a constant, in the 15 coefficients of a quadratic
    found = functional_dimension(QuadraticLinear(4, 1))
    assert found.parameters == 15
    assert found.dimension == 14


# --- the second theorem: at one structure, the quadratic network exceeds both others ---


@pytest.mark.parametrize("widths", [(3, 2, 1), (2, 3, 1), (4, 2, 2), (2, 2, 2, 1)], ids=str)
def test_the_variety_of_a_quadratic_network_exceeds_those_of_both_others(widths):
    found = {}
    for neuron in ("linear", "squared_output", "quadratic"):
        layers = [QuadraticLinear(*pair, neuron=neuron) for pair in pairwise(widths)]
        found[neuron] = dimension(nn.Sequential(*layers))
    n, m = widths[0], widths[-1]
    assert found["linear"] <= m * (n + 1)  # affine maps, however deep
    assert found["quadratic"] > found["squared_output"] > found["linear"]


# --- how it is measured ---


def test_the_count_is_certain_where_the_singular_values_have_a_gap():
    found = functional_dimension(LowRankForm(4, 1, rank=2))
    values = found.singular_values
    assert values[0] == 1
    assert (values.diff() <= 0).all()
    assert values[found.dimension - 1] > 1e-4
    assert values[found.dimension] < 1e-13


def test_a_start_at_zero_is_left_for_a_generic_point():
    model = QuadraticLinear(3, 1, neuron="product")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert dimension(model) == 5
    assert all((parameter == 0).all() for parameter in model.parameters())


def test_frozen_parameters_do_not_count():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), LowRankForm(3, 1, rank=1))
    assert dimension(model) == 3
    model[0].requires_grad_(False)
    found = functional_dimension(model)
    assert (found.dimension, found.parameters) == (3, 3)


def test_the_seed_changes_the_point_and_not_the_dimension():
    model = LowRankForm(4, 2, rank=2)
    first, second = (functional_dimension(model, seed=seed) for seed in (0, 1))
    assert first.dimension == second.dimension == 14
    assert not torch.equal(first.singular_values, second.singular_values)
    again = functional_dimension(model)
    assert torch.equal(first.singular_values, again.singular_values)


def test_outputs_that_are_not_finite_are_refused():
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(float("inf"))
    text = "the model's outputs are not finite: give parameters of a smaller scale"
    with pytest.raises(ValueError, match=f"^{text}$"):
        functional_dimension(model)


def test_a_model_of_unknown_input_size_is_refused():
    with pytest.raises(ValueError, match="model Conv2d does not begin with a layer that has in_fe"):
        functional_dimension(nn.Conv2d(1, 1, 1))
