"""Both sides of the equality behind theorem 2 along training."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qbench.report.drawing import BLUE, GRID, MUTED, ORANGE, cross, legend_below, new_figure, style
from qbench.report.evidence import Evidence
from qbench.report.panels import lost_key, say
from qbench.report.wording import format_number
from qbench.trial import Result

_SEEDS = 4
"""Columns at most: as many seeds as can be told apart side by side."""

_DRIFT = "#8a939c"

_STEEP = 20.0
"""How many times the median the largest value must be for a logarithmic axis."""


def equality(evidence: Evidence) -> Figure | None:
    """The margin's derivative, and the inner product of the proof, along the steps.

    A row for each model in each panel of the table, a column for each of the first four seeds. Dots
    are how the margin really changed in the step, over its length; the thin grey line, on the axis
    at the right, is the drift that the equality leaves out. A trial that diverged ends in a red
    cross.

    Source: DIQNN (arXiv 2307.13609), supplement 3.3 and figure 4.
    """
    rows = [
        (f"{cell.panel}, {cell.axes['model']}", evidence.of(cell.panel, str(cell.axes["model"])))
        for cell in evidence.cells
    ]
    shown = [result for _, results in rows for result in results]
    if not any(result.history.get("margin_derivative") for result in shown):
        return None
    seeds = sorted({result.seed for result in shown})[:_SEEDS]
    figure = new_figure(
        "Both sides of the equality behind theorem 2",
        width=max(6.0, 3.6 * len(seeds)),
        height=2.6 * len(rows) + 0.9,
        mark=evidence.report.mark,
    )
    said = []
    for row, (name, results) in enumerate(rows):
        by_seed = {result.seed: result for result in results}
        for column, seed in enumerate(seeds):
            axes = figure.add_subplot(len(rows), len(seeds), row * len(seeds) + column + 1)
            last = row + 1 == len(rows)
            style(
                axes,
                f"{name if column == 0 else ''}\nseed {seed}{_ending(by_seed.get(seed))}",
                xlabel="steps" if last else "",
            )
            result = by_seed.get(seed)
            if result is None:
                say(axes, "not run")
            else:
                _draw_trial(axes, result, first=column == 0, last=column + 1 == len(seeds))
        said.append(_in_words(name, results))
    handles = [
        Line2D([], [], color=BLUE, linewidth=2.6, label="derivative of the margin"),
        Line2D(
            [],
            [],
            color=ORANGE,
            linewidth=1.4,
            linestyle=(0, (4, 2)),
            label="inner product of the proof",
        ),
        Line2D([], [], color=BLUE, marker=".", linestyle="", label="its change in a step"),
        Line2D([], [], color=_DRIFT, linewidth=0.8, label="drift of a_n (right axis)"),
    ]
    if any(result.status == "diverged" for result in shown):
        handles.append(lost_key())
    legend_below(figure, handles, columns=2 if len(seeds) == 1 else len(handles))
    figure.set_label(
        "The derivative of the margin and the inner product of the proof of theorem 2 along the "
        f"steps{evidence.choices}, for the seeds {', '.join(map(str, seeds))}; the gap is that "
        f"between both relative to the derivative. {'; '.join(said)}."
    )
    return figure


def _draw_trial(axes: Axes, result: Result, *, first: bool, last: bool) -> None:
    axes.grid(color=GRID, linewidth=0.6)
    axes.axhline(0.0, color=MUTED, linewidth=0.6)
    rate, product, changes, drift = (
        result.history.get(name, ())
        for name in ("margin_derivative", "inner_product", "margin_rate", "drift")
    )
    if not rate:
        say(axes, "diverged before anything was recorded")
        return
    steps = result.step
    other = axes.twinx()
    style(other, "")
    other.plot(steps[: len(drift)], drift, color=_DRIFT, linewidth=0.8, label="drift")
    other.spines["left"].set_visible(False)
    other.spines["right"].set_visible(True)
    other.spines["right"].set_color(_DRIFT)
    other.tick_params(axis="y", colors=MUTED)
    other.set_ylim(bottom=0.0)
    if last:
        other.set_ylabel("drift, mean |d log a_n/dt|", fontsize=8.5, color=MUTED)
    # the two sides above the drift, though their axis is the older one
    axes.set_zorder(other.get_zorder() + 1)
    axes.set_facecolor("none")
    axes.plot(steps[: len(rate)], rate, color=BLUE, linewidth=2.6, label="margin_derivative")
    axes.plot(steps[: len(changes)], changes, ".", color=BLUE, markersize=3, label="margin_rate")
    axes.plot(
        steps[: len(product)],
        product,
        color=ORANGE,
        linewidth=1.4,
        linestyle=(0, (4, 2)),
        label="inner_product",
    )
    if result.status == "diverged":
        cross(axes, steps[len(rate) - 1], rate[-1])
    steep = _scale(axes, [*rate, *product])
    if first:
        words = "dΔμ/dt (logarithmic)" if steep else "dΔμ/dt"
        axes.set_ylabel(words, fontsize=8.5, color=MUTED)


def _scale(axes: Axes, values: Sequence[float]) -> bool:
    """A logarithm in both directions where a few values would flatten all others."""
    sizes = sorted(abs(value) for value in values if math.isfinite(value)) or [0.0]
    middle, largest = sizes[len(sizes) // 2], sizes[-1]
    steep = middle > 0 and largest > _STEEP * middle
    if steep:
        axes.set_yscale("symlog", linthresh=2 * middle, linscale=1.0)
        axes.tick_params(axis="y", which="minor", length=0)
    return steep


def _ending(result: Result | None) -> str:
    """How a trial's title ends: by its gap, or by when it diverged."""
    if result is None:
        return ""
    if result.status == "diverged":
        return f": diverged at step {result.diverged_at}"
    gap = result.value("equality_gap")
    return f": gap {gap:.2f}" if gap is not None else ""


def _in_words(name: str, results: Sequence[Result]) -> str:
    gaps = [gap for result in results if (gap := result.value("equality_gap")) is not None]
    shown = ", ".join(format_number(gap, "equality_gap") for gap in gaps)
    lost = sum(result.status == "diverged" for result in results)
    words = f"{name}: gap {shown}" if gaps else f"{name}: no gap"
    return words + (f", {lost} of {len(results)} trials diverged" if lost else "")
