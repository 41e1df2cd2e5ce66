"""DIQNNs: forms of pixels, alone and behind a convolution, as timm's models."""

import pytest
import timm
import torch
from timm.data import create_transform, resolve_data_config
from timm.models import group_parameters
from torch.nn.functional import conv2d
from torchvision.transforms.functional import to_pil_image, to_tensor

import qcore
import qzoo
from qzoo.architectures import DIQNNS
from qzoo.folder import read_folder, save_weights

SAMPLE = ["diqnn", "diqnn_rank1", "diqnn_rank10", "diqnn_conv", "diqnn_conv_rank4"]
per_kind = pytest.mark.parametrize("name", SAMPLE)

# at 10 classes: one form of 784 pixels, or of the 8×8×8 that the convolution makes of them
PARAMETERS = {
    "diqnn": 10 * 784 * 785 // 2,
    "diqnn_rank1": 7_840,
    "diqnn_rank10": 78_400,
    "diqnn_conv": 8 * 25 + 8 + 10 * 512 * 513 // 2,
    "diqnn_conv_rank4": 8 * 25 + 8 + 4 * 5_120,
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def images(count=2, channels=1):
    return torch.rand(count, channels, 28, 28)


def test_there_are_those_of_the_paper():
    assert len(DIQNNS) == 22
    assert {"diqnn", "diqnn_conv"} < DIQNNS.keys()
    ranks = {f"diqnn{conv}_rank{rank}" for conv in ("", "_conv") for rank in range(1, 11)}
    assert ranks < DIQNNS.keys()


@pytest.mark.parametrize("name", DIQNNS)
def test_default_cfg_is_what_the_model_has(name):
    model = timm.create_model(name, device="meta")
    cfg = model.pretrained_cfg
    assert (cfg["architecture"], cfg["tag"]) == (name, "fmnist" if "conv" in name else "mnist")
    assert cfg["input_size"] == (model.in_chans, 28, 28)
    assert cfg["num_classes"] == model.num_classes == 10
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    features = model.forward_features(images().to("meta"))
    assert features.shape == (2, model.num_features, *cfg["pool_size"])
    assert (cfg["first_conv"] is None) == ("conv" not in name)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@per_kind
def test_logits_are_the_papers_formula(name):
    model = timm.create_model(name, dtype=torch.float64).eval()
    x = images().double()
    z = x
    if "conv" in name:
        weight, bias = model.features[0].weight, model.features[0].bias
        z = conv2d(x, weight, bias, stride=3).clamp(min=0)
    z = z.flatten(1)
    expected = torch.empty(2, 10, dtype=torch.float64)
    for k in range(10):
        if "rank" in name:
            for i in range(2):
                expected[i, k] = sum((c @ z[i]) ** 2 for c in model.fc.weight[k])
        else:
            expected[:, k] = torch.einsum("bi,ij,bj->b", z, model.fc.matrix[k], z)
    torch.testing.assert_close(model(x), expected)


@per_kind
def test_every_parameter_gets_a_gradient(name):
    model = timm.create_model(name, num_classes=4, in_chans=3)
    logits = model(images(channels=3))
    assert logits.shape == (2, 4)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@per_kind
def test_without_a_classifier_it_gives_features(name):
    model = timm.create_model(name).eval()
    x = images()
    features = model.forward_features(x)
    assert torch.equal(model.forward_head(features, pre_logits=True), features.flatten(1))
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert not model.fc.training
    model.reset_classifier(0)
    assert torch.equal(model(x), features.flatten(1))
    assert model(x).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), features)
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)
    assert timm.create_model(name, num_classes=0, global_pool="")(x).shape == features.shape


@per_kind
def test_a_new_classifier_is_where_the_old_one_was(name):
    model = timm.create_model(name).to(device="meta", dtype=torch.float64).eval()
    model.reset_classifier(0)
    model.reset_classifier(2)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.float64)}
    assert not any(module.training for module in model.modules())


def test_timm_feeds_pixels_from_0_to_1():
    config = resolve_data_config(model=timm.create_model("diqnn_rank1"))
    pixels = to_pil_image(torch.randint(0, 256, (1, 28, 28), dtype=torch.uint8))
    assert torch.equal(create_transform(**config)(pixels), to_tensor(pixels))


@per_kind
def test_weights_go_to_a_folder_and_back(name, tmp_path):
    model = timm.create_model(name).eval()
    record = save_weights(model, tmp_path, tag="mine", reduced=True, seed=0)
    assert (record.name, record.preprocessing.input_size) == (f"{name}.mine", (1, 28, 28))
    x = images()
    assert torch.equal(read_folder(tmp_path).model()(x), model(x))


@per_kind
def test_builds_without_memory(name):
    meta = timm.create_model(name, device="meta")
    assert all(value.is_meta for value in meta.state_dict().values())
    meta.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in meta.parameters():
            parameter.fill_(torch.nan)
    meta.init_weights()
    assert meta(images()).isfinite().all()


@per_kind
def test_groups_of_parameters_are_convolution_and_head(name):
    model = timm.create_model(name)
    groups = group_parameters(model, model.group_matcher())
    named = [key for group in groups.values() for key in group]
    assert sorted(named) == sorted(key for key, _ in model.named_parameters())
    model.set_grad_checkpointing(False)
    with pytest.raises(ValueError, match="saves nothing"):
        model.set_grad_checkpointing()


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"head": "linear"}, "head='linear' is not allowed: choose from 'dense', 'low_rank'"),
        ({"head": "low_rank"}, "head='low_rank' needs a rank: give rank=1 or more"),
        ({"rank": 2}, "rank=2 is for low-rank heads, but head='dense'"),
        ({"signed": True}, "signed=True is for low-rank heads, but head='dense'"),
        ({"features_only": True}, "diqnn is one layer deep, and has no features in between: take"),
        ({"img_size": 0}, "img_size has 0, which is not allowed: give 1 or more"),
        ({"in_chans": 0}, "in_chans has 0, which is not allowed: give 1 or more"),
        ({"num_classes": -1}, "num_classes=-1 is not allowed: give 1 or more, or 0"),
        ({"global_pool": "avg"}, "global_pool='avg' is not allowed: choose from 'flatten', ''"),
        ({"global_pool": ""}, "cannot take: give num_classes=0 as well, or 'flatten'"),
        ({"img_size": (28, 28, 1)}, "img_size=(28, 28, 1) is not allowed: give height and width"),
        ({"convolution": (8, 5, 0)}, "convolution=(8, 5, 0) is not allowed: give channels, kernel"),
        ({"convolution": (8, 5)}, "convolution=(8, 5) is not allowed: give channels, kernel and"),
        (
            {"convolution": (8, 29, 1)},
            "a kernel of 29 does not fit images of 28×28: choose a smaller one",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_errors(keywords, text):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared
        timm.create_model("diqnn", **keywords)
    assert text in str(error.value)


def test_other_images_and_forms_by_keyword():
    model = qzoo.DIQNN((9, 12), head="low_rank", rank=2, signed=True, affine=True, in_chans=3)
    assert isinstance(model.fc, qcore.LowRankForm)
    assert model(torch.randn(2, 3, 9, 12)).shape == (2, 10)
