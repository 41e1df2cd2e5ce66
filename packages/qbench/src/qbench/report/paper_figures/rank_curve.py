"""Accuracy against the rank of a low-rank classifier."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qbench.architecture import ModelSpec
from qbench.report.drawing import ALARM, GRID, legend_below, new_figure, style
from qbench.report.evidence import Evidence
from qbench.report.families import FAMILIES, family_of, short
from qbench.report.numbers import CellReport
from qbench.report.panels import lost_key, lost_trials, note_below
from qbench.report.wording import format_number, listed, metric_name, metric_with_unit

_DASHES = ((0, (4, 3)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_MARKERS = ("o", "s", "^")
_APART = 0.1
"""How far the families stand apart at one rank."""


def rank_curve(evidence: Evidence) -> Figure | None:
    """The main metric against the rank, one panel per dataset and one line per family of forms.

    Models that are as large as one of a rank stand at it; those without a rank are horizontal
    lines. Error bars and bands are ± one standard deviation over the seeds (n - 1). A red cross
    below marks a rank at which trials diverged.

    Source: DIQNN (arXiv 2307.13609), figure 3.
    """
    specs = evidence.report.models
    ranks_of = {
        model: rank for model in evidence.models if (rank := _rank_of(specs[model])) is not None
    }
    ranked = list(ranks_of)
    if all(specs[model].rank is None for model in ranked):
        return None
    families: dict[str, list[str]] = {}
    for model in sorted(ranked, key=ranks_of.__getitem__):
        families.setdefault(family_of(specs[model]), []).append(model)
    flat = [model for model in evidence.models if model not in ranked]
    metric = evidence.cells[0].metric
    panels = evidence.panels
    figure = new_figure(
        f"{metric_name(metric).capitalize()} against rank",
        width=4.8 * len(panels) + (1.2 if len(panels) == 1 else 0.0),
        height=4.6,
        mark=evidence.report.mark,
    )
    for column, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1)
        style(axes, panel, xlabel="rank", ylabel=metric_with_unit(metric))
        axes.grid(color=GRID, linewidth=0.6)
        for place, model in enumerate(flat):
            _draw_flat(axes, evidence.cell(panel, model), FAMILIES[family_of(specs[model])], place)
        for place, (family, models) in enumerate(families.items()):
            offset = (place - (len(families) - 1) / 2) * _APART
            found = [(ranks_of[m], evidence.cell(panel, m)) for m in models]
            points = [(rank, cell) for rank, cell in found if cell is not None]
            _draw_family(axes, points, offset, family, _MARKERS[place % len(_MARKERS)])
        ranks = sorted(set(ranks_of.values()))
        axes.set_xticks(ranks)
        axes.set_xlim(ranks[0] - 0.5, ranks[-1] + 0.5)
        note_below(axes, lost_trials({m: evidence.of(panel, m) for m in evidence.models}))
    handles = [
        Line2D(
            [],
            [],
            color=FAMILIES[family],
            marker=_MARKERS[place % len(_MARKERS)],
            markersize=4.5,
            label=f"{family}, as many parameters" if family.startswith("linear") else family,
        )
        for place, family in enumerate(families)
    ]
    handles += [
        Line2D(
            [],
            [],
            color=FAMILIES[family_of(specs[model])],
            linestyle=_DASHES[place % len(_DASHES)],
            label=short(model),
        )
        for place, model in enumerate(flat)
    ]
    if any(cell.diverged for cell in evidence.cells):
        handles.append(lost_key())
    legend_below(figure, handles, columns=min(len(handles), 3 * len(panels)))
    figure.set_label(
        f"{metric_with_unit(metric).capitalize()} against the rank on {listed(panels)}"
        f"{evidence.choices}: mean ± one standard deviation over the seeds. "
        + " ".join(_in_words(evidence, panel, families, flat) for panel in panels)
    )
    return figure


def _rank_of(spec: ModelSpec) -> int | None:
    """The rank of a model, or of the one that it is as large as."""
    like = spec.as_large_as
    return like.rank if isinstance(like, ModelSpec) else spec.rank


def _draw_flat(axes: Axes, cell: CellReport | None, colour: str, place: int) -> None:
    if cell is None or cell.mean is None:
        return
    axes.axhline(
        cell.mean, color=colour, linewidth=1.3, linestyle=_DASHES[place % len(_DASHES)], zorder=2
    )
    if cell.std is not None:
        axes.axhspan(
            cell.mean - cell.std, cell.mean + cell.std, color=colour, alpha=0.1, linewidth=0
        )


def _draw_family(
    axes: Axes, points: Sequence[tuple[int, CellReport]], offset: float, family: str, marker: str
) -> None:
    measured = [(rank, cell.mean, cell.std) for rank, cell in points if cell.mean is not None]
    if measured:
        axes.errorbar(
            [rank + offset for rank, _, _ in measured],
            [mean for _, mean, _ in measured],
            yerr=[std or 0.0 for _, _, std in measured],
            color=FAMILIES[family],
            marker=marker,
            markersize=4.5,
            linewidth=1.4,
            elinewidth=1.1,
            capsize=2.5,
            zorder=3,
            label=family,
        )
    lost = [rank + offset for rank, cell in points if cell.diverged]
    axes.plot(
        lost,
        [0.03] * len(lost),
        transform=axes.get_xaxis_transform(),
        linestyle="",
        marker="x",
        markersize=6,
        markeredgewidth=1.8,
        color=ALARM,
        zorder=5,
    )


def _in_words(
    evidence: Evidence, panel: str, families: Mapping[str, Sequence[str]], flat: Sequence[str]
) -> str:
    """Each family at its ends and wherever trials diverged, then the models without a rank."""
    parts = []
    for family, models in families.items():
        cells = [(m, evidence.cell(panel, m)) for m in models]
        known = [(model, cell) for model, cell in cells if cell is not None]
        said = [
            _said(evidence, model, cell)
            for place, (model, cell) in enumerate(known)
            if cell.diverged or place in (0, len(known) - 1)
        ]
        if said:
            parts.append(f"{family} {', '.join(said)}")
    for model in flat:
        cell = evidence.cell(panel, model)
        if cell is not None:
            parts.append(f"{model} {_value(cell)}")
    return f"{panel}: {'; '.join(parts)}."


def _said(evidence: Evidence, model: str, cell: CellReport) -> str:
    return f"{_value(cell)} at rank {_rank_of(evidence.report.models[model])}"


def _value(cell: CellReport) -> str:
    lost = f" ({cell.diverged} of {cell.trials} diverged)" if cell.diverged else ""
    return format_number(cell.mean, cell.metric) + lost
