"""Surgery on hand-written models: what stays the same, what stays alone, and what is refused."""

import copy
import pickle
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import qcore
from qcore import (
    CATALOGUE,
    Branch,
    LowRankForm,
    Neuron,
    PatchForm,
    Quadratic,
    QuadraticConv2d,
    QuadraticForm,
    QuadraticLinear,
    fold_batchnorm,
    linearize,
    quadratize,
    replace_head,
    surgery_report,
    truncate_head,
)

DOUBLE = torch.float64
WITH_REFERENCE = [name for name, neuron in CATALOGUE.items() if neuron.reference is not None]
WITHOUT_REFERENCE = [name for name in CATALOGUE if name not in WITH_REFERENCE]
every_neuron = pytest.mark.parametrize("neuron", WITH_REFERENCE)

# Everything that can be replaced: a layer, and an input for it.
LAYERS = {
    "linear": (lambda bias: nn.Linear(6, 4, bias=bias), (3, 5, 6)),
    "conv1d": (lambda bias: nn.Conv1d(4, 6, 3, stride=2, bias=bias), (2, 4, 9)),
    "conv2d": (lambda bias: nn.Conv2d(4, 6, 3, padding="same", bias=bias), (2, 4, 7, 7)),
    "conv3d": (lambda bias: nn.Conv3d(2, 3, 2, bias=bias), (2, 2, 4, 4, 4)),
    "dilated": (lambda bias: nn.Conv2d(4, 6, (3, 2), dilation=2, bias=bias), (2, 4, 7, 7)),
    "reflect": (
        lambda bias: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=bias),
        (2, 4, 7, 7),
    ),
    "grouped": (lambda bias: nn.Conv2d(4, 6, 3, groups=2, bias=bias), (2, 4, 7, 7)),
    "depthwise": (lambda bias: nn.Conv2d(4, 4, 3, groups=4, bias=bias), (2, 4, 7, 7)),
    "transposed1d": (lambda bias: nn.ConvTranspose1d(4, 6, 3, bias=bias), (2, 4, 5)),
    "transposed2d": (
        lambda bias: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=bias),
        (2, 4, 5, 5),
    ),
    "transposed3d": (lambda bias: nn.ConvTranspose3d(2, 3, 2, bias=bias), (2, 2, 3, 3, 3)),
}
WITHOUT_FORM = ("grouped", "depthwise", "transposed1d", "transposed2d", "transposed3d")
with_and_without_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])


def small_net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4, 5),
    )


def randomize(model):
    """Random parameters and running statistics."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / 2)
        for module in model.modules():
            if getattr(module, "running_var", None) is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return model


def same(left, right, tolerance=1e-5):
    assert left.shape == right.shape
    assert (left - right).abs().max() <= tolerance * left.abs().max()


class TestQuadratize:
    @pytest.mark.parametrize(
        ("neuron", "name"),
        [
            (neuron, name)
            for neuron in WITH_REFERENCE
            for name in LAYERS
            if neuron != "bilinear" or name not in WITHOUT_FORM
        ],
    )
    @with_and_without_bias
    def test_the_user_s_module_becomes_the_reference(self, neuron, name, bias):
        build, shape = LAYERS[name]
        layer, x = build(bias), torch.randn(shape)
        state = copy.deepcopy(layer.state_dict())
        quadratic = quadratize(layer, neuron, inplace=True)
        assert isinstance(quadratic, Quadratic)
        assert quadratic.reference is layer
        same(layer(x), quadratic(x))
        back = linearize(quadratic, inplace=True)
        assert back is layer
        assert all(torch.equal(back.state_dict()[key], value) for key, value in state.items())

    @every_neuron
    def test_every_neuron_keeps_the_outputs_of_a_model(self, neuron):
        model, x = small_net(), torch.randn(4, 3, 8, 8)
        upgraded = quadratize(model, neuron)
        for mode in (True, False):
            model.train(mode)
            upgraded.train(mode)
            torch.manual_seed(1)
            expected = model(x)
            torch.manual_seed(1)
            same(expected, upgraded(x))
        same(model[1].running_mean, upgraded[1].running_mean)

    @every_neuron
    def test_every_quadratic_layer_receives_gradients(self, neuron):
        upgraded = quadratize(small_net(), neuron)
        upgraded(torch.randn(4, 3, 8, 8)).square().sum().backward()
        for path, layer in upgraded.named_modules():
            if isinstance(layer, Quadratic):
                for term in layer.terms:
                    factors = [layer[letter] for letter in term]
                    gradients = [p.grad for factor in factors for p in factor.parameters()]
                    assert any(grad is not None and grad.any() for grad in gradients), path

    @every_neuron
    def test_exactly_zero_where_the_neuron_says_so(self, neuron):
        layer = quadratize(nn.Linear(4, 3), neuron)
        zero = layer.branches_zero_at_reference()
        for letter, branch in layer.items():
            values = torch.cat([p.detach().flatten() for p in branch.parameters()])
            is_constant = isinstance(branch, qcore.Constant)
            assert bool((values == 0).all()) == (letter in zero or is_constant), letter

    def test_low_rank_forms_keep_their_factors(self):
        layer = quadratize(nn.Linear(4, 3), "bilinear", rank=2)
        assert isinstance(layer["q"], LowRankForm)
        assert not layer["q"].signs.any()
        assert layer["q"].factors.all()

    @pytest.mark.parametrize("neuron", WITHOUT_REFERENCE)
    def test_a_neuron_without_reference_is_refused_by_name(self, neuron):
        with pytest.raises(ValueError, match=f"neuron '{neuron}' .* choose one of quadratic, comp"):
            quadratize(small_net(), neuron)

    def test_a_neuron_of_one_s_own(self):
        own = Neuron("own", {"r": Branch(), "b": Branch("x2")}, (("r",), ("b",)), "r", "this test")
        model, x = nn.Linear(4, 3), torch.randn(5, 4)
        assert torch.equal(quadratize(model, own)(x), model(x))

    def test_a_copy_by_default_and_the_model_itself_inplace(self):
        model = small_net()
        convolution, before = model[0], copy.deepcopy(model.state_dict())
        upgraded = quadratize(model)
        assert model[0] is convolution
        assert upgraded is not model
        assert list(model.state_dict()) == list(before)
        assert quadratize(model, inplace=True) is model
        assert model[0]["r"] is convolution

    def test_linearize_is_the_exact_inverse(self):
        model = small_net()
        back = linearize(quadratize(model))
        assert str(back) == str(model)
        assert list(back.state_dict()) == list(model.state_dict())
        for key, value in model.state_dict().items():
            assert torch.equal(back.state_dict()[key], value), key

    def test_linearize_hands_back_the_state_as_trained(self):
        model = quadratize(nn.Linear(4, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
        back = linearize(model)
        assert torch.equal(back.weight, model["r"].weight)
        assert back.weight is not model["r"].weight

    def test_a_shared_module_is_replaced_once_and_stays_shared(self):
        shared = nn.Linear(4, 4)
        model = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared, nn.Linear(4, 2)))
        upgraded, x = quadratize(model), torch.randn(3, 4)
        assert upgraded[0] is upgraded[2][0]
        same(model(x), upgraded(x))
        back = linearize(upgraded)
        assert back[0] is back[2][0]
        assert surgery_report(upgraded).quadratic == {"0": "quadratic", "2.1": "quadratic"}

    def test_parametrizations_stay_on_the_user_s_module(self):
        layer = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
        layer = parametrizations.spectral_norm(layer).eval()
        x = torch.randn(2, 3, 6, 6)
        upgraded = quadratize(layer)
        same(layer(x), upgraded(x))
        assert parametrize.is_parametrized(upgraded["r"])
        assert not any(parametrize.is_parametrized(upgraded[letter]) for letter in "gb")
        assert type(upgraded["g"]) is nn.Conv2d

    @pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
    def test_weight_norm_by_hooks(self):
        layer, x = nn.utils.weight_norm(nn.Linear(4, 3)), torch.randn(5, 4)
        expected = layer(x)  # its weight is now a computed tensor, which cannot be deep-copied
        upgraded = quadratize(layer, inplace=True)
        same(expected, upgraded(x))
        assert sorted(dict(upgraded["g"].named_parameters())) == ["bias", "weight"]

    def test_hooks_stay_on_the_user_s_module(self):
        layer, calls = nn.Linear(4, 3), []
        layer.register_forward_hook(lambda module, args, output: calls.append(module) or 2 * output)
        x = torch.randn(5, 4)
        expected = layer(x)
        upgraded = quadratize(layer, inplace=True)
        calls.clear()
        same(expected, upgraded(x))
        assert calls == [layer]

    def test_subclasses_stay_what_they_are(self):
        class Same(nn.Conv2d):
            def __init__(self, *args, gain=1.0):
                super().__init__(*args)
                self.gain = nn.Parameter(torch.tensor(gain))
                self.register_buffer("unit", torch.ones(()))

            def forward(self, x):
                return super().forward(nn.functional.pad(x, (1, 1, 1, 1))) * self.gain * self.unit

        model, x = nn.Sequential(Same(3, 4, 3, gain=0.5)), torch.randn(2, 3, 6, 6)
        upgraded = quadratize(model)
        same(model(x), upgraded(x))
        assert all(type(branch) is Same for branch in upgraded[0].values())
        upgraded(x).sum().backward()
        assert upgraded[0]["g"].weight.grad.any()  # it would be 0 if the gain were

    def test_dtype_device_mode_layout_and_freezing_follow_the_layer(self):
        model = small_net().to(DOUBLE).to(memory_format=torch.channels_last).eval()
        model[0].requires_grad_(False)
        upgraded = quadratize(model, "qres")
        assert {parameter.dtype for parameter in upgraded.parameters()} == {DOUBLE}
        assert not any(module.training for module in upgraded.modules())
        assert not any(parameter.requires_grad for parameter in upgraded[0].parameters())
        assert all(parameter.requires_grad for parameter in upgraded[7].parameters())
        weight = upgraded[3][0]["g"].weight
        assert weight.is_contiguous(memory_format=torch.channels_last)
        meta = quadratize(small_net().to("meta"), "bilinear", rank=2)
        assert {parameter.device.type for parameter in meta.parameters()} == {"meta"}

    def test_transposed_layers_still_take_an_output_size(self):
        layer = nn.ConvTranspose2d(3, 4, 3, stride=2)
        x = torch.randn(2, 3, 5, 5)
        upgraded = quadratize(layer)
        assert isinstance(upgraded, qcore.QuadraticConvTranspose2d)
        same(layer(x, output_size=[12, 12]), upgraded(x, output_size=[12, 12]))

    def test_sizes_can_still_be_asked_for(self):
        linear, convolution = quadratize(nn.Linear(4, 3)), quadratize(nn.Conv2d(3, 8, 5, 2))
        assert (linear.in_features, linear.out_features) == (4, 3)
        assert (convolution.out_channels, convolution.kernel_size) == (8, (5, 5))
        assert convolution.stride == (2, 2)

    def test_the_shown_formula_has_the_biases_of_the_layer(self):
        assert "(w_r x + b_r)(w_g x) + w_r x + b_r + b" in str(quadratize(nn.Linear(2, 2), "qres"))
        bare = quadratize(nn.Linear(2, 2, bias=False), "quadratic")
        assert "(w_r x)(w_g x + 1) + w_b x²" in str(bare)

    def test_the_result_pickles_and_trains_with_relinear(self):
        upgraded = quadratize(small_net().eval())
        x = torch.randn(2, 3, 8, 8)
        assert torch.equal(pickle.loads(pickle.dumps(upgraded))(x), upgraded(x))  # noqa: S301
        groups = qcore.ReLinear(gamma=0.5).param_groups(upgraded, lr=0.1)
        sizes = {group["relinear"]: len(group["params"]) for group in groups}
        assert (sizes["g"], sizes["b"]) == (7, 7)

    @pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
    def test_the_result_scripts(self):
        upgraded, x = quadratize(small_net().eval()), torch.randn(2, 3, 8, 8)
        same(upgraded(x), torch.jit.script(upgraded)(x))

    @given(st.integers(1, 5), st.integers(1, 5), st.booleans(), st.sampled_from(WITH_REFERENCE))
    @settings(max_examples=30, deadline=None)
    def test_any_linear_layer(self, inputs, outputs, bias, neuron):
        layer = nn.Linear(inputs, outputs, bias, dtype=DOUBLE)
        x = torch.randn(3, inputs, dtype=DOUBLE)
        upgraded = quadratize(layer, neuron)
        torch.testing.assert_close(upgraded(x), layer(x))
        assert torch.equal(linearize(upgraded).weight, layer.weight)


class TestSelection:
    def paths(self, **options):
        return list(surgery_report(quadratize(small_net(), **options)).quadratic)

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, ["0", "3.0", "3.2", "7"]),
            ({"include": "3.*"}, ["3.0", "3.2"]),
            ({"include": "3"}, ["3.0", "3.2"]),
            ({"include": nn.Linear}, ["7"]),
            ({"include": ["0", nn.Linear]}, ["0", "7"]),
            ({"exclude": nn.Conv2d}, ["7"]),
            ({"exclude": ["3.0", "7"]}, ["0", "3.2"]),
            ({"include": nn.Conv2d, "exclude": "3"}, ["0"]),
        ],
        ids=str,
    )
    def test_patterns_and_types(self, options, expected):
        assert self.paths(**options) == expected

    def test_a_type_around_the_layers(self):
        class Block(nn.Sequential):
            pass

        model = nn.Sequential(Block(nn.Linear(2, 2)), nn.Linear(2, 2))
        assert surgery_report(quadratize(model, include=Block)).linear == ("1",)

    def test_a_shared_layer_is_found_by_each_of_its_names(self):
        shared = nn.Linear(4, 4)
        model = nn.ModuleDict({"first": shared, "second": shared, "third": nn.Linear(4, 4)})
        assert surgery_report(quadratize(model, include="second")).linear == ("third",)

    @pytest.mark.parametrize("argument", ["include", "exclude"])
    def test_what_matches_nothing_is_an_error(self, argument):
        model = nn.ModuleDict({"stem": nn.Conv2d(3, 4, 3), "layer1": nn.Linear(4, 4)})
        text = f"{argument}: no linear layer or convolution matches 'layer2'; near matches are 'lay"
        with pytest.raises(ValueError, match=re.escape(text)):
            quadratize(model, **{argument: "layer2"})
        text = "is a Conv3d or inside one; the model's layers are Conv2d, Linear"
        with pytest.raises(ValueError, match=re.escape(text)):
            quadratize(model, **{argument: nn.Conv3d})
        with pytest.raises(TypeError, match=f"{argument} holds 3: give patterns"):
            quadratize(model, **{argument: [3]})

    def test_nothing_left_to_replace_is_an_error(self):
        upgraded = quadratize(small_net())
        with pytest.raises(ValueError, match="has no linear layer or convolution to replace"):
            quadratize(upgraded)
        with pytest.raises(ValueError, match=r"'0.out_proj' stays: 0 .MultiheadAttention. reads"):
            quadratize(nn.Sequential(nn.MultiheadAttention(4, 2)))

    def test_rank_needs_a_form(self):
        with pytest.raises(ValueError, match="rank=2 is only for neurons with a quadratic form"):
            quadratize(small_net(), rank=2)


class TestLeftAlone:
    def reasons(self, model, neuron="quadratic"):
        return surgery_report(model, neuron).left_alone

    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    def test_transformer(self, training):
        model = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2
        )
        model = nn.Sequential(nn.Linear(4, 8), model, nn.Linear(8, 3)).train(training)
        upgraded, x = quadratize(model), torch.randn(2, 5, 4)
        # the fast path of eval mode hands the weights of these to one fused kernel
        assert set(self.reasons(upgraded)) == {
            f"1.layers.{i}.{name}"
            for i in range(2)
            for name in ("self_attn.out_proj", "linear1", "linear2")
        }
        with torch.no_grad():
            same(model(x), upgraded(x))

    def test_tied_weights(self):
        model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False))
        model[2].weight = model[0].weight
        upgraded = quadratize(model)
        assert self.reasons(upgraded) == {"2": "it shares a parameter with '0'"}
        assert upgraded[2].weight is upgraded[0].weight

    def test_reads_in_forward_and_in_what_it_calls(self):
        class Reading(nn.Module):
            def __init__(self):
                super().__init__()
                names = ("direct", "property", "closure", "fine", "initialised")
                self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
                for name in names:
                    setattr(self, f"by_{name}", nn.Linear(4, 4))
                self.init_weights()

            def init_weights(self):
                nn.init.ones_(self.by_initialised.weight)

            @property
            def weight_of_property(self):
                return self.by_property.weight

            def forward(self, x):
                return self.body(x) @ self.weight_of_property

            def body(self, x):
                x = x @ self.by_direct.weight + self.layers[0].bias
                functions = [lambda x: x @ self.by_closure.weight]
                return self.by_initialised(self.by_fine(functions[0](x)))

        class Derived(Reading):
            def forward(self, x):
                return super().forward(x)

        model, x = nn.Sequential(Derived(), nn.Linear(4, 4)), torch.randn(2, 4)
        upgraded = quadratize(model)
        report = surgery_report(upgraded)
        alone = ["0.layers.0", "0.layers.1", "0.by_direct", "0.by_property", "0.by_closure"]
        assert sorted(report.left_alone) == sorted(alone)
        assert report.left_alone["0.by_direct"] == (
            "0 (Derived) reads its weight or bias in forward"
        )
        same(model(x), upgraded(x))

    def test_a_forward_put_on_the_instance(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model.head = nn.Linear(4, 4)
        model.forward = lambda x: x @ model.head.weight
        assert list(self.reasons(model)) == ["head"]

    def test_what_no_code_shows_fails_loudly(self):
        class Hidden(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(4, 4)

            def forward(self, x):
                return x @ getattr(self, "f" + "c").weight

        with pytest.raises(AttributeError, match="has no attribute 'weight'"):
            quadratize(Hidden())(torch.randn(2, 4))

    def test_lazy_modules(self):
        model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
        reasons = self.reasons(quadratize(model))
        assert reasons == {"0": "its parameters are not initialised: run the model once first"}

    def test_forms_of_patches_only_where_they_exist(self):
        class Own(nn.Conv2d):
            def forward(self, x):
                return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))

        model = nn.Sequential(
            nn.Conv2d(2, 4, 2),
            nn.Conv2d(4, 4, 1, groups=2),
            nn.ConvTranspose2d(4, 4, 1),
            Own(4, 4, 2),
        )
        upgraded, x = quadratize(model, "bilinear"), torch.randn(2, 2, 4, 4)
        assert isinstance(upgraded[0]["q"], PatchForm)
        assert self.reasons(upgraded, "bilinear") == {
            "1": "neuron 'bilinear' is a form over whole patches and takes groups=1, not groups=2",
            "2": "neuron 'bilinear' is a form over patches, which a transposed convolution does "
            "not have",
            "3": "neuron 'bilinear' is a form over patches, and Own cuts its own",
        }
        same(model(x), upgraded(x))

    def test_the_report_reads_as_a_table(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2), nn.Linear(4, 4))
        assert str(surgery_report(quadratize(model, "compact", include="0"))) == (
            "0           quadratic: neuron 'compact'\n"
            "2           linear: can be replaced\n"
            "1.out_proj  left alone: 1 (MultiheadAttention) reads its weight or bias in forward"
        )
        assert str(surgery_report(nn.ReLU())) == ""


class TestLinearize:
    def test_layers_built_quadratic_give_their_reference(self):
        model = nn.Sequential(QuadraticLinear(4, 3, neuron="bilinear"), QuadraticLinear(3, 2))
        back = linearize(model)
        assert [type(module) for module in back] == [nn.Linear, nn.Linear]
        assert torch.equal(back[0].weight, model[0]["l"].weight)

    def test_refusals(self):
        with pytest.raises(ValueError, match=r"model .ReLU. has no quadratic layers to linearize"):
            linearize(nn.ReLU())
        model = nn.Sequential(QuadraticLinear(4, 3), QuadraticLinear(3, 2, neuron="product"))
        with pytest.raises(ValueError, match="layer '1' has neuron 'product', which has no linear"):
            linearize(model, inplace=True)
        assert isinstance(model[0], Quadratic)  # nothing was changed


class TestReplaceHead:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, "Linear(in_features=4, out_features=5, bias=True)"),
            (
                {"kind": "dense", "affine": True},
                "QuadraticForm(in_features=4, out_features=5, affine=True)",
            ),
            (
                {"kind": "low_rank", "rank": 3, "signed": True, "num_classes": 2},
                "LowRankForm(in_features=4, out_features=2, rank=3, signed=True, affine=False)",
            ),
        ],
        ids=["linear", "dense", "low-rank"],
    )
    def test_the_last_linear_layer_is_replaced(self, options, expected):
        model = small_net().to(DOUBLE).eval()
        new = replace_head(model, **options)
        assert str(new[7]) == expected
        assert isinstance(model[7], nn.Linear)
        assert not new[7].training
        outputs = options.get("num_classes", 5)
        assert new(torch.randn(2, 3, 8, 8, dtype=DOUBLE)).shape == (2, outputs)

    def test_a_new_head_can_be_replaced_again_and_inplace(self):
        model = small_net()
        assert replace_head(model, "dense", inplace=True) is model
        replace_head(model, "low_rank", rank=1, inplace=True)
        assert isinstance(model[7], LowRankForm)
        replace_head(model, num_classes=9, inplace=True)
        assert (type(model[7]), model[7].out_features) == (nn.Linear, 9)

    def test_a_quadratic_head_can_be_replaced(self):
        head = replace_head(quadratize(small_net()), "dense")[7]
        assert (head.in_features, head.out_features) == (4, 5)

    def test_the_model_itself_can_be_the_head(self):
        assert isinstance(replace_head(nn.Linear(4, 3), "dense"), QuadraticForm)

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"kind": "cubic"}, "kind='cubic' is not allowed: choose from"),
            ({"kind": "low_rank"}, "kind='low_rank' needs a rank: give rank=1 or more"),
            ({"kind": "dense", "rank": 2}, "rank=2 is for kind='low_rank' only, not for kind="),
            ({"kind": "dense", "signed": True}, "signed=True is for kind='low_rank' only"),
            ({"affine": True}, "affine=True is for quadratic forms only"),
            ({"num_classes": 0}, "num_classes=0 is not allowed: give 1 or more"),
            ({"kind": "low_rank", "rank": 0}, "rank=0 is not allowed"),
        ],
        ids=str,
    )
    def test_arguments_that_do_not_fit(self, options, text):
        with pytest.raises(ValueError, match=re.escape(text)):
            replace_head(small_net(), **options)

    def test_no_head(self):
        with pytest.raises(ValueError, match="has no linear layer or form to replace as its head"):
            replace_head(nn.Sequential(nn.Conv2d(3, 4, 1)))
        with pytest.raises(ValueError, match=r"'0.out_proj' stays: 0 .MultiheadAttention. reads"):
            replace_head(nn.Sequential(nn.MultiheadAttention(4, 2)))


class TestTruncateHead:
    @pytest.mark.parametrize("affine", [False, True], ids=["pure", "affine"])
    @pytest.mark.parametrize("rank", [1, 2, 5])
    def test_it_is_the_sum_over_the_largest_eigenvalues(self, rank, affine):
        head = QuadraticForm(5, 3, affine=affine, dtype=DOUBLE)
        truncated, energy = truncate_head(head, rank)
        for k in range(3):
            values, vectors = torch.linalg.eigh(head.matrix[k])
            kept = sorted(range(head.size), key=lambda i: -abs(values[i].item()))[:rank]
            expected = sum(values[i] * torch.outer(vectors[:, i], vectors[:, i]) for i in kept)
            torch.testing.assert_close(truncated.matrix[k], expected)
            share = sum(values[i] ** 2 for i in kept) / sum(values**2)
            torch.testing.assert_close(energy[k], share)
        assert (truncated.affine, truncated.signed, truncated.rank) == (affine, True, rank)
        assert set(truncated.signs.abs().flatten().tolist()) == {1.0}

    def test_no_other_matrix_of_the_rank_is_closer(self):
        head = QuadraticForm(6, 1, dtype=DOUBLE)
        truncated, energy = truncate_head(head, 2)
        distance = (head.matrix - truncated.matrix).square().sum()
        torch.testing.assert_close(distance / head.matrix.square().sum(), 1 - energy[0])
        for scale in (1e-3, 1e-2, 1e-1, 1.0):
            for _ in range(50):
                other = copy.deepcopy(truncated)
                with torch.no_grad():
                    other.factors.add_(scale * torch.randn_like(other.factors))
                    other.signs.add_(scale * torch.randn_like(other.signs))
                assert (head.matrix - other.matrix).square().sum() > distance

    @pytest.mark.parametrize("affine", [False, True], ids=["pure", "affine"])
    def test_full_rank_is_the_head_itself(self, affine):
        head = QuadraticForm(5, 3, affine=affine)
        truncated, energy = truncate_head(head, head.size)
        x = torch.randn(7, 5)
        torch.testing.assert_close(truncated(x), head(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(energy, torch.ones(3))
        assert truncated.factors.dtype == torch.float32

    @pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
    def test_a_low_rank_form_of_that_rank_loses_nothing(self, signed):
        head = LowRankForm(6, 3, 2, signed=signed, affine=True, dtype=DOUBLE)
        truncated, energy = truncate_head(head, 2)
        x = torch.randn(7, 6, dtype=DOUBLE)
        torch.testing.assert_close(truncated(x), head(x))
        torch.testing.assert_close(energy, torch.ones(3, dtype=DOUBLE))

    @given(st.integers(1, 6), st.integers(0, 2**16))
    @settings(max_examples=30, deadline=None)
    def test_energy_grows_with_the_rank(self, size, seed):
        torch.manual_seed(seed)
        head = QuadraticForm(size, 2, dtype=DOUBLE)
        energies = torch.stack([truncate_head(head, r)[1] for r in range(1, size + 1)])
        assert (energies.diff(dim=0) >= 0).all()
        torch.testing.assert_close(energies[-1], torch.ones(2, dtype=DOUBLE))

    def test_a_form_that_is_zero_keeps_all_its_energy(self):
        assert truncate_head(QuadraticForm(3, 2, init_scale=0.0), 1)[1].tolist() == [1.0, 1.0]

    def test_refusals(self):
        for rank in (0, 4):
            text = f"rank={rank} is not allowed: these forms have size 3, so choose from 1 to 3"
            with pytest.raises(ValueError, match=text):
                truncate_head(QuadraticForm(3, 2), rank)
        with pytest.raises(TypeError, match="head is a Linear, but only a QuadraticForm or a"):
            truncate_head(nn.Linear(3, 2), 1)


NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
FOLDABLE = {name: entry for name, entry in LAYERS.items() if name != "linear"} | {
    "linear": (lambda bias: nn.Linear(6, 4, bias=bias), (7, 6))
}


class TestFoldBatchnorm:
    @pytest.mark.parametrize(("build", "shape"), FOLDABLE.values(), ids=FOLDABLE)
    @with_and_without_bias
    @pytest.mark.parametrize("neuron", [None, "quadratic", "compact", "product_linear"], ids=str)
    def test_every_layer(self, build, shape, bias, neuron):
        layer, x = build(bias), torch.randn(shape)
        channels = layer(x).shape[1]
        layer = layer if neuron is None else quadratize(layer, neuron)
        model = randomize(nn.Sequential(layer, NORMS[x.ndim](channels))).eval()
        folded = fold_batchnorm(model)
        assert isinstance(folded[1], nn.Identity)
        assert isinstance(model[1], NORMS[x.ndim])
        same(model(x), folded(x))

    @pytest.mark.parametrize("rank", [None, 2], ids=["dense", "rank2"])
    @pytest.mark.parametrize("neuron", ["bilinear", "qres", "squared_input", "linear"])
    def test_the_other_neurons(self, neuron, rank):
        rank = rank if neuron == "bilinear" else None
        layer = QuadraticConv2d(3, 4, 3, neuron=neuron, rank=rank)
        model = randomize(nn.Sequential(layer, nn.BatchNorm2d(4))).eval()
        x = torch.randn(2, 3, 6, 6)
        same(model(x), fold_batchnorm(model)(x))

    def test_it_is_the_written_formula(self):
        layer, norm = QuadraticConv2d(3, 4, 3, dtype=DOUBLE), nn.BatchNorm2d(4, dtype=DOUBLE)
        model = randomize(nn.Sequential(layer, norm)).eval()
        folded = fold_batchnorm(model)[0]
        s = norm.weight / (norm.running_var + norm.eps).sqrt()
        t = norm.bias - s * norm.running_mean
        column = s.view(-1, 1, 1, 1)
        torch.testing.assert_close(folded["r"].weight, column * layer["r"].weight)
        torch.testing.assert_close(folded["r"].bias, s * layer["r"].bias)
        torch.testing.assert_close(folded["b"].weight, column * layer["b"].weight)
        torch.testing.assert_close(folded["b"].bias, s * layer["b"].bias + t)
        for key, value in layer["g"].state_dict().items():
            assert torch.equal(folded["g"].state_dict()[key], value)

    def test_finding_the_pairs_leaves_nothing_behind(self):
        class Keeping(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.norm, self.last = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), None

            def forward(self, x):
                self.last = self.conv(x)
                return self.norm(self.last)

        model = fold_batchnorm(randomize(Keeping()).eval())
        assert (type(model.norm), model.last) == (nn.Identity, None)

    @pytest.mark.parametrize("transpose", [False, True], ids=["convolution", "transposed"])
    def test_an_ordinary_convolution_is_folded_as_torch_does(self, transpose):
        kind = nn.ConvTranspose2d if transpose else nn.Conv2d
        model = randomize(nn.Sequential(kind(3, 4, 3), nn.BatchNorm2d(4))).eval()
        expected = fuse_conv_bn_eval(model[0], model[1], transpose)
        folded = fold_batchnorm(model)[0]
        torch.testing.assert_close(folded.weight, expected.weight)
        torch.testing.assert_close(folded.bias, expected.bias)

    def test_a_linear_layer_is_folded_as_torch_does(self):
        model = randomize(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))).eval()
        expected = fuse_linear_bn_eval(model[0], model[1])
        torch.testing.assert_close(fold_batchnorm(model)[0].weight, expected.weight)

    @pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
    def test_inplace_with_frozen_and_half_precision_weights(self, affine):
        model = randomize(
            nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=affine))
        )
        model.eval().requires_grad_(False)
        x = torch.randn(2, 3, 6, 6)
        expected = model(x)
        model[0].to(torch.bfloat16)
        weight = model[0].weight
        assert fold_batchnorm(model, inplace=True) is model
        assert model[0].weight is weight
        assert not model[0].bias.requires_grad
        same(expected, model(x.bfloat16()).float(), tolerance=2e-2)

    def test_parametrized_weights_become_plain(self):
        layer = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
        model = randomize(nn.Sequential(layer, nn.BatchNorm2d(4))).eval()
        x = torch.randn(2, 3, 6, 6)
        folded = fold_batchnorm(model)
        same(model(x), folded(x))
        assert type(folded[0]) is nn.Conv2d

    def test_identities_in_between_are_passed(self):
        model = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity(), nn.BatchNorm2d(4)))
        assert isinstance(fold_batchnorm(model.eval())[2], nn.Identity)

    def test_parts_of_a_model_that_cannot_be_traced(self):
        class Dynamic(nn.Module):
            def __init__(self):
                super().__init__()
                self.parts = nn.ModuleList(
                    nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(2)
                )
                self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

            def forward(self, x):
                for part in self.parts:
                    x = part(x) if x.sum() > 0 else -part(x)
                return self.norm(self.conv(x))

        model, x = randomize(Dynamic()).eval(), torch.randn(2, 3, 4, 4)
        folded = fold_batchnorm(model)
        same(model(x), folded(x))
        assert all(isinstance(part[1], nn.Identity) for part in folded.parts)
        assert isinstance(folded.norm, nn.BatchNorm2d)  # only a trace of the whole would show it

    @pytest.mark.parametrize(
        "case",
        [
            "used twice",
            "called twice",
            "shared norm",
            "hook",
            "tied",
            "no statistics",
            "norm first",
            "other size",
        ],
    )
    def test_it_leaves_what_would_change_the_outputs(self, case):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
                self.other = nn.Conv2d(3, 3, 1)
                if case == "hook":
                    self.conv.register_forward_hook(lambda module, args, output: output + 1)
                if case == "tied":
                    self.other.weight = self.conv.weight
                if case == "no statistics":
                    self.norm = nn.BatchNorm2d(3, track_running_stats=False)
                if case == "other size":
                    self.conv, self.norm = nn.Linear(4, 5), nn.BatchNorm1d(3)

            def forward(self, x):
                if case == "norm first":
                    return self.conv(self.norm(x))
                if case == "other size":
                    return self.norm(self.conv(x[:, :, 0]))
                y = self.conv(x)
                z = self.norm(y)
                if case == "used twice":
                    return z + y
                if case == "called twice":
                    return z + self.conv(z)
                if case == "shared norm":
                    return z + self.norm(z)
                return z + self.other(x)

        model, x = randomize(Model()).eval(), torch.randn(2, 3, 4, 4)
        folded = fold_batchnorm(model)
        assert type(folded.norm) is type(model.norm)
        assert torch.equal(folded(x), model(x))

    def test_a_convolution_that_standardises_its_weight_stays(self):
        class Standardised(nn.Conv2d):
            def forward(self, x):
                weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
                weight = weight / weight.std((1, 2, 3), keepdim=True)
                return self._conv_forward(x, weight, self.bias)

        class Padded(nn.Conv2d):
            def forward(self, x):
                return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))

        for kind, norm in ((Standardised, nn.BatchNorm2d), (Padded, nn.Identity)):
            model = randomize(nn.Sequential(kind(3, 4, 2), nn.BatchNorm2d(4))).eval()
            folded, x = fold_batchnorm(model), torch.randn(2, 3, 4, 4)
            assert isinstance(folded[1], norm)
            same(model(x), folded(x))

    def test_a_norm_leaves_its_activation_behind(self):
        class NormAct(nn.BatchNorm2d):
            def __init__(self, features, negative):
                super().__init__(features)
                self.act = nn.ReLU()
                self.negative = negative

            def forward(self, x):
                y = self.act(super().forward(x))
                return -y if self.negative else y

        x = torch.randn(2, 3, 4, 4)
        for negative in (False, True):
            model = randomize(nn.Sequential(nn.Conv2d(3, 4, 2), NormAct(4, negative))).eval()
            folded = fold_batchnorm(model)
            same(model(x), folded(x))
            # with the sign it is not normalisation and children alone
            assert isinstance(folded[1], NormAct) == negative

    def test_folding_again_changes_nothing(self):
        model = fold_batchnorm(randomize(small_net()).eval())
        again = fold_batchnorm(model)
        assert str(again) == str(model)
        assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())

    def test_train_mode_is_refused(self):
        with pytest.raises(ValueError, match=re.escape("call model.eval() first")):
            fold_batchnorm(small_net())
        model = small_net().eval()
        model[1].train()
        with pytest.raises(ValueError, match="is in train mode"):
            fold_batchnorm(model)

    @pytest.mark.parametrize(
        ("neuron", "bias", "lacking"),
        [("product", True, "shift"), ("squared_output", True, "scale"), ("qres", False, "shift")],
    )
    def test_neurons_without_a_place_are_refused(self, neuron, bias, lacking):
        model = nn.Sequential(
            nn.Conv2d(3, 3, 1),
            nn.BatchNorm2d(3),
            QuadraticConv2d(3, 4, 1, bias=bias, neuron=neuron),
            nn.BatchNorm2d(4),
        ).eval()
        text = (
            rf"layer '2' \(neuron '{neuron}': .*\) has no place for the {lacking} of batch norm '3'"
        )
        with pytest.raises(ValueError, match=text):
            fold_batchnorm(model, inplace=True)
        assert isinstance(model[1], nn.BatchNorm2d)  # nothing was changed
