"""What a run shows while it trains: a bar in a terminal, a line a minute in a file."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

from qbench.report.wording import format_duration

if TYPE_CHECKING:
    from rich.progress import Progress

    from qbench.block import Block

_SECONDS_BETWEEN_LINES = 60.0  # of a run that shows no bar


@contextmanager
def progress(blocks: Sequence["Block"], console: Console) -> Iterator["OnProgress"]:
    """A bar over all blocks with the trials done and the time left."""
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    total = sum(len(block.seeds) for block in blocks)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[trials]}/" + f"{total} trials"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=120,
        disable=not blocks or not console.is_terminal,
    )
    with bar:
        yield OnProgress(bar, blocks, None if console.is_terminal else console)


class OnProgress:
    """Turns the fraction of a block that is done into the bar's position; into a line a minute on
    ``plain``, which shows no bar, as a file does not."""

    def __init__(
        self, bar: "Progress", blocks: Iterable["Block"], plain: Console | None = None
    ) -> None:
        self._bar, self._plain = bar, plain
        self._started = self._said = time.monotonic()
        self._costs = {block: block.cost for block in blocks}
        self._done: dict[Block, float] = {}
        self._task = bar.add_task("", total=sum(self._costs.values()), trials=0)

    def __call__(self, block: "Block", fraction: float) -> None:
        """Note that this fraction of a block is done."""
        self._done[block] = fraction
        position = sum(self._costs[b] * share for b, share in self._done.items())
        trials = sum(len(b.seeds) for b, share in self._done.items() if share >= 1)
        self._bar.update(self._task, completed=position, description=str(block.cell), trials=trials)
        now = time.monotonic()
        if self._plain is not None and now - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = now
            share = position / (sum(self._costs.values()) or 1)
            took = format_duration(now - self._started)
            self._plain.print(f"{share:.0%} after {took}: {trials} trials, at {block.cell}")
