"""How much sooner an accuracy is reached than by the control."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from qbench.report.drawing import COLOURS, GRID, legend_below, new_figure, style
from qbench.report.evidence import Evidence
from qbench.report.families import FAMILIES, short
from qbench.report.panels import MARKERS, lost_trials, note_below, say
from qbench.report.wording import listed
from qbench.trial import Result

_SHARES = (0.2, 0.4, 0.6, 0.8, 0.95)
"""Of the way from the first accuracy that the control recorded to the one that it reaches."""


_FEW = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_MANY = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 3, 4, 6, 8, 10)
"""Ticks of ratios over a wide range and over a narrow one."""


@dataclass(frozen=True)
class Ratio:
    """Steps to an accuracy relative to the control's, over seeds: geometric mean, and the factor
    of one geometric standard deviation (n - 1), None for one seed.

    ``reached`` of ``tried`` seeds reached it; the others are in neither number.
    """

    mean: float | None
    factor: float | None
    reached: int
    tried: int


def steps_to_accuracy(evidence: Evidence) -> Figure | None:
    """Steps until an accuracy is first recorded, relative to the control's steps with the same
    seed, one line per model and one panel per dataset.

    Points are geometric means over the seeds that reached the accuracy, hollow where not all did,
    with how many; bands are one geometric standard deviation. The accuracies lie between the first
    that the control recorded and the highest that each of its seeds reached. A diverged trial
    counts as one that did not reach it.

    Source: DIQNN (arXiv 2307.13609), figure 6 and section 4.2.3.
    """
    control = evidence.report.control
    if control is None or not any(r.history.get("test_accuracy") for r in evidence.results):
        return None
    panels = evidence.panels
    models = [model for model in evidence.models if model != control]
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(
        f"Steps to an accuracy, relative to {control}",
        width=4.2 * columns if columns > 1 else 6.5,
        height=3.4 * rows + 0.9,
        mark=evidence.report.mark,
    )
    looks = {
        model: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, model in enumerate(models)
    }
    of_panels = {
        panel: {model: evidence.of(panel, model) for model in [control, *models]}
        for panel in panels
    }
    levels = {panel: levels_of(found[control]) for panel, found in of_panels.items()}
    ratios = {
        panel: {
            model: [ratio_of(found[model], found[control], level) for level in levels[panel]]
            for model in models
            if found[model]
        }
        for panel, found in of_panels.items()
    }
    limits, missed = _limits([r for found in ratios.values() for r in found.values()])
    said = []
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        style(
            axes,
            panel,
            xlabel="test accuracy to reach (%)",
            ylabel=f"steps, relative to {control}" if index % columns == 0 else "",
        )
        note_below(axes, lost_trials(of_panels[panel]), width=48)
        if not levels[panel]:
            missing = f"{control}: {_missing(of_panels[panel][control])}"
            say(axes, missing)
            said.append(f"{panel}, {missing}")
            continue
        _draw_ratios(axes, ratios[panel], looks, limits)
        axes.set_xticks(range(len(levels[panel])), [f"{level:g}" for level in levels[panel]])
        axes.set_xlim(-0.35, len(levels[panel]) - 0.65)
        said.append(f"{panel}: {_in_words(ratios[panel], levels[panel])}")
    handles = [
        Line2D(
            [], [], label=short(model), markersize=4.5, color=look["color"], marker=look["marker"]
        )
        for model, look in looks.items()
    ]
    handles.append(
        Line2D([], [], color=FAMILIES["linear"], linestyle=(0, (4, 3)), label=f"control: {control}")
    )
    if missed:
        handles.append(
            Line2D(
                [],
                [],
                color=FAMILIES["linear"],
                marker="o",
                markersize=4.5,
                markerfacecolor="white",
                linestyle="",
                label="k of n seeds reached it",
            )
        )
    legend_below(figure, handles, columns=min(len(handles), 6 if columns > 1 else 5))
    figure.set_label(
        f"Steps until a test accuracy is reached, relative to {control} with the same seed, on "
        f"{listed(panels)}{evidence.choices}: geometric mean over the seeds; below 1 is sooner. "
        f"{'. '.join(said)}."
    )
    return figure


def levels_of(control: Sequence[Result]) -> list[float]:
    """Accuracies between the first that the control recorded and what each of its seeds reaches.

    Rounded down to whole percents, or to tenths where they are close; empty where it never rises.
    """
    curves = [
        result.history["test_accuracy"]
        for result in control
        if result.status == "finished" and result.history.get("test_accuracy")
    ]
    if not curves:
        return []
    start, reach = max(curve[0] for curve in curves), min(max(curve) for curve in curves)
    grain = 1 if reach - start >= 10 else 10
    levels = (math.floor(grain * (start + share * (reach - start))) / grain for share in _SHARES)
    return sorted({level for level in levels if level > start})


def ratio_of(results: Sequence[Result], control: Sequence[Result], level: float) -> Ratio:
    """How many steps the results took to a level, relative to the control's, paired by seed."""
    base = {result.seed: _steps_to(result, level) for result in control}
    pairs = [(_steps_to(r, level), base[r.seed]) for r in results if base.get(r.seed) is not None]
    logs = [math.log(steps / of_control) for steps, of_control in pairs if steps and of_control]
    if not logs:
        return Ratio(None, None, 0, len(pairs))
    factor = math.exp(float(np.std(logs, ddof=1))) if len(logs) > 1 else None
    return Ratio(math.exp(float(np.mean(logs))), factor, len(logs), len(pairs))


def _steps_to(result: Result, level: float) -> int | None:
    """The first recorded step at which the level is reached; None for a trial that diverged."""
    if result.status == "diverged":
        return None
    accuracies = result.history.get("test_accuracy", ())
    return next((s for s, a in zip(result.step, accuracies, strict=True) if a >= level), None)


def _draw_ratios(
    axes: Axes,
    ratios: Mapping[str, Sequence[Ratio]],
    looks: Mapping[str, Mapping[str, str]],
    limits: tuple[float, float],
) -> None:
    axes.set_yscale("log")
    axes.set_ylim(*limits)
    low, high = limits
    axes.set_yticks([tick for tick in (_FEW if high > 12 * low else _MANY) if low < tick < high])
    axes.grid(color=GRID, linewidth=0.6)
    axes.axhline(1.0, color=FAMILIES["linear"], linewidth=1.0, linestyle=(0, (4, 3)), zorder=2)
    for line, (model, found) in enumerate(ratios.items()):
        colour, marker = looks[model]["color"], looks[model]["marker"]
        known = [(place, ratio) for place, ratio in enumerate(found) if ratio.mean is not None]
        places = [place for place, _ in known]
        means = np.array([ratio.mean for _, ratio in known], dtype=float)
        axes.plot(places, means, color=colour, linewidth=1.4, zorder=3, label=model)
        factors = np.array([ratio.factor or 1.0 for _, ratio in known])
        axes.fill_between(
            places, means / factors, means * factors, color=colour, alpha=0.12, linewidth=0
        )
        for place, ratio in enumerate(found):
            whole = ratio.reached == ratio.tried
            if ratio.mean is not None:
                axes.plot(
                    place,
                    ratio.mean,
                    marker=marker,
                    markersize=5,
                    color=colour,
                    markerfacecolor=colour if whole else "white",
                    zorder=4,
                )
            if not whole:
                axes.text(
                    place,
                    0.985 - 0.055 * line,
                    f"{ratio.reached} of {ratio.tried}",
                    transform=axes.get_xaxis_transform(),
                    ha="center",
                    va="top",
                    fontsize=7.5,
                    color=colour,
                )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_yticks([], minor=True)


def _missing(control: Sequence[Result]) -> str:
    """Why there is nothing to compare with."""
    if not control:
        return "not run"
    if all(result.status == "diverged" for result in control):
        return "every trial diverged"
    return "no seed gets better than at its start"


def _limits(lines: Sequence[Sequence[Ratio]]) -> tuple[tuple[float, float], bool]:
    """The same range of ratios for every panel, with room above where counts are written; and
    whether any are."""
    known = [ratio for line in lines for ratio in line if ratio.mean is not None]
    ends = [(ratio.mean or 1.0, ratio.factor or 1.0) for ratio in known]
    low = min([mean / factor for mean, factor in ends] + [0.8])
    high = max([mean * factor for mean, factor in ends] + [1.25])
    missed = any(ratio.reached < ratio.tried for line in lines for ratio in line)
    reach = math.log(high / low)
    return (
        low * math.exp(-0.06 * reach),
        high * math.exp((0.4 if missed else 0.06) * reach),
    ), missed


def _in_words(ratios: Mapping[str, Sequence[Ratio]], levels: Sequence[float]) -> str:
    """The ratios to the level in the middle and to the last."""
    if not ratios:
        return "no other model was run"
    parts = []
    for place in sorted({len(levels) // 2, len(levels) - 1}):
        numbers = (
            f"{model} {ratio.mean:.2f}" if ratio.mean is not None else f"{model} never"
            for model, ratio in ((model, found[place]) for model, found in ratios.items())
        )
        parts.append(f"to {levels[place]:g} % {', '.join(numbers)}")
    return "; ".join(parts)
