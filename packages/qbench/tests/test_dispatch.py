"""Blocks go to workers under rules that hold whatever these are: here, workers in simulated time.

A simulated worker takes a block's estimated seconds over it, and what becomes of the block is
chosen by the test.
"""

import heapq
import itertools
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbench.block import Block
from qbench.errors import UserError
from qbench.executors import dispatch
from qbench.executors.dispatch import MOST_LOST, Busy, Done, Event, Failed, Lost
from qbench.table import parse_table

TABLE = parse_table(
    """
    id: simulated
    version: 1
    title: Networks that start from others, and classifiers that do not
    paper: none
    shows: nothing
    main_metric: test_accuracy
    grid:
      dataset: [digits32]
      model:
        short: {kind: low_rank, rank: 1}
        long: {kind: low_rank, rank: 4}
        trained: &network {kind: zoo, name: cifar_resnet20}
        tuned: {<<: *network, after: trained, recipe: {epochs: 1}}
        longer: {<<: *network, recipe: {epochs: 3}}
        tuned-again: {<<: *network, after: tuned, recipe: {epochs: 1}}
    recipe: {lr: 0.1, batch_size: 32, epochs: 2}
    seeds: 3
    """,
    "simulated.yaml",
)
CELLS = {str(cell.axes["model"]): cell for cell in TABLE.cells()}

Fate = Callable[[Block, int, bool], Event]
"""What becomes of a block at its n-th beginning, and whether that one waits."""


def block(model: str, *seeds: int) -> Block:
    return Block(CELLS[model], seeds or (0,))


def well(block: Block, attempt: int, wait: bool) -> Event:
    del attempt, wait
    return Done(block, [])


class Simulated:
    """Workers in simulated time: a heap of what ends when, and a log of what happened."""

    def __init__(
        self,
        size: int,
        fate: Fate = well,
        seconds: Callable[[Block], float] = lambda block: block.cost,
        *,
        logs: bool = True,
    ) -> None:
        self.size = size
        self.now = 0.0
        self.log: list[tuple[str, Block]] = []
        self.waited: list[bool] = []
        self._fate, self._seconds, self._logs = fate, seconds, logs
        self._begun: Counter[Block] = Counter()
        self._number = itertools.count()
        self._running: list[tuple[float, int, Event]] = []

    def submit(self, block: Block, *, wait: bool) -> None:
        attempt = 1
        if self._logs:
            self._begun[block] += 1
            attempt = self._begun[block]
            self.log.append(("begins", block))
            self.waited.append(wait)
        assert attempt <= 2 * MOST_LOST, "it is tried again for ever"
        event = self._fate(block, attempt, wait)
        seconds = 0.0 if isinstance(event, Busy) else self._seconds(block)
        heapq.heappush(self._running, (self.now + seconds, next(self._number), event))
        assert len(self._running) <= self.size

    def events(self) -> Iterable[Event]:
        """All that ends at the next instant at which anything does."""
        self.now = self._running[0][0]
        while self._running and self._running[0][0] == self.now:
            _, _, event = heapq.heappop(self._running)
            if self._logs:
                self.log.append((type(event).__name__, event.block))
            yield event

    @property
    def begun(self) -> list[Block]:
        return [block for what, block in self.log if what == "begins"]

    def begins_after(self, block: Block, other: Block) -> bool:
        """Whether a block's first beginning comes after all that happened to the other."""
        last = max(i for i, (_, logged) in enumerate(self.log) if logged is other)
        return self.log.index(("begins", block)) > last


def run(pool: Simulated, blocks: Iterable[Block]) -> tuple[list[Block], dict[Block, str]]:
    """The blocks that ended well, in that order, and those that failed with their reasons."""
    failed: dict[Block, str] = {}

    def on_failure(block: Block, reason: str) -> None:
        assert block not in failed
        failed[block] = reason

    return [block for block, _ in dispatch(pool, blocks, on_failure)], failed


@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_every_block_is_run_once(size: int) -> None:
    blocks = [block(model, seed) for model in CELLS for seed in range(4)]
    pool = Simulated(size)
    done, failed = run(pool, blocks)
    assert Counter(done) == Counter(pool.begun) == Counter(blocks)
    assert failed == {}


def test_without_blocks_nothing_is_asked_of_the_pool() -> None:
    assert run(Simulated(2), []) == ([], {})
    assert run(Simulated(0), []) == ([], {})


def test_results_are_handed_on_with_their_block() -> None:
    short, long = block("short"), block("long")
    results = {short: [object()], long: [object(), object()]}
    pool = Simulated(2, lambda block, attempt, wait: Done(block, results[block]))  # type: ignore[arg-type]
    assert dict(dispatch(pool, [short, long])) == results


def test_several_workers_begin_with_the_longest_blocks() -> None:
    blocks = [block("short"), block("trained"), block("long", 0), block("long", 0, 1, 2)]
    by_cost = sorted(blocks, key=lambda block: -block.cost)
    assert by_cost != blocks
    pool = Simulated(2)
    run(pool, blocks)
    assert pool.begun == by_cost


def test_a_block_counts_as_long_as_the_chain_that_starts_from_it() -> None:
    trained, longer = block("trained"), block("longer")
    tuned, again = block("tuned"), block("tuned-again")
    assert trained.cost < longer.cost < trained.cost + tuned.cost + again.cost
    pool = Simulated(2)
    run(pool, [longer, again, tuned, trained])
    assert pool.begun == [trained, longer, tuned, again]
    assert pool.now == trained.cost + tuned.cost + again.cost  # and no longer


def test_one_worker_keeps_to_the_order_of_the_table() -> None:
    blocks = [block("short"), block("trained"), block("long", 0), block("long", 0, 1, 2)]
    pool = Simulated(1)
    done, _ = run(pool, blocks)
    assert pool.begun == done == blocks


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
    "fate",
    [
        pytest.param(well, id="ended well"),
        pytest.param(lambda b, attempt, wait: Failed(b, "too large"), id="failed"),
        pytest.param(lambda b, attempt, wait: Lost(b, "killed"), id="lost"),
        pytest.param(lambda b, attempt, wait: Done(b, []) if wait else Busy(b), id="busy"),
    ],
)
def test_what_starts_from_a_networks_weights_begins_after_the_end_of_its_block(
    size: int, fate: Fate
) -> None:
    trained, tuned, again = block("trained"), block("tuned"), block("tuned-again")
    pool = Simulated(size, lambda b, *rest: (fate if b is trained else well)(b, *rest))
    done, failed = run(pool, [again, tuned, trained, block("short")])
    assert pool.begins_after(tuned, trained)
    assert pool.begins_after(again, tuned)
    assert set(done) | set(failed) >= {trained, tuned, again}
    assert set(failed) <= {trained}


def test_a_block_waits_for_the_network_of_its_own_seed_alone() -> None:
    first, second = block("trained", 0), block("trained", 1)
    tuned = block("tuned", 1)
    slow = Simulated(2, seconds=lambda block: 100.0 if block is first else 1.0)
    done, _ = run(slow, [first, second, tuned])
    assert done == [second, tuned, first]


def test_a_block_whose_start_is_not_among_the_blocks_waits_for_nothing() -> None:
    tuned = block("tuned")
    assert run(Simulated(2), [tuned, block("short")])[0].count(tuned) == 1


@pytest.mark.parametrize("size", [1, 2])
def test_a_block_that_another_process_runs_is_tried_again_last_and_then_waits(size: int) -> None:
    short, long, trained = block("short"), block("long"), block("trained")
    pool = Simulated(
        size, lambda b, attempt, wait: Busy(b) if b is trained and not wait else Done(b, [])
    )
    done, failed = run(pool, [trained, long, short])
    assert pool.begun[-1] is trained
    assert pool.begun.count(trained) == 2
    assert pool.waited == [False, False, False, True]
    assert set(done) == {short, long, trained}
    assert failed == {}


@pytest.mark.parametrize("size", [1, 2])
def test_a_block_whose_worker_is_lost_goes_to_the_next_one_at_once(size: int) -> None:
    short, long, trained = block("short"), block("long"), block("trained")
    pool = Simulated(
        size,
        lambda b, attempt, wait: (
            Lost(b, "killed") if b is trained and attempt < MOST_LOST else Done(b, [])
        ),
        seconds=lambda block: 0.5 if block is trained else 1.0,
    )
    done, failed = run(pool, [trained, long, short])
    of_trained = [i for i, begun in enumerate(pool.begun) if begun is trained]
    assert of_trained == ([0, 1, 2] if size == 1 else [0, 2, 3])
    assert len(done) == 3
    assert failed == {}


def test_a_block_that_costs_three_workers_has_failed() -> None:
    trained, short = block("trained"), block("short")
    pool = Simulated(2, lambda b, attempt, wait: Lost(b, "killed") if b is trained else Done(b, []))
    done, failed = run(pool, [trained, short])
    assert pool.begun.count(trained) == MOST_LOST
    assert done == [short]
    assert failed == {trained: "killed (3 times)"}


@pytest.mark.parametrize("size", [1, 2])
def test_a_failure_is_told_and_not_tried_again_and_the_others_run(size: int) -> None:
    short, long, trained = block("short"), block("long"), block("trained")
    pool = Simulated(
        size, lambda b, attempt, wait: Failed(b, "too large") if b is long else Done(b, [])
    )
    done, failed = run(pool, [long, trained, short])
    assert failed == {long: "too large"}
    assert set(done) == {short, trained}
    assert pool.begun.count(long) == 1


def test_what_the_next_block_would_meet_as_well_ends_everything() -> None:
    class Full(Simulated):
        def events(self) -> Iterable[Event]:
            yield next(iter(super().events()))
            raise UserError("no space left")

    ended: list[Block] = []

    def take() -> None:
        ended.extend(found for found, _ in dispatch(Full(2), blocks))

    blocks = [block("short", seed) for seed in range(9)]
    with pytest.raises(UserError, match="no space left"):
        take()
    assert len(ended) == 1  # what had ended before is handed on


def by_chance(random: Random) -> Fate:
    """Anything that may become of a block; one that waits is not busy again."""

    def fate(block: Block, attempt: int, wait: bool) -> Event:
        del attempt
        return random.choice(
            [
                Done(block, []),
                Failed(block, "too large"),
                Lost(block, "killed"),
                *([] if wait else [Busy(block)]),
            ]
        )

    return fate


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(CELLS)), st.integers(0, 2)), unique=True),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_whatever_happens_every_block_ends_exactly_once(
    chosen: list[tuple[str, int]], size: int, random: Random
) -> None:
    blocks = [block(model, seed) for model, seed in chosen]
    # seconds in whole numbers, so that many events come at the same time
    pool = Simulated(size, by_chance(random), seconds=lambda block: random.randint(0, 3))
    done, failed = run(pool, blocks)
    assert Counter([*done, *failed]) == Counter(blocks)
    last = {found: what for what, found in pool.log}
    assert {found for found, what in last.items() if what == "Done"} == set(done)
    assert {found for found, what in last.items() if what in ("Failed", "Lost")} == set(failed)
    for found in blocks:
        before = found.cell.after
        for other in blocks if before is not None else ():
            if before is not None and (other.cell.key, other.seeds) == (before.key, found.seeds):
                assert pool.begins_after(found, other)
        attempts = [what for what, logged in pool.log if logged is found and what != "begins"]
        assert attempts.count("Lost") <= MOST_LOST


def test_a_hundred_workers_cost_the_dispatcher_little_time_and_no_memory() -> None:
    count = 5_000

    def made() -> Iterator[Block]:
        for seed in range(count):
            yield block("short", seed)

    def traced(ended: Iterable[object]) -> tuple[int, int]:
        """Bytes held after a tenth of the blocks, and after the last."""
        tenth = 0
        number = 0
        for number, _ in enumerate(ended, start=1):
            if number == count // 10:
                tenth = tracemalloc.get_traced_memory()[0]
        assert number == count
        return tenth, tracemalloc.get_traced_memory()[0]

    started = time.perf_counter()
    assert sum(1 for _ in dispatch(Simulated(100), made())) == count
    assert (time.perf_counter() - started) / count < 0.005

    tracemalloc.start()
    try:
        tenth, end = traced(dispatch(Simulated(100, logs=False), made()))
    finally:
        tracemalloc.stop()
    assert end <= tenth
