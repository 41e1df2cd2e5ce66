"""Batch norms taken into the layers before them: which, how, and what is left or refused."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from qcore import QuadraticConv2d, fold_batchnorm, quadratize

DOUBLE = torch.float64
NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}

# the layers that can be replaced, made by the fixture `layer_and_input`
LAYERS = ("linear", "conv1d", "conv2d", "conv3d", "dilated", "reflect", "grouped", "depthwise")
LAYERS += ("transposed1d", "transposed2d", "transposed3d")
with_and_without_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])


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


class TestFoldBatchnorm:
    @pytest.mark.parametrize("name", LAYERS)
    @with_and_without_bias
    @pytest.mark.parametrize("neuron", [None, "quadratic", "compact", "product_linear"], ids=str)
    def test_every_layer(self, name, bias, neuron, layer_and_input):
        layer, x = layer_and_input(name, bias)
        x = x.flatten(0, 1) if name == "linear" else x
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

    def test_folding_again_changes_nothing(self, conv_net):
        model = fold_batchnorm(randomize(conv_net()).eval())
        again = fold_batchnorm(model)
        assert str(again) == str(model)
        assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())

    def test_train_mode_is_refused(self, conv_net):
        with pytest.raises(ValueError, match=re.escape("call model.eval() first")):
            fold_batchnorm(conv_net())
        model = conv_net().eval()
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

    def test_what_has_no_place_can_stay_and_the_rest_is_folded(self):
        model = nn.Sequential(
            nn.Conv2d(3, 3, 1),
            nn.BatchNorm2d(3),
            QuadraticConv2d(3, 4, 1, neuron="product"),
            nn.BatchNorm2d(4),
            QuadraticConv2d(4, 2, 1),
            nn.BatchNorm2d(2),
        )
        model, x = randomize(model).eval(), torch.randn(2, 3, 4, 4)
        folded = fold_batchnorm(model, strict=False)
        assert [type(folded[i]) for i in (1, 3, 5)] == [nn.Identity, nn.BatchNorm2d, nn.Identity]
        for part in (2, 3):
            for key, value in model[part].state_dict().items():
                assert torch.equal(folded[part].state_dict()[key], value)
        same(model(x), folded(x))


class Rectified(QuadraticConv2d):
    """A layer whose ``forward`` does more than the formula."""

    def forward(self, x):
        return super().forward(x).relu()


def test_a_quadratic_layer_with_a_forward_of_its_own_stays():
    model = nn.Sequential(Rectified(3, 4, 3), nn.BatchNorm2d(4)).eval()
    nn.init.normal_(model[1].running_mean)
    x = torch.randn(2, 3, 6, 6)
    folded = fold_batchnorm(model)
    assert isinstance(folded[1], nn.BatchNorm2d)
    assert torch.equal(folded(x), model(x))
