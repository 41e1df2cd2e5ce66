"""Weights from the package, the Hub's cache and the Hub: each checked before it is used."""

import hashlib
import os
import tempfile
import time
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch

import qzoo
from qzoo.hub import ORGANISATION, hub_id, weights_file

CONTENT = os.urandom(1_000_000)
ANOTHER = os.urandom(1_000_000)


def record(content=CONTENT, tag="test"):
    return qzoo.Provenance(
        model="qresnet20",
        tag=tag,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        num_classes=10,
        preprocessing={"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3},
        reduced=True,
    )


ROW = record()


@pytest.fixture
def filled(hub):
    hub.add(hub_id(ROW), model_safetensors=CONTENT)
    return hub


def cached_files():
    """All there is in the cache but locks and names of revisions."""
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    return [
        path
        for path in cache.rglob("*")
        if path.is_file() and not {"refs", ".locks", "CACHEDIR.TAG"} & set(path.parts)
    ]


def refused(row=ROW, **options):
    with pytest.raises(qzoo.WeightsError) as caught:
        weights_file(row, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_first_download_then_the_cache(filled):
    path = weights_file(ROW)
    assert path.read_bytes() == CONTENT
    asked = len(filled.requests)
    assert filled.asked("GET") == [f"/{ORGANISATION}/qresnet20.test/resolve/main/model.safetensors"]
    assert weights_file(ROW) == path
    assert len(filled.requests) == asked  # the cache needs no network at all


@pytest.mark.usefixtures("filled")
def test_offline_from_the_cache(monkeypatch):
    path = weights_file(ROW)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert weights_file(ROW) == path


def test_offline_without_the_cache(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert refused() == (
        "quadnets/qresnet20.test is not in the cache, and HF_HUB_OFFLINE forbids to download it: "
        "unset it, or copy the cache of a machine that has it"
    )
    assert hub.requests == []


def test_a_cache_of_ones_own(filled, tmp_path):
    path = weights_file(ROW, cache_dir=tmp_path / "mine")
    assert path.is_relative_to(tmp_path / "mine")
    assert weights_file(ROW, cache_dir=tmp_path / "mine") == path
    assert len(filled.asked("GET")) == 1


def test_a_cut_connection_is_resumed_where_it_broke(filled, monkeypatch):
    # the client takes 10 MB at a time, and goes on after the last that was whole
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    filled.cuts = [300_000, 200_000]
    assert weights_file(ROW).read_bytes() == CONTENT
    ranges = [asked for verb, _, asked in filled.requests if verb == "GET"]
    assert ranges[0] is None
    assert [int(asked.removeprefix("bytes=").rstrip("-")) for asked in ranges[1:]] == [
        300_000,
        500_000,
    ]


def test_a_connection_that_is_always_cut(filled):
    filled.cuts = [0] * 20
    text = refused()
    assert text.startswith("quadnets/qresnet20.test is not in the cache, and its download from")
    assert text.endswith("try again")
    assert cached_files() == []


def test_a_slow_server(filled):
    filled.delay = 0.3
    start = time.monotonic()
    assert weights_file(ROW).read_bytes() == CONTENT
    assert time.monotonic() - start > 1.0


def test_a_server_that_recovers(filled, monkeypatch):
    filled.status = 503
    waits = []

    def wait(seconds):
        waits.append(seconds)
        filled.status = None

    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", wait)
    assert weights_file(ROW).read_bytes() == CONTENT
    assert len(waits) == 1


def test_a_server_that_does_not_recover(filled):
    filled.status = 500
    assert refused() == (
        f"quadnets/qresnet20.test is not in the cache, and the Hub at {filled.url} answered 500: "
        "try again later"
    )
    assert cached_files() == []


def test_no_network(hub):
    hub.server.shutdown()
    hub.server.server_close()
    assert refused() == (
        f"quadnets/qresnet20.test is not in the cache, and the Hub at {hub.url} cannot be "
        "reached: try again later, or copy the cache of a machine that has it"
    )


def test_no_repository(hub):
    assert refused() == (
        f"quadnets/qresnet20.test is not in the cache, and the Hub at {hub.url} answered 404: it "
        "has no such repository, or not for everybody; check the name, or log in with `hf auth "
        "login`"
    )


def test_no_file(hub):
    hub.add(hub_id(ROW), pytorch_model_bin=b"a pickle, which nobody asks for")
    assert refused() == (
        f"quadnets/qresnet20.test on the Hub at {hub.url} has no model.safetensors, and nothing "
        "else is opened: ask who published it for that file"
    )
    assert not any("pytorch_model" in path for _, path, _ in hub.requests)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(ANOTHER, "has sha256"), (CONTENT[:-1], "has 999999 bytes"), (b"", "has 0 bytes")],
    ids=["tampered", "truncated", "empty"],
)
def test_a_wrong_download_does_not_stay(filled, content, problem):
    filled.served = content
    text = refused()
    assert problem in text
    assert "it was removed; ask again to download it anew" in text
    assert cached_files() == []
    filled.served = None
    assert weights_file(ROW).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [ANOTHER, CONTENT[:77]], ids=["tampered", "truncated"])
@pytest.mark.usefixtures("filled")
def test_a_wrong_file_in_the_cache_does_not_stay(content):
    weights_file(ROW).write_bytes(content)
    assert "it was removed" in refused()
    assert cached_files() == []
    assert weights_file(ROW).read_bytes() == CONTENT


@pytest.fixture
def read_only(filled):  # noqa: ARG001 - a fixture has no other way to ask for one
    """A function that takes the rights to write to a cache away, from root, too."""
    with tempfile.TemporaryDirectory() as folder:  # nobody may look into pytest's folders
        cache, root = Path(folder) / "cache", os.geteuid() == 0
        cache.mkdir()
        Path(folder).chmod(0o755)

        def close():
            for path in [*cache.rglob("*"), cache]:
                if not path.is_symlink():
                    path.chmod(0o555 if path.is_dir() else 0o444)
            if root:
                os.seteuid(65534)
            return cache

        yield cache, close
        if root:
            os.seteuid(0)
        for path in [cache, *cache.rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)


def test_a_read_only_cache_that_has_the_file(read_only):
    cache, close = read_only
    path = weights_file(ROW, cache_dir=cache)
    assert weights_file(ROW, cache_dir=close()) == path


def test_a_read_only_cache_that_lacks_the_file(read_only):
    _, close = read_only
    text = refused(cache_dir=close())
    assert text.startswith("quadnets/qresnet20.test is not in the cache, which cannot be written (")
    assert text.endswith("make room there, or choose another place by HF_HOME or cache_dir=")


def test_a_read_only_cache_that_has_a_wrong_file(read_only):
    cache, close = read_only
    weights_file(ROW, cache_dir=cache).write_bytes(ANOTHER)
    text = refused(cache_dir=close())
    assert text.endswith(
        "as qresnet20.test: remove it, which failed here (Permission denied), and ask again"
    )


@pytest.mark.usefixtures("filled")
def test_a_cache_that_is_a_file(tmp_path):
    (tmp_path / "cache").write_text("in the way")
    text = refused(cache_dir=tmp_path / "cache")
    assert text.startswith("quadnets/qresnet20.test is not in the cache, which cannot be written (")
    assert text.endswith("make room there, or choose another place by HF_HOME or cache_dir=")


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(("number", "name"), [(28, "No space left"), (30, "Read-only file system")])
def test_a_cache_with_no_room(monkeypatch, number, name):
    def fails(*_, **__):
        raise OSError(number, os.strerror(number), "/the/cache")

    monkeypatch.setattr("huggingface_hub.file_download._chmod_and_move", fails)
    text = refused()
    assert name in text
    assert ": /the/cache): make room there, or choose another place by HF_HOME or" in text
    assert cached_files() == []


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "the token is not one that may; give another by `hf auth login` or HF_TOKEN, or"),
        (403, "the token is not one that may; give another by `hf auth login` or HF_TOKEN, or"),
    ],
)
def test_a_token_that_may_not(filled, status, advice):
    filled.status = status
    assert advice in refused()


def test_a_newer_version_of_the_weights_takes_the_place_of_a_cached_one(filled):
    weights_file(ROW)
    filled.add(hub_id(ROW), model_safetensors=ANOTHER)
    newer = record(ANOTHER)  # as an update of the package brings it
    assert weights_file(newer).read_bytes() == ANOTHER


@pytest.mark.parametrize("name", ["my org", "", "a/b"])
def test_an_organisation_that_is_none(hub, monkeypatch, name):
    monkeypatch.setattr("qzoo.hub.ORGANISATION", name)
    text = refused()
    assert text.startswith(f"'{name}/qresnet20.test' is no name of a repository on the Hub: give")
    assert hub.requests == []


def test_the_package_comes_first_and_is_checked(filled, monkeypatch, tmp_path):
    monkeypatch.setattr("qzoo.hub.FOLDER", tmp_path)
    (tmp_path / ROW.filename).write_bytes(CONTENT)
    assert weights_file(ROW) == tmp_path / ROW.filename
    (tmp_path / ROW.filename).write_bytes(ANOTHER)
    text = refused()
    assert text.startswith(f"{tmp_path / ROW.filename} has sha256")
    assert text.endswith("as qresnet20.test: install quadnets-zoo again")
    assert filled.requests == []
    (tmp_path / ROW.filename).unlink()
    assert weights_file(ROW).read_bytes() == CONTENT  # from the Hub


@pytest.fixture(scope="module")
def trained():
    """Stands for a trained network: no parameter is where it would be drawn or zeroed."""
    torch.manual_seed(0)
    model = timm.create_model("qresnet20_compact", num_classes=10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def repository(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    timm.models.save_for_hf(trained, folder, safe_serialization="both")
    return folder


def test_a_repository_of_somebody_else(hub, trained, repository):
    files = {path.name: path.read_bytes() for path in repository.iterdir()}
    hub.repositories["someone/mine"], hub.commits["someone/mine"] = files, 1
    model = timm.create_model("hf-hub:someone/mine", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), trained(x))
    assert model.pretrained_cfg["hf_hub_id"] == "someone/mine"
    assert "file" not in model.pretrained_cfg


def test_a_wrong_download_of_somebody_elses_weights(hub, repository):
    files = {path.name: path.read_bytes() for path in repository.iterdir()}
    content = bytearray(files["model.safetensors"])
    hub.repositories["someone/mine"], hub.commits["someone/mine"] = files, 1
    content[-1] ^= 1
    hub.served_once = ("model.safetensors", bytes(content))
    with pytest.raises(qzoo.WeightsError, match=r"is not what the Hub announced: it was removed"):
        timm.create_model("hf-hub:someone/mine", pretrained=True)
    timm.create_model("hf-hub:someone/mine", pretrained=True)


def test_no_pickle_of_somebody_else(hub, repository):
    files = {path.name: path.read_bytes() for path in repository.iterdir()}
    del files["model.safetensors"]
    hub.repositories["someone/mine"], hub.commits["someone/mine"] = files, 1
    with pytest.raises(qzoo.WeightsError, match=r"someone/mine .* has no model\.safetensors"):
        timm.create_model("hf-hub:someone/mine", pretrained=True)
    assert not any("pytorch_model" in path for _, path, _ in hub.requests)


def test_a_local_folder(trained, repository):
    model = timm.create_model(f"local-dir:{repository}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), trained(x))


def test_a_file_of_ones_own(trained, repository):
    model = timm.create_model(
        "qresnet20_compact",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(repository / "model.safetensors")},
    ).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), trained(x))


@pytest.mark.parametrize(
    ("overlay", "text"),
    [
        (
            {"file": "{}/pytorch_model.bin"},
            "{}/pytorch_model.bin is not opened: only safetensors are, for a pickle can run "
            "anything; convert it first",
        ),
        ({"file": "{}/other.safetensors"}, "there is no file {}/other.safetensors"),
        ({"file": "{}/renamed.safetensors"}, "{}/renamed.safetensors is damaged, or no safeten"),
        ({"url": "http://x/y.pth"}, "url='http://x/y.pth' is not loaded: download it, and give fi"),
        (
            {"hf_hub_id": "someone/mine", "hf_hub_filename": "x.bin"},
            "x.bin of someone/mine is not opened: only safetensors are",
        ),
    ],
)
def test_what_is_not_opened(repository, tmp_path, overlay, text):
    for path in repository.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "renamed.safetensors").write_bytes((tmp_path / "pytorch_model.bin").read_bytes())
    overlay = {key: value.format(tmp_path) for key, value in overlay.items()}
    with pytest.raises(qzoo.WeightsError) as caught:
        timm.create_model(
            "qresnet20_compact", pretrained=True, pretrained_cfg_overlay={"source": "", **overlay}
        )
    assert str(caught.value).startswith(text.format(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"depths": (5, 5, 5), "num_classes": 4},
            "the weights lack stages.0.3.bn1.bias and 95 more: they are not those of "
            "qresnet20_compact with the arguments that were given",
        ),
        ({"depths": (5, 5, 5), "features_only": True}, "the weights lack stages.0.3.bn1.bias and"),
        ({"residual": "rezero"}, "the weights lack stages.0.0.rezero.gate and 8 more: they are"),
        ({"neuron": "quadratic"}, "the weights lack stages.0.0.conv1.g.bias and 35 more: they a"),
        ({"widths": (16, 32, 66)}, "the weights have another shape of fc.weight and "),
        ({"head": "low_rank", "rank": 2}, "the weights have too much fc.bias: they are not th"),
    ],
)
def test_weights_of_another_network_are_not_half_loaded(repository, arguments, text):
    with pytest.raises(qzoo.WeightsError) as caught:
        timm.create_model(
            "qresnet20_compact",
            pretrained=True,
            pretrained_cfg_overlay={"file": str(repository / "model.safetensors")},
            **arguments,
        )
    assert str(caught.value).startswith(text)


def test_a_state_dict_in_memory(trained, repository, monkeypatch):
    (repository / "model.safetensors").rename(repository / "away")
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("a pickle was opened"))
    for name in ("qresnet20_compact", f"local-dir:{repository}"):
        overlay = {"state_dict": trained.state_dict()}
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
        x = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(model(x), trained(x))
        assert "state_dict" not in model.pretrained_cfg
    (repository / "away").rename(repository / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "tag"), [("qresnet32", "relinear_c10"), ("cifar_resnet18_rank4", "c10")]
)
def test_a_model_without_weights(name, tag):
    with pytest.raises(qzoo.WeightsError, match=f"^{name}.{tag} has no weights: "):
        timm.create_model(name, pretrained=True)


@pytest.mark.parametrize("pretrained", [False, True])
def test_an_unknown_tag(pretrained):
    with pytest.raises(qzoo.WeightsError) as caught:
        timm.create_model("qresnet32.relinear_c100", pretrained=pretrained)
    assert str(caught.value) == "qresnet32 has no tag 'relinear_c100': choose from relinear_c10"


def test_only_what_can_be_loaded_counts_as_pretrained():
    from qzoo.index import package_index

    families = ("*qresnet*", "cifar_resnet*", "diqnn*")
    listed = {name for family in families for name in timm.list_pretrained(family)}
    assert listed == set(package_index())
