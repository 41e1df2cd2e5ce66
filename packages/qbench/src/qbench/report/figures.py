"""A report's figures: data in, matplotlib figures out; nothing global, no file unless asked.

Each figure's label (``figure.get_label()``) says in words what it shows: the text for who cannot
see it. Colours are those of Okabe and Ito, told apart by colour-blind readers too.
"""

import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from qbench.report.numbers import CellReport, Report
from qbench.table import Scalar
from qbench.trial import Result, write_whole

_INK, _MUTED, _GRID, _STRIPE = "#1f2328", "#59636e", "#d8dee4", "#f4f6f8"
_ALARM = "#b3261e"
_FAMILIES = {
    "linear": "#3d444d",
    "dense form": "#0072b2",
    "low-rank form": "#d55e00",
    "affine form": "#009e73",
}
_REGIONS = ("#bcd9ee", "#f6c9bd")
_CLASSES = ("#0b5394", "#b3261e")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")
_METRICS = {
    "train_loss": "training loss (nats)",
    "test_loss": "test loss (nats)",
    "train_accuracy": "training accuracy (%)",
    "test_accuracy": "test accuracy (%)",
    "margin": "margin Δμ",
}
_REACH = 2.0
"""Decision regions are drawn over [-2, 2]²."""

Choices = tuple[tuple[str, Scalar], ...]
Curve = Literal["train_loss", "test_loss", "train_accuracy", "test_accuracy", "margin"]


def figures_of(report: Report, results: Sequence[Result]) -> dict[str, Figure]:
    """The figures that a report and its results allow, by name.

    Accuracy and learning curves where the test accuracy or the training loss was recorded;
    decision regions and the margin where parameters were recorded along the way.
    """
    mark = mark_of(report)
    figures: dict[str, Figure] = {}
    snapped = [result for result in results if _has_factors(result)]
    if snapped:
        default = [result for result in snapped if _matches(result.axes, default_choices(report))]
        figures["decision_regions"] = decision_regions((default or snapped)[:1], mark=mark)
        figures["margin_curve"] = margin_curve(snapped, mark=mark)
    if any(cell.metric == "test_accuracy" for cell in report.cells):
        figures["accuracy_by_model"] = accuracy_by_model(report)
    curves: tuple[Curve, ...] = ("train_loss", "test_accuracy")
    for metric in curves:
        if any(metric in result.history for result in _default_results(report, results)):
            figures[f"{metric}_curves"] = learning_curves(report, results, metric)
    return figures


def accuracy_by_model(report: Report) -> Figure:
    """The main metric of every cell with its 95 % interval: a panel per dataset, a row per model.

    Several combinations of the unstated choices stand side by side in a row, told apart by marker.
    The control is a line; with several combinations it is a tick beside each point, at the
    control's mean under the same choices. Cells with diverged trials carry a red cross and their
    number.
    """
    datasets = list(dict.fromkeys(cell.axes["dataset"] for cell in report.cells))
    models = [str(m) for m in dict.fromkeys(cell.axes["model"] for cell in report.cells)]
    combinations = combinations_of(report)
    control = control_of(report)
    metric = _METRICS[report.cells[0].metric]
    columns = min(2, len(datasets))
    rows = math.ceil(len(datasets) / columns)
    row_height = max(0.27, 0.12 * len(combinations))
    figure = _figure(
        f"{metric.partition(' (')[0].capitalize()} by model",
        width=5.0 * columns + (1.0 if columns == 1 else 0.0),
        height=rows * (row_height * len(models) + 0.75) + 1.2,
        mark=mark_of(report),
    )
    for index, dataset in enumerate(datasets):
        axes = figure.add_subplot(rows, columns, index + 1)
        cells = {
            (str(cell.axes["model"]), choices_of(cell, report)): cell
            for cell in report.cells
            if cell.axes["dataset"] == dataset
        }
        _style(axes, str(dataset), xlabel=metric)
        _model_rows(axes, models)
        for place, choices in enumerate(combinations):
            offset = (place - (len(combinations) - 1) / 2) * 0.8 / len(combinations)
            for row, model in enumerate(models):
                if (cell := cells.get((model, choices))) is not None:
                    _draw_cell(axes, cell, row + offset, _marker(place))
        for row, model in enumerate(models):
            if not any(name == model for name, _ in cells):
                axes.annotate(
                    "not run",
                    (0.015, row),
                    xycoords=("axes fraction", "data"),
                    va="center",
                    fontsize=7,
                    color=_MUTED,
                )
        _draw_control(axes, cells, control, models, combinations)
        _limit(axes, list(cells.values()))
    _accuracy_legend(figure, report, models, combinations, control)
    shown = f", for {label_of(report, combinations)}" if len(combinations) > 1 else ""
    figure.set_label(
        f"{metric.partition(' (')[0].capitalize()} by model on {_listed(datasets)}{shown}: mean "
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


def learning_curves(report: Report, results: Sequence[Result], metric: Curve) -> Figure:
    """A metric along training, one panel per dataset, one line per model, for the first choices.

    Lines are means over the finished seeds, bands ± one standard deviation (n - 1). Where all
    seeds of a model diverged, the line is their mean as far as all of them were recorded and ends
    in a red cross; the panel names every model with diverged seeds.
    """
    shown = _default_results(report, results)
    datasets = list(dict.fromkeys(str(result.axes["dataset"]) for result in shown))
    models = [str(m) for m in dict.fromkeys(result.axes["model"] for result in shown)]
    columns = min(2, len(datasets))
    rows = math.ceil(len(datasets) / columns)
    name = _METRICS[metric].partition(" (")[0]
    choices = ", ".join(f"{key} = {_text(value)}" for key, value in default_choices(report).items())
    figure = _figure(
        f"{name.capitalize()} along training",
        width=5.0 * columns + (1.5 if columns == 1 else 0.0),
        height=2.9 * rows + 1.3,
        mark=mark_of(report),
    )
    for index, dataset in enumerate(datasets):
        axes = figure.add_subplot(rows, columns, index + 1)
        _style(axes, dataset, xlabel="steps of gradient descent", ylabel=_METRICS[metric])
        axes.grid(color=_GRID, linewidth=0.6)
        lost: dict[str, list[str]] = {}
        lows: list[float] = []
        highs: list[float] = []
        for model in models:
            of_model = [
                r for r in shown if (r.axes["dataset"], r.axes["model"]) == (dataset, model)
            ]
            recorded = [r for r in of_model if metric in r.history]
            if gone := sum(r.status == "diverged" for r in of_model):
                lost.setdefault(f"{gone} of {len(of_model)}", []).append(model)
            alive = [r for r in recorded if r.status == "finished"]
            if alive or recorded:
                mean = _draw_curve(axes, alive or recorded, metric, model, ended=not alive)
                lows.append(float(mean.min()))
                highs.append(float(mean.max()))
        _curve_scale(axes, metric, lows, highs)
        if lost:
            counts = (f"{count} seeds of {', '.join(of)}" for count, of in lost.items())
            _note_below(axes, f"✕ diverged: {'; '.join(counts)}")
    handles = [Line2D([], [], label=_short(model), **_line(model)) for model in models]
    _legend(figure, handles, columns=min(6, len(models)))
    figure.set_label(
        f"{name.capitalize()} along training on {_listed(datasets)}"
        + (f" for {choices}" if choices else "")
        + ", one line per model: mean over seeds, bands ± one standard deviation."
    )
    return figure


def decision_regions(results: Sequence[Result], *, mark: str = "") -> Figure:
    """The model's decision over [-2, 2]² at each recorded step, with the four points of XOR.

    One row of panels per result. A point x belongs to the class k with the larger
    f_k(x) = Σ_r <c_kr, x>², computed from the recorded factors c; the first class is blue, the
    second red. ``mark`` is a warning to print on the figure; a reduced run carries its own.

    Raises ``ValueError`` where no result has recorded factors of two classes in the plane.
    """
    drawn = [result for result in results if _has_factors(result)]
    if not drawn:
        raise ValueError(
            "decision_regions: no result on xor has snapshots with factors of shape (2, rank, 2); "
            "the table's recipe names the steps to record in `snapshots`"
        )
    columns = max(len(result.snapshots) for result in drawn)
    figure = _figure(
        "Decision regions on XOR",
        width=max(4.0, 2.25 * columns),
        height=2.4 * len(drawn) + 0.75,
        mark=mark or _reduced(drawn),
    )
    ticks = np.linspace(-_REACH, _REACH, 161)
    x, y = np.meshgrid(ticks, ticks)
    plane = np.stack([x, y], axis=-1)  # (161, 161, 2)
    titles = []
    for row, result in enumerate(drawn):
        for column, (step, parameters) in enumerate(sorted(result.snapshots.items())):
            axes = figure.add_subplot(len(drawn), columns, row * columns + column + 1)
            outputs = low_rank_outputs(parameters["factors"], plane)  # (161, 161, 2)
            lead = outputs[..., 1] - outputs[..., 0]
            far = float(np.abs(lead).max()) + 1.0
            axes.contourf(x, y, lead, levels=[-far, 0.0, far], colors=_REGIONS)
            axes.contour(x, y, lead, levels=[0.0], colors=[_INK], linewidths=0.8)
            _draw_points(axes)
            margin = result.history["margin"][result.step.index(step)]
            titles.append(f"step {step}, Δμ = {margin:.2f}")
            _style(axes, titles[-1])
            axes.set(xlim=(-_REACH, _REACH), ylim=(-_REACH, _REACH), aspect="equal")
            axes.set_xticks([-2, 0, 2])
            axes.set_yticks([-2, 0, 2] if column == 0 else [])
            if column == 0 and len(drawn) > 1:
                axes.set_ylabel(f"lr = {_text(_rate(result))}", fontsize=8, color=_MUTED)
    handles = [
        Line2D([], [], marker=marker, color=colour, linestyle="", markersize=6, label=label)
        for marker, colour, label in (
            ("o", _CLASSES[0], "points of class 0 (equal signs); blue: decided as class 0"),
            ("s", _CLASSES[1], "points of class 1 (different signs); red: decided as class 1"),
        )
    ]
    _legend(figure, handles, columns=2)
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
    figure = _figure("Margin along training", width=7.0, height=4.1, mark=mark or _reduced(drawn))
    axes = figure.add_subplot()
    _style(axes, "", xlabel="steps of gradient descent", ylabel="normalised margin Δμ")
    axes.grid(color=_GRID, linewidth=0.6)
    axes.axhline(1.0, color=_MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    rates = list(dict.fromkeys(_rate(result) for result in drawn))
    shades = _shades(len(rates))
    snapshots = False
    for result in drawn:
        colour = shades[rates.index(_rate(result))]
        margin = result.history["margin"]
        axes.plot(
            result.step, margin, color=colour, linewidth=1.8, label=f"lr = {_text(_rate(result))}"
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
            _cross(axes, result.step[-1], margin[-1])
    low = min((min(result.history["margin"]) for result in drawn), default=0.0)
    axes.set_ylim(min(0.0, low * 1.05), 1.05)
    axes.margins(x=0.01)
    handles: list[Artist] = [
        Line2D([], [], color=shade, linewidth=1.8, label=f"step size {_text(rate)}")
        for rate, shade in zip(rates, shades, strict=True)
    ]
    if snapshots:
        handles.append(_key("o", "recorded parameters"))
    handles.append(Line2D([], [], color=_MUTED, linestyle=(0, (4, 3)), label="Δμ = 1"))
    axes_legend = axes.legend(handles=handles, loc="lower right", frameon=False, fontsize=8)
    _plain(axes_legend)
    ends = "; ".join(
        f"{r.history['margin'][-1]:.4f} for step size {_text(_rate(r))}" for r in drawn
    )
    figure.set_label(
        f"Normalised margin Δμ along the steps of gradient descent; it ends at {ends}."
        + (" Dots mark the steps whose parameters were recorded." if snapshots else "")
    )
    return figure


def save_figures(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write each figure as ``<name>.png`` (150 dpi) and ``<name>.svg``; returns the paths.

    The same figure gives the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        png, svg = folder / f"{name}.png", folder / f"{name}.svg"
        figure.savefig(png, dpi=150, metadata={"Software": None})
        write_whole(svg, to_svg(figure))
        paths += [png, svg]
    return paths


def to_svg(figure: Figure) -> str:
    """The figure as SVG, its text as text; the same figure gives the same characters."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "quadnets", "svg.fonttype": "none"}):
        figure.savefig(
            buffer,
            format="svg",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def low_rank_outputs(
    factors: Sequence[Any], x: np.ndarray[Any, np.dtype[np.float64]]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """f_k(x) = Σ_r <c_kr, x>² for factors c ``(K, rank, in)`` and x ``(…, in)``: ``(…, K)``.

    >>> low_rank_outputs([[[1.0, 0.0]], [[0.0, 1.0]]], np.array([3.0, 2.0])).tolist()
    [9.0, 4.0]
    """
    products = np.einsum("kri,...i->...kr", np.asarray(factors, dtype=np.float64), x)
    return np.asarray((products**2).sum(-1))


def mark_of(report: Report) -> str:
    """What must stand on everything that shows this report: that it is reduced, or partial."""
    marks = ["REDUCED RUN"] if report.reduced else []
    if report.recorded < report.expected:
        marks.append("PARTIAL")
    return " · ".join(marks)


def control_of(report: Report) -> str | None:
    """The model that the others are compared with: the first that is never compared itself."""
    compared = {cell.axes["model"] for cell in report.cells if cell.difference is not None}
    rest = [c.axes["model"] for c in report.cells if c.axes["model"] not in compared]
    return str(rest[0]) if compared and rest else None


def choices_of(cell: CellReport, report: Report) -> Choices:
    """The unstated choices under which a cell was run."""
    return tuple((name, cell.axes[name]) for name in report.choices)


def combinations_of(report: Report) -> list[Choices]:
    """The combinations of unstated choices that were run, in the order of the report."""
    return list(dict.fromkeys(choices_of(cell, report) for cell in report.cells))


def default_choices(report: Report) -> dict[str, Scalar]:
    """The first combination of unstated choices that was run: the defaults, where they were."""
    return dict(combinations_of(report)[0])


def label_of(report: Report, combinations: Iterable[Choices]) -> str:
    """Combinations in words: only what varies, as in ``scaling = maxabs, raw``."""
    varied = [name for name, values in report.choices.items() if len(values) > 1]
    parts = [[_text(dict(combination)[name]) for name in varied] for combination in combinations]
    if len(varied) == 1:
        return f"{varied[0]} = {', '.join(part[0] for part in parts)}"
    return "; ".join(
        ", ".join(f"{name} = {value}" for name, value in zip(varied, part, strict=True))
        for part in parts
    )


def _has_factors(result: Result) -> bool:
    shapes = (np.shape(values.get("factors", ())) for values in result.snapshots.values())
    plane = [len(shape) == 3 and (shape[0], shape[2]) == (2, 2) for shape in shapes]
    return result.axes.get("dataset") == "xor" and bool(plane) and all(plane)


def _default_results(report: Report, results: Iterable[Result]) -> list[Result]:
    return [result for result in results if _matches(result.axes, default_choices(report))]


def _matches(axes: Mapping[str, Scalar], choices: Mapping[str, Scalar]) -> bool:
    return all(axes[name] == value for name, value in choices.items())


def _rate(result: Result) -> float:
    """The step size: an axis where it is a choice, otherwise the recipe's."""
    recipe = result.resolved.get("recipe", {})
    return float(result.axes.get("lr", recipe.get("lr", 0.01)))


def _reduced(results: Iterable[Result]) -> str:
    return "REDUCED RUN" if any(result.reduced for result in results) else ""


def _text(value: Scalar) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _listed(names: Sequence[Any]) -> str:
    words = [str(name) for name in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _short(name: str) -> str:
    """A name that leaves room for the figure."""
    return name if len(name) <= 24 else f"{name[:23]}…"


def _family(model: str) -> str:
    if "affine" in model:
        return "affine form"
    if model.startswith("rank"):
        return "low-rank form"
    return "dense form" if model.startswith("dense") else "linear"


def _marker(place: int) -> dict[str, Any]:
    """Marker of a combination: eight shapes, filled first, then hollow."""
    hollow = {"markerfacecolor": "white"} if place // len(_MARKERS) % 2 else {}
    return {"marker": _MARKERS[place % len(_MARKERS)], **hollow}


def _line(model: str) -> dict[str, Any]:
    """Line of a model: the hue of its family, darker with the rank; dense forms dashed."""
    family = _family(model)
    rank = "".join(letter for letter in model if letter.isdigit())
    base = np.array(mpl.colors.to_rgb(_FAMILIES[family]))
    depth = min(int(rank), 4) if rank else 0
    shade = {1: base + (1 - base) * 0.45, 2: base + (1 - base) * 0.15, 3: base * 0.78}
    colour = shade.get(depth, base * 0.55 if depth else base)
    dashed = model.startswith("dense")
    return {
        "color": tuple(float(part) for part in colour),
        "linewidth": 2.0 if not rank else 1.5,
        "linestyle": (0, (5, 1.5)) if dashed else "-",
    }


def _shades(count: int) -> list[str]:
    """Colours from light to dark blue, none too light to see."""
    light, dark = np.array(mpl.colors.to_rgb("#6bb3e0")), np.array(mpl.colors.to_rgb("#08264d"))
    steps = np.linspace(0, 1, count) if count > 1 else [0.45]
    return [mpl.colors.to_hex(light + (dark - light) * step) for step in steps]


def _figure(title: str, *, width: float, height: float, mark: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold", color=_INK)
    if mark:
        figure.text(
            0.985,
            1 - 0.1 / height,
            mark,
            ha="right",
            va="top",
            fontsize=9,
            fontweight="bold",
            color="white",
            bbox={"boxstyle": "round,pad=0.35", "facecolor": _ALARM, "edgecolor": "none"},
        ).set_in_layout(False)
    return figure


def _style(axes: Axes, title: str, *, xlabel: str = "", ylabel: str = "") -> None:
    if title:
        axes.set_title(title, loc="left", fontsize=9.5, color=_INK, parse_math=False)
    axes.set_xlabel(xlabel, fontsize=8.5, color=_MUTED)
    axes.set_ylabel(ylabel, fontsize=8.5, color=_MUTED)
    axes.tick_params(labelsize=8, colors=_MUTED, length=3, width=0.6)
    axes.set_axisbelow(True)
    axes.set_facecolor("white")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_MUTED)
        spine.set_linewidth(0.6)


def _model_rows(axes: Axes, models: Sequence[str]) -> None:
    for row in range(0, len(models), 2):
        axes.axhspan(row - 0.5, row + 0.5, color=_STRIPE, linewidth=0, zorder=0)
    axes.set_yticks(range(len(models)), [_short(model) for model in models], color=_INK)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.grid(axis="x", color=_GRID, linewidth=0.6)


def _draw_cell(axes: Axes, cell: CellReport, at: float, marker: Mapping[str, Any]) -> None:
    colour = _FAMILIES[_family(str(cell.axes["model"]))]
    if cell.claim is not None:
        axes.plot(cell.claim.value, at, marker="D", color=_INK, markerfacecolor="none", zorder=4)
    if cell.mean is not None:
        low, high = cell.interval95 or (cell.mean, cell.mean)
        axes.errorbar(
            cell.mean,
            at,
            xerr=[[cell.mean - low], [high - cell.mean]],
            color=colour,
            markersize=4.5,
            elinewidth=1.3,
            capsize=0,
            zorder=3,
            **marker,
        )
    if cell.diverged:
        place = ("axes fraction", "data")
        text = f"✕ {cell.diverged} of {cell.diverged + cell.n} diverged"
        axes.annotate(
            text, (0.012, at), xycoords=place, va="center", fontsize=6.5, color=_ALARM, zorder=5
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
            axes.axvline(cell.mean, color=_FAMILIES["linear"], linewidth=1, linestyle=(0, (4, 3)))
            continue
        others = [row for row, model in enumerate(models) if model != control]
        centres = np.array(others) + (place - (len(combinations) - 1) / 2) * slot
        axes.vlines(
            np.full(len(others), cell.mean),
            centres - 0.45 * slot,
            centres + 0.45 * slot,
            color=_FAMILIES["linear"],
            linewidth=1.2,
            zorder=2,
        )


def _limit(axes: Axes, cells: Sequence[CellReport]) -> None:
    """Limits within 0 and 100 %, with room at the left for what is said about diverged trials."""
    lows = [(c.interval95 or (c.mean, c.mean))[0] for c in cells if c.mean is not None]
    low = max(0.0, math.floor(min(lows, default=0.0) / 10) * 10.0)
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
    families = list(dict.fromkeys(_family(model) for model in models))
    handles = [
        Line2D([], [], color=_FAMILIES[family], marker="o", markersize=4.5, label=family)
        for family in families
    ]
    if control is not None:
        line: dict[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 1.0}
        tick: dict[str, Any] = {"linestyle": "", "marker": "|", "markersize": 9}
        handles.append(
            Line2D(
                [],
                [],
                color=_FAMILIES["linear"],
                label=f"control: {_short(control)}",
                **(line if len(combinations) == 1 else tick),
            )
        )
    if any(cell.claim is not None for cell in report.cells):
        handles.append(_key("D", "the paper", markerfacecolor="none"))
    if any(cell.diverged for cell in report.cells):
        handles.append(
            Line2D([], [], color=_ALARM, marker="x", linestyle="", markersize=5, label="diverged")
        )
    if len(combinations) > 1:
        handles += [
            Line2D(
                [],
                [],
                color=_MUTED,
                linestyle="",
                markersize=5,
                label=label_of(report, [choices]),
                **_marker(place),
            )
            for place, choices in enumerate(combinations)
        ]
    _legend(figure, handles, columns=min(len(handles), 5))


def _draw_curve(
    axes: Axes, results: Sequence[Result], metric: str, model: str, *, ended: bool
) -> np.ndarray[Any, np.dtype[np.float64]]:
    points = min(len(result.history[metric]) for result in results)
    steps = results[0].step[:points]
    values = np.array([result.history[metric][:points] for result in results])  # (seeds, points)
    mean = np.asarray(values.mean(0))
    axes.plot(steps, mean, label=model, **_line(model))
    if len(values) > 1:
        spread = values.std(0, ddof=1)
        axes.fill_between(
            steps, mean - spread, mean + spread, color=_line(model)["color"], alpha=0.1, linewidth=0
        )
    if ended:
        _cross(axes, steps[-1], float(mean[-1]))
    return mean


def _cross(axes: Axes, x: float, y: float) -> None:
    axes.plot(
        x, y, marker="x", color=_ALARM, markersize=7, markeredgewidth=2, zorder=5, clip_on=False
    )


def _curve_scale(axes: Axes, metric: str, lows: Sequence[float], highs: Sequence[float]) -> None:
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


def _note_below(axes: Axes, text: str) -> None:
    axes.annotate(
        textwrap.fill(text, 64),
        (0.0, 0.0),
        xytext=(0, -36),
        xycoords="axes fraction",
        textcoords="offset points",
        va="top",
        fontsize=7.5,
        color=_ALARM,
        parse_math=False,
    )


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


def _key(marker: str, label: str, **options: Any) -> Line2D:
    return Line2D([], [], color=_INK, linestyle="", marker=marker, label=label, **options)


def _legend(figure: Figure, handles: Sequence[Artist], *, columns: int) -> None:
    legend = figure.legend(
        handles=list(handles),
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        fontsize=8,
        labelcolor=_INK,
        handlelength=2.2,
        columnspacing=1.4,
    )
    _plain(legend)


def _plain(legend: Legend) -> None:
    """Names are names: a dollar sign in one starts no formula."""
    for text in legend.get_texts():
        text.set_parse_math(False)
        text.set_color(_INK)
