"""Entries of the Hugging Face Hub: a real client, and a small Hub on this machine."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import timm

import qzoo
from qzoo.index import get_provenance
from qzoo.publish import publish

DIGITS = "qresnet20.relinear_digits"
NAME = "somebody/qresnet20.mine"


class Hub:
    """Files of repositories, as the Hub serves them."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.commit = "a" * 40
        self.got: list[str] = []  # names of files that were asked for with GET
        hub, files = self, self.files

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                _, _, rest = self.path.partition("/resolve/")
                content = files.get(rest.partition("/")[2])
                headers = {"X-Repo-Commit": hub.commit, "X-Error-Code": "EntryNotFound"}
                if content is not None:
                    digest = hashlib.sha256(content).hexdigest()
                    headers = {"X-Repo-Commit": hub.commit, "ETag": f'"{digest}"'}
                body = content or b""
                self.send_response(404 if content is None else 200)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    hub.got.append(rest.partition("/")[2])
                    self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The zoo's digits network on the Hub, under somebody's name."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no-home"))
    row = get_provenance(DIGITS)
    model = timm.create_model(DIGITS, pretrained=True)
    folder = tmp_path / "weights"
    facts = {"preprocessing": row.preprocessing, "evaluation": row.evaluation}
    qzoo.save_weights(model, folder, tag="mine", reduced=False, **facts)
    publish(folder)  # without a token it writes config.json and the card, and pushes nothing
    served = Hub()
    served.files.update({path.name: path.read_bytes() for path in folder.iterdir()})
    yield served
    served.server.shutdown()
    served.server.server_close()


@pytest.fixture
def qbench(hub: Hub, tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """The command line, which knows that Hub alone."""
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "qbench", "leaderboard", *arguments],
            cwd=tmp_path,
            env={**os.environ, **home},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_weights_on_the_hub_become_an_entry_and_are_verified(
    qbench: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    said = qbench("submit", NAME, "--authors", "Somebody", "--board", "uci")
    assert said.returncode == 0, said.stderr
    path = tmp_path / "leaderboard" / "somebody-qresnet20-mine.json"
    assert json.loads(path.read_bytes())["weights"] == f"hf-hub:{NAME}"
    said = qbench("verify")
    assert said.returncode == 0, said.stdout + said.stderr
    assert json.loads(path.read_bytes())["measurement"]["verdict"] == "verified"


def test_a_file_that_was_replaced_on_the_hub_is_not_the_entrys(
    hub: Hub, qbench: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    assert qbench("submit", NAME, "--authors", "S", "--board", "uci").returncode == 0
    hub.files["model.safetensors"] = hub.files["model.safetensors"][:-4] + b"\0\0\0\1"
    hub.commit = "b" * 40
    said = qbench("verify")
    assert said.returncode == 1
    assert "could not be loaded" in said.stdout
    assert "has sha256" in said.stdout


def test_a_file_of_another_size_is_not_even_downloaded(
    hub: Hub, qbench: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    assert qbench("submit", NAME, "--authors", "S", "--board", "uci").returncode == 0
    hub.files["model.safetensors"] = bytes(50_000_000)
    hub.commit, hub.got = "b" * 40, []
    said = qbench("verify")
    assert said.returncode == 1
    assert "has a file of 50000000 bytes, the entry one of 3247768" in said.stdout
    assert "model.safetensors" not in hub.got


def test_a_hub_that_cannot_be_reached_says_nothing_about_the_entry(
    hub: Hub, qbench: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    assert qbench("submit", NAME, "--authors", "S", "--board", "uci").returncode == 0
    path = tmp_path / "leaderboard" / "somebody-qresnet20-mine.json"
    before = path.read_bytes()
    hub.server.shutdown()
    hub.server.server_close()
    said = qbench("verify")
    assert said.returncode == 1
    assert "not measured: hf-hub:somebody/qresnet20.mine cannot be had" in said.stdout
    assert path.read_bytes() == before


def test_a_config_that_prepares_images_otherwise_is_refused(
    hub: Hub, qbench: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    config = json.loads(hub.files["config.json"])
    config["pretrained_cfg"]["mean"] = [0.5]
    hub.files["config.json"] = json.dumps(config).encode()
    said = qbench("submit", NAME, "--authors", "S", "--board", "uci")
    assert (said.returncode, said.stderr.count("\n")) == (2, 1)
    assert "prepares images with mean [0.5], and its provenance.json says [0.30" in said.stderr
    assert not (tmp_path / "leaderboard").exists()


def test_a_repository_without_a_record_is_told_how_to_make_one(
    hub: Hub, qbench: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    del hub.files["provenance.json"]
    said = qbench("submit", NAME, "--authors", "S", "--board", "uci")
    assert (said.returncode, said.stderr.count("\n")) == (2, 1)
    assert "has no provenance.json" in said.stderr
