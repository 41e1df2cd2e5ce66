"""Which layers surgery replaces: those asked for, but none whose outputs would change."""

import re

import pytest
import torch
from torch import nn

from qcore import PatchForm, quadratize, surgery_report


def same(left, right, tolerance=1e-5):
    assert left.shape == right.shape
    assert (left - right).abs().max() <= tolerance * left.abs().max()


class TestSelection:
    def paths(self, model, **options):
        return list(surgery_report(quadratize(model, **options)).quadratic)

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
    def test_patterns_and_types(self, options, expected, conv_net):
        assert self.paths(conv_net(), **options) == expected

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

    def test_nothing_left_to_replace_is_an_error(self, conv_net):
        upgraded = quadratize(conv_net())
        with pytest.raises(ValueError, match="has no linear layer or convolution to replace"):
            quadratize(upgraded)
        with pytest.raises(ValueError, match=r"'0.out_proj' stays: 0 .MultiheadAttention. reads"):
            quadratize(nn.Sequential(nn.MultiheadAttention(4, 2)))

    def test_rank_needs_a_form(self, conv_net):
        with pytest.raises(ValueError, match="rank=2 is only for neurons with a quadratic form"):
            quadratize(conv_net(), rank=2)


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

    def test_it_says_which_layers_have_a_norm(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model = quadratize(quadratize(model, include="0"), include="1", rms_norm=True)
        report = surgery_report(model)
        assert report.normalised == {"1"}
        assert str(report) == (
            "0  quadratic: neuron 'quadratic'\n1  quadratic: neuron 'quadratic', normalised"
        )
