"""Blocks on a Ray cluster, one task each: a cluster that is there, or one started here.

Ray is imported when it is asked for, and by this module alone.
"""

import logging
import math
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from pydantic import ValidationError

from qbench.activity import Activity, reason_of
from qbench.block import Block, Setting
from qbench.checkpoint import Checkpoints
from qbench.data.images import load_images
from qbench.data.root import downloadable
from qbench.errors import UserError, one_line
from qbench.executors.dispatch import Busy, Done, Event, Failed, Lost, dispatch
from qbench.executors.node import Job, Record, Said, Task, packages, work
from qbench.table import Cell
from qbench.trial import Result, RunFolder, read_result, write_whole

LOCAL = "local"
"""The address of a cluster that is this machine alone, and lasts as long as the run."""

_REACHED_WITHIN = 10.0
_LOOK_EVERY = 5.0
_COUNT_EVERY = 10.0
_APPEARS_WITHIN = 90.0
_QUIET_FOR = 1.0


def run_on_ray(
    folder: RunFolder,
    blocks: Iterable[Block],
    address: str,
    setting: Setting | None = None,
    on_progress: Callable[[Block, float], None] = lambda block, fraction: None,
    on_failure: Callable[[Block, str], None] = lambda block, reason: None,
    threads: int = 1,
) -> Iterator[tuple[Block, list[Result]]]:
    """Run blocks on a Ray cluster; yields each block with the results that it added.

    ``address`` is ``host:port`` of a cluster that this machine is a node of, or ``auto`` to find
    it; ``ray://host:port`` of one that it is not; ``local`` for one of this machine alone. A
    process that is connected to a cluster already stays with that. Every node needs quadnets-bench
    installed as it is here: nothing is sent but image data, once to each node that uses it.

    A block takes ``threads`` processors of a node, and one of its GPUs where the setting's device
    is ``cuda``. There are as many out at once as the nodes have room for, whichever join or leave.

    Nodes that see the run folder at its own path, on a shared file system, work in it: a block
    whose node is lost goes on from its checkpoint on another. Other nodes send results at the end
    of a block, which begins again where its node is lost.

    Raises ``UserError`` where Ray is not installed or the cluster does not answer.
    """
    with _connected(address) as ray:
        pool = Nodes(ray, folder, setting or Setting(), on_progress, threads)
        if address == LOCAL and not pool.room():
            raise UserError(f"--ray local: this machine does not have {pool.needs} for a block")
        with pool:
            yield from dispatch(pool, blocks, on_failure)


@contextmanager
def _connected(address: str) -> Iterator[ModuleType]:
    """Ray, with a connection that lasts as long as this, or that was there before."""
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        _check_place()
    try:
        if address == LOCAL:
            ray.init(address=address, include_dashboard=False, **quiet)
        else:
            _reach(address)
            ray.init(address=address, **quiet)
    except Exception as error:  # of any type: Ray documents none
        raise UserError(
            f"--ray {address}: no connection to that cluster ({_line(error)}); Ray takes host:port "
            "or auto on a node of a cluster, ray://host:port elsewhere, and local without any"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def import_ray() -> ModuleType:
    """Ray, set up to leave the nodes as they are; raises ``UserError`` where it is missing."""
    # Under `uv run`, Ray would upload the working directory and build an environment for each
    # worker; and a cluster of its own would report on its use.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "--ray: Ray is not installed; install it with pip install 'quadnets-bench[ray]', or "
            "use --jobs for processes of this machine"
        ) from error
    return ray


def _place() -> Path:
    """Where Ray keeps what belongs to a cluster of this machine."""
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())


def _check_place() -> None:
    """Raises ``UserError`` for a place where Ray's workers would end as soon as they begin."""
    if _place().resolve().is_relative_to(Path(sys.prefix).resolve()):
        raise UserError(
            f"--ray {LOCAL}: Ray cannot keep its files in {str(_place())!r}, which lies in the "
            "folder of this Python: name another in the environment variable RAY_TMPDIR"
        )


def _reach(address: str) -> None:
    """Raises ``OSError`` where nobody listens; Ray itself would try for many minutes."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "")
        last = _place() / "ray" / "ray_current_cluster"  # the last one started on this machine
        if not address and last.exists():
            address = last.read_text(encoding="utf-8").strip()
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname and parts.port:  # what is wrong with any other, Ray says
        socket.create_connection((parts.hostname, parts.port), _REACHED_WITHIN).close()


def _line(error: BaseException) -> str:
    return one_line(error) or type(error).__name__


@dataclass(frozen=True)
class _Sent:
    """A block that is out; ``lock`` is held here for one that is run apart from the run folder."""

    block: Block
    wait: bool
    lock: FileLock | None = None


class Nodes:
    """The pool of a cluster's nodes, to which this process is connected.

    ``seen_at`` is where nodes look for the folder of all results, by default at its own path.
    """

    def __init__(
        self,
        ray: ModuleType,
        folder: RunFolder,
        setting: Setting,
        on_progress: Callable[[Block, float], None] = lambda block, fraction: None,
        threads: int = 1,
        seen_at: Path | None = None,
    ) -> None:
        self._ray, self._folder, self._setting = ray, folder, setting
        self._on_progress = on_progress
        self._threads = threads
        self._gpu = setting.device == "cuda"
        self._room, self._counted, self._looked = 0, -math.inf, -math.inf
        self._said_full = False
        self._running: dict[Any, _Sent] = {}
        self._unseen: list[_Sent] = []
        self._images: dict[str, Any] = {}
        self._token = folder.path / f".shared-{secrets.token_hex(8)}"
        job = Job(
            out=seen_at or folder.out.resolve(),
            token=self._token.name,
            table=folder.table,
            setting=replace(setting, root=None, on_note=_silent),
            threads=threads,
            packages=packages(),
        )
        self._job = ray.put(job)
        # said here, not by options(): Ray then ends a process with its block where it has a GPU,
        # for CUDA, once begun, stays on the GPU that it has begun on
        needs = {"num_cpus": threads, "num_gpus": int(self._gpu), "max_retries": 0}
        self._work = ray.remote(**needs)(work).options(name="qbench block")

    def __enter__(self) -> "Nodes":
        self._token.touch()
        return self

    def __exit__(self, *_: object) -> None:
        self._token.unlink(missing_ok=True)
        try:
            with suppress(Exception):  # the cluster may be what went wrong
                self._end()
        finally:
            for sent in self._running.values():
                if sent.lock is not None:
                    sent.lock.release()

    def _end(self) -> None:
        """End the blocks that are still out."""
        # Ray aborts this process where a task answers in the very instant in which it is cancelled
        # (its issue 54260, there in 2.60), and blocks that meet the same fault answer together:
        # those that are about to, are waited for.
        out = list(self._running)
        answered = out
        while answered and out:
            answered, out = self._ray.wait(out, timeout=_QUIET_FOR)
        for answer in out:
            self._ray.cancel(answer, force=True)

    @property
    def needs(self) -> str:
        """What a block takes of a node, in words."""
        return f"{self._threads} processors" + (" and a GPU" if self._gpu else "")

    def room(self) -> int:
        """How many blocks the nodes have room for; counted anew now and then."""
        if time.monotonic() - self._counted >= _COUNT_EVERY:
            self._room = count_room(self._ray.nodes(), self._threads, gpu=self._gpu)
            self._counted = time.monotonic()
        return self._room

    @property
    def size(self) -> int:
        """How many blocks are out at once; one at least, which waits for a node to join."""
        room = self.room()
        if not room and not self._said_full:
            self._setting.on_note(f"no node of the cluster has {self.needs}: waiting for one")
        self._said_full = not room
        return max(1, room)

    def submit(self, block: Block, *, wait: bool) -> None:
        """Send a block to the cluster."""
        self._send(_Sent(block, wait), block.seeds)

    def events(self) -> Iterator[Event]:
        """What has become of blocks; waits until something has, or until there is more room."""
        heard, size = False, self.size
        while not heard and self.size <= size:
            for event in self._news():
                heard = True
                if isinstance(event, Done):
                    self._on_progress(event.block, 1.0)
                yield event

    def _news(self) -> Iterator[Event]:
        seconds = 1.0 if self._unseen else _LOOK_EVERY
        if self._running:
            ready, _ = self._ray.wait(list(self._running), timeout=seconds)
            for answer in ready:
                yield from self._heard(answer)
        else:
            time.sleep(seconds)
        yield from self._send_unseen()
        self._look()

    def _send(
        self, sent: _Sent, seeds: tuple[int, ...], before: tuple[Record, ...] | None = None
    ) -> None:
        cell = sent.block.cell
        task = Task(cell.axes, cell.reduced, seeds, sent.wait, before)
        answer = self._work.remote(self._job, task, self._images_of(cell.dataset))
        self._running[answer] = sent

    def _images_of(self, dataset: str) -> Any:
        """A dataset's images in the cluster's store; None for one that does not lie in files."""
        if dataset not in downloadable():
            return None
        if dataset not in self._images:
            train, test = load_images(dataset, self._setting.root)
            # arrays are shared by a node's workers, tensors would be copied for each
            arrays = tuple((x.numpy(), y.numpy()) for x, y in (train, test))
            self._images[dataset] = self._ray.put(arrays)
        return self._images[dataset]

    def _look(self) -> None:
        """Hand on how far blocks have come, now and then, where one runs them in the run folder."""
        if time.monotonic() - self._looked < _LOOK_EVERY:
            return
        self._looked = time.monotonic()
        for sent in [*self._running.values(), *self._unseen]:
            with suppress(OSError, ValidationError):  # it has not begun, or has just ended
                path = self._folder.activity_path(sent.block.name)
                activity = Activity.model_validate_json(path.read_bytes())
                if activity.state == "running":
                    self._on_progress(sent.block, activity.fraction)

    def _heard(self, answer: Any) -> Iterator[Event]:
        """What has become of a block whose task ended; nothing where it has to be sent again."""
        sent = self._running.pop(answer)
        block = sent.block
        try:
            said = self._get(answer)
            if isinstance(said, str):
                yield Lost(block, said)
                return
            for note in said.notes:
                self._setting.on_note(note)
            if said.kind == "stop":
                raise UserError(said.text)
            if said.kind == "system":
                raise OSError(said.errno, said.text, said.place)
            if said.kind == "unseen":
                self._unseen.append(sent)
            elif said.kind == "busy":
                yield Busy(block)
            elif said.kind == "failed":
                self._note_failure(block, said.activity)
                yield Failed(block, said.text)
            else:
                results = self._read(said.keys) if sent.lock is None else self._write(block, said)
                yield Done(block, results)
        finally:
            if sent.lock is not None:
                sent.lock.release()

    def _get(self, answer: Any) -> Said | str:
        """What a node says, or how it was lost."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(answer)
        except (errors.RayTaskError, errors.RaySystemError, errors.RuntimeEnvSetupError) as error:
            # a task itself raises nothing: it could not begin
            needed = ", ".join(f"{name} {number}" for name, number in packages().items())
            raise UserError(
                f"a node of the cluster cannot run blocks ({_line(error)}): every node needs "
                f"{needed}, installed as here"
            ) from error
        except errors.OutOfMemoryError:
            return "its node had no memory left"
        except errors.NodeDiedError:
            return "its node was lost"
        except errors.WorkerCrashedError:
            return "its process was lost"
        except errors.RayError as error:  # such as results that were lost with their node
            return reason_of(error)

    def _send_unseen(self) -> Iterator[Event]:
        """Send the blocks that have to be run apart from the run folder, and hold their locks."""
        unseen, self._unseen = self._unseen, []
        for sent in unseen:
            block = sent.block
            lock = self._folder.lock(block.name)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if sent.wait:
                    self._unseen.append(sent)
                else:
                    yield Busy(block)
                continue
            missing = tuple(seed for seed in block.seeds if not self._folder.has(block.cell, seed))
            if missing:
                # what a run before this one left in the run folder: the block begins again
                self._folder.activity_path(block.name).unlink(missing_ok=True)
                self._send(replace(sent, lock=lock), missing, self._before(block.cell, missing))
            else:
                lock.release()
                yield Done(block, [])

    def _before(self, cell: Cell, seeds: tuple[int, ...]) -> tuple[Record, ...]:
        """The results that these seeds start from, as far as there are any."""
        start = cell.after
        if start is None:
            return ()
        keys = [start.trial_key(seed) for seed in seeds if self._folder.has(start, seed)]
        return tuple(Record.read(self._folder, key) for key in keys)

    def _write(self, block: Block, said: Said) -> list[Result]:
        """Record results that a node sent, under the block's lock."""
        results = [record.write(self._folder) for record in said.records]
        # those of a run before this one, in the run folder itself
        Checkpoints(self._folder.checkpoint_path(block.name)).remove()
        self._folder.activity_path(block.name).unlink(missing_ok=True)
        return [result for result in results if result is not None]

    def _read(self, keys: tuple[str, ...]) -> list[Result]:
        """Results that a node has recorded in the run folder."""
        return [read_result(_appeared(self._folder.result_path(key))) for key in keys]

    def _note_failure(self, block: Block, activity: bytes) -> None:
        path = self._folder.activity_path(block.name)
        if activity:
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, activity)


def count_room(nodes: Iterable[Mapping[str, Any]], threads: int, *, gpu: bool) -> int:
    """How many blocks the nodes that are alive can run at once, by what Ray says of them.

    >>> nodes = [{"Alive": True, "Resources": {"CPU": 9.0, "GPU": 2.0}}]
    >>> count_room(nodes, 4, gpu=False), count_room(nodes, 1, gpu=True)
    (2, 2)
    """
    count = 0
    for node in nodes:
        if node["Alive"]:
            has = node["Resources"]
            fit = int(has.get("CPU", 0) // threads)
            count += min(fit, int(has.get("GPU", 0))) if gpu else fit
    return count


def _appeared(path: Path) -> Path:
    """A file that another machine has written, once it is seen here.

    A network file system may say for up to a minute that it is not there.
    """
    deadline = time.monotonic() + _APPEARS_WITHIN
    while not path.exists() and time.monotonic() < deadline:
        with suppress(OSError):
            os.listdir(path.parent.parent)  # which makes it look
        time.sleep(0.2)
    return path


def _silent(text: str) -> None:
    del text
