"""The layers: written-out formulas, shapes, errors, and what torch expects of a module."""

import math
import re
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qcore import (
    CATALOGUE,
    Branch,
    LowRankForm,
    Neuron,
    Quadratic,
    QuadraticConv2d,
    QuadraticConvTranspose2d,
    QuadraticForm,
    QuadraticLinear,
)
from qcore.convolutions import PatchForm
from qcore.layers import Constant

DOUBLE = torch.float64
# Every neuron, and bilinear once more with low-rank forms.
VARIANTS = {name: {"neuron": name} for name in CATALOGUE} | {
    "bilinear-rank1": {"neuron": "bilinear", "rank": 1},
    "bilinear-rank3": {"neuron": "bilinear", "rank": 3},
}
every_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
with_and_without_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
ignore_zero_elements = pytest.mark.filterwarnings(
    "ignore:Initializing zero-element tensors is a no-op:UserWarning"
)
ignore_script_is_deprecated = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:FutureWarning",
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning",
)


def randomize(layer):
    """Random values in every parameter, those that start at 0 included."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


class Reference:
    """Each formula written out with Python numbers, for one output and one vector of inputs."""

    def __init__(self, layer):
        self.weights, self.biases, self.matrices = {}, {}, {}
        for letter, branch in layer.items():
            if isinstance(branch, PatchForm):
                branch = branch.form
            if isinstance(branch, QuadraticForm | LowRankForm):
                self.matrices[letter] = branch.matrix.tolist()  # test_forms.py checks .matrix
                continue
            if getattr(branch, "weight", None) is not None:
                self.weights[letter] = branch.weight.flatten(1).tolist()
            if branch.bias is not None:
                self.biases[letter] = branch.bias.tolist()

    def bias(self, letter, k):
        return self.biases[letter][k] if letter in self.biases else 0.0

    def linear(self, letter, k, x):
        total = self.bias(letter, k)
        for j in range(len(x)):
            total += self.weights[letter][k][j] * x[j]
        return total

    def form(self, letter, k, x):
        total = 0.0
        for i, j in product(range(len(x)), repeat=2):
            total += x[i] * self.matrices[letter][k][i][j] * x[j]
        return total

    def quadratic(self, k, x):
        r, g = self.linear("r", k, x), 1.0 + self.linear("g", k, x)
        return r * g + self.linear("b", k, [v * v for v in x])

    def compact(self, k, x):
        return self.linear("r", k, x) + self.linear("b", k, [v * v for v in x])

    def product(self, k, x):
        return self.linear("r", k, x) * self.linear("g", k, x)

    def product_linear(self, k, x):
        return self.linear("r", k, x) * self.linear("g", k, x) + self.linear("l", k, x)

    def qres(self, k, x):
        r = self.linear("r", k, x)
        return r * self.linear("g", k, x) + r + self.bias("c", k)

    def squared_output(self, k, x):
        return self.linear("r", k, x) ** 2

    def squared_input(self, k, x):
        return self.linear("b", k, [v * v for v in x])

    def bilinear(self, k, x):
        return self.form("q", k, x) + self.linear("l", k, x)

    def linear_neuron(self, k, x):
        return self.linear("r", k, x)

    def formula(self, neuron):
        return self.linear_neuron if neuron == "linear" else getattr(self, neuron)


@every_variant
@with_and_without_bias
def test_linear_layer_is_its_formula_written_out(options, bias):
    layer = randomize(QuadraticLinear(4, 3, bias, **options, dtype=DOUBLE))
    x = torch.randn(5, 4, dtype=DOUBLE)
    formula = Reference(layer).formula(options["neuron"])
    expected = [[formula(k, row) for k in range(3)] for row in x.tolist()]
    torch.testing.assert_close(layer(x), torch.tensor(expected, dtype=DOUBLE))


def patch(image, top, left, kernel, dilation, channels):
    """The patch as a flat list, channel first; 0 outside of the image."""
    height, width = len(image[0]), len(image[0][0])
    values = []
    for channel in channels:
        for i, j in product(range(kernel[0]), range(kernel[1])):
            row, column = top + i * dilation[0], left + j * dilation[1]
            inside = 0 <= row < height and 0 <= column < width
            values.append(image[channel][row][column] if inside else 0.0)
    return values


GEOMETRIES = {
    "plain": {},
    "stride": {"stride": 2},
    "padding": {"padding": (2, 1)},
    "dilation": {"dilation": (1, 2)},
    "all": {"stride": (1, 2), "padding": 1, "dilation": 2},
    "groups": {"groups": 2, "padding": 1},
}


def both(value):
    return value if isinstance(value, tuple) else (value, value)


@pytest.mark.parametrize(
    ("options", "geometry"),
    [
        pytest.param(options, geometry, id=f"{name}-{kind}")
        for (name, options), (kind, geometry) in product(VARIANTS.items(), GEOMETRIES.items())
        if not (options["neuron"] == "bilinear" and "groups" in geometry)  # refused, see below
    ],
)
def test_convolution_is_its_formula_on_each_patch(options, geometry):
    size, kernel, in_channels, out_channels = (5, 6), (3, 2), 2, 4
    layer = randomize(
        QuadraticConv2d(in_channels, out_channels, kernel, **geometry, **options, dtype=DOUBLE)
    )
    x = torch.randn(2, in_channels, *size, dtype=DOUBLE)
    stride, padding, dilation = (
        both(geometry.get(key, default))
        for key, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    )
    groups = geometry.get("groups", 1)
    steps = [
        range(-padding[d], size[d] + padding[d] - dilation[d] * (kernel[d] - 1), stride[d])
        for d in (0, 1)
    ]
    formula = Reference(layer).formula(options["neuron"])

    def value(image, k, top, left):
        group = k // (out_channels // groups)
        width = in_channels // groups
        channels = range(group * width, (group + 1) * width)
        return formula(k, patch(image, top, left, kernel, dilation, channels))

    expected = [
        [
            [[value(image, k, top, left) for left in steps[1]] for top in steps[0]]
            for k in range(out_channels)
        ]
        for image in x.tolist()
    ]
    torch.testing.assert_close(layer(x), torch.tensor(expected, dtype=DOUBLE))


@every_variant
def test_leading_dimensions_are_free(options):
    layer = randomize(QuadraticLinear(3, 2, **options))
    x = torch.randn(2, 4, 3)
    assert layer(x).shape == (2, 4, 2)
    torch.testing.assert_close(layer(x)[1, 2], layer(x[1, 2]))


@every_variant
def test_an_image_needs_no_batch_dimension(options):
    layer = randomize(QuadraticConv2d(2, 3, 3, stride=2, **options))
    x = torch.randn(4, 2, 7, 6)
    torch.testing.assert_close(layer(x)[1], layer(x[1]))
    assert layer(x[:0]).shape == (0, 3, 3, 2)


@every_variant
def test_rows_of_a_batch_do_not_mix(options):
    layer = randomize(QuadraticLinear(3, 2, **options, dtype=DOUBLE))
    x = torch.randn(6, 3, dtype=DOUBLE)
    order = torch.randperm(6)
    torch.testing.assert_close(layer(x[order]), layer(x)[order])


@every_variant
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_finite_at_unit_scale(options, dtype):
    layer = QuadraticLinear(16, 8, **options, dtype=dtype)
    y = layer(torch.randn(32, 16, dtype=dtype))
    assert y.dtype == dtype
    assert y.isfinite().all()


@ignore_zero_elements
@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    options=st.sampled_from(list(VARIANTS.values())),
    bias=st.booleans(),
    n=st.integers(0, 4),
    out=st.integers(0, 3),
    batch=st.lists(st.integers(0, 3), max_size=2),
)
def test_any_size_of_linear_layer(options, bias, n, out, batch):
    layer = randomize(QuadraticLinear(n, out, bias, **options, dtype=DOUBLE))
    x = torch.randn(*batch, n, dtype=DOUBLE)
    y = layer(x)
    assert y.shape == (*batch, out)
    formula = Reference(layer).formula(options["neuron"])
    rows = x.reshape(math.prod(batch), n).tolist()
    expected = [[formula(k, row) for k in range(out)] for row in rows]
    torch.testing.assert_close(y, torch.tensor(expected, dtype=DOUBLE).reshape(y.shape))
    y.sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in layer.parameters())


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    neuron=st.sampled_from(list(CATALOGUE)),
    batch=st.integers(0, 2),
    channels=st.integers(1, 3),
    out=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
)
def test_convolutions_have_the_shape_of_nn_conv2d(
    neuron, batch, channels, out, kernel, stride, padding, dilation
):
    arguments = (channels, out, kernel, stride, padding, dilation)
    x = torch.randn(batch, channels, 6, 5)
    assert QuadraticConv2d(*arguments, neuron=neuron)(x).shape == nn.Conv2d(*arguments)(x).shape


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_mode_reaches_every_branch(mode):
    layer = QuadraticConv2d(2, 3, 3, padding="same", padding_mode=mode)
    assert {branch.padding_mode for branch in layer.values()} == {mode}
    assert layer(torch.randn(1, 2, 5, 5)).shape == (1, 3, 5, 5)


# --- what a layer is made of ---


def test_the_default_neuron_has_three_times_the_parameters():
    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(QuadraticLinear(7, 5)) == 3 * count(nn.Linear(7, 5))
    assert count(QuadraticConv2d(4, 6, 3, groups=2)) == 3 * count(nn.Conv2d(4, 6, 3, groups=2))


STATE_KEYS = {
    "quadratic": (
        "r.weight r.bias g.weight g.bias b.weight b.bias",
        "r.weight g.weight b.weight",
    ),
    "compact": ("r.weight r.bias b.weight b.bias", "r.weight b.weight"),
    "product": ("r.weight g.weight", "r.weight g.weight"),
    "product_linear": ("r.weight g.weight l.weight", "r.weight g.weight l.weight"),
    "qres": ("r.weight g.weight c.bias", "r.weight g.weight"),
    "squared_output": ("r.weight r.bias", "r.weight"),
    "squared_input": ("b.weight", "b.weight"),
    "bilinear": ("q.triangle l.weight l.bias", "q.triangle l.weight"),
    "bilinear-rank1": ("q.factors q.signs l.weight l.bias", "q.factors q.signs l.weight"),
    "linear": ("r.weight r.bias", "r.weight"),
}


@pytest.mark.parametrize("variant", STATE_KEYS)
def test_state_dict_keys(variant):
    with_bias, without_bias = (keys.split() for keys in STATE_KEYS[variant])
    options = VARIANTS[variant]
    assert list(QuadraticLinear(3, 2, **options).state_dict()) == with_bias
    assert list(QuadraticLinear(3, 2, bias=False, **options).state_dict()) == without_bias
    assert list(QuadraticConv2d(3, 2, 3, **options).state_dict()) == [
        key.replace("q.", "q.form.") for key in with_bias
    ]


def test_branches_start_as_torch_starts_them():
    torch.manual_seed(3)
    layer = QuadraticLinear(4, 3)
    torch.manual_seed(3)
    for letter in "rgb":
        plain = nn.Linear(4, 3)
        assert torch.equal(layer[letter].weight, plain.weight)
        assert torch.equal(layer[letter].bias, plain.bias)


def test_constant_starts_at_zero_and_resets_to_it():
    constant = Constant(3, dims=2)
    assert torch.equal(constant(torch.randn(1)), torch.zeros(3, 1, 1))
    randomize(constant)
    constant.reset_parameters()
    assert torch.equal(constant.bias, torch.zeros(3))


def test_print_shows_the_neuron_and_its_formula():
    text = repr(QuadraticLinear(4, 3, bias=False, neuron="qres"))
    assert "neuron='qres': (w_r x)(w_g x) + w_r x" in text
    assert "neuron='bilinear': xᵀ W x + w x + b" in repr(
        QuadraticConv2d(1, 1, 1, neuron="bilinear")
    )


@pytest.mark.parametrize("name", CATALOGUE)
def test_branches_by_their_part(name):
    layer, neuron = QuadraticLinear(3, 2, neuron=name), CATALOGUE[name]
    assert layer.reference is (layer[neuron.reference] if neuron.reference else None)
    assert layer.quadratic_branches() == {k: layer[k] for k in neuron.quadratic}
    assert layer.branches_zero_at_reference() == {k: layer[k] for k in neuron.zero_at_reference}


def test_a_neuron_of_ones_own():
    mine = Neuron("mine", {"r": Branch(), "g": Branch(offset=0.5)}, (("r", "g"),), None, "a test")
    layer = QuadraticLinear(3, 2, neuron=mine)
    x = torch.randn(4, 3)
    torch.testing.assert_close(layer(x), layer["r"](x) * (layer["g"](x) + 0.5))


def test_quadratic_over_ones_own_branches():
    branches = {"b": nn.Linear(3, 2), "r": nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))}
    layer = Quadratic("compact", branches)
    x = torch.randn(5, 3)
    assert list(layer) == ["r", "b"]
    assert torch.equal(layer(x), branches["r"](x) + branches["b"](x * x))


def test_the_constant_may_be_missing():
    branches = {"r": nn.Linear(3, 2), "g": nn.Linear(3, 2)}
    x = torch.randn(5, 3)
    r, g = branches["r"](x), branches["g"](x)
    assert torch.equal(Quadratic("qres", branches)(x), r * g + r)


# --- errors ---


@pytest.mark.parametrize(
    ("neuron", "letters", "text"),
    [
        ("quadratic", "rg", "neuron 'quadratic' lacks 'b'; its letters are r, g, b"),
        ("qres", "r", "neuron 'qres' lacks 'g'; its letters are r, g, c"),
        ("compact", "rbg", "neuron 'compact' does not know 'g'; its letters are r, b"),
    ],
    ids=["missing", "missing-beside-constant", "unknown"],
)
def test_missing_and_unknown_branches_are_refused(neuron, letters, text):
    branches = {letter: nn.Linear(3, 2) for letter in letters}
    with pytest.raises(ValueError, match=f"^branches: {text}$"):
        Quadratic(neuron, branches)


@pytest.mark.parametrize("layer", [QuadraticLinear, QuadraticConv2d])
def test_rank_is_refused_where_there_is_no_form(layer):
    sizes = (3, 2) if layer is QuadraticLinear else (3, 2, 1)
    text = (
        "rank=2 is only for neurons with a quadratic form, such as 'bilinear'; neuron 'compact' is "
        "w_r x + b_r + w_b x² + c"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        layer(*sizes, neuron="compact", rank=2)


def test_rank_below_one_is_refused():
    with pytest.raises(ValueError, match="rank=0 is not allowed: a form has at least one factor"):
        QuadraticLinear(3, 2, neuron="bilinear", rank=0)


def test_a_form_over_patches_refuses_groups():
    text = (
        "neuron 'bilinear' as a convolution is a form over whole patches and takes groups=1, not "
        "groups=2"
    )
    with pytest.raises(ValueError, match=f"^{text}$"):
        QuadraticConv2d(2, 2, 3, neuron="bilinear", groups=2)


def test_a_transposed_convolution_refuses_a_form():
    text = (
        "neuron 'bilinear' is a quadratic form over each input patch, and a transposed "
        "convolution has none: choose another neuron, e.g. 'quadratic'"
    )
    with pytest.raises(ValueError, match=f"^{text}$"):
        QuadraticConvTranspose2d(2, 2, 3, neuron="bilinear")
