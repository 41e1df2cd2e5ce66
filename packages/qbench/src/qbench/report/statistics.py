"""Mean, spread and tests over seeds."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from scipy import special  # scipy.stats takes a second to import

Key = TypeVar("Key", bound=Hashable)

_Z = 1.959963984540054  # of the standard normal distribution, two-sided at 95 %


@dataclass(frozen=True)
class Summary:
    """Mean over n seeds, standard deviation (n - 1), and the 95 % interval of the mean (Student's
    t).

    Spread and interval are None for fewer than two seeds.
    """

    mean: float
    std: float | None
    n: int
    interval95: tuple[float, float] | None


def summarize(values: Sequence[float]) -> Summary | None:
    """The summary of a sample, None for an empty one.

    >>> summarize([1.0, 2.0, 3.0])
    Summary(mean=2.0, std=1.0, n=3, interval95=(-0.48..., 4.48...))
    """
    if not values:
        return None
    n = len(values)
    mean = float(np.mean(values))
    if n < 2:
        return Summary(mean, None, n, None)
    std = float(np.std(values, ddof=1))
    half = float(special.stdtrit(n - 1, 0.975)) * std / math.sqrt(n)
    return Summary(mean, std, n, (mean - half, mean + half))


def wilson(accuracy: float, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of an accuracy in percent, measured on so many images.

    >>> [round(value, 1) for value in wilson(90.0, 1000)]
    [88.0, 91.7]
    """
    share = accuracy / 100
    centre = share + _Z**2 / (2 * images)
    half = _Z * math.sqrt(share * (1 - share) / images + _Z**2 / (4 * images**2))
    scale = 100 / (1 + _Z**2 / images)
    return scale * (centre - half), scale * (centre + half)


@dataclass(frozen=True)
class Comparison:
    """Mean of the paired differences, the two-sided p-value of a paired t-test, and the 95 %
    interval of the mean (Student's t).

    Both are None where the differences do not vary: there is nothing to test against.
    """

    difference: float
    p_value: float | None
    interval95: tuple[float, float] | None = None


def compare_paired(values: Mapping[Key, float], control: Mapping[Key, float]) -> Comparison | None:
    """Compare two samples over the seeds, or other keys, that both have; None for fewer than two.

    >>> compare_paired({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0})
    Comparison(difference=1.0, p_value=None, interval95=None)
    """
    seeds = [seed for seed in values if seed in control]
    if len(seeds) < 2:
        return None
    differences = np.array([values[seed] - control[seed] for seed in seeds])
    difference = float(differences.mean())
    # differences of rounded numbers vary by rounding alone
    rounding = 1e-9 * max(abs(value) for value in (*values.values(), *control.values(), 1.0))
    if float(np.ptp(differences)) <= rounding:
        return Comparison(difference, None)
    p_value = 2 * _below(-abs(_t(differences, 0.0)), len(seeds))
    summary = summarize(differences.tolist())
    return Comparison(difference, p_value, summary.interval95 if summary else None)


def compare_close(
    values: Mapping[Key, float], control: Mapping[Key, float], within: float
) -> Comparison | None:
    """Whether two samples differ by less than ``within`` or by more, over the keys both have; None
    for fewer than two.

    Where the means are that close, the p-value is that of two one-sided paired t-tests, which
    reject that the samples are further apart; where they are not, it is that of the paired t-test
    which rejects that they are that close.

    >>> near = compare_close({0: 2.0, 1: 3.0, 2: 4.1}, {0: 2.1, 1: 3.0, 2: 4.0}, within=1.0)
    >>> near.p_value < 0.05
    True
    """
    pairs = compare_paired(values, control)
    if pairs is None or pairs.p_value is None:
        return pairs
    shared = [seed for seed in values if seed in control]
    differences = np.array([values[seed] - control[seed] for seed in shared])
    apart = abs(pairs.difference) > within
    edge = math.copysign(within, pairs.difference)
    # of the two edges the nearer one decides, whichever side of it the mean is
    p_value = _below(-abs(_t(differences, edge)), len(shared))
    return replace(pairs, p_value=2 * p_value if apart else p_value)


def compare_ranks(values: Sequence[float], control: Sequence[float]) -> Comparison:
    """Compare two samples, whose values may be infinite, by their mean ranks: the two-sided
    rank-sum test of Mann and Whitney.

    It is exact, ties or not, up to ten of each; of more, 200 000 of the ways to deal the values out
    are drawn, always the same ones.

    >>> compare_ranks([98.0, 99.0, 97.0, 99.0, 98.5], [-math.inf] * 5)
    Comparison(difference=5.0, p_value=0.007936507936507936, interval95=None)
    """
    from scipy.stats import permutation_test, rankdata  # they take a second, and are seldom needed

    ranks = rankdata([*values, *control])
    test = permutation_test(
        (ranks[: len(values)], ranks[len(values) :]),
        lambda one, other, axis: one.mean(axis) - other.mean(axis),
        vectorized=True,
        n_resamples=200_000,
        rng=np.random.default_rng(0),
    )
    return Comparison(float(test.statistic), float(test.pvalue))


def _t(differences: np.ndarray[Any, np.dtype[np.float64]], mean: float) -> float:
    """Student's statistic of a sample against a mean."""
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    return (float(differences.mean()) - mean) / error


def _below(t: float, n: int) -> float:
    """The probability that the statistic of n samples is below ``t`` by chance."""
    return float(special.stdtr(n - 1, t))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: adjusted p-values, in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
