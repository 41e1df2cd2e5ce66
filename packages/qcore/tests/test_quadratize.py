"""From ordinary layers to quadratic ones at the same outputs, and back."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import qcore
from qcore import (
    CATALOGUE,
    Branch,
    LowRankForm,
    Neuron,
    Quadratic,
    QuadraticLinear,
    linearize,
    quadratize,
    surgery_report,
)

DOUBLE = torch.float64
WITH_REFERENCE = [name for name, neuron in CATALOGUE.items() if neuron.reference is not None]
WITHOUT_REFERENCE = [name for name in CATALOGUE if name not in WITH_REFERENCE]
every_neuron = pytest.mark.parametrize("neuron", WITH_REFERENCE)

# the layers that can be replaced, made by the fixture `layer_and_input`
LAYERS = ("linear", "conv1d", "conv2d", "conv3d", "dilated", "reflect", "grouped", "depthwise")
LAYERS += ("transposed1d", "transposed2d", "transposed3d")
WITHOUT_FORM = ("grouped", "depthwise", "transposed1d", "transposed2d", "transposed3d")
with_and_without_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])


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
    def test_the_user_s_module_becomes_the_reference(self, neuron, name, bias, layer_and_input):
        layer, x = layer_and_input(name, bias)
        state = copy.deepcopy(layer.state_dict())
        quadratic = quadratize(layer, neuron, inplace=True)
        assert isinstance(quadratic, Quadratic)
        assert quadratic.reference is layer
        same(layer(x), quadratic(x))
        back = linearize(quadratic, inplace=True)
        assert back is layer
        assert all(torch.equal(back.state_dict()[key], value) for key, value in state.items())

    @every_neuron
    def test_every_neuron_keeps_the_outputs_of_a_model(self, neuron, conv_net):
        model, x = conv_net(), torch.randn(4, 3, 8, 8)
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
    def test_every_quadratic_layer_receives_gradients(self, neuron, conv_net):
        upgraded = quadratize(conv_net(), neuron)
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
    def test_a_neuron_without_reference_is_refused_by_name(self, neuron, conv_net):
        with pytest.raises(ValueError, match=f"neuron '{neuron}' .* choose one of quadratic, comp"):
            quadratize(conv_net(), neuron)

    def test_a_neuron_of_one_s_own(self):
        own = Neuron("own", {"r": Branch(), "b": Branch("x2")}, (("r",), ("b",)), "r", "this test")
        model, x = nn.Linear(4, 3), torch.randn(5, 4)
        assert torch.equal(quadratize(model, own)(x), model(x))

    def test_a_copy_by_default_and_the_model_itself_inplace(self, conv_net):
        model = conv_net()
        convolution, before = model[0], copy.deepcopy(model.state_dict())
        upgraded = quadratize(model)
        assert model[0] is convolution
        assert upgraded is not model
        assert list(model.state_dict()) == list(before)
        assert quadratize(model, inplace=True) is model
        assert model[0]["r"] is convolution

    def test_linearize_is_the_exact_inverse(self, conv_net):
        model = conv_net()
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

    def test_dtype_device_mode_layout_and_freezing_follow_the_layer(self, conv_net):
        model = conv_net().to(DOUBLE).to(memory_format=torch.channels_last).eval()
        model[0].requires_grad_(False)
        upgraded = quadratize(model, "qres")
        assert {parameter.dtype for parameter in upgraded.parameters()} == {DOUBLE}
        assert not any(module.training for module in upgraded.modules())
        assert not any(parameter.requires_grad for parameter in upgraded[0].parameters())
        assert all(parameter.requires_grad for parameter in upgraded[7].parameters())
        weight = upgraded[3][0]["g"].weight
        assert weight.is_contiguous(memory_format=torch.channels_last)
        meta = quadratize(conv_net().to("meta"), "bilinear", rank=2)
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

    def test_the_result_pickles_and_trains_with_relinear(self, conv_net):
        upgraded = quadratize(conv_net().eval())
        x = torch.randn(2, 3, 8, 8)
        assert torch.equal(pickle.loads(pickle.dumps(upgraded))(x), upgraded(x))  # noqa: S301
        groups = qcore.ReLinear(gamma=0.5).param_groups(upgraded, lr=0.1)
        sizes = {group["relinear"]: len(group["params"]) for group in groups}
        assert (sizes["g"], sizes["b"]) == (7, 7)

    @pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
    def test_the_result_scripts(self, conv_net):
        upgraded, x = quadratize(conv_net().eval()), torch.randn(2, 3, 8, 8)
        same(upgraded(x), torch.jit.script(upgraded)(x))

    @given(st.integers(1, 5), st.integers(1, 5), st.booleans(), st.sampled_from(WITH_REFERENCE))
    @settings(max_examples=30, deadline=None)
    def test_any_linear_layer(self, inputs, outputs, bias, neuron):
        layer = nn.Linear(inputs, outputs, bias, dtype=DOUBLE)
        x = torch.randn(3, inputs, dtype=DOUBLE)
        upgraded = quadratize(layer, neuron)
        torch.testing.assert_close(upgraded(x), layer(x))
        assert torch.equal(linearize(upgraded).weight, layer.weight)


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
