"""What handing blocks to processes brings, and what it costs.

    uv run python packages/qbench/benchmarks/jobs.py [speed overhead memory dispatch] [--out FILE]

``speed``: time of two workers of one thread each over that of one such worker, on the same blocks:
Iris and Wine of the table ``uci``. It runs from the begin of the first block, which its results
record, to the last result's arrival here: the start of the processes is left out, but where the
second worker begins later than the first, or ends earlier, that counts. At most 0.588 of the time
are 1.7 times as many trials per hour.

``overhead`` and ``memory``: blocks of which every result is there already, through two workers: no
training, all the rest. Seconds per block from the first one's arrival on, a fifteenth of the blocks
for each ratio; and the memory of this process, which hands them out, after the last of 10 000
over that after the 1000th.

``dispatch``: 100 workers in simulated time and 100 000 blocks, half of which start from another's
weights: what the rules themselves cost.

How ratios are shown, and when a target is met, is said in qcore's ``benchmarks/paired.py``. Run it
on a quiet machine.
"""

import argparse
import heapq
import os
import sys
import tempfile
import time
import tracemalloc
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import count, pairwise
from pathlib import Path
from random import Random

from qbench.block import Block, plan
from qbench.executors import dispatch, run_on_processes
from qbench.executors.dispatch import Done, Event
from qbench.table import Cell, load_table
from qbench.trial import Result, RunFolder, commit

sys.path.append(str(Path(__file__).parents[2] / "qcore" / "benchmarks"))
from paired import Report

SPEED = 1 / 1.7
SECONDS = 0.05
GROWTH = 1.02
RULES = 0.001
PARTS = 15


def networks() -> dict[str, Cell]:
    """Cells whose seeds train one by one, so that they have as many blocks as one likes."""
    only = {"dataset": ("digits32",), "model": ("trained", "fine-tuned")}
    return {str(cell.axes["model"]): cell for cell in load_table("upgrade").cells(only)}


def speed(report: Report, pairs: int, datasets: tuple[str, ...], seeds: int) -> None:
    """Two workers against one, in pairs; who goes first alternates."""
    found, trials = [], 0
    for index in range(pairs):
        seconds = {}
        for jobs in (2, 1) if index % 2 else (1, 2):
            seconds[jobs], trials = training(jobs, datasets, seeds)
        found.append(seconds[2] / seconds[1])
    what = f"two workers, {trials} trials of {' and '.join(datasets)}"
    report.add(what, "one worker", found, SPEED)


def training(jobs: int, datasets: tuple[str, ...], seeds: int) -> tuple[float, int]:
    """Seconds from the begin of the first block to the last result, and how many there are."""
    table = load_table("uci")
    with tempfile.TemporaryDirectory() as out:
        folder = RunFolder(Path(out), table, create=True)
        blocks = plan(folder, table.cells({"dataset": datasets}), seeds)
        results: list[Result] = []
        for _, added in run_on_processes(folder, blocks, jobs, threads=1, on_failure=failed):
            results += added
        return time.time() - min(r.environment.started for r in results), len(results)


def failed(block: Block, reason: str) -> None:
    """A benchmark in which a block fails measures nothing."""
    raise RuntimeError(f"{block.cell}: {reason}")


def recorded(number: int) -> tuple[list[float], list[int]]:
    """When each of so many recorded blocks came back, and the memory in bytes at that moment."""
    cell = networks()["trained"]
    with tempfile.TemporaryDirectory() as out:
        folder = RunFolder(Path(out), cell.table, create=True)
        for seed in range(number):
            path = folder.result_path(cell.trial_key(seed))
            path.parent.mkdir()
            path.touch()  # it is never read: nothing is added
        blocks = (Block(cell, (seed,)) for seed in range(number))
        times, memory = [], []
        for _ in run_on_processes(folder, blocks, 2, threads=1, on_failure=failed):
            times.append(time.perf_counter())
            memory.append(resident())
    return times, memory


def resident() -> int:
    """The memory of this process in bytes, as Linux counts it."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def overhead(report: Report, times: list[float]) -> None:
    """Seconds per recorded block, over the target."""
    size = (len(times) - 1) // PARTS
    ends = times[:: max(1, size)]
    parts = [(end - start) / max(1, size) for start, end in pairwise(ends)]
    what = f"a recorded block through two workers, {len(times)} of them"
    report.add(what, f"{1000 * SECONDS:g} ms", [part / SECONDS for part in parts], 1.0)


def growth(report: Report, memory: list[int]) -> None:
    """Memory after the last block over that after a tenth of them."""
    tenth = len(memory) // 10
    per_block = (memory[-1] - memory[tenth - 1]) / (len(memory) - tenth)
    what = (
        f"memory after {len(memory)} blocks, {memory[-1] / 2**20:.0f} MiB, {per_block:.0f} B each"
    )
    report.add(what, f"after {tenth}", [memory[-1] / memory[tenth - 1]], GROWTH)


class Simulated:
    """Workers in simulated time: a heap of what ends when."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._now = 0
        self._seconds = Random(0)  # noqa: S311 - any will do
        self._number = count()
        self._running: list[tuple[int, int, Block]] = []

    def submit(self, block: Block, *, wait: bool) -> None:
        """Begin a block of some seconds."""
        del wait
        end = self._now + self._seconds.randint(1, 100)
        heapq.heappush(self._running, (end, next(self._number), block))

    def events(self) -> Iterator[Event]:
        """The next block to end."""
        self._now, _, block = heapq.heappop(self._running)
        yield Done(block, [])


def rules(report: Report, number: int) -> None:
    """Seconds per block of the dispatcher with 100 workers, and its memory at the end."""
    cells = networks()

    def blocks() -> Iterator[Block]:
        for cell in cells.values():
            for seed in range(number // 2):
                yield Block(cell, (seed,))

    def ended() -> Iterable[object]:
        return dispatch(Simulated(100), blocks())

    deque((block.cost for block in (Block(cell, (0,)) for cell in cells.values())), maxlen=0)
    started = time.perf_counter()  # what is imported and counted once is so by now
    deque(ended(), maxlen=0)
    seconds = (time.perf_counter() - started) / number
    what = f"the rules for a block, 100 workers, {number} blocks"
    report.add(what, f"{1000 * RULES:g} ms", [seconds / RULES], 1.0)
    tracemalloc.start()
    held = [tracemalloc.get_traced_memory()[0] for _ in ended()]
    tracemalloc.stop()
    what = f"the dispatcher's memory after {number} blocks"
    report.add(what, f"after {number // 10}", [held[-1] / held[number // 10 - 1]], 1.0)


def main() -> None:
    """Measure what was asked for, print the ratios and write them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    known = ("speed", "overhead", "memory", "dispatch")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(known)}; or all")
    parser.add_argument("--pairs", type=int, default=15, help="pairs of speed, 15 or more")
    parser.add_argument("--datasets", default="iris,wine", help="those of speed, of the table uci")
    parser.add_argument("--seeds", type=int, default=10, help="seeds per cell of speed")
    parser.add_argument("--recorded", type=int, default=10_000, help="blocks that are recorded")
    parser.add_argument("--simulated", type=int, default=100_000, help="blocks of dispatch")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    parts = set(arguments.parts or known)
    report = Report("blocks handed to processes: ratios")
    if "speed" in parts:
        speed(report, arguments.pairs, tuple(arguments.datasets.split(",")), arguments.seeds)
    if parts & {"overhead", "memory"}:
        times, memory = recorded(arguments.recorded)
        if "overhead" in parts:
            overhead(report, times)
        if "memory" in parts:
            growth(report, memory)
    if "dispatch" in parts:
        rules(report, arguments.simulated)
    report.show(arguments.out, commit=commit())


if __name__ == "__main__":
    main()
