"""Every model that qzoo registers, found through timm's registry: a new one is tested unasked."""

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from timm.models import group_parameters
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.transforms.functional import to_pil_image, to_tensor

import qcore
from qzoo.models.cifar_qresnet import ARCHITECTURES

MODELS = [
    name
    for name in timm.list_models()
    if timm.model_entrypoint(name).__module__.startswith("qzoo.")
]

PARAMETERS = {("qresnet20", "quadratic"): 806_266, ("qresnet20", "compact"): 538_330}
"""At 10 classes, as the papers' networks have them."""

per_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def images(count=2, channels=3, height=32, width=32):
    return torch.randn(count, channels, height, width)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_registry_has_one_entry_per_row_and_none_with_weights():
    assert sorted(ARCHITECTURES) == sorted(MODELS)
    assert "qresnet20" in timm.list_models("qresnet*")
    assert "qresnet20.relinear_c10" in timm.list_models("qresnet*", include_tags=True)
    assert timm.list_models("qresnet*", pretrained=True) == []


@per_model
def test_parameters(name):
    assert parameters(timm.create_model(name)) == PARAMETERS[name, "quadratic"]
    compact = timm.create_model(name, neuron="compact")
    assert parameters(compact) == PARAMETERS[name, "compact"]


@per_model
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
    model = timm.create_model(name)
    cfg = model.pretrained_cfg
    assert (cfg["architecture"], cfg["tag"]) == (name, "relinear_c10")
    assert cfg["input_size"] == (model.in_chans, 32, 32)
    assert cfg["num_classes"] == model.num_classes == 10
    assert model.get_classifier(name_only=True) == cfg["classifier"]
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)
    assert model.forward_features(images()).shape[2:] == cfg["pool_size"]


@per_model
def test_timm_feeds_the_pixels_as_the_published_script_does(name):
    config = resolve_data_config(model=timm.create_model(name))
    pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    fed = create_transform(**config)(to_pil_image(pixels))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    assert torch.equal(fed, (to_tensor(to_pil_image(pixels)) - mean) / std)  # nothing is resized


@per_model
def test_every_parameter_gets_a_gradient(name):
    model = timm.create_model(name, num_classes=42)
    logits = model(images())
    assert logits.shape == (2, 42)
    logits.square().mean().backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []
    assert all(value.grad.isfinite().all() for value in model.parameters())


@per_model
def test_trains_with_relinear(name):
    model = timm.create_model(name)
    strategy = qcore.ReLinear(gamma=1e-4)
    groups = strategy.param_groups(model, lr=0.05, weight_decay=1e-4)
    optimizer = strategy.attach(torch.optim.SGD(groups, momentum=0.9))
    x, y = images(16, 3, 16, 16), torch.arange(16) % 10
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    moved = [key for key, value in model.named_parameters() if ".g." in key and value.any()]
    assert len(moved) == sum(".g." in key for key, _ in model.named_parameters())


@per_model
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_starts_as_its_linear_network(name, training):
    quadratic = timm.create_model(name).train(training)
    linear = timm.create_model(name, neuron="linear").train(training)
    state = quadratic.state_dict()
    linear.load_state_dict({key: state[key] for key in linear.state_dict()})
    x = images(4)
    assert torch.equal(quadratic(x), linear(x))


@per_model
def test_state_round_trip(name, tmp_path):
    model = timm.create_model(name)
    model(images())  # moves the statistics of the batch norms
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    other = timm.create_model(name)
    other.load_state_dict(load_file(path))
    x = images()
    assert torch.equal(model.eval()(x), other.eval()(x))


@per_model
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


@per_model
def test_features(name):
    info = timm.create_model(name).feature_info
    features = timm.create_model(name, features_only=True).eval()
    outputs = features(images(2, 3, 32, 32))
    assert features.feature_info.channels() == [level["num_chs"] for level in info]
    expected = [(2, level["num_chs"], 32 // level["reduction"]) for level in info]
    assert [tuple(output.shape[:3]) for output in outputs] == expected
    last = timm.create_model(name, features_only=True, out_indices=(-1,))
    assert last.feature_info.channels() == [info[-1]["num_chs"]]


@per_model
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


@per_model
def test_group_matcher_names_stem_blocks_and_head(name):
    model = timm.create_model(name)
    depths = [len(stage) for stage in model.stages]
    for coarse, count in ((False, sum(depths)), (True, len(depths))):
        groups = group_parameters(model, model.group_matcher(coarse))
        assert len(groups) == 1 + count + 1
        assert groups[0] == ["conv1.weight", "bn1.weight", "bn1.bias"]
        assert groups[count + 1] == ["fc.weight", "fc.bias"]


@per_model
def test_checkpointing_changes_no_gradient(name):
    model = timm.create_model(name)
    x = images()
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        gradients.append(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@per_model
def test_drop_rate_acts_in_training_only(name):
    model = timm.create_model(name, drop_rate=0.5)
    assert model.drop_rate == 0.5
    features = torch.ones(2, model.num_features, 1, 1)
    dropped = model.forward_head(features, pre_logits=True)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    kept = model.eval().forward_head(features, pre_logits=True)
    assert torch.equal(kept, torch.ones_like(kept))


@per_model
def test_builds_in_another_dtype_and_without_memory(name):
    double = timm.create_model(name, dtype=torch.float64).eval()
    double.reset_classifier(3)
    assert double(images().double()).dtype == torch.float64
    meta = timm.create_model(name, device="meta")
    assert all(value.is_meta for value in meta.state_dict().values())


@per_model
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning")
def test_scripts(name):
    model = timm.create_model(name).eval()
    x = images()
    assert torch.allclose(torch.jit.script(model)(x), model(x), atol=1e-5)


@per_model
def test_fx_trace(name):
    model = timm.create_model(name).eval()
    x = images()
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


@per_model
def test_no_weights_yet(name):
    with pytest.raises(RuntimeError) as error:
        timm.create_model(name, pretrained=True)
    assert str(error.value) == (
        f"No pretrained weights exist for {name}. Use `pretrained=False` for random init."
    )


@per_model
def test_unknown_tag(name):
    with pytest.raises(RuntimeError, match=rf"Invalid pretrained tag \(typo\) for {name}"):
        timm.create_model(f"{name}.typo")


@per_model
@pytest.mark.parametrize(
    ("keywords", "kind", "text"),
    [
        ({"neurone": "qres"}, TypeError, "unexpected keyword argument 'neurone'"),
        ({"drop_path_rate": 0.1}, TypeError, "unexpected keyword argument 'drop_path_rate'"),
        (
            {"neuron": "quadratik"},
            ValueError,
            "unknown neuron 'quadratik': did you mean 'quadratic'? The catalogue has quadratic, ",
        ),
        (
            {"global_pool": "mean"},
            ValueError,
            "global_pool='mean' is not allowed: "
            "choose from ('avg', 'max', 'avgmax', 'catavgmax', '')",
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
            "give widths that do not decrease",
        ),
        ({"drop_rate": 1.5}, ValueError, "dropout probability has to be between 0 and 1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_errors(name, keywords, kind, text):
    with pytest.raises(kind) as error:
        timm.create_model(name, **keywords)
    assert text in str(error.value)
