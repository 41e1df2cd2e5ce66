"""A folder of weights: written whole, opened only when whole."""

import json
import shutil

import pytest
import safetensors.torch
import timm
import torch

import qzoo
from qzoo.folder import read_folder


@pytest.fixture
def folder(weights_folder, tmp_path):
    """A copy of it, to do harm to."""
    return shutil.copytree(weights_folder, tmp_path / "folder")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qresnet20", {"in_chans": 1, "num_classes": 7}),
        ("qresnet20_rezero", {}),
        ("cifar_resnet20_rank2", {"num_classes": 3}),
        ("cifar_resnet20_dense", {}),
    ],
)
def test_what_is_saved_comes_back(name, options, tmp_path, draw):
    model = draw(name, **options)
    model.pretrained_cfg["input_size"] = (options.get("in_chans", 3), 28, 28)
    preprocessing = {"mean": (0.1,), "std": (0.3,), "input_size": (1, 28, 28)}
    given = qzoo.Preprocessing(**preprocessing) if "in_chans" in options else None
    record = qzoo.save_weights(
        model, tmp_path, tag="test", reduced=False, preprocessing=given, claimed=91.5
    )
    weights = read_folder(tmp_path)
    assert weights.record == record
    again = weights.model()
    x = torch.randn(2, options.get("in_chans", 3), 28, 28)
    assert torch.equal(again(x), model(x))
    assert again.pretrained_cfg["num_classes"] == options.get("num_classes", 10)
    assert again.pretrained_cfg["input_size"] == record.preprocessing.input_size
    assert (record.seed, record.claimed, record.size) == (
        None,
        91.5,
        (tmp_path / "model.safetensors").stat().st_size,
    )


def test_the_record_is_json_for_anybody(weights_folder):
    record = json.loads((weights_folder / "provenance.json").read_text())
    assert record["model"] == "qresnet20_compact"
    assert record["preprocessing"]["input_size"] == [3, 32, 32]
    assert record["reduced"] is True


def test_facts_that_no_record_has(tmp_path):
    with pytest.raises(qzoo.WeightsError, match=r"^no record of weights has this: colour: Extra"):
        qzoo.save_weights(
            timm.create_model("qresnet20"), tmp_path / "f", tag="test", reduced=True, colour="red"
        )
    assert not (tmp_path / "f").exists()


def test_a_network_that_is_not_its_name(tmp_path):
    model = timm.create_model("qresnet20", neuron="compact")
    with pytest.raises(qzoo.WeightsError) as caught:
        qzoo.save_weights(model, tmp_path / "f", tag="test", reduced=True)
    assert str(caught.value) == (
        "the weights lack stages.0.0.conv1.g.bias and 35 more: they are not those of qresnet20 "
        "with 3 channels and 10 classes"
    )
    assert not (tmp_path / "f").exists()


def test_channels_that_nobody_prepares(tmp_path):
    model = timm.create_model("qresnet20", in_chans=1)
    with pytest.raises(qzoo.WeightsError) as caught:
        qzoo.save_weights(model, tmp_path / "f", tag="test", reduced=True)
    assert str(caught.value) == (
        "qresnet20 takes 1 channels, and its pretrained_cfg prepares 3: say by preprocessing= what "
        "it was trained with"
    )


@pytest.mark.parametrize(
    "model",
    [torch.nn.Linear(2, 2), torch.nn.Sequential(timm.create_model("qresnet20"))],
    ids=["another", "wrapped"],
)
def test_other_models(model, tmp_path):
    with pytest.raises(TypeError, match=rf"^model is a {type(model).__name__}: give a network of"):
        qzoo.save_weights(model, tmp_path / "f", tag="test", reduced=True)


def test_the_dtype_is_that_of_the_weights(tmp_path):
    model = timm.create_model("qresnet20_compact")
    saved = qzoo.save_weights(model.bfloat16(), tmp_path / "f", tag="test", reduced=True)
    assert saved.dtype == "bfloat16"
    assert read_folder(tmp_path / "f").record == saved
    with pytest.raises(qzoo.WeightsError, match=r"^the weights are float64: save float32, "):
        qzoo.save_weights(model.double(), tmp_path / "f", tag="test", reduced=True)
    assert read_folder(tmp_path / "f").record == saved


def test_a_folder_is_replaced_whole_or_not_at_all(folder, draw, no_room_for):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    no_room_for("provenance.json")
    with pytest.raises(OSError, match="No space left"):
        qzoo.save_weights(draw("qresnet20_compact", seed=2), folder, tag="test", reduced=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(tmp_path, value):
    model = timm.create_model("qresnet20")
    model.fc.bias.data[3] = value
    with pytest.raises(qzoo.WeightsError, match=r"^the weights are not finite in fc\.bias: "):
        qzoo.save_weights(model, tmp_path / "f", tag="test", reduced=True)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "provenance.json"])
def test_a_file_is_missing(folder, name):
    (folder / name).unlink()
    assert refused(folder) == (
        f"{folder} has no {name}: give a folder with model.safetensors and provenance.json, as "
        "qzoo.save_weights makes it"
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"sha256": "0" * 64}, "{0}/model.safetensors has sha256 "),
        ({"size": 5}, "{0}/model.safetensors has 2173848 bytes, but should have 5 as qresnet20_c"),
        ({"tag": "../x"}, "{0}/provenance.json: tag: String should match pattern"),
        ({"reduced": None}, "{0}/provenance.json: reduced: Input should be a valid boolean"),
        ({"schema_version": 2}, "{0}/provenance.json: schema_version: Input should be 1"),
        ({"claimed": 101}, "{0}/provenance.json: claimed: Input should be less than or equal"),
        ({"x": 1}, "{0}/provenance.json: x: Extra inputs are not permitted"),
        ({"model": "qresnet21"}, "{0}: no model is named 'qresnet21': near matches are "),
        ({"model": "qresnet20"}, "the weights lack stages.0.0.conv1.g.bias and 35 more: they are"),
        ({"num_classes": 5}, "the weights have another shape of fc.bias and 1 more: they are not"),
        ({"dtype": "float16"}, "the weights are float32, and float16 by the record"),
        (
            {"label_names": ["cat", "dog"]},
            "{0}/provenance.json: all of it: Value error, label_names has 2 names for 10 classes: ",
        ),
    ],
)
def test_a_record_that_does_not_fit(folder, change, text):
    record = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps({**record, **change}))
    assert refused(folder).startswith(text.format(folder))


def test_a_record_that_is_no_json(folder):
    (folder / "provenance.json").write_text("{")
    assert refused(folder).startswith(f"{folder / 'provenance.json'}: all of it: Invalid JSON")


def test_a_channel_without_a_mean(folder):
    record = json.loads((folder / "provenance.json").read_text())
    record["preprocessing"]["mean"] = [0.5]
    (folder / "provenance.json").write_text(json.dumps(record))
    assert "mean has 1 numbers for 3 channels: give one each" in refused(folder)


def test_timm_loads_no_folder_that_was_changed(folder):
    timm.models.save_for_hf(timm.create_model("qresnet20_compact"), folder / "other")
    (folder / "other" / "config.json").rename(folder / "config.json")
    timm.create_model(f"local-dir:{folder}", pretrained=True)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(qzoo.WeightsError, match=r"model\.safetensors has sha256 "):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


def test_a_pickle_by_another_name(folder):
    torch.save({"a": torch.zeros(3)}, folder / "model.safetensors")
    renew_hash(folder)
    assert refused(folder).startswith(
        f"{folder}/model.safetensors is damaged, or no safetensors file (Error while deserializing "
    )


def test_weights_that_are_not_finite(folder):
    state = safetensors.torch.load_file(folder / "model.safetensors")
    state["fc.bias"][0] = float("nan")
    safetensors.torch.save_file(state, folder / "model.safetensors")
    renew_hash(folder)
    assert refused(folder).startswith("the weights are not finite in fc.bias: ")


def renew_hash(folder):
    import hashlib

    content = (folder / "model.safetensors").read_bytes()
    record = json.loads((folder / "provenance.json").read_text())
    record.update(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    (folder / "provenance.json").write_text(json.dumps(record))


def refused(folder):
    with pytest.raises(qzoo.WeightsError) as caught:
        read_folder(folder)
    text = str(caught.value)
    assert "\n" not in text
    return text
