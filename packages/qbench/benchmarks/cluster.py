"""On paper: all tables on a cluster of 100 A100s, handed out by the dispatcher in simulated time.

    uv run python packages/qbench/benchmarks/cluster.py [--gpus 100]

Nothing is trained. How long a block takes is its multiply-adds over the A100's data sheet at the
utilisation that ``qbench list`` assumes, so all hours here are estimates; which GPU gets which
block when is decided by the code that decides it in a run. For each table: the hours of one GPU,
those of the cluster, the longest block, and how much of the cluster is used. Below: all tables at
once, at best in the larger of work over GPUs and the longest chain of blocks.
"""

import argparse
import heapq
from collections.abc import Iterator, Sequence
from itertools import count

from rich.console import Console
from rich.table import Table as Grid

from qbench.block import Block
from qbench.cost import A100, cell_cost, stacks
from qbench.executors import dispatch
from qbench.executors.dispatch import Done, Event
from qbench.table import load_table, table_names

PER_BLOCK = 10.0
"""Seconds that a block takes beside its training: its process's first CUDA context, data, writing;
our assumption."""


class Simulated:
    """GPUs in simulated time: a heap of what ends when, in hours."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.now = 0.0
        self._number = count()
        self._running: list[tuple[float, int, Block]] = []

    def submit(self, block: Block, *, wait: bool) -> None:
        """Begin a block."""
        del wait
        heapq.heappush(self._running, (self.now + hours(block), next(self._number), block))

    def events(self) -> Iterator[Event]:
        """The next block to end."""
        self.now, _, block = heapq.heappop(self._running)
        yield Done(block, [])


def hours(block: Block) -> float:
    """Estimated hours of a block on an A100."""
    return cell_cost(block.cell, len(block.seeds)).hours(A100) + PER_BLOCK / 3600


def blocks_of(table_id: str) -> list[Block]:
    """All blocks of a table under its default choices."""
    table = load_table(table_id)
    seeds = tuple(range(table.seeds))
    return [
        block
        for cell in table.cells()
        for block in (
            [Block(cell, seeds)] if stacks(cell) else [Block(cell, (seed,)) for seed in seeds]
        )
    ]


def row(name: str, blocks: Sequence[Block], gpus: int) -> list[str]:
    """What the cluster does with these blocks."""
    pool = Simulated(gpus)
    for _ in dispatch(pool, blocks):
        pass
    work, longest = sum(map(hours, blocks)), max(map(hours, blocks))
    trials = sum(len(block.seeds) for block in blocks)
    used = work / (gpus * pool.now)
    figures = [f"{value:.2f}" for value in (work, pool.now, longest)]
    return [name, str(trials), str(len(blocks)), *figures, f"{used:.0%}"]


def main() -> None:
    """Print what a cluster does with each table, and with all."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--gpus", type=int, default=100, help="A100s in the cluster")
    gpus = parser.parse_args().gpus
    grid = Grid(title=f"estimated hours on {gpus} A100s, nothing of it was run")
    for heading in ("table", "trials", "blocks", "one GPU", "cluster", "longest block", "used"):
        grid.add_column(heading, justify="left" if heading == "table" else "right")
    every = {name: blocks_of(name) for name in table_names()}
    for name, blocks in every.items():
        grid.add_row(*row(name, blocks, gpus))
    grid.add_section()
    grid.add_row(*row("all at once", [b for blocks in every.values() for b in blocks], gpus))
    Console().print(grid)


if __name__ == "__main__":
    main()
