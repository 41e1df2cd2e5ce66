"""qcore's surgery on the models that people have: timm's, torchvision's and our own."""

import re
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision import models as torchvision_models

import qcore
import qzoo  # noqa: F401 - registers its models with timm

# Small variants and inputs of families that differ in how they are put together.
ARCHITECTURES = {
    "resnet18": {},
    "resnext50_32x4d": {},  # grouped
    "efficientnet_b0": {},  # depthwise, squeeze and excitation
    "mobilenetv3_small_050": {},
    "tf_efficientnetv2_b0": {},  # Conv2dSame
    "regnetx_002": {},
    "densenet121": {},
    "ghostnet_050": {},
    "repvgg_a0": {},
    "nf_resnet26": {},  # standardised weights with a gain
    "convnext_atto": {},
    "levit_128s": {"img_size": 224},
    "vit_tiny_patch16_224": {"img_size": 32},
    "deit_tiny_distilled_patch16_224": {"img_size": 32},  # two heads
    "swin_tiny_patch4_window7_224": {"img_size": 56},
    "mixer_s32_224": {"img_size": 64},
    "beit_base_patch16_224": {"img_size": 32, "depth": 2},  # reads qkv.weight
}
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
WITH_REFERENCE = [name for name, neuron in qcore.CATALOGUE.items() if neuron.reference]

# timm's LeViT flattens between layer and batch norm, DenseNet and RepVGG also normalise sums.
NORMS_LEFT = {"levit_128s": 48, "densenet121": 62, "repvgg_a0": 17}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def settle(model):
    """Give what starts at 0, and so hides what comes before it, and all statistics other values."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0.0, 0.1)
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.5, 2.0)
    return model


def create(name, size=32):
    """A timm model in eval mode, and an input for it."""
    options = ARCHITECTURES[name]
    size = options.get("img_size", size)
    if name == "levit_128s":
        options = {}  # its size is fixed
    return settle(timm.create_model(name, num_classes=7, **options)).eval(), images(size)


def images(size, count=2):
    return torch.randn(count, 3, size, size)


def same(left, right, tolerance=1e-5):
    assert left.shape == right.shape
    assert left.abs().max() > 0
    assert (left - right).abs().max() <= tolerance * left.abs().max()


def norms(model):
    return sum(isinstance(module, _BatchNorm) for module in model.modules())


@every_architecture
def test_quadratize_keeps_outputs_and_linearize_the_model(name):
    model, x = create(name)
    upgraded = qcore.quadratize(model)
    report = qcore.surgery_report(upgraded)
    layers = [
        path for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    assert set(layers) == {*report.quadratic, *report.left_alone}
    assert bool(report.left_alone) == (name == "beit_base_patch16_224")
    for mode in (False, True):
        results = []
        for network in (model, upgraded):
            torch.manual_seed(1)
            with torch.no_grad():
                results.append(network.train(mode)(x))
        same(*results)
    back = qcore.linearize(upgraded, inplace=True)
    expected = model.state_dict()
    assert list(back.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in back.state_dict().items())


@pytest.mark.parametrize("neuron", WITH_REFERENCE)
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_every_neuron_with_a_reference(name, neuron):
    model, x = create(name)
    # dense forms over 512·9 inputs would take gigabytes
    rank = 1 if neuron == "bilinear" else None
    upgraded = qcore.quadratize(model, neuron, rank=rank, inplace=True)
    assert {layer.neuron for layer in upgraded.modules() if isinstance(layer, qcore.Quadratic)} == {
        neuron
    }
    with torch.no_grad():
        result = upgraded(x)
        same(qcore.linearize(upgraded, inplace=True)(x), result)


def test_depthwise_convolutions_have_no_form():
    model, _ = create("mobilenetv3_small_050")
    report = qcore.surgery_report(qcore.quadratize(model, "bilinear", rank=1), "bilinear")
    assert "groups=1, not groups=16" in report.left_alone["blocks.0.0.conv_dw"]
    assert report.quadratic["conv_stem"] == "bilinear"


def test_convolutions_with_tensorflow_padding_stay_their_kind():
    model, _ = create("tf_efficientnetv2_b0")
    upgraded = qcore.quadratize(model)
    assert all(isinstance(branch, Conv2dSame) for branch in upgraded.conv_stem.values())


def test_layers_whose_weight_timm_reads():
    model, _ = create("beit_base_patch16_224")
    assert qcore.surgery_report(model).left_alone == {
        f"blocks.{i}.attn.qkv": (f"blocks.{i}.attn (Attention) reads its weight or bias in forward")
        for i in range(2)
    }


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_torchvision(training):
    vit = torchvision_models.VisionTransformer(32, 16, 2, 2, 32, 64, num_classes=5)
    swin = torchvision_models.SwinTransformer(
        [4, 4], 16, [1, 1], [2, 2], [2, 2], stochastic_depth_prob=0.0, num_classes=5
    )
    resnet = torchvision_models.resnet18(num_classes=5)
    alone = {
        vit: [f"encoder.layers.encoder_layer_{i}.self_attention.out_proj" for i in range(2)],
        swin: [f"features.{i}.0.attn.{name}" for i in (1, 3) for name in ("qkv", "proj")],
        resnet: [],
    }
    x = images(32)
    for model, expected in alone.items():
        settle(model).train(training)
        upgraded = qcore.quadratize(model)
        assert list(qcore.surgery_report(upgraded).left_alone) == expected
        with torch.no_grad():
            same(model(x), upgraded(x))


@every_architecture
def test_fold_batchnorm(name):
    model, x = create(name)
    with torch.no_grad():
        folded = qcore.fold_batchnorm(model)
        same(model(x), folded(x))
    assert norms(folded) == NORMS_LEFT.get(name, 0)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "tf_efficientnetv2_b0"])
def test_fold_batchnorm_after_quadratize(name):
    model, x = create(name)
    upgraded = qcore.quadratize(model)
    with torch.no_grad():
        for parameter in upgraded.parameters():
            if not parameter.any():
                parameter.normal_(0.0, 1e-3)
        folded = qcore.fold_batchnorm(upgraded)
        same(upgraded(x), folded(x))
    assert (norms(upgraded), norms(folded)) == (norms(model), 0)


@pytest.mark.parametrize("neuron", WITH_REFERENCE)
def test_qresnet_folds_fully(neuron):
    model = settle(timm.create_model("qresnet20", neuron=neuron, depths=(1, 2), widths=(4, 8)))
    x = images(16)
    with torch.no_grad():
        folded = qcore.fold_batchnorm(model.eval())
        same(model(x), folded(x))
    assert (norms(model), norms(folded)) == (7, 0)


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("resnet18", ["fc"]),
        ("efficientnet_b0", ["classifier"]),
        ("convnext_atto", ["head.fc"]),
        ("levit_128s", ["head.linear", "head_dist.linear"]),
        ("deit_tiny_distilled_patch16_224", ["head", "head_dist"]),
        ("vit_tiny_patch16_224", ["head"]),
    ],
)
def test_replace_head_by_timm_s_own_account(name, paths):
    model, x = create(name)
    for classes, expected in ((None, 7), (5, 5)):
        new = qcore.replace_head(model, "low_rank", rank=2, num_classes=classes)
        assert {type(new.get_submodule(path)) for path in paths} == {qcore.LowRankForm}
        with torch.no_grad():
            assert new(x).shape == (2, expected)
        assert new.num_classes == expected
    new.reset_classifier(3)
    assert new(x).shape == (2, 3)


def test_a_convolution_as_head_becomes_a_form_of_each_pixel():
    model = timm.create_model("resnetv2_18", num_classes=7)
    assert isinstance(model.head.fc, nn.Conv2d)
    new = qcore.replace_head(model, "dense", affine=True)
    assert isinstance(new.head.fc, qcore.PatchForm)
    assert new(images(32)).shape == (2, 7)
    assert isinstance(qcore.replace_head(new).head.fc, nn.Conv2d)


def test_a_model_without_classifier_needs_num_classes():
    model = timm.create_model("resnet18", num_classes=0)
    with pytest.raises(ValueError, match=r"model \(ResNet\) has no classifier now: give num_class"):
        qcore.replace_head(model, "dense")
    assert qcore.replace_head(model, "low_rank", rank=1, num_classes=4).num_classes == 4


def test_replace_head_of_torchvision_and_of_our_own():
    resnet = qcore.replace_head(torchvision_models.resnet18(num_classes=5), "low_rank", rank=3)
    assert (resnet.fc.out_features, resnet.fc.rank) == (5, 3)
    own = qcore.replace_head(timm.create_model("qresnet20"), "dense", num_classes=4)
    assert own(images(32)).shape == (2, 4)
    truncated, energy = qcore.truncate_head(own.fc, rank=8)
    own.fc = truncated
    assert own(images(32)).shape == (2, 4)
    assert ((energy > 0) & (energy < 1)).all()


def test_the_readme_of_qcore_upgrades_a_timm_model():
    readme = Path(__file__).parents[2] / "qcore" / "README.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", readme.read_text(), re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if "import timm" in block]
    namespace = {}
    exec(compile(block, "README.md", "exec"), namespace)  # noqa: S102 - our own README
    x = torch.randn(2, 3, 32, 32)
    quadratic, original = (namespace[name].eval() for name in ("model", "original"))
    assert sum(isinstance(module, qcore.Quadratic) for module in quadratic.modules()) == 21
    torch.testing.assert_close(quadratic(x), original(x), rtol=1e-5, atol=1e-5)
