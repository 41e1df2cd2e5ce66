"""What the leading eigenvectors of trained forms look like, beside what excites each class."""

import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qbench.catalogue import DATASETS
from qbench.report.drawing import INK, MUTED, new_figure, style
from qbench.report.evidence import Array, Evidence
from qbench.trial import Result

_WIDTH, _LEFT, _RIGHT = 9.6, 0.75, 0.7
_TITLE, _HEADING, _ROW, _LOST = 0.55, 0.3, 0.3, 0.5
"""Sizes in inches: of the figure, its margins, its title; of a block's heading, a row of the
matrix, and a block that has nothing but words."""

_SMALLEST = 8
"""The smallest side of an image: fewer features are a table's columns, as the four of Iris."""


def eigenvectors(evidence: Evidence) -> Figure | None:
    """Each class's spike-triggered average above its form's leading eigenvector, of one seed, with
    the absolute cosine between both.

    Where the forms do not see pixels, as behind a convolution, it is the matrix of the absolute
    cosines of every class's leading eigenvector with every class's average instead. An eigenvector
    has no sign: each is drawn with that of its average.

    Source: DIQNN (arXiv 2307.13609), figure 2 and the supplement's figure 2, right.
    """
    blocks = []
    for panel in evidence.panels:
        for model in evidence.models:
            if results := evidence.of(panel, model):
                left = ((r, evidence.arrays(r)) for r in results)
                first = next(((r, found) for r, found in left if "leading" in found), None)
                blocks.append((f"{panel}: {model}", results, first))
    if not any(first for _, _, first in blocks):
        return None
    heights = [_height(first) for _, _, first in blocks]
    height = _TITLE + sum(heights)
    figure = new_figure(
        "Leading eigenvectors and spike-triggered averages",
        width=_WIDTH,
        height=height,
        mark=evidence.report.mark,
    )
    # every place is given: the layout of so many images is not the same to the last bit each time
    figure.set_layout_engine("none")
    said = []
    top = height - _TITLE
    for (name, results, first), block in zip(blocks, heights, strict=True):
        if first is None:
            gone = sum(result.status == "diverged" for result in results)
            _heading(figure, f"{name}: ✕ {gone} of {len(results)} trials diverged", top)
            said.append(f"{name}: no trial finished")
        else:
            result, arrays = first
            title = f"{name}, seed {result.seed}"
            side = _side(result, arrays)
            if side is None:
                _draw_matrix(figure, arrays["similarity"], title, top)
            else:
                _draw_images(figure, arrays, side, title, top)
            said.append(f"{title}: {_in_words(arrays['similarity'])}")
        top -= block
    figure.set_label(
        "Leading eigenvector of each class's form beside the class's spike-triggered average"
        f"{evidence.choices}, with the absolute cosine between both. {'. '.join(said)}."
    )
    return figure


def _height(first: tuple[Result, dict[str, Array]] | None) -> float:
    """The height of a block, in inches."""
    if first is None:
        return _LOST
    classes = len(first[1]["similarity"])
    if _side(*first) is None:
        return _HEADING + classes * _ROW + 0.55
    return _HEADING + 0.05 + 2 * _pitch(classes) + 0.45


def _pitch(classes: int) -> float:
    """The width of a column, in inches."""
    return min(1.4, (_WIDTH - _LEFT - _RIGHT) / classes)


def _heading(figure: Figure, words: str, top: float) -> None:
    where = (0.12 / _WIDTH, top / figure.get_figheight())
    figure.text(*where, words, va="top", fontsize=9.5, color=INK, parse_math=False)


def _axes_at(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches."""
    high = figure.get_figheight()
    return figure.add_axes((left / _WIDTH, bottom / high, width / _WIDTH, height / high))


def _side(result: Result, arrays: dict[str, Array]) -> int | None:
    """The side of the square image that the forms take; None where they take something else."""
    features = arrays["average"].shape[1]
    side = math.isqrt(features)
    pixels = features == DATASETS[str(result.axes["dataset"])].features
    square = side * side == features and side >= _SMALLEST
    return side if pixels and square and "convolution" not in result.resolved["model"] else None


def _draw_images(
    figure: Figure, arrays: dict[str, Array], side: int, title: str, top: float
) -> None:
    averages = arrays["average"]  # (classes, features)
    leading = arrays["leading"][:, : averages.shape[1]]  # without the constant of affine forms
    signs = np.where((leading * np.nan_to_num(averages)).sum(1) < 0, -1.0, 1.0)
    similarity = np.diagonal(arrays["similarity"])
    _heading(figure, title, top)
    pitch = _pitch(len(averages))
    size = 0.92 * pitch
    high = top - _HEADING - 0.05 - size
    for k in range(len(averages)):
        left = _LEFT + k * pitch
        above = _axes_at(figure, left, high, size, size)
        below = _axes_at(figure, left, high - pitch, size, size)
        _draw_image(above, averages[k].reshape(side, side), "Greys", diverging=False)
        _draw_image(below, (signs[k] * leading[k]).reshape(side, side), "RdBu_r", diverging=True)
        above.set_title(f"class {k}", fontsize=8, color=MUTED, pad=3)
        shown = "not predicted" if np.isnan(similarity[k]) else f"{similarity[k]:.2f}"
        below.set_xlabel(shown, fontsize=8.5, color=INK)
        if k == 0:
            above.set_ylabel("average", fontsize=8.5, color=MUTED)
            below.set_ylabel("eigenvector", fontsize=8.5, color=MUTED)
            below.annotate(
                "|cosine|",
                (0, 0),
                xytext=(-4, -5),
                xycoords="axes fraction",
                textcoords="offset points",
                ha="right",
                va="top",
                fontsize=8.5,
                color=MUTED,
            )


def _draw_image(axes: Axes, image: Array, colours: str, *, diverging: bool) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(MUTED)
        spine.set_linewidth(0.5)
    if np.isnan(image).any():
        axes.set_aspect("equal")
        return
    reach = float(np.abs(image).max()) or 1.0
    limits = (-reach, reach) if diverging else (float(image.min()), float(image.max()))
    # "none" leaves the pixels as they are in an SVG too
    axes.imshow(image, cmap=colours, vmin=limits[0], vmax=limits[1], interpolation="none")


def _draw_matrix(figure: Figure, similarity: Array, title: str, top: float) -> None:
    classes = len(similarity)
    _heading(figure, f"{title}: |cosine| of each pair", top)
    size = (_pitch(classes) * classes, _ROW * classes)
    bottom = top - _HEADING - size[1]
    axes = _axes_at(figure, _LEFT, bottom, *size)
    style(
        axes,
        "",
        xlabel="spike-triggered average of class",
        ylabel="leading eigenvector of class",
    )
    colours = mpl.colormaps["cividis"].with_extremes(bad="white")
    shades = axes.pcolormesh(
        np.ma.masked_invalid(similarity),
        cmap=colours,
        vmin=0.0,
        vmax=1.0,
        edgecolors="white",
        linewidth=0.5,
    )
    for (row, column), value in np.ndenumerate(similarity):
        axes.text(
            column + 0.5,
            row + 0.5,
            "–" if np.isnan(value) else f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=7.5,
            fontweight="bold" if row == column else "normal",
            color="white" if value < 0.55 else INK,
        )
    ticks = np.arange(classes) + 0.5
    axes.set_xticks(ticks, [str(k) for k in range(classes)])
    axes.set_yticks(ticks, [str(k) for k in range(classes)])
    axes.invert_yaxis()
    axes.tick_params(length=0)
    place = _axes_at(figure, _LEFT + size[0] + 0.12, bottom, 0.12, size[1])
    bar = figure.colorbar(shades, cax=place)
    bar.ax.tick_params(labelsize=8, colors=MUTED, length=3, width=0.6)
    bar.outline.set_visible(False)


def _in_words(similarity: Array) -> str:
    own = np.diagonal(similarity)
    known = [(k, float(value)) for k, value in enumerate(own) if not np.isnan(value)]
    if not known:
        return "no class was predicted"
    values = ", ".join(f"{value:.2f} for class {k}" for k, value in known)
    others = similarity[~np.eye(len(similarity), dtype=bool)]
    return f"{values}; with the averages of the other classes {_mean(others)} on average"


def _mean(values: Sequence[float] | Array) -> str:
    known = np.asarray(values)[~np.isnan(values)]
    return f"{known.mean():.2f}" if len(known) else "unknown"
