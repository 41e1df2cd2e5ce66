"""What ten stacked seeds cost against one: ratios, interleaved in one process.

    uv run python packages/qbench/benchmarks/stacking.py [--pairs 15] [--out stacking.json]

Each pair times a short training of ten stacked seeds and of one seed, one right after the other;
the figure is the median of the pairs' ratios with its 95 % interval (order statistics). A target
is met when the interval's lower end is below it.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table as Grid
from scipy.stats import binom

from qbench.classifier import build_classifier
from qbench.data import load_problem
from qbench.executor import keep_freed_memory
from qbench.loop import train
from qbench.stack import Stacked
from qbench.table import Cell, load_table
from qbench.trial import commit, hardware, versions

SEEDS = 10
TARGETS = {"iris": 2.5, "wine": 2.5, "wisconsin": 2.5}
LOW_RANK_DIGITS = 8.0
NEVER_MORE = 10.0


def target(cell: Cell) -> float:
    """The ratio that the cell must not exceed."""
    if cell.dataset == "digits":
        return LOW_RANK_DIGITS if cell.model.kind == "low_rank" else NEVER_MORE
    return TARGETS[cell.dataset]


def seconds(cell: Cell, seeds: int, steps: int) -> float:
    """Wall time of ``steps`` training steps, set-up excluded."""
    recipe = cell.recipe.model_copy(update={"epochs": steps, "log_every": 20})
    problem = load_problem(cell.dataset, recipe, range(seeds))
    models = [
        build_classifier(cell.model, problem.features, problem.classes, 1.0, seed)
        for seed in range(seeds)
    ]
    stacked = Stacked(models)
    started = time.perf_counter()
    train(stacked, problem, recipe)
    return time.perf_counter() - started


def interval(ratios: list[float]) -> tuple[float, float]:
    """The 95 % interval of the median by order statistics."""
    ordered, n = sorted(ratios), len(ratios)
    below = int(binom.ppf(0.025, n, 0.5))
    return ordered[max(below - 1, 0)], ordered[min(n - below, n - 1)]


def main() -> None:
    """Measure every cell of ``uci`` with its default choices, print the ratios and write them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="pairs per cell, 15 or more")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    grid = Grid(title=f"{SEEDS} stacked seeds against one, {arguments.pairs} pairs each")
    for heading in ("dataset", "model", "one seed", "ratio", "95 % interval", "target", "met"):
        grid.add_column(heading, justify="left" if heading in ("dataset", "model") else "right")
    keep_freed_memory()
    rows = []
    for cell in load_table("uci").cells():
        steps = 20 if cell.model.kind == "dense" and cell.dataset == "digits" else 100
        seconds(cell, SEEDS, steps), seconds(cell, 1, steps)  # warm up
        pairs = [
            (seconds(cell, SEEDS, steps), seconds(cell, 1, steps)) for _ in range(arguments.pairs)
        ]
        ratios = [ten / one for ten, one in pairs]
        median, (low, high) = sorted(ratios)[len(ratios) // 2], interval(ratios)
        one = sorted(one for _, one in pairs)[len(pairs) // 2] / steps * 1000
        rows.append(
            {**cell.axes, "ratio": median, "interval95": [low, high], "target": target(cell)}
        )
        grid.add_row(
            cell.dataset,
            str(cell.axes["model"]),
            f"{one:.2f} ms/step",
            f"{median:.2f}",
            f"{low:.2f} – {high:.2f}",
            f"{target(cell):g}",
            "yes" if low <= target(cell) else "no",
        )
    Console().print(grid)
    if arguments.out:
        facts = {"commit": commit(), "hardware": hardware("cpu"), "versions": versions()}
        record = {**facts, "threads": torch.get_num_threads(), "rows": rows}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
