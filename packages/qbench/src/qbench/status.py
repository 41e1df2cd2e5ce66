"""How far a table's run has come: what is there, what is being run, what failed, what is left."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from qbench.activity import Activity, activities
from qbench.frozen import Frozen, Scalar
from qbench.table import REDUCTIONS, Cell, RecordedReduction, Reduction, Table
from qbench.trial import RunFolder, no_result


class _Environment(BaseModel):
    model_config = ConfigDict(extra="ignore")

    seconds: float
    block: tuple[int, ...]


class _Head(BaseModel):
    """What a status needs of a result: the rest is passed over."""

    model_config = ConfigDict(extra="ignore")

    schema_version: Literal[1] = 1
    version: int
    reduced: RecordedReduction
    status: Literal["finished", "diverged"]
    axes: dict[str, Scalar]
    environment: _Environment


class Status(Frozen):
    """A table's trials under one combination of its unstated choices, ``reduced`` in one way or in
    full.

    ``choices`` are those that are not the defaults. ``finished`` and ``diverged`` trials are
    recorded, ``expected`` counts all. ``running`` are blocks that a process is at now, ``stopped``
    those that one left and none has taken up since, ``failed`` those that raised. ``left`` are the
    seconds that the rest takes at the pace of what is recorded, over as many processes as there are
    now; None where nothing is recorded to go by.
    """

    table: str
    reduced: Reduction | None
    choices: dict[str, Scalar]
    expected: int
    finished: int
    diverged: int
    running: list[Activity]
    stopped: list[Activity]
    failed: list[Activity]
    left: float | None

    @property
    def recorded(self) -> int:
        """Trials with a result."""
        return self.finished + self.diverged


def statuses(folder: RunFolder, wanted: int | None = None) -> list[Status]:
    """What has begun of a table, in full and reduced each by themselves, and so each combination of
    unstated choices, the defaults first; with ``wanted`` seeds, or the table's own number."""
    table, seen = folder.table, _look(folder)
    begun = [(one.reduced, one.axes) for one in seen.heads.values() if one.version == table.version]
    begun += [(activity.reduced, activity.axes) for activity, _ in seen.activities]
    found = []
    for reduced in (None, *(name for name in REDUCTIONS if table.reduction(name))):
        number = wanted or table.usual_seeds(reduced)
        every = (other_choices(table, axes) for kind, axes in begun if kind == reduced)
        combinations = {tuple(choices.items()): choices for choices in every}
        for choices in sorted(combinations.values(), key=partial(_place, table)):
            cells = table.cells(choices={k: (v,) for k, v in choices.items()}, reduced=reduced)
            status = status_of(folder, list(cells), number, seen)
            if status.recorded or status.running or status.stopped or status.failed:
                found.append(status)
    return found


def _place(table: Table, choices: Mapping[str, Scalar]) -> list[int]:
    """Where a combination stands: values as the table lists them, the default first."""
    return [
        table.axes[name].index(choices.get(name, default))
        for name, default in table.defaults.items()
    ]


class _Seen(NamedTuple):
    """What one look at a folder found: each result by its key, and blocks with whether a process is
    at them."""

    heads: Mapping[str, _Head]
    activities: Sequence[tuple[Activity, bool]]


def _look(folder: RunFolder) -> _Seen:
    return _Seen(dict(folder.read_each(_read)), list(activities(folder)))


def status_of(
    folder: RunFolder, cells: Sequence[Cell], seeds: int, seen: _Seen | None = None
) -> Status:
    """The status of these cells, under one combination of choices, with the seeds 0 … ``seeds``
    - 1; ``seen`` is what was found in the folder, where somebody has looked."""
    seen = _look(folder) if seen is None else seen
    choices: dict[str, Scalar] = {}
    for cell in cells:  # one that a choice changes nothing for has its default
        choices |= other_choices(folder.table, cell.axes)
    counts = {"finished": 0, "diverged": 0}
    seconds: dict[str, list[float]] = {cell.key: [] for cell in cells}
    for cell in cells:
        for seed in range(seeds):
            head = seen.heads.get(cell.trial_key(seed))
            if head is not None:
                counts[head.status] += 1
                share = head.environment.seconds / max(1, len(head.environment.block))
                seconds[cell.key].append(share)
    found = [
        (activity, held)
        for activity, held in seen.activities
        if activity.reduced == cells[0].reduced
        and other_choices(folder.table, activity.axes) == choices
    ]
    running = [activity for activity, held in found if held]
    return Status(
        table=folder.table.id,
        reduced=cells[0].reduced,
        choices=choices,
        expected=len(cells) * seeds,
        finished=counts["finished"],
        diverged=counts["diverged"],
        running=running,
        stopped=[a for a, held in found if not held and a.state == "running"],
        failed=[a for a, held in found if not held and a.state == "failed"],
        left=_left(cells, seeds, seconds, running),
    )


def other_choices(table: Table, axes: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The unstated choices among the axes that are not the table's defaults; values that it does
    not know are passed over.

    >>> from qbench.table import load_table
    >>> other_choices(load_table("uci"), {"model": "rank1", "scaling": "raw", "init_scale": 1.0})
    {'scaling': 'raw'}
    """
    return {
        name: axes[name]
        for name, default in table.defaults.items()
        if axes.get(name, default) != default and axes[name] in table.axes[name]
    }


def _read(path: Path) -> _Head:
    content = path.read_bytes()
    try:
        return _Head.model_validate_json(content)
    except ValidationError as error:
        raise no_result(path, content, error) from error


def _left(
    cells: Sequence[Cell],
    seeds: int,
    seconds: Mapping[str, Sequence[float]],
    running: Sequence[Activity],
) -> float | None:
    """A missing trial takes what others of its cell took, or else of its dataset, or of any."""
    by_dataset: dict[str, list[float]] = {}
    for cell in cells:
        by_dataset.setdefault(cell.dataset, []).extend(seconds[cell.key])
    every = [value for values in seconds.values() for value in values]
    left = 0.0
    for cell in cells:
        missing = seeds - len(seconds[cell.key])
        if missing:
            known = seconds[cell.key] or by_dataset[cell.dataset] or every
            if not known:
                return None
            left += missing * sum(known) / len(known)
    begun = sum(activity.fraction * len(activity.seeds) for activity in running)
    pace = sum(every) / len(every) if every else 0.0
    return max(0.0, left - begun * pace) / max(1, len(running))
