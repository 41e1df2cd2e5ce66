"""Every model that qzoo registers, found through timm's registry: a new one is tested unasked."""

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from timm.models import group_parameters
from timm.utils.model import reparameterize_model
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.transforms.functional import to_pil_image, to_tensor

import qcore
from qzoo.architectures import ARCHITECTURES, CIFAR_QRESNETS

MODELS = [
    name
    for name in timm.list_models()
    if timm.model_entrypoint(name).__module__.startswith("qzoo.")
]
# One of each kind for what takes a second; timm's own tests run for all, by an option of nox.
SAMPLE = [
    "qresnet20",
    "qresnet20_compact",
    "qresnet20_rezero",
    "qresnet20_rms",
    "qresnet20_rank2",
    "qresnet10",
    "cifar_resnet10_rank1",
    "cifar_resnet20",
    "cifar_resnet20_dense",
    "cifar_resnet20_w28",
]

# At 10 classes: the papers' networks, the published ReLinear code's, He et al.'s.
PARAMETERS = {
    "qresnet20": 806_266,
    "qresnet32": 1_389_114,
    "qresnet44": 1_971_962,
    "qresnet56": 2_554_810,
    "qresnet110": 5_177_626,
    "qresnet152": 7_162_052,
    "qresnet1202": 58_216_794,
    "qresnet20_compact": 538_330,
    "qresnet32_compact": 927_194,
    "qresnet44_compact": 1_316_058,
    "qresnet56_compact": 1_704_922,
    "qresnet110_compact": 3_454_810,
    "qresnet20_rezero": 806_266 + 9,
    "qresnet56_rezero": 2_554_810 + 27,
    "qresnet20_rms": 806_266,
    "qresnet110_rms": 5_177_626,
    "qresnet10": 14_346_186,
    "qresnet18": 33_156_426,
    "cifar_resnet20": 269_722,
    "cifar_resnet32": 464_154,
    "cifar_resnet44": 658_586,
    "cifar_resnet56": 853_018,
    "cifar_resnet110": 1_727_962,
    "cifar_resnet10": 4_903_242,
    "cifar_resnet18": 11_173_962,
    "cifar_resnet18_rank4": 11_173_962 - 5_130 + 4 * 5_120,  # no bias
    "cifar_resnet20_dense": 269_722 - 650 + 10 * 64 * 65 // 2,
}

per_model = pytest.mark.parametrize("name", CIFAR_QRESNETS)
per_kind = pytest.mark.parametrize("name", SAMPLE)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def images(count=2, channels=3, height=32, width=32):
    return torch.randn(count, channels, height, width)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_registry_has_one_entry_per_row():
    assert sorted(ARCHITECTURES) == sorted(MODELS)
    assert "qresnet20" in timm.list_models("qresnet*")
    assert "qresnet20.relinear_c10" in timm.list_models("qresnet*", include_tags=True)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    assert parameters(timm.create_model(name, device="meta")) == PARAMETERS[name]


@pytest.mark.parametrize("size", [20, 32, 44, 56, 10, 18])
def test_the_control_has_as_many_parameters(size):
    (control,) = timm.list_models(f"cifar_resnet{size}_w*")
    quadratic = parameters(timm.create_model(f"qresnet{size}", device="meta"))
    linear = timm.create_model(control, device="meta")
    assert parameters(linear) == pytest.approx(quadratic, rel=0.02)
    assert not any(isinstance(module, qcore.Quadratic) for module in linear.modules())
    assert control.endswith(f"_w{linear.stages[0][0].conv1.out_channels}")


@per_kind
@pytest.mark.parametrize("size", [(32, 32), (28, 28), (31, 33), (1, 1)], ids=str)
def test_shapes(name, size):
    model = timm.create_model(name).eval()
    x = images(2, 3, *size)
    height, width = (-(-side // model.feature_info[-1]["reduction"]) for side in size)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, height, width)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert model.forward_head(features).shape == (2, model.num_classes)
    assert torch.equal(model(x), model.forward_head(features))
    assert model(x).isfinite().all()


@per_model
def test_default_cfg_is_what_the_model_has(name):
    model = timm.create_model(name, device="meta")
    cfg = model.pretrained_cfg
    # a linear network is not trained by ReLinear, nor is one with a norm
    alone = name.startswith("cifar_resnet") or name.endswith("_rms")
    tag = "c10" if alone else "relinear_c10"
    assert (cfg["architecture"], cfg["tag"]) == (name, tag)
    assert cfg["input_size"] == (model.in_chans, 32, 32)
    assert cfg["num_classes"] == model.num_classes == 10
    assert model.get_classifier(name_only=True) == cfg["classifier"]
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)
    assert model.forward_features(images().to("meta")).shape[2:] == cfg["pool_size"]


@per_kind
def test_timm_feeds_the_pixels_as_the_published_script_does(name):
    config = resolve_data_config(model=timm.create_model(name))
    pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    fed = create_transform(**config)(to_pil_image(pixels))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    assert torch.equal(fed, (to_tensor(to_pil_image(pixels)) - mean) / std)  # nothing is resized


@per_kind
def test_every_parameter_gets_a_gradient(name):
    model = timm.create_model(name, num_classes=42)
    for gate in (p for key, p in model.named_parameters() if key.endswith("rezero.gate")):
        nn.init.ones_(gate)  # at 0 it alone has a gradient
    logits = model(images())
    assert logits.shape == (2, 42)
    logits.square().mean().backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []
    assert all(value.grad.isfinite().all() for value in model.parameters())


@pytest.mark.parametrize(
    ("name", "lr", "share"),
    [
        ("qresnet20", 0.05, 0.5),
        ("qresnet20_compact", 0.05, 0.5),
        ("qresnet20_rezero", 0.05, 0.96),  # whose blocks are switched off at the start
        ("qresnet20_rank2", 0.001, 0.5),  # a quadratic head diverges at a rate of 0.01
    ],
)
def test_trains_with_relinear(name, lr, share):
    model = timm.create_model(name)
    strategy = qcore.ReLinear(gamma=1e-4)
    groups = strategy.param_groups(model, lr=lr, weight_decay=1e-4)
    optimizer = strategy.attach(torch.optim.SGD(groups, momentum=0.9))
    x, y = images(16, 3, 16, 16), torch.arange(16) % 10
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < share * losses[0]
    moved = [value.any() for key, value in model.named_parameters() if ".b." in key]
    assert moved
    assert all(moved)


@pytest.mark.parametrize("name", [name for name in SAMPLE if name.startswith("qresnet")])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_starts_as_its_linear_network(name, training):
    quadratic = timm.create_model(name).train(training)
    without = {"rms_norm": False} if name.endswith("_rms") else {}
    linear = timm.create_model(name, neuron="linear", **without).train(training)
    state = {key.replace(".r.", "."): value for key, value in quadratic.state_dict().items()}
    linear.load_state_dict({key: state[key] for key in linear.state_dict()})
    x = images(4)
    assert torch.equal(quadratic(x), linear(x))


@per_kind
def test_state_round_trip(name, tmp_path):
    model = timm.create_model(name)
    model(images())  # moves the statistics of the batch norms
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    other = timm.create_model(name)
    other.load_state_dict(load_file(path))
    x = images()
    assert torch.equal(model.eval()(x), other.eval()(x))


@per_kind
def test_weights_from_a_file_adapt_to_channels_and_classes(name, tmp_path):
    model = timm.create_model(name).eval()
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    arguments = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    x = images(2, 1)
    same = timm.create_model(name, **arguments).eval()
    assert torch.equal(model(x.expand(-1, 3, -1, -1)), same(x.expand(-1, 3, -1, -1)))
    grey = timm.create_model(name, in_chans=1, num_classes=7, **arguments).eval()
    assert grey(x).shape == (2, 7)
    features = model.forward_features(x.expand(-1, 3, -1, -1))
    assert torch.allclose(grey.forward_features(x), features, atol=1e-4)


@per_kind
def test_features(name):
    info = timm.create_model(name).feature_info
    features = timm.create_model(name, features_only=True).eval()
    outputs = features(images(2, 3, 32, 32))
    assert features.feature_info.channels() == [level["num_chs"] for level in info]
    expected = [(2, level["num_chs"], 32 // level["reduction"]) for level in info]
    assert [tuple(output.shape[:3]) for output in outputs] == expected
    last = timm.create_model(name, features_only=True, out_indices=(-1,))
    assert last.feature_info.channels() == [info[-1]["num_chs"]]


@per_kind
def test_reset_classifier(name):
    model = timm.create_model(name, num_classes=100).eval()
    x = images()
    assert model(x).shape == (2, 100)
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)
    assert not model.fc.training
    model.reset_classifier(5, "catavgmax")
    assert model(x).shape == (2, 5)
    assert model.head_hidden_size == 2 * model.num_features
    model.reset_classifier(0, "avg")
    assert torch.equal(model(x), model.forward_features(x).mean((2, 3)))
    model.reset_classifier(0, "")
    assert torch.equal(model(x), model.forward_features(x))


@per_kind
def test_a_new_classifier_is_frozen_where_the_old_one_was(name):
    model = timm.create_model(name).eval()
    model.fc.requires_grad_(False)
    model.reset_classifier(3)
    assert not any(parameter.requires_grad for parameter in model.fc.parameters())
    model.reset_classifier(0)
    model.reset_classifier(4)  # there was none that could be frozen
    assert all(parameter.requires_grad for parameter in model.fc.parameters())


@per_kind
def test_intermediates_are_the_outputs_of_stem_and_stages(name):
    model = timm.create_model(name).eval()
    x = images()
    final, found = model.forward_intermediates(x)
    expected = [model.stem(x)]
    for stage in model.stages:
        expected.append(stage(expected[-1]))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert torch.equal(final, model.forward_features(x))
    (last,) = model.forward_intermediates(x, indices=1, intermediates_only=True)
    assert torch.equal(last, expected[-1])
    early, found = model.forward_intermediates(x, indices=[0, 1], stop_early=True)
    assert len(found) == 2
    assert torch.equal(early, expected[1])
    with pytest.raises(ValueError, match="output_fmt='NLC' is not allowed: choose from 'NCHW'"):
        model.forward_intermediates(x, output_fmt="NLC")


@per_kind
def test_pruning_keeps_what_the_intermediates_need(name):
    model = timm.create_model(name).eval()
    x = images()
    expected = model.forward_intermediates(x, indices=[1], intermediates_only=True)
    assert model.prune_intermediate_layers([1]) == [1]
    assert len(model.stages) == 1
    assert torch.equal(model(x), expected[0])
    assert model.num_features == model.feature_info[1]["num_chs"]


@per_kind
def test_fusing_keeps_the_outputs_and_leaves_no_batch_norm(name):
    model = timm.create_model(name).eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if "num_batches" not in key:
                value.uniform_(0.5, 1.5) if "running_var" in key else value.normal_(0.0, 0.1)
    x = images()
    fused = reparameterize_model(model)
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)
    assert any(isinstance(module, _BatchNorm) for module in model.modules())
    assert model.fuse() is model
    assert torch.equal(model(x), fused(x))
    with pytest.raises(ValueError, match="is in train mode"):
        timm.create_model(name).fuse()


def test_a_neuron_without_a_place_keeps_its_batch_norms():
    model = timm.create_model("qresnet20", neuron="product").eval()
    x = images()
    expected = model(x)
    norms = [m for m in model.fuse().modules() if isinstance(m, _BatchNorm)]
    assert len(norms) == 18  # but the stem's
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_gates_are_not_decayed():
    model = timm.create_model("qresnet20_rezero")
    assert len(model.no_weight_decay()) == 9
    assert timm.create_model("qresnet20").no_weight_decay() == set()


@per_kind
def test_group_matcher_names_stem_blocks_and_head(name):
    model = timm.create_model(name)
    depths = [len(stage) for stage in model.stages]
    for coarse, count in ((False, sum(depths)), (True, len(depths))):
        groups = group_parameters(model, model.group_matcher(coarse))
        assert len(groups) == 1 + count + 1
        assert groups[0] == ["stem.conv.weight", "stem.bn.weight", "stem.bn.bias"]
        head = [key for key, _ in model.named_parameters() if key.startswith("fc.")]
        assert groups[count + 1] == head


@per_kind
def test_checkpointing_changes_no_gradient(name):
    model = timm.create_model(name)
    x = images()
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        gradients.append(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@per_kind
def test_drop_rate_acts_in_training_only(name):
    model = timm.create_model(name, drop_rate=0.5)
    assert model.drop_rate == 0.5
    features = torch.ones(2, model.num_features, 1, 1)
    dropped = model.forward_head(features, pre_logits=True)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    kept = model.eval().forward_head(features, pre_logits=True)
    assert torch.equal(kept, torch.ones_like(kept))


@per_kind
def test_builds_in_another_dtype_and_without_memory(name):
    double = timm.create_model(name, dtype=torch.float64).eval()
    double.reset_classifier(3)
    assert {parameter.dtype for parameter in double.parameters()} == {torch.float64}
    assert double(images().double()).dtype == torch.float64
    meta = timm.create_model(name, device="meta")
    assert all(value.is_meta for value in meta.state_dict().values())
    meta.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*meta.parameters(), *meta.buffers()]:
            tensor.fill_(torch.nan if tensor.is_floating_point() else 7)
    torch.manual_seed(1)
    meta.init_weights()
    fresh = timm.create_model(name)
    assert torch.isfinite(meta.eval()(images())).all()
    for ours, theirs in zip(meta.parameters(), fresh.parameters(), strict=True):
        if theirs.numel() > 400:
            assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.3)


@per_kind
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning")
def test_scripts(name):
    model = timm.create_model(name).eval()
    x = images()
    assert torch.allclose(torch.jit.script(model)(x), model(x), atol=1e-5)


@per_kind
def test_fx_trace(name):
    model = timm.create_model(name).eval()
    x = images()
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


@pytest.mark.parametrize(
    ("keywords", "kind", "text"),
    [
        ({"neurone": "qres"}, TypeError, "unexpected keyword argument 'neurone'"),
        ({"block_size": 3}, TypeError, "unexpected keyword argument 'block_size'"),
        (
            {"neuron": "quadratik"},
            ValueError,
            "unknown neuron 'quadratik': did you mean 'quadratic'? The catalogue has quadratic, ",
        ),
        (
            {"global_pool": "mean"},
            ValueError,
            "global_pool='mean' is not allowed: "
            "choose from 'avg', 'max', 'avgmax', 'catavgmax', ''",
        ),
        (
            {"global_pool": ""},
            ValueError,
            "global_pool='' leaves an image, which a classifier with num_classes=10 cannot take: "
            "give num_classes=0 as well, or a pooling",
        ),
        (
            {"num_classes": -1},
            ValueError,
            "num_classes=-1 is not allowed: give 1 or more, or 0 for no classifier",
        ),
        ({"in_chans": 0}, ValueError, "in_chans has 0, which is not allowed: give 1 or more"),
        ({"depths": (3, 0, 3)}, ValueError, "depths has 0, which is not allowed: give 1 or more"),
        (
            {"depths": (3, 3)},
            ValueError,
            "depths=(3, 3) and widths=(16, 32, 64) do not match: "
            "give one of each per stage, for one stage or more",
        ),
        (
            {"widths": (16, 32, 16)},
            ValueError,
            "out_channels=16 is less than in_channels=32: this shortcut only adds channels; "
            "give widths that do not decrease, or shortcut='B'",
        ),
        (
            {"shortcut": "C"},
            ValueError,
            "shortcut='C' is not allowed: choose from 'A', 'B'",
        ),
        (
            {"residual": "fixup"},
            ValueError,
            "residual='fixup' is not allowed: choose from 'plain', 'rezero'",
        ),
        (
            {"head": "quadratic"},
            ValueError,
            "head='quadratic' is not allowed: choose from 'linear', 'dense', 'low_rank'",
        ),
        (
            {"head": "low_rank"},
            ValueError,
            "head='low_rank' needs a rank: give rank=1 or more",
        ),
        (
            {"signed": True},
            ValueError,
            "signed=True is for low-rank heads, but head='linear': choose head='low_rank'",
        ),
        (
            {"affine": True},
            ValueError,
            "affine=True is for quadratic heads; a linear head has its bias: choose head='dense' "
            "or head='low_rank'",
        ),
        (
            {"rank": 2},
            ValueError,
            "rank=2 is only for neurons with a quadratic form, such as 'bilinear'",
        ),
        (
            {"neuron": "bilinear", "rank": 2, "neuron_rank": 3},
            ValueError,
            "rank=2 is the rank of a low-rank head, or of bilinear neurons, which have "
            "neuron_rank=3 already: choose head='low_rank', or give one of them",
        ),
        (
            {"neuron": "linear", "rank": 2},
            ValueError,
            "rank=2 is for bilinear neurons and low-rank heads, but neuron='linear' and "
            "head='linear': choose neuron='bilinear' or head='low_rank'",
        ),
        (
            {"drop_path_rate": 1.5},
            ValueError,
            "drop_path_rate=1.5 is not allowed: give a probability from 0 to 1",
        ),
        ({"drop_rate": 1.5}, ValueError, "dropout probability has to be between 0 and 1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_errors(keywords, kind, text):
    with pytest.raises(kind) as error:
        timm.create_model("qresnet20", **keywords)
    assert text in str(error.value)
