"""What several figures draw in a panel: means along training, and what is said of lost trials."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from qbench.metrics import Metric
from qbench.report.drawing import ALARM, INK, MUTED, cross
from qbench.report.numbers import CellReport
from qbench.trial import Result

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")

Values = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class MeanCurve:
    """A metric along the steps: mean over seeds and their standard deviation (n - 1).

    ``spread`` is None for one seed. ``ended`` where every seed diverged: the curve is their mean
    as far as all of them were recorded.
    """

    steps: tuple[int, ...]
    mean: Values
    spread: Values | None
    ended: bool


def mean_curve(results: Iterable[Result], metric: Metric) -> MeanCurve | None:
    """The mean over the finished seeds, or over all where none finished; None without a record."""
    recorded = [result for result in results if result.history.get(metric)]
    alive = [result for result in recorded if result.status == "finished"]
    shown = alive or recorded
    if not shown:
        return None
    points = min(len(result.history[metric]) for result in shown)
    values = np.array([result.history[metric][:points] for result in shown])  # (seeds, points)
    spread = values.std(0, ddof=1) if len(values) > 1 else None
    return MeanCurve(shown[0].step[:points], values.mean(0), spread, ended=not alive)


def draw_curve(axes: Axes, curve: MeanCurve, *, bands: bool = True, **line: Any) -> None:
    """The mean as a line, the spread as a band unless they are too many; a red cross where it ends
    early."""
    axes.plot(curve.steps, curve.mean, **line)
    if curve.spread is not None and bands:
        low, high = curve.mean - curve.spread, curve.mean + curve.spread
        axes.fill_between(curve.steps, low, high, color=line["color"], alpha=0.1, linewidth=0)
    if curve.ended:
        cross(axes, curve.steps[-1], float(curve.mean[-1]))


def best_by_validation(cells: Iterable[CellReport]) -> CellReport | None:
    """The cell with the best validation accuracy among those without diverged trials, the first of
    equals; None where none has one.

    >>> best_by_validation([])
    """
    known = []
    for cell in cells:
        measured = cell.others.get("validation_accuracy")
        if cell.mean is None or cell.diverged or measured is None or measured.mean is None:
            continue
        known.append((measured.mean, cell))
    return max(known, key=lambda pair: pair[0])[1] if known else None


def draw_ring(axes: Axes, x: float, cell: CellReport) -> None:
    """The ring around what was chosen."""
    axes.plot(
        x,
        cell.mean or 0.0,
        marker="o",
        markersize=11,
        markerfacecolor="none",
        color=INK,
        linestyle="",
        zorder=4,
        label="chosen",
    )


def lost_trials(by_model: Mapping[str, Sequence[Result]]) -> str:
    """Which models lost how many trials to divergence; empty where none did.

    >>> lost_trials({"linear": []})
    ''
    """
    lost: dict[str, list[str]] = {}
    for model, results in by_model.items():
        if gone := sum(result.status == "diverged" for result in results):
            lost.setdefault(f"{gone} of {len(results)}", []).append(model)
    counts = (f"{count} seeds of {', '.join(models)}" for count, models in lost.items())
    return f"✕ diverged: {'; '.join(counts)}" if lost else ""


def note_below(axes: Axes, text: str, *, width: int = 64) -> None:
    """A line in red under the axis, for what was lost."""
    if text:
        axes.annotate(
            textwrap.fill(text, width),
            (0.0, 0.0),
            xytext=(0, -36),
            xycoords="axes fraction",
            textcoords="offset points",
            va="top",
            fontsize=7.5,
            color=ALARM,
            parse_math=False,
        )


def say(axes: Axes, text: str) -> None:
    """Words in the middle of a panel that has nothing to draw, without ticks of nothing."""
    axes.set(xticks=[], yticks=[])
    axes.text(
        0.5,
        0.5,
        textwrap.fill(text, 32),
        transform=axes.transAxes,
        ha="center",
        va="center",
        fontsize=8.5,
        color=MUTED,
        parse_math=False,
    )


def lost_key() -> Line2D:
    """The legend's entry for diverged trials."""
    return Line2D([], [], color=ALARM, marker="x", linestyle="", markersize=5, label="diverged")
