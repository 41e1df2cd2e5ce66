"""The look that all figures share, and how they become files.

Colours are those of Okabe and Ito, told apart by colour-blind readers too.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from qbench.trial import write_whole

INK, MUTED, GRID = "#1f2328", "#59636e", "#d8dee4"
ALARM = "#b3261e"
BLUE, ORANGE, GREEN, PINK, SKY, AMBER = COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#c2508f",
    "#56b4e9",
    "#b07d00",
)

_TICKS = {"labelsize": 8, "color": MUTED, "labelcolor": MUTED, "major.size": 3, "major.width": 0.6}
PYPLOT = MappingProxyType(
    {
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": MUTED,
        "axes.labelsize": 8.5,
        "axes.titlesize": 9.5,
        "axes.titlecolor": INK,
        "axes.titlelocation": "left",
        "axes.axisbelow": True,
        **{f"{way}.{what}": to for way in ("xtick", "ytick") for what, to in _TICKS.items()},
        "lines.linewidth": 1.4,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "legend.labelcolor": INK,
        "figure.constrained_layout.use": True,
    }
)
"""The same look for what pyplot draws, as matplotlib's settings."""


def new_figure(title: str, *, width: float, height: float, mark: str) -> Figure:
    """A white figure with its title at the left, and a warning at the right where there is one."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold", color=INK)
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
            bbox={"boxstyle": "round,pad=0.35", "facecolor": ALARM, "edgecolor": "none"},
        ).set_in_layout(False)
    return figure


def style(axes: Axes, title: str, *, xlabel: str = "", ylabel: str = "") -> None:
    """Plain axes: two thin spines, small muted labels, the title at the left."""
    if title:
        axes.set_title(title, loc="left", fontsize=9.5, color=INK, parse_math=False)
    axes.set_xlabel(xlabel, fontsize=8.5, color=MUTED)
    axes.set_ylabel(ylabel, fontsize=8.5, color=MUTED)
    axes.tick_params(labelsize=8, colors=MUTED, length=3, width=0.6)
    axes.set_axisbelow(True)
    axes.set_facecolor("white")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)
        spine.set_linewidth(0.6)


def legend_below(figure: Figure, handles: Sequence[Artist], *, columns: int) -> None:
    """A legend under all panels, at the left, in so many columns, or as many as there is room for:
    the figure becomes higher by the rows that this adds."""
    room = 0.97 * figure.bbox.width  # the rest is at its sides
    legend = _legend(figure, handles, columns)
    height = legend.get_window_extent().height
    while columns > 1 and legend.get_window_extent().width > room:
        legend.remove()
        columns -= 1
        legend = _legend(figure, handles, columns)
    added = legend.get_window_extent().height - height
    figure.set_figheight(figure.get_figheight() + added / figure.dpi)


def _legend(figure: Figure, handles: Sequence[Artist], columns: int) -> Legend:
    legend = figure.legend(
        handles=list(handles),
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        handlelength=2.2,
        columnspacing=1.4,
    )
    plain(legend)
    return legend


def key(marker: str, label: str, **options: Any) -> Line2D:
    """A marker for the legend."""
    look = {"color": INK, "linestyle": "", "marker": marker, "label": label}
    return Line2D([], [], **(look | options))


def plain(legend: Legend) -> None:
    """Names are names: a dollar sign in one starts no formula."""
    for text in legend.get_texts():
        text.set_parse_math(False)
        text.set_color(INK)


def shades(count: int) -> list[str]:
    """Colours from light to dark blue, none too light to see.

    >>> shades(2)
    ['#6bb3e0', '#08264d']
    """
    light, dark = np.array(to_rgb("#6bb3e0")), np.array(to_rgb("#08264d"))
    steps = np.linspace(0, 1, count) if count > 1 else [0.45]
    return [to_hex(light + (dark - light) * step) for step in steps]


def cross(axes: Axes, x: float, y: float) -> None:
    """The red cross at which a diverged curve ends."""
    axes.plot(
        x, y, marker="x", color=ALARM, markersize=7, markeredgewidth=2, zorder=5, clip_on=False
    )


def save_figures(figures: Mapping[str, Figure], folder: Path) -> dict[str, str]:
    """Write each figure as ``<name>.png`` (150 dpi) and ``<name>.svg``; returns the SVG by name.

    The same figure gives the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for name, figure in figures.items():
        drawn[name] = to_svg(figure)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=150, metadata={"Software": None})
        write_whole(folder / f"{name}.png", image.getvalue())
        write_whole(folder / f"{name}.svg", drawn[name])
    return drawn


def to_svg(figure: Figure) -> str:
    """The figure as SVG, its text as text, its label as title; the same figure gives the same
    characters."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": "quadnets", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={**nothing, "Title": figure.get_label()})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
