"""Blocks handed to workers, under the rules that hold wherever these are."""

import heapq
import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from qbench.block import Block
from qbench.trial import Result

MOST_LOST = 3
"""Workers lost over one block after which it counts as failed."""


@dataclass(frozen=True)
class Done:
    """A block that ended, with the results that it added."""

    block: Block
    results: list[Result]


@dataclass(frozen=True)
class Busy:
    """A block that another process is running."""

    block: Block


@dataclass(frozen=True)
class Lost:
    """A block whose worker was lost in the middle of it; a checkpoint may be there."""

    block: Block
    reason: str


@dataclass(frozen=True)
class Failed:
    """A block that raised what another attempt would raise again."""

    block: Block
    reason: str


Event = Done | Busy | Lost | Failed


class Pool(Protocol):
    """Workers that run one block each at a time.

    What the next block would meet as well, such as a full disk, is raised by :meth:`events`.
    """

    @property
    def size(self) -> int:
        """How many blocks it runs at once."""

    def submit(self, block: Block, *, wait: bool) -> None:
        """Begin a block; with ``wait`` it waits for another process that is running it."""

    def events(self) -> Iterable[Event]:
        """What has become of blocks since the last call; waits until there is something."""


def dispatch(
    pool: Pool,
    blocks: Iterable[Block],
    on_failure: Callable[[Block, str], None] = lambda block, reason: None,
) -> Iterator[tuple[Block, list[Result]]]:
    """Run blocks on a pool; yields each that ended with the results that it added.

    Several workers begin with the longest blocks, so that none is left with one at the end. A block
    that starts from another's weights waits for that one, which counts as long as the whole chain
    behind it. One that another process is running is tried again when nothing else is left; one
    whose worker was lost goes to the next worker, and counts as failed after the third.
    ``on_failure`` is told of each that failed.
    """
    queue = _Queue(blocks, longest_first=pool.size > 1)
    lost: Counter[Block] = Counter()
    running = 0
    while True:
        while running < pool.size and (taken := queue.take()) is not None:
            block, wait = taken
            pool.submit(block, wait=wait)
            running += 1
        if not running:
            return
        for event in pool.events():
            running -= 1
            block = event.block
            if isinstance(event, Busy):
                queue.put_off(block)
                continue
            if isinstance(event, Lost):
                lost[block] += 1
                if lost[block] < MOST_LOST:
                    queue.put_back(block)
                    continue
            queue.ended(block)
            if isinstance(event, Done):
                yield block, event.results
            else:
                times = f" ({MOST_LOST} times)" if isinstance(event, Lost) else ""
                on_failure(block, event.reason + times)


class _Queue:
    """Blocks that have not begun: those that may, those that wait for another's end, and those that
    another process was seen running."""

    def __init__(self, blocks: Iterable[Block], *, longest_first: bool) -> None:
        every = list(blocks)
        chains = _chains(every) if longest_first else {}
        self._order = {block: (-chains.get(block, 0.0), index) for index, block in enumerate(every)}
        self._open = {(block.cell.key, seed) for block in every for seed in block.seeds}
        self._ready: list[tuple[float, int, Block]] = []
        self._waiting: defaultdict[tuple[str, int], list[Block]] = defaultdict(list)
        self._elsewhere: deque[Block] = deque()
        for block in every:
            self._add(block)

    def take(self) -> tuple[Block, bool] | None:
        """The next block, and whether to wait for the process that may be running it."""
        if self._ready:
            return heapq.heappop(self._ready)[-1], False
        if self._elsewhere:
            return self._elsewhere.popleft(), True
        return None

    def put_back(self, block: Block) -> None:
        """Take a block up again before all others."""
        heapq.heappush(self._ready, (-math.inf, self._order[block][1], block))

    def put_off(self, block: Block) -> None:
        """Take a block up again when nothing else is left."""
        self._elsewhere.append(block)

    def ended(self, block: Block) -> None:
        """Free the blocks that start from this one's weights."""
        for seed in block.seeds:
            place = (block.cell.key, seed)
            self._open.discard(place)
            for freed in self._waiting.pop(place, []):
                self._add(freed)

    def _add(self, block: Block) -> None:
        start = block.cell.after
        for seed in block.seeds if start is not None else ():
            place = (start.key if start else "", seed)
            if place in self._open:
                self._waiting[place].append(block)
                return
        heapq.heappush(self._ready, (*self._order[block], block))


def _chains(blocks: Sequence[Block]) -> dict[Block, float]:
    """The cost of each block with that of the longest chain of blocks that start from it."""
    at = {(block.cell.key, seed): block for block in blocks for seed in block.seeds}
    behind: dict[Block, set[Block]] = {block: set() for block in blocks}
    for block in blocks:
        start = block.cell.after
        for seed in block.seeds if start is not None else ():
            before = at.get((start.key, seed)) if start else None
            if before is not None:
                behind[before].add(block)

    @cache
    def chain(block: Block) -> float:
        return block.cost + max(map(chain, behind[block]), default=0.0)

    return {block: chain(block) for block in blocks}
