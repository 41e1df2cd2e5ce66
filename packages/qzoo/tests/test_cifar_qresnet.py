"""What is special to the QResNets: the initialisation, the neurons, the shortcut."""

import copy
import math

import pytest
import timm
import torch
from torch import nn

import qcore
import qzoo
from qzoo import CifarQResNet
from qzoo.folder import read_folder
from qzoo.models.blocks import OptionAShortcut, OptionBShortcut, ResidualBlock

TINY = {"depths": (1, 2), "widths": (4, 8)}
NEURONS = list(qcore.CATALOGUE)
WITH_REFERENCE = [name for name, neuron in qcore.CATALOGUE.items() if neuron.reference]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def quadratic_layers(model):
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, qcore.Quadratic)
    }


def is_torch_default(parameter, fan_in):
    """Uniform in ±1/√fan_in: never beyond, and beyond nine tenths of it somewhere."""
    bound = 1 / math.sqrt(fan_in)
    return 0.9 * bound < parameter.abs().max() <= bound


def not_initialised(model):
    """The quadratic convolutions that are not as the paper starts them."""
    wrong = []
    for path, layer in quadratic_layers(model).items():
        weight = layer["r"].weight
        fan_in = weight[0].numel()
        normal = 0.9 < weight.std() * math.sqrt(fan_in / 2) < 1.1  # torch's default has 0.41
        zero = not any(p.any() for letter in ("g", "b") for p in layer[letter].parameters())
        if not (normal and zero and weight.abs().max() > 3 * weight.std()):
            wrong.append(path)
    return wrong


def test_initialisation_reaches_every_quadratic_convolution():
    model = timm.create_model("qresnet20")
    assert len(quadratic_layers(model)) == 18
    assert not_initialised(model) == []
    # the published ReZero and compact files gave conv2's initialisation to conv1
    model.stages[1][0].conv2["r"].reset_parameters()
    nn.init.ones_(model.stages[2][1].conv1["g"].bias)
    assert not_initialised(model) == ["stages.1.0.conv2", "stages.2.1.conv1"]


def test_stem_head_and_biases_start_as_torch_starts_them():
    model = timm.create_model("qresnet20", num_classes=100)
    assert is_torch_default(model.stem.conv.weight, 27)
    assert is_torch_default(model.fc.weight, 64)
    assert is_torch_default(model.fc.bias, 64)
    for layer in quadratic_layers(model).values():
        bias = layer["r"].bias
        assert 0 < bias.abs().max() <= 1 / math.sqrt(layer["r"].weight[0].numel())


def test_init_weights_starts_again():
    model = timm.create_model("qresnet20")
    for parameter in model.stages.parameters():
        nn.init.ones_(parameter)
    model.init_weights()
    assert not_initialised(model) == []


@pytest.mark.parametrize("neuron", sorted(set(NEURONS) - set(WITH_REFERENCE)))
def test_neurons_without_a_reference_start_as_torch_starts_them(neuron):
    for layer in quadratic_layers(CifarQResNet(**TINY, neuron=neuron)).values():
        for branch in layer.values():
            assert is_torch_default(branch.weight, branch.weight[0].numel())


@pytest.mark.parametrize("neuron", WITH_REFERENCE)
def test_each_neuron_starts_as_the_linear_network(neuron):
    model = CifarQResNet(**TINY, neuron=neuron).eval()
    linear = CifarQResNet(**TINY, neuron="linear").eval()
    state = {key: value for key, value in model.state_dict().items() if key in linear.state_dict()}
    for path, layer in quadratic_layers(model).items():
        reference = layer.reference
        no_bias = torch.zeros(layer.out_channels)
        state[f"{path}.weight"] = reference.weight
        state[f"{path}.bias"] = no_bias if reference.bias is None else reference.bias
    linear.load_state_dict(state)
    x = torch.randn(3, 3, 12, 12)
    # not torch.equal: a form lays out its output in another order, and batch norm rounds otherwise
    assert torch.allclose(model(x), linear(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("neuron", NEURONS)
def test_every_neuron_of_the_catalogue(neuron):
    model = timm.create_model("qresnet20", **TINY, neuron=neuron)
    expected = set() if neuron == "linear" else {neuron}  # which is nn.Conv2d
    assert {layer.neuron for layer in quadratic_layers(model).values()} == expected
    logits = model(torch.randn(4, 3, 12, 12))
    assert logits.shape == (4, 10)
    logits.square().sum().backward()
    assert all(value.grad.isfinite().all() for value in model.parameters())


def test_a_neuron_of_ones_own():
    own = qcore.Neuron(
        "own", {"r": qcore.Branch(), "b": qcore.Branch("x2", bias=False)}, (("r",), ("b",)), "r", ""
    )
    model = timm.create_model("qresnet20", **TINY, neuron=own)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_stem_and_head_are_linear():
    model = CifarQResNet(**TINY)
    assert type(model.stem.conv) is nn.Conv2d
    assert model.stem.conv.bias is None
    assert type(model.fc) is nn.Linear


@pytest.mark.parametrize(
    ("channels", "out_channels", "stride"), [(16, 32, 2), (32, 64, 2), (3, 8, 1), (4, 4, 2)]
)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 5), (1, 1)])
def test_option_a_shortcut(channels, out_channels, stride, height, width):
    x = torch.randn(2, channels, height, width)
    rows, columns = -(-height // stride), -(-width // stride)
    expected = torch.zeros(2, out_channels, rows, columns)
    first = (out_channels - channels) // 2
    if out_channels == 2 * channels:
        assert first == out_channels // 4
    for k in range(channels):
        for i in range(rows):
            for j in range(columns):
                expected[:, first + k, i, j] = x[:, k, stride * i, stride * j]
    assert torch.equal(OptionAShortcut(channels, out_channels, stride)(x), expected)


def test_the_block_written_out():
    block = CifarQResNet(**TINY).stages[1][0].eval()
    for bn in (block.bn1, block.bn2):
        nn.init.normal_(bn.weight)
        nn.init.normal_(bn.bias)
        nn.init.uniform_(bn.running_var, 0.5, 2.0)
        nn.init.normal_(bn.running_mean)
    for parameter in [*block.conv1.parameters(), *block.conv2.parameters()]:
        nn.init.normal_(parameter, std=0.1)

    def quadratic(q, x, stride):
        def conv(branch, x):
            return nn.functional.conv2d(x, branch.weight, branch.bias, stride, padding=1)

        return conv(q["r"], x) * (1 + conv(q["g"], x)) + conv(q["b"], x**2)

    def norm(bn, x):
        scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
        return (x - bn.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + bn.bias.view(-1, 1, 1)

    x = torch.randn(2, 4, 10, 10)
    inner = norm(block.bn1, quadratic(block.conv1, x, stride=2)).relu()
    outer = norm(block.bn2, quadratic(block.conv2, inner, stride=1))
    outer[:, 2:6] += x[:, :, ::2, ::2]
    assert torch.allclose(block(x), outer.relu(), atol=1e-5)


# --- the parts by keyword ---


def test_a_gate_that_is_0_leaves_the_shortcut_alone():
    block = ResidualBlock(4, 4, residual="rezero")
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), x.relu())
    with torch.no_grad():
        block.rezero.gate.fill_(0.5)
    plain = ResidualBlock(4, 4)
    plain.load_state_dict(block.state_dict(), strict=False)
    residual = plain.bn2(plain.conv2(plain.act1(plain.bn1(plain.conv1(x)))))
    torch.testing.assert_close(block(x), (x + 0.5 * residual).relu())


def test_a_norm_is_in_every_quadratic_convolution_and_leaves_the_reference():
    plain, normed = (CifarQResNet(**TINY, rms_norm=norm).double().eval() for norm in (False, True))
    normed.load_state_dict(plain.state_dict())
    layers = [m for m in normed.modules() if isinstance(m, qcore.Quadratic)]
    assert [layer.rms_dims for layer in layers] == [3] * (2 * sum(TINY["depths"]))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(normed(x), plain(x))
    for layer in layers:
        for branch in layer.quadratic_branches().values():
            nn.init.normal_(branch.weight)
    plain.load_state_dict(normed.state_dict())
    assert not torch.allclose(normed(x), plain(x))


def test_a_norm_is_not_for_a_linear_network():
    said = "what quadratic branches see, and neuron 'linear' has none: choose another, or rms_norm="
    for name, options in (
        ("cifar_resnet20", {"rms_norm": True}),
        ("qresnet20_rms", {"neuron": "linear"}),
    ):
        with pytest.raises(ValueError, match=said):
            timm.create_model(name, **options)


def test_weights_of_a_network_with_a_norm_are_not_those_of_one_without(tmp_path):
    said = "weights of qresnet20 are of a network with rms_norm=False, and this one has rms_norm="
    with pytest.raises(qzoo.WeightsError, match=said):
        timm.create_model("qresnet20.relinear_c10", pretrained=True, rms_norm=True)
    named = timm.create_model("qresnet20", rms_norm=True)
    with pytest.raises(qzoo.WeightsError, match=said):
        qzoo.save_weights(named, tmp_path, tag="mine", reduced=True)
    assert not list(tmp_path.iterdir())
    model = timm.create_model("qresnet20_rms").eval()
    for layer in quadratic_layers(model).values():
        nn.init.normal_(layer["g"].weight, std=0.1)
    qzoo.save_weights(model, tmp_path, tag="mine", reduced=True)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(read_folder(tmp_path).model().eval()(x), model(x))


def test_shortcut_b_is_a_linear_projection():
    model = CifarQResNet(**TINY, shortcut="B")
    first, second = model.stages[1]
    assert isinstance(first.shortcut, OptionBShortcut)
    assert isinstance(second.shortcut, nn.Identity)
    assert [type(part) for part in first.shortcut] == [nn.Conv2d, nn.BatchNorm2d]
    assert (first.shortcut.conv.kernel_size, first.shortcut.conv.stride) == ((1, 1), (2, 2))
    assert CifarQResNet(depths=(1, 1), widths=(8, 4), shortcut="B")(torch.randn(2, 3, 8, 8)).any()


@pytest.mark.parametrize(
    ("options", "kind", "expected"),
    [
        ({"head": "dense", "affine": True}, qcore.QuadraticForm, {"affine": True}),
        (
            {"head": "low_rank", "rank": 3},
            qcore.LowRankForm,
            {"rank": 3, "signed": False, "affine": False},
        ),
        (
            {"head": "low_rank", "rank": 2, "signed": True, "affine": True},
            qcore.LowRankForm,
            {"rank": 2, "signed": True, "affine": True},
        ),
    ],
    ids=["dense", "rank3", "signed"],
)
def test_quadratic_heads(options, kind, expected):
    model = CifarQResNet(**TINY, **options)
    assert isinstance(model.fc, kind)
    assert {name: getattr(model.fc, name) for name in expected} == expected
    assert (model.fc.in_features, model.fc.out_features) == (8, 10)
    model.reset_classifier(5, "catavgmax")
    assert isinstance(model.fc, kind)
    assert {name: getattr(model.fc, name) for name in expected} == expected
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 5)


@pytest.mark.parametrize("options", [{"head": "dense"}, {"head": "low_rank", "rank": 2}])
def test_a_quadratic_head_is_its_form_under_the_name_weight(options):
    head = CifarQResNet(**TINY, **options, dtype=torch.float64).fc
    matrix = head.matrix
    x = torch.randn(5, 8, dtype=torch.float64)
    torch.testing.assert_close(head(x), torch.einsum("bi,kij,bj->bk", x, matrix, x))
    assert "weight" in head.state_dict()
    copied = copy.deepcopy(head)
    with torch.no_grad():
        copied.weight.mul_(2.0)
    assert not torch.equal(copied(x), head(x))
    (head(x).sum()).backward()
    assert head.weight.grad.any()
    head.reset_parameters()
    assert not torch.equal(head.matrix, matrix)


def test_rank_is_the_head_s_or_else_the_neuron_s():
    def ranks(**options):
        model = CifarQResNet(**TINY, **options)
        forms = [m for m in model.stages.modules() if isinstance(m, qcore.LowRankForm)]
        return {form.rank for form in forms}, getattr(model.fc, "rank", None)

    assert ranks(neuron="bilinear", rank=2) == ({2}, None)
    assert ranks(neuron="bilinear", head="low_rank", rank=2) == (set(), 2)  # dense neurons
    assert ranks(neuron="bilinear", neuron_rank=1, head="low_rank", rank=2) == ({1}, 2)


def test_drop_path_rises_from_block_to_block():
    model = CifarQResNet(depths=(2, 2), widths=(4, 8), drop_path_rate=0.3)
    paths = [block.drop_path for stage in model.stages for block in stage]
    assert isinstance(paths[0], nn.Identity)
    assert [path.drop_prob for path in paths[1:]] == pytest.approx([0.1, 0.2, 0.3])
