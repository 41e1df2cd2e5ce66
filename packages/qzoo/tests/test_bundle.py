"""Bundling: file and row together, or nothing."""

import copy
import json
import shutil

import pytest
import safetensors.torch
import torch

import qzoo
from qzoo.bundle import bundle
from qzoo.folder import read_folder
from qzoo.index import read_index


@pytest.fixture
def into(tmp_path):
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "index.json").write_text("[]")
    return folder


@pytest.fixture(scope="module")
def measured(learned, images, tmp_path_factory):
    """A folder whose weights were evaluated."""
    folder = tmp_path_factory.mktemp("measured")
    evaluation = qzoo.evaluate(learned, "torch/image_folder", root=images)
    assert evaluation.top1 > 50.0
    qzoo.save_weights(learned, folder, tag="half", reduced=True, evaluation=evaluation)
    return folder


def listing(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(*arguments, **options):
    before = listing(options["into"])
    with pytest.raises(qzoo.WeightsError) as caught:
        bundle(*arguments, **options)
    assert listing(options["into"]) == before  # nothing lost, nothing half-written
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_file_and_row(weights_folder, into):
    row = bundle(weights_folder, into=into)
    assert listing(into).keys() == {"index.json", "qresnet20_compact.test.safetensors"}
    assert read_index(into) == {"qresnet20_compact.test": row}
    row.check(into / row.filename)
    assert json.loads((into / "index.json").read_text())[0]["seed"] == 3


def test_twice_is_once(weights_folder, into):
    bundle(weights_folder, into=into)
    before = {path: path.stat().st_mtime_ns for path in into.iterdir()}
    bundle(weights_folder, into=into)
    assert {path: path.stat().st_mtime_ns for path in into.iterdir()} == before


def test_rows_are_sorted_and_all_kept(weights_folder, measured, into):
    bundle(weights_folder, into=into)
    bundle(measured, into=into)
    assert list(read_index(into)) == ["qresnet20_compact.half", "qresnet20_compact.test"]


def test_only_the_row(weights_folder, into):
    row = bundle(weights_folder, into=into, hub_only=True)
    assert listing(into).keys() == {"index.json"}
    assert read_index(into) == {row.name: row}


def test_other_weights_under_a_name_that_is_taken(weights_folder, into, draw, tmp_path):
    bundle(weights_folder, into=into)
    model = draw("qresnet20_compact", seed=1)
    new = qzoo.save_weights(model, tmp_path / "new", tag="test", reduced=True)
    assert refused(tmp_path / "new", into=into) == (
        "qresnet20_compact.test is in the index with other weights: choose another tag, for who "
        "loads them counts on what they are, or replace them on purpose, replace=True (--replace)"
    )
    bundle(tmp_path / "new", into=into, replace=True)
    assert read_index(into)["qresnet20_compact.test"] == new
    new.check(into / new.filename)


def test_a_damaged_folder(weights_folder, into, tmp_path):
    folder = shutil.copytree(weights_folder, tmp_path / "damaged")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-8])
    assert "bytes, but should have" in refused(folder, into=into)


def test_no_more_than_20_mb_in_all(weights_folder, into):
    (into / "other.safetensors").write_bytes(bytes(18_000_000))
    assert refused(weights_folder, into=into) == (
        "with qresnet20_compact.test the package's weights would have 20.2 MB, and 20 are allowed: "
        "store them in float16, or leave the file to the Hub, hub_only=True (--hub-only)"
    )
    bundle(weights_folder, into=into, hub_only=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_the_bytes_where_the_accuracy_stays(measured, into, images, dtype):
    whole = read_folder(measured)
    row = bundle(measured, into=into, dtype=dtype, root=images)
    assert row.size < 0.55 * whole.record.size
    assert (row.dtype, row.evaluation.top1) == (dtype, whole.record.evaluation.top1)
    row.check(into / row.filename)
    stored = safetensors.torch.load_file(into / row.filename)
    for name, value in whole.state.items():
        if value.ndim > 1:
            torch.testing.assert_close(stored[name], value.to(getattr(torch, dtype)))
        else:
            assert torch.equal(stored[name], value)
    assert bundle(measured, into=into, dtype=dtype, root=images) == row


def test_a_folder_in_half_is_bundled_as_it_is(draw, into, tmp_path):
    row = qzoo.save_weights(draw("qresnet20_compact").half(), tmp_path, tag="half", reduced=True)
    assert bundle(tmp_path, into=into) == row
    assert row.dtype == "float16"


def test_not_half_where_the_accuracy_changes(learned, images, into, tmp_path):
    model = copy.deepcopy(learned)
    with torch.no_grad():  # float16 has no number below 6e-8: the classifier becomes 0
        model.fc.weight.mul_(1e-9)
        model.fc.bias.zero_()
    evaluation = qzoo.evaluate(model, "torch/image_folder", root=images)
    qzoo.save_weights(model, tmp_path / "f", tag="half", reduced=True, evaluation=evaluation)
    text = refused(tmp_path / "f", into=into, dtype="float16", root=images)
    assert text == (
        f"in float16 qresnet20_compact.half has 10.00 % instead of {evaluation.top1:.2f} %: keep "
        "float32, or leave the file to the Hub, hub_only=True (--hub-only)"
    )


def test_half_without_data_or_accuracy(measured, weights_folder, into, images):
    text = "dtype='float16' is for weights as accurate as before: give "
    assert refused(measured, into=into, dtype="float16") == text + "root= (--data)"
    assert refused(weights_folder, into=into, dtype="float16", root=images) == (
        text + "an evaluation in the folder's record"
    )


@pytest.mark.parametrize("name", ["qresnet20_compact.test.safetensors", "index.json"])
@pytest.mark.parametrize("there", [False, True])
def test_a_package_that_cannot_be_written(
    weights_folder, into, draw, tmp_path, no_room_for, name, there
):
    folder = tmp_path / "new"
    qzoo.save_weights(draw("qresnet20_compact", seed=1), folder, tag="test", reduced=True)
    if there:
        bundle(weights_folder, into=into)
    no_room_for(name)
    assert refused(folder, into=into, replace=True) == (
        f"{into} cannot be written: No space left on device"
    )


def test_again_after_damage(weights_folder, into):
    row = bundle(weights_folder, into=into)
    (into / row.filename).write_bytes(b"short")
    bundle(weights_folder, into=into)
    row.check(into / row.filename)


def test_from_the_package_to_the_hub_and_back(weights_folder, into):
    row = bundle(weights_folder, into=into)
    bundle(weights_folder, into=into, hub_only=True)
    assert listing(into).keys() == {"index.json"}
    bundle(weights_folder, into=into)
    row.check(into / row.filename)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "{} has no index.json: give the folder of an index"),
        ("{broken", "{}/index.json: all of it: Invalid JSON: "),
        ('[{"model": "x"}]', "{}/index.json: 0.tag: Field required"),
    ],
)
def test_no_index_to_add_to(weights_folder, tmp_path, content, text):
    into = tmp_path / "into"
    into.mkdir()
    if content is not None:
        (into / "index.json").write_text(content)
    assert refused(weights_folder, into=into).startswith(text.format(into))


def test_half_with_other_data(measured, into, images, tmp_path):
    (tmp_path / "other" / "test").mkdir(parents=True)
    for label in range(10):
        source = images / "test" / f"class{label}"
        shutil.copytree(source, tmp_path / "other" / "test" / f"class{9 - label}")
    text = refused(measured, into=into, dtype="float16", root=tmp_path / "other")
    assert text.endswith("by its record: give the data of the record")


def test_numbers_too_large_for_half(learned, images, into, tmp_path):
    model = copy.deepcopy(learned)
    with torch.no_grad():
        model.fc.weight.mul_(1e6)
        model.fc.bias.mul_(1e6)
    evaluation = qzoo.evaluate(model, "torch/image_folder", root=images)
    qzoo.save_weights(model, tmp_path / "f", tag="half", reduced=True, evaluation=evaluation)
    assert refused(tmp_path / "f", into=into, dtype="float16", root=images) == (
        "float16 cannot hold qresnet20_compact.half: keep float32"
    )
