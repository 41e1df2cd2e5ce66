"""What networks can express, counted as they are drawn: no data, no training."""

import time
from collections.abc import Callable, Sequence

from torch import nn

from qbench.build import build_model
from qbench.catalogue import DATASETS
from qbench.loop import Curve
from qbench.table import Cell
from qcore.analysis import functional_dimension, spline_pieces


def measure_network(model: nn.Module, inputs: int, seed: int) -> dict[str, float]:
    """The dimension of the set of functions around a network; for one input, how many polynomial
    pieces it has on [-1, 1], and the largest degree of one.

    Source: the two theorems in the abstract of arXiv 2110.06081, which compare by splines and by a
    measure from algebraic geometry.

    >>> from qbench.architecture import ModelSpec
    >>> spec = ModelSpec(kind="mlp", hidden=(4,), activation="square")
    >>> measure_network(build_model(spec, (1,), 1, 1.0, seed=0), 1, seed=0)
    {'dimension': 3.0, 'pieces': 1.0, 'degree': 2.0}
    """
    measured = {"dimension": float(functional_dimension(model, seed=seed).dimension)}
    if inputs == 1:
        pieces = spline_pieces(model)
        measured |= {"pieces": float(pieces.count), "degree": float(pieces.degrees.max())}
    return measured


def measure_networks(
    cell: Cell, seeds: Sequence[int], on_progress: Callable[[float], None]
) -> list[tuple[nn.Module, Curve]]:
    """Each seed's network with what was measured of it, as a curve of one point."""
    info = DATASETS[cell.dataset]
    found = []
    for i, seed in enumerate(seeds, 1):
        recipe = cell.recipe
        model = build_model(
            cell.model, info.shape, info.classes, recipe.init_scale, seed, recipe.strategy
        )
        measured = measure_network(model, info.features, seed)
        curve = Curve(step=[0], time=[time.time()])
        curve.metrics.update({name: [value] for name, value in measured.items()})
        found.append((model, curve))
        on_progress(i / len(seeds))
    return found
