"""A block, one cell with its seeds or with one of them: planned, trained and written."""

import ctypes
import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from qbench.activity import reason_of, recorded
from qbench.build import build_model
from qbench.checkpoint import Checkpoints, State, UnfitError
from qbench.cost import Rates, cell_cost, multiply_adds, stacks
from qbench.data import load_problem
from qbench.distributed import has_own_statistics, processes, rank, synchronised, told
from qbench.expressivity import measure_networks
from qbench.frozen import Scalar
from qbench.loop import Curve, Training
from qbench.optimize import precision
from qbench.probes import Findings, finish, make_probe
from qbench.stack import side_by_side
from qbench.table import Cell, Reduction, Table
from qbench.trial import (
    ARRAYS,
    WEIGHTS,
    Environment,
    Result,
    RunFolder,
    commit,
    hardware,
    versions,
)

_TWO_CORES = Rates(forms=2e10, networks=2e10, step=5e-4)


@dataclass(frozen=True)
class Setting:
    """Where and how blocks are run; none of it is part of a trial's identity.

    ``root`` is the folder of image data, ``compiled`` whether ``torch.compile`` is used,
    ``save_every`` the seconds between two checkpoints of a block, ``on_note`` what is told of
    anything that a user should know.
    """

    device: str = "cpu"
    root: Path | None = None
    compiled: bool = False
    save_every: float = 60.0
    on_note: Callable[[str], None] = lambda text: None


@dataclass(frozen=True)
class _Start:
    """The weights of another network that a trial starts from, where there is one.

    ``lost`` where that one diverged: the trial then counts as diverged before its first step.
    """

    weights: dict[str, Tensor] | None = None
    lost: bool = False


@dataclass(frozen=True)
class _Begin:
    """What every process needs that trains a block together with others."""

    axes: dict[str, Scalar]
    reduced: Reduction | None
    seeds: tuple[int, ...]
    starts: list[_Start]
    kept: State | None

    def training(self, table: Table, setting: Setting) -> Training:
        """The training from its beginning, or from its checkpoint.

        Raises ``UnfitError`` where it cannot go on from that, in every process.
        """
        cell = Cell(table, self.axes, self.reduced)
        training = _training(cell, self.seeds, setting, self.starts)
        # for what draws as it trains, such as dropout: of the trial alone, whatever ran before
        torch.manual_seed(self.seeds[0] + 2**32 * rank())
        for curve, start in zip(training.curves, self.starts, strict=True):
            if start.lost:
                curve.diverged_at = 0
        if self.kept is not None:
            try:
                training.restore(self.kept)
            except torch.OutOfMemoryError:
                raise  # no fault of its
            except (LookupError, RuntimeError, TypeError, ValueError) as error:
                raise UnfitError(reason_of(error)) from error
        return training


@dataclass(frozen=True, eq=False)
class Block:
    """One cell and the seeds that train together: the unit of execution, lock and checkpoint."""

    cell: Cell
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """What its lock and its checkpoints are called.

        Where seeds train side by side it is the cell's, whichever seeds are missing.
        """
        return self.cell.key if stacks(self.cell) else self.cell.trial_key(self.seeds[0])

    @property
    def cost(self) -> float:
        """About how many seconds it takes on two cores: for the time left, not for any record."""
        return 3600 * cell_cost(self.cell, len(self.seeds)).hours(_TWO_CORES)


def plan(folder: RunFolder, cells: Iterable[Cell], seeds: int) -> list[Block]:
    """The blocks that lack results for some of the seeds 0 … ``seeds`` - 1 of these cells.

    A network from whose weights others start comes before them, whether it is among the cells or
    not.
    """
    wanted: dict[str, Cell] = {}
    for cell in cells:
        if cell.after is not None and _missing(folder, cell, seeds):
            wanted.setdefault(cell.after.key, cell.after)
        wanted.setdefault(cell.key, cell)
    return [
        block for cell in wanted.values() for block in _blocks(cell, _missing(folder, cell, seeds))
    ]


def _missing(folder: RunFolder, cell: Cell, seeds: int) -> tuple[int, ...]:
    return tuple(seed for seed in range(seeds) if not folder.has(cell, seed))


def _blocks(cell: Cell, seeds: tuple[int, ...]) -> list[Block]:
    if stacks(cell):
        return [Block(cell, seeds)] if seeds else []
    return [Block(cell, (seed,)) for seed in seeds]


def run_block(
    folder: RunFolder,
    block: Block,
    setting: Setting,
    on_progress: Callable[[float], None] = lambda fraction: None,
    *,
    wait: bool = False,
) -> list[Result]:
    """Train what a block lacks and write its results, under its lock; returns what was added.

    ``on_progress`` is called with the fraction of the block that is done. Raises
    ``filelock.Timeout`` where another process is running it, unless ``wait``.
    """
    cell = block.cell
    with (
        folder.lock(block.name).acquire(timeout=-1 if wait else 0),
        recorded(folder, block.name, cell.axes, block.seeds, reduced=cell.reduced) as record,
    ):

        def progress(fraction: float) -> None:
            record.at(fraction)
            on_progress(fraction)

        return _run_missing(folder, block, setting, progress)


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


def _run_missing(
    folder: RunFolder,
    block: Block,
    setting: Setting,
    on_progress: Callable[[float], None],
) -> list[Result]:
    """What the block lacks; its lock is held."""
    added: list[Result] = []
    while True:
        # another process may have finished it between the plan and the lock
        seeds = tuple(seed for seed in block.seeds if not folder.has(block.cell, seed))
        if not seeds:
            # those of a process that was killed after its last result
            Checkpoints(folder.checkpoint_path(block.name)).remove()
            return added
        added += _run(folder, block, seeds, setting, on_progress)


def _run(
    folder: RunFolder,
    block: Block,
    seeds: tuple[int, ...],
    setting: Setting,
    on_progress: Callable[[float], None],
) -> list[Result]:
    """Train and write these seeds; or those of an interrupted block, if some of them are among it.

    The same seeds side by side, so that an interrupted block ends as it would have.
    """
    cell = block.cell
    if cell.table.experiment == "expressivity":
        return _measure(folder, cell, seeds, setting, on_progress)
    checkpoints = Checkpoints(folder.checkpoint_path(block.name))
    started = time.time()
    begin, training = _begun(folder, cell, seeds, checkpoints, setting)
    kept, together = begin.kept, begin.seeds
    facts: dict[str, Any] = {"started": started, "interruptions": 0, "on": _on(setting)}
    if kept is not None:
        facts = {**kept.values["facts"], "interruptions": kept.values["facts"]["interruptions"] + 1}
        before, now = facts["on"], _on(setting)
        if changed := [name for name in now if before.get(name) != now[name]]:
            setting.on_note(
                f"{cell} goes on from a checkpoint under other circumstances "
                f"({', '.join(changed)}): its figures may differ in their last digits from those "
                "of an unbroken run"
            )

    refused = False

    def save() -> None:
        nonlocal refused
        try:
            checkpoints.save(training.state(facts))
        except OSError as error:
            if not refused:  # said once: the next attempts may still succeed
                setting.on_note(
                    f"no checkpoint of {cell} at step {training.step} ({error.strerror}): "
                    "training goes on, and would begin again from the one before"
                )
            refused = True

    _reset_memory(setting.device)
    curves = training.run(lambda step: on_progress(step / training.steps), save, setting.save_every)
    samples = len(together) * training.step * training.samples_per_step
    environment = _environment(
        setting,
        together,
        facts["started"],
        training.seconds,
        samples_per_second=samples / training.seconds if samples else None,
        interruptions=facts["interruptions"],
    )
    with precision(cell.recipe.precision):
        findings = finish(training)
    added: list[Result] = []
    failed: OSError | None = None
    for i, (seed, curve) in enumerate(zip(together, curves, strict=True)):
        if folder.has(cell, seed):
            continue
        state = training.model.replica_state(i)
        try:
            added.append(_write(folder, cell, seed, curve, state, findings[i], environment))
        except OSError as error:  # the others may still fit on the disk
            failed = error
    if failed is not None:
        raise failed
    checkpoints.remove()
    return added


def _begun(
    folder: RunFolder,
    cell: Cell,
    seeds: tuple[int, ...],
    checkpoints: Checkpoints,
    setting: Setting,
) -> tuple[_Begin, Training]:
    """Training at its beginning, or at the newest checkpoint that fits it."""
    while True:
        kept = checkpoints.latest(setting.on_note)
        if kept is not None and not set(kept.values["seeds"]) & set(seeds):
            kept = None
            checkpoints.remove()
        together = tuple(kept.values["seeds"]) if kept else seeds
        starts = [_start(folder, cell, seed, setting) for seed in together]
        begin: _Begin = told(_Begin(cell.axes, cell.reduced, together, starts, kept))
        try:
            return begin, begin.training(cell.table, setting)
        except UnfitError as error:
            checkpoints.discard(f"of another training ({error})", setting.on_note)


def _on(setting: Setting) -> dict[str, str | int]:
    """What has to be the same for a run to go on bit for bit."""
    return {
        **versions(),
        **hardware(setting.device),
        "device": setting.device,
        "threads": torch.get_num_threads(),
        "compiled": setting.compiled,
        "processes": processes(),
    }


def follow(table: Table, setting: Setting) -> None:
    """Train with the first process of a group what it trains, until it has no more."""
    while (begin := told()) is not None:
        with suppress(UnfitError):  # the first process says so, and begins from another
            begin.training(table, setting).run()


def _measure(
    folder: RunFolder,
    cell: Cell,
    seeds: tuple[int, ...],
    setting: Setting,
    on_progress: Callable[[float], None],
) -> list[Result]:
    """Networks as they are drawn; seconds each, so that an interrupted block begins again."""
    started, before = time.time(), time.perf_counter()  # the time of day may be set back
    found = measure_networks(cell, seeds, on_progress)
    environment = _environment(setting, seeds, started, time.perf_counter() - before)
    results = []
    for seed, (model, curve) in zip(seeds, found, strict=True):
        findings = Findings(sum(parameter.numel() for parameter in model.parameters()))
        state = model.state_dict()
        results.append(_write(folder, cell, seed, curve, state, findings, environment))
    return results


def _training(
    cell: Cell,
    seeds: tuple[int, ...],
    setting: Setting,
    starts: Sequence[_Start],
) -> Training:
    """The block's model and data, at the start of training."""
    recipe = cell.recipe
    problem = load_problem(cell.dataset, recipe, seeds, setting.root).to(setting.device)
    replicas = [
        synchronised(
            build_model(
                cell.model,
                problem.shape,
                problem.classes,
                recipe.init_scale,
                seed,
                recipe.strategy,
                start.weights,
            ),
            setting.device,
        )
        for seed, start in zip(seeds, starts, strict=True)
    ]
    model = side_by_side(replicas).to(setting.device)
    if has_own_statistics(model):
        setting.on_note(
            "batch norm takes its statistics of each process's share of a batch, not of the whole: "
            "torch's SyncBatchNorm needs a GPU"
        )
    # convolutions in half precision want channels last: QResNet-20 in bfloat16 on 2 cores takes
    # 0.72 of the time so; float32 on a CPU stays as it has been, to the last bit
    if cell.model.kind == "zoo" and (setting.device == "cuda" or recipe.half):
        model = model.to(memory_format=torch.channels_last)
    return Training(
        model,
        problem,
        recipe,
        seeds,
        device=setting.device,
        compiled=setting.compiled,
        probe=make_probe(recipe),
    )


def _start(folder: RunFolder, cell: Cell, seed: int, setting: Setting) -> _Start:
    """What this trial starts from, trained first where that is not there yet."""
    before = cell.after
    if before is None:
        return _Start()
    block = Block(before, (seed,))
    run_block(folder, block, setting, wait=True)
    (result,) = (found for found in folder.results([before]) if found.seed == seed)
    if result.status == "diverged":
        return _Start(lost=True)
    return _Start(safetensors.torch.load(folder.read_file(result, WEIGHTS)))


def _reset_memory(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _memory(device: str) -> int | None:
    """The most bytes so far of the accelerator, or of the process; None where no one counts."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _environment(
    setting: Setting, seeds: tuple[int, ...], started: float, seconds: float, **facts: object
) -> Environment:
    return Environment.model_validate(
        {
            "commit": commit(),
            "versions": versions(),
            "hardware": hardware(setting.device),
            "threads": torch.get_num_threads(),
            "device": setting.device,
            "started": started,
            "seconds": seconds,
            "block": seeds,
            "memory": _memory(setting.device),
            "compiled": setting.compiled,
            "processes": processes(),
            **facts,
        }
    )


def _write(
    folder: RunFolder,
    cell: Cell,
    seed: int,
    curve: Curve,
    state: dict[str, Tensor],
    findings: Findings,
    environment: Environment,
) -> Result:
    """The trial's record, written with the files beside it."""
    diverged = curve.diverged_at is not None
    weights = safetensors.torch.save({k: v.cpu().contiguous() for k, v in state.items()})
    last = {name: values[-1] for name, values in curve.metrics.items()} | findings.metrics
    files: dict[str, bytes] = {}
    if cell.zoo_name is not None and not diverged:
        files[WEIGHTS] = weights
    if findings.arrays and not diverged:
        files[ARRAYS] = safetensors.torch.save(findings.arrays)
    result = Result(
        key=cell.trial_key(seed),
        table=cell.table.id,
        version=cell.table.version,
        axes=cell.axes,
        seed=seed,
        resolved=cell.resolved,
        reduced=cell.reduced,
        status="diverged" if diverged else "finished",
        diverged_at=curve.diverged_at,
        parameters=findings.parameters,
        multiply_adds=multiply_adds(cell.model, cell.dataset),
        metrics=dict.fromkeys(last) if diverged else last,
        step=tuple(curve.step),
        time=tuple(curve.time),
        history={k: tuple(values) for k, values in curve.metrics.items()},
        snapshots=curve.snapshots,
        weights=hashlib.sha256(weights).hexdigest(),
        environment=environment,
    )
    folder.write(result, files)
    return result
