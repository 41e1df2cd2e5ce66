"""What each arithmetic of quadratic layers costs on a GPU, against the published arrangement.

    uv run python packages/qcore/benchmarks/speed_gpu.py [--pairs 15] [--batch 512] [--out gpu.json]

A training step of QResNet-20 in float32 (no TF32) and under bf16 autocast, NCHW for the published
arrangement and channels_last for the others. Ratios as in ``paired.py``, and the peak memory of a
step. A target is met when the interval's lower end is below it: 0.5 against published, 1.25 against
a network of equal multiply-adds.
"""

import argparse
import json
import platform
import statistics
from contextlib import nullcontext
from pathlib import Path

import torch
from networks import channels_last, qresnet20
from paired import Step, interval, ratios
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import qcore

WAYS = ("plain", "fast", "triton", "compiled", "compiled, CUDA graph")


def training(model: nn.Module, x: Tensor, precision: str, backend: str = "plain") -> Step:
    """A step of gradient descent that has ended when it returns."""
    target = torch.randint(0, 10, (len(x),), device=x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    bf16 = torch.autocast(x.device.type, torch.bfloat16)

    def step() -> None:
        optimizer.zero_grad()
        with qcore.backend(backend), bf16 if precision == "bf16" else nullcontext():
            loss = functional.cross_entropy(model(x).float(), target)
        loss.backward()
        optimizer.step()
        if x.is_cuda:
            torch.cuda.synchronize()

    return step


def ours(way: str, x: Tensor, precision: str) -> Step:
    """A step of qcore's network, its layers run in one of ``WAYS``."""
    model, x = channels_last(qresnet20("qcore").to(x.device), x)
    if way.startswith("compiled"):
        mode = "reduce-overhead" if way.endswith("graph") else "default"
        return training(torch.compile(model, mode=mode), x, precision)
    return training(model, x, precision, way)


def peak(step: Step) -> float:
    """The most memory that a step holds, in MB; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() / 1e6


def main() -> None:
    """Measure every way in both precisions, print the ratios and write them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="pairs per row, 15 or more")
    parser.add_argument("--batch", type=int, default=512, help="images in a training step")
    parser.add_argument("--device", default="cuda", help="cpu tries the script out, no more")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="which to measure")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    x = torch.randn(arguments.batch, 3, 32, 32, device=arguments.device)
    name = torch.cuda.get_device_name() if x.is_cuda else "cpu"
    grid = Table("precision", "way", "against", "ratio", "95 % interval", "peak MB", title=name)
    rows = []
    for precision in ("float32", "bf16"):
        published = training(qresnet20("published").to(x.device), x, precision)
        equal = training(*channels_last(qresnet20("equal").to(x.device), x), precision)
        for way in arguments.ways:
            step = ours(way, x, precision)
            for against, other in (("published", published), ("equal-MAC", equal)):
                values = ratios(step, other, arguments.pairs)
                row = {
                    "precision": precision,
                    "way": way,
                    "against": against,
                    "ratio": statistics.median(values),
                    "interval95": interval(values),
                    "n": len(values),
                    "peak_mb": [peak(step), peak(other)],
                }
                rows.append(row)
                low, high = row["interval95"]
                memory = " / ".join(f"{megabytes:.0f}" for megabytes in row["peak_mb"])
                ratio = f"{row['ratio']:.3f}"
                grid.add_row(precision, way, against, ratio, f"{low:.3f} – {high:.3f}", memory)
    Console().print(grid)
    if arguments.out:
        record = {
            "hardware": name,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "batch": arguments.batch,
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
