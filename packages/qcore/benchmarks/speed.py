"""What the fast paths cost against the published arrangement, on CPU: ratios, interleaved.

    uv run python packages/qcore/benchmarks/speed.py [--pairs 15] [--batch 128] [--out speed.json]

*Published* is the arrangement of the ReLinear scripts in plain torch: three convolutions,
``x.pow(2)``, a product and a sum, NCHW. *Equal-MAC* is one convolution with as many multiply-adds.
How ratios are measured, and when a target is met, is said in ``paired.py``. Memory is what autograd
saves for the backward pass, parameters left out, each storage counted once. Run it on a quiet
machine.
"""

import argparse
from pathlib import Path

import timm
import torch
from networks import channels_last, inference, qresnet20, training
from paired import Report, Step, import_time, ratios
from torch import Tensor, nn

import qcore


def saved_bytes(model: nn.Module, x: Tensor, backend: str = "auto", **setting: int) -> int:
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
        qcore.backend(backend, **setting),
    ):
        model(x).sum()
    return sum(size for size, _ in kept.values())


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


def main() -> None:
    """Measure every row, print the ratios and write them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="pairs per row, 15 or more")
    parser.add_argument("--batch", type=int, default=128, help="images in a training step")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    x = torch.randn(arguments.batch, 3, 32, 32)
    theirs = training(qresnet20("published"), x)
    report = Report(f"qcore on CPU, {arguments.pairs} pairs each")
    for recompute, target in ((1, 0.90), (0, None), (2, 1.30)):
        ours = training(
            *channels_last(qresnet20("qcore"), x),
            lambda recompute=recompute: qcore.backend("auto", recompute=recompute),
        )
        what = f"QResNet-20 step, channels_last, recompute={recompute}"
        report.add(what, "published", ratios(ours, theirs, arguments.pairs), target)
    ours = training(qresnet20("qcore"), x)
    report.add("QResNet-20 step, NCHW", "published", ratios(ours, theirs, arguments.pairs), None)
    ours = training(*channels_last(qresnet20("qcore"), x))
    equal = training(*channels_last(qresnet20("equal"), x))
    report.add(
        "QResNet-20 step, channels_last", "equal-MAC", ratios(ours, equal, arguments.pairs), None
    )
    for recompute in (1, 0, 2):
        ours = training(
            *channels_last(qresnet20("normalised"), x),
            lambda recompute=recompute: qcore.backend("auto", recompute=recompute),
        )
        formula = training(
            *channels_last(qresnet20("normalised"), x), lambda: qcore.backend("plain")
        )
        what = f"QResNet-20 step with a norm, channels_last, recompute={recompute}"
        report.add(what, "its formula", ratios(ours, formula, arguments.pairs), None)
    plain = saved_bytes(qresnet20("published"), x[:32])
    for recompute, target in ((1, 0.75), (0, None), (2, 0.45)):
        ours_saved = saved_bytes(qresnet20("qcore"), x[:32], recompute=recompute)
        report.add(
            f"saved for backward, recompute={recompute}", "published", [ours_saved / plain], target
        )
    formula_saved = saved_bytes(qresnet20("normalised"), x[:32], "plain")
    for recompute in (1, 0, 2):
        ours_saved = saved_bytes(qresnet20("normalised"), x[:32], recompute=recompute)
        what = f"saved for backward with a norm, recompute={recompute}"
        report.add(what, "its formula", [ours_saved / formula_saved], None)

    folded = qcore.fold_batchnorm(qresnet20("qcore").eval())
    ours = inference(*channels_last(folded, x))
    theirs = inference(qresnet20("published"), x)
    what = "QResNet-20 inference, batch norm folded, channels_last"
    report.add(what, "published", ratios(ours, theirs, arguments.pairs), 0.70)

    ours, theirs = form_steps(784, 10, 100)
    report.add("dense form 784→10 step, batch 100", "nn.Bilinear", ratios(ours, theirs, 31), 0.65)

    torch.manual_seed(0)
    linear = timm.create_model("resnet10t", num_classes=10)
    low_rank = qcore.replace_head(linear, "low_rank", rank=4)
    images = torch.randn(32, 3, 64, 64)
    report.add(
        "low-rank head, rank 4, in a ResNet-10 step",
        "linear head",
        ratios(training(low_rank, images), training(linear, images), 31),
        1.02,
    )
    importing = ratios(import_time("qcore"), import_time("torch"), 15)
    report.add("import qcore", "import torch", importing, 1.05)

    report.show(arguments.out, batch=arguments.batch)


if __name__ == "__main__":
    main()
