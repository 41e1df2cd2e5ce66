"""Blocks on a Ray cluster of several nodes, all on this machine: recorded once, the same to the
last bit, whether or not the nodes see the run folder, and whichever of them are lost."""

import hashlib
import importlib.util
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from qbench.activity import Activity, activities, recorded
from qbench.block import Block, Setting, plan
from qbench.cli import app
from qbench.data import root as data_files
from qbench.errors import UserError
from qbench.executors import cluster as cluster_module
from qbench.executors import run_blocks, run_on_ray
from qbench.executors.cluster import Nodes, import_ray
from qbench.executors.dispatch import dispatch
from qbench.executors.node import Job, Task, packages, work
from qbench.table import Table, load_table, parse_table
from qbench.trial import WEIGHTS, RunFolder

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs the extra quadnets-bench[ray]", allow_module_level=True)
ray = import_ray()  # not before: it tells Ray to leave the environment as it is

NOWHERE = Path("/a/folder/that/no/node/sees")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that runs nothing, and two nodes of one processor; this process is connected."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def table(grid: str, recipe: str) -> Table:
    text = f"""
id: clustered
version: 1
title: Blocks of every kind
paper: none
shows: nothing
main_metric: test_accuracy
grid: {grid}
recipe: {recipe}
seeds: 2
"""
    return parse_table(text, "clustered.yaml")


def on_nodes(
    folder: RunFolder, setting: Setting | None = None, seen_at: Path | None = None, **chosen: Any
) -> list[tuple[Block, int]]:
    """Run what is left on the cluster; the blocks that ended, and how many results each added."""
    failed: list[str] = []
    blocks = plan(folder, folder.table.cells(), 2)
    pool = Nodes(ray, folder, setting or Setting(), seen_at=seen_at, **chosen)
    with pool:
        found = dispatch(pool, blocks, lambda block, reason: failed.append(reason))
        ended = [(block, len(results)) for block, results in found]
    assert failed == []
    assert not list(folder.path.glob(".shared-*"))
    return ended


def here(folder: RunFolder) -> None:
    for _ in run_blocks(folder, plan(folder, folder.table.cells(), 2)):
        pass


def facts(folder: RunFolder) -> list[tuple[object, ...]]:
    """What must be the same wherever a block was run."""
    return [
        (r.key, r.weights, r.metrics, r.step, r.history, r.files, r.environment.block)
        for r in folder.results(folder.table.cells())
    ]


def threads_of(folder: RunFolder) -> set[int]:
    return {r.environment.threads for r in folder.results(folder.table.cells())}


def made(path: Path, table: Table) -> RunFolder:
    return RunFolder(path, table, create=True)


def until(condition: Callable[[], object], seconds: float = 120.0) -> Any:
    """Wait until it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


IRIS = """
  dataset: [iris]
  model: {linear: {kind: linear}, dense: {kind: dense}, rank1: {kind: low_rank, rank: 1}}
"""
SHORT = "{lr: 0.01, epochs: 100, log_every: 20, test_fraction: 0.2, scaling: maxabs}"


@pytest.mark.parametrize("seen_at", [None, NOWHERE], ids=["in the run folder", "apart from it"])
@pytest.mark.usefixtures("cluster")
def test_results_are_those_of_one_process(tmp_path: Path, seen_at: Path | None) -> None:
    reference = made(tmp_path / "here", table(IRIS, SHORT))
    here(reference)
    folder = made(tmp_path / "there", table(IRIS, SHORT))
    assert sorted(added for _, added in on_nodes(folder, seen_at=seen_at)) == [2, 2, 2]
    assert facts(folder) == facts(reference)
    assert len(facts(folder)) == 6
    assert threads_of(folder) == {1}
    assert activities(folder) == []
    assert on_nodes(folder, seen_at=seen_at) == []


def test_the_tables_run_as_they_are(cluster: Any, tmp_path: Path) -> None:
    uci = load_table("uci")
    cells = list(uci.cells({"dataset": ("iris",)}, reduced="quick"))
    folders = [RunFolder(tmp_path / name, uci, create=True) for name in ("here", "there")]
    seen: dict[Block, float] = {}
    for _ in run_blocks(folders[0], plan(folders[0], cells, 3)):
        pass
    runs = run_on_ray(
        folders[1],
        plan(folders[1], cells, 3),
        cluster.address,
        on_progress=lambda block, fraction: seen.update({block: fraction}),
    )
    ended = [(block, results) for block, results in runs]
    assert len(ended) == len(seen) == 16
    assert set(seen.values()) == {1.0}
    found = [
        [(r.key, r.weights, r.metrics, r.environment.threads) for r in folder.results(cells)]
        for folder in folders
    ]
    assert found[0] == found[1]
    assert len(found[1]) == sum(len(results) for _, results in ended) == 48


NETWORKS = """
  dataset: [digits32]
  model:
    trained: &network
      {kind: zoo, name: cifar_resnet20, options: {depths: [1, 1, 1], widths: [4, 4, 4]}}
    tuned: {<<: *network, quadratize: compact, after: trained, recipe: {strategy: {gamma: 0.5}}}
"""
SMALL = "{lr: 0.01, batch_size: 24, train_samples: 96, test_samples: 40, epochs: 2, log_every: 2}"


@pytest.mark.usefixtures("cluster")
def test_what_a_network_starts_from_is_sent_along(tmp_path: Path) -> None:
    reference = made(tmp_path / "here", table(NETWORKS, SMALL))
    here(reference)
    folder = made(tmp_path / "there", table(NETWORKS, SMALL))
    order = [block.cell.axes["model"] for block, _ in on_nodes(folder, seen_at=NOWHERE)]
    assert sorted(order) == ["trained", "trained", "tuned", "tuned"]
    assert order[0] == "trained"
    assert facts(folder) == facts(reference)
    for result in folder.results(folder.table.cells()):
        assert folder.read_file(result, WEIGHTS)


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("seen_at", [None, NOWHERE], ids=["in the run folder", "apart from it"])
def test_images_are_sent_to_nodes_that_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen_at: Path | None
) -> None:
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 256, (60, 28, 28), dtype=np.uint8), np.arange(60, dtype=np.uint8) % 10
    files = {
        "train-images-idx3-ubyte": idx(x[:40]),
        "train-labels-idx1-ubyte": idx(y[:40]),
        "t10k-images-idx3-ubyte": idx(x[40:]),
        "t10k-labels-idx1-ubyte": idx(y[40:]),
    }
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in files.items():
        (raw / name).write_bytes(content)
    # known in this process alone: a node that looked for files would find them damaged
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(data_files, "_FILES", {**data_files._FILES, "mnist": sums})
    grid = "{dataset: [mnist], model: {linear: {kind: linear}, dense: {kind: low_rank, rank: 2}}}"
    digits = table(grid, "{lr: 0.01, epochs: 3, batch_size: 8, log_every: 5}")
    setting = Setting(root=tmp_path / "data")
    reference, folder = made(tmp_path / "here", digits), made(tmp_path / "there", digits)
    for _ in run_blocks(reference, plan(reference, digits.cells(), 2), setting):
        pass
    assert len(on_nodes(folder, setting, seen_at)) == 2
    assert facts(folder) == facts(reference)


BROKEN = """
  dataset: [digits32]
  model:
    good: {kind: linear}
    bad: {kind: zoo, name: cifar_resnet20, options: {depths: [1, 1, 1], widths: [0, 4, 4]}}
"""


@pytest.mark.parametrize("seen_at", [None, NOWHERE], ids=["in the run folder", "apart from it"])
@pytest.mark.usefixtures("cluster")
def test_a_block_that_fails_is_told_of_and_the_others_are_run(
    tmp_path: Path, seen_at: Path | None
) -> None:
    folder = made(tmp_path, table(BROKEN, SMALL))
    failed: list[tuple[object, str]] = []
    with Nodes(ray, folder, Setting(), seen_at=seen_at) as pool:
        runs = dispatch(
            pool,
            plan(folder, folder.table.cells(), 1),
            lambda block, reason: failed.append((block.cell.axes["model"], reason)),
        )
        assert [block.cell.axes["model"] for block, _ in runs] == ["good"]
    ((activity, is_held),) = activities(folder)
    assert failed == [("bad", activity.reason)]
    assert "Error: " in activity.reason
    assert (activity.state, is_held) == ("failed", False)
    assert "Traceback" in activity.traceback


@pytest.fixture
def cancelled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The tasks that Ray was told to cancel."""
    found: list[Any] = []
    cancel = ray.cancel

    def noted(answer: Any, **how: Any) -> None:
        found.append(answer)
        cancel(answer, **how)

    monkeypatch.setattr(ray, "cancel", noted)
    return found


@pytest.mark.parametrize("seen_at", [None, NOWHERE], ids=["in the run folder", "apart from it"])
@pytest.mark.usefixtures("cluster")
def test_a_fault_that_every_block_would_meet_ends_the_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cancelled: list[Any],
    seen_at: Path | None,
) -> None:
    monkeypatch.setattr(cluster_module, "_QUIET_FOR", 120.0)  # however busy the machine is
    folder = made(tmp_path, table(NETWORKS, SMALL))
    here(folder)
    for result in folder.results(folder.table.cells()):
        if result.axes["model"] == "tuned":
            folder.result_path(result.key).unlink()
        else:
            (folder.trial_path(result.key) / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(
        UserError, match=r"is missing or damaged: delete .* and run the table again"
    ):
        on_nodes(folder, seen_at=seen_at)
    assert not list(folder.path.glob(".shared-*"))
    assert cancelled == []  # both answer at once, when Ray does not survive that they are cancelled


@pytest.mark.usefixtures("cluster")
def test_a_run_that_is_stopped_ends_its_blocks(tmp_path: Path, cancelled: list[Any]) -> None:
    lasting = table(LONG, SECONDS.replace("epochs: 60", "epochs: 100000"))
    folder = made(tmp_path, lasting)
    (block,) = plan(folder, lasting.cells(), 2)
    with Nodes(ray, folder, Setting()) as pool:
        pool.submit(block, wait=False)
        worker = activity_in(folder.path).pid
    assert len(cancelled) == 1
    until(lambda: not Path(f"/proc/{worker}").exists())
    ((activity, is_held),) = activities(folder)
    assert (activity.state, is_held) == ("running", False)


@pytest.mark.parametrize("seen_at", [None, NOWHERE], ids=["in the run folder", "apart from it"])
@pytest.mark.usefixtures("cluster")
def test_a_block_that_another_process_runs_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen_at: Path | None
) -> None:
    monkeypatch.setattr(cluster_module, "_LOOK_EVERY", 0.5)
    folder = made(tmp_path, table(IRIS, SHORT))
    elsewhere = made(tmp_path / "elsewhere", folder.table)
    first, *_ = plan(folder, folder.table.cells(), 2)
    for _ in run_blocks(elsewhere, [first]):
        pass
    held = threading.Event()

    def hold() -> None:
        cell = first.cell
        with (
            folder.lock(first.name),
            recorded(folder, first.name, cell.axes, first.seeds, reduced=None) as record,
        ):
            record._change(fraction=0.5)
            held.set()
            until(lambda: len(list(folder.path.glob("*/result.json"))) == 4)  # the others
            time.sleep(2.0)
            for result in elsewhere.results([cell]):
                folder.write(result)

    seen: list[float] = []
    with ThreadPoolExecutor() as threads:
        holder = threads.submit(hold)
        held.wait()
        ended = on_nodes(folder, seen_at=seen_at, on_progress=lambda _, share: seen.append(share))
        holder.result()
    assert [added for _, added in ended] == [2, 2, 0]
    assert ended[-1][0].cell.key == first.cell.key
    assert 0.5 in seen
    assert seen.count(1.0) == 3


LONG = """
  dataset: [digits]
  model: {layers: {kind: mlp, hidden: [16, 16], neuron: quadratic}}
"""
SECONDS = "{lr: 0.001, batch_size: 64, epochs: 60, log_every: 100, test_fraction: 0.2}"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    """What a block leaves that lasts for seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = made(tmp_path_factory.mktemp("unbroken"), table(LONG, SECONDS))
    here(folder)
    torch.set_num_threads(before)
    return facts(folder)


def parent(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("PPid:")[2].split()[0])


def activity_in(folder: Path) -> Activity:
    (path,) = until(lambda: list(folder.glob(".activity/*.json")))
    return Activity.model_validate_json(path.read_bytes())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks /proc for a parent")
def test_a_lost_nodes_block_goes_on_from_its_checkpoint_on_another(
    cluster: Any, tmp_path: Path, unbroken: list[tuple[object, ...]]
) -> None:
    folder = made(tmp_path, table(LONG, SECONDS))
    with ThreadPoolExecutor() as threads:
        ended = threads.submit(on_nodes, folder, Setting(save_every=0.1))
        until(lambda: list(folder.path.glob(".checkpoints/*/*.safetensors")))
        raylet = parent(activity_in(folder.path).pid)
        (lost,) = (
            node
            for node in cluster.worker_nodes
            if node.all_processes["raylet"][0].process.pid == raylet
        )
        cluster.remove_node(lost, allow_graceful=False)
        assert [added for _, added in ended.result()] == [2]
    cluster.add_node(num_cpus=1)
    assert facts(folder) == unbroken
    results = list(folder.results(folder.table.cells()))
    assert [result.environment.interruptions for result in results] == [1, 1]
    assert not list(folder.path.glob(".checkpoints/*"))
    assert activities(folder) == []


@pytest.mark.usefixtures("cluster")
def test_apart_from_the_run_folder_a_lost_block_begins_again(
    tmp_path: Path, unbroken: list[tuple[object, ...]]
) -> None:
    lasting = table(LONG, SECONDS).model_copy(update={"id": "lasting"})
    folder = made(tmp_path, lasting)
    with ThreadPoolExecutor() as threads:
        ended = threads.submit(on_nodes, folder, seen_at=NOWHERE)
        (place,) = until(lambda: list(Path(tempfile.gettempdir()).glob("qbench-*/lasting")))
        os.kill(activity_in(place).pid, signal.SIGKILL)
        shutil.rmtree(place.parent)
        assert [added for _, added in ended.result()] == [2]
    assert [fact[1:] for fact in facts(folder)] == [fact[1:] for fact in unbroken]  # all but keys
    results = list(folder.results(lasting.cells()))
    assert [result.environment.interruptions for result in results] == [0, 0]


def test_a_block_waits_for_a_node_that_has_room_for_it(cluster: Any, tmp_path: Path) -> None:
    folder = made(tmp_path, table(IRIS, SHORT))
    notes: list[str] = []
    with ThreadPoolExecutor() as threads:
        ended = threads.submit(on_nodes, folder, Setting(on_note=notes.append), threads=2)
        until(lambda: notes)
        joined = cluster.add_node(num_cpus=2)
        assert len(ended.result()) == 3
    cluster.remove_node(joined)
    assert notes == ["no node of the cluster has 2 processors: waiting for one"]
    assert threads_of(folder) == {2}


def test_a_node_with_other_packages_is_named() -> None:
    other = {**packages(), "quadnets-core": "9.9"}
    job = Job(Path(), "token", table(IRIS, SHORT), Setting(), 1, other)
    said = work(job, Task({"dataset": "iris", "model": "linear"}, False, (0,), False), None)
    assert said.kind == "stop"
    assert said.text == (
        f"quadnets-core {packages()['quadnets-core']} on {socket.gethostname()} is not 9.9, as "
        "here: install the same on every node"
    )


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "auto"])
def test_an_address_where_nobody_answers_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int, address: str
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    address = address.format(closed_port)
    folder = made(tmp_path, table(IRIS, SHORT))
    expected = rf"^--ray {address}: no connection to that cluster \(.*[Rr]efused\); Ray takes host"
    started = time.monotonic()
    with pytest.raises(UserError, match=expected):
        next(run_on_ray(folder, [], address))
    assert time.monotonic() - started < 20


def test_a_place_in_which_rays_workers_do_not_begin_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_TMPDIR", f"{sys.prefix}/ours")
    with pytest.raises(UserError, match=r"^--ray local: Ray cannot keep its files in .*RAY_TMPDIR"):
        next(run_on_ray(made(tmp_path, table(IRIS, SHORT)), [], "local"))


def test_ray_is_imported_by_those_who_use_it_and_its_absence_is_one_sentence() -> None:
    program = """
import sys
import qbench.executors
assert "ray" not in sys.modules
sys.modules["ray"] = None
sys.argv = ["qbench", "run", "xor", "--ray", "local", "--out", sys.argv[1]]
from qbench.cli import main
main()
"""
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run(
            [sys.executable, "-c", program, out], capture_output=True, text=True, check=False
        )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        "qbench: --ray: Ray is not installed; install it with pip install 'quadnets-bench[ray]', "
        "or use --jobs for processes of this machine",
    )


def test_processes_and_a_cluster_exclude_each_other() -> None:
    done = CliRunner().invoke(app, ["run", "xor", "--jobs", "2", "--ray", "auto"])
    assert isinstance(done.exception, UserError)
    assert str(done.exception) == (
        "--jobs 2 is for processes of this machine, --ray auto for a cluster: give one"
    )


def test_the_command_line_starts_a_cluster_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qbench", "run", "xor", "--ray", "local"]
    done = subprocess.run(
        [*command, "--out", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "1 trials run in" in done.stdout
    assert "ray" not in done.stderr.lower()
    assert len(list(tmp_path.glob("xor/*/result.json"))) == 1
