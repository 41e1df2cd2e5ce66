"""Blocks in several processes of this machine: threads divided among them, GPUs handed out."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue

from qbench.block import Block, Setting, keep_freed_memory
from qbench.errors import UserError
from qbench.executors.dispatch import Busy, Done, Event, Failed, Lost, dispatch
from qbench.executors.here import attempt
from qbench.frozen import Scalar
from qbench.table import Cell, Table
from qbench.trial import Result, RunFolder, read_result


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

    Each process has ``threads`` threads, by default its share of the processors, and one of the
    GPUs in turn. One that ends is replaced, and its block goes on from its checkpoint.
    """
    every = list(blocks)
    pool = Processes(folder, min(jobs, len(every)), setting or Setting(), on_progress, threads)
    with pool:
        yield from dispatch(pool, every, on_failure)


@dataclass(frozen=True)
class _Task:
    """A block as it is sent to a worker, which has the table."""

    axes: dict[str, Scalar]
    reduced: bool
    seeds: tuple[int, ...]
    wait: bool


@dataclass(frozen=True)
class _Said:
    """What a worker says: ``kind`` is that of an event, or ``note``, ``progress``, ``stop``."""

    kind: str
    text: str = ""
    fraction: float = 0.0
    keys: tuple[str, ...] = ()


class _Worker:
    """A process, the pipe to it, and the block that it has."""

    def __init__(self, number: int, start: Callable[[Connection, int], BaseProcess]) -> None:
        self.number = number
        self.pipe, other = get_context("spawn").Pipe()
        self.process = start(other, number)
        other.close()  # so that the pipe ends with the process
        self.block: Block | None = None


class Processes:
    """A pool of spawned processes, which end with this one, however it ends."""

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
        self._threads = threads or max(1, (os.cpu_count() or 1) // max(1, size))
        self._gpus = _gpus() if setting.device == "cuda" else []
        self._workers: list[_Worker] = []

    def __enter__(self) -> "Processes":
        self._workers = [_Worker(number, self._start) for number in range(self.size)]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.kill()  # what it has not written yet is in its checkpoint
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()

    def submit(self, block: Block, *, wait: bool) -> None:
        """Give a block to a worker that has none."""
        worker = next(worker for worker in self._workers if worker.block is None)
        worker.block = block
        task = _Task(block.cell.axes, block.cell.reduced, block.seeds, wait)
        with suppress(OSError):  # it has just ended, which its sentinel says
            worker.pipe.send(task)

    def events(self) -> Iterator[Event]:
        """What has become of blocks; waits until something has."""
        found: list[Event] = []
        while not found:
            ready = wait([place for w in self._workers for place in (w.pipe, w.process.sentinel)])
            for worker in list(self._workers):
                if worker.pipe in ready or worker.process.sentinel in ready:
                    found += self._hear(worker)
        return iter(found)

    def _hear(self, worker: _Worker) -> Iterator[Event]:
        try:
            while worker.pipe.poll():
                said = worker.pipe.recv()
                event = self._understood(said, worker)
                if event is not None:
                    worker.block = None
                    yield event
        except (EOFError, OSError):
            worker.process.join()
            yield from self._replaced(worker)

    def _understood(self, said: _Said, worker: _Worker) -> Event | None:
        block = worker.block
        if said.kind == "note":
            self._setting.on_note(said.text)
        elif said.kind == "stop":
            raise UserError(said.text)
        elif block is not None:
            self._on_progress(block, said.fraction)
            if said.kind == "done":
                results = [read_result(self._folder.result_path(key)) for key in said.keys]
                return Done(block, results)
            if said.kind == "busy":
                return Busy(block)
            if said.kind == "failed":
                return Failed(block, said.text)
        return None

    def _replaced(self, worker: _Worker) -> Iterator[Event]:
        """Put a new process in the place of one that has ended."""
        self._workers[self._workers.index(worker)] = _Worker(worker.number, self._start)
        worker.pipe.close()
        if worker.block is not None:
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


def _silent(text: str) -> None:
    del text


def _gpus() -> list[str]:
    """The names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return visible.split(",")
    return [str(index) for index in range(torch.cuda.device_count())]


def _how_it_ended(status: int | None) -> str:
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        memory = ", perhaps for want of memory" if -status == signal.SIGKILL else ""
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
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    import torch

    torch.set_num_threads(threads)
    keep_freed_memory()
    folder = RunFolder(out, table)
    setting = replace(setting, on_note=lambda text: pipe.send(_Said("note", text)))
    for task in _tasks(pipe):
        block = Block(Cell(table, task.axes, task.reduced), task.seeds)
        pipe.send(_outcome(folder, block, setting, pipe, wait=task.wait))


def _outcome(
    folder: RunFolder, block: Block, setting: Setting, pipe: Connection, *, wait: bool
) -> _Said:
    try:
        event = attempt(
            folder,
            block,
            setting,
            lambda _, fraction: pipe.send(_Said("progress", fraction=fraction)),
            wait=wait,
        )
    except UserError as error:
        return _Said("stop", str(error))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _Said("stop", f"{error.strerror or error}{where}")
    if isinstance(event, Done):
        keys = tuple(result.key for result in event.results)
        return _Said("done", fraction=1.0, keys=keys)
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
