"""The Triton kernels, interpreted on CPU: the plain formula's values and derivatives."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

import qcore

pytest.importorskip("triton", reason="Triton is not installed: there are no kernels to test")
from qcore.kernels import elementwise

DOUBLE = torch.float64
LAYERS = {
    "linear": (lambda **o: qcore.QuadraticLinear(4, 3, **o), (5, 4)),
    "conv1d": (lambda **o: qcore.QuadraticConv1d(2, 3, 3, **o), (2, 2, 9)),
    "conv2d": (lambda **o: qcore.QuadraticConv2d(2, 3, 3, stride=2, **o), (2, 2, 6, 7)),
    "grouped": (lambda **o: qcore.QuadraticConv2d(4, 4, 3, groups=2, **o), (2, 4, 6, 7)),
    "conv3d": (lambda **o: qcore.QuadraticConv3d(2, 3, 2, **o), (2, 2, 4, 5, 4)),
    "transpose2d": (lambda **o: qcore.QuadraticConvTranspose2d(2, 3, 2, **o), (2, 2, 4, 5)),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)
fused_neurons = pytest.mark.parametrize("neuron", ["quadratic", "product_linear"])


def build(kind, dtype=torch.float32, **options):
    make, shape = LAYERS[kind]
    return make(dtype=dtype, **options), torch.randn(shape, dtype=dtype)


def results(layer, x, name):
    """The value, and the gradients of a weighted sum of it for the input and the parameters."""
    x = x.detach().requires_grad_()
    with qcore.backend(name):
        assert layer.path(x) == name
        y = layer(x)
    weights = torch.linspace(-1.0, 1.0, y.numel(), dtype=y.dtype).view(y.shape)
    return [y, *torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])]


@every_layer
@fused_neurons
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_layers_have_the_values_and_gradients_of_the_formula(kind, neuron, bias):
    layer, x = build(kind, DOUBLE, neuron=neuron, bias=bias)
    torch.testing.assert_close(results(layer, x, "triton"), results(layer, x, "plain"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, DOUBLE])
def test_results_are_rounded_once(dtype):
    """As if computed in float32, or float64, throughout, and then rounded."""
    wide = DOUBLE if dtype == DOUBLE else torch.float32
    x, r, g, b, grad = torch.randn(5, 3, 700, dtype=wide).to(dtype)
    R, G, B, D = (t.to(wide) for t in (r, g, b, grad))
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": torch.finfo(dtype).tiny}
    found = [
        elementwise.square(x),
        elementwise.square_backward(grad, x),
        elementwise.multiply_add(r, g, b, 0.1),
        *elementwise.multiply_add_backward(grad, r, g, 0.1),
    ]
    expected = [x.to(wide) ** 2, 2 * x.to(wide) * D, R * (G + 0.1) + B, D * (G + 0.1), D * R]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs.to(dtype), **tolerance)


LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
    "expanded": lambda t: t[:, :1].expand_as(t),
    "with gaps": lambda t: torch.cat([t, t], 3)[..., : t.shape[3]],
}


@settings(deadline=None)
@given(
    shape=st.tuples(*[st.integers(0, 5)] * 4),
    layouts=st.tuples(*[st.sampled_from(sorted(LAYOUTS))] * 3),
    seed=st.integers(0, 2**16),
)
def test_any_shape_in_any_memory_layout(shape, layouts, seed):
    torch.manual_seed(seed)
    r, g, b = (LAYOUTS[name](torch.randn(shape)) for name in layouts)
    y = elementwise.multiply_add(r, g, b, 1.0)
    torch.testing.assert_close(y, r * (g + 1.0) + b)
    assert y.stride() == torch.empty_like(r).stride()
    torch.testing.assert_close(elementwise.square(r), r * r)


def test_more_elements_than_one_program_takes():
    x = torch.randn(3, elementwise._BLOCK + 1)
    assert torch.equal(elementwise.square(x), x * x)


def operators():
    r, g, b, grad = torch.randn(4, 2, 3, 4, 5, dtype=DOUBLE)
    swapped = r.transpose(1, 3)
    return {
        "square": (elementwise.square, (r,)),
        "square of a transposed tensor": (elementwise.square, (swapped,)),
        "square_backward": (elementwise.square_backward, (grad, r)),
        "multiply_add": (elementwise.multiply_add, (r, g, b, 1.0)),
        "multiply_add of layouts": (
            elementwise.multiply_add,
            (swapped, g.transpose(1, 3).contiguous(), b.transpose(1, 3), 0.5),
        ),
        "multiply_add_backward": (elementwise.multiply_add_backward, (grad, r, g, 1.0)),
    }


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's
@pytest.mark.parametrize("name", operators())
def test_operators_are_registered_as_torch_wants_them(name):
    operator, arguments = operators()[name]
    inputs = [a.clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]
    assert set(opcheck(operator, tuple(inputs)).values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", operators())
def test_derivatives_of_first_and_second_order(name):
    operator, arguments = operators()[name]
    inputs = [a.clone().requires_grad_() for a in arguments if isinstance(a, torch.Tensor)]
    numbers = [a for a in arguments if not isinstance(a, torch.Tensor)]
    run = lambda *tensors: operator(*tensors, *numbers)  # noqa: E731
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


# --- which layers take them ---


def test_which_layers_take_the_kernels():
    x = torch.randn(2, 4)
    paths = {}
    for neuron in qcore.CATALOGUE:
        with qcore.backend("triton"):
            paths[neuron] = qcore.QuadraticLinear(4, 3, neuron=neuron).path(x)
    taken = {neuron for neuron, path in paths.items() if path == "triton"}
    assert taken == {"quadratic", "product_linear"}
    assert set(paths.values()) == {"triton", "plain"}


def test_the_kernels_stand_aside_as_the_fast_path_does():
    layer, x = build("conv2d")
    with qcore.backend("triton"):
        with torch.autocast("cpu", dtype=torch.float16):  # squares in float32, by the formula
            assert layer.path(x) == "plain"
        assert torch.func.grad(lambda v: float(layer.path(v) == "plain") * v.sum())(x).all()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer.path(x) == "triton"
            y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


def test_branches_that_broadcast_take_the_formula():
    branches = {"r": torch.nn.Linear(4, 3), "g": torch.nn.Linear(4, 1), "b": torch.nn.Linear(4, 3)}
    layer, x = qcore.Quadratic("quadratic", branches), torch.randn(5, 4)
    with qcore.backend("triton"):
        y = layer(x)
    torch.testing.assert_close(y, layer(x))


def test_channels_last_goes_in_and_comes_out():
    layer, x = build("conv2d")
    expected = layer(x)
    layer = layer.to(memory_format=torch.channels_last)
    with qcore.backend("triton"):
        y = layer(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected)


FALL_BACK = """
import sys
if {missing}:
    sys.modules["triton"] = None
    import importlib.util
    found = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == "triton" else found(name, *rest)
import torch, qcore
assert {missing} or "triton" not in sys.modules  # it is large: imported where it is asked for
layer, x = qcore.QuadraticConv2d(2, 3, 3), torch.randn(1, 2, 5, 5)
with qcore.backend("triton"):
    assert layer.path(x) == "plain"
    y = layer(x)
with qcore.backend("plain"):
    assert torch.equal(y, layer(x))
"""


@pytest.mark.parametrize("missing", [True, False], ids=["no triton", "no gpu"])
def test_the_formula_is_the_fallback(missing):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    code = FALL_BACK.format(missing=missing)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_training_step_in_a_cuda_graph():
    layer = qcore.QuadraticConv2d(3, 8, 3, device="cuda")
    x = torch.randn(4, 3, 8, 8, device="cuda")
    with qcore.backend("triton"):
        graphed = torch.cuda.make_graphed_callables(layer, (x,))
        torch.testing.assert_close(graphed(x), layer(x))


COMPILE = """
import itertools, warnings
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from qcore.kernels import elementwise as kernels
warnings.simplefilter("ignore")
tensors = {"_square_kernel": "xy", "_square_backward_kernel": ["grad", "x", "dx"],
           "_multiply_add_kernel": "rgby",
           "_multiply_add_backward_kernel": ["grad", "r", "g", "dr", "dg"]}
for (name, arguments), kind in itertools.product(tensors.items(), ["fp32", "bf16", "fp64"]):
    kernel = getattr(kernels, name)
    signature = {argument: "*" + kind for argument in arguments} | {"count": "i64"}
    constants = {"block": 1024} | ({"offset": 0.1} if "offset" in kernel.arg_names else {})
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {k: signature[k] for k in kernel.arg_names}, constexprs=constants)
    compiled = compile(source, target=GPUTarget("cuda", 90, 32))
    assert "ptx" in compiled.asm
print("compiled")
"""


def test_every_kernel_compiles_for_a_gpu(tmp_path):
    """The interpreter runs what the compiler may refuse; compiling takes no GPU."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment,
    )
    assert (done.returncode, done.stdout) == (0, "compiled\n"), done.stderr


def test_another_type_under_autocast_than_the_kernels_take():
    neuron = qcore.Neuron(
        "own",
        {"r": qcore.Branch(), "g": qcore.Branch(), "c": qcore.Branch("one")},
        (("r", "g"), ("c",)),
        None,
        "",
    )
    layer, x = qcore.QuadraticLinear(4, 3, neuron=neuron), torch.randn(5, 4)
    for name in ("plain", "triton"):
        with qcore.backend(name), torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16


def test_complex_numbers_take_the_formula():
    layer, x = build("linear", torch.complex64)
    with qcore.backend("triton"):
        assert layer.path(x) == "plain"
