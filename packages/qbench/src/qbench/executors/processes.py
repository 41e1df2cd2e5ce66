"""Blocks in several processes of this machine: threads divided among them, GPUs handed out."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue

import torch

from qbench.block import Block, Setting, keep_freed_memory
from qbench.errors import UserError
from qbench.executors.dispatch import Busy, Done, Event, Failed, Lost, dispatch
from qbench.executors.here import attempt
from qbench.frozen import Scalar
from qbench.table import Cell, Reduction, Table
from qbench.trial import Result, RunFolder, read_result

_EVERY = 0.2
"""Seconds between two words of a worker on how far it has come."""


def run_on_processes(
    folder: RunFolder,
    blocks: Iterable[Block],
    jobs: int,
    setting: Setting | None = None,
    on_progress: Callable[[Block, float], None] = lambda block, fraction: None,
    on_failure: Callable[[Block, str], None] = lambda block, reason: None,
    threads: int | None = None,
) -> Iterator[tuple[Block, list[Result]]]:
    """Run blocks in ``jobs`` processes; yields each block with the results that it added.

    Each process has ``threads`` threads, by default its share of those that this one has, and one
    of the GPUs in turn. One that ends is replaced, and its block goes on from its checkpoint.
    """
    every = list(blocks)
    pool = Processes(folder, min(jobs, len(every)), setting or Setting(), on_progress, threads)
    with pool:
        yield from dispatch(pool, every, on_failure)


@dataclass(frozen=True)
class _Task:
    """A block as it is sent to a worker, which has the table."""

    axes: dict[str, Scalar]
    reduced: Reduction | None
    seeds: tuple[int, ...]
    wait: bool


@dataclass(frozen=True)
class _Said:
    """What a worker says: ``kind`` is that of an event, or ``note``, ``progress``, ``stop``.

    ``keys`` are those of the results that were added, ``system`` the number and the file of an
    error of the system.
    """

    kind: str
    text: str = ""
    fraction: float = 0.0
    keys: tuple[str, ...] = ()
    system: tuple[int | None, str | None] | None = None


class _Worker:
    """A process, the pipe to it, and the block that it has."""

    def __init__(self, number: int, start: Callable[[Connection, int], BaseProcess]) -> None:
        self.number = number
        self.pipe, other = get_context("spawn").Pipe()
        with _not_told_of_interrupts():
            self.process = start(other, number)
        other.close()  # so that the pipe ends with the process
        self.block: Block | None = None


class Processes:
    """A pool of spawned processes, which end with this one, however it ends.

    Each is started when there is a first block for it.
    """

    def __init__(
        self,
        folder: RunFolder,
        size: int,
        setting: Setting,
        on_progress: Callable[[Block, float], None],
        threads: int | None = None,
    ) -> None:
        self.size = size
        self._folder, self._setting, self._on_progress = folder, setting, on_progress
        self._threads = threads or max(1, torch.get_num_threads() // max(1, size))
        self._gpus = _gpus() if setting.device == "cuda" else []
        self._workers: list[_Worker] = []
        self._taken_up: set[Block] = set()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.kill()  # what it has not written yet is in its checkpoint
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()

    def submit(self, block: Block, *, wait: bool) -> None:
        """Give a block to a worker that has none, or to a new one."""
        worker = next((worker for worker in self._workers if worker.block is None), None)
        if worker is None:
            numbers = {worker.number for worker in self._workers}
            free = next(number for number in range(self.size) if number not in numbers)
            worker = _Worker(free, self._start)
            self._workers.append(worker)
        worker.block = block
        task = _Task(block.cell.axes, block.cell.reduced, block.seeds, wait)
        with suppress(OSError):  # it has just ended, which its sentinel says
            worker.pipe.send(task)

    def events(self) -> Iterator[Event]:
        """What has become of blocks; waits until something has."""
        heard = False
        while not heard:
            ready = wait([place for w in self._workers for place in (w.pipe, w.process.sentinel)])
            for worker in list(self._workers):
                if worker.pipe in ready or worker.process.sentinel in ready:
                    for event in self._hear(worker):
                        heard = True
                        yield event

    def _hear(self, worker: _Worker) -> Iterator[Event]:
        while True:
            try:
                if not worker.pipe.poll():
                    return
                said = worker.pipe.recv()
            except (EOFError, OSError):
                yield from self._ended(worker)
                return
            event = self._understood(said, worker)
            if event is not None:
                worker.block = None
                yield event

    def _understood(self, said: _Said, worker: _Worker) -> Event | None:
        block = worker.block
        if said.kind == "note":
            self._setting.on_note(said.text)
        elif said.kind == "stop":
            raise UserError(said.text) if said.system is None else _of_system(said)
        elif block is None:
            return None
        elif said.kind == "progress":
            self._on_progress(block, said.fraction)
        elif said.kind == "done":
            self._on_progress(block, 1.0)
            return Done(block, self._results(block, said.keys))
        elif said.kind == "busy":
            return Busy(block)
        elif said.kind == "failed":
            return Failed(block, said.text)
        return None

    def _results(self, block: Block, added: Iterable[str]) -> list[Result]:
        if block in self._taken_up:
            self._taken_up.discard(block)
            # the worker that was lost may have written some, and had no time to say so
            added = map(block.cell.trial_key, block.seeds)
        return [read_result(self._folder.result_path(key)) for key in added]

    def _ended(self, worker: _Worker) -> Iterator[Event]:
        """A worker's process is no more; the next block finds its place free."""
        self._workers.remove(worker)
        worker.process.join()
        worker.pipe.close()
        if worker.block is not None:
            self._taken_up.add(worker.block)
            yield Lost(worker.block, _how_it_ended(worker.process.exitcode))

    def _start(self, pipe: Connection, number: int) -> BaseProcess:
        gpu = self._gpus[number % len(self._gpus)] if self._gpus else None
        arguments = (
            pipe,
            self._folder.out,
            self._folder.table,
            replace(self._setting, on_note=_silent),
            self._threads,
            gpu,
        )
        process = get_context("spawn").Process(
            target=_work, args=arguments, name=f"qbench worker {number}", daemon=True
        )
        process.start()
        return process


@contextmanager
def _not_told_of_interrupts() -> Iterator[None]:
    """Ctrl-C, which a terminal tells all its processes, passes by those that are started here."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # started later, it would undo the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _silent(text: str) -> None:
    del text


def _of_system(said: _Said) -> OSError:
    number, name = said.system or (None, None)
    return OSError(said.text) if number is None else OSError(number, said.text, name)


def _gpus() -> list[str]:
    """The names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return visible.split(",")
    return [str(index) for index in range(torch.cuda.device_count())]


def _how_it_ended(status: int | None) -> str:
    if status is not None and status < 0:
        names = {known.value: known.name for known in signal.Signals}
        name = names.get(-status, f"signal {-status}")
        memory = ", perhaps for want of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{memory}"
    return f"its process ended with status {status}"


def _work(
    pipe: Connection,
    out: Path,
    table: Table,
    setting: Setting,
    threads: int,
    gpu: str | None,
) -> None:
    """A worker's whole life: blocks from the pipe, what became of them into it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that has the workers
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA is begun
    torch.set_num_threads(threads)
    keep_freed_memory()
    folder = RunFolder(out, table)
    setting = replace(setting, on_note=lambda text: _say(pipe, _Said("note", text)))
    for task in _tasks(pipe):
        block = Block(Cell(table, task.axes, task.reduced), task.seeds)
        _say(pipe, _outcome(folder, block, setting, pipe, wait=task.wait))


def _say(pipe: Connection, said: _Said) -> None:
    """Say it, or end at once where nobody is left to hear: that is no failure of the block."""
    try:
        pipe.send(said)
    except OSError:
        os._exit(1)


def _outcome(
    folder: RunFolder, block: Block, setting: Setting, pipe: Connection, *, wait: bool
) -> _Said:
    said = -_EVERY

    def progress(_: Block, fraction: float) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= _EVERY:
            said = now
            _say(pipe, _Said("progress", fraction=fraction))

    try:
        event = attempt(folder, block, setting, progress, wait=wait)
    except UserError as error:
        return _Said("stop", str(error))
    except OSError as error:
        name = None if error.filename is None else str(error.filename)
        return _Said("stop", error.strerror or str(error), system=(error.errno, name))
    if isinstance(event, Done):
        return _Said("done", keys=tuple(result.key for result in event.results))
    if isinstance(event, Failed):
        return _Said("failed", event.reason)
    return _Said("busy")


def _tasks(pipe: Connection) -> Iterator[_Task]:
    """Tasks as they come; the process ends at once when nobody is left to send any."""
    tasks: SimpleQueue[_Task] = SimpleQueue()

    def listen() -> None:
        try:
            while True:
                tasks.put(pipe.recv())
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        yield tasks.get()
