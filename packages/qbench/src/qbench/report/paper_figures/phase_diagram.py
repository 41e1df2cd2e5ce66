"""How many trials learned, over two axes of the grid: which strategy collapses where."""

import math
from collections.abc import Iterable, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qbench.frozen import Scalar
from qbench.report.drawing import GRID, INK, MUTED, new_figure, style
from qbench.report.evidence import Evidence
from qbench.report.families import short
from qbench.report.wording import format_value
from qbench.trial import Result

_WORDS = {"lr": "learning rate"}


def phase_diagram(evidence: Evidence) -> Figure | None:
    """The share of trials that learned for each model, over the grid's two other axes.

    In each cell how many of its trials learned, by colour too, and after a cross how many diverged,
    which hatch their share of it; the rest are stuck. A cell without results is white. None for a
    grid of other than two such axes.

    Source: the collapse that the abstract of arXiv 2110.06081 speaks of.
    """
    axes_names = evidence.report.axes
    if len(axes_names) != 2 or not any(r.value("learned") is not None for r in evidence.results):
        return None
    down, across = axes_names
    rows = _ordered(cell.axes[down] for cell in evidence.cells)
    columns = _ordered(cell.axes[across] for cell in evidence.cells)
    datasets = list(dict.fromkeys(str(cell.axes["dataset"]) for cell in evidence.cells))
    places = [(dataset, model) for dataset in datasets for model in evidence.models]
    wide = min(3, len(places))
    high = math.ceil(len(places) / wide)
    figure = new_figure(
        "Trials that learned, and that diverged",
        width=max(6.0, wide * (0.52 * len(columns) + 0.9) + 0.9),
        height=high * (0.46 * len(rows) + 0.85) + 1.0,
        mark=evidence.report.mark,
    )
    colours = mpl.colormaps["cividis"]
    drawn: list[Axes] = []
    said = []
    for index, (dataset, model) in enumerate(places):
        axes = figure.add_subplot(high, wide, index + 1)
        drawn.append(axes)
        title = model if len(datasets) == 1 else f"{dataset}: {model}"
        style(
            axes,
            short(title, 12 + 6 * len(columns)),  # what stands above so many squares
            xlabel=_WORDS.get(across, across) if index + wide >= len(places) else "",
            ylabel=_WORDS.get(down, down) if index % wide == 0 else "",
        )
        own = [r for r in evidence.results if _is_of(r, {"dataset": dataset, "model": model})]
        for row, y in enumerate(rows):
            for column, x in enumerate(columns):
                here = [r for r in own if _is_of(r, {down: y, across: x})]
                _draw_square(axes, (column, row), here, colours)
        axes.set_xticks(range(len(columns)), [format_value(value) for value in columns])
        axes.set_yticks(range(len(rows)), [format_value(value) for value in rows])
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-0.5, len(rows) - 0.5))
        if own:
            said.append(f"{title}: {_in_words(own)}")
    bar = figure.colorbar(
        mpl.cm.ScalarMappable(Normalize(0.0, 100.0), colours),
        ax=drawn,
        shrink=0.9,
        aspect=30,
        pad=0.02,
    )
    bar.set_label("share of trials that learned (%)", fontsize=8.5, color=MUTED)
    bar.ax.tick_params(labelsize=8, colors=MUTED, length=3, width=0.6)
    bar.outline.set_visible(False)
    figure.supxlabel(
        "k/n: k of n trials learned, with a training accuracy of 50 % or more.   ✕ d, hatched: d "
        "diverged.   The rest are stuck.",
        x=0.012,
        ha="left",
        fontsize=8,
        color=INK,
    )
    figure.set_label(
        f"How many trials learned over {_WORDS.get(down, down)} and {_WORDS.get(across, across)} "
        f"on {', '.join(datasets)}{evidence.choices}. {'; '.join(said)}."
    )
    return figure


def _ordered(values: Iterable[Scalar]) -> list[Scalar]:
    """Each value once: numbers by size, names as they come."""
    found = list(dict.fromkeys(values))
    numbers = [value for value in found if not isinstance(value, str)]
    return [*sorted(numbers)] if len(numbers) == len(found) else found


def _is_of(result: Result, axes: dict[str, Scalar]) -> bool:
    return axes.items() <= result.axes.items()


def _draw_square(
    axes: Axes,
    place: tuple[int, int],
    results: Sequence[Result],
    colours: mpl.colors.Colormap,
) -> None:
    values = [value for result in results if (value := result.value("learned")) is not None]
    column, row = place
    corner = (column - 0.5, row - 0.5)
    if not values:
        axes.add_patch(Rectangle(corner, 1, 1, facecolor="white", edgecolor=GRID, linewidth=0.8))
        axes.text(column, row, "–", ha="center", va="center", fontsize=8, color=MUTED)
        return
    share = sum(values) / len(values)
    lost = sum(result.status == "diverged" for result in results)
    colour = colours(share / 100)
    axes.add_patch(Rectangle(corner, 1, 1, facecolor=colour, edgecolor="white", linewidth=1.2))
    ink = "white" if share < 55 else INK
    if lost:
        part = lost / len(results)
        hatched = Rectangle(corner, 1, part, fill=False, hatch="//", linewidth=0, edgecolor=ink)
        axes.add_patch(hatched).set_alpha(0.45)
    words = f"{sum(value > 0 for value in values)}/{len(values)}" + (f"\n✕ {lost}" if lost else "")
    axes.text(
        column,
        row,
        words,
        ha="center",
        va="center",
        fontsize=8,
        linespacing=1.1,
        color=ink,
        bbox={"boxstyle": "round,pad=0.15", "facecolor": colour, "linewidth": 0},
    )


def _in_words(results: Sequence[Result]) -> str:
    values = [value for result in results if (value := result.value("learned")) is not None]
    learned = sum(value > 0 for value in values)
    lost = sum(result.status == "diverged" for result in results)
    return f"{learned} of {len(values)} learned, {lost} diverged"
