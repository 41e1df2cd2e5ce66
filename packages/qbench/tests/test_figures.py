"""What the figures draw, compared with the report and with the formula."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.text import Text

from qbench.architecture import ModelSpec
from qbench.report.drawing import key, legend_below, new_figure, save_figures, to_svg
from qbench.report.figures import accuracy_by_model, figures_of, learning_curves
from qbench.report.numbers import CellReport, Report
from qbench.report.regions import decision_regions, margin_curve
from qbench.trial import Result

MODELS = ("linear", "dense", "rank1", "dense-affine")
Made = tuple[Report, list[Result]]


@pytest.fixture(scope="module")
def uci(run_table: Callable[..., Made]) -> Made:
    """Two datasets under two scalings: of raw Wine, rank1 diverges."""
    return run_table(
        "uci",
        3,
        only={"dataset": ("iris", "wine"), "model": MODELS},
        choices={"scaling": ("maxabs", "raw")},
        reduced="quick",
    )


@pytest.fixture(scope="module")
def xor(run_table: Callable[..., Made]) -> Made:
    return run_table("xor", 1, choices={"lr": (0.1, 0.3)})


@pytest.fixture(autouse=True)
def same_settings() -> Iterator[None]:
    """No figure may change matplotlib's settings."""
    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before


def under(made: Made, scaling: str) -> Made:
    """The same report as if only this scaling had been run."""
    report, results = made
    cells = [cell for cell in report.cells if cell.axes["scaling"] == scaling]
    choices = {**report.choices, "scaling": [scaling]}
    return report.model_copy(update={"cells": cells, "choices": choices}), results


def panel(figure: Figure, title: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_title(loc="left") == title)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def drawn_intervals(axes: Axes) -> set[tuple[float, float, float]]:
    """Mean and interval of every error bar, rounded."""
    found = set()
    for container in axes.containers:
        assert isinstance(container, ErrorbarContainer)
        mean = container.lines[0].get_xdata()[0]
        ((low, _), (high, _)) = container.lines[2][0].get_segments()[0]
        found.add((round(mean, 6), round(low, 6), round(high, 6)))
    return found


def interval(cell: CellReport) -> tuple[float, float, float]:
    """The mean and the ends of the interval, within 0 and 100 %."""
    assert cell.mean is not None
    assert cell.interval95 is not None
    low, high = cell.interval95
    return (round(cell.mean, 6), round(max(low, 0.0), 6), round(min(high, 100.0), 6))


def test_error_bars_are_the_report_s_intervals(uci: Made) -> None:
    report, _ = uci
    figure = accuracy_by_model(report)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["iris", "wine"]
    for dataset in ("iris", "wine"):
        cells = [c for c in report.cells if c.axes["dataset"] == dataset and c.mean is not None]
        assert drawn_intervals(panel(figure, dataset)) == {interval(cell) for cell in cells}
        assert len(panel(figure, dataset).containers) == len(cells)


def test_an_interval_is_not_drawn_beyond_what_an_accuracy_can_be(uci: Made) -> None:
    """There it would cross how many trials diverged, which stands left of 0."""
    report, _ = uci
    wide = {"mean": 40.0, "interval95": (-30.0, 110.0), "diverged": 1}
    cells = [cell.model_copy(update=wide) for cell in report.cells]
    figure = accuracy_by_model(report.model_copy(update={"cells": cells}))
    for axes in figure.axes:
        assert drawn_intervals(axes) == {(40.0, 0.0, 100.0)}
        left, right = axes.get_xlim()
        assert left < -40.0
        assert right == 102.0


def test_every_diverged_cell_is_marked(uci: Made) -> None:
    report, _ = uci
    lost = [cell for cell in report.cells if cell.diverged]
    assert lost
    marks = [text for text in texts(accuracy_by_model(report)) if "of 3 diverged" in text]
    assert sorted(marks) == sorted(f"✕ {cell.diverged} of 3 diverged" for cell in lost)


def test_the_control_is_a_line_for_one_scaling_and_a_tick_for_several(uci: Made) -> None:
    report, _ = under(uci, "maxabs")
    control = next(c for c in report.cells if list(c.axes.values())[:2] == ["wine", "linear"])
    lines = panel(accuracy_by_model(report), "wine").get_lines()
    assert any(list(line.get_xdata()) == [control.mean, control.mean] for line in lines)
    several = accuracy_by_model(uci[0])
    ticks = [c for c in panel(several, "wine").collections if len(c.get_paths()) == 3]
    assert [path.vertices[0, 0] for path in ticks[0].get_paths()] == [control.mean] * 3
    assert {"scaling = maxabs", "scaling = raw", "control: linear"} <= set(texts(several))


def test_families_have_their_own_colours(uci: Made) -> None:
    figure = accuracy_by_model(under(uci, "maxabs")[0])
    assert {"linear", "dense form", "low-rank form", "affine form"} <= set(texts(figure))
    colours = [c.lines[0].get_color() for c in panel(figure, "iris").containers]
    assert len(set(colours)) == len(MODELS)


def test_a_model_without_results_is_named(uci: Made) -> None:
    report, _ = uci
    cells = [c for c in report.cells if list(c.axes.values())[:2] != ["iris", "dense"]]
    assert "not run" in texts(accuracy_by_model(report.model_copy(update={"cells": cells})))


@pytest.mark.parametrize("metric", ["train_loss", "test_accuracy"])
def test_curves_are_means_over_seeds_with_bands(uci: Made, metric: str) -> None:
    report, results = under(uci, "maxabs")
    axes = panel(learning_curves(report, results, metric), "wine")
    assert [line.get_label() for line in axes.get_lines()] == list(MODELS)
    axes_of = {"dataset": "wine", "model": "dense", "scaling": "maxabs"}.items()
    seeds = np.array([r.history[metric] for r in results if axes_of <= r.axes.items()])
    assert seeds.shape[0] == 3
    np.testing.assert_allclose(axes.get_lines()[1].get_ydata(), seeds.mean(0))
    bands = [c for c in axes.collections if isinstance(c, FillBetweenPolyCollection)]
    assert len(bands) == len(MODELS)
    last = bands[1].get_paths()[0].vertices
    edge = last[last[:, 0] == 100.0][:, 1]
    spread = seeds.std(0, ddof=1)[-1]
    np.testing.assert_allclose((edge.min(), edge.max()), seeds.mean(0)[-1] + [-spread, spread])


def test_curves_name_the_models_that_diverged(uci: Made) -> None:
    report, results = under(uci, "raw")
    figure = learning_curves(report, results, "train_loss")
    shown = " ".join(" ".join(texts(figure)).split())
    assert "✕ diverged: 3 of 3 seeds of rank1" in shown
    crosses = [line for line in panel(figure, "wine").get_lines() if line.get_marker() == "x"]
    assert len(crosses) == 1


def test_a_dozen_networks_of_a_family_are_told_apart(uci: Made) -> None:
    report, (trial, *_) = under(uci, "maxabs")
    square = ModelSpec(kind="mlp", hidden=(8,), activation="square")
    models = {f"network{i}": square for i in range(12)} | {"linear": report.models["linear"]}
    results = [trial.model_copy(update={"axes": trial.axes | {"model": model}}) for model in models]
    figure = learning_curves(report.model_copy(update={"models": models}), results, "test_loss")
    looks = r'style="(fill: none;[^"]* stroke-width: (?:1\.5|2)(?:;[^"]*)?)"'
    lines = re.findall(looks, to_svg(figure))
    assert len(set(lines)) == len(models) == 13
    assert {lines.count(line) for line in lines} == {2}  # in the panel and in the legend


# of rank two too: at rank one, the squares and the absolute values decide alike
@pytest.mark.parametrize("extra", [[], [[0.6, -0.8], [-0.3, 1.1]]], ids=["rank1", "rank2"])
def test_regions_are_what_the_formula_says(xor: Made, extra: list[list[float]]) -> None:
    _, results = xor
    snapshots = {
        step: {"factors": [first + extra[:1], second + extra[1:]]}
        for step, parameters in results[0].snapshots.items()
        for first, second in [parameters["factors"]]
    }
    resolved = {**results[0].resolved, "model": {"kind": "low_rank", "rank": 1 + len(extra) // 2}}
    result = results[0].model_copy(update={"snapshots": snapshots, "resolved": resolved})
    figure = decision_regions([result])
    assert len(figure.axes) == 5
    for axes, (step, parameters) in zip(figure.axes, result.snapshots.items(), strict=True):
        margin = result.history["margin"][result.step.index(step)]
        assert axes.get_title(loc="left") == f"step {step}, Δμ = {margin:.2f}"
        first, second = (np.array(rows) for rows in parameters["factors"])
        regions = next(
            c for c in axes.collections if isinstance(c, QuadContourSet) and c.filled
        ).get_paths()
        for x in [(1.7, 0.3), (-0.4, 1.9), (-1.5, -1.2), (0.2, -0.9), (1.1, -1.9), (-1.9, 1.2)]:
            outputs = [float(((rows @ np.array(x)) ** 2).sum()) for rows in (first, second)]
            assert [path.contains_point(x) for path in regions] == [
                outputs[0] > outputs[1],
                outputs[1] > outputs[0],
            ]
        points = np.concatenate([np.array(line.get_xydata()) for line in axes.get_lines()])
        assert sorted(map(tuple, points)) == [(-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0)]


def test_regions_need_snapshots(uci: Made) -> None:
    with pytest.raises(ValueError, match="names the steps to record them at in `snapshots`"):
        decision_regions(uci[1])


def test_the_margin_has_a_line_for_each_step_size(xor: Made) -> None:
    _, results = xor
    figure = margin_curve(results)
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    for result in results:
        line = lines[f"lr = {result.axes['lr']:g}"]
        assert tuple(line.get_ydata()) == result.history["margin"]
    dots = [line for line in figure.axes[0].get_lines() if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in dots] == [[0, 12, 36, 84, 396]] * 2


def test_a_legend_has_as_many_columns_as_there_is_room_for() -> None:
    heights = []
    for name, columns in (("short", 4), ("a value of a choice with a long name", 2)):
        figure = new_figure("", width=6.0, height=3.0, mark="")
        axes = figure.add_subplot()
        legend_below(figure, [key("o", f"{name} {n}") for n in range(8)], columns=4)
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width
        assert len({round(text.get_window_extent().x0) for text in legend.texts}) == columns
        heights.append(axes.get_window_extent().height)
    assert heights[1] == pytest.approx(heights[0], rel=0.03)  # the panel has lost nothing to it


def test_figures_follow_what_the_report_holds(uci: Made, xor: Made) -> None:
    curves = {"train_loss_curves", "test_accuracy_curves"}
    assert set(figures_of(*uci)) == {"accuracy_by_model", *curves}
    assert set(figures_of(*xor)) == {"decision_regions", "margin_curve", "train_loss_curves"}


@pytest.mark.parametrize(
    ("update", "mark"),
    [
        ({"reduced": "quick", "expected": 9, "recorded": 9}, "REDUCED RUN"),
        ({"reduced": None, "expected": 9, "recorded": 8}, "PARTIAL"),
        ({"reduced": "quick", "expected": 9, "recorded": 8}, "REDUCED RUN · PARTIAL"),
        ({"reduced": None, "expected": 9, "recorded": 9}, None),
    ],
    ids=["reduced", "partial", "both", "whole"],
)
def test_every_figure_carries_the_mark(uci: Made, xor: Made, update: dict, mark: str) -> None:
    for report, results in (uci, xor):
        for figure in figures_of(report.model_copy(update=update), results).values():
            marks = [t for t in texts(figure) if "REDUCED" in t or "PARTIAL" in t]
            assert marks == ([mark] if mark else [])


def test_every_figure_is_described(uci: Made, xor: Made) -> None:
    for made in (uci, xor):
        for figure in figures_of(*made).values():
            assert len(figure.get_label()) > 40


def test_the_same_figures_give_the_same_bytes(xor: Made, tmp_path: Path) -> None:
    figures = figures_of(*xor)
    drawn = save_figures(figures, tmp_path / "a")
    assert save_figures(figures_of(*xor), tmp_path / "b") == drawn
    paths = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert paths == sorted(f"{n}.{end}" for n in figures for end in ("png", "svg"))
    for name in paths:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for name, svg in drawn.items():
        assert (tmp_path / "a" / f"{name}.svg").read_text(encoding="utf-8") == svg
        assert "<dc:date>" not in svg


def test_saving_twice_changes_nothing(xor: Made) -> None:
    figure = margin_curve(xor[1])
    assert to_svg(figure) == to_svg(figure)


def test_names_are_never_read_as_formulas_or_tags(uci: Made) -> None:
    report, _ = under(uci, "maxabs")
    hostile = "$\\broken{ <b>"
    cells = [
        cell.model_copy(update={"axes": {**cell.axes, "model": hostile}})
        if cell.axes["model"] == "rank1"
        else cell
        for cell in report.cells
    ]
    models = {hostile if name == "rank1" else name: spec for name, spec in report.models.items()}
    svg = to_svg(accuracy_by_model(report.model_copy(update={"cells": cells, "models": models})))
    assert "$\\broken{ &lt;b&gt;" in svg
    assert not re.search(r"<b>", svg)
