"""What the training loop costs beside a bare one written by hand: ratios in one process.

    QBENCH_DATA=... uv run python packages/qbench/benchmarks/loop.py [--pairs 15] [--out FILE]

Both train the same model on the same samples, each in an order of its own, with torch's own SGD,
and both add up loss and accuracy as they go, as the recipe asks; the bare loop checks nothing, and
has one seed alone in mind. How ratios are measured, and when a target is
met, is said in qcore's ``benchmarks/paired.py``. Run it on a quiet machine.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from qbench.block import keep_freed_memory
from qbench.build import build_model
from qbench.data import Problem, load_problem
from qbench.loop import Training
from qbench.recipe import Recipe
from qbench.stack import side_by_side
from qbench.table import load_table
from qbench.trial import commit

sys.path.append(str(Path(__file__).parents[2] / "qcore" / "benchmarks"))
from paired import Report, Step, ratios

TARGET = 1.05


def ours(model: nn.Module, problem: Problem, recipe: Recipe) -> Step:
    """One epoch in the bench's loop, with its record at the end."""

    def epoch() -> None:
        Training(side_by_side([model]), problem, recipe, [0]).run()

    return epoch


def bare(model: nn.Module, problem: Problem, recipe: Recipe) -> Step:
    """One epoch as everybody writes it, with accuracy on the test part at the end."""
    train, test = problem.train, problem.test
    size = recipe.batch_size or len(train)

    def epoch() -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum)
        order = torch.randperm(len(train))
        model.train()
        running, correct = torch.zeros(()), torch.zeros((), dtype=torch.long)
        for index in order.split(size):
            x, y = train.prepare(train.x[index]), train.y[index]
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            running += loss.detach() * len(y)
            correct += (logits.detach().argmax(1) == y).sum()
        model.eval()
        right = 0
        with torch.no_grad():
            for x, y in zip(test.x.split(2000), test.y.split(2000), strict=True):
                right += int((model(test.prepare(x)).argmax(1) == y).sum())

    return epoch


def main() -> None:
    """Measure a small model and a convolutional network, print the ratios and write them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="pairs per row, 15 or more")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    report = Report(f"the loop against a bare one, {arguments.pairs} pairs each")
    keep_freed_memory()
    rows = (("mnist", "relu8000", 2000), ("rank", "rank10", 20_000), ("digits", "qresnet20", 128))
    for table, name, samples in rows:
        loaded = load_table(table)
        dataset = next(iter(loaded.grid.dataset))
        (cell,) = loaded.cells({"model": (name,), "dataset": (dataset,)})
        recipe = Recipe(
            lr=1e-4,
            batch_size=cell.recipe.batch_size,
            epochs=1,
            train_samples=samples,
            test_samples=samples // 10,
            log_every="epoch",
            train_metrics="running",
            pixels=cell.recipe.pixels,
        )
        problem = load_problem(dataset, recipe, [0])
        models = [
            build_model(cell.model, problem.shape, problem.classes, 1.0, seed=0) for _ in range(2)
        ]
        found = ratios(
            ours(models[0], problem, recipe), bare(models[1], problem, recipe), arguments.pairs
        )
        report.add(f"{dataset} {name}", "bare loop", found, TARGET)
    report.show(arguments.out, commit=commit())


if __name__ == "__main__":
    main()
