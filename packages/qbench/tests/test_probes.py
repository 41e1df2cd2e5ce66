"""What is measured of a training beside loss and accuracy: the constants of theorem 2."""

import math

import pytest
import torch

from qbench.architecture import ModelSpec
from qbench.build import build_model
from qbench.data import load_problem
from qbench.loop import Training
from qbench.metrics import QUANTITIES
from qbench.probes import theorem2
from qbench.recipe import Recipe
from qbench.stack import side_by_side
from qcore import normalized_margin
from qcore.analysis import MarginBound, margin_bound, margin_dynamics, proof_cosine

THIRD = QUANTITIES["third_assumption"].derive
assert THIRD is not None


def test_the_constants_of_theorem_2_are_those_of_the_analysis() -> None:
    recipe = Recipe(epochs=1, log_every=1, lr=0.01, batch_size=None, probes=("theorem2",))
    problem = load_problem("iris", recipe, [0, 1])
    spec = ModelSpec(kind="low_rank", rank=2)
    models = [build_model(spec, problem.shape, problem.classes, 1.0, seed) for seed in (0, 1)]
    curves = Training(side_by_side(models), problem, recipe, [0, 1], probe=theorem2).run()
    for seed, curve in enumerate(curves):
        model = build_model(spec, problem.shape, problem.classes, 1.0, seed).double()
        x, y = problem.train.x[seed].double(), problem.train.y[seed]
        dynamics = margin_dynamics(model, x, y)
        bound = margin_bound(model, x, y, degree=2)
        expected = {
            "margin_derivative": dynamics.derivative.item(),
            "inner_product": dynamics.inner_product.item(),
            "drift": dynamics.drift.abs().mean().item(),
            "lower_bound": bound.lower_bound,
            "closeness": math.exp(-1 / bound.separation),
            "reciprocal_condition": 1 / bound.condition_number,
            "alignment": bound.cosine,
            "gram_alignment": bound.gram_cosine,
            "proof_alignment": proof_cosine(model, x, y),
        }
        measured = {name: curve.metrics[name][0] for name in expected}
        assert measured == pytest.approx(expected, rel=1e-4, abs=1e-9)
        # 120 samples and 24 parameters: their Gram matrix is singular
        assert measured["reciprocal_condition"] == 0.0
        # the bound is what its factors make of it
        factor = -(bound.gradient_norm**2) * measured["closeness"]
        lengths = model(x).norm(dim=1)
        assert measured["lower_bound"] == pytest.approx(factor * (1 / lengths).mean().item())
        start, end = curve.metrics["margin"]
        assert curve.metrics["margin_rate"][0] == pytest.approx((end - start) / 0.01, rel=1e-2)
        with torch.no_grad():
            assert start == pytest.approx(normalized_margin(model(x), y).item(), abs=1e-6)


@pytest.mark.parametrize("cosine", [-0.5, 0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("condition", [1.0, 1.5, 3.0, 1e9, math.inf])
def test_the_third_assumption_is_judged_as_the_analysis_judges_it(
    condition: float, cosine: float
) -> None:
    bound = MarginBound(condition, 1.0, 1.0, cosine, -1.0, 8, 2.0, 1.0)
    history = {"reciprocal_condition": (1 / condition,), "alignment": (cosine,)}
    assert THIRD(history) == (100.0 if bound.third_assumption else 0.0)


def test_the_third_assumption_is_counted_over_the_recorded_steps() -> None:
    # c = 2 and 3: with m = 0.6 the limit of c - 1 is 1.5
    history = {"reciprocal_condition": (1 / 2, 1 / 3, 0.0, 1.0), "alignment": (0.6,) * 4}
    assert THIRD(history) == 50.0


def test_a_record_without_the_constants_says_nothing_of_the_third_assumption() -> None:
    assert math.isnan(THIRD({"drift": (0.1, 0.2)}))
