"""A network as an ONNX file, checked in onnxruntime."""

import importlib.util
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from qzoo.errors import WeightsError
from qzoo.evaluation import eval_mode


def export(model: nn.Module, path: str | Path, *, tolerance: float = 1e-3) -> float:
    """Write a network as ONNX, with any number of images per batch, and compare the outputs.

    Args:
        model: a classifier of timm's; it is exported in eval mode, with the image size of its
            ``pretrained_cfg``.
        path: the file, which is replaced.
        tolerance: how far logits in onnxruntime may be from torch's, relative to the largest.

    Returns how far they are.

    Raises ``ModuleNotFoundError`` without the extra ``onnx``, ``ValueError`` for another model and
    for a path where no file can be, and :class:`qzoo.WeightsError` where the outputs differ;
    nothing is written then.
    """
    missing = [
        name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)
    ]
    if missing:
        raise ModuleNotFoundError(
            f'no module {", ".join(missing)}: pip install "quadnets-zoo[onnx]"', name=missing[0]
        )
    import onnxruntime

    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"path={str(path)!r} is no place for a file: give one in a folder that is")
    first = next(model.parameters(), None)
    size = getattr(model, "pretrained_cfg", {}).get("input_size")
    if first is None or size is None or (first.device.type, first.dtype) != ("cpu", torch.float32):
        raise ValueError(
            "model is to be a classifier of timm's in float32 on the CPU: model.float().cpu()"
        )
    generator = torch.Generator().manual_seed(0)
    channels = getattr(model, "in_chans", size[0])
    images = torch.randn(3, channels, *size[1:], generator=generator)
    with eval_mode(model):
        with torch.inference_mode():
            expected = model(images)
        if not isinstance(expected, Tensor):
            raise ValueError("model gives no logits: give a classifier, not features_only")
        with tempfile.TemporaryDirectory(dir=path.absolute().parent) as folder:
            draft = Path(folder) / path.name
            torch.onnx.export(
                model,
                (images,),
                draft,
                dynamo=True,
                external_data=False,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["images"],
                output_names=["logits"],
                verbose=False,
            )
            session = onnxruntime.InferenceSession(draft, providers=["CPUExecutionProvider"])
            (found,) = session.run(None, {"images": images.numpy()})
            distance = (torch.from_numpy(found) - expected).abs().max() / expected.abs().max()
            if not distance <= tolerance:
                raise WeightsError(
                    f"logits in onnxruntime differ by {float(distance):.1e} of the largest, more "
                    f"than {tolerance:.0e}: nothing was written"
                )
            os.replace(draft, path)
    return float(distance)
