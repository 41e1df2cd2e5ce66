"""What a table costs: multiply-adds counted, hours here measured, hours on an A100 estimated.

The counts stand in ``tables/costs.json``, so that they are there without torch; a test compares
them with what ``python -m qbench.cost`` writes.
"""

import json
import os
import time
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from qbench.architecture import ModelSpec
from qbench.catalogue import DATASETS
from qbench.errors import UserError, one_line
from qbench.frozen import Frozen
from qbench.table import Cell, Table, load_table, table_names
from qbench.trial import write_whole

A100_FLOPS = 19.5e12
"""Float32 operations per second of an A100 by its data sheet, tensor cores left out."""

A100_UTILISATION = 0.2
"""The share of them that is assumed to be reached."""

A100_STEP = 0.5e-3
"""Seconds that a layer's step takes there however little it computes; assumed."""

TRIAL = 0.1
"""Seconds that a trial takes besides its steps: to begin, to keep what it found, and to record it.

Measured over the 640 trials of ``uci`` on two cores, and assumed of every machine.
"""

MOST_STACKED = 200_000
"""Multiply-adds, about as many as weights, of a model whose seeds train side by side."""

_PASSES = 3  # forward, and twice that backward


class TableCost(Frozen):
    """What the whole of a table takes, with all its seeds under the default choices.

    ``forms`` are the multiply-adds of classifiers and multi-layer perceptrons, ``networks`` those
    of convolutional networks: machines are differently fast at the two. ``steps`` counts updates
    of a layer, of as many seeds as train side by side; those of convolutional networks, which
    compute long enough, of all their layers together.
    """

    forms: float
    networks: float
    steps: float
    trials: int

    @property
    def multiply_adds(self) -> float:
        """All multiply-adds."""
        return self.forms + self.networks

    def hours(self, rates: "Rates") -> float:
        """Hours at these rates."""
        computing = self.forms / rates.forms + self.networks / rates.networks
        return (computing + self.steps * rates.step + self.trials * TRIAL) / 3600


class Rates(Frozen):
    """How fast a machine is: multiply-adds per second, and a layer's seconds of a step without."""

    forms: float
    networks: float
    step: float


A100 = Rates(
    forms=A100_FLOPS * A100_UTILISATION / 2,
    networks=A100_FLOPS * A100_UTILISATION / 2,
    step=A100_STEP,
)


def multiply_adds(spec: ModelSpec, dataset: str) -> int:
    """Multiply-adds of a model for one input, as qcore and qzoo count them.

    Raises ``UserError`` for a neuron or a network that there is not, and for what does not fit it.

    >>> multiply_adds(ModelSpec(kind="low_rank", rank=2), "digits")
    1300
    """
    try:
        return _counted(spec, dataset)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        what = f"network {spec.full_name!r}" if spec.kind == "zoo" else f"kind {spec.kind}"
        raise UserError(
            f"a table's model of {what} cannot be made for {dataset}: {one_line(error)[:300]}"
        ) from error


def _counted(spec: ModelSpec, dataset: str) -> int:
    import qcore

    info = DATASETS[dataset]
    if spec.kind == "zoo":
        import qzoo.cost
        from qbench.build import check_norm

        check_norm(spec)
        arguments = dict(spec.options)
        if spec.quadratize is not None:
            arguments["neuron"] = spec.quadratize
        return qzoo.cost.cost(
            spec.full_name,
            num_classes=info.classes,
            in_chans=info.shape[0],
            size=info.shape[1],
            **arguments,
        ).multiply_adds
    features, total = info.features, 0
    if (layer := spec.convolution) is not None:
        features = layer.outputs(info.shape)
        total = features * info.shape[0] * layer.kernel**2
    if spec.kind == "mlp":
        neuron, linear = qcore.get_neuron(spec.neuron), qcore.get_neuron("linear")
        from qbench.build import hidden_widths

        width = features
        for hidden in hidden_widths(spec, features, info.classes):
            total += hidden * neuron.cost(width, spec.neuron_rank).multiply_adds
            width = hidden
        return total + info.classes * linear.cost(width).multiply_adds
    features += spec.affine
    if spec.kind == "linear":
        return total + info.classes * features
    if spec.rank is None:
        from qbench.build import check_dense

        check_dense(features, info.classes)  # here, too: it is counted before anything trains
        return total + info.classes * (features * (features + 1) // 2 + features)
    return total + info.classes * spec.rank * (features + 1)


def stacks(cell: Cell) -> bool:
    """Whether a cell's seeds train side by side: only where that was measured to pay.

    Ten seeds of a rank-10 classifier on MNIST take five times as long as one, ten of its dense form
    twenty times: their weights no longer fit in the cache.
    """
    spec = cell.model
    if spec.kind == "zoo" or spec.convolution is not None:
        return False
    if cell.recipe.precision == "float16":
        return False  # gradients have one scale: a seed that overflows would hold up the others
    return multiply_adds(spec, cell.dataset) <= MOST_STACKED


def cell_cost(cell: Cell, seeds: int) -> TableCost:
    """What a cell takes with so many seeds: training, and measuring the test part."""
    recipe, info = cell.recipe, DATASETS[cell.dataset]
    if not info.train:
        return TableCost(forms=0, networks=0, steps=0, trials=seeds)
    whole = info.train if info.test else round(info.train * (1 - recipe.test_fraction))
    train = min(whole - recipe.validation, recipe.train_samples or whole)
    test = min(info.test or info.train - whole, recipe.test_samples or info.train)
    steps_per_epoch = -(-train // (recipe.batch_size or train))
    steps = recipe.epochs * steps_per_epoch
    every = steps_per_epoch if recipe.log_every == "epoch" else recipe.log_every
    measured = test + (train if recipe.batch_size and recipe.train_metrics == "measured" else 0)
    samples = _PASSES * recipe.epochs * train + (steps // every) * (measured + recipe.validation)
    total = float(seeds * samples * multiply_adds(cell.model, cell.dataset))
    convolutional = cell.model.kind == "zoo"
    layers = len(cell.model.hidden) + 1 if cell.model.kind == "mlp" else 1
    return TableCost(
        forms=0.0 if convolutional else total,
        networks=total if convolutional else 0.0,
        steps=steps * layers * (1 if stacks(cell) else seeds),
        trials=seeds,
    )


def table_cost(table: Table) -> TableCost:
    """What a whole table takes under the default choices."""
    costs = [cell_cost(cell, table.seeds) for cell in table.cells()]
    return TableCost(
        forms=sum(cost.forms for cost in costs),
        networks=sum(cost.networks for cost in costs),
        steps=sum(cost.steps for cost in costs),
        trials=sum(cost.trials for cost in costs),
    )


def stored_costs() -> Mapping[str, TableCost]:
    """The counted cost of every table.

    Raises ``UserError`` for a table that was not counted.
    """
    text = (resources.files("qbench") / "tables" / "costs.json").read_text(encoding="utf-8")
    found = {name: TableCost.model_validate(cost) for name, cost in json.loads(text).items()}
    if new := [name for name in table_names() if name not in found]:
        raise UserError(
            f"tables/costs.json has no {', '.join(new)}: count what it costs with "
            "python -m qbench.cost"
        )
    return found


def calibration_path() -> Path:
    """Where this machine's rates are kept."""
    return Path.home() / ".cache" / "quadnets" / "rates.json"


def known_rates() -> Rates | None:
    """This machine's rates, where they were measured by the same number of processors."""
    try:
        kept = json.loads(calibration_path().read_text(encoding="utf-8"))
        return Rates.model_validate(kept["rates"]) if kept["cores"] == os.cpu_count() else None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):  # the last: there is no home
        return None


def calibrate() -> Rates:
    """Measure this machine for a few seconds, and keep the rates where that is possible.

    A step of the loop on Iris, one of ten seeds of rank 10 on images of MNIST's size, and one of
    QResNet-20's kind of convolutions on 32 images; the fastest of five each.
    """
    import torch
    from torch import nn

    from qcore import LowRankForm, QuadraticConv2d

    def seconds(model: nn.Module, shape: tuple[int, ...]) -> float:
        x, optimizer = torch.randn(shape), torch.optim.SGD(model.parameters(), lr=1e-3)
        fastest = float("inf")
        for _ in range(6):  # the first one warms up, and is never the fastest
            started = time.perf_counter()
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            fastest = min(fastest, time.perf_counter() - started)
        return fastest

    small = seconds(nn.Linear(4, 3), (100, 4))
    forms = seconds(LowRankForm(784, 100, rank=10), (1000, 784))
    layers = [QuadraticConv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    networks = seconds(nn.Sequential(*layers), (32, 16, 32, 32))
    rates = Rates(
        forms=_PASSES * 1000 * 100 * 10 * 785 / forms,
        networks=_PASSES * 32 * 32 * 32 * 16 * (3 * 16 * 9 + 1) / networks,
        step=5 * small,  # drawing a batch, the loss and its record beside the update
    )
    try:
        path = calibration_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {"cores": os.cpu_count(), "rates": rates.model_dump()}
        write_whole(path, json.dumps(kept, indent=1) + "\n")
    except (OSError, RuntimeError):
        pass  # it is measured again the next time
    return rates


def main() -> None:
    """Count every table, and write ``tables/costs.json`` in this source tree."""
    costs = {name: table_cost(load_table(name)).model_dump() for name in table_names()}
    path = Path(__file__).with_name("tables") / "costs.json"
    path.write_text(json.dumps(costs, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
