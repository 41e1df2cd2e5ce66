"""What verification runs in a process of its own: ``python -m qbench.leaderboard.measure``.

It reads a task as JSON from standard input, and writes what it measured as JSON to standard output.
The process has limits of memory and time, and ends with the one that started it. Weights come from
people that nobody knows: no code of theirs is ever run, and if any were, Python would open no
connection and start no program for it.
"""

import ctypes
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

FORBIDDEN = frozenset(
    {
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.system",
        "pty.spawn",
        "socket.connect",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "subprocess.Popen",
        "urllib.Request",
    }
)
"""What Python announces before it does it, and this process never does."""

KNOWN_NORMALISATIONS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = MappingProxyType(
    {
        "pixels in [0, 1]": ((0.0,), (1.0,)),
        "pixels in [-1, 1]": ((0.5,), (0.5,)),
        "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "CIFAR-10's with the deviation within images": (
            (0.4914, 0.4822, 0.4465),
            (0.2023, 0.1994, 0.2010),
        ),
        "MNIST's": ((0.1307,), (0.3081,)),
        "Fashion-MNIST's": ((0.2860,), (0.3530,)),
    }
)
"""Mean and standard deviation by which people commonly prepare images."""

_WARM_UP, _RUNS, _SECONDS = 3, 50, 3.0
_LARGEST_WRITE = 2_000_000_000  # bytes of a file
_PR_SET_PDEATHSIG = 1  # of Linux: end with the parent


def confine(memory: int, seconds: float) -> None:
    """Give this process so much memory and processor time, no connection, and no other program."""
    try:
        import resource
    except ImportError:  # on Windows, where there are no such limits
        pass
    else:
        cores = os.cpu_count() or 1
        for kind, most in (
            (resource.RLIMIT_AS, memory),
            (resource.RLIMIT_CPU, int(seconds * cores) + 1),
            (resource.RLIMIT_FSIZE, _LARGEST_WRITE),
            (resource.RLIMIT_CORE, 0),
        ):
            hard = resource.getrlimit(kind)[1]
            limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (limit, limit))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    sys.addaudithook(_refuse)


def _refuse(event: str, _arguments: tuple[Any, ...]) -> None:
    if event in FORBIDDEN:
        raise PermissionError(f"{event} is not for a process that verifies")


def measure_weights(
    folder: Path, dataset: str, root: Path | None, claimed: float
) -> dict[str, Any]:
    """Accuracy, cost, latency and margin of a folder of weights, on the full test set of a dataset.

    Where the accuracy is not the claimed one, the other ways in which people prepare images are
    tried, and named where one of them gives it.
    """
    import torch

    import qcore
    from qbench.catalogue import DATASETS
    from qbench.data.image_folder import image_root
    from qzoo.architectures import get_architecture
    from qzoo.cost import cost
    from qzoo.evaluation import TOLERANCE, evaluate
    from qzoo.folder import read_folder

    weights = read_folder(folder)
    model: Any = weights.model().float()
    meter = qcore.MarginMeter()
    with image_root(dataset, root) as images:
        name = DATASETS[dataset].timm

        def accuracy(other: "nn.Module") -> float:
            return evaluate(other, name, root=images).top1

        fitting = None
        try:
            found = evaluate(model, name, root=images, observe=meter.update)
        except ValueError as error:  # such as logits that are not finite
            if fitting := _fitting(model, claimed, accuracy):
                raise ValueError(
                    f"{error}; prepared as {fitting['words']} it has {fitting['accuracy']:.2f} %: "
                    "the preprocessing in the entry is wrong"
                ) from None
            raise
        if abs(found.top1 - claimed) > TOLERANCE:
            fitting = _fitting(model, claimed, accuracy)
    record = weights.record
    channels, size, _ = shape = record.preprocessing.input_size
    of_model = cost(record.model, num_classes=record.num_classes, in_chans=channels, size=size)
    head = get_architecture(record.model)
    never_negative = head.get("head") == "low_rank" and not head.get("signed")
    return {
        "accuracy": found.top1,
        "loss": found.loss,
        "images": found.images,
        "parameters": of_model.parameters,
        "multiply_adds": of_model.multiply_adds,
        "margin": meter.mean,
        "margin_bound": "1" if never_negative else "√2",
        "fitting": fitting,
        **_latency(model, torch.zeros(1, *shape)),
    }


def measure_run(
    table: str,
    axes: Mapping[str, Any],
    seeds: Sequence[int],
    reduced: Literal["quick", "budget"] | None,
    root: Path | None,
) -> dict[str, Any]:
    """Run trials of a table again, from nothing, and measure what comes out."""
    import torch

    from qbench.block import Setting, plan
    from qbench.build import build_model
    from qbench.catalogue import DATASETS
    from qbench.executors import run_blocks
    from qbench.table import Cell, load_table
    from qbench.trial import RunFolder

    cell = Cell(load_table(table), dict(axes), reduced)
    failures: list[str] = []
    with TemporaryDirectory() as out:
        folder = RunFolder(Path(out), cell.table, create=True)
        before = [cell.after] if cell.after is not None else []
        blocks = [
            replace(block, seeds=tuple(seed for seed in block.seeds if seed in seeds))
            for block in plan(folder, [*before, cell], max(seeds) + 1)
        ]
        blocks = [block for block in blocks if block.seeds]
        setting = Setting(root=root)
        done = run_blocks(
            folder, blocks, setting, on_failure=lambda block, why: failures.append(why)
        )
        results = [result for block, found in done if block.cell == cell for result in found]
    if failures:
        raise RuntimeError(failures[0])
    info = DATASETS[cell.dataset]
    model = build_model(cell.model, info.shape, info.classes, 1.0, seeds[0], cell.recipe.strategy)
    return {
        "images": info.test or round(info.train * cell.recipe.test_fraction),
        "accuracies": {result.seed: result.value("test_accuracy") for result in results},
        "parameters": results[0].parameters,
        "multiply_adds": results[0].multiply_adds,
        **_latency(model, torch.zeros(1, *info.shape)),
    }


def _fitting(
    model: Any, claimed: float, accuracy: Callable[["nn.Module"], float]
) -> dict[str, Any] | None:
    """The known way of preparing images that gives the claimed accuracy, if one does."""
    from qzoo.evaluation import TOLERANCE

    channels = len(model.pretrained_cfg["mean"])
    for words, (mean, std) in KNOWN_NORMALISATIONS.items():
        changed = {
            key: values if len(values) == channels else (statistics.fmean(values),) * channels
            for key, values in (("mean", mean), ("std", std))
        }
        model.pretrained_cfg.update(changed)
        try:
            found = accuracy(model)
        except ValueError:  # logits that are not finite: it was not trained on such inputs
            continue
        if abs(found - claimed) <= TOLERANCE:
            return {"words": words, "accuracy": found, **changed}
    return None


def _latency(model: "nn.Module", x: "Tensor") -> dict[str, Any]:
    """The median time of one input, in milliseconds, and the threads that worked on it."""
    import torch

    times: list[float] = []
    model.eval()
    with torch.inference_mode():
        for _ in range(_WARM_UP):
            model(x)
        began = time.perf_counter()
        while len(times) < _RUNS and time.perf_counter() - began < _SECONDS:
            start = time.perf_counter()
            model(x)
            times.append(time.perf_counter() - start)
    return {"latency": 1000 * statistics.median(times), "threads": torch.get_num_threads()}


def main() -> None:
    """Do the task that standard input describes."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not the answer
    task = json.load(sys.stdin)
    confine(task.pop("memory"), task.pop("seconds"))
    root = Path(task.pop("root")) if task.get("root") else task.pop("root", None)
    kind = task.pop("kind")
    try:
        if kind == "weights":
            found = measure_weights(Path(task.pop("folder")), root=root, **task)
        else:
            found = measure_run(root=root, **task)
    except MemoryError:
        found = {"error": "it needs more memory than it may have"}
    except Exception as error:  # of whatever kind: it becomes the verdict's reason
        found = {"error": str(error) or type(error).__name__}
    json.dump(found, answer)
    answer.close()


if __name__ == "__main__":
    main()
