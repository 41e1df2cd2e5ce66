"""Figures of a model in the plane: its decision regions on XOR, and its margin along training."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import nn

from qbench.architecture import ModelSpec
from qbench.build import build_model
from qbench.report.drawing import (
    GRID,
    INK,
    MUTED,
    cross,
    key,
    legend_below,
    new_figure,
    plain,
    shades,
    style,
)
from qbench.report.wording import format_value
from qbench.trial import Result
from qcore import analysis

_REGIONS = ("#bcd9ee", "#f6c9bd")
_CLASSES = ("#0b5394", "#b3261e")
_REACH = 2.0
"""Decision regions are drawn over [-2, 2]²."""


def decision_regions(results: Sequence[Result], *, mark: str = "") -> Figure:
    """The model's decision over [-2, 2]² at each recorded step, with the four points of XOR.

    One row of panels per result. A point x belongs to the class with the larger output f_k(x) of
    the model with its recorded parameters; the first class is blue, the second red. ``mark`` is a
    warning to print on the figure; a reduced run carries its own.

    Raises ``ValueError`` where no result on XOR has recorded parameters.
    """
    drawn = [result for result in results if _in_the_plane(result)]
    if not drawn:
        raise ValueError(
            "decision_regions: no result on xor has recorded parameters; "
            "the table's recipe names the steps to record them at in `snapshots`"
        )
    columns = max(len(result.snapshots) for result in drawn)
    figure = new_figure(
        "Decision regions on XOR",
        width=max(4.0, 2.25 * columns),
        height=2.4 * len(drawn) + 0.75,
        mark=mark or _reduced(drawn),
    )
    titles = []
    for row, result in enumerate(drawn):
        for column, step in enumerate(sorted(result.snapshots)):
            axes = figure.add_subplot(len(drawn), columns, row * columns + column + 1)
            square = (-_REACH, _REACH, -_REACH, _REACH)
            regions = analysis.decision_regions(_model_at(result, step), square)
            lead = (regions.outputs[..., 1] - regions.outputs[..., 0]).numpy()  # (161, 161)
            far = float(np.abs(lead).max()) + 1.0
            ticks = (regions.x.numpy(), regions.y.numpy())
            axes.contourf(*ticks, lead, levels=[-far, 0.0, far], colors=_REGIONS)
            axes.contour(*ticks, lead, levels=[0.0], colors=[INK], linewidths=0.8)
            _draw_points(axes)
            margin = result.history["margin"][result.step.index(step)]
            titles.append(f"step {step}, Δμ = {margin:.2f}")
            style(axes, titles[-1])
            axes.set(xlim=(-_REACH, _REACH), ylim=(-_REACH, _REACH), aspect="equal")
            axes.set_xticks([-2, 0, 2])
            axes.set_yticks([-2, 0, 2] if column == 0 else [])
            if column == 0 and len(drawn) > 1:
                axes.set_ylabel(f"lr = {format_value(_rate(result))}", fontsize=8, color=MUTED)
    handles = [
        Line2D([], [], marker=marker, color=colour, linestyle="", markersize=6, label=label)
        for marker, colour, label in (
            ("o", _CLASSES[0], "points of class 0 (equal signs); blue: decided as class 0"),
            ("s", _CLASSES[1], "points of class 1 (different signs); red: decided as class 1"),
        )
    ]
    legend_below(figure, handles, columns=2)
    figure.set_label(
        "Decision regions of the model on XOR over the square from -2 to 2: "
        + "; ".join(titles)
        + ". Blue: decided as class 0, points of equal signs; red: class 1, points of different "
        "signs."
    )
    return figure


def margin_curve(results: Sequence[Result], *, mark: str = "") -> Figure:
    """The normalised margin Δμ along the steps, one line per step size; snapshots are dots.

    ``mark`` is a warning to print on the figure; a reduced run carries its own.
    """
    drawn = sorted((r for r in results if "margin" in r.history), key=_rate)
    figure = new_figure(
        "Margin along training", width=7.0, height=4.1, mark=mark or _reduced(drawn)
    )
    axes = figure.add_subplot()
    style(axes, "", xlabel="steps of gradient descent", ylabel="normalised margin Δμ")
    axes.grid(color=GRID, linewidth=0.6)
    axes.axhline(1.0, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    rates = list(dict.fromkeys(_rate(result) for result in drawn))
    colours = shades(len(rates))
    snapshots = False
    for result in drawn:
        colour = colours[rates.index(_rate(result))]
        margin = result.history["margin"]
        axes.plot(
            result.step,
            margin,
            color=colour,
            linewidth=1.8,
            label=f"lr = {format_value(_rate(result))}",
        )
        at = [step for step in sorted(result.snapshots) if step in result.step]
        snapshots = snapshots or bool(at)
        axes.plot(
            at,
            [margin[result.step.index(step)] for step in at],
            linestyle="",
            marker="o",
            markersize=5,
            color=colour,
            markeredgecolor="white",
            clip_on=False,
            zorder=4,
        )
        if result.status == "diverged":
            cross(axes, result.step[-1], margin[-1])
    low = min((min(result.history["margin"]) for result in drawn), default=0.0)
    axes.set_ylim(min(0.0, low * 1.05), 1.05)
    axes.margins(x=0.01)
    handles: list[Artist] = [
        Line2D([], [], color=shade, linewidth=1.8, label=f"step size {format_value(rate)}")
        for rate, shade in zip(rates, colours, strict=True)
    ]
    if snapshots:
        handles.append(key("o", "recorded parameters"))
    handles.append(Line2D([], [], color=MUTED, linestyle=(0, (4, 3)), label="Δμ = 1"))
    axes_legend = axes.legend(handles=handles, loc="lower right", frameon=False, fontsize=8)
    plain(axes_legend)
    ends = "; ".join(
        f"{r.history['margin'][-1]:.4f} for step size {format_value(_rate(r))}" for r in drawn
    )
    figure.set_label(
        f"Normalised margin Δμ along the steps of gradient descent; it ends at {ends}."
        + (" Dots mark the steps whose parameters were recorded." if snapshots else "")
    )
    return figure


def _model_at(result: Result, step: int) -> nn.Module:
    """The model as it was recorded at a step, in double precision."""
    spec = ModelSpec.model_validate(result.resolved["model"])
    model = build_model(spec, (2,), 2, init_scale=1.0, seed=0).double()
    with torch.no_grad():
        for name, values in result.snapshots[step].items():
            model.get_parameter(name).copy_(torch.tensor(values, dtype=torch.float64))
    return model


def _in_the_plane(result: Result) -> bool:
    return result.axes.get("dataset") == "xor" and bool(result.snapshots)


def _rate(result: Result) -> float:
    """The step size."""
    return result.recipe.lr


def _reduced(results: Iterable[Result]) -> str:
    return "REDUCED RUN" if any(result.reduced for result in results) else ""


def _draw_points(axes: Axes) -> None:
    for sign, marker in ((1.0, "o"), (-1.0, "s")):
        axes.plot(
            [1.0, -1.0],
            [sign, -sign],
            linestyle="",
            marker=marker,
            markersize=7,
            color=_CLASSES[0 if sign > 0 else 1],
            markeredgecolor="white",
            markeredgewidth=1.0,
        )
