"""The figures of the pages, each a function that makes it from data; their look is the reports'."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

import qcore
from qbench.report.drawing import BLUE, GREEN, INK, MUTED, ORANGE, PINK, PYPLOT, new_figure, style
from qbench.report.evidence import Evidence
from qbench.report.figures import accuracy_by_model
from qbench.report.files import read_reports
from qbench.report.numbers import CellReport, Report
from qbench.report.paper_figures import draw
from qbench.trial import Result
from qcore import analysis

RESULTS = Path(__file__).parents[1] / "results"


def wear_our_look(*_: object) -> None:
    """Let what a tutorial draws look as the rest does; sphinx-gallery calls it before each."""
    mpl.rcParams.update(PYPLOT)


def neuron() -> Figure:
    """What one neuron sees of the plane: a line, or a conic."""
    figure = new_figure("", width=7.2, height=2.6, mark="")
    # an even number of points, which miss the zeros, and rounded values: the same on any processor
    grid = torch.linspace(-2, 2, 200, dtype=torch.float64)
    plane = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1).view(-1, 2)
    linear = nn.Linear(2, 1, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, -0.7]]))
        linear.bias.fill_(0.3)
    panels = {"linear: w·x + b": linear}
    for title, values in {
        "quadratic: an ellipse": ([1.0, 0.2], [0.1, 0.9], [0.8, 0.8], -1.3),
        "quadratic: a hyperbola": ([1.0, 1.0], [1.0, -1.2], [0.0, 0.1], -0.3),
        "quadratic: a parabola": ([0.0, 1.0], [0.0, 0.0], [0.8, 0.0], -1.0),
    }.items():
        panels[title] = _quadratic(*values)
    axes = figure.subplots(1, len(panels))
    for one, (title, layer) in zip(axes, panels.items(), strict=True):
        with torch.no_grad():
            values = layer(plane).view(200, 200).numpy().round(9)
        one.contourf(grid, grid, values > 0, levels=[-0.5, 0.5, 1.5], colors=["#ffffff", "#cfe4f2"])
        one.contour(grid, grid, values, levels=[0.0], colors=BLUE, linewidths=1.8)
        style(one, title)
        one.set_aspect("equal")
        one.set_xticks([])
        one.set_yticks([])
    return figure


def _quadratic(r: list[float], g: list[float], b: list[float], constant: float) -> nn.Module:
    """One quadratic neuron with these weights; its linear factor g has the constant 1."""
    layer = qcore.QuadraticLinear(2, 1, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer["r"].weight.copy_(torch.tensor([r]))
        layer["g"].weight.copy_(torch.tensor([g]))
        layer["b"].weight.copy_(torch.tensor([b]))
        layer["b"].bias.fill_(constant)
    return layer


def pieces() -> Figure:
    """One input, one hidden layer of three neurons: a broken line, or pieces of parabolas."""
    figure = new_figure("", width=7.2, height=2.6, mark="")
    x = torch.linspace(-2, 2, 801).unsqueeze(1)
    axes = figure.subplots(1, 2, sharey=True)
    for one, neurons, colour in zip(axes, ("linear", "quadratic"), (ORANGE, BLUE), strict=True):
        torch.manual_seed(4)
        hidden = qcore.QuadraticLinear(1, 3, neuron=neurons)
        if neurons == "quadratic":
            for name in ("g", "b"):
                nn.init.normal_(hidden[name].weight, std=0.9)
        network = nn.Sequential(hidden, nn.ReLU(), nn.Linear(3, 1))
        with torch.no_grad():
            y = network(x).squeeze(1).numpy()
        one.plot(x.squeeze(1), (y - y.mean()) / np.ptp(y), color=colour, linewidth=1.8)
        style(one, f"three {neurons} neurons and ReLU", xlabel="x", ylabel="network")
    return figure


def relinear() -> Figure:
    """Where ReLinear starts, and what γ lets move."""
    figure = new_figure("", width=7.2, height=2.6, mark="")
    axes = figure.subplots()
    steps = np.arange(0, 400)
    for gamma, colour in ((0.0, MUTED), (0.01, GREEN), (0.1, BLUE), (1.0, ORANGE)):
        torch.manual_seed(0)
        layer = qcore.QuadraticLinear(8, 4)
        strategy = qcore.ReLinear(gamma=gamma)
        strategy.init_(layer)
        optimizer = strategy.attach(torch.optim.SGD(strategy.param_groups(layer, lr=0.02)))
        x = torch.randn(256, 8)
        target = (x[:, :4] * x[:, 4:]) + x[:, :4]
        sizes = []
        for _ in steps:
            loss = nn.functional.mse_loss(layer(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sizes.append(
                float(layer["g"].weight.detach().norm() + layer["b"].weight.detach().norm())
            )
        axes.plot(steps, sizes, color=colour, linewidth=1.8, label=f"γ = {gamma:g}")
    style(axes, "", xlabel="step", ylabel="size of the quadratic weights")
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, ncols=4)
    return figure


def spectrum() -> Figure:
    """The eigenvalues of a dense form, and of a sum of squares."""
    figure = new_figure("", width=7.2, height=2.4, mark="")
    axes = figure.subplots(1, 2)
    torch.manual_seed(0)
    heads = {
        "dense form: any symmetric matrix": qcore.QuadraticForm(16, 1),
        "low rank: a sum of 4 squares": qcore.LowRankForm(16, 1, rank=4),
    }
    for one, (title, head) in zip(axes, heads.items(), strict=True):
        values = analysis.spectrum(head).values[0]
        colours = [BLUE if value >= 0 else ORANGE for value in values]
        one.bar(range(1, 17), values, color=colours, width=0.7)
        one.axhline(0, color=INK, linewidth=0.6)
        style(one, title, xlabel="eigenvalue, by magnitude")
    return figure


def clipping() -> Figure:
    """Accuracy along γ as the table ``gamma`` has it on digits, by how gradients are clipped."""
    report = _report("gamma")
    cells = [cell for cell in report.cells if cell.panel == "digits32, factor gamma"]
    values = sorted({str(cell.axes["model"]) for cell in cells}, key=float)
    figure = new_figure("", width=7.2, height=2.9, mark=report.mark)
    axes = figure.subplots()
    ways = {
        "none": (GREEN, "not clipped"),
        "0.5 of steps": (BLUE, "clipped by ReLinear.clip_grad_norm_"),
        "0.5": (ORANGE, "clipped by torch.nn.utils.clip_grad_norm_"),
    }
    for way, (colour, words) in ways.items():
        run = [cell for cell in cells if cell.axes["clipping"] == way]
        run.sort(key=lambda cell: float(cell.axes["model"]))
        places = [values.index(str(cell.axes["model"])) for cell in run]
        _accuracies(axes, places, run, color=colour, marker="o", capsize=3, label=words)
        for place, cell in zip(places, run, strict=True):
            if cell.diverged:
                said = f"{cell.diverged} of {cell.trials}\ndiverged"
                beside = cell.interval95 is not None  # its bar, else below
                at = (place - 0.07, cell.mean) if beside else (place, (cell.mean or 15.0) - 4)
                align = ("right", "bottom") if beside else ("center", "top")
                axes.annotate(said, at, fontsize=8, color=colour, ha=align[0], va=align[1])
    style(axes, "", xlabel="γ", ylabel="test accuracy (%)")
    axes.set_xticks(range(len(values)), values)
    axes.set_xlim(-0.3, len(values) + 0.2)  # the mark stands beside the last point
    axes.set_ylim(0, 104)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower left")
    return figure


def _accuracies(
    axes: Axes, places: Sequence[float] | np.ndarray, cells: Sequence[CellReport], **look: Any
) -> None:
    """The means of cells at their places, with 95 % intervals: of those that have any."""
    means = np.array([np.nan if cell.mean is None else cell.mean for cell in cells])
    known = [cell.interval95 or (cell.mean or 0.0,) * 2 for cell in cells]
    low, high = np.array(known).clip(0, 100).T  # no accuracy is below 0 or above 100
    axes.errorbar(places, means, [means - low, high - means], markersize=4.5, **look)


def matched() -> Figure:
    """Each model of the table ``matched`` on MNIST, at the learning rate that validation chose."""
    report = _report("matched")
    cells = [cell for cell in report.cells if cell.axes["dataset"] == "mnist"]
    figure = draw("at_best", Evidence(report.model_copy(update={"cells": cells}), ()))
    if figure is None:
        raise LookupError("results/matched has no cells")
    return figure


def strategies() -> Figure:
    """Each way to train of the table ``strategies``."""
    return accuracy_by_model(_report("strategies"))


def scaling() -> Figure:
    """Accuracy of the table ``uci`` by how features are scaled, with and without linear terms."""
    report = _report("uci")
    datasets, scalings = report.panels, report.choices["scaling"]
    of_others = {n: v for n, v in report.combinations[0] if n != "scaling"}
    models = {"linear": (ORANGE, "linear"), "dense": (BLUE, "dense form")}
    models["dense-affine"] = (GREEN, "dense form of (x, 1)")
    figure = new_figure("", width=7.2, height=2.9, mark=report.mark)
    axes = figure.subplots(1, len(datasets), sharey=True)
    for one, dataset in zip(axes, datasets, strict=True):
        for offset, (model, (colour, words)) in zip(
            (-0.18, 0.0, 0.18), models.items(), strict=True
        ):
            found = {
                str(cell.axes["scaling"]): cell
                for cell in report.cells
                if (cell.panel, cell.axes["model"]) == (dataset, model)
                and of_others.items() <= cell.axes.items()
            }
            shown = [found[str(scaling)] for scaling in scalings]
            places = np.arange(len(shown)) + offset
            _accuracies(one, places, shown, color=colour, fmt="o", capsize=2, label=words)
        style(one, dataset)
        one.set_xticks(range(len(scalings)), scalings, rotation=40, ha="right")
    axes[0].set_ylabel("test accuracy (%)")
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        ncols=3,
        loc="outside lower center",
    )
    return figure


def rate() -> Figure:
    """Accuracy of the table ``mnist`` along the learning rate of a mean over a batch of 100."""
    report = _report("mnist")
    usual = dict(report.combinations[0])
    models = {"linear": (ORANGE, "linear"), "relu8000": (GREEN, "ReLU network")}
    models["dense"] = (BLUE, "dense form")
    figure = new_figure("", width=7.2, height=2.9, mark=report.mark)
    axes = figure.subplots()
    for model, (colour, words) in models.items():
        found = {
            float(cell.axes["lr"]) * (100 if cell.axes["reduction"] == "sum" else 1): cell
            for cell in report.cells
            if cell.axes["model"] == model
            and all(cell.axes[name] == usual[name] for name in ("pixels", "init_scale"))
        }
        rates = sorted(found)
        run = [found[rate] for rate in rates]
        _accuracies(axes, rates, run, color=colour, marker="o", capsize=3, label=words)
    style(axes, "", xlabel="learning rate", ylabel="test accuracy (%)")
    axes.set_xscale("log")
    axes.set_xticks(rates, [*map(str, rates[:-1]), "1\n(the sum)"])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="center right")
    return figure


def cifar() -> Figure:
    """Accuracy along ten epochs of CIFAR-10, a line a seed, from the trials of ``relinear``."""
    ways = {
        "normalised": (GREEN, "quadratic, normalised branches"),
        "resnet-wide": (ORANGE, "linear, as many parameters"),
        "gradients-1e-5": (BLUE, "quadratic, ReLinear as published"),
        "resnet": (MUTED, "linear, of the same widths"),
        "free": (PINK, "quadratic, no strategy"),
    }
    (report,) = (r for r in every_report() if (r.table, r.reduced) == ("relinear", "budget"))
    figure = new_figure("", width=7.2, height=3.6, mark=report.mark)
    axes = figure.subplots()
    for model, (colour, words) in ways.items():
        curves = [trial.history["test_accuracy"] for trial in trials("relinear", model=model)]
        epochs = np.arange(1, len(curves[0]) + 1)
        lines = axes.plot(epochs, np.transpose(curves), color=colour, linewidth=1.3)
        lines[0].set_label(words)
    style(axes, "", xlabel="epochs", ylabel="test accuracy (%)")
    axes.set_ylim(30, 97)  # the mark stands above the lines
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right")
    return figure


def descent() -> Figure:
    """Margin and test accuracy of rank one under gradient descent, from trials of ``margin``."""
    panels = {  # each with the range of accuracies and of margins, past the steep rise
        "mnist": ("MNIST", (80, 92), (0.2, 0.25)),
        "fmnist": ("Fashion-MNIST, behind a convolution", (40, 80), (0, 0.25)),
    }
    figure = new_figure("", width=7.2, height=2.9, mark=_report("margin").mark)
    for place, (dataset, (words, accuracies, margins)) in enumerate(panels.items()):
        axes = figure.add_subplot(1, 2, place + 1)
        other = axes.twinx()
        style(axes, words, xlabel="steps of full-batch gradient descent")
        style(other, "")
        axes.set_ylim(accuracies)
        other.set_ylim(margins)
        axes.set_xlim(100, 600)
        run = {"training": "gd", "model": "rank1", "dataset": dataset, "init_scale": 1.0}
        for trial in trials("margin", **run):
            axes.plot(trial.step, trial.history["test_accuracy"], color=BLUE, linewidth=1.3)
            other.plot(trial.step, trial.history["margin"], color=ORANGE, linewidth=1.3)
        for sides, side, colour in ((axes, "left", BLUE), (other, "right", ORANGE)):
            sides.spines[side].set_visible(True)
            sides.spines[side].set_color(colour)
            sides.tick_params(axis="y", colors=colour)
        if place == 0:
            axes.set_ylabel("test accuracy (%)", fontsize=8.5, color=BLUE)
        else:
            other.set_ylabel("margin Δμ", fontsize=8.5, color=ORANGE)
    return figure


def collapse() -> Figure:
    """How many trials of each network of ``collapse`` learned, by depth."""
    ways = {
        "linear": "linear",
        "linear-clipped": "linear, clipped",
        "linear-normalised": "linear, normalised",
        "linear-normalised-clipped": "linear, normalised and clipped",
        "conventional": "quadratic",
        "relinear-gamma": "quadratic, ReLinear",
        "clipped": "quadratic, clipped",
        "relinear-gamma-clipped": "quadratic, ReLinear and clipped by γ",
        "conventional-normalised": "quadratic, normalised branches",
        "clipped-normalised": "quadratic, normalised branches and clipped",
    }
    report = _report("collapse")
    depths = sorted({float(cell.axes["depth"]) for cell in report.cells})
    shades = np.linspace(0.35, 1.0, len(depths))
    figure = new_figure("", width=7.2, height=3.4, mark=report.mark)
    axes = figure.subplots()
    for row, model in enumerate(ways):
        cells = [cell for cell in report.cells if cell.axes["model"] == model]
        start = 0
        for depth, shade in zip(depths, shades, strict=True):
            at_depth = [cell for cell in cells if cell.axes["depth"] == depth]
            learned = round(sum((cell.mean or 0.0) / 100 * cell.trials for cell in at_depth))
            colour = ORANGE if model.startswith("linear") else BLUE
            axes.barh(row, learned, left=start, color=colour, alpha=shade, edgecolor="white")
            if learned >= 10:
                place = start + learned / 2
                axes.text(place, row, f"{depth:g}", ha="center", va="center", fontsize=8, color=INK)
            start += learned
        axes.text(start + 3, row, str(start), va="center", fontsize=8, color=INK)
    style(axes, "", xlabel="trials of 240 that learned; in the bars, their depth")
    axes.set_yticks(range(len(ways)), ways.values())
    axes.invert_yaxis()
    axes.set_xlim(0, 240)
    return figure


def trials(table: str, **axes: str | float) -> list[Result]:
    """The trials of a table in `results/unfinished`, those with these axes, by seed."""
    return [trial for trial in _trials(table) if axes.items() <= trial.axes.items()]


@cache
def _trials(table: str) -> list[Result]:
    paths = sorted((RESULTS / "unfinished" / table).glob("*/result.json"))
    found = [Result.model_validate_json(path.read_bytes()) for path in paths]
    return sorted(found, key=lambda trial: trial.seed)


@cache
def reports() -> list[Report]:
    """The reports of ``results/``, in the order of the tables."""
    return read_reports(RESULTS)


@cache
def every_report() -> list[Report]:
    """All reports of ``results/``, of the full tables and of those on a budget."""
    paths = sorted(RESULTS.glob("*/report*.json"))
    return [Report.model_validate_json(path.read_bytes()) for path in paths]


def _report(table: str) -> Report:
    (report,) = (report for report in reports() if report.table == table)
    return report


FIGURES: dict[str, Callable[[], Figure]] = {
    "neuron": neuron,
    "pieces": pieces,
    "relinear": relinear,
    "spectrum": spectrum,
    "clipping": clipping,
    "matched": matched,
    "rate": rate,
    "scaling": scaling,
    "strategies": strategies,
    "cifar": cifar,
    "collapse": collapse,
    "descent": descent,
}
"""Every figure by name."""
