"""A small Hugging Face Hub on 127.0.0.1, which serves, and takes, real requests of the client."""

import base64
import hashlib
import json
import os
import shutil
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision.datasets import ImageFolder

import qzoo

SLEEP = time.sleep  # the client's waits are taken away, the server's are not


def git_sha1(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324


class LocalHub:
    """What lies on the Hub, what was asked of it, and how badly it answers."""

    token = "hf_token_of_the_local_hub"  # noqa: S105 - of no other

    def __init__(self):
        self.repositories = {}  # full id: {path: content}
        self.commits = {}  # full id: number of commits
        self.requests = []  # (method, path, range)
        self.uploads = {}  # sha256: content
        self.status = None  # answer everything with this
        self.verb = None  # only those requests
        self.cuts = []  # for each GET of a file to come, the bytes after which its line is cut
        self.delay = 0.0  # seconds before each chunk of a file
        self.garbage = None  # answer every POST with this
        self.served = None  # content that takes the place of every file
        self.served_once = None  # a file's name, and the content that takes its place once
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def add(self, repository, **files):
        """A repository with files, ``model_safetensors=`` for ``model.safetensors``."""
        named = {name.replace("_", "."): content for name, content in files.items()}
        self.repositories.setdefault(repository, {}).update(named)
        self.commits[repository] = self.commits.get(repository, 0) + 1

    def asked(self, method):
        return [path for verb, path, _ in self.requests if verb == method]

    def _handler(hub):  # noqa: N805 - `self` is the request
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def answer(self, status, body=b"", **headers):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def answer_json(self, content):
                self.answer(200, hub.garbage or json.dumps(content).encode())

            def body(self):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def note(self):
                hub.requests.append((self.command, self.path, self.headers.get("Range")))
                if hub.status is not None and hub.verb in (None, self.command):
                    self.body()
                    self.answer(hub.status)
                    return False
                return True

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                if self.path.startswith("/api/"):  # what the client asks for itself, now and then
                    self.answer(404)
                    return
                if not self.note():
                    return
                repository, _, rest = self.path.lstrip("/").partition("/resolve/")
                name = rest.partition("/")[2]
                files = hub.repositories.get(repository)
                if files is None:
                    self.answer(404, X_Error_Code="RepoNotFound")
                elif name not in files:
                    self.answer(404, X_Error_Code="EntryNotFound")
                else:
                    self.file(files[name], f"{hub.commits[repository]:040x}", name)

            def file(self, content, commit, name):
                etag = hashlib.sha256(content).hexdigest()
                content = content if hub.served is None else hub.served
                if self.command == "GET" and hub.served_once and hub.served_once[0] == name:
                    content, hub.served_once = hub.served_once[1], None
                start = 0
                if self.headers.get("Range"):
                    start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
                self.send_response(206 if start else 200)
                self.send_header("ETag", f'"{etag}"')
                self.send_header("X-Repo-Commit", commit)
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(len(content) - start))
                if start:
                    total = len(content)
                    self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                self.end_headers()
                if self.command == "HEAD":
                    return
                part = content[start:]
                cut = hub.cuts.pop(0) if hub.cuts else None
                for at in range(0, len(part[:cut]), 1 << 18):
                    SLEEP(hub.delay)
                    self.wfile.write(part[:cut][at : at + (1 << 18)])
                if cut is not None:
                    self.wfile.flush()
                    self.connection.close()
                    self.close_connection = True

            def do_PUT(self):
                if self.note():
                    content = self.body()
                    hub.uploads[hashlib.sha256(content).hexdigest()] = content
                    self.answer(200)

            def do_POST(self):
                if not self.note():
                    return
                body = self.body()
                path = self.path.partition("?")[0]
                reads = "/paths-info/" in path or path == "/api/validate-yaml"
                if not reads and self.headers.get("Authorization") != f"Bearer {hub.token}":
                    self.answer(401)
                elif path == "/api/validate-yaml":
                    self.answer_json({})
                elif path == "/api/repos/create":
                    wanted = json.loads(body)
                    repository = f"{wanted['organization']}/{wanted['name']}"
                    if repository in hub.repositories:
                        self.answer(409, json.dumps({"url": f"{hub.url}/{repository}"}).encode())
                        return
                    hub.add(repository)
                    self.answer_json({"url": f"{hub.url}/{repository}"})
                elif path.endswith("/info/lfs/objects/batch"):
                    objects = json.loads(body)["objects"]
                    for each in objects:
                        each["actions"] = {"upload": {"href": f"{hub.url}/lfs/{each['oid']}"}}
                    self.answer_json({"objects": objects})
                else:
                    repository, _, verb = (
                        path.removeprefix("/api/models/").rpartition("/main")[0].rpartition("/")
                    )
                    if repository not in hub.repositories:
                        self.answer(404, X_Error_Code="RepoNotFound")
                    else:
                        getattr(self, verb.replace("-", "_"))(repository, body)

            def paths_info(self, repository, body):
                there = hub.repositories[repository]
                infos = []
                for path in parse_qs(body.decode())["paths"]:
                    if path in there:
                        content = there[path]
                        info = {"type": "file", "path": path, "size": len(content)}
                        info["oid"] = git_sha1(content)
                        if path.endswith(".safetensors"):
                            sha256 = hashlib.sha256(content).hexdigest()
                            info["lfs"] = {
                                "oid": sha256,
                                "size": len(content),
                                "pointerSize": 130,
                            }
                        infos.append(info)
                self.answer_json(infos)

            def preupload(self, _, body):
                files = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
                self.answer_json({"files": files})

            def commit(self, repository, body):
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        content = base64.b64decode(value["content"])
                        hub.repositories[repository][value["path"]] = content
                    elif line["key"] == "lfsFile":
                        hub.repositories[repository][value["path"]] = hub.uploads[value["oid"]]
                hub.commits[repository] += 1
                commit = f"{hub.commits[repository]:040x}"
                self.answer_json(
                    {"commitUrl": f"{hub.url}/{repository}/commit/{commit}", "commitOid": commit}
                )

        return Handler


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub of one's own, and an empty cache; the client in this process speaks to it."""
    local = LocalHub()
    constants = huggingface_hub.constants
    # the client reads its environment once, when it is imported
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, local.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", local.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield local
    local.server.shutdown()
    local.server.server_close()


@pytest.fixture
def hub_environment(hub, tmp_path):
    """The environment by which another process speaks to that Hub, with that cache."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf-home"),
        "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


@pytest.fixture(scope="session")
def draw():
    """Make a network that stands for a trained one: no parameter is where it would start."""

    def drawn(name, seed=0, **options):
        generator = torch.Generator().manual_seed(seed)
        model = timm.create_model(name, **options)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.003 * torch.randn(parameter.shape, generator=generator))
            norms = [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)]
            for norm in norms:
                norm.momentum = None  # the mean over all batches
            for _ in range(3):
                model.train()(torch.randn(16, model.in_chans, 32, 32, generator=generator))
            for norm in norms:
                norm.momentum = 0.1
        return model.eval()

    return drawn


@pytest.fixture(scope="session")
def weights_folder(draw, tmp_path_factory):
    """A folder as training leaves it: look, but do not touch."""
    folder = tmp_path_factory.mktemp("weights")
    qzoo.save_weights(draw("qresnet20_compact"), folder, tag="test", reduced=True, seed=3)
    return folder


@pytest.fixture(scope="session")
def learned(draw, images):
    """A network whose classifier knows the images, by least squares."""
    model = draw("qresnet20_compact")
    transform = create_transform(**resolve_data_config({}, model=model), is_training=False)
    known = [(transform(image), label) for image, label in ImageFolder(images / "test")]
    x, labels = torch.stack([image for image, _ in known]), torch.tensor([y for _, y in known])
    with torch.no_grad():
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        features = torch.nn.functional.pad(features, (0, 1), value=1.0)
        wanted = torch.nn.functional.one_hot(labels).float()
        solution = torch.linalg.lstsq(features, wanted, driver="gelsd").solution.T
        model.fc.weight.copy_(solution[:, :-1])
        model.fc.bias.copy_(solution[:, -1])
    return model


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of images by class, 30 in all, in test/."""
    root = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for label in range(10):
        (root / "test" / f"class{label}").mkdir(parents=True)
        for i in range(3):
            pixels = noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "test" / f"class{label}" / f"{i}.png")
    return root


@pytest.fixture
def no_room_for(monkeypatch):
    """A function after which the next rename to a file of that name fails, and those after not."""

    def fails_once(name):
        rename, failed = os.replace, []

        def replace(source, target):
            if os.path.basename(target) == name and not failed:
                failed.append(target)
                raise OSError(28, "No space left on device")
            rename(source, target)

        monkeypatch.setattr("os.replace", replace)

    return fails_once


@pytest.fixture
def package_copy(tmp_path):
    """A copy of the package's source, for ``PYTHONPATH``, with room for a test's own weights: those
    of the package are in its index alone."""
    without = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(Path(qzoo.__file__).parent, tmp_path / "packages" / "qzoo", ignore=without)
    return tmp_path / "packages"
