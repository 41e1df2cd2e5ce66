"""What this machine has for qbench: each thing with a verdict, and what to do."""

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Literal

from qbench.catalogue import DATASETS
from qbench.data.root import data_root, downloadable, find_fault
from qbench.errors import UserError, one_line, without_password
from qbench.frozen import Frozen

_ROOM = 5e9
"""Bytes that the largest table's weights and records take, with room to spare."""


class Check(Frozen):
    """One thing: ``good``, ``lacking`` where tables run without it, ``bad`` where none does.

    ``advice`` says what to do, and is empty for what is good.
    """

    what: str
    verdict: Literal["good", "lacking", "bad"]
    found: str
    advice: str = ""


def examine(out: Path, root: Path | None = None, tracking_uri: str | None = None) -> list[Check]:
    """Everything, in the order in which it matters; what raises is bad, and says why."""
    checks: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("Python", _python),
        ("torch", _torch),
        ("threads", _threads),
        ("GPU", _gpu),
        ("Triton", _triton),
        ("compiler", _compiler),
        ("data", lambda: _data(root)),
        ("results", lambda: _results(out)),
        ("MLflow", lambda: _tracking(out, tracking_uri)),
        ("Ray", _ray),
    ]
    found: list[Check] = []
    for what, check in checks:
        try:
            found += check()
        except Exception as error:
            reason = one_line(error)[:300]
            found.append(
                Check(
                    what=what,
                    verdict="bad",
                    found=f"{type(error).__name__}: {reason}",
                    advice="Install quadnets-bench anew in an environment of its own.",
                )
            )
    return found


def _python() -> Iterator[Check]:
    encoding = sys.getfilesystemencoding()
    yield Check(
        what="Python",
        verdict="good",
        found=f"{platform.python_version()} on {platform.platform()}, file names in {encoding}",
    )


def _torch() -> Iterator[Check]:
    import timm
    import torch

    torch.linalg.norm(torch.randn(8, 8) @ torch.randn(8, 8))  # a broken install fails here
    names = ("quadnets-bench", "quadnets-zoo", "quadnets-core")
    ours = ", ".join(f"{name} {version(name)}" for name in names)
    yield Check(
        what="torch",
        verdict="good",
        found=f"torch {torch.__version__}, timm {timm.__version__}, {ours}",
    )


def _threads() -> Iterator[Check]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    known = f"{threads} threads of torch on {cores} processors"
    if cores is not None and threads > cores:
        yield Check(
            what="threads",
            verdict="lacking",
            found=known,
            advice=f"Threads that wait for one another are slow: set OMP_NUM_THREADS={cores}.",
        )
    else:
        yield Check(what="threads", verdict="good", found=known)


def _gpu() -> Iterator[Check]:
    import torch

    if not torch.cuda.is_available():
        yield Check(
            what="GPU",
            verdict="lacking",
            found="torch sees no CUDA device",
            advice="Small tables run without; qbench list says what the others take here.",
        )
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        yield Check(
            what="GPU",
            verdict="good",
            found=f"{torch.cuda.get_device_name(index)}, {free / 1e9:.0f} of {total / 1e9:.0f} GB "
            "free: use it with --device cuda",
        )


def _installed(module: str) -> str:
    """A module with the name and version of what brings it; empty where nothing does."""
    if importlib.util.find_spec(module) is None:
        return ""
    names = packages_distributions().get(module, [])
    return ", ".join(f"{name} {version(name)}" for name in dict.fromkeys(names))


def _triton() -> Iterator[Check]:
    if found := _installed("triton"):
        yield Check(what="Triton", verdict="good", found=found)
    else:
        yield Check(
            what="Triton",
            verdict="lacking",
            found="not installed",
            advice="Only kernels for GPUs need it; torch for CUDA on Linux brings it.",
        )


def _compiler() -> Iterator[Check]:
    name = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if name and shutil.which(name):
        yield Check(what="compiler", verdict="good", found=str(shutil.which(name)))
    else:
        yield Check(
            what="compiler",
            verdict="lacking",
            found=f"no C++ compiler{f' {name!r}' if name else ''}",
            advice="Only --compile needs one.",
        )


def _data(root: Path | None) -> Iterator[Check]:
    folder = data_root(root)
    for name in downloadable():
        fault = find_fault(name, folder)
        if fault is None:
            yield Check(what="data", verdict="good", found=f"{DATASETS[name].words} in {folder}")
        else:
            yield Check(
                what="data",
                verdict="lacking",
                found=f"{DATASETS[name].words}: {fault.words}",
                advice=f"{fault.mend}.",
            )


def _results(out: Path) -> Iterator[Check]:
    existing = next(place for place in (out, *out.resolve().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        yield Check(
            what="results",
            verdict="bad",
            found=f"{out} cannot be written",
            advice="Name another folder with --out.",
        )
    elif free < _ROOM:
        yield Check(
            what="results",
            verdict="lacking",
            found=f"{free / 1e9:.1f} GB free for {out}",
            advice="Large tables may fill the disk: make room, or name another folder with --out.",
        )
    else:
        yield Check(what="results", verdict="good", found=f"{free / 1e9:.0f} GB free for {out}")


def _tracking(out: Path, uri: str | None) -> Iterator[Check]:
    from qbench.publish import default_uri, reach

    yield Check(what="MLflow", verdict="good", found=f"mlflow {version('mlflow')}")
    for place in (default_uri(out), uri):
        if place is None or (place == default_uri(out) and not (out / "mlflow.db").exists()):
            continue
        try:
            count = reach(place)
        except UserError as error:
            yield Check(
                what="MLflow",
                verdict="lacking",
                found=str(error),
                advice="Tables run all the same; qbench sync records them when it is back.",
            )
        else:
            shown = without_password(place)
            yield Check(what="MLflow", verdict="good", found=f"{shown}: {count} experiments")


def _ray() -> Iterator[Check]:
    if found := _installed("ray"):
        yield Check(what="Ray", verdict="good", found=found)
    else:
        yield Check(
            what="Ray",
            verdict="lacking",
            found="not installed",
            advice="Only --ray needs it: install quadnets-bench[ray].",
        )
