"""The normalised margin and the test accuracy along training, on two axes."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qbench.metrics import Metric
from qbench.report.drawing import BLUE, GRID, MUTED, ORANGE, legend_below, new_figure, style
from qbench.report.evidence import Evidence
from qbench.report.families import short
from qbench.report.panels import draw_curve, lost_key, lost_trials, mean_curve, note_below, say
from qbench.report.wording import format_number

_LINES: dict[Metric, dict[str, Any]] = {
    "test_accuracy": {"color": BLUE, "linewidth": 1.8},
    "margin": {"color": ORANGE, "linewidth": 1.8, "linestyle": (0, (4, 2))},
}


def margin_and_accuracy(evidence: Evidence) -> Figure | None:
    """Test accuracy (solid, left axis) and margin Δμ (dashed, right axis) along the steps.

    A panel for each model in each panel of the table: datasets side by side. Lines are means over
    the seeds, bands ± one standard deviation (n - 1); a model of which every seed diverged ends in
    a red cross. ``r`` is the mean of the seeds' correlations of both lines.

    Source: DIQNN (arXiv 2307.13609), figure 5.
    """
    if not any(result.history.get("margin") for result in evidence.results):
        return None
    datasets = list(dict.fromkeys(str(cell.axes["dataset"]) for cell in evidence.cells))
    rest = [*evidence.report.axes, "model"]
    rows = list(dict.fromkeys(tuple(cell.axes[a] for a in rest) for cell in evidence.cells))
    columns = len(datasets)
    places = [
        (
            rows.index(tuple(cell.axes[axis] for axis in rest)),
            datasets.index(str(cell.axes["dataset"])),
        )
        for cell in evidence.cells
    ]
    figure = new_figure(
        "Test accuracy and margin along training",
        width=3.7 * columns if columns > 1 else 6.5,
        height=2.5 * len(rows) + 0.9,
        mark=evidence.report.mark,
    )
    said = []
    lost = False
    for cell, (row, column) in zip(evidence.cells, places, strict=True):
        beside = [other for at, other in places if at == row]
        lowest = row == max(at for at, other in places if other == column)
        model = str(cell.axes["model"])
        results = evidence.of(cell.panel, model)
        axes = figure.add_subplot(len(rows), columns, row * columns + column + 1)
        style(axes, f"{cell.panel}: {short(model)}", xlabel="steps" if lowest else "")
        axes.grid(color=GRID, linewidth=0.6)
        other = axes.twinx()
        style(other, "")
        for metric, panel, side in (("test_accuracy", axes, "left"), ("margin", other, "right")):
            _colour_side(panel, metric, side)
            curve = mean_curve(results, metric)
            if curve is None:
                say(axes, "nothing recorded")
                continue
            marker = "o" if len(curve.steps) == 1 else ""
            draw_curve(panel, curve, marker=marker, **_LINES[metric])
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -4.0), min(high, 104.0))
        if column == min(beside):
            axes.set_ylabel("test accuracy (%)", fontsize=8.5, color=BLUE)
        if column == max(beside):
            other.set_ylabel("margin Δμ", fontsize=8.5, color=ORANGE)
        correlation = cell.others.get("margin_correlation")
        ends = [
            format_number(float(curve.mean[-1]), metric)
            for metric in _LINES
            if (curve := mean_curve(results, metric)) is not None
        ]
        record = f"ends at {' % and a margin of '.join(ends)}" if ends else "has no record"
        words = f"{cell.panel}: {model} {record}"
        if correlation is not None and correlation.mean is not None:
            shown = f"r = {correlation.mean:.2f}".replace("-", "−")
            axes.set_title(shown, loc="right", fontsize=8.5, color=MUTED)
            words += f", {shown}"
        note = lost_trials({model: results})
        lost = lost or bool(note)
        note_below(axes, note, width=44)
        said.append(words + (f" ({note.removeprefix('✕ ')})" if note else ""))
    handles = [
        Line2D([], [], label="test accuracy, left axis", **_LINES["test_accuracy"]),
        Line2D([], [], label="margin Δμ, right axis", **_LINES["margin"]),
    ]
    if lost:
        handles.append(lost_key())
    legend_below(figure, handles, columns=len(handles))
    figure.set_label(
        "Test accuracy and normalised margin along the steps of training"
        f"{evidence.choices}, mean over the seeds with one standard deviation; r is their "
        f"correlation. {'; '.join(said)}."
    )
    return figure


def _colour_side(axes: Axes, metric: Metric, side: str) -> None:
    """Numbers and spine in the colour of the line that they measure."""
    colour = str(_LINES[metric]["color"])
    for name in ("left", "right"):
        axes.spines[name].set_visible(name == side)
    axes.spines[side].set_color(colour)
    axes.tick_params(axis="y", colors=colour)
    axes.margins(x=0.02, y=0.08)
