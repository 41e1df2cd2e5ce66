"""Statistics against scipy, textbook values and their own laws."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qbench.report.statistics import (
    compare_close,
    compare_paired,
    compare_ranks,
    holm,
    summarize,
)

numbers = st.floats(-100, 100).map(lambda x: round(x, 3))


@given(st.lists(numbers, min_size=2, max_size=20))
def test_a_summary_is_mean_deviation_and_students_interval(values: list[float]) -> None:
    summary = summarize(values)
    assert summary is not None
    assert summary.n == len(values)
    assert summary.mean == pytest.approx(sum(values) / len(values))
    assert summary.std == pytest.approx(np.std(values, ddof=1))
    assert summary.interval95 is not None
    low, high = summary.interval95
    assert (low + high) / 2 == pytest.approx(summary.mean, abs=1e-9)
    if np.std(values) > 1e-6:
        expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert (low, high) == pytest.approx(expected)


def test_one_value_has_no_spread_and_none_has_no_summary() -> None:
    one = summarize([3.0])
    assert one is not None
    assert (one.mean, one.std, one.n, one.interval95) == (3.0, None, 1, None)
    assert summarize([]) is None


@given(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=12))
def test_a_comparison_is_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    first, second = ({i: pair[k] for i, pair in enumerate(pairs)} for k in (0, 1))
    comparison = compare_paired(first, second)
    assert comparison is not None
    differences = np.array([a - b for a, b in pairs])
    assert comparison.difference == pytest.approx(differences.mean())
    if np.ptp(differences) > 1e-6:
        expected = stats.ttest_rel(list(first.values()), list(second.values()))
        assert comparison.p_value == pytest.approx(expected.pvalue)
        assert comparison.interval95 == pytest.approx(tuple(expected.confidence_interval(0.95)))


@given(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=12), st.floats(0.1, 50))
def test_nearness_is_tested_by_two_one_sided_t_tests(
    pairs: list[tuple[float, float]], within: float
) -> None:
    first, second = ({i: pair[k] for i, pair in enumerate(pairs)} for k in (0, 1))
    differences = np.array([a - b for a, b in pairs])
    if np.ptp(differences) <= 1e-6:
        return
    comparison = compare_close(first, second, within)
    assert comparison is not None
    assert comparison.difference == pytest.approx(differences.mean())
    above = stats.ttest_1samp(differences, -within, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, within, alternative="less").pvalue
    if abs(differences.mean()) <= within:
        assert comparison.p_value == pytest.approx(max(above, below))
    else:  # that it is so close is what is rejected
        edges = (stats.ttest_1samp(differences, edge).pvalue for edge in (-within, within))
        assert comparison.p_value == pytest.approx(max(edges))


def test_only_seeds_that_both_have_are_compared() -> None:
    comparison = compare_paired({0: 1.0, 1: 2.0, 5: 9.0}, {1: 1.0, 5: 7.0, 8: 0.0})
    assert comparison is not None
    assert comparison.difference == 1.5
    assert compare_paired({0: 1.0}, {0: 2.0}) is None
    assert compare_paired({0: 1.0, 1: 1.0}, {2: 2.0, 3: 2.0}) is None


@pytest.mark.parametrize("shift", [0.0, 1.0, 0.1])
def test_differences_that_do_not_vary_are_not_tested(shift: float) -> None:
    # 0.1 varies, by rounding alone
    first = {seed: 90.0 + seed for seed in range(4)}
    comparison = compare_paired({seed: value + shift for seed, value in first.items()}, first)
    assert comparison is not None
    assert comparison.difference == pytest.approx(shift)
    assert comparison.p_value is None
    assert comparison.interval95 is None


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_its_definition(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    order = np.argsort(p_values, kind="stable")
    m = len(p_values)
    for position, index in enumerate(order):
        steps = [min(1.0, (m - j) * p_values[order[j]]) for j in range(position + 1)]
        assert adjusted[index] == pytest.approx(max(steps))
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    assert not any(math.isnan(a) for a in adjusted)


@given(st.lists(numbers, min_size=2, max_size=7), st.lists(numbers, min_size=2, max_size=7))
def test_ranks_are_compared_by_all_ways_to_deal_them_out(
    first: list[float], second: list[float]
) -> None:
    comparison = compare_ranks(first, second)
    ranks = stats.rankdata([*first, *second])
    dealt = [
        np.mean([ranks[i] for i in chosen]) - np.mean(np.delete(ranks, chosen))
        for chosen in itertools.combinations(range(len(ranks)), len(first))
    ]
    assert comparison.difference == pytest.approx(dealt[0])
    below, above = (
        sum(sign * value >= sign * dealt[0] - 1e-9 for value in dealt) / len(dealt)
        for sign in (-1, 1)
    )
    assert comparison.p_value == pytest.approx(min(1.0, 2 * min(below, above)))
    if len(set(ranks)) == len(ranks):
        known = stats.mannwhitneyu(first, second, method="exact")
        assert comparison.p_value == pytest.approx(known.pvalue)


def test_ranks_of_many_are_compared_by_the_same_draws_each_time() -> None:
    first, second = [*map(float, range(40))], [*map(float, range(20, 60))]
    comparison = compare_ranks(first, second)
    assert comparison == compare_ranks(first, second)
    known = stats.mannwhitneyu(first, second, method="asymptotic")
    assert comparison.p_value == pytest.approx(known.pvalue, abs=1e-4)
    assert compare_ranks([-math.inf, 1.0, 2.0], [-math.inf, 1.0, 2.0]).p_value == 1.0
