"""A report's figures: data in, matplotlib figures out; nothing global, no file unless asked.

Each figure's label (``figure.get_label()``) says in words what it shows: the text for who cannot
see it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qbench.architecture import ModelSpec
from qbench.metrics import Metric
from qbench.report.drawing import (
    ALARM,
    GRID,
    INK,
    MUTED,
    key,
    legend_below,
    new_figure,
    style,
)
from qbench.report.evidence import Evidence
from qbench.report.families import FAMILIES, family_of, short
from qbench.report.numbers import CellReport, Choices, Report
from qbench.report.panels import (
    MARKERS,
    draw_curve,
    lost_key,
    lost_trials,
    mean_curve,
    note_below,
)
from qbench.report.paper_figures import draw
from qbench.report.wording import listed, metric_name, metric_with_unit
from qbench.trial import Result, RunFolder

_STRIPE = "#f4f6f8"

_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
"""Solid, dashed, dotted, dashed and dotted."""

_MOST_BANDS = 12
"""Lines in a panel that still can have bands."""

_MOST_PANELS = 12
"""Panels of a figure of learning curves; of more, none is drawn."""


def figures_of(
    report: Report, results: Sequence[Result], folder: RunFolder | None = None
) -> dict[str, Figure]:
    """The figures that a report and its results allow, by name.

    First those of the paper, which the table of ``folder`` names, where it is given; accuracy and
    learning curves where the test accuracy or the training loss was recorded, the latter in no more
    than twelve panels; decision regions and the margin where parameters were recorded along the
    way.
    """
    evidence = Evidence(report, results, folder)
    named = folder.table.figures if folder is not None else ()
    drawn = {name: draw(name, evidence) for name in named}
    figures = {name: figure for name, figure in drawn.items() if figure is not None}
    snapped = [result for result in results if result.snapshots]
    if snapped:
        # imports torch, which the other figures do without
        from qbench.report.regions import decision_regions, margin_curve

        first = next((result for result in snapped if result in evidence.results), snapped[0])
        figures["decision_regions"] = decision_regions([first], mark=report.mark)
        figures["margin_curve"] = margin_curve(snapped, mark=report.mark)
    if any(cell.metric == "test_accuracy" for cell in report.cells):
        figures["accuracy_by_model"] = accuracy_by_model(report)
    curves: tuple[Metric, ...] = ("train_loss", "test_accuracy")
    if len(report.panels) > _MOST_PANELS:
        curves = ()
    for metric in curves:
        if any(metric in result.history for result in evidence.results):
            figures[f"{metric}_curves"] = learning_curves(report, results, metric)
    return figures


def accuracy_by_model(report: Report) -> Figure:
    """The main metric of every cell with its 95 % interval, of which no more is drawn than lies
    within 0 and 100 %: a panel for each combination of the other axes of the grid, a row per model.

    Several combinations of the unstated choices stand side by side in a row, told apart by marker.
    The control is a line; with several combinations it is a tick beside each point, at the
    control's mean under the same choices. Cells with diverged trials carry a red cross and their
    number.
    """
    panels, models = report.panels, list(report.models)
    combinations = report.combinations
    control = report.control if report.control in models else None
    metric = report.cells[0].metric
    name = metric_name(metric).capitalize()
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    row_height = max(0.27, 0.12 * len(combinations))
    figure = new_figure(
        f"{name} by model",
        width=5.0 * columns + (1.0 if columns == 1 else 0.0),
        height=rows * (row_height * len(models) + 0.75) + 1.2,
        mark=report.mark,
    )
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        cells = {
            (str(cell.axes["model"]), report.choices_of(cell)): cell
            for cell in report.cells
            if cell.panel == panel
        }
        style(axes, panel, xlabel=metric_with_unit(metric))
        _model_rows(axes, models)
        for place, choices in enumerate(combinations):
            offset = (place - (len(combinations) - 1) / 2) * 0.8 / len(combinations)
            for row, model in enumerate(models):
                if (cell := cells.get((model, choices))) is not None:
                    _draw_cell(axes, cell, row + offset, report.models[model], place)
        for row, model in enumerate(models):
            if not any(present == model for present, _ in cells):
                axes.annotate(
                    "not run",
                    (0.015, row),
                    xycoords=("axes fraction", "data"),
                    va="center",
                    fontsize=7,
                    color=MUTED,
                )
        _draw_control(axes, cells, control, models, combinations)
        _limit(axes, list(cells.values()))
    _accuracy_legend(figure, report, models, combinations, control)
    shown = f", for {report.label(combinations)}" if len(combinations) > 1 else ""
    figure.set_label(
        f"{name} by model on {listed(panels)}{shown}: mean "
        "over seeds with its 95 % interval"
        + (f"; the line is {control}, the control" if control and len(combinations) == 1 else "")
        + (f"; the ticks are {control} under the same choices" if control and shown else "")
        + (
            "; a red cross marks diverged trials."
            if any(cell.diverged for cell in report.cells)
            else "."
        )
    )
    return figure


def learning_curves(report: Report, results: Sequence[Result], metric: Metric) -> Figure:
    """A metric along training, one panel for each combination of the other axes of the grid, one
    line per model, for the first choices.

    Lines are means over the finished seeds, bands ± one standard deviation (n - 1), left out where
    a panel has more than twelve lines. Where all seeds of a model diverged, the line is their mean
    as far as all of them were recorded and ends in a red cross; the panel names every model with
    diverged seeds.
    """
    evidence = Evidence(report, results)
    shown = evidence.results
    panels = list(dict.fromkeys(report.panel_of(result) for result in shown))
    models = [m for m in report.models if any(result.axes["model"] == m for result in shown)]
    bands = len(models) <= _MOST_BANDS
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    name = metric_name(metric).capitalize()
    figure = new_figure(
        f"{name} along training",
        width=5.0 * columns + (1.5 if columns == 1 else 0.0),
        height=2.9 * rows + 1.3,
        mark=report.mark,
    )
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        style(axes, panel, xlabel="steps", ylabel=metric_with_unit(metric))
        axes.grid(color=GRID, linewidth=0.6)
        lows: list[float] = []
        highs: list[float] = []
        of_models = {model: evidence.of(panel, model) for model in models}
        for model, of_model in of_models.items():
            curve = mean_curve(of_model, metric)
            if curve is not None:
                draw_curve(axes, curve, bands=bands, label=model, **_line(report, model))
                lows.append(float(curve.mean.min()))
                highs.append(float(curve.mean.max()))
        _curve_scale(axes, metric, lows, highs)
        note_below(axes, lost_trials(of_models))
    handles = [Line2D([], [], label=short(model), **_line(report, model)) for model in models]
    legend_below(figure, handles, columns=min(6, len(models)))
    figure.set_label(
        f"{name} along training on {listed(panels)}"
        + f"{evidence.choices}, one line per model: mean over seeds"
        + (", bands ± one standard deviation." if bands else ".")
    )
    return figure


def _marker(place: int) -> dict[str, Any]:
    """Marker of a combination: eight shapes, filled first, then hollow."""
    hollow = {"markerfacecolor": "white"} if place // len(MARKERS) % 2 else {}
    return {"marker": MARKERS[place % len(MARKERS)], **hollow}


def _line(report: Report, name: str) -> dict[str, Any]:
    """Line of a model: the hue of its family, darker with the rank; dense forms dashed.

    The networks of a family have three shades in turn, and other dashes for each three.
    """
    model = report.models[name]
    base = np.array(mpl.colors.to_rgb(FAMILIES[family_of(model)]))
    place, dashes = model.rank, _DASHES[1 if model.kind == "dense" else 0]
    if model.kind in ("mlp", "zoo"):
        kin = [key for key, m in report.models.items() if family_of(m) == family_of(model)]
        if len(kin) > 1:
            turn, shade = divmod(kin.index(name), 3)
            place, dashes = shade + 1, _DASHES[turn % len(_DASHES)]
    return {
        "color": tuple(float(part) for part in _shade(base, place)),
        "linewidth": 1.5 if place else 2.0,
        "linestyle": dashes,
    }


def _shade(base: np.ndarray[Any, Any], place: int | None) -> np.ndarray[Any, Any]:
    """Lighter for the first, darker with each that follows; as it is without a place."""
    if place is None:
        return base
    light = max(0.0, 0.45 - 0.3 * (place - 1))
    dark = 1.0 - 0.75 * (1 - 0.8 ** max(0, place - 2))
    return (base + (1 - base) * light) * (dark if place > 2 else 1.0)


def _model_rows(axes: Axes, models: Sequence[str]) -> None:
    for row in range(0, len(models), 2):
        axes.axhspan(row - 0.5, row + 0.5, color=_STRIPE, linewidth=0, zorder=0)
    axes.set_yticks(range(len(models)), [short(model) for model in models], color=INK)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.grid(axis="x", color=GRID, linewidth=0.6)


def _interval(mean: float, interval95: tuple[float, float] | None) -> tuple[float, float]:
    """Where the interval of an accuracy is drawn.

    Of a few seeds that differ much it may end below 0 or above 100 %, where no accuracy is, and
    where it would cross what is written beside it.
    """
    low, high = interval95 or (mean, mean)
    return max(low, 0.0), min(high, 100.0)


def _draw_cell(axes: Axes, cell: CellReport, at: float, model: ModelSpec, place: int) -> None:
    colour = FAMILIES[family_of(model)]
    if cell.claim is not None:
        axes.plot(cell.claim.value, at, marker="D", color=INK, markerfacecolor="none", zorder=4)
    if cell.mean is not None:
        low, high = _interval(cell.mean, cell.interval95)
        axes.errorbar(
            cell.mean,
            at,
            xerr=[[cell.mean - low], [high - cell.mean]],
            color=colour,
            markersize=4.5,
            elinewidth=1.3,
            capsize=0,
            zorder=3,
            **_marker(place),
        )
    if cell.diverged:
        axes.annotate(
            f"✕ {cell.diverged} of {cell.trials} diverged",
            (0.012, at),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=6.5,
            color=ALARM,
            zorder=5,
        )


def _draw_control(
    axes: Axes,
    cells: Mapping[tuple[str, Choices], CellReport],
    control: str | None,
    models: Sequence[str],
    combinations: Sequence[Choices],
) -> None:
    if control is None:
        return
    slot = 0.8 / len(combinations)
    for place, choices in enumerate(combinations):
        cell = cells.get((control, choices))
        if cell is None or cell.mean is None:
            continue
        if len(combinations) == 1:
            axes.axvline(cell.mean, color=FAMILIES["linear"], linewidth=1, linestyle=(0, (4, 3)))
            continue
        others = [row for row, model in enumerate(models) if model != control]
        centres = np.array(others) + (place - (len(combinations) - 1) / 2) * slot
        axes.vlines(
            np.full(len(others), cell.mean),
            centres - 0.45 * slot,
            centres + 0.45 * slot,
            color=FAMILIES["linear"],
            linewidth=1.2,
            zorder=2,
        )


def _limit(axes: Axes, cells: Sequence[CellReport]) -> None:
    """Limits within 0 and 100 %, with room at the left for what is said about diverged trials."""
    lows = [_interval(c.mean, c.interval95)[0] for c in cells if c.mean is not None]
    low = math.floor(min(lows, default=0.0) / 10) * 10.0
    if any(cell.diverged for cell in cells):
        low -= 0.42 * (100.0 - low)
    axes.set_xlim(low - 2.0, 102.0)
    axes.set_xticks([tick for tick in range(0, 101, 20 if low < 50 else 10) if tick >= low])


def _accuracy_legend(
    figure: Figure,
    report: Report,
    models: Sequence[str],
    combinations: Sequence[Choices],
    control: str | None,
) -> None:
    families = list(dict.fromkeys(family_of(report.models[model]) for model in models))
    handles = [
        Line2D([], [], color=FAMILIES[family], marker="o", markersize=4.5, label=family)
        for family in families
    ]
    if control is not None:
        line: dict[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 1.0}
        tick: dict[str, Any] = {"linestyle": "", "marker": "|", "markersize": 9}
        handles.append(
            Line2D(
                [],
                [],
                color=FAMILIES["linear"],
                label=f"control: {short(control)}",
                **(line if len(combinations) == 1 else tick),
            )
        )
    if any(cell.claim is not None for cell in report.cells):
        handles.append(key("D", "the paper", markerfacecolor="none"))
    if any(cell.diverged for cell in report.cells):
        handles.append(lost_key())
    if len(combinations) > 1:
        handles += [
            Line2D(
                [],
                [],
                color=MUTED,
                linestyle="",
                markersize=5,
                label=report.label([choices]),
                **_marker(place),
            )
            for place, choices in enumerate(combinations)
        ]
    legend_below(figure, handles, columns=min(len(handles), 5))


def _curve_scale(axes: Axes, metric: Metric, lows: Sequence[float], highs: Sequence[float]) -> None:
    axes.margins(x=0.01)
    if metric.endswith("accuracy"):
        axes.set_ylim(max(0.0, math.floor(min(lows, default=0.0) / 10) * 10.0 - 5), 102)
    elif metric.endswith("loss") and lows and min(lows) > 0:
        if max(highs) / min(lows) > 20:
            axes.set_yscale("log", nonpositive="clip")
            axes.set_ylim(min(lows) / 2, max(highs) * 1.5)
        else:
            axes.set_ylim(0, max(highs) * 1.1)
    axes.tick_params(which="minor", length=0)
