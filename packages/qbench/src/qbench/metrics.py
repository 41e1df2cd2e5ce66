"""The quantities that tables measure, one entry each: in words, with unit and direction.

Some are recorded along training; the others are derived from such a record, and need no new run.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import fmean
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import AfterValidator

from qbench.errors import unknown

History = Mapping[str, Sequence[float]]
"""The recorded quantities of a trial, each along the recorded steps."""


@dataclass(frozen=True)
class Quantity:
    """What a metric is called, its unit, whether more of it is better, and how it is shown.

    ``derive`` computes it from a trial's history, where it is not recorded itself; NaN where the
    history does not have what it needs. ``of_diverged`` is the value of a trial that diverged,
    where it has one. ``percent`` shows one decimal, or two where values are compared. ``short`` is
    for narrow columns. ``exact`` values are counted: where every seed has the same, they need no
    test.
    """

    words: str
    unit: str = ""
    rising: bool = True
    percent: bool = False
    short: str = ""
    exact: bool = False
    derive: Callable[[History], float] | None = None
    of_diverged: float | None = None


def _best(name: str) -> Callable[[History], float]:
    return lambda history: max(history.get(name, ()), default=math.nan)


def _mean(name: str) -> Callable[[History], float]:
    return lambda history: fmean(history[name]) if history.get(name) else math.nan


def _selected(history: History) -> float:
    """Test accuracy where the validation accuracy was best, first of equals."""
    chosen, measured = history.get("validation_accuracy", ()), history.get("test_accuracy", ())
    if not chosen or not measured:
        return math.nan
    return measured[max(range(len(chosen)), key=lambda i: (chosen[i], -i))]


def _rises(history: History) -> float:
    """The share of recorded steps, in percent, to which the margin rose or stayed."""
    pairs = list(pairwise(history.get("margin", ())))
    return 100 * fmean(after >= before for before, after in pairs) if pairs else math.nan


def _drawdown(history: History) -> float:
    """The largest fall of the margin below a value that it had reached, in percent of its range."""
    margin = history.get("margin", ())
    if not margin:
        return math.nan
    fall = max(top - value for top, value in zip(accumulate(margin, max), margin, strict=True))
    return 100 * fall / (max(margin) - min(margin)) if fall else 0.0


def _correlation(history: History) -> float:
    """Pearson's correlation of the margin with the test accuracy along the recorded steps."""
    margin, accuracy = history.get("margin", ()), history.get("test_accuracy", ())
    if len(margin) < 3 or len(margin) != len(accuracy):
        return math.nan
    a = [value - fmean(margin) for value in margin]
    b = [value - fmean(accuracy) for value in accuracy]
    length = math.hypot(*a) * math.hypot(*b)
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / length if length else math.nan


def _gap(history: History) -> float:
    """‖derivative − inner product‖ relative to ‖derivative‖, along the recorded steps."""
    rate, product = history.get("margin_derivative", ()), history.get("inner_product", ())
    if not rate or len(rate) != len(product) or not math.hypot(*rate):
        return math.nan
    return math.dist(rate, product) / math.hypot(*rate)


def _third_assumption(history: History) -> float:
    """The share of recorded steps, in percent, at which c - 1 ≤ 2m / √(1 - m²) and m > 0."""
    pairs = list(
        zip(history.get("reciprocal_condition", ()), history.get("alignment", ()), strict=True)
    )
    # multiplied out by 1/c and by the root, of which either may be 0
    held = (m > 0 and (1 - r) * math.sqrt(1 - m * m) <= 2 * m * r and r > 0 for r, m in pairs)
    return 100 * fmean(held) if pairs else math.nan


def _learned(history: History) -> float:
    """100 where the training accuracy ended at 50 % or more, 0 where it did not."""
    accuracy = history.get("train_accuracy", ())
    return 100.0 * (accuracy[-1] >= 50.0) if accuracy else math.nan


QUANTITIES: Mapping[str, Quantity] = MappingProxyType(
    {
        "test_accuracy": Quantity("test accuracy", "%", percent=True, short="test"),
        "train_accuracy": Quantity("training accuracy", "%", percent=True, short="training"),
        "validation_accuracy": Quantity(
            "validation accuracy", "%", percent=True, short="validation"
        ),
        "train_loss": Quantity("training loss", "nats", rising=False, short="loss"),
        "test_loss": Quantity("test loss", "nats", rising=False),
        "validation_loss": Quantity("validation loss", "nats", rising=False),
        "margin": Quantity("margin Δμ", short="Δμ"),
        "margin_rate": Quantity("change of the margin in a step, over its length"),
        "margin_derivative": Quantity("derivative of the margin, dΔμ/dt"),
        "inner_product": Quantity("inner product of the proof", short="inner product"),
        "drift": Quantity("drift of a_n, mean |d log a_n/dt|", rising=False, short="drift"),
        "lower_bound": Quantity("lower bound of theorem 2", short="bound"),
        "closeness": Quantity("e^(-1/ε) of theorem 2", rising=False, short="e^(-1/ε)"),
        "reciprocal_condition": Quantity("1/c, of theorem 2's condition number", short="1/c"),
        "alignment": Quantity("cosine m of theorem 2", short="m"),
        "gram_alignment": Quantity(
            "cosine of Σ α_n/a_n and Σ v_n α_n, of theorem 2's proof", short="cosine"
        ),
        "proof_alignment": Quantity(
            "cosine of Σ α_n/a_n and Σ v_n α_n over at most 2000 samples", short="proof's cosine"
        ),
        "best_test_accuracy": Quantity(
            "best epoch on test",
            "%",
            percent=True,
            derive=_best("test_accuracy"),
            short="best epoch",
        ),
        "selected_test_accuracy": Quantity(
            "test accuracy at the best validation epoch",
            "%",
            percent=True,
            derive=_selected,
            short="selected",
        ),
        "mean_test_accuracy": Quantity(
            "mean test accuracy along training",
            "%",
            percent=True,
            derive=_mean("test_accuracy"),
            short="mean",
        ),
        "margin_rises": Quantity(
            "share of recorded steps to which the margin did not fall",
            "%",
            percent=True,
            derive=_rises,
            short="rises",
        ),
        "margin_drawdown": Quantity(
            "largest fall of the margin relative to its range",
            "%",
            rising=False,
            percent=True,
            derive=_drawdown,
            short="fall",
        ),
        "margin_correlation": Quantity(
            "correlation of margin and test accuracy",
            derive=_correlation,
            short="correlation",
        ),
        "equality_gap": Quantity(
            "relative gap between both sides of the equality",
            rising=False,
            derive=_gap,
            short="gap",
        ),
        "third_assumption": Quantity(
            "share of recorded steps at which the third assumption of theorem 2 holds",
            "%",
            percent=True,
            derive=_third_assumption,
            short="assumption 3",
        ),
        "learned": Quantity(
            "trials that learned (training accuracy of 50 % or more)",
            "%",
            percent=True,
            derive=_learned,
            of_diverged=0.0,
            short="learned",
        ),
        "kept_1": Quantity("test accuracy with 1 eigenvector", "%", percent=True, short="1 kept"),
        "kept_3": Quantity("test accuracy with 3 eigenvectors", "%", percent=True, short="3 kept"),
        "kept_10": Quantity(
            "test accuracy with 10 eigenvectors", "%", percent=True, short="10 kept"
        ),
        "lost_10": Quantity(
            "test accuracy lost where 10 eigenvectors are kept",
            "%",
            rising=False,
            percent=True,
            short="lost",
        ),
        "similarity": Quantity(
            "|cosine| of leading eigenvector and spike-triggered average", short="|cos|"
        ),
        "similarity_others": Quantity(
            "|cosine| with the averages of the other classes", short="|cos| others"
        ),
        "pieces": Quantity("polynomial pieces on an interval", short="pieces", exact=True),
        "degree": Quantity("largest degree of a piece", short="degree", exact=True),
        "dimension": Quantity("dimension of the set of functions", short="dimension", exact=True),
    }
)
"""Every metric by name. Accuracies are in percent, losses in nats."""


def _known(name: Any) -> str:
    if name not in QUANTITIES:
        raise ValueError(str(unknown("metric", str(name), QUANTITIES)))
    return str(name)


Metric = Annotated[str, AfterValidator(_known)]
"""A name in :data:`QUANTITIES`."""
