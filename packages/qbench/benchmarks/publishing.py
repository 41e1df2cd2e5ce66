"""What recording in MLflow costs the training beside it: ratios in one process.

    uv run python packages/qbench/benchmarks/publishing.py [sqlite dead] [--pairs 15] [--out FILE]

Blocks of ``uci`` are trained with the process that records them, and without; what it still has to
record when training ends is waited for outside the measurement. Its targets are the SQLite store
alone, and that with a server that does not answer. How ratios are shown, and when a target is met,
is said in qcore's ``benchmarks/paired.py``. Run it on a quiet machine.
"""

import argparse
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from qbench.block import plan
from qbench.executors import run_blocks
from qbench.publish import Publisher, default_uri
from qbench.table import load_table
from qbench.trial import RunFolder, commit

sys.path.append(str(Path(__file__).parents[2] / "qcore" / "benchmarks"))
from paired import Report

TARGET = 1.02
TABLE = load_table("uci")
ONLY = {"dataset": ("wine", "wisconsin"), "model": ("linear", "rank1", "rank4")}


def trained(uris: Sequence[str] | None) -> float:
    """Seconds of training, with a publisher to these stores beside the one here, or without any."""
    with TemporaryDirectory() as name:
        out = Path(name)
        folder = RunFolder(out, TABLE, create=True)
        blocks = plan(folder, TABLE.cells(ONLY), TABLE.seeds)
        publisher = None if uris is None else Publisher(out, [default_uri(out), *uris], TABLE.id)
        started = time.perf_counter()
        for _, results in run_blocks(folder, blocks):
            if publisher is not None:
                publisher.send(folder, results)
        seconds = time.perf_counter() - started
        if publisher is not None:
            publisher.close()
    return seconds


def main() -> None:
    """Measure both stores, print the ratios and write them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("stores", nargs="*", metavar="STORE", help="sqlite, dead; or both")
    parser.add_argument("--pairs", type=int, default=15, help="pairs per row, 15 or more")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    report = Report(f"training with recording against training alone, {arguments.pairs} pairs each")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # it takes a connection, and never answers
        dead = f"http://127.0.0.1:{silent.getsockname()[1]}"
        trained(None)
        stores = {"sqlite": ("SQLite", []), "dead": ("SQLite and a dead server", [dead])}
        if unknown := set(arguments.stores) - stores.keys():
            parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(stores)}")
        for name in arguments.stores or stores:
            what, uris = stores[name]
            found = []
            for index in range(arguments.pairs):
                first, second = (uris, None) if index % 2 else (None, uris)
                times = [trained(first), trained(second)]
                found.append(times[0] / times[1] if index % 2 else times[1] / times[0])
            report.add(what, "no recording", found, TARGET)
    report.show(arguments.out, commit=commit())


if __name__ == "__main__":
    main()
