"""What the zoo costs beside timm alone, and inference beside the published arrangement: ratios.

    uv run python packages/qzoo/benchmarks/speed.py [--pairs 15] [--batch 128] [--out speed.json]

How ratios are measured, and when a target is met, is said in qcore's ``benchmarks/paired.py``.
Imports are timed in fresh interpreters. Run it on a quiet machine.
"""

import argparse
import sys
from pathlib import Path

import timm
import torch
from timm.utils.model import reparameterize_model

sys.path.append(str(Path(__file__).parents[2] / "qcore" / "benchmarks"))
from networks import channels_last, inference, qresnet20
from paired import Report, Step, import_time, ratios


def creating(name: str) -> Step:
    """Making an untrained model."""

    def step() -> None:
        timm.create_model(name)

    return step


def main() -> None:
    """Measure every row, print the ratios and write them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="pairs per row, 15 or more")
    parser.add_argument("--batch", type=int, default=128, help="images in a step of inference")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    report = Report(f"qzoo on CPU, {arguments.pairs} pairs each")

    x = torch.randn(arguments.batch, 3, 32, 32)
    fused = reparameterize_model(timm.create_model("qresnet20").eval())
    theirs = inference(qresnet20("published"), x)
    what = "qresnet20, fused, inference"
    values = ratios(inference(*channels_last(fused, x)), theirs, arguments.pairs)
    report.add(f"{what}, channels_last", "published", values, 0.70)
    fused = reparameterize_model(timm.create_model("qresnet20").eval())
    values = ratios(inference(fused, x), theirs, arguments.pairs)
    report.add(f"{what}, NCHW", "published", values, None)

    ours, theirs = creating("qresnet56"), creating("resnet50")
    values = ratios(ours, theirs, arguments.pairs)
    report.add('create_model("qresnet56")', 'create_model("resnet50")', values, 2.0)

    values = ratios(import_time("qzoo"), import_time("timm"), arguments.pairs)
    report.add("import qzoo", "import timm", values, 1.05)
    report.show(arguments.out, batch=arguments.batch, timm=timm.__version__)


if __name__ == "__main__":
    main()
