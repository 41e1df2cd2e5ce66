"""Accuracy at every value of a setting of the training, and where each model is best."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qbench.frozen import Scalar
from qbench.report.drawing import (
    ALARM,
    GRID,
    INK,
    MUTED,
    key,
    legend_below,
    new_figure,
    shades,
    style,
)
from qbench.report.evidence import Evidence
from qbench.report.families import FAMILIES, family_of
from qbench.report.numbers import CellReport
from qbench.report.panels import best_by_validation, lost_key
from qbench.report.wording import (
    format_count,
    format_number,
    format_value,
    listed,
    metric_name,
    metric_with_unit,
)

_ROW = 0.21  # inches
_VALUE, _SIZE, _LOST = 6, 36, 74  # points from the right edge to what stands beside a row
_BEYOND = 0.5  # of the span of what was chosen, that is shown to its left

Choice = Mapping[str, CellReport]
"""Each model's cell at the value that was chosen for it."""


def at_best(evidence: Evidence) -> Figure | None:
    """A row for each model: the main metric at the value of the grid's last axis that its
    validation accuracy chose, with its 95 % interval, and small dots at the other values. One
    column per dataset, or whatever else the grid has.

    Chosen is among the values without diverged trials. Beside each row stand the value, the
    parameters and in red how many of its trials diverged; arrows are dots far to the left.

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
        width=2.4 + 4.2 * len(columns),
        height=1.5 + _ROW * len(models),
        mark=evidence.report.mark,
    )
    values = list(dict.fromkeys(cell.axes[axis] for cell in evidence.cells))
    shade = dict(zip(values, shades(len(values)), strict=True))
    said = []
    for place, (name, cells) in enumerate(columns.items()):
        chosen = _chosen(cells)
        axes = figure.add_subplot(1, len(columns), place + 1)
        style(axes, name, xlabel=metric_with_unit(metric))
        _draw_rows(axes, models, names=place == 0)
        left = _left(chosen)
        for cell in cells:
            row = models.index(str(cell.axes["model"]))
            if cell.mean is not None and not cell.diverged and cell not in chosen.values():
                _draw_other(axes, row, cell.mean, left, shade[cell.axes[axis]])
        for model, cell in chosen.items():
            colour = FAMILIES[family_of(evidence.report.models[model])]
            _draw_chosen(axes, models.index(model), cell, colour)
        if left is not None:
            axes.set_xlim(left)
        _write(axes, -1.0, _VALUE, axis, MUTED)
        _write(axes, -1.0, _SIZE, "parameters", MUTED)
        for row, model in enumerate(models):
            own = [cell for cell in cells if cell.axes["model"] == model]
            _write_beside(axes, row, axis, own, chosen.get(model))
        said.append(_in_words(name, axis, chosen))
    handles = [key("o", "chosen by validation, with its 95 % interval", markersize=6)]
    handles += [
        key("o", f"{axis} {format_value(value)}", markersize=3.5, color=colour)
        for value, colour in shade.items()
    ]
    if any(cell.diverged for cell in evidence.cells):
        handles.append(lost_key())
    legend_below(figure, handles, columns=4 if len(columns) > 1 else 2)
    figure.set_label(
        f"{metric_with_unit(metric).capitalize()} on {listed(list(columns))} at each {axis}, and "
        f"at the {axis} that the validation accuracy chose for each model{evidence.choices}: mean "
        f"over the seeds, with its 95 % interval where it was chosen. {' '.join(said)}"
    )
    return figure


def _chosen(cells: Sequence[CellReport]) -> Choice:
    """The cell that is best by validation accuracy for each model."""
    of_model: dict[str, list[CellReport]] = {}
    for cell in cells:
        of_model.setdefault(str(cell.axes["model"]), []).append(cell)
    best = {model: best_by_validation(own) for model, own in of_model.items()}
    return {model: cell for model, cell in best.items() if cell is not None}


def _left(chosen: Choice) -> float | None:
    """Where the axis begins: what lies further off would hide all differences."""
    ends = [end for cell in chosen.values() for end in (cell.interval95 or (cell.mean,)) if end]
    if not ends:
        return None
    return min(ends) - max(_BEYOND * (max(ends) - min(ends)), 1e-9)


def _draw_rows(axes: Axes, models: Sequence[str], *, names: bool) -> None:
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.set_yticks(range(len(models)), models if names else [""] * len(models))
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.grid(color=GRID, linewidth=0.6)


def _draw_other(axes: Axes, row: int, mean: float, left: float | None, colour: str) -> None:
    """A value that was not chosen."""
    beyond = left is not None and mean < left
    axes.plot(
        mean if left is None else max(mean, left),
        row,
        marker="<" if beyond else "o",
        markersize=3.5,
        color=colour,
        clip_on=False,
        label="beyond" if beyond else "other",
    )


def _draw_chosen(axes: Axes, row: int, cell: CellReport, colour: str) -> None:
    mean = cell.mean or 0.0
    low, high = cell.interval95 or (mean, mean)
    axes.errorbar(
        [mean],
        [row],
        xerr=[[mean - low], [high - mean]],
        marker="o",
        markersize=6,
        elinewidth=1.4,
        capsize=2.5,
        color=colour,
        zorder=4,
        label=str(cell.axes["model"]),
    )


def _write_beside(
    axes: Axes, row: int, axis: str, cells: Sequence[CellReport], chosen: CellReport | None
) -> None:
    """The chosen value, the parameters and the diverged trials of a model."""
    value: Scalar | None = chosen.axes[axis] if chosen is not None else None
    _write(axes, row, _VALUE, "–" if value is None else format_value(value), MUTED)
    if cells:
        _write(axes, row, _SIZE, format_count(cells[0].parameters), MUTED)
    if lost := sum(cell.diverged for cell in cells):
        said = f"✕ {lost} of {sum(cell.trials for cell in cells)}"
        _write(axes, row, _LOST, said, ALARM)


def _write(axes: Axes, row: float, offset: int, text: str, colour: str) -> None:
    axes.annotate(
        text,
        (1.0, row),
        xytext=(offset, 0),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
        color=colour,
        annotation_clip=False,
        parse_math=False,
    )


def _in_words(name: str, axis: str, chosen: Choice) -> str:
    parts = [
        f"{model} {format_number(cell.mean, cell.metric)} with {cell.parameters} parameters "
        f"({axis} {format_value(cell.axes[axis])})"
        for model, cell in chosen.items()
    ]
    return f"{name}: {'; '.join(parts) or 'nothing was chosen'}."
