"""Defects that earlier code for quadratic networks is known for, each as a test against it."""

import math
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils import deterministic

import qcore
from qcore import CATALOGUE, LowRankForm, QuadraticForm, ReLinear

DOUBLE = torch.float64
VARIANTS = {name: {"neuron": name} for name in CATALOGUE} | {
    "bilinear-rank2": {"neuron": "bilinear", "rank": 2}
}
# layer, torch's module and function, sizes that differ so that a mix-up cannot hide, input's shape
KINDS = {
    "linear": (qcore.QuadraticLinear, nn.Linear, functional.linear, (4, 6), (5, 4)),
    "conv1d": (qcore.QuadraticConv1d, nn.Conv1d, functional.conv1d, (4, 6, (3,)), (2, 4, 9)),
    "conv2d": (qcore.QuadraticConv2d, nn.Conv2d, functional.conv2d, (4, 6, (3, 2)), (2, 4, 7, 8)),
    "conv3d": (
        qcore.QuadraticConv3d,
        nn.Conv3d,
        functional.conv3d,
        (4, 6, (3, 2, 2)),
        (2, 4, 5, 4, 6),
    ),
    "transpose1d": (
        qcore.QuadraticConvTranspose1d,
        nn.ConvTranspose1d,
        functional.conv_transpose1d,
        (4, 6, (3,)),
        (2, 4, 5),
    ),
    "transpose2d": (
        qcore.QuadraticConvTranspose2d,
        nn.ConvTranspose2d,
        functional.conv_transpose2d,
        (4, 6, (3, 2)),
        (2, 4, 5, 4),
    ),
    "transpose3d": (
        qcore.QuadraticConvTranspose3d,
        nn.ConvTranspose3d,
        functional.conv_transpose3d,
        (4, 6, (3, 2, 2)),
        (2, 4, 3, 4, 2),
    ),
}
ALL = [
    pytest.param(kind, options, id=f"{kind}-{name}")
    for kind in KINDS
    for name, options in VARIANTS.items()
    if not (kind.startswith("transpose") and options["neuron"] == "bilinear")
]
every_layer = pytest.mark.parametrize(("kind", "options"), ALL)

# Each neuron written out: m(letter, x) is the map of that letter.
FORMULAS = {
    "quadratic": lambda m, x: m("r", x) * (m("g", x) + 1.0) + m("b", x * x),
    "compact": lambda m, x: m("r", x) + m("b", x * x),
    "product": lambda m, x: m("r", x) * m("g", x),
    "product_linear": lambda m, x: m("r", x) * m("g", x) + m("l", x),
    "qres": lambda m, x: m("r", x) * m("g", x) + m("r", x) + m("c", x),
    "squared_output": lambda m, x: m("r", x) ** 2,
    "squared_input": lambda m, x: m("b", x * x),
    "bilinear": lambda m, x: m("q", x) + m("l", x),
    "linear": lambda m, x: m("r", x),
}


def make(kind, options, **more):
    layer, _, _, sizes, _ = KINDS[kind]
    return layer(*sizes, **options, **more)


def random_input(kind, dtype=torch.float32):
    return torch.randn(KINDS[kind][-1], dtype=dtype)


def randomize(layer):
    """Random values in every parameter, those that start at 0 included."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def by_hand(kind, options, layer, x, bias=True, **geometry):
    """The neuron's formula of what torch's functions return for the layer's weights."""
    function = KINDS[kind][2]

    def form(branch, x):
        # Σ σ ⟨c, x⟩² with the factors c as kernels; of a dense form, eigenvalues and eigenvectors
        found = getattr(branch, "form", branch)
        if isinstance(found, LowRankForm):
            signs, factors = found.signs, found.factors
        else:
            signs, vectors = torch.linalg.eigh(found.matrix)
            factors = vectors.mT
        kernels = factors.reshape(-1, *layer["l"].weight.shape[1:])
        projected = function(x, kernels, **geometry).movedim(1, -1)  # (B, *S', out·rank)
        return (projected.square().unflatten(-1, signs.shape) * signs).sum(-1).movedim(-1, 1)

    def mapped(letter, x):
        if letter == "c":
            return layer["c"].bias.view(-1, *[1] * (x.dim() - 2)) if bias else 0.0
        branch = layer[letter]
        if letter == "q":
            return form(branch, x)
        return function(x, branch.weight, branch.bias if bias else None, **geometry)

    return FORMULAS[options["neuron"]](mapped, x)


def assert_by_hand_on_every_path(kind, options, layer, x, **how):
    expected = by_hand(kind, options, layer, x, **how)
    for path in ("plain", "fast"):
        with qcore.backend(path):
            torch.testing.assert_close(layer(x), expected)


# --- layers that could not be built, or not be called, without biases ---


@every_layer
def test_a_layer_without_bias_is_its_formula_without_biases(kind, options):
    layer = randomize(make(kind, options, bias=False, dtype=DOUBLE))
    assert not [name for name in layer.state_dict() if "bias" in name]
    x = random_input(kind, DOUBLE).requires_grad_()
    assert_by_hand_on_every_path(kind, options, layer, x, bias=False)
    found = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    written = by_hand(kind, options, layer, x, bias=False)
    expected = torch.autograd.grad(written.square().sum(), [x, *layer.parameters()])
    torch.testing.assert_close(found, expected)


# --- patches scrambled by a view where a transpose was needed ---


@pytest.mark.parametrize("rank", [None, 2], ids=["dense", "rank2"])
@pytest.mark.parametrize("kind", ["conv1d", "conv2d", "conv3d"])
def test_a_bilinear_convolution_is_its_form_patch_by_patch(kind, rank):
    layer = randomize(make(kind, {"neuron": "bilinear"}, rank=rank, dtype=DOUBLE))
    x = random_input(kind, DOUBLE)
    weight, bias = layer["l"].weight, layer["l"].bias
    matrix, kernel = layer["q"].form.matrix, weight.shape[2:]
    y = layer(x)
    assert y.shape[2:] == tuple(n - k + 1 for n, k in zip(x.shape[2:], kernel, strict=True))
    places = list(product(*[range(n) for n in y.shape[2:]]))
    offsets = list(product(range(x.shape[1]), *[range(k) for k in kernel]))
    for image, place in product(range(len(x)), places):
        # one number after the other, channel first, as in the weight of a convolution
        patch = torch.stack(
            [
                x[(image, channel, *[p + o for p, o in zip(place, offset, strict=True)])]
                for channel, *offset in offsets
            ]
        )
        expected = (matrix @ patch) @ patch + weight.flatten(1) @ patch + bias
        torch.testing.assert_close(y[(image, slice(None), *place)], expected)


@every_layer
def test_permuting_a_batch_permutes_the_outputs(kind, options):
    layer = randomize(make(kind, options, dtype=DOUBLE))
    x = torch.cat([random_input(kind, DOUBLE), random_input(kind, DOUBLE)])
    order = torch.arange(len(x)).roll(1)
    y = layer(x)
    assert not torch.allclose(y, y[order])
    torch.testing.assert_close(layer(x[order]), y[order])


# --- a stride that was accepted and ignored ---

# the first entries are for fewer dimensions; they differ, so that a mix-up cannot hide
GEOMETRIES = {
    "stride": {"stride": (2, 3, 1)},
    "stride-int": {"stride": 2},
    "padding": {"padding": (2, 1, 1)},
    "dilation": {"dilation": (2, 3, 4)},
    "groups": {"groups": 2},
    "all": {"stride": (2, 1, 3), "padding": (2, 1, 0), "dilation": (1, 2, 3)},
    "all-groups": {"stride": 2, "padding": (2, 1, 0), "dilation": (2, 1, 3), "groups": 2},
}
TRANSPOSED_GEOMETRIES = GEOMETRIES | {
    "output-padding": {"stride": (3, 2, 2), "output_padding": (1, 0, 1)},
}
WITH_GEOMETRY = [
    pytest.param(kind, options, geometry, id=f"{kind}-{name}-{label}")
    for kind in KINDS
    if kind != "linear"
    for label, geometry in (
        TRANSPOSED_GEOMETRIES if kind.startswith("transpose") else GEOMETRIES
    ).items()
    for name, options in VARIANTS.items()
    if options["neuron"] != "bilinear"
    or not (kind.startswith("transpose") or "groups" in geometry)  # refused: see test_layers.py
]


@pytest.mark.parametrize(("kind", "options", "geometry"), WITH_GEOMETRY)
def test_stride_padding_dilation_and_groups_are_those_of_torch(kind, options, geometry):
    dims = len(KINDS[kind][-1]) - 2
    geometry = {k: v[:dims] if isinstance(v, tuple) else v for k, v in geometry.items()}
    layer = randomize(make(kind, options, **geometry, dtype=DOUBLE))
    assert_by_hand_on_every_path(kind, options, layer, random_input(kind, DOUBLE), **geometry)


# --- weights that were allocated and never initialised ---


@pytest.fixture
def nan_in_fresh_memory():
    """Memory that nothing was written to holds NaN, in place of zeros as often as not."""
    mode, fills = torch.get_deterministic_debug_mode(), deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = True
    yield
    deterministic.fill_uninitialized_memory = fills
    torch.set_deterministic_debug_mode(mode)


def assert_initialised(layer):
    for name, parameter in layer.named_parameters():
        assert parameter.isfinite().all(), name
        # the constant of qres starts at 0; the signs of a form are 1 and -1
        assert name == "c.bias" or parameter.unique().numel() > 1, name


@every_layer
@pytest.mark.usefixtures("nan_in_fresh_memory")
def test_a_fresh_layer_has_no_uninitialised_weight(kind, options):
    assert torch.empty(3).isnan().all()
    assert_initialised(make(kind, options))


@every_layer
@pytest.mark.parametrize("start", ["cpu", "meta"])
@pytest.mark.usefixtures("nan_in_fresh_memory")
def test_reset_parameters_initialises_every_weight_after_to_empty(kind, options, start):
    layer = make(kind, options, device=start).to_empty(device="cpu")
    assert all(parameter.isnan().all() for parameter in layer.parameters())
    layer.reset_parameters()
    assert_initialised(layer)


# --- the second convolution's initialisation, applied to the first a second time ---


def torch_modules(kind, options):
    """What the branches are, built one after another in the order of the neuron's letters."""
    _, module, _, (in_size, out_size, *kernel), _ = KINDS[kind]
    for letter, branch in CATALOGUE[options["neuron"]].branches.items():
        if branch.lift == "form":
            size = in_size * math.prod(kernel[0] if kernel else ())
            if "rank" in options:
                yield letter, LowRankForm(size, out_size, options["rank"], signed=True)
            else:
                yield letter, QuadraticForm(size, out_size)
        elif branch.lift != "one":  # a constant draws nothing
            yield letter, module(in_size, out_size, *kernel, bias=branch.bias)


@every_layer
def test_branches_draw_one_after_another_as_torch_modules_do(kind, options):
    torch.manual_seed(1)
    layer = make(kind, options)
    after = torch.rand(1)
    torch.manual_seed(1)
    for letter, module in torch_modules(kind, options):
        branch = getattr(layer[letter], "form", layer[letter])
        assert type(branch) is type(module)
        expected, found = module.state_dict(), branch.state_dict()
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected), letter
    assert torch.equal(torch.rand(1), after)  # and nothing is drawn twice


def two_layers(kind, options, **more):
    """The layer, and one that takes its outputs back to as many channels."""
    layer, _, _, (in_size, out_size, *kernel), _ = KINDS[kind]
    return nn.Sequential(
        layer(in_size, out_size, *kernel, **options, **more),
        layer(out_size, in_size, *kernel, **options, **more),
    )


@every_layer
@pytest.mark.parametrize("drawn", [0, 1], ids=["first", "second"])
def test_drawing_one_layer_anew_leaves_the_other_untouched(kind, options, drawn):
    model = randomize(two_layers(kind, options))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model[drawn].reset_parameters()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.startswith(f"{drawn}.")), name


QUADRATIC_WITH_REFERENCE = [
    case
    for case in ALL
    if CATALOGUE[case.values[1]["neuron"]].reference and case.values[1]["neuron"] != "linear"
]


@pytest.mark.parametrize(("kind", "options"), QUADRATIC_WITH_REFERENCE)
def test_relinear_moves_the_second_layer_to_its_reference_too(kind, options):
    model = two_layers(kind, options, dtype=DOUBLE)
    x = random_input(kind, DOUBLE)
    linear = nn.Sequential(*[layer.reference for layer in model])
    conventional = linear(x)
    first = model[0](x)
    assert not torch.allclose(first, linear[0](x))
    assert not torch.allclose(model[1](first), linear[1](first))
    ReLinear().init_(model)
    first = model[0](x)
    torch.testing.assert_close(first, linear[0](x))
    torch.testing.assert_close(model[1](first), linear[1](first))
    torch.testing.assert_close(model(x), conventional)
