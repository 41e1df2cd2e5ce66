"""Heads of a model: replaced, and truncated to a low rank."""

import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qcore import LowRankForm, QuadraticForm, quadratize, replace_head, truncate_head

DOUBLE = torch.float64


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
    def test_the_last_linear_layer_is_replaced(self, options, expected, conv_net):
        model = conv_net().to(DOUBLE).eval()
        new = replace_head(model, **options)
        assert str(new[7]) == expected
        assert isinstance(model[7], nn.Linear)
        assert not new[7].training
        outputs = options.get("num_classes", 5)
        assert new(torch.randn(2, 3, 8, 8, dtype=DOUBLE)).shape == (2, outputs)

    def test_a_new_head_can_be_replaced_again_and_inplace(self, conv_net):
        model = conv_net()
        assert replace_head(model, "dense", inplace=True) is model
        replace_head(model, "low_rank", rank=1, inplace=True)
        assert isinstance(model[7], LowRankForm)
        replace_head(model, num_classes=9, inplace=True)
        assert (type(model[7]), model[7].out_features) == (nn.Linear, 9)

    def test_a_quadratic_head_can_be_replaced(self, conv_net):
        head = replace_head(quadratize(conv_net()), "dense")[7]
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
    def test_arguments_that_do_not_fit(self, options, text, conv_net):
        with pytest.raises(ValueError, match=re.escape(text)):
            replace_head(conv_net(), **options)

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
