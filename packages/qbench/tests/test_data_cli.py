"""``qbench data``: files in torchvision's format, and its own downloads from a real server.

The published checksums are replaced by those of small files that are written here.
"""

import gc
import gzip
import hashlib
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image

import qzoo
from qbench import cli
from qbench.catalogue import DATASETS
from qbench.data import load_problem, root
from qbench.data.image_folder import find_image_fault, write_image_folder
from qbench.data.images import load_images
from qbench.data.root import VARIABLE, check_files, data_root, fetch, find_fault
from qbench.errors import UserError
from qbench.recipe import Recipe

FILES = {
    name: f"{part}-{what}-ubyte"
    for name, part, what in (
        ("images", "train", "images-idx3"),
        ("labels", "train", "labels-idx1"),
        ("test images", "t10k", "images-idx3"),
        ("test labels", "t10k", "labels-idx1"),
    )
}
FOLDER = "MNIST/raw"


def idx(array: np.ndarray) -> bytes:
    """An array of bytes as an idx file: type, number of axes, sizes, values."""
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


class Published:
    """What is "published" here: small sets, as files and in archives on a server."""

    def __init__(self, folder: Path) -> None:
        draw = np.random.default_rng(0)
        self.folder, self.requests = folder, []
        self.x = draw.integers(0, 256, (30, 28, 28), dtype=np.uint8)
        self.y = np.arange(30, dtype=np.uint8) % 10
        self.mnist = {
            FILES["images"]: idx(self.x[:20]),
            FILES["labels"]: idx(self.y[:20]),
            FILES["test images"]: idx(self.x[20:]),
            FILES["test labels"]: idx(self.y[20:]),
        }
        self.resources = []
        for name, content in self.mnist.items():
            packed = gzip.compress(content, mtime=0)
            (folder / f"{name}.gz").write_bytes(packed)
            self.resources.append((f"{name}.gz", md5(packed)))
        # rows of 1024 red, then green, then blue values, as CIFAR-10 has them
        self.colours = draw.integers(0, 256, (24, 3 * 32 * 32), dtype=np.uint8)
        self.cifar = {
            name: pickle.dumps({"data": self.colours[4 * i : 4 * i + 4], "labels": [i, 1, 2, 9]})
            for i, name in enumerate((*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"))
        }
        self.cifar["batches.meta"] = pickle.dumps({"label_names": [str(k) for k in range(10)]})
        batches = folder / "cifar-10-batches-py"
        batches.mkdir()
        for name, content in self.cifar.items():
            (batches / name).write_bytes(content)
        with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
            archive.add(batches, batches.name)

    def lay_out(self, root: Path) -> None:
        """A prepared root of both sets."""
        for name, content in self.mnist.items():
            (root / FOLDER).mkdir(parents=True, exist_ok=True)
            (root / FOLDER / name).write_bytes(content)
        for name, content in self.cifar.items():
            (root / "cifar-10-batches-py").mkdir(exist_ok=True)
            (root / "cifar-10-batches-py" / name).write_bytes(content)


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class Server(ThreadingHTTPServer):
    """A server that says nothing of a client that has read enough and closed its connection."""

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Published]:
    """Small sets on a server, which torchvision is told to download from."""
    folder = tmp_path / "published"
    folder.mkdir()
    found = Published(folder)

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            found.requests.append(self.path)

    server = Server(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    point(monkeypatch, found, server.server_port)
    monkeypatch.delenv(VARIABLE, raising=False)
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


def point(monkeypatch: pytest.MonkeyPatch, published: Published, port: int) -> None:
    """Let torchvision download from this port, and both it and us know what is published."""
    url = f"http://127.0.0.1:{port}/"
    mnist, cifar = torchvision.datasets.MNIST, torchvision.datasets.CIFAR10
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(mnist, "mirrors", [url])
    monkeypatch.setattr(mnist, "resources", published.resources)
    archive = published.folder / cifar.filename
    sums = {name: md5(content) for name, content in published.cifar.items()}
    monkeypatch.setattr(cifar, "url", url + cifar.filename)
    monkeypatch.setattr(cifar, "tgz_md5", md5(archive.read_bytes()))
    monkeypatch.setattr(cifar, "train_list", [[name, sums[name]] for name, _ in cifar.train_list])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": sums["batches.meta"]})
    sha256 = {name: hashlib.sha256(data).hexdigest() for name, data in published.mnist.items()}
    monkeypatch.setattr(root, "_FILES", {**root._FILES, "mnist": sha256, "cifar10": sums})


@pytest.fixture
def qbench(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: exit status, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qbench", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "140")
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return left.value.code, out, err

    return run


def everything(folder: Path) -> dict[str, bytes]:
    """The files below a folder, and what they hold."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# what there is


def test_list_tells_every_state(published, qbench, tmp_path) -> None:
    published.lay_out(tmp_path)
    (tmp_path / FOLDER / FILES["test labels"]).write_bytes(b"half")
    status, out, err = qbench("data", "list", "--data", tmp_path)
    assert (status, err) == (0, "")
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if "│" in line}
    assert "with scikit-learn" in rows["iris"]
    assert "by seed" in rows["iris"]
    assert f"damaged: {FILES['test labels']}" in rows["mnist"]
    assert "missing: train-images-idx3-ubyte" in rows["fmnist"]
    assert "whole" in rows["cifar10"]
    assert "3×32×32, 10 classes" in out
    assert "50,000" in rows["cifar10"]
    assert f"Image data: {tmp_path}\n" in out
    assert not {"line", "space"} & set(rows)  # no data


def test_list_as_json_and_the_root_from_the_environment(
    published, qbench, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    published.lay_out(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    status, out, _ = qbench("data", "list", "--json")
    listed = json.loads(out)
    assert status == 0
    assert listed["root"] == str(tmp_path)
    rows = {row["dataset"]: row for row in listed["datasets"]}
    assert list(rows) == [name for name, info in DATASETS.items() if info.train]
    assert (rows["mnist"]["state"], rows["mnist"]["file"]) == ("whole", None)
    assert (rows["cifar10"]["state"], rows["cifar10"]["file"]) == ("missing", "data_batch_3")
    assert rows["cifar10"]["shape"] == [3, 32, 32]
    assert (rows["iris"]["test"], rows["iris"]["state"]) == (None, "with scikit-learn")


def test_list_says_where_there_is_no_folder(qbench, tmp_path) -> None:
    _, out, _ = qbench("data", "list", "--data", tmp_path / "nowhere")
    assert f"Image data: {tmp_path}/nowhere, a folder that is not there\n" in out


def test_list_and_check_import_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from qbench.cli import main; sys.argv[1:] = sys.argv[1:]\n"
        "try: main()\n"
        "except SystemExit: print({'torch', 'sklearn', 'mlflow'} & set(sys.modules))"
    )
    for command in ("list", "check"):
        done = subprocess.run(
            [sys.executable, "-c", code, "data", command, "--data", tmp_path],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.endswith("set()\n")


# whether it is whole


def test_check_has_a_line_for_each_and_exit_status_0_where_all_are_whole(
    published, qbench, tmp_path
) -> None:
    published.lay_out(tmp_path)
    assert qbench("data", "check", "mnist", "cifar10", "xor", "mnist", "--data", tmp_path) == (
        0,
        f"mnist: whole in {tmp_path}/MNIST/raw\n"
        f"cifar10: whole in {tmp_path}/cifar-10-batches-py\n"
        "xor: with qbench\n",
        "",
    )


def test_check_of_all_names_what_is_not_whole_and_what_mends_it(
    published, qbench, tmp_path
) -> None:
    published.lay_out(tmp_path)
    with (tmp_path / "cifar-10-batches-py" / "data_batch_2").open("r+b") as file:
        file.truncate(100)
    status, out, err = qbench("data", "check", "--data", tmp_path)
    assert status == 2
    assert [line.partition(": ")[0] for line in out.splitlines()] == [
        "digits32",
        "mnist",
        "fmnist",
        "cifar10",
    ]
    assert "digits32: with scikit-learn\n" in out
    assert f"fmnist: train-images-idx3-ubyte is missing in {tmp_path}/FashionMNIST/raw\n" in out
    assert f"cifar10: data_batch_2 in {tmp_path}/cifar-10-batches-py is damaged: its md5 is" in out
    assert err == (
        f"qbench: fmnist and cifar10 are not whole under {tmp_path}: run qbench data fetch fmnist "
        f"cifar10 --data {tmp_path}, or name another folder with --data or QBENCH_DATA\n"
    )


def remove(path: Path) -> None:
    path.unlink()


def remove_all(path: Path) -> None:
    for each in path.parent.iterdir():
        each.unlink()
    path.parent.rmdir()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def put_file(path: Path) -> None:
    remove_all(path)
    path.parent.write_text("in the way")


@pytest.mark.parametrize(
    ("spoil", "words", "mend"),
    [
        (remove, "{file} is missing in {folder}. ", "Download it with {command}"),
        (remove_all, "train-images-idx3-ubyte is missing in {folder}. ", "Download it with"),
        (truncate, "{file} in {folder} is damaged: its sha256 is ", "Replace it with {command}"),
        (change, "{file} in {folder} is damaged: its sha256 is ", "Replace it with {command}"),
        (
            put_folder,
            "{file} in {folder} cannot be read (Is a directory). ",
            "Make it readable, or move it away and run {command}",
        ),
        (
            put_file,
            "train-images-idx3-ubyte in {folder} cannot be read (Not a directory). ",
            "Make it readable, or move it away and run {command}",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence_with_file_folder_and_command(
    published, tmp_path, qbench, spoil, words, mend
) -> None:
    published.lay_out(tmp_path)
    file = FILES["test images"]
    spoil(tmp_path / FOLDER / file)
    names = {
        "file": file,
        "folder": tmp_path / FOLDER,
        "command": f"qbench data fetch mnist --data {tmp_path}",
    }
    with pytest.raises(UserError) as error:
        load_problem("mnist", Recipe(epochs=1), [0], tmp_path)
    text = str(error.value)
    assert text.startswith(f"MNIST is not whole: {words.format(**names)}")
    assert mend.format(**names) in text
    assert text.endswith(", or name another folder with --data or QBENCH_DATA")
    # and so says the command line
    status, out, err = qbench("data", "check", "mnist", "--data", tmp_path)
    assert (status, err) == (2, f"qbench: {text}\n")
    assert out == f"mnist: {find_fault('mnist', tmp_path).words}\n"


def test_a_file_that_may_not_be_read_is_not_called_missing(
    published, tmp_path, monkeypatch
) -> None:
    published.lay_out(tmp_path)
    open_path = Path.open

    def refuse(path: Path, *arguments: str) -> object:
        if path.name == FILES["labels"]:
            raise PermissionError(13, "Permission denied", str(path))
        return open_path(path, *arguments)

    monkeypatch.setattr(Path, "open", refuse)  # permissions do not keep a superuser out
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)\. Make it readable"):
        check_files("mnist", tmp_path)
    with pytest.raises(UserError, match="Make it readable"):
        fetch("mnist", tmp_path)
    assert (tmp_path / FOLDER / FILES["labels"]).exists()


def test_the_root_is_what_was_given_then_the_environments_then_the_cache(
    monkeypatch, tmp_path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = tmp_path / ".cache" / "quadnets" / "data"
    for empty in ("", "  "):
        monkeypatch.setenv(VARIABLE, empty)
        assert data_root() == cache
    monkeypatch.delenv(VARIABLE)
    assert data_root() == cache
    monkeypatch.setenv(VARIABLE, "~/images")
    assert data_root() == tmp_path / "images"
    assert data_root(tmp_path / "given") == tmp_path / "given"


def test_a_root_that_is_a_file_is_one_sentence(qbench, tmp_path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for arguments in (["list"], ["check"], ["fetch"]):
        assert qbench("data", *arguments, "--data", file) == (
            2,
            "",
            f"qbench: {file} is a file, not a folder of image data: name one with --data or "
            "QBENCH_DATA\n",
        )


@pytest.mark.parametrize("command", ["check", "fetch"])
def test_an_unknown_name_is_one_sentence_with_a_near_match(command: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qbench", "data", command, "iris", "cifar", "--data", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "qbench: unknown dataset 'cifar': did you mean 'cifar10'? Allowed: iris, wine, wisconsin, "
        "digits, xor, digits32, mnist, fmnist, cifar10\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["list", "check", "fetch"])
def test_help_shows_a_real_example(command: str, qbench) -> None:
    _, out, _ = qbench("data", command, "--help")
    assert f"Example: qbench data {command}" in out


def test_completion_offers_datasets() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("qbench")],
        env={
            **os.environ,
            "_QBENCH_COMPLETE": "complete_bash",
            "COMP_WORDS": "qbench data check dig",
            "COMP_CWORD": "3",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["digits", "digits32"]


# what is loaded from whole files


def test_greyscale_files_are_read_as_they_are(published, tmp_path) -> None:
    published.lay_out(tmp_path)
    (x, y), (test_x, test_y) = load_images("mnist", tmp_path)
    assert x.dtype == torch.uint8
    assert np.array_equal(torch.cat([x, test_x])[:, 0].numpy(), published.x)
    assert torch.cat([y, test_y]).tolist() == published.y.tolist()


def test_colours_come_first_and_batches_in_their_order(published, tmp_path) -> None:
    published.lay_out(tmp_path)
    (x, y), (test_x, test_y) = load_images("cifar10", tmp_path)
    assert (tuple(x.shape), x.dtype, x.is_contiguous()) == ((20, 3, 32, 32), torch.uint8, True)
    assert np.array_equal(torch.cat([x, test_x]).flatten(1).numpy(), published.colours)
    expected = [label for i in range(6) for label in (i, 1, 2, 9)]
    assert torch.cat([y, test_y]).tolist() == expected


def test_an_old_cache_of_torchvisions_is_not_taken_for_the_checked_files(
    published, tmp_path
) -> None:
    published.lay_out(tmp_path)
    old = tmp_path / "MNIST" / "processed"
    old.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(5, 28, 28, dtype=torch.uint8), torch.zeros(5)), old / name)
    (x, _), _ = load_images("mnist", tmp_path)
    assert np.array_equal(x[:, 0].numpy(), published.x[:20])
    remove(tmp_path / FOLDER / FILES["images"])
    assert fetch("mnist", tmp_path)  # nor does it keep a download from happening
    assert find_fault("mnist", tmp_path) is None


# how it comes there


def test_fetch_downloads_what_is_not_whole_and_leaves_the_files_alone(
    published, qbench, tmp_path
) -> None:
    data = tmp_path / "new" / "data"
    status, out, err = qbench("data", "fetch", "mnist", "cifar10", "iris", "--data", data)
    assert (status, err) == (0, "")  # and no bars where nobody sees them
    assert out == (
        f"mnist: downloaded to {data}/MNIST/raw\n"
        f"cifar10: downloaded to {data}/cifar-10-batches-py\n"
        "iris: with scikit-learn, nothing to fetch\n"
    )
    expected = tmp_path / "expected"
    expected.mkdir()
    published.lay_out(expected)
    assert everything(data) == everything(expected)  # no archives, nothing half-written
    (x, _), _ = load_images("mnist", data)
    assert np.array_equal(x[:, 0].numpy(), published.x[:20])
    published.requests.clear()
    status, out, _ = qbench("data", "fetch", "mnist", "cifar10", "--data", data)
    assert status == 0
    assert f"mnist: was whole in {data}/MNIST/raw\n" in out
    assert published.requests == []
    assert qbench("data", "check", "mnist", "cifar10", "--data", data)[0] == 0


def test_fetch_replaces_what_is_damaged_and_keeps_what_is_whole(published, tmp_path) -> None:
    published.lay_out(tmp_path)
    folder = tmp_path / FOLDER
    change(folder / FILES["labels"])
    remove(folder / FILES["test labels"])
    before = {path: path.stat() for path in folder.iterdir()}
    assert fetch("mnist", tmp_path)
    assert find_fault("mnist", tmp_path) is None
    for kept in ("images", "test images"):
        path = folder / FILES[kept]
        assert path.stat().st_ino == before[path].st_ino
        assert path.stat().st_mtime_ns == before[path].st_mtime_ns
    assert not fetch("mnist", tmp_path)


def test_fetch_does_not_replace_a_folder(published, tmp_path) -> None:
    published.lay_out(tmp_path)
    remove(tmp_path / FOLDER / FILES["images"])
    path = tmp_path / FOLDER / FILES["labels"]
    put_folder(path)
    (path / "mine").write_text("kept")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        fetch("mnist", tmp_path)
    assert (path / "mine").read_text() == "kept"
    assert published.requests == []


def test_archives_that_lie_there_are_unpacked_without_a_network(
    published, tmp_path, monkeypatch
) -> None:
    point(monkeypatch, published, closed_port())
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes((published.folder / archive.name).read_bytes())
    (tmp_path / FOLDER).mkdir(parents=True)
    for name, _ in published.resources:
        (tmp_path / FOLDER / name).write_bytes((published.folder / name).read_bytes())
    for name in ("cifar10", "mnist"):
        assert fetch(name, tmp_path)
        assert find_fault(name, tmp_path) is None
    assert archive.exists()


def closed_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def test_without_a_network_a_sentence_says_what_to_do(
    published, qbench, tmp_path, monkeypatch
) -> None:
    point(monkeypatch, published, closed_port())
    status, out, err = qbench("data", "fetch", "cifar10", "--data", tmp_path / "r")
    assert (status, out) == (2, "cifar10: not fetched\n")
    assert err.startswith(f"qbench: CIFAR-10 could not be downloaded to {tmp_path}/r (<urlopen ")
    assert err.endswith(
        f": without a network, bring its files to {tmp_path}/r/cifar-10-batches-py, or as they are "
        f"published to {tmp_path}/r/cifar-10-python.tar.gz, and run qbench data fetch cifar10 "
        f"--data {tmp_path}/r again\n"
    )
    assert err.count("\n") == 1
    status, out, err = qbench("data", "fetch", "mnist", "cifar10", "xor", "--data", tmp_path / "r")
    assert status == 2
    assert out.splitlines()[:2] == ["mnist: not fetched", "cifar10: not fetched"]
    assert err.startswith("qbench: mnist and cifar10 were not fetched; the first of them: MNIST ")
    assert everything(tmp_path / "r") == {}


@pytest.mark.parametrize("spoil", [truncate, change, remove])
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # torchvision's, of a 404
def test_a_download_that_is_not_what_was_published_never_counts(published, tmp_path, spoil) -> None:
    data = tmp_path / "data"
    published.lay_out(data)
    change(data / FOLDER / FILES["labels"])
    before = everything(data)
    spoil(published.folder / f"{FILES['test labels']}.gz")
    message = failure("mnist", data)
    gc.collect()
    assert message.startswith(
        f"MNIST could not be downloaded to {data} (Error downloading t10k-lab"
    )
    assert everything(data) == before
    assert {path.name for path in data.iterdir()} == {"MNIST", "cifar-10-batches-py"}
    assert FILES["labels"] in find_fault("mnist", data).words


def failure(name: str, data: Path) -> str:
    with pytest.raises(UserError) as error:
        fetch(name, data)
    return str(error.value)


@pytest.mark.usefixtures("published")
def test_an_archive_with_other_files_in_it_never_counts(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(root._FILES["mnist"], FILES["labels"], "0" * 64)
    with pytest.raises(UserError, match=rf"in what came, {FILES['labels']} is damaged\. Bring its"):
        fetch("mnist", tmp_path / "data")
    assert everything(tmp_path / "data") == {}


@pytest.mark.usefixtures("published")
def test_an_interrupted_download_leaves_nothing(tmp_path, monkeypatch) -> None:
    from torchvision.datasets import utils

    def interrupt(_: object, to: str, *__: object) -> None:
        Path(to, FILES["images"]).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(utils, "extract_archive", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch("mnist", tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_server_that_falls_silent_is_given_up(published, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(root, "SILENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point(monkeypatch, published, silent.getsockname()[1])
        for name in ("mnist", "cifar10"):
            with pytest.raises(UserError, match=r"could not be downloaded .*timed out"):
                fetch(name, tmp_path / "data")
    assert socket.getdefaulttimeout() is None


def test_a_folder_that_cannot_be_written_is_one_sentence(qbench, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    status, _, err = qbench("data", "fetch", "mnist", "--data", tmp_path / "file" / "below")
    assert status == 2
    assert err.startswith("qbench: ")
    assert err.count("\n") == 1
    assert str(tmp_path) in err


# digits as a folder of images


def test_the_image_folder_is_the_dataset_bit_for_bit(qbench, tmp_path) -> None:
    status, out, _ = qbench("data", "fetch", "digits32", "--data", tmp_path)
    assert (status, out) == (0, f"digits32: written to {tmp_path}/digits32\n")
    for part, (x, y) in zip(("train", "test"), load_images("digits32"), strict=True):
        folder = tmp_path / "digits32" / part
        assert sorted(path.name for path in folder.iterdir()) == list("0123456789")
        assert len(list(folder.rglob("*"))) == len(y) + 10
        for i in range(len(y)):
            with Image.open(folder / str(y[i].item()) / f"{i:04d}.png") as image:
                assert (image.format, image.mode, image.size) == ("PNG", "L", (32, 32))
                assert np.array_equal(np.asarray(image), x[i, 0].numpy())
    assert qbench("data", "check", "digits32", "--data", tmp_path) == (
        0,
        f"digits32: with scikit-learn, whole in {tmp_path}/digits32\n",
        "",
    )
    _, out, _ = qbench("data", "list", "--data", tmp_path)
    assert "with scikit-learn, and in digits32/" in " ".join(out.split())


def test_qzoo_measures_the_same_images(tmp_path) -> None:
    write_image_folder(tmp_path)
    torch.manual_seed(0)
    model = timm.create_model("qresnet20", in_chans=1, num_classes=10, depths=(1,), widths=(4,))
    model.pretrained_cfg.update(input_size=(1, 32, 32), mean=(0.3,), std=(0.2,))
    found = qzoo.evaluate(model, "torch/image_folder", root=tmp_path / "digits32", split="test")
    _, (x, y) = load_images("digits32")
    with torch.inference_mode():
        logits = model.eval()((x.float() / 255 - 0.3) / 0.2)
    assert found.images == 360
    assert found.top1 == pytest.approx(100 * (logits.argmax(1) == y).double().mean().item())
    loss = torch.nn.functional.cross_entropy(logits, y).item()
    assert found.loss == pytest.approx(loss, rel=1e-4)


def test_an_image_folder_is_mended_image_by_image(qbench, tmp_path) -> None:
    assert write_image_folder(tmp_path)
    assert not write_image_folder(tmp_path)
    folder = tmp_path / "digits32" / "test"
    _, (x, y) = load_images("digits32")
    paths = [folder / str(y[i].item()) / f"{i:04d}.png" for i in range(5)]
    before = everything(tmp_path)
    untouched = paths[4].stat().st_mtime_ns
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:60])
    Image.fromarray(x[2, 0].numpy() ^ 1).save(paths[2])
    paths[3].write_text("no image")
    for i, words in enumerate(
        ("is missing in {}", *["in {} is damaged: its pixels are others"] * 3)
    ):
        fault = find_image_fault(tmp_path)
        assert fault is not None
        assert fault.words == f"{paths[i].name} {words.format(paths[i].parent)}"
        status, _, err = qbench("data", "check", "digits32", "--data", tmp_path)
        assert status == 2
        assert f"{fault.words}. " in err
        assert f" it with qbench data fetch digits32 --data {tmp_path}, or name" in err
        content = paths[i + 1].read_bytes() if i < 3 else b""
        paths[i].write_bytes(before[paths[i].relative_to(tmp_path).as_posix()])
        assert i == 3 or paths[i + 1].read_bytes() == content
    for path in paths[:3]:
        path.unlink()
    assert write_image_folder(tmp_path)
    assert everything(tmp_path) == before
    assert paths[4].stat().st_mtime_ns == untouched


def test_an_image_too_many_would_be_measured_and_is_not_ours_to_remove(qbench, tmp_path) -> None:
    write_image_folder(tmp_path)
    stray = tmp_path / "digits32" / "test" / "3" / "mine.PNG"
    (stray.parent / "notes.txt").write_text("no image, no harm")
    stray.write_bytes(b"")
    for command in ("check", "fetch"):
        status, _, err = qbench("data", command, "digits32", "--data", tmp_path)
        assert status == 2
        assert f"mine.PNG does not belong in {stray.parent}. Move it away, or name" in err
    assert stray.exists()
