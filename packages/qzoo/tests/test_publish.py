"""Publishing, against a Hub that takes real commits."""

import json
import shutil

import pytest
import timm
import torch

import qzoo
from qzoo.folder import read_folder
from qzoo.publish import publish

FILES = {"model.safetensors", "provenance.json", "config.json", "README.md"}
REPOSITORY = "quadnets/qresnet20_compact.test"


@pytest.fixture
def folder(weights_folder, tmp_path):
    return shutil.copytree(weights_folder, tmp_path / "folder")


@pytest.fixture
def card(folder, hub):  # noqa: ARG001 - whose client has no token
    """The folder with config.json and README.md, which come before the push."""
    assert publish(folder) == (REPOSITORY, None)
    return folder


@pytest.fixture
def with_token(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)


# the Hub's client itself calls its HTTP library so
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def kinds(answer):
    repository, found = answer
    assert repository == REPOSITORY
    return {change.path: change.kind for change in found}


def test_a_folder_becomes_a_repository(card):
    folder = card
    assert {path.name for path in folder.iterdir()} == FILES
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "qresnet20_compact"
    assert config["num_classes"] == 10
    assert config["pretrained_cfg"]["tag"] == "test"
    assert "file" not in config["pretrained_cfg"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    publish(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_timm_loads_the_folder(card):
    x = torch.randn(2, 3, 32, 32)
    model = timm.create_model(f"local-dir:{card}", pretrained=True).eval()
    assert torch.equal(model(x), read_folder(card).model()(x))


def test_a_damaged_folder_gets_no_card(folder):
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(qzoo.WeightsError, match="has 0 bytes"):
        publish(folder)
    assert not (folder / "README.md").exists()


@pytest.mark.usefixtures("with_token")
def test_the_first_time(folder, hub):
    assert kinds(publish(folder)) == dict.fromkeys(FILES, "new")
    there = hub.repositories[REPOSITORY]
    assert there == {path.name: path.read_bytes() for path in folder.iterdir()}
    model = timm.create_model(f"hf-hub:{REPOSITORY}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), read_folder(folder).model()(x))


@pytest.mark.usefixtures("with_token")
def test_the_second_time_changes_nothing(folder, hub):
    publish(folder)
    commits, posts = hub.commits[REPOSITORY], len(hub.asked("PUT"))
    assert kinds(publish(folder)) == dict.fromkeys(FILES, "same")
    assert (hub.commits[REPOSITORY], len(hub.asked("PUT"))) == (commits, posts)


@pytest.mark.usefixtures("with_token")
def test_only_what_changed_is_sent(folder, hub):
    publish(folder)
    record = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps({**record, "seed": 4}))
    assert kinds(publish(folder, dry_run=True)) == {
        "model.safetensors": "same",
        "provenance.json": "changed",
        "config.json": "same",
        "README.md": "changed",  # it names the seed
    }
    difference = differences(folder)["provenance.json"]
    assert difference.startswith(f"--- {REPOSITORY}/provenance.json\n+++ ")
    assert hub.commits[REPOSITORY] == 2  # made, and filled: a look changes nothing
    with pytest.raises(qzoo.WeightsError, match=r"has another provenance\.json, README\.md: look"):
        publish(folder)
    assert hub.commits[REPOSITORY] == 2
    publish(folder, replace=True)
    assert hub.commits[REPOSITORY] == 3
    assert json.loads(hub.repositories[REPOSITORY]["provenance.json"])["seed"] == 4


def differences(folder):
    return {change.path: change.difference for change in publish(folder, dry_run=True)[1]}


def test_a_look_needs_no_token_and_writes_nothing(folder, hub):
    assert kinds(publish(folder, dry_run=True)) == dict.fromkeys(FILES, "new")
    assert hub.repositories == {}
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "provenance.json"}


@pytest.mark.usefixtures("with_token")
def test_what_somebody_wrote_on_the_hub_stays(folder, hub):
    publish(folder)
    hub.repositories[REPOSITORY]["README.md"] = b"by hand \xff\n"
    assert "-by hand" in differences(folder)["README.md"]
    assert "has another README.md: look at the difference" in refused(folder)
    assert hub.repositories[REPOSITORY]["README.md"] == b"by hand \xff\n"


@pytest.mark.usefixtures("with_token")
def test_the_cards_own_code(folder, hub):  # noqa: ARG001
    publish(folder)
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names = {}
    exec(code, names)  # noqa: S102 - our own
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(names["model"](x), read_folder(folder).model()(x))


@pytest.mark.usefixtures("with_token")
def test_other_weights_under_a_name_that_is_taken(folder, hub, draw, tmp_path):
    publish(folder)
    new = tmp_path / "new"
    qzoo.save_weights(draw("qresnet20_compact", seed=1), new, tag="test", reduced=True)
    assert refused(new) == (
        f"{REPOSITORY} has another model.safetensors, provenance.json, README.md: look at the "
        "difference, dry_run=True (--dry-run), and choose another tag, or replace it on purpose, "
        "replace=True (--replace)"
    )
    assert hub.commits[REPOSITORY] == 2
    difference = differences(new)["model.safetensors"]
    assert difference.startswith("-sha256 ")
    assert f"\n+sha256 {read_folder(new).record.sha256}\n" in difference
    publish(new, replace=True)
    there = hub.repositories[REPOSITORY]["model.safetensors"]
    assert there == (new / "model.safetensors").read_bytes()


def test_no_token(folder, hub):
    assert publish(folder) == (REPOSITORY, None)
    assert {path.name for path in folder.iterdir()} == FILES
    assert hub.requests == []


def test_a_token_that_may_not(folder, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    assert refused(folder) == (
        f"{REPOSITORY} was not changed, for the Hub at {hub.url} answered 401: the token is not "
        "one that may; give another by `hf auth login` or HF_TOKEN, or another organisation by "
        "QZOO_HUB_ORGANISATION"
    )
    assert hub.repositories == {}


@pytest.mark.usefixtures("with_token")
def test_a_hub_that_is_ill(folder, hub):
    hub.status = 500
    assert refused(folder) == (
        f"{REPOSITORY} was not changed, for the Hub at {hub.url} answered 500: try again later"
    )


@pytest.mark.usefixtures("with_token")
def test_an_upload_that_fails(folder, hub):
    hub.status, hub.verb = 500, "PUT"
    assert refused(folder) == (
        f"{REPOSITORY} was not changed, for the Hub at {hub.url} answered 500: try again later"
    )
    assert hub.repositories[REPOSITORY] == {}
    hub.status = None
    publish(folder)
    assert hub.repositories[REPOSITORY].keys() == FILES


@pytest.mark.usefixtures("with_token")
def test_no_network(folder, hub):
    hub.server.shutdown()
    hub.server.server_close()
    text = f"{REPOSITORY} was not changed, for the Hub at {hub.url} cannot be reached ("
    assert refused(folder).startswith(text)


@pytest.mark.usefixtures("with_token")
def test_offline(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refused(folder) == (
        f"{REPOSITORY} was not changed, for HF_HUB_OFFLINE forbids it: unset it"
    )


@pytest.mark.usefixtures("with_token")
@pytest.mark.parametrize("garbage", [b"<html>log in</html>", b"[1]", b'{"a": 2}', b'[{"b": 1}]'])
def test_something_that_is_no_hub(folder, hub, garbage):
    hub.add(REPOSITORY)
    hub.garbage = garbage
    text = refused(folder)
    assert text.startswith(f"{REPOSITORY} was not changed, for what the Hub at {hub.url} answered ")
    assert text.endswith("check HF_ENDPOINT, HF_TOKEN and your network")


def refused(folder):
    with pytest.raises(qzoo.WeightsError) as caught:
        publish(folder)
    text = str(caught.value)
    assert "\n" not in text
    return text
