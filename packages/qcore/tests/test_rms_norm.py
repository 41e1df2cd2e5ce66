"""Quadratic branches that see their input divided by its root mean square."""

import copy
import functools
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qcore
from qcore import CATALOGUE, Quadratic, QuadraticConv2d, QuadraticLinear
from qcore.analysis import spline_pieces

DOUBLE = torch.float64
every_neuron = pytest.mark.parametrize(
    "neuron", [name for name, neuron in CATALOGUE.items() if neuron.quadratic]
)


def divided(x, dims):
    return x / x.square().mean(dims, keepdim=True).sqrt()


def drawn(layer):
    """The layer with random values in every parameter."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


KINDS = {
    "linear": (QuadraticLinear, (4, 3), F.linear, (5, 4), (-1,)),
    "conv1d": (qcore.QuadraticConv1d, (2, 3, 3), F.conv1d, (5, 2, 9), (1, 2)),
    "conv2d": (QuadraticConv2d, (2, 3, 3), F.conv2d, (5, 2, 6, 7), (1, 2, 3)),
    "conv3d": (qcore.QuadraticConv3d, (2, 3, 2), F.conv3d, (5, 2, 4, 5, 4), (1, 2, 3, 4)),
    "transpose1d": (
        qcore.QuadraticConvTranspose1d,
        (2, 3, 3),
        F.conv_transpose1d,
        (5, 2, 6),
        (1, 2),
    ),
    "transpose2d": (
        qcore.QuadraticConvTranspose2d,
        (2, 3, 3),
        F.conv_transpose2d,
        (5, 2, 4, 5),
        (1, 2, 3),
    ),
    "transpose3d": (
        qcore.QuadraticConvTranspose3d,
        (2, 3, 2),
        F.conv_transpose3d,
        (5, 2, 3, 2, 3),
        (1, 2, 3, 4),
    ),
}


@pytest.mark.parametrize("backend", ["auto", "plain", "fast", "triton"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_formula_of_the_quadratic_neuron(kind, backend):
    layer, sizes, function, shape, dims = KINDS[kind]
    layer = drawn(layer(*sizes, rms_norm=True, dtype=DOUBLE))
    x = torch.randn(shape, dtype=DOUBLE)
    r, g, b = (functools.partial(function, weight=m.weight, bias=m.bias) for m in layer.values())
    with qcore.backend(backend):
        merged = backend in ("auto", "fast") and kind.startswith("conv")
        assert layer.path(x) == ("fast" if merged else "plain")
        found = layer(x)
    torch.testing.assert_close(
        found, r(x) * (g(divided(x, dims)) + 1) + b(divided(x * x, dims)), rtol=1e-10, atol=1e-10
    )


@every_neuron
def test_inputs_whose_root_mean_square_is_1_are_seen_as_they_are(neuron):
    plain, normed = (
        QuadraticLinear(6, 4, neuron=neuron, rms_norm=norm, dtype=DOUBLE) for norm in (False, True)
    )
    normed.load_state_dict(drawn(plain).state_dict())  # which has no other names
    x = torch.randn(5, 6, dtype=DOUBLE).sign()  # x² as well
    torch.testing.assert_close(normed(x), plain(x), rtol=1e-10, atol=1e-10)


@every_neuron
def test_a_neuron_with_a_norm_grows_linearly(neuron):
    layer = drawn(QuadraticLinear(6, 4, neuron=neuron, rms_norm=True, dtype=DOUBLE))
    x = torch.randn(5, 6, dtype=DOUBLE)
    growth = layer(20 * x) - layer(10 * x)
    torch.testing.assert_close(layer(30 * x) - layer(20 * x), growth)
    assert (growth.abs().max() > 1.0) == (layer.reference is not None)  # which sees the size


@pytest.mark.parametrize("size", [1e3, 1.0, 1e-2, 1e-5, 0.0])
def test_the_fast_path_divides_small_inputs_by_as_little(size):
    layer = drawn(QuadraticConv2d(2, 3, 3, rms_norm=True))
    x = (size * torch.randn(5, 2, 6, 7)).requires_grad_()
    found = []
    for name in ("fast", "plain"):
        with qcore.backend(name):
            assert layer.path(x) == name
            y = layer(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
    fast, plain = found
    for ours, theirs in zip(fast, plain, strict=True):
        largest = float(theirs.detach().abs().max())
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * largest)


def test_a_norm_over_less_than_an_image_takes_the_formula():
    branches = {k: nn.Conv2d(2, 3, 3, dtype=DOUBLE) for k in "rgb"}
    layer = Quadratic("quadratic", branches, rms_dims=1)  # each row of an image
    x = torch.randn(5, 2, 6, 7, dtype=DOUBLE)
    assert layer.path(x) == "plain"
    r, g, b = layer.values()
    torch.testing.assert_close(layer(x), r(x) * (g(divided(x, -1)) + 1) + b(divided(x * x, -1)))


def test_half_precision_takes_the_formula_whose_sums_are_of_normalised_squares():
    layer = QuadraticConv2d(2, 3, 3, rms_norm=True, dtype=torch.float16)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(1.0)
    x = torch.full((1, 2, 3, 3), 100.0, dtype=torch.float16)  # 18 squares leave its range
    assert layer.path(x) == "plain"
    expected = torch.full((1, 3, 1, 1), 1801.0 * 20.0 + 19.0, dtype=torch.float16)
    torch.testing.assert_close(layer(x), expected)


def test_squares_of_small_inputs_are_divided_by_less():
    layer = Quadratic("squared_input", {"b": nn.Identity()}, rms_dims=1)
    x = torch.ones(1, 4)
    assert layer(0.1 * x)[0, 0] > 0.999
    assert 0.2 < layer(0.01 * x)[0, 0] < 0.3  # x² beside ε
    linear = Quadratic("product", {"r": nn.Identity(), "g": nn.Identity()}, rms_dims=1)
    assert linear(0.01 * x)[0, 0] > 0.99


def test_samples_do_not_see_each_other():
    layer = drawn(QuadraticConv2d(2, 3, 3, rms_norm=True, dtype=DOUBLE))
    x = torch.randn(4, 2, 6, 6, dtype=DOUBLE)
    beside_large_ones = layer(torch.cat([x[:1], 1e3 * x[1:]]))
    torch.testing.assert_close(beside_large_ones[:1], layer(x[:1]))
    torch.testing.assert_close(layer(x[0]), layer(x)[0])  # without B


def test_every_vector_of_a_sequence_has_its_own():
    layer = drawn(QuadraticLinear(6, 4, rms_norm=True, dtype=DOUBLE))
    x = torch.randn(2, 3, 6, dtype=DOUBLE)
    torch.testing.assert_close(layer(x), torch.stack([layer(tokens) for tokens in x]))


@every_neuron
def test_gradients(neuron):
    layer = drawn(QuadraticLinear(3, 2, neuron=neuron, rms_norm=True, dtype=DOUBLE))
    x = torch.randn(4, 3, dtype=DOUBLE, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))


def test_zeros_have_a_value_and_a_gradient():
    layer = drawn(QuadraticConv2d(2, 3, 3, rms_norm=True))
    x = torch.zeros(1, 2, 5, 5, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    torch.testing.assert_close(
        y[0, :, 0, 0], layer["r"].bias * (layer["g"].bias + 1) + layer["b"].bias
    )
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_autocast_rounds_the_formula(dtype):
    layer = drawn(QuadraticConv2d(2, 3, 3, padding=1, rms_norm=True))
    x = 300 * torch.randn(2, 2, 6, 6)  # whose squares leave the range of float16
    with torch.autocast("cpu", dtype):
        found = layer(x)
    assert found.dtype == dtype
    expected = layer(x)
    assert (found.float() - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(6, 4, dtype=DOUBLE),
        nn.Conv1d(6, 4, 3, dtype=DOUBLE),
        nn.Conv2d(6, 4, 3, bias=False, dtype=DOUBLE),
        nn.ConvTranspose2d(6, 4, 3, dtype=DOUBLE),
    ],
    ids=lambda module: type(module).__name__,
)
def test_quadratize_gives_a_norm_and_changes_no_output(module):
    x = torch.randn(2, 6, *[6] * (module.weight.dim() - 2), dtype=DOUBLE)
    layer = qcore.quadratize(module, rms_norm=True, inplace=True)
    assert layer.rms_dims == module.weight.dim() - 1
    torch.testing.assert_close(layer(x), module(x))
    assert qcore.linearize(layer, inplace=True) is module
    plain = qcore.quadratize(module)
    plain.load_state_dict(drawn(layer).state_dict())
    same = x.sign()  # whose root mean square is 1
    torch.testing.assert_close(layer(same), plain(same))
    assert not torch.allclose(layer(x), plain(x))


def test_batch_norms_fold_into_a_layer_with_a_norm():
    model = nn.Sequential(QuadraticConv2d(3, 8, 3, rms_norm=True), nn.BatchNorm2d(8)).double()
    drawn(model)
    model(torch.randn(8, 3, 6, 6, dtype=DOUBLE))
    folded = qcore.fold_batchnorm(model.eval())
    x = torch.randn(2, 3, 6, 6, dtype=DOUBLE)
    assert isinstance(folded[1], nn.Identity)
    torch.testing.assert_close(folded(x), model(x))


def test_a_copy_and_a_print_have_the_norm():
    layer = copy.deepcopy(QuadraticConv2d(2, 3, 3, rms_norm=True))
    assert layer.rms_dims == 3
    assert repr(layer).splitlines()[1].endswith(" + w_b x²/rms(x²) + c, rms_dims=3")
    assert "rms_dims" not in repr(QuadraticConv2d(2, 3, 3))


def test_a_layer_pickled_before_there_were_norms_has_none():
    layer, x = QuadraticConv2d(2, 3, 3), torch.randn(1, 2, 5, 5)
    expected = layer(x)
    del vars(layer)["rms_dims"]
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)  # noqa: S301


def test_errors():
    branches = {"r": nn.Linear(3, 2), "b": nn.Linear(3, 2)}
    with pytest.raises(ValueError, match="rms_dims=-1 is not allowed: give the number of trailing"):
        Quadratic("compact", branches, rms_dims=-1)
    with pytest.raises(IndexError, match="Dimension out of range"):
        Quadratic("compact", branches, rms_dims=3)(torch.randn(5, 3))
    said = r"rms_norm=True is for what quadratic branches see, and neuron 'linear' \(w x \+ b\) has"
    for make in (
        lambda: QuadraticLinear(3, 2, neuron="linear", rms_norm=True),
        lambda: QuadraticConv2d(3, 2, 3, neuron="linear", rms_norm=True),
        lambda: qcore.quadratize(nn.Linear(3, 2), "linear", rms_norm=True),
    ):
        with pytest.raises(ValueError, match=said):
            make()
    model = nn.Sequential(QuadraticLinear(1, 3, rms_norm=True), nn.Linear(3, 1))
    said = "QuadraticLinear with rms_dims=1 divides by a root mean square, and is no spline"
    with pytest.raises(TypeError, match=said):
        spline_pieces(model, (-1, 1))
