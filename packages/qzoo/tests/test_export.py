"""ONNX files, read back by onnxruntime."""

import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch

import qzoo
from qzoo.export import export


@pytest.mark.parametrize("name", ["qresnet20", "qresnet20_rank2", "qresnet10_dense"])
def test_the_same_logits_for_any_number_of_images(name, draw, tmp_path):
    model = draw(name, depths=(1, 1), widths=(8, 16)).train()
    distance = export(model, tmp_path / "model.onnx")
    assert distance < 1e-4
    assert model.training
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    model.eval()
    for batch in (1, 5):
        x = torch.randn(batch, 3, 32, 32)
        (logits,) = session.run(None, {"images": x.numpy()})
        np.testing.assert_allclose(logits, model(x).detach(), rtol=1e-3, atol=1e-4)


def test_logits_that_differ_leave_no_file(draw, tmp_path):
    model = draw("qresnet20", depths=(1,), widths=(4,))
    (tmp_path / "model.onnx").write_text("an older one")
    with pytest.raises(qzoo.WeightsError, match=r"^logits in onnxruntime differ by .* nothing was"):
        export(model, tmp_path / "model.onnx", tolerance=-1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "an older one"


def test_without_the_extra():
    script = (
        "import sys; sys.modules.update(onnxscript=None)\n"
        "import importlib.util, qzoo, timm; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'onnxscript' else find(name)\n"
        "from qzoo.export import export\n"
        "try: export(timm.create_model('qresnet20'), 'x.onnx')\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == 'no module onnxscript: pip install "quadnets-zoo[onnx]"\n'
