"""The normalised margin: formula, bounds, scale, gradients, errors; its meter and its loss."""

import copy
import math
import pickle
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from qcore import LowRankForm, MarginMeter, MarginRegularizedLoss, normalized_margin

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


# --- the meter ---


def full_batch(batches):
    logits, targets = zip(*batches, strict=True)
    return normalized_margin(torch.cat(logits), torch.cat(targets)).item()


@seeded
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any),
    seed=st.integers(0, 99),
    scale=st.floats(1e-6, 1e6),
)
def test_the_meter_is_the_margin_of_all_batches_at_once(sizes, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    batches = [
        (
            scale * torch.randn(n, 4, generator=generator),
            torch.randint(4, (n,), generator=generator),
        )
        for n in sizes
    ]
    meter, left, right = MarginMeter(), MarginMeter(), MarginMeter()
    for i, batch in enumerate(batches):
        meter.update(*batch)
        (left if i % 2 else right).update(*batch)
    left.merge(right)
    expected = pytest.approx(full_batch(batches), abs=1e-6)
    assert (meter.mean, left.mean) == (expected, expected)
    assert meter.count == left.count == sum(sizes)


def test_the_meter_adds_in_double_precision():
    # in single precision, every update after the first would be lost
    meter = MarginMeter(total=2.0**25, count=0)
    for _ in range(1000):
        meter.update(torch.tensor([[3.0, 4.0]]), torch.tensor([1]))
    assert meter.total - 2.0**25 == pytest.approx(200.0, rel=1e-6)


def test_meters_merge_with_an_empty_one_as_the_neutral_element():
    meter = MarginMeter()
    meter.update(torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1]))
    before = (meter.total, meter.count)
    empty = MarginMeter()
    meter.merge(empty)
    empty.merge(meter)
    assert (meter.total, meter.count) == before
    assert empty == meter
    assert math.isnan(MarginMeter().mean)


def test_the_meter_keeps_no_graph():
    logits = torch.randn(3, 2, requires_grad=True)
    meter = MarginMeter()
    meter.update(logits, torch.tensor([0, 1, 0]))
    assert isinstance(meter.total, float)
    assert pickle.loads(pickle.dumps(meter)) == meter  # noqa: S301 - our own bytes


def test_the_meter_of_one_process_is_a_copy():
    meter = MarginMeter(total=1.5, count=3)
    everywhere = meter.over_processes()
    assert everywhere == meter
    everywhere.merge(meter)
    assert (meter.total, meter.count) == (1.5, 3)


ONE_PROCESS = """
import sys, torch, qcore
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
)
meter = qcore.MarginMeter()
for batch in torch.load(f"{folder}/batches")[rank::2]:
    meter.update(*batch)
before = (meter.total, meter.count)
everywhere = [meter.over_processes() for _ in range(2)]  # asking twice counts nothing twice
torch.distributed.destroy_process_group()
assert before == (meter.total, meter.count)
torch.save([(meter.mean, meter.count) for meter in everywhere], f"{folder}/{rank}")
"""


def test_the_meter_over_two_processes(tmp_path):
    batches = [(torch.randn(n, 3), torch.randint(3, (n,))) for n in (5, 1, 8, 2, 3)]
    torch.save(batches, tmp_path / "batches")
    processes = [
        subprocess.Popen([sys.executable, "-c", ONE_PROCESS, str(rank), str(tmp_path)])
        for rank in range(2)
    ]
    assert [process.wait(60) for process in processes] == [0, 0]
    for rank in range(2):
        first, second = torch.load(tmp_path / str(rank))
        assert first == second == (pytest.approx(full_batch(batches), abs=1e-6), 19)


def test_the_meter_refuses_what_the_margin_refuses():
    meter = MarginMeter()
    with pytest.raises(ValueError, match="at least two classes"):
        meter.update(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))
    assert meter == MarginMeter()


# --- the loss ---


@pytest.mark.parametrize("lam", [0.0, 0.1, 2.0])
def test_the_loss_is_cross_entropy_less_lambda_times_the_margin(lam):
    logits, target = torch.randn(20, 4, dtype=DOUBLE), torch.randint(4, (20,))
    rows = list(zip(logits.tolist(), target.tolist(), strict=True))
    entropy = sum(math.log(sum(map(math.exp, row))) - row[y] for row, y in rows) / 20
    margin = sum(margin_written_out(*pair) for pair in rows) / 20
    loss = MarginRegularizedLoss(lam)(logits, target)
    assert loss.item() == pytest.approx(entropy - lam * margin)


def squared_error(logits, target):
    return (logits - nn.functional.one_hot(target, logits.shape[-1])).square().mean()


@pytest.mark.parametrize(
    "base",
    [
        nn.MultiMarginLoss(),
        nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum"),
        squared_error,
    ],
    ids=["margin", "smoothed sum", "function"],
)
def test_any_base_loss(base):
    logits, target = torch.randn(20, 4), torch.randint(4, (20,))
    expected = base(logits, target) - 0.3 * normalized_margin(logits, target)
    torch.testing.assert_close(MarginRegularizedLoss(0.3, base)(logits, target), expected)


def test_a_base_loss_per_sample_meets_the_margin_of_each_sample():
    logits, target = torch.randn(20, 4), torch.randint(4, (20,))
    loss = MarginRegularizedLoss(0.3, nn.CrossEntropyLoss(reduction="none"))
    each = loss(logits, target)
    assert each.shape == (20,)
    torch.testing.assert_close(each.mean(), MarginRegularizedLoss(0.3)(logits, target))
    torch.testing.assert_close(each[3:4], loss(logits[3:4], target[3:4]))


def test_the_state_of_the_base_loss_is_its_own():
    base = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))
    assert list(MarginRegularizedLoss(0.1, base).state_dict()) == ["base.weight"]


def test_descending_the_loss_widens_the_margin_faster_than_the_base_alone():
    x, y = torch.randn(60, 5), torch.randint(3, (60,))
    form = LowRankForm(5, 3, rank=1)
    margins = {}
    for lam in (0.0, 1.0):
        trained = copy.deepcopy(form)
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.05)
        loss = MarginRegularizedLoss(lam)
        for _ in range(30):
            optimizer.zero_grad()
            loss(trained(x), y).backward()
            optimizer.step()
        margins[lam] = normalized_margin(trained(x), y).item()
    assert normalized_margin(form(x), y).item() < margins[0.0] < margins[1.0]


def test_first_derivatives_of_the_loss():
    target = torch.tensor([0, 1, 0])
    loss = MarginRegularizedLoss(0.7)
    assert gradcheck(
        lambda logits: loss(logits, target), torch.randn(3, 4, dtype=DOUBLE, requires_grad=True)
    )


@pytest.mark.parametrize("lam", [-0.1, math.inf, math.nan])
def test_a_wrong_lambda_is_refused(lam):
    text = f"lam={lam!r} is not allowed: give 0 or more; the margin is subtracted already"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        MarginRegularizedLoss(lam)


def test_print_shows_lambda():
    assert "lam=0.25" in repr(MarginRegularizedLoss(0.25))
