"""Accuracy along a setting of the training, and against parameters where each model is best."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from qbench.report.drawing import ALARM, GRID, key, legend_below, new_figure, style
from qbench.report.evidence import Evidence
from qbench.report.families import FAMILIES, family_of, short
from qbench.report.numbers import CellReport
from qbench.report.panels import MARKERS, best_by_validation, draw_ring, lost_key
from qbench.report.wording import (
    format_number,
    format_value,
    listed,
    metric_name,
    metric_with_unit,
)

_POINTS_BELOW = 10.0
"""Points below the best that are shown along the setting: what lies lower hides all differences."""

Choice = Mapping[str, CellReport]
"""Each model's cell at the value that was chosen for it."""


def at_best(evidence: Evidence) -> Figure | None:
    """Above, the main metric along the values of the grid's last axis, a line per model; below,
    that of each model at the value that its validation accuracy chose, against its parameters, with
    95 % intervals. One column per dataset, or whatever else the grid has.

    A ring is around what was chosen, among the values without diverged trials. Red crosses are
    values at which trials diverged.

    Source: no figure of DIQNN (arXiv 2307.13609), which trains every model at one learning rate.
    """
    axes_of_grid = evidence.report.axes
    if not axes_of_grid or not evidence.cells:
        return None
    axis, models = axes_of_grid[-1], evidence.models
    columns: dict[str, list[CellReport]] = {}
    for cell in evidence.cells:
        others = [f"{name} {format_value(cell.axes[name])}" for name in axes_of_grid[:-1]]
        columns.setdefault(", ".join([str(cell.axes["dataset"]), *others]), []).append(cell)
    metric = evidence.cells[0].metric
    figure = new_figure(
        f"{metric_name(metric).capitalize()}, each model at its best {axis}",
        width=max(6.5, 5.0 * len(columns)),
        height=6.6,
        mark=evidence.report.mark,
    )
    looks = _looks(evidence, models)
    said = []
    for place, (name, cells) in enumerate(columns.items()):
        chosen = _chosen(cells)
        upper = figure.add_subplot(2, len(columns), place + 1)
        style(upper, name, xlabel=axis, ylabel=metric_with_unit(metric) if place == 0 else "")
        _draw_along(upper, cells, axis, chosen, looks)
        lower = figure.add_subplot(2, len(columns), len(columns) + place + 1)
        style(lower, "", xlabel="parameters", ylabel=metric_with_unit(metric) if place == 0 else "")
        _draw_sizes(lower, chosen, looks)
        said.append(_in_words(name, axis, chosen))
    handles = [
        Line2D([], [], label=short(model), markersize=5, **looks[model])  # type: ignore[arg-type]
        for model in models
    ]
    handles.append(key("o", "chosen by validation", markersize=9, markerfacecolor="none"))
    if any(cell.diverged for cell in evidence.cells):
        handles.append(lost_key())
    legend_below(figure, handles, columns=3 if len(columns) == 1 else 5)
    figure.set_label(
        f"{metric_with_unit(metric).capitalize()} on {listed(list(columns))} along {axis}, and "
        f"against parameters at the {axis} that the validation accuracy chose for each "
        f"model{evidence.choices}: mean over the seeds, with its 95 % interval where it was "
        f"chosen. {' '.join(said)}"
    )
    return figure


def _looks(evidence: Evidence, models: Sequence[str]) -> dict[str, dict[str, object]]:
    """A family's models share its colour; markers tell them apart."""
    looks: dict[str, dict[str, object]] = {}
    members: dict[str, int] = {}
    for model in models:
        family = family_of(evidence.report.models[model])
        place = members[family] = members.get(family, -1) + 1
        plain = family.startswith("linear")
        looks[model] = {
            "color": FAMILIES[family],
            "marker": MARKERS[place % len(MARKERS)],
            "linestyle": (0, (4, 2)) if plain else "-",
            "markerfacecolor": "white" if plain else FAMILIES[family],
        }
    return looks


def _chosen(cells: Sequence[CellReport]) -> Choice:
    """The cell that is best by validation accuracy for each model."""
    of_model: dict[str, list[CellReport]] = {}
    for cell in cells:
        of_model.setdefault(str(cell.axes["model"]), []).append(cell)
    best = {model: best_by_validation(own) for model, own in of_model.items()}
    return {model: cell for model, cell in best.items() if cell is not None}


def _draw_along(
    axes: Axes,
    cells: Sequence[CellReport],
    axis: str,
    chosen: Choice,
    looks: Mapping[str, Mapping[str, object]],
) -> None:
    axes.grid(color=GRID, linewidth=0.6)
    values = list(dict.fromkeys(cell.axes[axis] for cell in cells))
    axes.set_xticks(range(len(values)), [format_value(value) for value in values])
    axes.set_xlim(-0.4, len(values) - 0.6)
    for model, look in looks.items():
        points = [
            (values.index(cell.axes[axis]), cell.mean)
            for cell in cells
            if cell.axes["model"] == model and cell.mean is not None and not cell.diverged
        ]
        axes.plot(*zip(*points, strict=True), linewidth=1.2, markersize=5, label=model, **look)  # type: ignore[arg-type]
    for cell in chosen.values():
        draw_ring(axes, values.index(cell.axes[axis]), cell)
    best = max((cell.mean or 0.0 for cell in chosen.values()), default=None)
    if best is not None:
        axes.set_ylim(max(axes.get_ylim()[0], best - _POINTS_BELOW), best + 0.6)
    for place, value in enumerate(values):
        lost = [cell for cell in cells if cell.axes[axis] == value and cell.diverged]
        if lost:
            axes.annotate(
                f"✕ {sum(cell.diverged for cell in lost)} of "
                f"{sum(cell.trials for cell in cells if cell.axes[axis] == value)}",
                (place, 0.02),
                xycoords=axes.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=7.5,
                color=ALARM,
                zorder=6,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
            )


def _draw_sizes(axes: Axes, chosen: Choice, looks: Mapping[str, Mapping[str, object]]) -> None:
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    families: dict[object, list[CellReport]] = {}
    for model, cell in chosen.items():
        families.setdefault(looks[model]["color"], []).append(cell)
    for colour, cells in families.items():
        cells = sorted(cells, key=lambda cell: cell.parameters)
        axes.plot(
            [cell.parameters for cell in cells],
            [cell.mean or 0.0 for cell in cells],
            color=str(colour),
            linewidth=0.9,
            alpha=0.5,
            zorder=1,
        )
    for model, cell in chosen.items():
        mean = cell.mean if cell.mean is not None else math.nan
        low, high = cell.interval95 or (mean, mean)
        axes.errorbar(
            [cell.parameters],
            [mean],
            yerr=[[mean - low], [high - mean]],
            markersize=6,
            elinewidth=1.2,
            capsize=3,
            label=model,
            **looks[model],  # type: ignore[arg-type]
        )


def _in_words(name: str, axis: str, chosen: Choice) -> str:
    parts = [
        f"{model} {format_number(cell.mean, cell.metric)} with {cell.parameters} parameters "
        f"({axis} {format_value(cell.axes[axis])})"
        for model, cell in chosen.items()
    ]
    return f"{name}: {'; '.join(parts) or 'nothing was chosen'}."
