"""What networks can express, counted as they are drawn: by width, beside each other."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from qbench.metrics import Metric
from qbench.report.drawing import COLOURS, GRID, legend_below, new_figure, style
from qbench.report.evidence import Evidence
from qbench.report.families import short
from qbench.report.numbers import CellReport
from qbench.report.panels import MARKERS
from qbench.report.wording import format_value, metric_name

_COUNTED: tuple[Metric, ...] = ("pieces", "degree", "dimension")
_ROOM = 0.7
"""How much of the way to the next place the models of one place take."""


def counts(evidence: Evidence) -> Figure | None:
    """Polynomial pieces, their degree, and the dimension of the set of functions: a panel for each
    dataset and count, a place for each value of the grid's other axis, a marker for each model.

    Means over the drawn networks with their 95 % intervals. None for a grid of other than one such
    axis.

    Source: the two theorems in the abstract of arXiv 2110.06081.
    """
    if len(evidence.report.axes) != 1:
        return None
    (axis,) = evidence.report.axes
    panels: dict[tuple[str, Metric], list[CellReport]] = {}
    for metric in _COUNTED:
        for cell in evidence.cells:
            if _mean_of(cell, metric) is not None:
                panels.setdefault((str(cell.axes["dataset"]), metric), []).append(cell)
    if not panels:
        return None
    places = list(dict.fromkeys(format_value(cell.axes[axis]) for cell in evidence.cells))
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(
        "What the networks can express",
        width=5.0 * columns + (1.5 if columns == 1 else 0.0),
        height=2.9 * rows + 1.0,
        mark=evidence.report.mark,
    )
    looks = {
        model: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, model in enumerate(evidence.models)
    }
    said = []
    for index, ((dataset, metric), cells) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        style(
            axes,
            f"{dataset}: {metric_name(metric)}",
            xlabel=axis if index + columns >= len(panels) else "",
        )
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_yscale("log", base=2)
        for cell in cells:
            model = str(cell.axes["model"])
            shift = evidence.models.index(model) - (len(looks) - 1) / 2
            at = places.index(format_value(cell.axes[axis])) + shift * _ROOM / len(looks)
            _draw_count(axes, cell, metric, at, looks[model])
        for edge in range(1, len(places)):
            axes.axvline(edge - 0.5, color=GRID, linewidth=0.8)
        axes.set_xticks(range(len(places)), places)
        axes.set_xlim(-0.5, len(places) - 0.5)
        axes.tick_params(axis="x", length=0)
        axes.tick_params(which="minor", length=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        last = cells[-1].axes[axis]
        numbers = (
            f"{cell.axes['model']} {_mean_of(cell, metric):g}"
            for cell in cells
            if cell.axes[axis] == last
        )
        words = f"{dataset}, {metric_name(metric)} for {axis} {format_value(last)}"
        said.append(f"{words}: {', '.join(numbers)}")
    handles = [
        Line2D([], [], linestyle="", markersize=5, label=short(model), **look)  # type: ignore[arg-type]
        for model, look in looks.items()
    ]
    legend_below(figure, handles, columns=min(6, len(handles)))
    figure.set_label(
        f"Counts of what networks can express, by {axis}: mean over the drawn networks with its "
        f"95 % interval{evidence.choices}. {'. '.join(said)}."
    )
    return figure


def _draw_count(
    axes: Axes, cell: CellReport, metric: Metric, at: float, look: dict[str, str]
) -> None:
    mean = _mean_of(cell, metric)
    measured = cell if metric == cell.metric else cell.others[metric]
    if mean is None:
        return
    # below 0.5 nothing is counted: an interval that reaches further is cut for the logarithm
    low, high = measured.interval95 or (mean, mean)
    axes.errorbar(
        at,
        mean,
        yerr=[[mean - max(low, 0.5)], [high - mean]],
        markersize=5,
        elinewidth=1.1,
        capsize=0,
        zorder=3,
        color=look["color"],
        marker=look["marker"],
    )


def _mean_of(cell: CellReport, metric: Metric) -> float | None:
    if metric == cell.metric:
        return cell.mean
    measured = cell.others.get(metric)
    return measured.mean if measured is not None else None
