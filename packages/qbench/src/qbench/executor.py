"""Blocks, run here one after another: a block is one cell with its seeds."""

import ctypes
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from filelock import Timeout

from qbench.classifier import build_classifier
from qbench.data import load_problem, sizes
from qbench.errors import UserError
from qbench.loop import Curve, train
from qbench.stack import Stacked
from qbench.table import Cell
from qbench.trial import Environment, Result, RunFolder, commit, hardware, versions


@dataclass(frozen=True, eq=False)
class Block:
    """One cell and the seeds that train together: the unit of execution and of locking."""

    cell: Cell
    seeds: tuple[int, ...]

    @property
    def cost(self) -> float:
        """About how long it takes, in arbitrary units: for the time left, not for any record.

        Per step a constant, a part for each output and one for each multiply-add; the weights were
        fitted to measured blocks on two cores.
        """
        samples, features, classes = sizes(self.cell.dataset)
        rank = self.cell.model.rank or (features if self.cell.model.kind == "dense" else 1)
        outputs = len(self.seeds) * samples * classes
        return self.cell.recipe.epochs * (0.5 + 1.5e-5 * outputs + 6e-8 * outputs * features * rank)


def plan(folder: RunFolder, cells: Iterable[Cell], seeds: int) -> list[Block]:
    """A block for every cell that lacks results for some of the seeds 0 … ``seeds`` - 1."""
    blocks = []
    for cell in cells:
        missing = tuple(seed for seed in range(seeds) if not folder.has(cell, seed))
        if missing:
            blocks.append(Block(cell, missing))
    return blocks


def run_blocks(
    folder: RunFolder,
    blocks: Iterable[Block],
    device: str = "cpu",
    on_progress: Callable[[Block, float], None] = lambda block, fraction: None,
) -> Iterator[tuple[Block, list[Result]]]:
    """Run blocks and write their results; yields each block with the results that it added.

    A block that another process is running is left for later and then waited for. ``on_progress``
    is called with the fraction of a block that is done.
    """
    keep_freed_memory()
    busy: list[Block] = []
    for block in blocks:
        try:
            with folder.lock(block.cell).acquire(timeout=0):
                results = _run_missing(folder, block, device, on_progress)
        except Timeout:
            busy.append(block)
            continue
        on_progress(block, 1.0)
        yield block, results
    for block in busy:
        with folder.lock(block.cell):
            results = _run_missing(folder, block, device, on_progress)
        on_progress(block, 1.0)
        yield block, results


def keep_freed_memory() -> None:
    """Let glibc keep what torch frees, for the next step asks for the same again.

    By default tens of MiB go back to the system and are cleared anew at every step: ten seeds of
    the dense form on digits train in three quarters of the time without that (1000 steps on 2
    cores, three runs each: 28.6 to 29.5 s by default, 21.1 to 22.1 s so).
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # M_… in malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30)


def check_device(device: str) -> None:
    """Raises ``UserError`` for a device that this machine does not have."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu")


def _run_missing(
    folder: RunFolder, block: Block, device: str, on_progress: Callable[[Block, float], None]
) -> list[Result]:
    # another process may have finished it between the plan and the lock
    seeds = tuple(seed for seed in block.seeds if not folder.has(block.cell, seed))
    results = (
        _run(block.cell, seeds, device, lambda fraction: on_progress(block, fraction))
        if seeds
        else []
    )
    failed: OSError | None = None
    for result in results:
        try:
            folder.write(result)
        except OSError as error:  # the others may still fit on the disk
            failed = error
    if failed is not None:
        raise failed
    return results


def _run(
    cell: Cell, seeds: tuple[int, ...], device: str, on_progress: Callable[[float], None]
) -> list[Result]:
    recipe = cell.recipe
    started, clock = time.time(), time.perf_counter()
    problem = load_problem(cell.dataset, recipe, seeds).to(device)
    replicas = [
        build_classifier(cell.model, problem.features, problem.classes, recipe.init_scale, seed)
        for seed in seeds
    ]
    parameters = sum(parameter.numel() for parameter in replicas[0].parameters())
    curves = train(
        Stacked(replicas).to(device),
        problem,
        recipe,
        lambda step: on_progress(step / recipe.epochs),
    )
    environment = Environment(
        commit=commit(),
        versions=versions(),
        hardware=hardware(device),
        threads=torch.get_num_threads(),
        device=device,
        started=started,
        seconds=time.perf_counter() - clock,
        block=seeds,
    )
    return [
        _result(cell, seed, curve, parameters, environment)
        for seed, curve in zip(seeds, curves, strict=True)
    ]


def _result(
    cell: Cell, seed: int, curve: Curve, parameters: int, environment: Environment
) -> Result:
    diverged = curve.diverged_at is not None
    return Result(
        key=cell.trial_key(seed),
        table=cell.table.id,
        version=cell.table.version,
        axes=cell.axes,
        seed=seed,
        resolved=cell.resolved,
        reduced=cell.reduced,
        status="diverged" if diverged else "finished",
        diverged_at=curve.diverged_at,
        parameters=parameters,
        metrics={k: None if diverged else values[-1] for k, values in curve.metrics.items()},
        step=tuple(curve.step),
        history={k: tuple(values) for k, values in curve.metrics.items()},
        snapshots=curve.snapshots,
        environment=environment,
    )
