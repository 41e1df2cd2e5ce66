"""What ten stacked seeds cost against one: ratios, interleaved in one process.

    uv run python packages/qbench/benchmarks/stacking.py [--table uci] [--pairs 15] [--out FILE]
    QBENCH_DATA=... uv run python packages/qbench/benchmarks/stacking.py --table rank

How ratios are measured, and when a target is met, is said in qcore's ``benchmarks/paired.py``. Run
it on a quiet machine.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from qbench.block import keep_freed_memory
from qbench.build import build_model
from qbench.data import load_problem
from qbench.loop import Training
from qbench.stack import side_by_side
from qbench.table import Cell, load_table
from qbench.trial import commit

sys.path.append(str(Path(__file__).parents[2] / "qcore" / "benchmarks"))
from paired import Report, Step, ratios

SEEDS = 10
NEVER_MORE = 10.0


def target(cell: Cell) -> float:
    """The ratio that the cell must not exceed."""
    if cell.table.id == "rank":
        return 6.0
    if cell.dataset == "digits":
        return 8.0 if cell.model.kind == "low_rank" else NEVER_MORE
    return 2.5


def cells(table: str) -> Iterator[Cell]:
    """The cells whose seeds train side by side, under the default choices."""
    if table == "uci":
        yield from load_table(table).cells()
        return
    models = ("linear", *(f"rank{rank}" for rank in range(1, 11)))
    yield from load_table(table).cells({"dataset": ("mnist",), "model": models})


def training(cell: Cell, seeds: int, steps: int) -> Step:
    """Some steps of training, set-up and measuring the test part excluded."""
    recipe = cell.recipe
    problem = load_problem(cell.dataset, recipe, range(seeds))
    replicas = [
        build_model(cell.model, problem.shape, problem.classes, 1.0, seed) for seed in range(seeds)
    ]
    ongoing = Training(side_by_side(replicas), problem, recipe, range(seeds))

    def run() -> None:
        for _ in range(steps):
            if recipe.batch_size is None:
                ongoing._whole_batch(train=True, measure=False)
            else:
                ongoing._small_batch()
            ongoing._update()
            ongoing.step = (ongoing.step + 1) % ongoing.steps
        ongoing._losses.clear()
        ongoing._correct.clear()

    return run


def main() -> None:
    """Measure every cell of a table, print the ratios and write them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--table", choices=("uci", "rank"), default="uci")
    parser.add_argument("--pairs", type=int, default=15, help="pairs per cell, 15 or more")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    report = Report(f"{SEEDS} stacked seeds against one, {arguments.pairs} pairs each")
    keep_freed_memory()
    for cell in cells(arguments.table):
        slow = cell.model.kind == "dense" and cell.dataset == "digits"
        ten, one = (training(cell, seeds, 20 if slow else 100) for seeds in (SEEDS, 1))
        found = ratios(ten, one, arguments.pairs)
        report.add(f"{cell.dataset} {cell.axes['model']}", "one seed", found, target(cell))
    report.show(arguments.out, commit=commit())


if __name__ == "__main__":
    main()
