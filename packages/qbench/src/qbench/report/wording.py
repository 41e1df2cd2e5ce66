"""How a report says things, the same on the terminal, on the page and in figures."""

from collections.abc import Iterable, Mapping
from typing import Literal

from qbench.frozen import Scalar
from qbench.metrics import QUANTITIES, Metric

Verdict = Literal["holds", "does not hold", "not decided", "not tested"]
Tone = Literal["good", "bad", "open", "none"]

VERDICTS: Mapping[Verdict, tuple[str, Tone]] = {
    "holds": ("✓", "good"),
    "does not hold": ("✗", "bad"),
    "not decided": ("?", "open"),
    "not tested": ("–", "none"),
}
"""Each verdict's symbol, and the tone to show it in."""


def metric_name(metric: Metric) -> str:
    """A metric in words.

    >>> metric_name("train_loss")
    'training loss'
    """
    return QUANTITIES[metric].words


def metric_with_unit(metric: Metric) -> str:
    """A metric in words, with its unit where it has one.

    >>> metric_with_unit("test_accuracy")
    'test accuracy (%)'
    """
    quantity = QUANTITIES[metric]
    return f"{quantity.words} ({quantity.unit})" if quantity.unit else quantity.words


def format_number(
    value: float | None, metric: Metric, *, sign: bool = False, precise: bool = False
) -> str:
    """Accuracies with one decimal, counts with none or one, all else with four; large numbers as
    powers of ten.

    ``precise`` gives accuracies a second decimal, where two of them are compared.

    >>> format_number(97.249, "test_accuracy"), format_number(-0.5, "margin", sign=True)
    ('97.2', '−0.5000')
    >>> format_number(154346196.8, "train_loss"), format_number(None, "margin")
    ('1.54e+08', '–')
    >>> format_number(97.249, "test_accuracy", precise=True)
    '97.25'
    """
    if value is None:
        return "–"
    if QUANTITIES[metric].exact:
        return f"{value:{'+' if sign else ''}.1f}".removesuffix(".0").replace("-", "−")
    digits = (2 if precise else 1) if QUANTITIES[metric].percent else 4
    form = f"{'+' if sign else ''}.{digits}f" if abs(value) < 1e4 else ".2e"
    shown = f"{value:{form}}"
    if not sign and shown.startswith("-") and not shown.strip("-0."):
        shown = shown[1:]
    return shown.replace("-", "−")


def format_interval(value: tuple[float, float] | None, metric: Metric) -> str:
    """An interval, empty where there is none.

    >>> format_interval((97.1, 98.0), "test_accuracy")
    '97.1 … 98.0'
    """
    if value is None:
        return ""
    return f"{format_number(value[0], metric)} … {format_number(value[1], metric)}"


def format_count(value: int) -> str:
    """A whole number with narrow gaps between thousands.

    >>> format_count(6352000).replace(chr(0x202F), "_")
    '6_352_000'
    """
    return f"{value:,}".replace(",", "\u202f")


def format_p(value: float | None) -> str:
    """A p-value with three decimals.

    >>> format_p(0.0031), format_p(1e-9), format_p(None)
    ('0.003', '<0.001', '')
    """
    if value is None:
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def format_value(value: Scalar) -> str:
    """A value of an axis.

    >>> format_value("maxabs"), format_value(1.0)
    ('maxabs', '1')
    """
    return value if isinstance(value, str) else f"{value:g}"


def listed(names: Iterable[object]) -> str:
    """Names as a sentence lists them.

    >>> listed(["iris", "wine", "digits"])
    'iris, wine and digits'
    """
    words = [str(name) for name in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def format_duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> format_duration(0), format_duration(1.4), format_duration(1440), format_duration(26000)
    ('–', '1 s', '24 min', '7 h')
    >>> format_duration(3600000)
    '42 d'
    """
    if not seconds:
        return "–"
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    hours = seconds / 3600
    return f"{round(hours)} h" if hours < 48 else f"{round(hours / 24)} d"
