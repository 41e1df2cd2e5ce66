"""The normalised margin: formula, bounds, scale, gradients, errors."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from qcore import LowRankForm, normalized_margin

DOUBLE = torch.float64
finite = st.floats(allow_nan=False, allow_infinity=False)
seeded = settings(deadline=None, derandomize=True, max_examples=200)


def margin_written_out(logits, target):
    """Of one sample, with Python numbers."""
    best = -math.inf
    squares = 0.0
    for j, value in enumerate(logits):
        squares += value * value
        if j != target and value > best:
            best = value
    return (logits[target] - best) / math.sqrt(squares)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_margin_is_its_formula_written_out(classes):
    logits = torch.randn(20, classes, dtype=DOUBLE)
    target = torch.randint(classes, (20,))
    expected = [margin_written_out(*pair) for pair in zip(logits.tolist(), target, strict=True)]
    margins = normalized_margin(logits, target, reduction="none")
    torch.testing.assert_close(margins, torch.tensor(expected, dtype=DOUBLE))
    mean = normalized_margin(logits, target)
    torch.testing.assert_close(mean, torch.tensor(sum(expected) / 20, dtype=DOUBLE))


@pytest.mark.parametrize(
    ("logits", "target", "margin"),
    [
        ([3.0, 4.0], 1, 0.2),
        ([3.0, 4.0], 0, -0.2),
        ([1.0, -1.0], 0, math.sqrt(2)),
        ([1.0, -1.0], 1, -math.sqrt(2)),
        ([1.0, 0.0], 0, 1.0),
        ([0.0, 0.0, -5.0], 0, 0.0),
        ([0.0, 0.0, -5.0], 2, -1.0),
        ([-3.0, -4.0], 0, 0.2),
    ],
    ids=str,
)
def test_margins_known_by_hand(logits, target, margin):
    computed = normalized_margin(torch.tensor(logits, dtype=DOUBLE), torch.tensor(target))
    assert computed.item() == pytest.approx(margin, rel=1e-15)


@seeded
@given(logits=st.lists(finite, min_size=2, max_size=6), data=st.data())
def test_margin_is_at_most_root_two(logits, data):
    target = data.draw(st.integers(0, len(logits) - 1))
    margin = normalized_margin(torch.tensor(logits, dtype=DOUBLE), torch.tensor(target)).item()
    assert abs(margin) <= math.sqrt(2) * (1 + 1e-15)


@seeded
@given(
    logits=st.lists(
        st.floats(min_value=0.0, allow_infinity=False, allow_nan=False), min_size=2, max_size=6
    ),
    data=st.data(),
)
def test_margin_of_non_negative_outputs_is_at_most_one(logits, data):
    target = data.draw(st.integers(0, len(logits) - 1))
    margin = normalized_margin(torch.tensor(logits, dtype=DOUBLE), torch.tensor(target)).item()
    assert abs(margin) <= 1 + 1e-15


def test_margin_of_a_low_rank_form_is_at_most_one():
    form = LowRankForm(5, 3, rank=2, dtype=DOUBLE)
    outputs = form(torch.randn(500, 5, dtype=DOUBLE))
    margins = normalized_margin(outputs, torch.randint(3, (500,)), reduction="none")
    assert margins.abs().max() <= 1


def test_margin_is_not_clamped_to_one_and_keeps_its_gradient_there():
    logits = torch.tensor([1.0, -0.5], dtype=DOUBLE, requires_grad=True)
    margin = normalized_margin(logits, torch.tensor(0))
    assert margin.item() == pytest.approx(1.5 / math.sqrt(1.25))
    margin.backward()
    # lead / length: (1, -1) / length - lead · logits / length³
    expected = [1 / 1.25**0.5 - 1.5 / 1.25**1.5, -1 / 1.25**0.5 + 0.75 / 1.25**1.5]
    assert logits.grad.tolist() == pytest.approx(expected)


# --- zero vectors and scale ---


@pytest.mark.parametrize("classes", [2, 5])
def test_zero_vector_has_margin_zero_and_a_finite_gradient(classes):
    logits = torch.randn(3, classes)
    logits[1] = 0.0
    logits.requires_grad_()
    target = torch.zeros(3, dtype=torch.int64)
    margins = normalized_margin(logits, target, reduction="none")
    assert margins[1] == 0.0
    margins.sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e38, 1e-38])
def test_margin_does_not_depend_on_scale(scale):
    logits = torch.randn(50, 4).clamp(-3, 3)
    target = torch.randint(4, (50,))
    margins = normalized_margin(logits, target, reduction="none")
    scaled = normalized_margin(logits * scale, target, reduction="none")
    torch.testing.assert_close(scaled, margins, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_gradient_scales_with_the_inverse(scale):
    target = torch.randint(4, (10,))
    plain = torch.randn(10, 4, requires_grad=True)
    scaled = (plain.detach() * scale).requires_grad_()
    normalized_margin(plain, target).backward()
    normalized_margin(scaled, target).backward()
    torch.testing.assert_close(scaled.grad * scale, plain.grad, rtol=1e-4, atol=1e-6)


@seeded
@given(scale=st.floats(1e-100, 1e100), seed=st.integers(0, 99))
def test_margin_does_not_depend_on_any_positive_factor(scale, seed):
    logits = torch.randn(5, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    target = torch.tensor([0, 1, 2, 0, 1])
    margins = normalized_margin(logits, target, reduction="none")
    torch.testing.assert_close(normalized_margin(logits * scale, target, "none"), margins)


# --- types, shapes, transforms ---


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype):
    logits = (torch.randn(30, 5) * 1e4).to(dtype)
    target = torch.randint(5, (30,))
    margins = normalized_margin(logits, target, reduction="none")
    assert margins.dtype == torch.float32
    assert torch.equal(margins, normalized_margin(logits.float(), target, reduction="none"))


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,), (0, 2)], ids=str)
def test_shapes_of_both_reductions(leading):
    logits = torch.randn(*leading, 4)
    target = torch.randint(4, leading)
    margins = normalized_margin(logits, target, reduction="none")
    assert margins.shape == leading
    mean = normalized_margin(logits, target)
    assert mean.shape == ()
    torch.testing.assert_close(mean, margins.mean(), equal_nan=True)
    assert mean.isnan() == (0 in leading)


def test_margin_under_vmap_is_that_of_each_replica():
    logits, target = torch.randn(3, 6, 4), torch.randint(4, (3, 6))
    logits[1, 2] = 0.0
    expected = torch.stack([normalized_margin(*pair) for pair in zip(logits, target, strict=True)])
    torch.testing.assert_close(torch.func.vmap(normalized_margin)(logits, target), expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("classes", [2, 4])
def test_first_and_second_derivatives(reduction, classes):
    logits = torch.randn(3, classes, dtype=DOUBLE, requires_grad=True)
    target = torch.tensor([0, 1, 0])

    def function(logits):
        return normalized_margin(logits, target, reduction)

    assert gradcheck(function, logits)
    assert gradgradcheck(function, logits)


# --- errors ---


@pytest.mark.parametrize("reduction", ["sum", "Mean", None])
def test_another_reduction_is_refused(reduction):
    text = f"reduction={reduction!r} is not allowed: choose 'mean' or 'none'"
    with pytest.raises(ValueError, match=f"^{text}$"):
        normalized_margin(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), reduction)


@pytest.mark.parametrize("shape", [(), (0,), (3, 1), (3, 0)], ids=str)
def test_fewer_than_two_classes_are_refused(shape):
    text = (
        f"logits has shape {shape}, but a margin needs at least two classes in the last dimension"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        normalized_margin(torch.zeros(shape), torch.zeros(shape[:-1], dtype=torch.int64))


@pytest.mark.parametrize("shape", [(4,), (3, 1), (), (3, 2)], ids=str)
def test_a_target_of_another_shape_is_refused(shape):
    text = (
        f"target has shape {shape}, but logits of shape (3, 2) need (3,): "
        "one class index per sample"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        normalized_margin(torch.zeros(3, 2), torch.zeros(shape, dtype=torch.int64))
