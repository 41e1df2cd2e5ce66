"""What it costs that threads wait asleep instead of spinning, alone and beside other programs.

    uv run python packages/qbench/benchmarks/waiting.py

OpenMP's threads wait for one another by spinning, which on a busy machine takes the processor from
the very thread that is waited for. With ``OMP_WAIT_POLICY=passive`` they sleep, and waking them
takes time: ``qbench`` leaves the choice to the user. The policy is fixed when a process starts:
each figure is the median ratio of pairs of processes, one of each policy, one after the other.
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import time

KINDS = {
    "digits, full batch, 10 seeds": ({"kind": "low_rank", "rank": 4}, (64,), 1437, 10, 60),
    "MNIST, rank 10": ({"kind": "low_rank", "rank": 10}, (1, 28, 28), 100, 1, 600),
    "QResNet-20": ({"kind": "zoo", "name": "qresnet20"}, (3, 32, 32), 64, 1, 3),
}
"""Model, shape of an input, batch, seeds side by side, steps."""


def train(kind: str) -> float:
    """Seconds of the steps, in this process."""
    import torch
    from torch.nn import functional

    from qbench.architecture import ModelSpec
    from qbench.build import build_model
    from qbench.stack import side_by_side

    fields, shape, batch, seeds, steps = KINDS[kind]
    spec = ModelSpec.model_validate(fields)
    model = side_by_side([build_model(spec, shape, 10, 1.0, seed=seed) for seed in range(seeds)])
    x, y = torch.rand(seeds, batch, *shape), torch.randint(10, (seeds * batch,))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x).flatten(0, 1), y).backward()
        optimizer.step()

    step()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return time.perf_counter() - started


def seconds(kind: str, policy: str | None) -> float:
    """Of the steps in a fresh process under a policy; None leaves it to OpenMP."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if policy:
        environment["OMP_WAIT_POLICY"] = policy
    command = [sys.executable, __file__, "--train", kind]
    done = subprocess.run(  # noqa: S603 - this file
        command, env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def busy() -> None:
    """Another program that takes a processor."""
    while True:
        pass


def main() -> None:
    """Print the ratio of passive to active waiting for each kind, alone and beside others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--train", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        print(train(options.train))
        return
    for others in (0, os.cpu_count() or 1):
        load = [multiprocessing.Process(target=busy, daemon=True) for _ in range(others)]
        for one in load:
            one.start()
        for kind in KINDS:
            pairs = [(seconds(kind, "passive"), seconds(kind, None)) for _ in range(options.pairs)]
            ratios = [passive / active for passive, active in pairs]
            print(
                f"{kind}, {others or 'no'} other programs: {statistics.median(ratios):.3f} "
                f"({min(ratios):.3f} to {max(ratios):.3f}, n = {len(pairs)}); passive "
                f"{statistics.median(passive for passive, _ in pairs):.2f} s",
                flush=True,
            )
        for one in load:
            one.terminate()


if __name__ == "__main__":
    main()
