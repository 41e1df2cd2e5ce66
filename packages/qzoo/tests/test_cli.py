"""The command line, as a user calls it."""

import importlib.metadata
import json
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from qzoo.architectures import ARCHITECTURES
from qzoo.cli import app
from qzoo.folder import read_folder
from qzoo.hub import hub_id
from qzoo.index import package_index, read_index

SCRIPT = """
import argparse
import sys
from timm import create_model, list_models
from timm.data import resolve_data_config
from timm.optim import create_optimizer_v2
from timm.utils.model import reparameterize_model
import torch
import beside

parser = argparse.ArgumentParser()
parser.add_argument("data")
parser.add_argument("--model")
parser.add_argument("--num-classes", type=int)
arguments = parser.parse_args()
assert __name__ == "__main__"
model = create_model(arguments.model, num_classes=arguments.num_classes)
optimizer = create_optimizer_v2(model, "sgd", lr=0.1)
loss = model(torch.randn(2, *resolve_data_config(model=model)["input_size"])).square().mean()
loss.backward()
optimizer.step()
fused = reparameterize_model(model.eval())
print(arguments.data, len(list_models("qresnet*")) > 10, fused.num_classes, beside.NAME)
"""


def in_a_process(*arguments):
    return subprocess.run(
        [sys.executable, "-c", "from qzoo.cli import app; app(prog_name='qzoo')", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def qzoo(*arguments, status=0):
    """What a command prints, on standard output or with another status on standard error."""
    done = CliRunner().invoke(app, list(map(str, arguments)), prog_name="qzoo")
    assert done.exit_code == status, done.output
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    if status == 2:
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        return done.stderr
    return done.stdout


@pytest.fixture
def row(monkeypatch, weights_folder, tmp_path, hub):
    """Weights in the index of this process, on the local Hub."""
    row = read_folder(weights_folder).record
    hub.add(hub_id(row), model_safetensors=(weights_folder / "model.safetensors").read_bytes())
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "index.json").write_text(f"[{row.model_dump_json()}]")
    rows = read_index(tmp_path / "package")
    for module in ("index", "pretrained"):
        monkeypatch.setattr(f"qzoo.{module}.package_index", lambda: rows)
    return row


def test_list_shows_every_model():
    rows = {row["model"]: row for row in json.loads(qzoo("list", "--json"))}
    assert set(rows) == set(ARCHITECTURES)
    assert rows["qresnet20"]["parameters"] == 806_266
    assert rows["cifar_resnet18_rank4"]["head"] == "low_rank, rank 4"
    assert {name for row in rows.values() for name in row["weights"]} == set(package_index())


def test_list_as_a_table():
    lines = [line for line in qzoo("list", "cifar_resnet32*").splitlines() if "cifar_" in line]
    assert len(lines) == 7
    assert [cell.strip() for cell in lines[0].split("│")[1:-1]] == [
        "cifar_resnet32",
        "464,154",
        "69 M",
        "-",
    ]


@pytest.mark.usefixtures("row")
def test_list_shows_weights():
    (line,) = [
        line for line in qzoo("list", "qresnet20_*").splitlines() if "qresnet20_compact" in line
    ]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        "qresnet20_compact",
        "538,330",
        "81 M",
        "test (reduced run)",
    ]


def test_version():
    assert qzoo("--version") == f"qzoo {importlib.metadata.version('quadnets-zoo')}\n"


def test_info_shows_one_model():
    shown = qzoo("info", "qresnet152")
    assert "[25, 24, 25]" in shown
    assert "rezero" in shown
    assert "7,162,052" in shown


def test_info_shows_the_norm_of_a_network_that_has_one():
    plain, normalised = (
        json.loads(qzoo("info", f"qresnet20{of}", "--json")) for of in ("", "_rms")
    )
    assert plain["neuron"] == "quadratic: (w_r x + b_r)(w_g x + b_g) + w_b x² + c"
    assert normalised["neuron"] == (
        "quadratic: (w_r x + b_r)(w_g x/rms(x) + b_g) + w_b x²/rms(x²) + c"
    )


def test_info_shows_where_weights_are_from_and_lie(row):
    shown = json.loads(qzoo("info", row.name, "--json"))
    assert shown["location"] == "on the Hub, quadnets/qresnet20_compact.test"
    assert shown.items() >= row.model_dump(mode="json").items()
    assert row.sha256 in "".join(qzoo("info", row.name).split())
    qzoo("download", row.name)
    assert json.loads(qzoo("info", row.name, "--json"))["location"] == "in the cache"


def test_info_takes_data_as_it_is(row, monkeypatch):
    odd = row.model_copy(update={"recipe": {"path": "[/data]", "milestones": [None]}})
    monkeypatch.setattr("qzoo.index.package_index", lambda: {odd.name: odd})
    shown = "".join(qzoo("info", odd.name).split())
    assert '{"path":"[/data]","milestones":[null]}' in shown


def test_download_prints_where_it_lies(row, weights_folder, tmp_path):
    (path,) = qzoo("download", row.name, "--cache-dir", tmp_path / "mine").splitlines()
    assert path.startswith(str(tmp_path / "mine"))
    with open(path, "rb") as file:
        assert file.read() == (weights_folder / "model.safetensors").read_bytes()


def test_export(tmp_path):
    path = tmp_path / "model.onnx"
    shown = qzoo("export", "qresnet20_compact", path, "--untrained")
    assert shown.startswith(f"{path}: logits as in torch to ")
    assert path.stat().st_size > 2_000_000


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the Hub's client itself
def test_bundle_and_publish(weights_folder, tmp_path, hub, monkeypatch):
    folder = shutil.copytree(weights_folder, tmp_path / "folder")
    (tmp_path / "into").mkdir()
    (tmp_path / "into" / "index.json").write_text("[]")
    shown = qzoo("bundle", folder, "--into", tmp_path / "into")
    assert shown == f"qresnet20_compact.test: 2,173,848 bytes in {tmp_path / 'into'}\n"
    repository = "quadnets/qresnet20_compact.test"
    lines = qzoo("publish", folder, "--dry-run").splitlines()
    assert lines[0].split() == ["new", "model.safetensors"]
    assert lines[-1] == f"would be pushed to {repository}"
    assert hub.repositories == {}
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert qzoo("publish", folder).splitlines()[-1] == f"pushed to {repository}"
    assert qzoo("publish", folder).splitlines()[-1] == f"{repository} has it all already"
    (folder / "README.md").unlink()
    hub.repositories[repository]["README.md"] = b"old\n"
    lines = qzoo("publish", folder, "--dry-run").splitlines()
    assert f"--- {repository}/README.md" in lines
    assert "-old" in lines


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["info", "qresnet21"],
            "no model is named 'qresnet21': near matches are qresnet32, qresnet20, qresnet18",
        ),
        (["list", "vgg*"], "no model is named 'vgg*': qzoo list shows all"),
        (
            ["run", "nothing.py", "--model", "qresnet20"],
            "nothing.py is no file: give the path of a script, such as a copy of timm's train.py",
        ),
        (["download", "qresnet20.relinear_c11"], "qresnet20.relinear_c11 has no weights: "),
        (["verify", "qresnet1202", "--data", "."], "qresnet1202.relinear_c10 has no weights: "),
        (["export", "qresnet12", "no/x.onnx", "--untrained"], "path='no/x.onnx' is no place for a"),
        (["export", "qresnet12", "x.onnx"], "qresnet12.relinear_c10 has no weights: "),
        (["export", "qresnet11", "x.onnx", "--untrained"], "no model is named 'qresnet11': near"),
        (["bundle", "nowhere"], "nowhere has no model.safetensors: give a folder with model.saf"),
        (["publish", "nowhere"], "nowhere has no model.safetensors: give a folder with model.saf"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, text):
    assert qzoo(*arguments, status=2).startswith(f"qzoo: {text}")


def test_weights_without_an_accuracy(row, tmp_path):
    assert qzoo("verify", row.name, "--data", tmp_path, status=2) == (
        "qzoo: the index has no accuracy of qresnet20_compact.test to compare with\n"
    )


def test_a_publish_without_a_token(weights_folder, tmp_path, hub):
    folder = shutil.copytree(weights_folder, tmp_path / "folder")
    assert qzoo("publish", folder) == (
        f"{folder} is ready for quadnets/qresnet20_compact.test, and nothing was pushed, for there "
        "is no token: `hf auth login`, or set HF_TOKEN, and publish it again\n"
    )
    assert hub.requests == []
    assert (folder / "README.md").exists()


def test_run_gives_a_script_our_models(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "beside.py").write_text("NAME = 'a module beside it'")
    script = str(tmp_path / "train.py")
    done = in_a_process(
        "run", script, "folder", "--model", "qresnet20_compact", "--num-classes", "5"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "folder True 5 a module beside it\n"


def test_all_that_follows_the_script_is_its_own(tmp_path):
    (tmp_path / "show.py").write_text("import sys; print(sys.argv[1:])")
    done = in_a_process("run", str(tmp_path / "show.py"), "--help", "--", "--json")
    assert done.stdout == "['--help', '--', '--json']\n", done.stderr


def test_run_ends_as_the_script_ends(tmp_path):
    (tmp_path / "fails.py").write_text("import sys; sys.exit(3)")
    assert in_a_process("run", str(tmp_path / "fails.py")).returncode == 3
