"""Who stands where: ranks that respect uncertainty, differences to the controls, Pareto fronts."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal

import qcore
from qbench.architecture import ModelSpec
from qbench.errors import UserError
from qbench.leaderboard.entry import Entry
from qbench.report.statistics import summarize
from qbench.table import load_table
from qzoo.cost import cost
from qzoo.models.architectures import ARCHITECTURES

Control = Literal["plain", "parameter-matched"]
"""The linear networks that every board has: of the same shape, and with as many parameters."""

Group = Literal["full runs", "reduced runs", "best on test", "not verified"]
"""What is ranked together: never one with the other."""

GROUPS: tuple[Group, ...] = ("full runs", "reduced runs", "best on test", "not verified")

_Z = 1.959963984540054  # of the standard normal distribution, two-sided at 95 %


@dataclass(frozen=True)
class Network:
    """What an entry is, in words, and which control it is where it is one."""

    neuron: str
    head: str
    control: Control | None

    @property
    def is_quadratic(self) -> bool:
        """Whether any part of it is."""
        return self.control is None


@dataclass(frozen=True)
class Difference:
    """Accuracy less that of a control, in points, paired over seeds, with its 95 % interval."""

    to: str
    mean: float
    interval95: tuple[float, float] | None
    n: int


@dataclass(frozen=True)
class Row:
    """An entry among the others of its dataset.

    ``accuracy`` is the mean over ``n`` seeds, with ``std`` and ``interval95`` over them; of one
    file, the interval is Wilson's over its test images. ``rank`` is one more than the number of
    entries of the group whose intervals lie above this one's: those within share it. Rows that
    nothing measured have none.
    """

    entry: Entry
    network: Network
    group: Group
    accuracy: float | None
    std: float | None
    n: int
    interval95: tuple[float, float] | None
    rank: int | None = None
    differences: tuple[Difference, ...] = ()

    @cached_property
    def parameters(self) -> int | None:
        """As they were counted."""
        return self._counted[0]

    @cached_property
    def multiply_adds(self) -> int | None:
        """Of one input."""
        return self._counted[1]

    @cached_property
    def _counted(self) -> tuple[int | None, int | None]:
        entry = self.entry
        if entry.run is not None:
            return entry.run.parameters, entry.run.multiply_adds
        if entry.measurement is not None and entry.measurement.parameters is not None:
            return entry.measurement.parameters, entry.measurement.multiply_adds
        record = entry.provenance
        if record is None or record.model not in ARCHITECTURES:
            return None, None
        channels, size, _ = record.preprocessing.input_size
        found = cost(record.model, num_classes=record.num_classes, in_chans=channels, size=size)
        return found.parameters, found.multiply_adds

    @property
    def seconds(self) -> float | None:
        """Of training one seed: measured by a run, or as the entry claims."""
        return self.entry.claim.training_seconds


def standings(entries: Sequence[Entry]) -> list[Row]:
    """The rows of one dataset: by group, in each by rank and accuracy, what has none at the end.

    >>> standings([])
    []
    """
    rows = [_row(entry) for entry in entries]
    rows = [
        replace(row, rank=_rank(row, rows), differences=_differences(row, rows)) for row in rows
    ]
    return sorted(
        rows,
        key=lambda row: (
            GROUPS.index(row.group),
            row.rank or math.inf,
            -(row.accuracy if row.accuracy is not None else row.entry.claim.accuracy),
            row.entry.id,
        ),
    )


def missing_controls(rows: Sequence[Row]) -> list[Control]:
    """The controls that have no row, which the board then says."""
    there = {row.network.control for row in rows}
    every: tuple[Control, ...] = ("plain", "parameter-matched")
    return [control for control in every if control not in there]


def pareto_front(rows: Sequence[Row], costs: Sequence[float | None]) -> list[int]:
    """The rows that no other beats in accuracy at no more cost, as positions, cheapest first.

    Taken are rows of full runs with an accuracy and a cost.

    >>> pareto_front([], [])
    []
    """
    known = [
        (cost, -row.accuracy, place)
        for place, (row, cost) in enumerate(zip(rows, costs, strict=True))
        if cost is not None and row.accuracy is not None and row.group == "full runs"
    ]
    front: list[int] = []
    best = math.inf
    for _, worse, place in sorted(known):
        if worse < best:
            best = worse
            front.append(place)
    return front


def wilson(accuracy: float, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of an accuracy in percent, measured on so many images.

    >>> [round(value, 1) for value in wilson(90.0, 1000)]
    [88.0, 91.7]
    """
    share = accuracy / 100
    centre = share + _Z**2 / (2 * images)
    half = _Z * math.sqrt(share * (1 - share) / images + _Z**2 / (4 * images**2))
    scale = 100 / (1 + _Z**2 / images)
    return scale * (centre - half), scale * (centre + half)


_table = cache(load_table)  # hundreds of entries are of one table


def network_of(entry: Entry) -> Network:
    """What an entry is.

    Raises ``UserError`` for a run whose table or model is not there any more.
    """
    if entry.run is not None:
        table = _table(entry.run.table)
        model = str(entry.run.axes.get("model"))
        if model not in table.grid.model:
            raise UserError(f"entry {entry.id}: table {table.id} has no model {model!r}")
        return _of_spec(table.grid.model[model])
    assert entry.provenance is not None  # noqa: S101 - an entry has one of the two
    return _of_name(entry.provenance.model)


def _of_spec(spec: ModelSpec) -> Network:
    if spec.kind == "zoo":
        return _of_name(spec.full_name, spec.quadratize)
    head = {"dense": "dense form", "low_rank": f"rank {spec.rank}"}.get(spec.kind, "linear")
    if spec.kind == "low_rank":
        head += ", signed" * spec.signed
    head += ", affine" * spec.affine
    if spec.kind != "mlp":
        return Network(
            "linear" if spec.convolution else "–", head, "plain" if head == "linear" else None
        )
    if spec.activation == "square":
        return Network("squared_output", head, None)
    linear = spec.neuron == "linear"
    return Network(f"{spec.neuron}, hidden", head, "parameter-matched" if linear else None)


def _of_name(name: str, quadratized: str | None = None) -> Network:
    row = ARCHITECTURES.get(name, {"neuron": "linear"})
    neuron = quadratized or str(row.get("neuron", "quadratic"))
    head = str(row.get("head", "linear"))
    shown = {"low_rank": f"rank {row.get('rank')}", "dense": "dense form"}.get(head, head)
    if neuron != "linear" or head != "linear":
        return Network(neuron, shown, None)
    matched = re.search(r"_w\d+$", name) is not None
    return Network(neuron, shown, "parameter-matched" if matched else "plain")


def formula_of(network: Network) -> str | None:
    """The formula of its neurons, where they are of the catalogue.

    >>> formula_of(Network("compact", "linear", None))
    'w_r x + b_r + w_b x² + c'
    """
    name = network.neuron.partition(",")[0]
    return qcore.get_neuron(name).formula if name in qcore.CATALOGUE else None


def _row(entry: Entry) -> Row:
    found = entry.accuracy
    group: Group = "full runs"
    if found is None or entry.verdict in ("not verified", "could not be loaded"):
        group = "not verified"
    elif entry.selection == "best on test":
        group = "best on test"
    elif entry.reduced:
        group = "reduced runs"
    interval = found.interval95 if found else None
    images = entry.measurement.images if entry.measurement else None
    if found is not None and interval is None and images is not None and entry.run is None:
        interval = wilson(found.mean, images)
    return Row(
        entry=entry,
        network=network_of(entry),
        group=group,
        accuracy=found.mean if found else None,
        std=found.std if found else None,
        n=found.n if found else 0,
        interval95=interval,
    )


def _rank(row: Row, rows: Sequence[Row]) -> int | None:
    """One more than the number of rows of the group that are better beyond both intervals."""
    if row.accuracy is None or row.group == "not verified":
        return None
    _, high = row.interval95 or (row.accuracy, row.accuracy)
    better = 0
    for other in rows:
        if other.group == row.group and other.accuracy is not None:
            low, _ = other.interval95 or (other.accuracy, other.accuracy)
            better += low > high
    return 1 + better


def _differences(row: Row, rows: Sequence[Row]) -> tuple[Difference, ...]:
    """To each control whose seeds pair: of the same table, under the same choices."""
    run = row.entry.run
    if run is None or row.network.control is not None:
        return ()
    found = []
    others = {axis: value for axis, value in run.axes.items() if axis != "model"}
    for control in rows:
        other = control.entry.run
        if control.network.control is None or other is None or control.group != row.group:
            continue
        same = (other.table, other.version) == (run.table, run.version)
        if not same or {a: v for a, v in other.axes.items() if a != "model"} != others:
            continue
        pairs = [
            value - other.accuracies[seed]
            for seed, value in run.accuracies.items()
            if seed in other.accuracies
        ]
        summary = summarize(pairs)
        if summary is not None and summary.n > 1:
            found.append(Difference(control.entry.id, summary.mean, summary.interval95, summary.n))
    return tuple(found)
