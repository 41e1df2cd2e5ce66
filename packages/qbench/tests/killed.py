"""A program that trains blocks in forked children and kills them: what test_resume runs.

    python killed.py SCENARIO FOLDER [INSTANTS]

It prints one JSON object. Children are forked from a process that has imported everything and
computed nothing, so that each lasts as long as its training.
"""

import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from qbench.block import Block, Setting, plan
from qbench.checkpoint import Checkpoints
from qbench.executors import run_blocks
from qbench.table import Table, parse_table
from qbench.trial import Result, RunFolder

TABLE = """
id: killed
version: 1
title: Blocks of every kind
paper: none
shows: nothing
main_metric: test_accuracy
grid:
  dataset: [digits32, digits]
  model:
    forms:
      {kind: low_rank, rank: 2, affine: true,
       recipe: {optimizer: sgd, momentum: 0.0, batch_size: null, epochs: 40, log_every: 10,
                train_metrics: measured, schedule: constant, augment: []}}
    layers:
      {kind: mlp, hidden: [16, 16], neuron: quadratic,
       recipe: {augment: [], schedule: step, milestones: [1, 2], clip_norm: 1.0,
                strategy: {gamma: 0.5, alpha: 0.999}}}
    network:
      {kind: zoo, name: qresnet20, options: {depths: [1, 1, 1], widths: [4, 8, 16]},
       recipe: {optimizer: adamw, momentum: 0.0, schedule: one_cycle, batch_size: 32,
                train_samples: 96, epochs: 4}}
without:
  - {dataset: digits32, model: forms}
  - {dataset: digits32, model: layers}
  - {dataset: digits, model: network}
recipe:
  lr: 0.01
  momentum: 0.9
  batch_size: 128
  epochs: 3
  schedule: cosine
  augment: [crop, flip, cutout]
  scaling: maxabs
  test_fraction: 0.2
  log_every: 4
  train_metrics: running
seeds: 2
"""


def table() -> Table:
    """The blocks: forms and layers with two seeds side by side, and two networks alone."""
    return parse_table(TABLE, "killed.yaml")


def blocks(folder: RunFolder) -> list[Block]:
    """What is left to do."""
    return plan(folder, folder.table.cells(), 2)


def run(folder: RunFolder, notes: Callable[[str], None] = lambda note: None) -> list[Result]:
    """Run everything that is left, with a checkpoint after every step."""
    setting = Setting(save_every=0.0, on_note=notes)
    return [r for _, added in run_blocks(folder, blocks(folder), setting) for r in added]


def child(work: Callable[[], object]) -> int:
    """Fork a process that does the work; returns its number."""
    process = os.fork()
    if process == 0:
        torch.set_num_threads(1)
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return process


def finish(work: Callable[[], object]) -> None:
    """Do the work in a child, to its end."""
    _, status = os.waitpid(child(work), 0)
    if status:
        sys.exit(f"a child ended with status {status}")


def facts(folder: RunFolder) -> list[object]:
    """What must be the same however often training was interrupted."""
    return [
        (r.key, r.weights, r.metrics, r.step, r.history, r.environment.block, len(r.time))
        for r in folder.results(folder.table.cells())
    ]


def made(path: Path) -> RunFolder:
    """A run folder."""
    return RunFolder(path, table(), create=True)


def killed_at_random(path: Path) -> Iterator[tuple[str, object]]:
    """Runs, each killed at a random instant and then run to its end."""
    reference = made(path / "reference")
    started = time.monotonic()
    finish(lambda: run(reference))
    length = time.monotonic() - started
    expected = facts(reference)
    instants = random.Random(0)  # noqa: S311 - any instants will do
    interrupted = 0
    for i in range(int(sys.argv[3])):
        folder = made(path / str(i))
        process = child(lambda folder=folder: run(folder))
        time.sleep(instants.uniform(0, length))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        finish(lambda folder=folder: run(folder))
        if facts(folder) != expected:
            yield "differs", i
        results = list(folder.results(folder.table.cells()))
        interrupted += any(result.environment.interruptions for result in results)
        left = list((folder.path / ".checkpoints").glob("*"))
        if left:
            yield "left over", [str(path) for path in left]
    yield "trials", len(expected)
    yield "interrupted", interrupted


def killed_at_rename(path: Path) -> Iterator[tuple[str, object]]:
    """Killed right before, and right after, the rename of the n-th file that is written."""
    reference = made(path / "reference")
    finish(lambda: run(reference))
    expected = facts(reference)
    rename = Path.replace
    for n in (1, 7, 14, 15, 30, 60, 64):
        for before in (True, False):
            folder = made(path / f"{n}-{before}")

            def work(folder: RunFolder = folder, n: int = n, before: bool = before) -> None:
                count = 0

                def replace(self: Path, target: Path) -> Path:
                    nonlocal count
                    count += 1
                    if count == n and before:
                        os.kill(os.getpid(), signal.SIGKILL)
                    done = rename(self, target)
                    if count == n:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return done

                Path.replace = replace  # type: ignore[method-assign, assignment]
                run(folder)

            _, status = os.waitpid(child(work), 0)
            if os.WTERMSIG(status) != signal.SIGKILL:
                yield "not killed", n
            finish(lambda folder=folder: run(folder))
            if facts(folder) != expected:
                yield "differs", (n, before)
            if parts := [str(part) for part in folder.path.rglob("*.part")]:
                yield "left over", parts
    yield "trials", len(expected)


def corrupted(path: Path) -> Iterator[tuple[str, object]]:
    """The newest checkpoint damaged, in its tensors, its header, or cut short."""
    reference = made(path / "reference")
    finish(lambda: run(reference))
    expected = facts(reference)
    damages: list[Callable[[bytes], bytes]] = [
        lambda content: content[:-100] + bytes(50) + content[-50:],
        lambda content: content[:40] + b"X" + content[41:],
        lambda content: content[: len(content) // 2],
        lambda _: b"",
    ]
    for i, damage in enumerate(damages):
        folder = made(path / str(i))
        stop_in_the_middle(folder)
        (waiting,) = (folder.path / ".checkpoints").iterdir()
        _, new = sorted(waiting.glob("*.safetensors"))
        new.write_bytes(damage(new.read_bytes()))
        notes: list[str] = []
        log = path / f"notes-{i}"
        finish(
            lambda folder=folder, notes=notes, log=log: (
                run(folder, notes.append),
                log.write_text("\n".join(notes)),
            )
        )
        yield f"note {i}", log.read_text().replace(str(new), "NEW")
        if facts(folder) != expected:
            yield "differs", i
    yield "trials", len(expected)


def stop_in_the_middle(folder: RunFolder) -> None:
    """Kill a run after its sixth checkpoint."""
    save = Checkpoints.save

    def work() -> None:
        count = 0

        def counted(self: Checkpoints, state: object) -> Path:
            nonlocal count
            written = save(self, state)  # type: ignore[arg-type]
            count += 1
            if count == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            return written

        Checkpoints.save = counted  # type: ignore[method-assign, assignment]
        run(folder)

    os.waitpid(child(work), 0)


def full_disk(path: Path) -> Iterator[tuple[str, object]]:
    """No file may have more than so many bytes: checkpoints do not fit, then results do not."""
    reference = made(path / "reference")
    finish(lambda: run(reference))
    expected = facts(reference)
    for limit in (70_000, 1_500):
        folder = made(path / str(limit))
        log = path / f"notes-{limit}"
        notes: list[str] = []

        def work(
            folder: RunFolder = folder,
            log: Path = log,
            limit: int = limit,
            notes: list[str] = notes,
        ) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                run(folder, notes.append)
            except OSError as error:
                notes.append(f"ended by {error.strerror}")
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            log.write_text("\n".join(note.split(" at step")[0] for note in notes))

        finish(work)
        yield f"notes {limit}", log.read_text()
        yield f"results {limit}", len(facts(folder))
        yield f"parts {limit}", [str(part) for part in folder.path.rglob("*.part")]
        finish(lambda folder=folder: run(folder))
        if facts(folder) != expected:
            yield "differs", limit
    yield "trials", len(expected)


def together(path: Path) -> Iterator[tuple[str, object]]:
    """Two processes that run the same table at the same time."""
    reference = made(path / "reference")
    finish(lambda: run(reference))
    folder = made(path / "shared")

    def work(log: Path) -> None:
        log.write_text("\n".join(result.key for result in run(folder)))

    logs = [path / "first", path / "second"]
    for process in [child(lambda log=log: work(log)) for log in logs]:
        _, status = os.waitpid(process, 0)
        if status:
            yield "failed", status
    added = [log.read_text().split() for log in logs]
    yield "twice", len(set(added[0]) & set(added[1]))
    yield "each", [len(keys) > 0 for keys in added]
    yield "trials", sum(map(len, added))
    yield "same", facts(folder) == facts(reference)


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (killed_at_random, killed_at_rename, corrupted, full_disk, together)
}

if __name__ == "__main__":
    import timm  # noqa: F401 - before the forks, which would each import it

    import qzoo  # noqa: F401

    print(json.dumps(dict(SCENARIOS[sys.argv[1]](Path(sys.argv[2])))))
