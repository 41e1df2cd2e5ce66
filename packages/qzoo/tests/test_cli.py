"""The command line, as a user calls it."""

import json
import subprocess
import sys

import pytest
import timm

from qzoo.models.architectures import ARCHITECTURES

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


def qzoo(*arguments):
    return subprocess.run(
        [sys.executable, "-c", "from qzoo.cli import app; app(prog_name='qzoo')", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_list_shows_every_model():
    done = qzoo("list", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["model"]: row for row in json.loads(done.stdout)}
    assert set(rows) == set(ARCHITECTURES)
    assert rows["qresnet20"]["parameters"] == 806_266
    assert rows["cifar_resnet18_rank4"]["head"] == "low_rank, rank 4"


def test_list_as_a_table():
    done = qzoo("list", "cifar_resnet20*")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "cifar_resnet20" in line]
    assert len(lines) == 7
    assert [cell.strip() for cell in lines[0].split("│")[1:-1]] == [
        "cifar_resnet20",
        "269,722",
        "41 M",
        "-",
    ]


def test_info_shows_one_model():
    done = qzoo("info", "qresnet152")
    assert done.returncode == 0, done.stderr
    assert "[25, 24, 25]" in done.stdout
    assert "rezero" in done.stdout
    assert "7,162,052" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["info", "qresnet21"],
            "no model is named 'qresnet21': near matches are qresnet32, qresnet20, qresnet18\n",
        ),
        (["list", "vgg*"], "no model is named 'vgg*': qzoo list shows all\n"),
        (
            ["run", "nothing.py", "--model", "qresnet20"],
            "nothing.py is no file: give the path of a script, such as a copy of timm's train.py\n",
        ),
    ],
    ids=["near", "none", "script"],
)
def test_mistakes_end_in_one_sentence(arguments, text):
    done = qzoo(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", text)


def test_run_gives_a_script_our_models(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "beside.py").write_text("NAME = 'a module beside it'")
    script = str(tmp_path / "train.py")
    done = qzoo("run", script, "folder", "--model", "qresnet20_compact", "--num-classes", "5")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "folder True 5 a module beside it\n"


def test_all_that_follows_the_script_is_its_own(tmp_path):
    (tmp_path / "show.py").write_text("import sys; print(sys.argv[1:])")
    done = qzoo("run", str(tmp_path / "show.py"), "--help", "--", "--json")
    assert done.stdout == "['--help', '--', '--json']\n", done.stderr


def test_run_ends_as_the_script_ends(tmp_path):
    (tmp_path / "fails.py").write_text("import sys; sys.exit(3)")
    assert qzoo("run", str(tmp_path / "fails.py")).returncode == 3
    assert "qresnet20" in timm.list_models()
