"""QResNet-20 on CIFAR-10 on a GPU: the bench's loop against the published script's arrangement.

    QBENCH_DATA=... python packages/qbench/benchmarks/training_gpu.py [--batch 512] [--out FILE]

*Published* is what the ReLinear scripts do: images prepared one by one by torchvision in worker
processes, three convolutions with ``x.pow(2)`` in NCHW, float32, the loss read back at every step.
*Ours* is the loop as ``qbench run relinear --precision bfloat16 --device cuda`` runs it. Both train
on the same images; the figure is images per second, and the median of the pairs' ratios. On a CPU
it runs with ``--images 256`` to show that it runs, and its figures mean nothing there.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from qbench.build import build_model
from qbench.data import load_problem
from qbench.data.root import data_root
from qbench.loop import Training
from qbench.stack import side_by_side
from qbench.table import load_table
from qbench.trial import commit

sys.path.append(str(Path(__file__).parents[2] / "qcore" / "benchmarks"))
from networks import qresnet20
from paired import Report, Step, ratios

TARGET = 0.25
"""Four times as many images per second."""


def synchronized(step: Step, device: str) -> Step:
    """The step, until the device has really done it."""

    def run() -> None:
        step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def ours(images: int, batch: int, device: str, precision: str) -> Step:
    """One epoch in the bench's loop, without measuring the test part."""
    (cell,) = load_table("relinear").cells({"depth": ("20",), "model": ("gradients-1e-5",)})
    recipe = cell.recipe.model_copy(
        update={
            "batch_size": batch,
            "train_samples": images,
            "test_samples": 1,
            "epochs": 1,
            "schedule": "constant",
            "milestones": (),
            "precision": precision,
        }
    )
    problem = load_problem("cifar10", recipe, [0]).to(device)
    built = build_model(cell.model, problem.shape, 10, 1.0, 0, recipe.strategy)
    model = built.to(device=device, memory_format=torch.channels_last)

    def epoch() -> None:
        Training(side_by_side([model]), problem, recipe, [0], device=device).run()

    return synchronized(epoch, device)


def published(images: int, batch: int, device: str, workers: int) -> Step:
    """One epoch as the published scripts train."""
    normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    prepared = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.RandomCrop(32, 4),
            transforms.ToTensor(),
            normalize,
        ]
    )
    dataset = Subset(datasets.CIFAR10(data_root(), transform=prepared), range(images))
    loader = DataLoader(
        dataset, batch, shuffle=True, num_workers=workers, pin_memory=device == "cuda"
    )
    model: nn.Module = qresnet20("published").to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def epoch() -> None:
        model.train()
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

    return synchronized(epoch, device)


def main() -> None:
    """Measure, print the ratio and write it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="pairs, 15 or more")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--images", type=int, default=25_600)
    parser.add_argument("--workers", type=int, default=4, help="of the published loader")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report = Report(f"an epoch of {arguments.images} images on {device}, {arguments.pairs} pairs")
    found = ratios(
        ours(arguments.images, arguments.batch, device, arguments.precision),
        published(arguments.images, arguments.batch, device, arguments.workers),
        arguments.pairs,
    )
    report.add(f"QResNet-20, {arguments.precision}", "published loop", found, TARGET)
    name = torch.cuda.get_device_name() if device == "cuda" else "none"
    report.show(arguments.out, commit=commit(), gpu=name)


if __name__ == "__main__":
    main()
