"""Who stands where: ranks that respect uncertainty, and differences to the controls."""

import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import groupby
from typing import Any, Literal, get_args

import qcore
from qbench.architecture import ModelSpec
from qbench.errors import UserError
from qbench.leaderboard.entry import Entry
from qbench.report.statistics import summarize, wilson
from qbench.table import REDUCTIONS, Cell, Reduction, load_table
from qzoo.architectures import ARCHITECTURES, DIQNNS

Control = Literal["plain", "parameter-matched"]
"""The linear networks that every board has: of the same shape, and with as many parameters."""

_AS_MANY = 0.1
"""How far a matched control's parameters may be from those of a row, relative to these; one made
as large as the very model is closer than that, unless the model has but a few dozen."""

Group = Literal["full runs", "reduced runs", "quick runs", "best on test", "not verified"]
"""What is ranked together: never one with the other."""

GROUPS: tuple[Group, ...] = get_args(Group)


@dataclass(frozen=True)
class Network:
    """What an entry is, in words; whether all of it is linear; and which control, where it is one.

    A linear network is the parameter-matched control where it was made as large as a quadratic one.
    """

    neuron: str
    head: str
    linear: bool = False
    control: Control | None = None


@dataclass(frozen=True)
class Difference:
    """Accuracy less that of a control, in points, paired over seeds, with its 95 % interval."""

    to: str
    control: Control
    mean: float
    interval95: tuple[float, float] | None
    n: int


@dataclass(frozen=True)
class Row:
    """An entry among the others of its dataset.

    ``accuracy`` is the mean over ``n`` seeds, with ``std`` and ``interval95`` over them; of one
    file, or one seed, the interval is Wilson's over the test set. ``rank`` is one more than the
    number of entries of the group whose intervals lie wholly above this one's, and no less than
    that of any with a higher accuracy: nothing stands higher for being less certain. Rows whose
    accuracy was not measured here have none of these. ``model`` is what its run trained.
    """

    entry: Entry
    network: Network
    model: ModelSpec | None
    group: Group
    accuracy: float | None
    std: float | None
    n: int
    interval95: tuple[float, float] | None
    rank: int | None = None
    differences: tuple[Difference, ...] = ()

    def difference_to(self, control: Control) -> Difference | None:
        """The difference to the first control of a kind, where there is one."""
        return next((one for one in self.differences if one.control == control), None)

    @cached_property
    def parameters(self) -> int | None:
        """As they were counted."""
        found = self.entry.measured
        return found.parameters if found is not None else None

    @property
    def multiply_adds(self) -> int | None:
        """Of one input."""
        found = self.entry.measured
        return found.multiply_adds if found is not None else None

    @property
    def seconds(self) -> float | None:
        """Of training one seed, as a run measured it; what is claimed of weights is no measure."""
        return self.entry.run.seconds if self.entry.run is not None else None


def standings(entries: Sequence[Entry]) -> list[Row]:
    """The rows of one dataset: by group, in each by rank and accuracy, what has none at the end.

    >>> standings([])
    []
    """
    rows = [_row(entry) for entry in entries]
    ranks: dict[str, int] = {}
    for group in GROUPS:
        if group != "not verified":
            ranks |= _ranks([row for row in rows if row.group == group])
    rows = [
        replace(row, rank=ranks.get(row.entry.id), differences=_differences(row, rows))
        for row in rows
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


def rows_of(datasets: Sequence[str], entries: Sequence[Entry]) -> list[Row]:
    """The standings of each of these datasets, one after the other."""
    return [
        row
        for dataset in datasets
        for row in standings([entry for entry in entries if entry.dataset == dataset])
    ]


def missing_controls(rows: Sequence[Row]) -> list[Control]:
    """The controls that have no full run that was measured, which the board then says."""
    there = {row.network.control for row in rows if row.group == "full runs"}
    every: tuple[Control, ...] = ("plain", "parameter-matched")
    return [control for control in every if control not in there]


_table = cache(load_table)  # hundreds of entries are of one table


def cell_of(entry: Entry) -> Cell:
    """The cell of a table that an entry's run is of.

    Raises ``UserError`` where the table has changed since, or never had it.
    """
    run = entry.run
    if run is None:
        raise UserError(f"entry {entry.id} has no run")
    table = _table(run.table)
    if run.version != table.version:
        raise UserError(
            f"the run is of version {run.version} of table {table.id}, which is at version "
            f"{table.version}: run it again and submit that"
        )
    of_grid = {axis: (value,) for axis, value in run.axes.items() if axis in table.grid_axes}
    choices = {axis: (value,) for axis, value in run.axes.items() if axis not in table.grid_axes}
    # a reduced run is known by its keys: each kind of them has its own recipe
    kinds: list[Reduction | None] = [None]
    if entry.reduced:
        kinds = [name for name in REDUCTIONS if table.reduction(name)]
    if not kinds:
        raise UserError(f"table {table.id} has no reduced runs, and the entry says that it is one")
    found = []
    for kind in kinds:
        cells = list(table.cells(of_grid, choices, reduced=kind))
        if len(cells) > 1:
            raise UserError(
                f"the run's axes name {len(cells)} cells of table {table.id}, and not one"
            )
        found += cells
    if not found:
        raise UserError(f"the run's axes name no cell of table {table.id}")
    first = run.seeds[0]
    cell = next((cell for cell in found if cell.trial_key(first.seed) == first.key), found[0])
    for one in run.seeds:
        if cell.trial_key(one.seed) != one.key:
            raise UserError(
                f"{one.key} is not the key of seed {one.seed} of {table.id} {cell}: it is of "
                "another recipe"
            )
    return cell


def of_spec(spec: ModelSpec) -> Network:
    """What a model of a table is.

    >>> of_spec(ModelSpec(kind="low_rank", rank=2, affine=True))
    Network(neuron='–', head='rank 2, affine', linear=False, control=None)
    """
    if spec.kind == "zoo":
        options = {**spec.options, **({"neuron": spec.quadratize} if spec.quadratize else {})}
        norm = {"rms_norm": True} if spec.norm is not None else {}
        return _of_zoo(spec.full_name, options | norm)
    if spec.kind == "mlp":
        neuron = spec.hidden_neuron
        linear = neuron == "linear"
        matched = linear and spec.as_large_as is not None
        # of its quadratic branches, where not said of what
        of = {"layers": " layers", "input": " input"}.get(spec.norm or "", "")
        neuron += f", normalised{of}" * (spec.norm is not None)
        return Network(neuron, "linear", linear, "parameter-matched" if matched else None)
    neuron = "linear" if spec.convolution else "–"
    head = {"dense": "dense form", "low_rank": f"rank {spec.rank}"}.get(spec.kind, "linear")
    head += ", signed" * spec.signed + ", affine" * spec.affine
    head += ", normalised input" * (spec.norm is not None)
    linear = spec.kind == "linear"
    return Network(neuron, head, linear, "plain" if linear else None)


def _of_zoo(name: str, options: Mapping[str, Any]) -> Network:
    """A network of the zoo; any other of timm's is linear, unless a neuron is put into it."""
    row = {**ARCHITECTURES.get(name, {"neuron": "linear"}), **options}
    if name in DIQNNS:
        row["neuron"] = "linear" if row.get("convolution") else "–"
    neuron, head = str(row.get("neuron", "quadratic")), str(row.get("head", "linear"))
    shown = {"low_rank": f"rank {row.get('rank')}", "dense": "dense form"}.get(head, head)
    shown += ", signed" * bool(row.get("signed")) + ", affine" * bool(row.get("affine"))
    if row.get("neuron_rank"):
        neuron += f", rank {row['neuron_rank']}"
    neuron += ", normalised" * bool(row.get("rms_norm"))
    if neuron not in ("linear", "–") or head != "linear":
        return Network(neuron, shown)
    matched = re.search(r"_w\d+$", name) is not None
    return Network(neuron, shown, linear=True, control="parameter-matched" if matched else "plain")


def formula_of(network: Network) -> str | None:
    """The formula of its neurons, where they are of the catalogue.

    >>> formula_of(Network("compact", "linear"))
    'w_r x + b_r + w_b x² + c'
    >>> formula_of(Network("compact, normalised", "linear"))
    'w_r x + b_r + w_b x²/rms(x²) + c'
    """
    name, *words = network.neuron.split(", ")
    if name not in qcore.CATALOGUE:
        return None
    neuron = qcore.get_neuron(name)
    return neuron.normalised_formula if "normalised" in words else neuron.formula


def _row(entry: Entry) -> Row:
    found, cell = entry.accuracy, None
    try:
        if entry.run is not None:
            cell = cell_of(entry)
            network = of_spec(cell.model)
        else:
            assert entry.provenance is not None  # noqa: S101 - an entry has one of the two
            network = _of_zoo(entry.provenance.model, {})
    except UserError:  # of a table that is not as it was: nothing can be said of it any more
        network, found = Network("?", "?"), None
    group: Group = "full runs"
    if found is None or entry.measured is None:
        group, found = "not verified", None
    elif entry.selection == "best on test":
        group = "best on test"
    elif entry.reduced:
        is_quick = cell is not None and cell.reduced == "quick"
        group = "quick runs" if is_quick else "reduced runs"
    interval = found.interval95 if found else None
    if found is not None and found.n == 1 and entry.measured and entry.measured.images:
        interval = wilson(found.mean, entry.measured.images)
    return Row(
        entry=entry,
        network=network,
        model=cell.model if cell is not None else None,
        group=group,
        accuracy=found.mean if found else None,
        std=found.std if found else None,
        n=found.n if found else 0,
        interval95=interval,
    )


def _ranks(rows: Sequence[Row]) -> dict[str, int]:
    """The rank of each entry of one group: the largest number of rows beyond both intervals above
    any that is at least as accurate, and one more."""
    known = [(row.accuracy, row) for row in rows if row.accuracy is not None]
    bounds = {row.entry.id: row.interval95 or (accuracy, accuracy) for accuracy, row in known}
    lows = sorted(low for low, _ in bounds.values())
    ranks: dict[str, int] = {}
    rank = 1
    for _, group in groupby(sorted(known, key=lambda pair: -pair[0]), key=lambda pair: pair[0]):
        equals = [row.entry.id for _, row in group]
        rank = max(rank, *(1 + len(lows) - bisect_right(lows, bounds[one][1]) for one in equals))
        ranks |= dict.fromkeys(equals, rank)
    return ranks


def _differences(row: Row, rows: Sequence[Row]) -> tuple[Difference, ...]:
    """To the control of each kind whose seeds pair, of the same table and under the same choices:
    where there are several, that of the nearest size."""
    run = row.entry.run
    if run is None or row.network.linear or row.group == "not verified":
        return ()
    others = {axis: value for axis, value in run.axes.items() if axis != "model"}
    nearest: dict[Control, Row] = {}
    for control in rows:
        kind, other = control.network.control, control.entry.run
        if kind is None or other is None or control.group != row.group:
            continue
        same = (other.table, other.version) == (run.table, run.version)
        if not same or {a: v for a, v in other.axes.items() if a != "model"} != others:
            continue
        if kind == "parameter-matched" and not _as_large(control, row):
            continue
        before = nearest.get(kind)
        if before is None or _apart(control, row) < _apart(before, row):
            nearest[kind] = control
    found = []
    for kind in get_args(Control):
        if kind not in nearest:
            continue
        base = nearest[kind].entry
        accuracies = base.run.accuracies if base.run is not None else {}
        pairs = [
            value - accuracies[seed] for seed, value in run.accuracies.items() if seed in accuracies
        ]
        summary = summarize(pairs)
        if summary is not None and summary.n > 1:
            found.append(Difference(base.id, kind, summary.mean, summary.interval95, summary.n))
    return tuple(found)


def _apart(control: Row, row: Row) -> tuple[int, bool, str]:
    """How far a control's parameters are from those of a row; of equals first those that are
    normalised and trained as it is, then in the order of names."""
    ways = [
        (model.norm is not None, model.recipe) if (model := of.model) is not None else None
        for of in (control, row)
    ]
    apart = abs((control.parameters or 0) - (row.parameters or 0))
    return apart, ways[0] != ways[1], control.entry.id


def _as_large(control: Row, row: Row) -> bool:
    """Whether a control has as many parameters as a row: made so, or counted."""
    wanted = control.model.as_large_as if control.model is not None else None
    own = row.model
    if own is not None and isinstance(wanted, ModelSpec):
        form = (wanted.kind, wanted.rank, wanted.signed, wanted.affine)
        if (own.kind, own.rank, own.signed, own.affine) == form:
            return True
    if control.parameters is None or row.parameters is None:
        return False
    return abs(control.parameters - row.parameters) <= _AS_MANY * row.parameters
