"""Exact polynomials, and the pieces of one-dimensional networks."""

import math
import re
from collections import Counter
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qcore import LowRankForm, QuadraticConv1d, QuadraticForm, QuadraticLinear
from qcore.analysis import spline_pieces
from qcore.analysis.polynomials import Polynomial

DOUBLE = torch.float64
seeded = settings(deadline=None, derandomize=True, max_examples=100)
variable = Polynomial((0, 1))


# --- polynomials ---


def polynomial(coefficients):
    """By Horner's rule, so that sums and products are used."""
    total = Polynomial()
    for c in reversed(coefficients):
        total = total * variable + Polynomial.constant(c)
    return total


def value(coefficients, x):
    return sum(Fraction(c) * x**i for i, c in enumerate(coefficients))


def sign(number):
    return (number > 0) - (number < 0)


some_coefficients = st.lists(st.floats(-9, 9), max_size=4)


@seeded
@given(p=some_coefficients, q=some_coefficients, numerator=st.integers(-9, 9))
def test_sums_products_and_signs_are_exact(p, q, numerator):
    x = Fraction(numerator, 4)
    a, b = polynomial(p), polynomial(q)
    assert (a + b).sign(numerator, 2) == sign(value(p, x) + value(q, x))
    assert (a * b + -a).sign(numerator, 2) == sign(value(p, x) * value(q, x) - value(p, x))
    assert (a + b).equals(b + a)
    assert (a * a + -(b * b)).equals((a + b) * (a + -b))
    assert a.equals(b) == (a + -b).is_zero
    trimmed = list(p)
    while trimmed and trimmed[-1] == 0:
        trimmed.pop()
    assert a.to_floats() == trimmed
    assert a.degree == max(len(trimmed) - 1, 0)


@seeded
@given(roots=st.lists(st.integers(-12, 12), max_size=7))
def test_signs_change_at_the_roots_of_odd_multiplicity(roots):
    product = polynomial([1.0])
    for root in roots:
        product = product * polynomial([-root / 4, 1.0])
    odd = sorted(root for root, times in Counter(roots).items() if times % 2)
    assert product.sign_changes(-13 << 50, 13 << 50, 52) == [root << 50 for root in odd]
    inside = [root << 50 for root in odd if -5 < root < 7]  # the ends are not inside
    assert product.sign_changes(-5 << 50, 7 << 50, 52) == inside


def test_a_root_between_two_numbers_is_the_lower_one():
    root = polynomial([-2.0, 0.0, 1.0])  # x² = 2
    for shift in (0, 10, 60, 200):
        assert root.sign_changes(0, 2 << shift, shift) == [math.isqrt(2 << 2 * shift)]


def test_exact_zeros_inside_and_at_the_ends():
    cube = polynomial([0.0, 0.0, 0.0, 1.0])
    assert cube.sign_changes(-4, 4, 1) == [0]
    assert cube.sign_changes(0, 4, 1) == cube.sign_changes(-4, 0, 1) == []
    assert (cube * variable).sign_changes(-4, 4, 1) == []
    assert Polynomial().sign_changes(-4, 4, 1) == polynomial([3.0]).sign_changes(-4, 4, 1) == []


# --- pieces of networks ---


def network(neuron, widths, output="linear"):
    """Hidden layers of one neuron with ReLU, on one input, and a linear output."""
    sizes = [1, *widths]
    layers = []
    for i in range(len(widths)):
        layers += [QuadraticLinear(sizes[i], sizes[i + 1], neuron=neuron, dtype=DOUBLE), nn.ReLU()]
    return nn.Sequential(*layers, QuadraticLinear(sizes[-1], 1, neuron=output, dtype=DOUBLE))


STRUCTURES = [
    ("linear", [6]),
    ("linear", [5, 4, 3]),
    ("squared_output", [4, 4]),
    ("compact", [5, 4]),
    ("quadratic", [5, 4]),
    ("qres", [4, 4]),
    ("product", [4, 3]),
    ("product_linear", [4, 3]),
    ("squared_input", [3, 3]),
    ("bilinear", [4, 3]),
]


@pytest.mark.parametrize(("neuron", "widths"), STRUCTURES, ids=str)
@pytest.mark.parametrize("output", ["linear", "quadratic"])
def test_the_pieces_are_the_network(neuron, widths, output):
    model = network(neuron, widths, output)
    spline = spline_pieces(model, (-3.0, 3.0))
    x = torch.linspace(-3, 3, 2001, dtype=DOUBLE)
    piece = torch.bucketize(x, spline.breakpoints)
    powers = x.unsqueeze(-1) ** torch.arange(spline.coefficients.shape[-1])
    built = (spline.coefficients[piece, 0] * powers).sum(-1)
    torch.testing.assert_close(built, model(x.unsqueeze(-1)).squeeze(-1).detach())
    assert spline.degrees.max() <= 2 ** (len(widths) * (neuron != "linear") + (output != "linear"))


@pytest.mark.parametrize(("neuron", "widths"), STRUCTURES, ids=str)
def test_breakpoints_are_where_the_pattern_of_active_units_changes(neuron, widths):
    model = network(neuron, widths)
    spline = spline_pieces(model, (-3.0, 3.0))

    def pattern(x):
        active, values = [], x.unsqueeze(-1)
        for layer in model:
            values = layer(values)
            if isinstance(layer, nn.ReLU):
                active.append(values > 0)
        return torch.cat(active, dim=-1)

    left, right = (pattern(spline.breakpoints + step) for step in (-1e-6, 1e-6))
    assert (left != right).any(-1).all()
    assert (spline.breakpoints.diff() > 0).all()
    assert spline.count == len(spline.breakpoints) + 1 == len(spline.coefficients)


@seeded
@given(seed=st.integers(0, 10_000), width=st.integers(1, 8))
def test_a_conventional_layer_has_a_piece_more_than_its_kinks(seed, width):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, 2))
    with torch.no_grad():
        kinks = -model[0].bias / model[0].weight[:, 0]
    spline = spline_pieces(model, (-2.0, 2.0))
    assert spline.count == 1 + int(((kinks > -2) & (kinks < 2)).sum())
    assert spline.degrees.max() <= 1
    inside = kinks[(kinks > -2) & (kinks < 2)].double().sort().values
    torch.testing.assert_close(spline.breakpoints, inside, rtol=1e-5, atol=1e-6)


def test_kinks_of_several_units_count_once():
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [2.0], [-3.0], [0.5]]))
        model[0].bias.copy_(torch.tensor([-0.3, -0.6, 0.9, 0.25]))
        model[0].bias[1:3] = model[0].bias[0] * torch.tensor([2.0, -3.0])
        model[2].weight.fill_(1.0)
    exact = -model[0].bias[1].double() / 2
    found = spline_pieces(model).breakpoints
    assert found.tolist() == [-0.5, pytest.approx(exact.item(), abs=1e-7)]


def test_kinks_that_cancel_do_not_count():
    # relu(z) − relu(−z) = z
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.7], [-0.7]]))
        model[0].bias.copy_(torch.tensor([0.1, -0.1]))
        model[2].weight.copy_(torch.tensor([[1.3, -1.3]]))
    assert spline_pieces(model).count == 1
    with torch.no_grad():
        model[2].weight[0, 1] = torch.nextafter(model[2].weight[0, 1], torch.tensor(0.0))
    assert spline_pieces(model).count == 2  # a difference in the last bit is one


def test_a_unit_that_touches_zero_makes_no_breakpoint():
    model = nn.Sequential(QuadraticLinear(1, 1, neuron="compact"), nn.ReLU())
    with torch.no_grad():  # (x − 1/2)²
        for parameter, number in zip(model.parameters(), (-1.0, 0.0, 1.0, 0.25), strict=True):
            parameter.fill_(number)
    spline = spline_pieces(model)
    assert spline.count == 1
    assert spline.coefficients.tolist() == [[[0.25, -1.0, 1.0]]]
    with torch.no_grad():
        model[0]["b"].bias.sub_(2.0**-20)
    assert spline_pieces(model).breakpoints.tolist() == [0.5 - 2.0**-10, 0.5 + 2.0**-10]


def test_layers_without_catalogue_forms_and_nesting():
    torch.manual_seed(1)
    low, dense = LowRankForm(3, 3, 2, signed=True, affine=True), QuadraticForm(3, 2, affine=True)
    inner = nn.Sequential(nn.Linear(1, 3), nn.Identity())
    model = nn.Sequential(inner, low, nn.ReLU(), dense).double()
    spline = spline_pieces(model, (-2.0, 2.0))
    x = torch.linspace(-2, 2, 101, dtype=DOUBLE)
    powers = x.unsqueeze(-1) ** torch.arange(spline.coefficients.shape[-1])
    rows = spline.coefficients[torch.bucketize(x, spline.breakpoints)]  # (101, 2, 5)
    built = (rows * powers.unsqueeze(1)).sum(-1)
    torch.testing.assert_close(built, model(x.unsqueeze(-1)).detach())
    assert spline.degrees.max() == 4


# --- the first theorem: what the spline of each kind of network can be ---


def test_quadratic_units_bend_twice_where_conventional_ones_bend_once():
    width = 5
    quadratic = network("compact", [width])
    with torch.no_grad():  # x² > (k / 8)², k = 1 … 5
        quadratic[0]["r"].weight.zero_()
        quadratic[0]["r"].bias.zero_()
        quadratic[0]["b"].weight.fill_(1.0)
        quadratic[0]["b"].bias.copy_(-((torch.arange(1, width + 1) / 8) ** 2))
    spline = spline_pieces(quadratic)
    assert spline.count == 2 * width + 1  # a conventional layer has width + 1 at most
    assert spline.breakpoints.tolist() == [k / 8 for k in range(-width, width + 1) if k]


def kinds(widths):
    """Pieces and highest degree for each kind of network of one structure, over 20 draws."""
    found = {}
    for neuron in ("linear", "squared_output", "quadratic"):
        torch.manual_seed(0)
        splines = [spline_pieces(network(neuron, widths), (-6.0, 6.0)) for _ in range(20)]
        pieces = [spline.count for spline in splines]
        found[neuron] = sum(pieces) / 20, max(int(spline.degrees.max()) for spline in splines)
    return found


@pytest.mark.parametrize("widths", [[6, 6], [5, 5, 5]], ids=str)
def test_conventional_networks_lack_degree_squared_ones_pieces_and_quadratic_ones_neither(widths):
    found = kinds(widths)
    depth = len(widths)
    assert found["linear"][1] == 1
    assert found["squared_output"] == (1, 2**depth)  # squares are never negative: one polynomial
    assert found["quadratic"][1] == 2**depth
    assert found["quadratic"][0] > found["linear"][0] > 2


# --- errors ---


@pytest.mark.parametrize("interval", [(1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (math.nan, 1.0)])
def test_bad_intervals_are_refused(interval):
    text = f"interval={interval} is not allowed: give two finite ends, low < high"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        spline_pieces(nn.Linear(1, 1), interval)


@pytest.mark.parametrize(
    ("layer", "name"),
    [(nn.Tanh(), "Tanh"), (QuadraticConv1d(1, 2, 1), "Conv1d")],
    ids=["Tanh", "QuadraticConv1d"],
)
def test_unknown_layers_are_refused(layer, name):
    text = (
        f"{name} is no layer whose spline is known; allowed are nn.Sequential of nn.Linear, "
        "Quadratic, QuadraticForm, LowRankForm, nn.ReLU and nn.Identity"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        spline_pieces(nn.Sequential(nn.Linear(1, 1), layer))


def test_more_than_one_input_is_refused():
    text = (
        "a layer has in_features=2, but its input has 1; the model must begin with in_features=1 "
        "and its layers must fit each other"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        spline_pieces(nn.Linear(2, 1))


def test_parameters_that_are_not_finite_are_refused():
    model = nn.Sequential(nn.Linear(1, 1))
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    text = "parameter '0.weight' is not finite: no polynomial has such numbers"
    with pytest.raises(ValueError, match=f"^{text}$"):
        spline_pieces(model)
