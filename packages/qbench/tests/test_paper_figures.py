"""What the papers' figures draw, compared with numbers worked out by hand."""

import inspect
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import safetensors.numpy
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation, Text

from qbench.errors import UserError
from qbench.report.drawing import to_svg
from qbench.report.evidence import Evidence
from qbench.report.figures import figures_of
from qbench.report.files import report_of, write_report
from qbench.report.numbers import build_report
from qbench.report.page import inline_svg
from qbench.report.paper_figures import FIGURES, draw
from qbench.report.paper_figures.steps_to_accuracy import levels_of, ratio_of
from qbench.report.wording import format_count
from qbench.table import Reduction, Table, load_table, parse_table, table_names
from qbench.trial import Environment, Result, RunFolder

HEAD = """
id: toy
version: 1
title: A toy
paper: arXiv 0000.00000
shows: Figure 1
recipe: {epochs: 10}
seeds: 3
quick: {seeds: 2, recipe: {epochs: 2}}
"""
FORMS = """
main_metric: test_accuracy
control: linear
grid:
  dataset: [mnist, fmnist]
  model:
    linear: {kind: linear}
    rank1: {kind: low_rank, rank: 1}
    rank2: {kind: low_rank, rank: 2}
    rank2-affine: {kind: low_rank, rank: 2, affine: true}
figures: [rank_curve]
unstated:
  init_scale: {default: 1.0, also: [0.1], why: it is not stated}
"""
SPECTRA = """
main_metric: test_accuracy
grid:
  dataset:
    digits: {}
    fmnist: {model: {convolution: {channels: 8, kernel: 5, stride: 3}}}
  model: {dense: {kind: dense}}
figures: [retained, eigenvectors]
"""
CURVES = """
main_metric: margin
also: [margin_correlation]
grid:
  dataset: [mnist, fmnist]
  model: {rank1: {kind: low_rank, rank: 1}}
figures: [margin_and_accuracy]
"""
LOSSES = """
main_metric: test_accuracy
control: λ=0
grid:
  dataset: [mnist]
  model:
    λ=0: {kind: low_rank, rank: 1}
    λ=1: {kind: low_rank, rank: 1, recipe: {margin_weight: 1.0}}
figures: [steps_to_accuracy]
"""
SIDES = """
main_metric: equality_gap
grid:
  dataset: [mnist]
  model: {rank1: {kind: low_rank, rank: 1}}
figures: [equality]
"""
FACTORS = """
main_metric: test_accuracy
also: [validation_accuracy]
control: "0"
grid:
  dataset: [cifar10]
  factor:
    alpha: {recipe: {strategy: {vary: alpha_g}}}
    beta: {recipe: {strategy: {vary: beta_g}}}
  model:
    "0": {kind: zoo, name: qresnet20, recipe: {strategy: {value: 0.0}}}
    "0.1": {kind: zoo, name: qresnet20, recipe: {strategy: {value: 0.1}}}
    "0.9": {kind: zoo, name: qresnet20, recipe: {strategy: {value: 0.9}}}
    "1": {kind: zoo, name: qresnet20, recipe: {strategy: {value: 1.0}}}
figures: [along_factor]
"""
RATES = """
main_metric: test_accuracy
also: [validation_accuracy]
grid:
  dataset: [mnist, fmnist]
  lr: [0.01, 0.1]
  model:
    linear: {kind: linear}
    rank1: {kind: low_rank, rank: 1}
    relu: {kind: mlp, hidden: [1], as_large_as: {kind: low_rank, rank: 1}}
figures: [at_best]
"""
PHASES = """
main_metric: learned
grid:
  dataset: [digits]
  depth: {2: {model: {hidden: [4]}}, 16: {model: {hidden: [4, 4]}}}
  lr: [0.1, 0.01]
  model:
    linear: {kind: mlp, hidden: [4]}
    quadratic: {kind: mlp, hidden: [4], neuron: quadratic}
figures: [phase_diagram]
"""
COUNTS = """
main_metric: dimension
also: [pieces]
experiment: expressivity
grid:
  dataset: [line, space]
  widths: {"4": {model: {hidden: [4]}}, "8": {model: {hidden: [8]}}}
  model:
    relu: {kind: mlp, hidden: [4]}
    squared: {kind: mlp, hidden: [4], activation: square}
figures: [counts]
"""

Values = Mapping[str, Sequence[float]]


def table(text: str) -> Table:
    return parse_table(HEAD + text, "toy.yaml")


def trial(
    made: Table,
    axes: Mapping[str, str | float],
    seed: int,
    history: Values,
    *,
    step: Sequence[int] = (),
    diverged_at: int | None = None,
    reduced: Reduction | None = None,
) -> Result:
    """A trial of the cell with these axes that recorded this history."""
    choices = {name: choice.values for name, choice in made.unstated.items()}
    cell = next(
        cell
        for cell in made.cells(choices=choices, reduced=reduced)
        if {**made.defaults, **axes}.items() <= cell.axes.items()
    )
    return Result.model_validate(
        {
            "key": cell.trial_key(seed),
            "table": made.id,
            "version": made.version,
            "axes": cell.axes,
            "seed": seed,
            "resolved": cell.resolved,
            "reduced": reduced,
            "status": "finished" if diverged_at is None else "diverged",
            "diverged_at": diverged_at,
            "parameters": 12,
            "multiply_adds": 12,
            "metrics": {
                name: values[-1] if diverged_at is None else None
                for name, values in history.items()
            },
            "step": tuple(step) or tuple(range(max(map(len, history.values()), default=0))),
            "time": (),
            "weights": "0" * 64,
            "history": {name: tuple(values) for name, values in history.items()},
            "snapshots": {},
            "environment": Environment(
                commit="c0ffee",
                versions={"torch": "2"},
                hardware={"cpu": "a cpu"},
                threads=1,
                device="cpu",
                started=1000.0,
                seconds=2.0,
                block=(0, 1),
            ),
        }
    )


def ends(made: Table, model: str, values: Sequence[float | None], **axes: Any) -> list[Result]:
    """One trial per seed that ends at this test accuracy; None for a diverged one."""
    place = {"dataset": "mnist", "model": model, **axes}
    return [
        trial(
            made,
            place,
            seed,
            {"test_accuracy": (10.0, value or 5.0)},
            diverged_at=None if value is not None else 7,
        )
        for seed, value in enumerate(values)
    ]


def evidence(
    made: Table, results: Sequence[Result], folder: RunFolder | None = None, **update: Any
) -> Evidence:
    every = {name: choice.values for name, choice in made.unstated.items()}
    reduced = next((result.reduced for result in results if result.reduced), None)
    report = build_report(made, list(made.cells(choices=every, reduced=reduced)), results)
    return Evidence(report.model_copy(update=update), results, folder)


def stored(
    made: Table, folder: RunFolder, arrays: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[Result]:
    """Trials of the only model, by dataset and seed, that left these arrays beside them."""
    results = []
    for dataset, seeds in arrays.items():
        for seed, found in enumerate(seeds):
            result = trial(made, {"dataset": dataset}, seed, {"test_accuracy": (10.0, 90.0)})
            files = {
                "arrays.safetensors": safetensors.numpy.save(
                    {name: np.ascontiguousarray(value) for name, value in found.items()}
                )
            }
            folder.write(result, files if found else None)
            results.append(result)
    return list(folder.results(made.cells()))


def spectrum_arrays(features: int, classes: int = 3, **changes: Any) -> dict[str, Any]:
    """What the probe leaves: averages of ones in a row of their own, eigenvectors against them."""
    average = np.zeros((classes, features), dtype=np.float32)
    for k in range(classes):
        average[k, 8 * k : 8 * (k + 1)] = 1.0
    leading = -average / np.sqrt(8.0, dtype=np.float32)
    leading[:, -1] = 0.5
    return {
        "retained": np.array([1, 3, features]),
        "retained_accuracy": np.array([60.0, 80.0, 90.0]),
        "average": average,
        "leading": leading,
        "similarity": np.array([[0.9, 0.2, 0.1], [0.3, 0.8, 0.2], [0.1, 0.4, 0.7]]),
    } | changes


def panel(figure: Figure, title: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_title(loc="left") == title)


def twin(axes: Axes) -> Axes:
    """The axes on the right that lie over these."""
    return next(a for a in axes.get_shared_x_axes().get_siblings(axes) if a is not axes)


def texts(artist: Figure | Axes) -> list[str]:
    return [text.get_text() for text in artist.findobj(Text) if text.get_text()]


def line(axes: Axes, label: str) -> Line2D:
    return next(found for found in axes.get_lines() if found.get_label() == label)


def crosses(axes: Axes) -> list[tuple[float, float]]:
    found = [one for one in axes.get_lines() if one.get_marker() == "x"]
    return [point for one in found for point in zip(one.get_xdata(), one.get_ydata(), strict=True)]


def level(axes: Axes) -> list[float]:
    """Where horizontal lines over the whole width stand."""
    wide = [one for one in axes.get_lines() if list(one.get_xdata()) == [0, 1]]
    return [float(one.get_ydata()[0]) for one in wide]


def must(figure: Figure | None) -> Figure:
    assert figure is not None
    return figure


@pytest.fixture(autouse=True)
def same_settings() -> Iterator[None]:
    """No figure may change matplotlib's settings."""
    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before


# --- the list of figures ---------------------------------------------------------------------


def test_every_name_is_a_function_that_names_its_source() -> None:
    for name in FIGURES:
        function = getattr(import_module(f"qbench.report.paper_figures.{name}"), name)
        assert list(inspect.signature(function).parameters) == ["evidence"]
        assert "Source: " in (function.__doc__ or ""), name


def test_every_figure_is_asked_for_by_a_table() -> None:
    asked = {name for table_id in table_names() for name in load_table(table_id).figures}
    assert asked == set(FIGURES)


def test_an_unknown_figure_names_the_near_one() -> None:
    with pytest.raises(UserError) as caught:
        table(FORMS.replace("rank_curve", "rank_curv"))
    assert str(caught.value) == (
        "toy.yaml: unknown figure 'rank_curv': did you mean 'rank_curve'? "
        f"Allowed: {', '.join(FIGURES)}"
    )


def test_tables_are_checked_without_drawing_libraries() -> None:
    code = (
        "import sys, qbench.table as t; t.load_table('rank'); "
        "print([m for m in ('matplotlib', 'torch', 'numpy') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_nothing_to_draw_is_no_figure() -> None:
    made = table(SIDES.replace("equality_gap", "train_loss"))
    results = [trial(made, {}, seed, {"train_loss": (1.0, 0.5)}) for seed in range(2)]
    for name in set(FIGURES) - {"along_factor", "rank_curve"}:
        assert draw(name, evidence(made, results)) is None, name
    assert draw("at_best", evidence(made, results)) is None
    plain = table(FORMS)
    assert draw("rank_curve", evidence(plain, ends(plain, "linear", [90.0]))) is None


# --- accuracy against rank -------------------------------------------------------------------


def error_bars(axes: Axes, label: str) -> dict[float, tuple[float, float, float]]:
    """Mean and both ends of the bar at each x of a line."""
    container = next(found for found in axes.containers if found.get_label() == label)
    data, _, (bars,) = container.lines
    return {
        round(float(x), 6): (float(y), float(low), float(high))
        for x, y, ((_, low), (_, high)) in zip(
            data.get_xdata(), data.get_ydata(), bars.get_segments(), strict=True
        )
    }


def test_the_rank_curve_has_means_and_standard_deviations() -> None:
    made = table(FORMS)
    results = [
        *ends(made, "linear", [89.0, 91.0]),
        *ends(made, "rank1", [92.0, 94.0, 96.0]),
        *ends(made, "rank2", [97.0]),
        *ends(made, "rank2-affine", [98.0, 98.0]),
        *ends(made, "rank1", [20.0], init_scale=0.1),
    ]
    figure = must(draw("rank_curve", evidence(made, results)))
    axes = panel(figure, "mnist")
    # a standard deviation of 2 over 92, 94, 96; none of a single seed; two families stand 0.1 apart
    assert error_bars(axes, "low-rank form") == {0.95: (94.0, 92.0, 96.0), 1.95: (97.0, 97.0, 97.0)}
    assert error_bars(axes, "affine form") == {2.05: (98.0, 98.0, 98.0)}
    assert level(axes) == [90.0]
    band = next(p for p in axes.patches if isinstance(p, Rectangle))
    assert band.get_y() == pytest.approx(90.0 - math.sqrt(2))
    assert band.get_height() == pytest.approx(2 * math.sqrt(2))
    assert list(axes.get_xticks()) == [1, 2]
    assert figure.get_label() == (
        "Test accuracy (%) against the rank on mnist (for init_scale = 1): mean ± one standard "
        "deviation over the seeds. mnist: low-rank form 94.0 at rank 1, 97.0 at rank 2; affine "
        "form 98.0 at rank 2; linear 90.0."
    )


def test_what_is_as_large_as_a_rank_stands_at_it() -> None:
    control = "    relu: {kind: mlp, hidden: [1], as_large_as: {kind: low_rank, rank: 2}}\n"
    made = table(FORMS.replace("figures: [rank_curve]", control + "figures: [rank_curve]"))
    results = [*ends(made, "rank1", [92.0]), *ends(made, "relu", [80.0])]
    figure = must(draw("rank_curve", evidence(made, results)))
    assert error_bars(panel(figure, "mnist"), "linear network") == {2.05: (80.0, 80.0, 80.0)}
    assert "linear network, as many parameters" in texts(figure)
    # alone it is no curve against the rank
    assert draw("rank_curve", evidence(made, ends(made, "relu", [80.0]))) is None


def test_the_rank_curve_marks_what_diverged() -> None:
    made = table(FORMS)
    results = [
        *ends(made, "rank1", [90.0, None]),
        *ends(made, "rank2", [None, None]),
        *ends(made, "rank1", [80.0], dataset="fmnist"),
    ]
    figure = must(draw("rank_curve", evidence(made, results)))
    axes = panel(figure, "mnist")
    assert error_bars(axes, "low-rank form") == {1.0: (90.0, 90.0, 90.0)}
    assert [x for x, _ in crosses(axes)] == [1.0, 2.0]
    assert "✕ diverged: 1 of 2 seeds of rank1; 2 of 2 seeds of rank2" in texts(axes)
    assert "diverged" in texts(figure.legends[0].figure)
    assert "90.0 (1 of 2 diverged) at rank 1, – (2 of 2 diverged) at rank 2" in figure.get_label()
    assert crosses(panel(figure, "fmnist")) == []


# --- what eigenvectors keep, and how they look -----------------------------------------------


def test_retained_accuracy_is_a_mean_with_a_band_and_its_end(tmp_path: Path) -> None:
    made = table(SPECTRA)
    folder = RunFolder(tmp_path, made, create=True)
    other = {"retained_accuracy": np.array([64.0, 86.0, 92.0])}
    arrays = {
        "digits": [spectrum_arrays(64), spectrum_arrays(64, **other), {}],
        "fmnist": [spectrum_arrays(512)],
    }
    results = stored(made, folder, arrays)
    figure = must(draw("retained", evidence(made, results, folder)))
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    drawn = line(axes, "digits: dense")
    assert list(drawn.get_xdata()) == [1, 3, 64]
    assert list(drawn.get_ydata()) == [62.0, 83.0, 91.0]
    assert list(line(axes, "fmnist: dense").get_ydata()) == [60.0, 80.0, 90.0]
    assert level(axes) == [91.0, 90.0]
    # one band alone: a single seed has none
    (band,) = (c for c in axes.collections if isinstance(c, FillBetweenPolyCollection))
    at_3 = [y for x, y in band.get_paths()[0].vertices if x == 3]
    assert (min(at_3), max(at_3)) == pytest.approx((83 - math.sqrt(18), 83 + math.sqrt(18)))
    assert "digits: dense has 62.0 with 1, 83.0 with 3, and 91.0 with all 64" in figure.get_label()


def test_eigenvectors_are_images_with_the_sign_of_their_average(tmp_path: Path) -> None:
    made = table(SPECTRA)
    folder = RunFolder(tmp_path, made, create=True)
    found = spectrum_arrays(64)
    results = stored(made, folder, {"digits": [found]})
    figure = must(draw("eigenvectors", evidence(made, results, folder)))
    images = [axes.images[0] for axes in figure.axes]
    assert [image.cmap.name for image in images] == ["Greys", "RdBu_r"] * 3
    for k in range(3):
        above, below = images[2 * k], images[2 * k + 1]
        np.testing.assert_array_equal(above.get_array(), found["average"][k].reshape(8, 8))
        np.testing.assert_array_equal(below.get_array(), -found["leading"][k].reshape(8, 8))
        low, high = below.get_clim()
        assert low == -high == -np.abs(found["leading"][k]).max()
    assert [axes.get_xlabel() for axes in figure.axes[1::2]] == ["0.90", "0.80", "0.70"]
    assert [axes.get_title() for axes in figure.axes[::2]] == ["class 0", "class 1", "class 2"]
    assert (
        "digits: dense, seed 0: 0.90 for class 0, 0.80 for class 1, 0.70 for class 2; "
        "with the averages of the other classes 0.22 on average" in figure.get_label()
    )


def test_a_class_that_was_never_predicted_has_no_average(tmp_path: Path) -> None:
    made = table(SPECTRA)
    folder = RunFolder(tmp_path, made, create=True)
    found = spectrum_arrays(64)
    found["average"][1] = np.nan
    found["similarity"][:, 1] = np.nan
    results = stored(made, folder, {"digits": [found]})
    figure = must(draw("eigenvectors", evidence(made, results, folder)))
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 0, 1, 1, 1]
    assert figure.axes[3].get_xlabel() == "not predicted"
    assert "0.90 for class 0, 0.70 for class 2" in figure.get_label()
    to_svg(figure)


def test_features_that_are_no_pixels_have_a_matrix_instead(tmp_path: Path) -> None:
    made = table(SPECTRA)
    folder = RunFolder(tmp_path, made, create=True)
    similarity = np.array([[0.9, 0.2, np.nan], [0.3, 0.8, np.nan], [0.1, 0.4, np.nan]])
    results = stored(made, folder, {"fmnist": [{}, spectrum_arrays(512, similarity=similarity)]})
    figure = must(draw("eigenvectors", evidence(made, results, folder)))
    assert "fmnist: dense, seed 1: |cosine| of each pair" in texts(figure)
    axes = figure.axes[0]
    mesh = next(c for c in axes.collections if isinstance(c, QuadMesh))
    np.testing.assert_allclose(np.ma.filled(mesh.get_array(), np.nan), similarity)
    assert mesh.get_clim() == (0.0, 1.0)
    placed = {
        (int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in axes.texts
    }
    assert placed[0, 1] == "0.20"
    assert placed[1, 0] == "0.30"
    assert placed[2, 2] == "–"


def test_figures_without_any_finished_trial_are_left_out(tmp_path: Path) -> None:
    made = table(SPECTRA)
    folder = RunFolder(tmp_path, made, create=True)
    lost = [trial(made, {"dataset": "digits"}, seed, {}, diverged_at=0) for seed in range(2)]
    for result in lost:
        folder.write(result)
    for name in ("retained", "eigenvectors"):
        assert draw(name, evidence(made, lost, folder)) is None
    results = lost + stored(made, folder, {"fmnist": [spectrum_arrays(512)]})[-1:]
    shown = evidence(made, results, folder)
    figure = must(draw("eigenvectors", shown))
    assert "digits: dense: ✕ 2 of 2 trials diverged" in texts(figure)
    assert "digits: dense: no trial finished" in figure.get_label()
    note = "✕ diverged: 2 of 2 seeds of digits: dense"
    assert note in texts(must(draw("retained", shown)))


def test_a_damaged_file_of_arrays_is_an_error(tmp_path: Path) -> None:
    made = table(SPECTRA)
    folder = RunFolder(tmp_path, made, create=True)
    results = stored(made, folder, {"digits": [spectrum_arrays(64)]})
    (folder.trial_path(results[0].key) / "arrays.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is missing or damaged"):
        draw("retained", evidence(made, results, folder))


# --- margin and accuracy ---------------------------------------------------------------------


def test_margin_and_accuracy_have_an_axis_each() -> None:
    made = table(CURVES)
    results = [
        trial(
            made,
            {"dataset": "mnist"},
            seed,
            {"margin": (-0.5, 0.0, 0.5 + seed), "test_accuracy": (10.0, 50.0, 90.0 + 2 * seed)},
            step=(0, 10, 20),
        )
        for seed in range(2)
    ]
    results.append(
        trial(
            made,
            {"dataset": "fmnist"},
            0,
            {"margin": (-0.5, 0.1), "test_accuracy": (10.0, 20.0)},
            step=(0, 10),
            diverged_at=13,
        )
    )
    figure = must(draw("margin_and_accuracy", evidence(made, results)))
    left = panel(figure, "mnist: rank1")
    right = twin(left)
    accuracy, margin = left.get_lines()[0], right.get_lines()[0]
    assert list(accuracy.get_xdata()) == [0, 10, 20]
    assert list(accuracy.get_ydata()) == [10.0, 50.0, 91.0]
    assert list(margin.get_ydata()) == [-0.5, 0.0, 1.0]
    assert accuracy.get_linestyle() == "-"
    assert margin.get_linestyle() == "--"
    # Pearson's correlation is 1 for the first seed and 0.9645 for the second
    assert left.get_title(loc="right") == "r = 0.98"
    lost = panel(figure, "fmnist: rank1")
    assert crosses(lost) == [(10, 20.0)]
    assert "✕ diverged: 1 of 1 seeds of rank1" in texts(lost)
    label = figure.get_label()
    assert "mnist: rank1 ends at 91.0 % and a margin of 1.0000, r = 0.98" in label
    assert "fmnist: rank1 ends at 20.0 % and a margin of 0.1000 (diverged: 1 of 1" in label


def test_a_column_and_a_row_that_are_not_full_have_their_axes_named_at_their_ends() -> None:
    two = CURVES.replace("rank: 1}}", "rank: 1}, dense: {kind: dense}}")
    made, record = table(two), {"margin": (-0.5, 0.5), "test_accuracy": (10.0, 50.0)}
    places = [("mnist", "rank1"), ("fmnist", "rank1"), ("fmnist", "dense")]
    results = [
        trial(made, {"dataset": dataset, "model": model}, 0, record) for dataset, model in places
    ]
    figure = must(draw("margin_and_accuracy", evidence(made, results)))
    panels = [panel(figure, f"{dataset}: {model}") for dataset, model in places]
    assert [axes.get_xlabel() for axes in panels] == ["steps", "", "steps"]
    accuracy = "test accuracy (%)"
    assert [axes.get_ylabel() for axes in panels] == [accuracy, "", accuracy]
    assert [twin(axes).get_ylabel() for axes in panels] == ["", "margin Δμ", "margin Δμ"]


def test_a_trial_lost_at_once_has_nothing_to_draw() -> None:
    made = table(CURVES)
    good = {"margin": (-0.5, 0.5), "test_accuracy": (10.0, 50.0)}
    results = [
        trial(made, {"dataset": "mnist"}, 0, good),
        trial(made, {"dataset": "fmnist"}, 0, {}, diverged_at=0),
    ]
    figure = must(draw("margin_and_accuracy", evidence(made, results)))
    assert "nothing recorded" in texts(panel(figure, "fmnist: rank1"))
    assert "fmnist: rank1 has no record (diverged: 1 of 1 seeds of rank1)" in figure.get_label()


# --- steps to an accuracy --------------------------------------------------------------------


def rising(
    made: Table,
    model: str,
    curves: Sequence[Sequence[float]],
    lost: Sequence[int] = (),
) -> list[Result]:
    """Trials recorded at the steps 10, 20, ...: one per seed."""
    return [
        trial(
            made,
            {"model": model},
            seed,
            {"test_accuracy": curve},
            step=range(10, 10 * len(curve) + 1, 10),
            diverged_at=99 if seed in lost else None,
        )
        for seed, curve in enumerate(curves)
    ]


def test_levels_lie_between_start_and_what_every_seed_reaches() -> None:
    made = table(LOSSES)
    control = rising(made, "λ=0", [[10.0, 60.0, 95.0], [12.0, 92.0, 90.0]])
    # from 12, the better start, to 92, the worse of both bests
    assert levels_of(control) == [28.0, 44.0, 60.0, 76.0, 88.0]
    close = rising(made, "λ=0", [[90.0, 91.0]])
    assert levels_of(close) == [90.2, 90.4, 90.6, 90.8, 90.9]
    assert levels_of(rising(made, "λ=0", [[90.0, 80.0]])) == []
    assert levels_of(rising(made, "λ=0", [[10.0, 90.0]], lost=[0])) == []


def test_ratios_are_geometric_means_of_pairs() -> None:
    made = table(LOSSES)
    control = rising(made, "λ=0", [[10, 50, 90, 90], [10, 20, 50, 90]])
    faster = rising(made, "λ=1", [[50, 90, 90, 90], [10, 50, 90, 90]])
    # to 50: 10 steps instead of 20, and 20 instead of 30
    found = ratio_of(faster, control, 50.0)
    assert found.mean == pytest.approx(math.sqrt((1 / 2) * (2 / 3)))
    spread = np.std([math.log(1 / 2), math.log(2 / 3)], ddof=1)
    assert found.factor == pytest.approx(math.exp(spread))
    assert (found.reached, found.tried) == (2, 2)
    never = rising(made, "λ=1", [[10, 10, 10, 90], [10, 10, 10, 10]])
    alone = ratio_of(never, control, 90.0)
    assert (alone.mean, alone.factor, alone.reached, alone.tried) == (
        pytest.approx(4 / 3),
        None,
        1,
        2,
    )
    lost = ratio_of(rising(made, "λ=1", [[90, 90], [90, 90]], lost=[0, 1]), control, 50.0)
    assert (lost.mean, lost.reached, lost.tried) == (None, 0, 2)


def test_steps_to_accuracy_draws_ratios_and_who_did_not_reach() -> None:
    made = table(LOSSES)
    results = [
        *rising(made, "λ=0", [[10, 40, 60, 110], [10, 40, 60, 110]]),
        *rising(made, "λ=1", [[40, 80, 90, 110], [10, 50, 50, 50]]),
    ]
    figure = must(draw("steps_to_accuracy", evidence(made, results)))
    axes = panel(figure, "mnist")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["30", "50", "70", "90", "105"]
    drawn = line(axes, "λ=1")
    # to 30: 10/20 and 20/20; to 50: 20/30 twice; then the first seed alone: 20/40, 30/40, 40/40
    expected = [math.sqrt(1 / 2), 2 / 3, 1 / 2, 3 / 4, 1]
    np.testing.assert_allclose(drawn.get_ydata(), expected)
    points = [one for one in axes.get_lines() if one.get_marker() == "o"]
    assert [one.get_markerfacecolor() == "white" for one in points] == [False] * 2 + [True] * 3
    assert [text for text in texts(axes) if " of " in text] == ["1 of 2"] * 3
    assert "mnist: to 70 % λ=1 0.50; to 105 % λ=1 1.00" in figure.get_label()


def test_steps_to_accuracy_needs_the_control() -> None:
    made = table(LOSSES)
    missing = must(draw("steps_to_accuracy", evidence(made, rising(made, "λ=1", [[10, 90]]))))
    assert "λ=0: not run" in texts(missing)
    assert "mnist, λ=0: not run" in missing.get_label()
    lost = [
        *rising(made, "λ=0", [[10, 90]]),
        *rising(made, "λ=1", [[10, 90]], lost=[0]),
    ]
    figure = must(draw("steps_to_accuracy", evidence(made, lost)))
    assert "✕ diverged: 1 of 1 seeds of λ=1" in texts(figure)
    assert [text for text in texts(figure) if text == "0 of 1"] == ["0 of 1"] * 5
    assert "to 58 % λ=1 never; to 86 % λ=1 never" in figure.get_label()
    sunk = rising(made, "λ=0", [[10, 90]], lost=[0])
    figure = must(draw("steps_to_accuracy", evidence(made, sunk)))
    assert "λ=0: every trial diverged" in texts(figure)


# --- both sides of the equality --------------------------------------------------------------


def sides(rate: Sequence[float], product: Sequence[float]) -> dict[str, Sequence[float]]:
    return {
        "margin_derivative": rate,
        "margin_rate": rate,
        "inner_product": product,
        "drift": [0.25] * len(rate),
    }


def test_equality_has_a_panel_for_each_seed() -> None:
    made = table(SIDES)
    results = [
        trial(made, {}, 0, sides((3.0, 4.0), (3.0, 4.5)), step=(0, 5)),
        trial(made, {}, 1, sides((1.0, 2.0), (1.0, 2.0)), step=(0, 5), diverged_at=8),
        trial(made, {}, 2, {}, diverged_at=0),
    ]
    figure = must(draw("equality", evidence(made, results)))
    first = panel(figure, "mnist, rank1\nseed 0: gap 0.10")
    assert list(line(first, "margin_derivative").get_ydata()) == [3.0, 4.0]
    assert list(line(first, "inner_product").get_ydata()) == [3.0, 4.5]
    assert list(line(first, "inner_product").get_xdata()) == [0, 5]
    other = twin(first)
    assert list(line(other, "drift").get_ydata()) == [0.25, 0.25]
    assert crosses(panel(figure, "\nseed 1: diverged at step 8")) == [(5, 2.0)]
    gone = panel(figure, "\nseed 2: diverged at step 0")
    assert "diverged before anything was\nrecorded" in texts(gone)
    assert [*gone.get_xticks(), *gone.get_yticks()] == []
    assert "mnist, rank1: gap 0.1000, 2 of 3 trials diverged" in figure.get_label()


def test_equality_shows_four_seeds_at_most_and_steep_ones_by_logarithm() -> None:
    made = table(SIDES)
    flat, steep = (1.0, 1.0, 1.0, 2.0), (900.0, 1.0, 1.0, 2.0)
    results = [
        trial(made, {}, seed, sides(steep if seed == 1 else flat, flat)) for seed in range(6)
    ]
    figure = must(draw("equality", evidence(made, results)))
    titled = [axes for axes in figure.axes if "seed" in axes.get_title(loc="left")]
    starts = [axes.get_title(loc="left").splitlines()[1][:6] for axes in titled]
    assert starts == ["seed 0", "seed 1", "seed 2", "seed 3"]
    assert [axes.get_yscale() for axes in titled] == ["linear", "symlog", "linear", "linear"]
    assert "for the seeds 0, 1, 2, 3" in figure.get_label()


# --- along a factor --------------------------------------------------------------------------


def chosen(
    made: Table, factor: str, model: str, pairs: Sequence[tuple[float, float] | None]
) -> list[Result]:
    """Trials with this test and validation accuracy; None for a diverged one."""
    return [
        trial(
            made,
            {"factor": factor, "model": model},
            seed,
            {"test_accuracy": (pair[0],), "validation_accuracy": (pair[1],)} if pair else {},
            diverged_at=None if pair else 3,
        )
        for seed, pair in enumerate(pairs)
    ]


def test_along_a_factor_the_best_inner_value_is_chosen_by_validation() -> None:
    made = table(FACTORS)
    results = [
        *chosen(made, "alpha", "0", [(80.0, 99.0), (82.0, 99.0)]),
        *chosen(made, "alpha", "0.1", [(84.0, 85.0), (86.0, 85.0)]),
        *chosen(made, "alpha", "0.9", [(90.0, 83.0), (90.0, 83.0)]),
        *chosen(made, "alpha", "1", [(70.0, 99.0), None]),
        *chosen(made, "beta", "0", [(80.0, 80.0)]),
        *chosen(made, "beta", "0.1", [(84.0, 90.0), None]),
        *chosen(made, "beta", "0.9", [(90.0, 60.0)]),
    ]
    figure = must(draw("along_factor", evidence(made, results)))
    axes = panel(figure, "cifar10, factor alpha")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "0.1", "0.9", "1"]
    (container,) = axes.containers
    assert list(container.lines[0].get_xdata()) == [0, 1, 2, 3]
    assert list(container.lines[0].get_ydata()) == [81.0, 85.0, 90.0, 70.0]
    # Student's t for two seeds, 12.706, times the standard error, 1
    (_, low), (_, high) = container.lines[2][0].get_segments()[1]
    assert (low, high) == pytest.approx((85 - 12.7062, 85 + 12.7062), abs=1e-3)
    assert level(axes) == [81.0]
    ring = line(axes, "chosen")
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([1], [85.0])
    assert "✕\n1 of 2" in texts(axes)
    # a value that lost a trial is not chosen; one that was not run is a gap
    beta = panel(figure, "cifar10, factor beta")
    assert list(line(beta, "chosen").get_xdata()) == [2]
    assert list(beta.containers[0].lines[0].get_xdata()) == [0, 1, 2]
    assert (
        "cifar10, factor alpha: 81.0 at 0; 85.0 at 0.1, which validation accuracy chose; 70.0 at 1 "
        "(1 of 2 diverged)." in figure.get_label()
    )


def test_along_a_factor_without_validation_nothing_is_chosen() -> None:
    made = table(FACTORS)
    results = [
        trial(made, {"factor": "alpha", "model": model}, 0, {"test_accuracy": (80.0,)})
        for model in ("0", "0.1")
    ] + chosen(made, "beta", "0.1", [None])
    figure = must(draw("along_factor", evidence(made, results)))
    assert "chosen" not in [one.get_label() for axes in figure.axes for one in axes.get_lines()]
    assert panel(figure, "cifar10, factor beta").containers == []
    assert "cifar10, factor beta: – at 0.1 (1 of 1 diverged)." in figure.get_label()


# --- each model at its best ------------------------------------------------------------------


def rated(
    made: Table, place: Mapping[str, Any], pairs: Sequence[tuple[float, float] | None], size: int
) -> list[Result]:
    """Trials of a model of this size with this test and validation accuracy."""
    return [
        trial(
            made,
            {"dataset": "mnist", **place},
            seed,
            {"test_accuracy": (pair[0],), "validation_accuracy": (pair[1],)} if pair else {},
            diverged_at=None if pair else 3,
        ).model_copy(update={"parameters": size})
        for seed, pair in enumerate(pairs)
    ]


def test_at_best_has_a_row_for_each_model_at_what_validation_chose() -> None:
    made = table(RATES)
    results = [
        *rated(made, {"lr": 0.01, "model": "linear"}, [(88.0, 90.0), (90.0, 90.0)], 7840),
        *rated(made, {"lr": 0.1, "model": "linear"}, [(95.0, 70.0), (95.0, 70.0)], 7840),
        *rated(made, {"lr": 0.01, "model": "rank1"}, [(92.0, 91.0), (92.0, 91.0)], 7850),
        *rated(made, {"lr": 0.1, "model": "rank1"}, [(99.0, 99.0), None], 7850),
    ]
    figure = must(draw("at_best", evidence(made, results)))
    (axes,) = figure.axes
    rows = [tick.get_text() for tick in axes.get_yticklabels()]
    linear, form = rows.index("linear"), rows.index("rank1")
    found = {container.get_label(): container.lines for container in axes.containers}
    data, _, (bars,) = found["linear"]
    (low, _), (high, _) = bars.get_segments()[0]
    # Student's t for two seeds, 12.706, times the standard error, 1
    assert list(data.get_xydata()[0]) == [89.0, linear]
    assert (low, high) == pytest.approx((89 - 12.7062, 89 + 12.7062), abs=1e-3)
    assert list(found["rank1"][0].get_xydata()[0]) == [92.0, form]
    # a value that lost a trial is neither drawn nor chosen
    others = [line.get_xydata()[0] for line in axes.get_lines() if line.get_label() == "other"]
    assert [list(point) for point in others] == [[95.0, linear]]
    beside = {(text.xy[1], text.get_text()) for text in axes.texts if isinstance(text, Annotation)}
    assert {(linear, "0.01"), (form, "0.01"), (form, "✕ 1 of 4")} <= beside
    assert (linear, format_count(7840)) in beside
    assert (
        "mnist: linear 89.0 with 7840 parameters (lr 0.01); rank1 92.0 with 7850 parameters "
        "(lr 0.01)." in figure.get_label()
    )


def test_at_best_points_at_what_lies_far_below() -> None:
    made = table(RATES)
    results = [
        *rated(made, {"lr": 0.01, "model": "linear"}, [(10.0, 10.0)], 7840),
        *rated(made, {"lr": 0.1, "model": "linear"}, [(90.0, 90.0)], 7840),
        *rated(made, {"lr": 0.1, "model": "rank1"}, [(92.0, 91.0)], 7850),
    ]
    (axes,) = must(draw("at_best", evidence(made, results))).axes
    (arrow,) = (line for line in axes.get_lines() if line.get_label() == "beyond")
    assert arrow.get_marker() == "<"
    assert arrow.get_xdata()[0] == axes.get_xlim()[0] == pytest.approx(89.0)


def test_at_best_without_validation_chooses_nothing() -> None:
    made = table(RATES)
    place = {"dataset": "mnist", "lr": 0.01, "model": "rank1"}
    figure = must(draw("at_best", evidence(made, [trial(made, place, 0, {"test_accuracy": (9,)})])))
    (axes,) = figure.axes
    assert axes.containers == []
    assert [list(line.get_xdata()) for line in axes.get_lines()] == [[9.0]]
    assert "mnist: nothing was chosen." in figure.get_label()


# --- the phase diagram -----------------------------------------------------------------------


def squares(axes: Axes) -> dict[tuple[int, int], tuple[Any, str]]:
    """Colour and words of each cell by (column, row)."""
    colours = {
        (round(patch.get_x() + 0.5), round(patch.get_y() + 0.5)): patch.get_facecolor()
        for patch in axes.patches
        if patch.get_fill()
    }
    words = {
        tuple(int(place) for place in text.get_position()): text.get_text() for text in axes.texts
    }
    return {place: (colour, words[place]) for place, colour in colours.items()}


def test_the_phase_diagram_counts_learned_and_diverged_trials() -> None:
    made = table(PHASES)
    learned, stuck = {"train_accuracy": (10.0, 70.0)}, {"train_accuracy": (10.0, 11.0)}
    quadratic = {"model": "quadratic", "depth": 16, "lr": 0.1}
    results = [
        trial(made, {"model": "linear", "depth": 2, "lr": 0.01}, 0, learned),
        trial(made, {"model": "linear", "depth": 2, "lr": 0.1}, 0, stuck),
        trial(made, quadratic, 0, learned),
        trial(made, quadratic, 1, stuck),
        trial(made, quadratic, 2, learned, diverged_at=3),
        trial(made, quadratic, 3, learned),
    ]
    figure = must(draw("phase_diagram", evidence(made, results)))
    colours = mpl.colormaps["cividis"]
    linear, deep = squares(panel(figure, "linear")), squares(panel(figure, "quadratic"))
    # columns are the learning rates from small to large, rows the depths
    assert linear[0, 0] == (colours(1.0), "1/1")
    assert linear[1, 0] == (colours(0.0), "0/1")
    assert linear[0, 1][1] == "–"
    assert deep[1, 1] == (colours(0.5), "2/4\n✕ 1")
    (hatched,) = (p for p in panel(figure, "quadratic").patches if p.get_hatch())
    assert hatched.get_bbox().bounds == (0.5, 0.5, 1.0, 0.25)
    axes = panel(figure, "linear")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.01", "0.1"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["2", "16"]
    assert "quadratic: 2 of 4 learned, 1 diverged" in figure.get_label()
    assert "over depth and learning rate on digits" in figure.get_label()


@pytest.mark.parametrize(
    ("rates", "shown"), [([0.1], "quadratic-with-a-…"), ([0.1, 0.01], "quadratic-with-a-norm")]
)
def test_a_phase_diagram_cuts_only_names_it_has_no_room_for(rates: list[float], shown: str) -> None:
    name = "quadratic-with-a-norm"
    made = table(PHASES.replace("quadratic: {", f"{name}: {{"))
    learned = {"train_accuracy": (10.0, 70.0)}
    results = [trial(made, {"model": name, "depth": 2, "lr": lr}, 0, learned) for lr in rates]
    figure = must(draw("phase_diagram", evidence(made, results)))
    assert shown in [axes.get_title(loc="left") for axes in figure.axes]
    assert f"{name}: {len(rates)} of {len(rates)} learned" in figure.get_label()


def test_the_phase_diagram_of_nothing_but_diverged_trials() -> None:
    made = table(PHASES)
    place = {"model": "linear", "depth": 2, "lr": 0.1}
    results = [trial(made, place, seed, {}, diverged_at=0) for seed in range(2)]
    figure = must(draw("phase_diagram", evidence(made, results)))
    assert squares(panel(figure, "linear"))[0, 0] == (mpl.colormaps["cividis"](0.0), "0/2\n✕ 2")
    # hatched, by a pattern, and no less fit for a page
    assert "<pattern" in inline_svg("phase_diagram", to_svg(figure)).svg


# --- counts ----------------------------------------------------------------------------------


def test_counts_stand_side_by_side() -> None:
    made = table(COUNTS)
    place = {"dataset": "line", "widths": "4"}
    results = [
        trial(
            made, {**place, "model": "relu"}, seed, {"dimension": (7.0,), "pieces": (2.0 + seed,)}
        )
        for seed in range(2)
    ]
    results.append(
        trial(
            made, {"dataset": "space", "widths": "8", "model": "squared"}, 0, {"dimension": (28.0,)}
        )
    )
    figure = must(draw("counts", evidence(made, results)))
    pieces = panel(figure, "line: polynomial pieces on an interval")
    (container,) = pieces.containers
    assert list(container.lines[0].get_ydata()) == [2.5]
    (_, low), (_, high) = container.lines[2][0].get_segments()[0]
    # the interval of 2 and 3 reaches below any count, and is cut there
    assert (low, high) == pytest.approx((0.5, 2.5 + 12.7062 / 2), abs=1e-3)
    space = panel(figure, "space: dimension of the set of functions")
    assert list(space.containers[0].lines[0].get_ydata()) == [28.0]
    assert round(float(space.containers[0].lines[0].get_xdata()[0])) == 1
    assert "line, dimension of the set of functions for widths 4: relu 7." in figure.get_label()


# --- all of them -----------------------------------------------------------------------------


def made_rank() -> Evidence:
    made = table(FORMS)
    return evidence(made, [*ends(made, "linear", [89.0]), *ends(made, "rank1", [92.0, None])])


def made_margin() -> Evidence:
    made = table(CURVES)
    history = {"margin": (-0.5, 0.5), "test_accuracy": (10.0, 50.0)}
    return evidence(made, [trial(made, {"dataset": "mnist"}, 0, history)])


def made_losses() -> Evidence:
    made = table(LOSSES)
    results = [*rising(made, "λ=0", [[10, 90]]), *rising(made, "λ=1", [[10, 90]])]
    return evidence(made, results)


def made_sides() -> Evidence:
    made = table(SIDES)
    return evidence(made, [trial(made, {}, 0, sides((1.0, 2.0), (1.0, 2.1)))])


def made_factors() -> Evidence:
    made = table(FACTORS)
    return evidence(made, chosen(made, "alpha", "0.1", [(84.0, 85.0)]))


def made_rates() -> Evidence:
    made = table(RATES)
    return evidence(made, rated(made, {"lr": 0.1, "model": "relu"}, [(84.0, 85.0)], 7850))


def made_phases() -> Evidence:
    made = table(PHASES)
    place = {"model": "linear", "depth": 2, "lr": 0.1}
    return evidence(made, [trial(made, place, 0, {"train_accuracy": (70.0,)})])


def made_counts() -> Evidence:
    made = table(COUNTS)
    place = {"dataset": "line", "widths": "4", "model": "relu"}
    return evidence(made, [trial(made, place, 0, {"dimension": (7.0,), "pieces": (2.0,)})])


MADE: dict[str, Callable[[], Evidence]] = {
    "rank_curve": made_rank,
    "margin_and_accuracy": made_margin,
    "steps_to_accuracy": made_losses,
    "equality": made_sides,
    "along_factor": made_factors,
    "phase_diagram": made_phases,
    "at_best": made_rates,
    "counts": made_counts,
}


@pytest.fixture
def shown(request: pytest.FixtureRequest, tmp_path: Path) -> Evidence:
    """What one figure is drawn from: one seed, and cells that are missing."""
    if request.param in MADE:
        return MADE[request.param]()
    made = table(SPECTRA)
    folder = RunFolder(tmp_path, made, create=True)
    arrays = {"digits": [spectrum_arrays(64)], "fmnist": [spectrum_arrays(512)]}
    return evidence(made, stored(made, folder, arrays), folder)


@pytest.mark.parametrize(("name", "shown"), [(n, n) for n in FIGURES], indirect=["shown"])
def test_every_figure_carries_the_mark_and_the_same_bytes(name: str, shown: Evidence) -> None:
    for reduced, expected, mark in ((True, 10**6, "REDUCED RUN · PARTIAL"), (False, 0, None)):
        report = shown.report.model_copy(update={"reduced": reduced, "expected": expected})
        one, two = (
            must(draw(name, Evidence(report, shown.every_result, shown.folder))) for _ in range(2)
        )
        marks = [text for text in texts(one) if "REDUCED" in text or "PARTIAL" in text]
        assert marks == ([mark] if mark else [])
        assert to_svg(one) == to_svg(two)
        assert "<svg" in inline_svg(name, to_svg(one)).svg


def test_a_report_s_folder_holds_the_figures_that_its_table_names(tmp_path: Path) -> None:
    made = table(SPECTRA)
    folder = RunFolder(tmp_path, made, create=True)
    stored(made, folder, {"digits": [spectrum_arrays(64)]})
    report, results = report_of(folder)
    assert list(figures_of(report, results, folder))[:2] == ["retained", "eigenvectors"]
    assert "retained" not in figures_of(report, results)
    page = write_report(report, results, folder)
    names = {path.name for path in (folder.path / "figures").iterdir()}
    assert {"retained.png", "retained.svg", "eigenvectors.png", "eigenvectors.svg"} <= names
    assert "Leading eigenvector of each class" in page.read_text(encoding="utf-8")
