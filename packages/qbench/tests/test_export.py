"""A trial's weights become a folder that the zoo takes, as accurate as the trial said."""

import json
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from qbench.block import Setting, plan
from qbench.build import build_model
from qbench.data.image_folder import write_image_folder
from qbench.errors import UserError
from qbench.executors import run_blocks
from qbench.export import described, export, exportable, find_trial
from qbench.table import load_table
from qbench.trial import RunFolder
from qzoo.bundle import bundle
from qzoo.evaluation import verify
from qzoo.folder import read_folder
from qzoo.index import get_provenance

DIGITS = load_table("digits")
ONLY = {"model": ("qresnet20", "resnet20-rank2")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reduced run of two networks."""
    out = tmp_path_factory.mktemp("runs")
    folder = RunFolder(out, DIGITS, create=True)
    cells = list(DIGITS.cells(ONLY, reduced="quick"))
    for _ in run_blocks(folder, plan(folder, cells, 1)):
        pass
    return out


def test_the_trials_with_weights_are_listed(runs: Path) -> None:
    found = exportable(runs)
    assert [result.axes["model"] for result in found] == ["qresnet20", "resnet20-rank2"]
    assert described(found[0]).startswith(f"{found[0].key} digits digits32 qresnet20 seed 0, ")
    assert described(found[0]).endswith("%, reduced")


def test_a_trial_is_described_with_whole_numbers_as_such(runs: Path) -> None:
    (result, _) = exportable(runs)
    deeper = result.model_copy(update={"axes": {**result.axes, "depth": 20.0}})
    assert " digits32 qresnet20 20 seed 0, " in described(deeper)


def test_a_trial_of_another_version_of_its_table_is_not_listed(runs: Path, tmp_path: Path) -> None:
    (old, kept) = exportable(runs)
    out = tmp_path / "runs"
    shutil.copytree(runs, out)
    path = out / "digits" / old.key / "result.json"
    before = old.model_copy(update={"version": old.version - 1})
    path.write_text(before.model_dump_json())
    assert [result.key for result in exportable(out)] == [kept.key]
    message = (
        f"{old.key!r} is no trial of a table's present version with weights in {str(out)!r}. "
        f"There are: {kept.key} digits"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        find_trial(out, old.key)
    shutil.rmtree(out / "digits" / kept.key)
    with pytest.raises(UserError, match=r"no trial of a table's present version in .* has weights"):
        find_trial(out, old.key)


def test_an_exported_network_is_the_trained_one_and_says_where_it_comes_from(
    runs: Path, tmp_path: Path
) -> None:
    (result, _) = exportable(runs)
    record = export(runs, result.key[:6], tmp_path / "weights")
    assert record.name == "qresnet20.relinear_digits"
    assert record.reduced
    assert (record.table, record.table_version, record.seed) == ("digits", DIGITS.version, 0)
    assert record.recipe["lr"] == DIGITS.recipe.lr
    assert record.claimed == result.metrics["test_accuracy"]
    assert record.evaluation is not None
    assert record.evaluation.images == 360
    trained = safetensors.torch.load_file(runs / "digits" / result.key / "weights.safetensors")
    loaded = read_folder(tmp_path / "weights").model()
    assert all(torch.equal(trained[name], value) for name, value in loaded.state_dict().items())


def test_a_bundled_digits_network_loads_by_its_name(runs: Path, tmp_path: Path) -> None:
    (result, _) = exportable(runs)
    export(runs, result.key, tmp_path / "weights")
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "index.json").write_text("[]")
    row = bundle(tmp_path / "weights", into=tmp_path / "index")
    assert row.name == "qresnet20.relinear_digits"
    assert [r["tag"] for r in json.loads((tmp_path / "index" / "index.json").read_text())] == [
        "relinear_digits"
    ]


def test_weights_that_relinear_has_not_trained_are_not_called_so(
    runs: Path, tmp_path: Path
) -> None:
    (_, result) = exportable(runs)
    assert export(runs, result.key, tmp_path).name == "cifar_resnet20_rank2.digits"


def test_another_tag_may_be_given(runs: Path, tmp_path: Path) -> None:
    (_, result) = exportable(runs)
    record = export(runs, result.key, tmp_path, tag="plain_digits")
    assert record.name == "cifar_resnet20_rank2.plain_digits"


@pytest.mark.parametrize("key", ["zzz", ""])
def test_a_key_of_no_trial_is_answered_with_those_there_are(runs: Path, key: str) -> None:
    with pytest.raises(UserError, match=r"There are: [0-9a-f]{16} digits digits32 qresnet20 seed"):
        find_trial(runs, key)


def test_without_weights_the_error_says_how_to_get_some(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train a network of the zoo first, such as qbench run dig"):
        find_trial(tmp_path, "abc")


def test_damaged_weights_are_not_exported(runs: Path, tmp_path: Path) -> None:
    (result, _) = exportable(runs)
    path = runs / "digits" / result.key / "weights.safetensors"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-4] + b"\0\0\0\1")
        with pytest.raises(UserError, match=r"is missing or damaged: delete .* and run the table"):
            export(runs, result.key, tmp_path / "weights")
    finally:
        path.write_bytes(whole)
    assert not (tmp_path / "weights").exists()


def test_an_accuracy_that_is_not_the_recorded_one_is_refused(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (result, _) = exportable(runs)
    recipe = result.recipe.model_copy(update={"test_samples": None})
    monkeypatch.setattr(type(result), "recipe", property(lambda _: recipe))
    with pytest.raises(UserError, match=r"has a test accuracy of .* nothing was exported"):
        export(runs, result.key, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "tf32"])
def test_in_another_precision_than_float32_both_accuracies_are_recorded_and_may_differ(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    (result, _) = exportable(runs)
    recipe = result.recipe.model_copy(update={"test_samples": None, "precision": precision})
    monkeypatch.setattr(type(result), "recipe", property(lambda _: recipe))
    record = export(runs, result.key, tmp_path / "weights")
    assert record.recipe["precision"] == precision
    assert record.claimed == result.metrics["test_accuracy"]
    assert record.evaluation is not None
    assert record.evaluation.top1 != record.claimed


@pytest.mark.parametrize(
    ("dataset", "model", "name"),
    [
        ("mnist", "rank2", "diqnn_rank2.mnist"),
        ("fmnist", "rank1", "diqnn_conv_rank1.fmnist"),
        ("fmnist", "rank2-signed", None),
        ("mnist", "linear", None),
    ],
)
def test_a_classifier_of_images_is_a_diqnn_in_the_zoo(
    dataset: str, model: str, name: str | None, tmp_path: Path, real_images: Path
) -> None:
    rank = load_table("rank")
    folder = RunFolder(tmp_path / "runs", rank, create=True)
    only = {"dataset": (dataset,), "model": (model,)}
    (cell,) = rank.cells(only, reduced="quick")
    blocks = plan(folder, [cell], 1)
    ((_, (result,)),) = run_blocks(folder, blocks, Setting(root=real_images))
    if name is None:
        assert exportable(tmp_path / "runs") == []
        return
    record = export(tmp_path / "runs", result.key, tmp_path / "weights", root=real_images)
    assert (record.name, record.reduced) == (name, True)
    trained = build_model(cell.model, (1, 28, 28), 10, 1.0, 0)
    path = folder.path / result.key / "weights.safetensors"
    trained.load_state_dict(safetensors.torch.load_file(path))
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(read_folder(tmp_path / "weights").model()(x), trained(x))
    assert record.evaluation is not None
    assert record.evaluation.images == 10_000
    # the reduced run has measured 2000 of them
    assert record.evaluation.top1 == pytest.approx(result.metrics["test_accuracy"], abs=4)


def test_the_digits_network_in_the_package_is_as_accurate_as_its_record_says(
    tmp_path: Path,
) -> None:
    write_image_folder(tmp_path)
    found = verify("qresnet20.relinear_digits", tmp_path / "digits32")
    assert found.holds, found
    assert found.measured.images == 360
    assert found.measured.top1 > 98
    record = get_provenance("qresnet20.relinear_digits")
    assert not record.reduced
    assert record.preprocessing.input_size == (1, 32, 32)
    assert (record.table, record.seed) == ("digits", 0)
