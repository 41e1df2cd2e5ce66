"""Accuracy along one of ReLinear's factors, from the linear network to the free quadratic one."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qbench.report.drawing import ALARM, BLUE, GRID, INK, legend_below, new_figure, style
from qbench.report.evidence import Evidence
from qbench.report.families import FAMILIES
from qbench.report.numbers import CellReport
from qbench.report.panels import best_by_validation, draw_ring, lost_key
from qbench.report.wording import format_number, metric_name, metric_with_unit


def along_factor(evidence: Evidence) -> Figure | None:
    """The main metric against the factor's values, in the order of the table's models: one panel
    per factor, means with their 95 % intervals.

    The dashed line is the control, the factor at 0. A ring is around the inner value that the
    validation accuracy chose, among those without diverged trials. Red crosses are diverged trials,
    with their number.

    Source: ReLinear (arXiv 2110.06081), README, figure 2.
    """
    panels, models = evidence.panels, evidence.models
    if not evidence.cells:
        return None
    metric = evidence.cells[0].metric
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(
        f"{metric_name(metric).capitalize()} along each factor",
        width=4.0 * columns if columns > 1 else 6.5,
        height=2.8 * rows + 0.9,
        mark=evidence.report.mark,
    )
    said = []
    first: Axes | None = None
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1, sharey=first)
        first = first or axes
        style(
            axes,
            panel,
            xlabel="value of the factor" if index + columns >= len(panels) else "",
            ylabel=metric_with_unit(metric) if index % columns == 0 else "",
        )
        axes.grid(color=GRID, linewidth=0.6)
        cells = [evidence.cell(panel, model) for model in models]
        chosen = best_by_validation([cell for cell in cells[1:-1] if cell is not None])
        _draw_factor(axes, cells, chosen, evidence.report.control)
        axes.set_xticks(range(len(models)), models, rotation=45 if len(models) > 5 else 0)
        axes.set_xlim(-0.5, len(models) - 0.5)
        said.append(_in_words(panel, [cell for cell in cells if cell is not None], chosen))
    lost = any(cell.diverged for cell in evidence.cells)
    if first is not None and lost:  # room for what is said of them
        low, high = first.get_ylim()
        first.set_ylim(low - 0.22 * (high - low), high)
    handles = [Line2D([], [], color=BLUE, marker="o", markersize=4.5, label="mean, 95 % interval")]
    if evidence.report.control in models:
        handles.append(
            Line2D(
                [],
                [],
                color=FAMILIES["linear"],
                linestyle=(0, (4, 3)),
                label=f"control: {evidence.report.control}",
            )
        )
    handles.append(
        Line2D(
            [],
            [],
            color=INK,
            marker="o",
            markersize=9,
            markerfacecolor="none",
            linestyle="",
            label="best inner value by validation accuracy",
        )
    )
    if lost:
        handles.append(lost_key())
    legend_below(figure, handles, columns=len(handles) if columns > 1 else 2)
    figure.set_label(
        f"{metric_with_unit(metric).capitalize()} along the values of each factor, from 0, the "
        f"linear network, to 1{evidence.choices}: mean over the seeds with its 95 % interval. "
        f"{' '.join(said)}"
    )
    return figure


def _draw_factor(
    axes: Axes,
    cells: Sequence[CellReport | None],
    chosen: CellReport | None,
    control: str | None,
) -> None:
    measured = [
        (place, cell.mean, cell.interval95 or (cell.mean, cell.mean))
        for place, cell in enumerate(cells)
        if cell is not None and cell.mean is not None
    ]
    for cell in cells:
        if cell is not None and cell.axes["model"] == control and cell.mean is not None:
            axes.axhline(
                cell.mean, color=FAMILIES["linear"], linewidth=1.0, linestyle=(0, (4, 3)), zorder=2
            )
    if measured:
        axes.errorbar(
            [place for place, _, _ in measured],
            [mean for _, mean, _ in measured],
            yerr=[
                [mean - low for _, mean, (low, _) in measured],
                [high - mean for _, mean, (_, high) in measured],
            ],
            color=BLUE,
            marker="o",
            markersize=4.5,
            linewidth=1.4,
            elinewidth=1.1,
            capsize=2.5,
            zorder=3,
        )
    if chosen is not None:
        draw_ring(axes, cells.index(chosen), chosen)
    for place, cell in enumerate(cells):
        if cell is not None and cell.diverged:
            axes.annotate(
                f"✕\n{cell.diverged} of {cell.trials}",
                (place, 0.02),
                xycoords=axes.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=7.5,
                color=ALARM,
            )


def _in_words(panel: str, cells: Sequence[CellReport], chosen: CellReport | None) -> str:
    """Both ends, what was chosen between them, and every value that lost trials."""
    parts = []
    for place, cell in enumerate(cells):
        words = f"{format_number(cell.mean, cell.metric)} at {cell.axes['model']}"
        if cell is chosen:
            words += ", which validation accuracy chose"
        if cell.diverged:
            words += f" ({cell.diverged} of {cell.trials} diverged)"
        if cell is chosen or cell.diverged or place in (0, len(cells) - 1):
            parts.append(words)
    return f"{panel}: {'; '.join(parts)}."
