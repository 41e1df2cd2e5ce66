"""Every layer with every neuron under what torch does with modules: trace, compile, export, ..."""

import copy
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import fx
from torch.utils.checkpoint import checkpoint

import qcore
from qcore import CATALOGUE

DOUBLE = torch.float64
VARIANTS = {name: {"neuron": name} for name in CATALOGUE} | {
    "bilinear-rank2": {"neuron": "bilinear", "rank": 2},
    "quadratic-rms": {"neuron": "quadratic", "rms_norm": True},
    "bilinear-rms": {"neuron": "bilinear", "rms_norm": True},
}
# stride, padding and dilation differ, so that a mix-up cannot hide
KINDS = {
    "linear": (qcore.QuadraticLinear, (4, 3), {}, (5, 4)),
    "conv1d": (qcore.QuadraticConv1d, (2, 3, 3), {"stride": 2, "padding": 1}, (2, 2, 9)),
    "conv2d": (
        qcore.QuadraticConv2d,
        (2, 3, (3, 2)),
        {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)},
        (2, 2, 6, 7),
    ),
    "conv3d": (qcore.QuadraticConv3d, (2, 3, 2), {"stride": 2, "padding": 1}, (2, 2, 4, 5, 4)),
    "transpose1d": (qcore.QuadraticConvTranspose1d, (2, 3, 3), {"stride": 2}, (2, 2, 5)),
    "transpose2d": (
        qcore.QuadraticConvTranspose2d,
        (2, 3, (3, 2)),
        {"stride": (2, 1), "padding": (1, 0), "output_padding": (1, 0)},
        (2, 2, 4, 5),
    ),
    "transpose3d": (qcore.QuadraticConvTranspose3d, (2, 3, 2), {"stride": 2}, (2, 2, 3, 2, 3)),
}
ALL = [
    pytest.param(kind, options, id=f"{kind}-{name}")
    for kind in KINDS
    for name, options in VARIANTS.items()
    if not (kind.startswith("transpose") and options["neuron"] == "bilinear")
]
# each neuron as a layer and as a convolution, and each other kind once: for what takes a second
SOME = [case for case in ALL if case.id.startswith(("linear", "conv2d")) or "-quadratic" in case.id]
every_layer = pytest.mark.parametrize(("kind", "options"), ALL)
some_layers = pytest.mark.parametrize(("kind", "options"), SOME)
merged_kinds = pytest.mark.parametrize("kind", ["conv1d", "conv2d", "conv3d"])
maybe_normalised = pytest.mark.parametrize("norm", [False, True], ids=["", "normalised"])
ignore_script_is_deprecated = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated", "ignore:The TorchScript type system doesn't support"
)


def build(kind, options, dtype=torch.float32, **factory):
    """The layer with random values everywhere, and an input for it."""
    layer, sizes, geometry, shape = KINDS[kind]
    made = layer(*sizes, **geometry, **options, dtype=dtype, **factory)
    if "device" not in factory:
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.normal_(0.0, 0.5)
    return made, torch.randn(shape, dtype=dtype)


def plain(layer, x):
    with qcore.backend("plain"):
        return layer(x)


def gradients(layer, x, run=None):
    """The value and the gradients of a weighted sum of it, for the input and every parameter."""
    x = x.detach().requires_grad_()
    y = (run or layer)(x)
    weights = torch.linspace(-1.0, 1.0, y.numel(), dtype=y.dtype).view(y.shape)
    return [y, *torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])]


# --- other ways to run it ---


@every_layer
@ignore_script_is_deprecated
def test_scripted_layer_returns_the_same_bits(kind, options):
    layer, x = build(kind, options)
    assert torch.equal(torch.jit.script(layer)(x), plain(layer, x))


SCRIPT_ALONE = """
import warnings, torch, qcore
warnings.filterwarnings("ignore", "`torch.jit.script`")
layer, x = qcore.QuadraticConvTranspose2d(2, 3, 2), torch.randn(1, 2, 4, 4)
assert torch.equal(torch.jit.script(layer)(x), layer(x))
"""


def test_a_layer_scripts_where_no_other_was_scripted_before():
    """TorchScript knows a module's type by name only after it has compiled one."""
    subprocess.run([sys.executable, "-c", SCRIPT_ALONE], check=True, timeout=120)


@every_layer
@ignore_script_is_deprecated
def test_a_symbolic_trace_and_its_script_return_the_same_bits(kind, options):
    layer, x = build(kind, options)
    traced = fx.symbolic_trace(layer)
    assert torch.equal(traced(x), plain(layer, x))
    assert torch.equal(torch.jit.script(traced)(x), plain(layer, x))


@every_layer
def test_exported_layer_returns_the_same_values(kind, options):
    layer, x = build(kind, options)
    exported = torch.export.export(layer.eval(), (x,)).module()
    torch.testing.assert_close(exported(x), plain(layer, x))


@some_layers
def test_onnx_returns_the_same_values(kind, options, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    layer, x = build(kind, options)
    path = tmp_path / "layer.onnx"
    torch.onnx.export(layer.eval(), (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(y, plain(layer, x).detach().numpy(), rtol=1e-4, atol=1e-5)


@every_layer
def test_compiled_layer_has_the_values_and_gradients_of_eager(kind, options):
    torch.compiler.reset()
    layer, x = build(kind, options)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(layer, x, compiled), gradients(layer, x))


def test_generated_code_has_the_values_and_gradients_of_eager():
    torch.compiler.reset()
    layer, x = build("conv2d", {"neuron": "quadratic"})
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(gradients(layer, x, compiled), gradients(layer, x))


# --- derivatives ---


@merged_kinds
@maybe_normalised
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("recompute", [0, 1, 2])
def test_the_fast_path_has_the_values_and_gradients_of_the_formula(kind, norm, bias, recompute):
    layer, x = build(kind, {"bias": bias, "rms_norm": norm}, dtype=DOUBLE)
    with qcore.backend("plain"):
        expected = gradients(layer, x)
    with qcore.backend("fast", recompute=recompute):
        assert layer.path(x) == "fast"
        torch.testing.assert_close(gradients(layer, x), expected)
        single = x[0]  # without a batch
        torch.testing.assert_close(layer(single), plain(layer, single))


@merged_kinds
@maybe_normalised
@pytest.mark.parametrize("recompute", [0, 1, 2])
def test_the_fast_path_takes_an_empty_batch(kind, norm, recompute):
    layer, x = build(kind, {"rms_norm": norm}, dtype=DOUBLE)
    with qcore.backend("plain"):
        expected = gradients(layer, x[:0])
    with qcore.backend("fast", recompute=recompute):
        assert layer.path(x[:0]) == "fast"
        torch.testing.assert_close(gradients(layer, x[:0]), expected)
        assert layer(x[:0]).shape == (0, *layer(x).shape[1:])


def test_float16_inputs_under_bfloat16_autocast_do_not_overflow():
    layer, x = build("conv2d", {"rms_norm": True})
    x = (300 * x).half()  # whose squares are more than float16 holds
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.path(x) == "fast"
        y = layer(x)
    assert y.isfinite().all()
    expected = plain(layer, x.float())
    assert (y.float() - expected).norm() < 0.02 * expected.norm()


@merged_kinds
@maybe_normalised
@pytest.mark.parametrize("recompute", [0, 1, 2])
def test_the_fast_path_has_second_derivatives(kind, norm, recompute):
    layer, x = build(kind, {"rms_norm": norm}, dtype=DOUBLE)
    parameters = dict(layer.named_parameters())

    def run(x, *values):
        replaced = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(layer, replaced, (x,))

    inputs = [t.detach().requires_grad_() for t in (x[:2], *parameters.values())]
    with qcore.backend("fast", recompute=recompute):
        own = "NormalisedBackward" if norm else "_MergedBackward"
        assert type(run(*inputs).grad_fn).__name__ == own
        assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@maybe_normalised
@pytest.mark.parametrize("letter", ["r", "g", "b"])
@pytest.mark.parametrize("recompute", [0, 1, 2])
def test_a_bias_may_be_missing_in_one_branch_of_the_fast_path(norm, letter, recompute):
    # as folding a batch norm into layers without biases leaves it
    layer, x = build("conv2d", {"rms_norm": norm}, dtype=DOUBLE)
    layer[letter].bias = None
    with qcore.backend("plain"):
        expected = gradients(layer, x)
    with qcore.backend("fast", recompute=recompute):
        assert layer.path(x) == "fast"
        torch.testing.assert_close(gradients(layer, x), expected)


@maybe_normalised
@pytest.mark.parametrize("letter", ["r", "g", "b"])
def test_frozen_parameters_get_no_gradient_on_the_fast_path(norm, letter):
    layer, x = build("conv2d", {"rms_norm": norm}, dtype=DOUBLE)
    layer[letter].requires_grad_(False)
    learned = [p for p in layer.parameters() if p.requires_grad]
    with qcore.backend("plain"):
        expected = torch.autograd.grad(layer(x).square().sum(), learned)
    with qcore.backend("fast"):
        layer(x.detach()).square().sum().backward()  # an image needs none, either
    assert layer[letter].weight.grad is None
    torch.testing.assert_close([p.grad for p in learned], list(expected))


@every_layer
@ignore_script_is_deprecated  # torch.func.jvp uses it
def test_layers_under_torch_func(kind, options):
    layer, x = build(kind, options, dtype=DOUBLE)
    replicas = [build(kind, options, dtype=DOUBLE)[0] for _ in range(3)]
    stacked, _ = torch.func.stack_module_state(replicas)

    def run(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,))

    together = torch.func.vmap(run, in_dims=(0, None))(stacked, x)
    torch.testing.assert_close(together, torch.stack([replica(x) for replica in replicas]))
    parameters = dict(layer.named_parameters())
    found = torch.func.grad(lambda p: run(p, x).sum())(parameters)
    expected = torch.autograd.grad(layer(x).sum(), list(parameters.values()))
    torch.testing.assert_close(list(found.values()), list(expected))
    direction = torch.randn_like(x)
    _, slope = torch.func.jvp(layer, (x,), (direction,))
    step = 1e-6
    difference = (layer(x + step * direction) - layer(x - step * direction)) / (2 * step)
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-7)


@every_layer
def test_a_checkpointed_layer_has_the_same_gradients(kind, options):
    layer, x = build(kind, options)
    run = lambda x: checkpoint(layer, x, use_reentrant=False)  # noqa: E731
    torch.testing.assert_close(gradients(layer, x, run), gradients(layer, x))


# --- number formats and layouts ---


@every_layer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_autocast_stays_finite_where_the_result_fits(kind, options, dtype):
    layer, x = build(kind, options)
    # of every size up to 1e4, in the types that layers before it hand over
    x = (x.sign() * torch.logspace(-2, 4, x.numel()).view(x.shape)).requires_grad_()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(1e-4)
    exact = plain(layer, x)
    assert exact.abs().max() < torch.finfo(dtype).max
    for given in (x, x.to(dtype)):
        with torch.autocast("cpu", dtype=dtype):
            y = layer(given)
        assert y.dtype == dtype
        assert y.isfinite().all()
        tolerance = 0.05 * float(exact.detach().abs().max())
        torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=tolerance)
        assert all(g.isfinite().all() for g in torch.autograd.grad(y.mean(), [*layer.parameters()]))


def test_squares_beyond_float16_do_not_overflow_in_the_squared_branch():
    layer = qcore.QuadraticConv2d(1, 1, 1, neuron="squared_input")
    with torch.no_grad():
        layer["b"].weight.fill_(1e-4)
    with torch.autocast("cpu", dtype=torch.float16):
        y = layer(torch.full((1, 1, 2, 2), 1e4))
    torch.testing.assert_close(y, torch.full_like(y, 1e4))


@maybe_normalised
@pytest.mark.parametrize("name", ["plain", "fast"])
def test_channels_last_goes_in_and_comes_out(name, norm):
    layer, x = build("conv2d", {"rms_norm": norm})
    expected = plain(layer, x)
    layer = layer.to(memory_format=torch.channels_last)
    with qcore.backend(name):
        y = layer(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected)


# --- copies ---


def torch_save_and_load(layer):
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@every_layer
@pytest.mark.parametrize(
    "round_trip",
    [lambda layer: pickle.loads(pickle.dumps(layer)), copy.deepcopy, torch_save_and_load],  # noqa: S301
    ids=["pickle", "deepcopy", "torch.save"],
)
def test_layer_survives(kind, options, round_trip):
    layer, x = build(kind, options)
    restored = round_trip(layer)
    assert type(restored) is type(layer)
    assert torch.equal(restored(x), layer(x))
    assert all(
        ours is not theirs
        for ours, theirs in zip(layer.parameters(), restored.parameters(), strict=True)
    )


@every_layer
def test_weights_pass_through_a_safetensors_file(kind, options, tmp_path):
    layer, x = build(kind, options)
    other, _ = build(kind, options)
    assert not torch.equal(other(x), layer(x))
    safetensors.torch.save_model(layer, tmp_path / "layer.safetensors")
    safetensors.torch.load_model(other, tmp_path / "layer.safetensors")
    assert torch.equal(other(x), layer(x))


@every_layer
def test_a_layer_on_meta_is_allocated_and_drawn_anew(kind, options):
    layer, x = build(kind, options, device="meta")
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    assert layer(x.to("meta")).is_meta
    layer.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(torch.nan)
    layer.reset_parameters()
    torch.manual_seed(1)
    fresh, _ = build(kind, options, device="cpu")
    torch.manual_seed(1)
    layer.reset_parameters()
    assert layer(x).isfinite().all()
    assert [p.shape for p in layer.parameters()] == [p.shape for p in fresh.parameters()]
    assert all(p.isfinite().all() for p in layer.parameters())


# --- two processes ---


TRAIN_A_STEP = """
import sys, torch, qcore
from torch import nn

def gradients(rank=0, world=1):
    torch.manual_seed(0)
    model = nn.Sequential(
        qcore.QuadraticConv2d(2, 3, 3), nn.ReLU(), nn.Flatten(),
        qcore.QuadraticLinear(48, 4), qcore.LowRankForm(4, 2, rank=2),
    )
    x = torch.randn(8, 2, 6, 6)
    run = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    run(x[rank::world]).square().mean().backward()
    return [p.grad for p in model.parameters()]

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
assert torch.distributed.get_world_size() == 2
found = gradients(torch.distributed.get_rank(), 2)
torch.testing.assert_close(found, gradients())
print("the same gradients")
torch.distributed.destroy_process_group()
"""


def test_two_processes_have_the_gradients_of_one(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TRAIN_A_STEP)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            script,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the same gradients") == 2
