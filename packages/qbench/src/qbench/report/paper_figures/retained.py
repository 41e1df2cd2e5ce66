"""Test accuracy of a quadratic classifier that keeps only its leading eigenvectors."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qbench.report.drawing import COLOURS, GRID, MUTED, legend_below, new_figure, style
from qbench.report.evidence import Array, Evidence
from qbench.report.panels import MARKERS, lost_trials, note_below
from qbench.report.wording import format_number

_TICKS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000)


def retained(evidence: Evidence) -> Figure | None:
    """Test accuracy against the number of retained eigenvectors, one line per dataset and model.

    Lines are means over the seeds, bands ± one standard deviation (n - 1); dashed lines are the
    accuracy with all eigenvectors, where each line ends.

    Source: DIQNN (arXiv 2307.13609), supplement, figure 2, left.
    """
    lines: dict[str, tuple[Array, Array]] = {}
    tried = {}
    for panel in evidence.panels:
        for model in evidence.models:
            results = evidence.of(panel, model)
            arrays = [found for r in results if "retained" in (found := evidence.arrays(r))]
            name = f"{panel}: {model}"
            if results:
                tried[name] = results
            if arrays:
                accuracies = np.stack([found["retained_accuracy"] for found in arrays])
                lines[name] = (arrays[0]["retained"], accuracies)  # (ranks,), (seeds, ranks)
    if not lines:
        return None
    figure = new_figure(
        "Test accuracy with the leading eigenvectors alone",
        width=7.0,
        height=4.4,
        mark=evidence.report.mark,
    )
    axes = figure.add_subplot()
    style(axes, "", xlabel="eigenvectors kept, of each class's form", ylabel="test accuracy (%)")
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_xscale("log")
    handles = []
    said = []
    for place, (name, (ranks, accuracies)) in enumerate(lines.items()):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        mean = accuracies.mean(0)
        axes.axhline(mean[-1], color=colour, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.plot(ranks, mean, color=colour, marker=marker, markersize=4.5, label=name)
        if len(accuracies) > 1:
            spread = accuracies.std(0, ddof=1)
            axes.fill_between(
                ranks, mean - spread, mean + spread, color=colour, alpha=0.12, linewidth=0
            )
        full = format_number(float(mean[-1]), "test_accuracy")
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=4.5, label=name))
        at = [i for i, rank in enumerate(ranks) if rank in (1, 3, 10)]
        some = ", ".join(
            f"{format_number(float(mean[i]), 'test_accuracy')} with {ranks[i]}" for i in at
        )
        said.append(f"{name} has {some}, and {full} with all {ranks[-1]}")
    widest = max(int(ranks[-1]) for ranks, _ in lines.values())
    ticks = [tick for tick in _TICKS if tick <= widest]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.tick_params(which="minor", length=0)
    axes.set_xticks([], minor=True)
    handles.append(Line2D([], [], color=MUTED, linestyle=(0, (4, 3)), label="all eigenvectors"))
    legend_below(figure, handles, columns=min(len(handles), 4))
    note_below(axes, lost_trials(tried), width=90)
    figure.set_label(
        "Test accuracy in percent against the number of eigenvectors that are kept"
        f"{evidence.choices}, mean over the seeds with one standard deviation: {'; '.join(said)}."
    )
    return figure
