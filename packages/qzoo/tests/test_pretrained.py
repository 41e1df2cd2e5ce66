"""The whole path of weights, as users walk it: each step in a process of its own."""

import json
import os
import subprocess
import sys

import pytest
import torch

import qzoo
from qzoo.bundle import bundle
from qzoo.publish import publish

LOADS = """
import json, sys
import timm, torch
import qzoo

x = torch.load(sys.argv[1])
model = timm.create_model("qresnet20_compact.test", pretrained=True).eval()
y = model(x)
other_head = timm.create_model("qresnet20_compact.test", pretrained=True, num_classes=4).eval()
features = other_head.forward_features(x)
gray = timm.create_model("qresnet20_compact.test", pretrained=True, in_chans=1).eval()
six = timm.create_model("qresnet20_compact.test", pretrained=True, in_chans=6).eval()
maps = timm.create_model("qresnet20_compact.test", pretrained=True, features_only=True).eval()
getter = timm.create_model(
    "qresnet20_compact.test", pretrained=True, features_only=True, feature_cls="getter"
).eval()
same_trunk = torch.equal(features, model.forward_features(x))
print(json.dumps({
    "logits": y.tolist(),
    "same trunk": same_trunk,
    "other head": list(other_head(x).shape),
    "gray": bool(torch.allclose(
        gray.stem.conv.weight, model.stem.conv.weight.sum(1, keepdim=True)
    )),
    "six": bool(torch.allclose(
        six.stem.conv.weight, model.stem.conv.weight.repeat(1, 2, 1, 1) / 2
    )),
    "maps": [list(each.shape) for each in maps(x)],
    "the same by getter": all(map(torch.equal, maps(x), getter(x))),
    "last map": bool(torch.equal(maps(x)[-1], features)),
    "cfg": [model.pretrained_cfg[key] for key in ("tag", "hf_hub_id", "num_classes", "license")],
    "file": "file" in model.pretrained_cfg,
    "pretrained": timm.list_pretrained("qresnet20_compact*"),
    "default": timm.get_pretrained_cfg("qresnet20_compact").tag,
}))
"""


def run(code, *arguments, environment, status=0):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture
def asked(learned, tmp_path):
    """A file of images, and their logits."""
    x = torch.randn(2, 3, 32, 32)
    torch.save(x, tmp_path / "x.pt")
    return tmp_path / "x.pt", learned(x).tolist()


@pytest.fixture
def trained(learned, images, tmp_path):
    """A folder as training leaves it, with an accuracy."""
    evaluation = qzoo.evaluate(learned, "torch/image_folder", root=images)
    qzoo.save_weights(learned, tmp_path / "run", tag="test", reduced=True, evaluation=evaluation)
    return tmp_path / "run"


def check(done, logits):
    found = json.loads(done.stdout)
    assert found.pop("logits") == logits
    assert found == {
        "same trunk": True,
        "other head": [2, 4],
        "gray": True,
        "six": True,
        "maps": [[2, 16, 32, 32], [2, 16, 32, 32], [2, 32, 16, 16], [2, 64, 8, 8]],
        "the same by getter": True,
        "last map": True,
        "cfg": ["test", "quadnets/qresnet20_compact.test", 10, "apache-2.0"],
        "file": False,
        "pretrained": ["qresnet20_compact.test"],
        "default": "relinear_c10",
    }


def test_from_the_wheel(trained, package_copy, images, asked, hub, hub_environment):
    row = bundle(trained, into=package_copy / "qzoo" / "weights")
    environment = {**hub_environment, "PYTHONPATH": str(package_copy)}
    check(run(LOADS, asked[0], environment=environment), asked[1])
    assert hub.requests == []
    cli = "from qzoo.cli import app; app(prog_name='qzoo')"
    arguments = ("verify", row.name, "--data", images)
    done = run(cli, *arguments, environment=environment)
    assert done.stdout == (
        f"qresnet20_compact.test: {row.evaluation.top1:.2f} % of 30 images of torch/image_folder "
        f"(test); the index says {row.evaluation.top1:.2f} % of 30: it holds\n"
    )
    index = package_copy / "qzoo" / "weights" / "index.json"
    rows = json.loads(index.read_text())
    (changed,) = (known for known in rows if known["tag"] == row.tag)
    changed["evaluation"]["top1"] -= 0.06
    index.write_text(json.dumps(rows))
    done = run(cli, *arguments, "--json", environment=environment, status=1)
    assert json.loads(done.stdout)["holds"] is False
    # a user names a model whose default tag has no weights, and gets the way out
    done = run(
        "import timm, qzoo; timm.create_model('qresnet20_compact', pretrained=True)",
        environment=environment,
        status=1,
    )
    assert done.stderr.splitlines()[-1] == (
        "qzoo.errors.WeightsError: qresnet20_compact.relinear_c10 has no weights: "
        "qresnet20_compact has those of qresnet20_compact.test"
    )


DEFAULT = """
import sys
import timm, torch
import qzoo

model = timm.create_model("qresnet20_compact", pretrained=True).eval()
cfg = model.pretrained_cfg
print(model(torch.load(sys.argv[1])).tolist() == eval(sys.argv[2]), cfg["tag"], cfg["license"])
print(timm.list_pretrained("qresnet20_c*"), timm.is_model_pretrained("qresnet20_compact"))
"""


def test_the_default_tag(learned, package_copy, asked, tmp_path):
    qzoo.save_weights(learned, tmp_path / "run", tag="relinear_c10", reduced=True, licence="mit")
    bundle(tmp_path / "run", into=package_copy / "qzoo" / "weights")
    done = run(DEFAULT, *asked, environment={"PYTHONPATH": str(package_copy)})
    assert done.stdout == "True relinear_c10 mit\n['qresnet20_compact.relinear_c10'] True\n"


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the Hub's client itself
def test_from_the_hub_then_offline(trained, package_copy, asked, hub, hub_environment, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    publish(trained)
    monkeypatch.delenv("HF_TOKEN")
    bundle(trained, into=package_copy / "qzoo" / "weights", hub_only=True)
    environment = {**hub_environment, "PYTHONPATH": str(package_copy)}
    hub.requests.clear()
    check(run(LOADS, asked[0], environment=environment), asked[1])
    assert len(hub.asked("GET")) == 1  # seven models, one download
    hub.server.shutdown()
    hub.server.server_close()
    check(run(LOADS, asked[0], environment=environment), asked[1])
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    check(run(LOADS, asked[0], environment=offline), asked[1])
