"""What the fast paths cost against the published arrangement, on CPU: ratios, interleaved.

    uv run python packages/qcore/benchmarks/speed.py [--pairs 15] [--batch 128] [--out speed.json]

*Published* is the arrangement of the ReLinear scripts in plain torch: three convolutions,
``x.pow(2)``, a product and a sum, NCHW. *Equal-MAC* is one convolution with as many multiply-adds.
Each row times its two sides one right after the other; the figure is the median of the pairs'
ratios with its 95 % interval (order statistics), and a target is met when the interval's lower end
is below it. Memory is what autograd saves for the backward pass, parameters left out, each storage
counted once. Run it on a quiet machine.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MethodType

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import qcore
import qzoo  # noqa: F401 - registers the models

Step = Callable[[], object]


def published(self: qcore.Quadratic, x: Tensor) -> Tensor:
    """The forward pass of the published layers."""
    return self["r"](x) * (self["g"](x) + 1.0) + self["b"](x.pow(2))


def qresnet20(arrangement: str) -> nn.Module:
    """The network with qcore's layers, the published arrangement, or equal multiply-adds."""
    torch.manual_seed(0)
    model = timm.create_model("qresnet20")
    for path, layer in list(model.named_modules()):
        if not isinstance(layer, qcore.QuadraticConv2d):
            continue
        if arrangement == "published":
            layer.forward = MethodType(published, layer)
        elif arrangement == "equal":
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, EqualMultiplyAdds(layer))
    return model


class EqualMultiplyAdds(nn.Module):
    """One convolution with three times the outputs, of which a third is used."""

    def __init__(self, layer: qcore.QuadraticConv2d) -> None:
        super().__init__()
        r = layer["r"]
        self.channels = layer.out_channels
        self.convolution = nn.Conv2d(
            r.in_channels, 3 * r.out_channels, r.kernel_size, r.stride, r.padding
        )

    def forward(self, x: Tensor) -> Tensor:
        """The mean of the three thirds, so that every output enters."""
        return self.convolution(x).unflatten(1, (3, self.channels)).mean(1)


def training(
    model: nn.Module,
    x: Tensor,
    setting: Callable[[], AbstractContextManager[None]] = lambda: qcore.backend("auto"),
) -> Step:
    """A step of gradient descent."""
    target = torch.randint(0, 10, (len(x),))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        with setting():
            functional.cross_entropy(model(x), target).backward()
        optimizer.step()

    return step


def inference(model: nn.Module, x: Tensor) -> Step:
    """A forward pass without gradients."""
    model.eval()

    def step() -> None:
        with torch.inference_mode():
            model(x)

    return step


def saved_bytes(model: nn.Module, x: Tensor, **setting: int) -> int:
    """What autograd keeps of a training step between its two passes."""
    owned = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            # the tensor is held, so that no other storage takes its address
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        qcore.backend("auto", **setting),
    ):
        model(x).sum()
    return sum(size for size, _ in kept.values())


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


def channels_last(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """The same in the layout in which convolutions are fastest."""
    return (
        model.to(memory_format=torch.channels_last),
        x.to(memory_format=torch.channels_last),
    )


def form_steps(size: int, out: int, batch: int) -> tuple[Step, Step]:
    """A training step of the dense form, and of ``nn.Bilinear`` with both inputs the same."""
    x = torch.randn(batch, size)
    form, bilinear = qcore.QuadraticForm(size, out), nn.Bilinear(size, size, out, bias=False)

    def step(module: nn.Module, *inputs: Tensor) -> Step:
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-9)

        def run() -> None:
            optimizer.zero_grad()
            module(*inputs).sum().backward()
            optimizer.step()

        return run

    return step(form, x), step(bilinear, x, x)


def import_time(name: str) -> Step:
    """Importing a module in a fresh interpreter."""

    def step() -> None:
        subprocess.run([sys.executable, "-c", f"import {name}"], check=True)  # noqa: S603

    return step


def main() -> None:
    """Measure every row, print the ratios and write them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="pairs per row, 15 or more")
    parser.add_argument("--batch", type=int, default=128, help="images in a training step")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    x = torch.randn(arguments.batch, 3, 32, 32)
    theirs = training(qresnet20("published"), x)
    rows: list[dict[str, object]] = []
    grid = Table(title=f"qcore on CPU, {arguments.pairs} pairs each")
    for heading in ("what", "against", "ratio", "95 % interval", "target", "met"):
        grid.add_column(heading, justify="left" if heading in ("what", "against") else "right")

    def add(what: str, against: str, values: Sequence[float], target: float | None) -> None:
        median = statistics.median(values)
        low, high = interval(values) if len(values) > 1 else (median, median)
        met = None if target is None else low <= target
        rows.append(
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
        grid.add_row(
            what,
            against,
            f"{median:.3f}",
            f"{low:.3f} – {high:.3f}" if len(values) > 1 else "exact",
            "" if target is None else f"{target:g}",
            "" if met is None else "yes" if met else "no",
        )

    for recompute, target in ((1, 0.90), (0, None), (2, 1.30)):
        ours = training(
            *channels_last(qresnet20("qcore"), x),
            lambda recompute=recompute: qcore.backend("auto", recompute=recompute),
        )
        what = f"QResNet-20 step, channels_last, recompute={recompute}"
        add(what, "published", ratios(ours, theirs, arguments.pairs), target)
    ours = training(qresnet20("qcore"), x)
    add("QResNet-20 step, NCHW", "published", ratios(ours, theirs, arguments.pairs), None)
    ours = training(*channels_last(qresnet20("qcore"), x))
    equal = training(*channels_last(qresnet20("equal"), x))
    add("QResNet-20 step, channels_last", "equal-MAC", ratios(ours, equal, arguments.pairs), None)
    plain = saved_bytes(qresnet20("published"), x[:32])
    for recompute, target in ((1, 0.75), (0, None), (2, 0.45)):
        ours_saved = saved_bytes(qresnet20("qcore"), x[:32], recompute=recompute)
        add(f"saved for backward, recompute={recompute}", "published", [ours_saved / plain], target)

    folded = qcore.fold_batchnorm(qresnet20("qcore").eval())
    ours = inference(*channels_last(folded, x))
    theirs = inference(qresnet20("published"), x)
    what = "QResNet-20 inference, batch norm folded, channels_last"
    add(what, "published", ratios(ours, theirs, arguments.pairs), 0.70)

    ours, theirs = form_steps(784, 10, 100)
    add("dense form 784→10 step, batch 100", "nn.Bilinear", ratios(ours, theirs, 31), 0.65)

    torch.manual_seed(0)
    linear = timm.create_model("resnet10t", num_classes=10)
    low_rank = qcore.replace_head(linear, "low_rank", rank=4)
    images = torch.randn(32, 3, 64, 64)
    add(
        "low-rank head, rank 4, in a ResNet-10 step",
        "linear head",
        ratios(training(low_rank, images), training(linear, images), 31),
        1.02,
    )
    importing = ratios(import_time("qcore"), import_time("torch"), 15)
    add("import qcore", "import torch", importing, 1.05)

    Console().print(grid)
    if arguments.out:
        record = {
            "hardware": {"cpu": processor(), "threads": torch.get_num_threads()},
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "batch": arguments.batch,
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
