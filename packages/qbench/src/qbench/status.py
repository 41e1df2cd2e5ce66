"""How far a table's run has come: what is there, what is being run, what failed, what is left."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qbench.activity import Activity, activities
from qbench.errors import UserError
from qbench.frozen import Frozen, Scalar
from qbench.table import REDUCTIONS, Cell, Reduction, Table
from qbench.trial import RunFolder, no_result


class _Environment(BaseModel):
    model_config = ConfigDict(extra="ignore")

    seconds: float
    block: tuple[int, ...]


class _Head(BaseModel):
    """What a status needs of a result: the rest is passed over."""

    model_config = ConfigDict(extra="ignore")

    schema_version: Literal[1] = 1
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
    seen = [other_choices(folder.table, activity.axes) for activity, _ in activities(folder)]
    found = list(_begun(folder, seen, wanted))
    paths = list(folder.path.glob("*/result.json"))
    if len(paths) > sum(status.recorded for status in found):
        # of other choices, more seeds than these, or another version
        found = list(_begun(folder, [*seen, *_recorded_choices(folder.table, paths)], wanted))
    return found


def _recorded_choices(table: Table, paths: Iterable[Path]) -> Iterator[dict[str, Scalar]]:
    for path in paths:
        # one that cannot be read is counted nowhere: a report says what is the matter with it
        with suppress(UserError):
            yield other_choices(table, _read(path).axes)


def _begun(
    folder: RunFolder, seen: Sequence[dict[str, Scalar]], wanted: int | None
) -> Iterator[Status]:
    table = folder.table
    combinations = sorted({tuple(choices.items()) for choices in ({}, *seen)}, key=_place(table))
    for reduced in (None, *(name for name in REDUCTIONS if table.reduction(name))):
        number = wanted or table.usual_seeds(reduced)
        for choices in combinations:
            cells = table.cells(choices={name: (v,) for name, v in choices}, reduced=reduced)
            found = status_of(folder, list(cells), number)
            if found.recorded or found.running or found.stopped or found.failed:
                yield found


def _place(table: Table) -> Callable[[tuple[tuple[str, Scalar], ...]], list[int]]:
    """Where a combination of choices stands: values as the table lists them, the default first."""
    return lambda choices: [
        table.axes[name].index(dict(choices).get(name, default))
        for name, default in table.defaults.items()
    ]


def status_of(folder: RunFolder, cells: Sequence[Cell], seeds: int) -> Status:
    """The status of these cells, under one combination of choices, with the seeds 0 … ``seeds``
    - 1."""
    choices: dict[str, Scalar] = {}
    for cell in cells:  # one that a choice changes nothing for has its default
        choices |= other_choices(folder.table, cell.axes)
    counts = {"finished": 0, "diverged": 0}
    seconds: dict[str, list[float]] = {cell.key: [] for cell in cells}
    for cell in cells:
        for seed in range(seeds):
            path = folder.result_path(cell.trial_key(seed))
            if path.exists():
                head = _read(path)
                counts[head.status] += 1
                share = head.environment.seconds / max(1, len(head.environment.block))
                seconds[cell.key].append(share)
    found = [
        (activity, held)
        for activity, held in activities(folder)
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
