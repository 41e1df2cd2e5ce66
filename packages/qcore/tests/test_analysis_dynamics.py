"""The margin under gradient flow: XOR's closed form, the identity of the proof, the bound."""

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from qcore import LowRankForm, QuadraticForm, QuadraticLinear, normalized_margin
from qcore.analysis import (
    MarginBound,
    homogeneity_degree,
    margin_bound,
    margin_dynamics,
    proof_cosine,
)

DOUBLE = torch.float64
X = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], dtype=DOUBLE)
Y = torch.tensor([0, 0, 1, 1])


def xor(p, q):
    """Two mirrored vectors with ``⟨c1, x1⟩ = p = ⟨c2, x2⟩`` and ``⟨c1, x2⟩ = q = −⟨c2, x1⟩``.

    Gradient flow from the paper's start, p = q = 1, stays of this kind with p·q = 1.
    """
    model = LowRankForm(2, 2, rank=1, dtype=DOUBLE)
    c1, c2 = [(p + q) / 2, (p - q) / 2], [(p - q) / 2, -(p + q) / 2]
    with torch.no_grad():
        model.factors.copy_(torch.tensor([[c1], [c2]], dtype=DOUBLE))
    return model


# --- XOR, theorem 1 ---


@pytest.mark.parametrize("p", [1.0, 1.1, 1.5, 2.0, 3.0])
def test_xor_has_its_closed_form(p):
    # a = ⟨c1, x1⟩², b = ⟨c1, x2⟩²; a' = 4 a v, b' = −4 b v with v = 1 / (1 + e^{a − b}): the
    # printed v = 1 / (1 + e^{−s}) does not fit the proof's own differential equation, and the rate
    # is 4, not the printed 2, because ‖x‖² = 2
    a, b = p**2, p**-2
    v = 1 / (1 + math.exp(a - b))
    found = margin_dynamics(xor(p, 1 / p), X, Y)
    length = math.sqrt(a**2 + b**2)
    assert found.degree == 2
    assert found.derivative.item() == pytest.approx(8 * v * (a + b) * a * b / length**3)
    assert found.inner_product.item() == pytest.approx(16 * v * a * b / (a + b) / length)
    assert found.ratio.item() == pytest.approx((a + b) ** 2 / (2 * (a**2 + b**2)), rel=1e-12)
    # d log a_n/dt of a_n = √(a² + b²) / (a + b)
    drift = 4 * v * ((a**2 - b**2) / (a**2 + b**2) - (a - b) / (a + b))
    torch.testing.assert_close(found.drift, torch.full((4,), drift, dtype=DOUBLE))


def test_the_ratio_is_one_at_the_start_of_xor_and_then_below():
    ratios = [margin_dynamics(xor(p, 1 / p), X, Y).ratio.item() for p in (1, 1.1, 1.3, 2.0)]
    assert ratios[0] == pytest.approx(1, rel=1e-12)
    assert ratios == sorted(ratios, reverse=True)
    assert 0.5 < ratios[-1] < ratios[1] < 1


def test_samples_of_one_rate_have_no_correlation():
    assert margin_dynamics(xor(1.5, 1 / 1.5), X, Y).correlation.isnan()


# --- the derivative and the inner product in general ---


def networks():
    return {
        "low_rank": LowRankForm(5, 4, rank=2, dtype=DOUBLE),
        "two layers": nn.Sequential(
            LowRankForm(5, 6, rank=1, dtype=DOUBLE), LowRankForm(6, 4, rank=2, dtype=DOUBLE)
        ),
        "dense": QuadraticForm(5, 4, dtype=DOUBLE),
        "head on ReLU": nn.Sequential(
            nn.Linear(5, 7, bias=False), nn.ReLU(), LowRankForm(7, 4, rank=1)
        ).double(),
        "product": QuadraticLinear(5, 4, neuron="product", dtype=DOUBLE),
    }


def samples(count=30):
    return torch.randn(count, 5, dtype=DOUBLE), torch.randint(4, (count,))


@pytest.mark.parametrize("name", networks())
def test_the_derivative_is_the_slope_of_small_steps(name):
    model, (x, y) = networks()[name], samples()
    functional.cross_entropy(model(x), y).backward()

    def after(step):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for target, source in zip(moved.parameters(), model.parameters(), strict=True):
                target.sub_(step * source.grad)
            return normalized_margin(moved(x), y, "none")

    slope = (after(1e-5) - after(-1e-5)) / 2e-5
    found = margin_dynamics(model, x, y)
    torch.testing.assert_close(found.derivatives, slope, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found.derivative, slope.mean(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", networks())
def test_the_inner_product_is_the_proofs_written_out(name):
    model, (x, y) = networks()[name], samples(8)
    parameters = list(model.parameters())

    def flat(gradients):
        return torch.cat([g.flatten() for g in gradients])

    theta = flat(parameters).detach()
    loss = functional.cross_entropy(model(x), y)
    velocity = -flat(torch.autograd.grad(loss, parameters))
    found = margin_dynamics(model, x, y)
    for n in range(8):
        outputs = model(x[n])
        wrong = torch.cat([outputs[: y[n]], outputs[y[n] + 1 :]])
        s = outputs[y[n]] - wrong.max()
        alpha = flat(torch.autograd.grad(s, parameters, retain_graph=True))
        alpha = alpha - found.degree * s.detach() / theta.square().sum() * theta
        assert abs(alpha @ theta) < 1e-10  # the degree is right: α_n is orthogonal to θ
        expected = alpha @ velocity / outputs.detach().norm()
        torch.testing.assert_close(found.inner_products[n], expected)


@pytest.mark.parametrize("name", networks())
def test_the_drift_is_all_that_parts_them(name):
    model, (x, y) = networks()[name], samples()
    found = margin_dynamics(model, x, y)
    margins = normalized_margin(model(x), y, "none").detach()
    torch.testing.assert_close(found.inner_products, found.derivatives + margins * found.drift)
    assert found.drift.abs().max() > 1e-3
    assert found.ratio == found.derivative / found.inner_product
    both = torch.stack([found.derivatives, found.inner_products])
    torch.testing.assert_close(found.correlation, torch.corrcoef(both)[0, 1])


def test_batches_and_precision_do_not_matter():
    (x, y), model = samples(), LowRankForm(5, 4, rank=2)
    whole = margin_dynamics(model, x, y)
    parts = margin_dynamics(model, x, y, batch_size=7)
    torch.testing.assert_close(parts.derivatives, whole.derivatives)
    torch.testing.assert_close(parts.inner_products, whole.inner_products)
    double = margin_dynamics(model.double(), x, y)
    torch.testing.assert_close(double.derivatives, whole.derivatives)


def test_a_model_that_is_not_homogeneous_needs_a_degree():
    (x, y), model = samples(), QuadraticLinear(5, 4)
    with pytest.raises(ValueError, match="is not homogeneous in its parameters"):
        margin_dynamics(model, x, y)
    first, second = (margin_dynamics(model, x, y, degree=d) for d in (1.0, 2.0))
    assert torch.equal(first.derivatives, second.derivatives)
    assert not torch.allclose(first.inner_products, second.inner_products)


def test_nothing_in_the_model_changes():
    (x, y), model = samples(), nn.Sequential(nn.Dropout(0.5), LowRankForm(5, 4, rank=2))
    before = model[1].factors.detach().clone()
    margin_dynamics(model, x, y)
    margin_bound(model, x, y)
    assert torch.equal(model[1].factors, before)
    assert model[1].factors.grad is None
    assert model.training


# --- the bound of theorem 2 ---


@pytest.mark.parametrize("p", [1.0, 1.2, 2.0])
def test_the_constants_of_xor_by_hand(p):
    # ∂s_1 and ∂s_2 are orthogonal and of length √(8(a+b)); with ‖θ‖² = a + b and L = 2 the Gram
    # matrix of α has the eigenvalues 8(a+b) and 8(a+b) − 8(a−b)²/(a+b) = 32 ab/(a+b)
    a, b = p**2, p**-2
    found = margin_bound(xor(p, 1 / p), X[::2], Y[::2])
    assert found.condition_number == pytest.approx((a + b) ** 2 / (4 * a * b))
    assert found.gradient_norm == pytest.approx(math.sqrt(8 * (a + b)))
    assert found.cosine == pytest.approx(1.0, abs=1e-15)
    assert (found.separation, found.samples, found.degree) == (0.0, 2, 2.0)
    assert found.lower_bound == 0.0  # two classes: dΔμ/dt ≥ 0, as theorem 1 says
    assert found.third_assumption


def test_samples_the_model_cannot_tell_apart_have_an_infinite_condition_number():
    found = margin_bound(xor(1.2, 1 / 1.2), X, Y)  # f(x) = f(−x)
    assert found.condition_number == math.inf
    assert not found.third_assumption


def constants_written_out(model, x, y):
    parameters = list(model.parameters())
    theta = torch.cat([p.flatten() for p in parameters]).detach()
    degree = homogeneity_degree(model)
    alphas, norms, gaps, inverse_a, v = [], [], [], [], []
    for sample, true in zip(x, y.tolist(), strict=True):
        outputs = model(sample)
        wrong = sorted((j for j in range(len(outputs)) if j != true), key=lambda j: -outputs[j])
        for j in wrong:
            gradient = torch.autograd.grad(
                outputs[true] - outputs[j], parameters, retain_graph=True
            )
            flat = torch.cat([g.flatten() for g in gradient])
            norms.append(flat.norm().item())
            if j == wrong[0]:
                s = (outputs[true] - outputs[j]).detach()
                alphas.append(flat - degree * s / theta.square().sum() * theta)
        gaps.append((outputs[wrong[0]] - outputs[wrong[1]]).item())
        inverse_a.append(theta.norm().item() ** degree / outputs.norm().item())
        v.append(outputs.softmax(0)[wrong[0]].item())
    alphas = torch.stack(alphas)
    singular = torch.linalg.svdvals(alphas)
    inverse_a, v = torch.tensor(inverse_a, dtype=DOUBLE), torch.tensor(v, dtype=DOUBLE)
    cosine = (inverse_a @ v / inverse_a.norm() / v.norm()).item()
    scale = (len(outputs) - 2) * inverse_a.sum().item() / len(x) / theta.norm().item() ** degree
    return {
        "condition_number": (singular[0] / singular[-1]).item() ** 2,
        "gradient_norm": max(norms),
        "separation": 1 / min(gaps),
        "cosine": cosine,
        "gram_cosine": functional.cosine_similarity(inverse_a @ alphas, v @ alphas, dim=0).item(),
        "lower_bound": -(max(norms) ** 2) * scale * math.exp(-min(gaps)),
    }


@pytest.mark.parametrize("name", networks())
def test_the_constants_written_out(name):
    model, (x, y) = networks()[name], samples(6)
    found = margin_bound(model, x, y)
    for key, value in constants_written_out(model, x, y).items():
        assert getattr(found, key) == pytest.approx(value, rel=1e-6), key
    assert proof_cosine(model, x, y) == pytest.approx(found.gram_cosine)


@pytest.mark.parametrize("c", [1.5, 5.0, 1e4])
def test_the_third_assumption_keeps_the_cosine_of_the_proof_from_being_negative(c):
    # A, v and b ⟂ v for which bᵀAv / vᵀAv is as low as for any: −(c − 1) / 2√c
    gram = torch.diag(torch.tensor([c, 1.0], dtype=DOUBLE))
    v = torch.tensor([1.0, c**0.5], dtype=DOUBLE)
    b = torch.tensor([-(c**0.5), 1.0], dtype=DOUBLE)

    def cosine(ratio):  # a = m v + √(1 − m²) b, with m / √(1 − m²) this ratio
        a = ratio * v + b
        return (a @ gram @ v / (a @ gram @ a * (v @ gram @ v)).sqrt()).item()

    assumed = cosine((c - 1) / 2)
    assert assumed > 0
    assert cosine((c - 1) / (2 * c**0.5)) == pytest.approx(0.0, abs=1e-9)
    assert cosine((c - 1) / (2.1 * c**0.5)) < 0


@pytest.mark.parametrize("factor", [0.1, 1.0, 15.0, 30.0])
def test_the_cosine_of_the_proof_does_not_depend_on_the_scale_of_the_outputs(factor):
    model = xor(1.2 * factor, factor / 1.2)  # e^(-s) of 30 is 0 in single precision
    assert margin_bound(model, X[::2], Y[::2]).gram_cosine == pytest.approx(1.0)
    assert margin_bound(model, X[:1], Y[:1]).gram_cosine == pytest.approx(1.0)
    assert proof_cosine(model, X, Y) == pytest.approx(1.0)


def test_the_cosine_of_the_proof_is_over_all_samples_in_batches_of_any_size():
    model, (x, y) = networks()["two layers"], samples(600)
    expected = constants_written_out(model, x, y)["gram_cosine"]
    for batch_size in (7, 256, 1000):
        assert proof_cosine(model, x, y, batch_size=batch_size) == pytest.approx(expected)
    assert margin_bound(model, x, y).gram_cosine != pytest.approx(expected)  # of 512
    with pytest.raises(ValueError, match="at least one sample"):
        proof_cosine(model, x[:0], y[:0])


def test_gradients_in_several_blocks_change_nothing(monkeypatch):
    model, (x, y) = networks()["two layers"], samples(9)
    whole = margin_bound(model, x, y)
    monkeypatch.setattr("qcore.analysis.bound._ENTRIES", 200)  # two samples at a time
    parts = margin_bound(model, x, y)
    assert parts.condition_number == pytest.approx(whole.condition_number, rel=1e-8)
    assert parts.gradient_norm == pytest.approx(whole.gradient_norm)


def test_more_samples_than_parameters_have_an_infinite_condition_number():
    model = LowRankForm(5, 3, rank=1)  # 15 parameters; α_n ⟂ θ leaves 14 dimensions
    x, y = torch.randn(40, 5), torch.randint(3, (40,))
    assert margin_bound(model, x[:5], y[:5]).condition_number < math.inf
    assert margin_bound(model, x[:15], y[:15]).condition_number == math.inf
    assert margin_bound(model, x, y).condition_number == math.inf


def test_the_subset_is_seeded_and_at_most_512():
    model, x, y = LowRankForm(3, 3, rank=1), torch.randn(600, 3), torch.randint(3, (600,))
    found = margin_bound(model, x, y)
    assert found.samples == 512
    assert found == margin_bound(model, x, y)
    assert found.lower_bound != margin_bound(model, x, y, seed=1).lower_bound
    assert margin_bound(model, x, y, samples=10).samples == 10


def test_a_tie_of_wrong_classes_is_not_separated():
    model = LowRankForm(2, 3, rank=1)
    with torch.no_grad():
        model.factors.fill_(1.0)
    found = margin_bound(model, torch.tensor([[1.0, 0.5]]), torch.tensor([0]))
    assert found.separation == math.inf
    assert found.lower_bound < 0


@pytest.mark.parametrize(
    ("c", "m", "holds"),
    [
        (1.0, 0.1, True),
        (3.0, math.sqrt(0.5), True),  # c − 1 = 2 = 2m / √(1 − m²)
        (3.1, math.sqrt(0.5), False),
        (1e9, 1.0, True),
        (math.inf, 1.0, False),
        (1.0, 0.0, False),
    ],
)
def test_the_third_assumption(c, m, holds):
    assert MarginBound(c, 1.0, 0.0, m, 0.0, 1, 2.0, 1.0).third_assumption is holds


# --- errors ---


@pytest.mark.parametrize("function", [margin_dynamics, margin_bound])
def test_bad_samples_are_refused(function):
    model = LowRankForm(2, 2, rank=1)
    text = (
        "x has shape (4, 2) and y (3,), but they must be (N, *input) and (N,): one class per "
        "sample, and at least one sample"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        function(model, X, Y[:3])
    with pytest.raises(ValueError, match=re.escape("x has shape (0, 2) and y (0,), but they must")):
        function(model, X[:0], Y[:0])
    text = (
        r"^the output for sample \d is 0, where the margin has no derivative; leave the sample out$"
    )
    with pytest.raises(ValueError, match=text):
        function(model, torch.tensor([[0.0, 0.0], [1.0, 1.0]]), Y[:2], degree=2)


def test_a_subset_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"^samples=0 is not allowed: give 1 or more$"):
        margin_bound(LowRankForm(2, 2, rank=1), X, Y, samples=0)
