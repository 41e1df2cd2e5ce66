"""Ratios of two times, measured in pairs, and how they are shown.

A row times its two sides one right after the other; the figure is the median of the pairs' ratios
with its 95 % interval (order statistics), and a target is met when the interval's lower end is
below it.
"""

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

Step = Callable[[], object]


def ratios(ours: Step, theirs: Step, pairs: int) -> list[float]:
    """Time of ours over time of theirs, pair by pair; who goes first alternates."""
    ours(), theirs(), ours(), theirs()
    found = []
    for index in range(pairs):
        times = {}
        for step in (ours, theirs) if index % 2 else (theirs, ours):
            started = time.perf_counter()
            step()
            times[step] = time.perf_counter() - started
        found.append(times[ours] / times[theirs])
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median by order statistics, for 15 values or more."""
    ordered = sorted(values)
    outside = int((len(ordered) - 1.96 * len(ordered) ** 0.5) / 2)
    return ordered[outside], ordered[-1 - outside]


def import_time(name: str) -> Step:
    """Importing a module in a fresh interpreter."""

    def step() -> None:
        subprocess.run([sys.executable, "-c", f"import {name}"], check=True)  # noqa: S603

    return step


class Report:
    """Rows of ratios, printed as a table and written as JSON."""

    def __init__(self, title: str) -> None:
        self.rows: list[dict[str, object]] = []
        self.grid = Table(title=title)
        for heading in ("what", "against", "ratio", "95 % interval", "target", "met"):
            left = heading in ("what", "against")
            self.grid.add_column(heading, justify="left" if left else "right")

    def add(self, what: str, against: str, values: Sequence[float], target: float | None) -> None:
        """A row of one ratio, which is then exact, or of 15 or more."""
        median = statistics.median(values)
        low, high = interval(values) if len(values) > 1 else (median, median)
        met = None if target is None else low <= target
        self.rows.append(
            {
                "what": what,
                "against": against,
                "ratio": median,
                "interval95": [low, high],
                "n": len(values),
                "target": target,
                "met": met,
            }
        )
        self.grid.add_row(
            what,
            against,
            f"{median:.3f}",
            f"{low:.3f} – {high:.3f}" if len(values) > 1 else "exact",
            "" if target is None else f"{target:g}",
            "" if met is None else "yes" if met else "no",
        )

    def show(self, out: Path | None, **facts: object) -> None:
        """Print the table; write the rows, the machine and other facts, where a file is given."""
        Console().print(self.grid)
        if out:
            record = {
                "hardware": {"cpu": processor(), "threads": torch.get_num_threads()},
                "versions": {"python": platform.python_version(), "torch": torch.__version__},
                **facts,
                "rows": self.rows,
            }
            out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
