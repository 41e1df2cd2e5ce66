"""Files of weights that are something else, lie about their size, or hold no numbers."""

import json
import shutil
import time

import pytest
import safetensors.torch
import timm
import torch
from typer.testing import CliRunner

import qzoo
from qzoo.cli import app
from qzoo.folder import read_folder
from qzoo.index import read_index
from qzoo.provenance import fingerprint


@pytest.fixture
def folder(weights_folder, tmp_path):
    """A copy of a folder of weights, to do harm to."""
    return shutil.copytree(weights_folder, tmp_path / "folder")


def put(folder, content):
    """Make a content the folder's weights, so that its record is right about size and hash."""
    record = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps({**record, **fingerprint(content)}))
    (folder / "model.safetensors").write_bytes(content)


def header(text, length=None, body=b""):
    content = text.encode()
    return (len(content) if length is None else length).to_bytes(8, "little") + content + body


PICKLE = b'\x80\x04c__builtin__\neval\n(S\'open("opened", "w")\'\ntR.'
ABSURD = {
    "pickle": PICKLE,
    "pickle with a header": header("{}", body=PICKLE),
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "header of 2**63": header("{}", length=2**63),
    "header of 2**64 - 1": header("{}", length=2**64 - 1),
    "header of 90 MB": header("{}", length=90_000_000),
    "no JSON": header("{" * 1000),
    "deep JSON": header('{"x":' * 50_000),
    "a list": header("[]"),
    "a tensor of 2**60": header(
        '{"x":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,4]}}', body=b"\0" * 4
    ),
    "offsets behind the end": header(
        '{"x":{"dtype":"F32","shape":[1],"data_offsets":[1000000000000,1000000000004]}}'
    ),
    "offsets the wrong way": header(
        '{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', body=b"\0" * 4
    ),
    "a dtype that is none": header(
        '{"x":{"dtype":"O","shape":[1],"data_offsets":[0,4]}}', body=b"\0" * 4
    ),
}


@pytest.mark.parametrize("content", ABSURD.values(), ids=ABSURD)
def test_what_is_no_safetensors_is_refused_at_once_and_by_all(
    folder, content, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("a pickle was opened"))
    if not content:
        (folder / "model.safetensors").write_bytes(content)  # no record has a size of 0
    else:
        put(folder, content)
    path = folder / "model.safetensors"
    said = f"{path} has 0 bytes" if not content else f"{path} is damaged, or no safetensors file ("
    began = time.process_time()
    with pytest.raises(qzoo.WeightsError) as caught:
        read_folder(folder)
    assert str(caught.value).startswith(said)
    overlay = {"file": str(path)}
    with pytest.raises(qzoo.WeightsError) as caught:
        timm.create_model("qresnet20_compact", pretrained=True, pretrained_cfg_overlay=overlay)
    assert str(caught.value).startswith(f"{path} is damaged, or no safetensors file (")
    assert str(caught.value).endswith("): get it again, or convert it")
    assert time.process_time() - began < 5.0
    into = tmp_path / "into"
    into.mkdir()
    (into / "index.json").write_text("[]")
    done = CliRunner().invoke(app, ["bundle", str(folder), "--into", str(into)])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"qzoo: {said}")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in into.iterdir()] == ["index.json"]
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["fc.bias", "stages.1.0.bn1.running_var"])
def test_weights_that_are_not_finite_are_loaded_by_nobody(folder, value, name):
    state = safetensors.torch.load_file(folder / "model.safetensors")
    state[name][1] = value
    put(folder, safetensors.torch.save(state))
    said = f"the weights are not finite in {name}: training diverged"
    with pytest.raises(qzoo.WeightsError) as caught:
        read_folder(folder)
    assert str(caught.value) == said
    overlay = {"file": str(folder / "model.safetensors")}
    with pytest.raises(qzoo.WeightsError) as caught:
        timm.create_model("qresnet20_compact", pretrained=True, pretrained_cfg_overlay=overlay)
    assert str(caught.value) == said
    overlay = {"state_dict": state}
    with pytest.raises(qzoo.WeightsError) as caught:
        timm.create_model("qresnet20_compact", pretrained=True, pretrained_cfg_overlay=overlay)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_classes": 10**30}, "num_classes: Input should be less than or equal to 2147483647"),
        ({"num_classes": 2**31 - 1}, "the weights have another shape of fc.bias and 1 more: they"),
        ({"model": "../../x"}, "model: String should match pattern '^[a-z0-9_]+$'"),
        ({"tag": "a/b"}, "tag: String should match pattern '^[a-z0-9_]+$'"),
        ({"tag": "a\n"}, "tag: String should match pattern '^[a-z0-9_]+$'"),
        ({"\x1b[31m\nx": 1}, "\\x1b[31m x: Extra inputs are not permitted"),
        ({"schema_version": 2}, "schema_version: Input should be 1"),
    ],
)
def test_a_record_that_asks_for_too_much_or_for_another_place(folder, change, said):
    record = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps({**record, **change}))
    with pytest.raises(qzoo.WeightsError) as caught:
        read_folder(folder)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("size", [[10**12, 32, 32], [2**31 - 1, 32, 32], [3, 10**30, 32]])
def test_a_record_with_images_as_large_as_nothing(folder, size):
    record = json.loads((folder / "provenance.json").read_text())
    preprocessing = {**record["preprocessing"], "input_size": size}
    record["preprocessing"] = preprocessing
    (folder / "provenance.json").write_text(json.dumps(record))
    with pytest.raises(qzoo.WeightsError) as caught:
        read_folder(folder)
    assert "preprocessing" in str(caught.value)


def test_a_name_that_two_rows_have(folder, tmp_path):
    row = (folder / "provenance.json").read_text()
    (tmp_path / "index.json").write_text(f"[{row}, {row}]")
    with pytest.raises(qzoo.WeightsError) as caught:
        read_index(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/index.json: two rows are named qresnet20_compact.test: keep the right one"
    )


def test_the_header_of_good_weights_is_what_the_bad_ones_were_made_from(folder):
    # the helpers above: a file made by them is refused for what is wrong with it, and nothing else
    content = header('{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', body=b"\0\0\0\0")
    assert torch.equal(safetensors.torch.load(content)["x"], torch.zeros(1))
    put(folder, (folder / "model.safetensors").read_bytes())
    assert read_folder(folder).record.name == "qresnet20_compact.test"
