"""Checkpoints of the published ReLinear code as state dicts of our networks."""

import re
from collections.abc import Mapping

from torch import Tensor

from qzoo.models import CifarQResNet

_PATTERNS = (
    (r"conv1\.weight", "stem.conv.weight"),
    (r"bn1\.(\w+)", r"stem.bn.\1"),
    (r"layer(\d)\.(\d+)\.conv([12])([rgb])\.(weight|bias)", r"stages.{stage}.\2.conv\3.\4.\5"),
    (r"layer(\d)\.(\d+)\.bn([12])\.(\w+)", r"stages.{stage}.\2.bn\3.\4"),
    (r"layer(\d)\.(\d+)\.alpha1", r"stages.{stage}.\2.rezero.gate"),
    (r"linear\.(weight|bias)", r"fc.\1"),
)


def convert_relinear_state_dict(
    state_dict: Mapping[str, Tensor], model: CifarQResNet
) -> dict[str, Tensor]:
    r"""A checkpoint of the published ReLinear code, as a state dict for ``model``.

    It renames ``layer1.0.conv1g.bias`` to ``stages.0.0.conv1.g.bias``, and so on. There,
    :math:`b_g` itself is stored, which starts at 1; here the distance from 1, so 1 is subtracted.

    Args:
        state_dict: as the code saves it, with or without ``module.`` before names: of quadratic,
            compact (``r`` and ``b`` alone) and ReZero networks (``alpha1``).
        model: the network to load it into, e.g. ``timm.create_model("qresnet20")``.

    Returns a new dict, complete for ``model.load_state_dict``. Counters of batch norms that an old
    checkpoint lacks are the model's.

    Raises ``TypeError`` for anything but a mapping, ``ValueError`` for a mapping of mappings, or
    one that does not fit; it lists names that the code does not have, names that the model needs
    and the checkpoint lacks, or the other way round, and tensors of another shape.

    >>> import timm, torch
    >>> model = timm.create_model("qresnet20")
    >>> convert_relinear_state_dict({"module.linear.bias": torch.zeros(10)}, model)
    Traceback (most recent call last):
        ...
    ValueError: state_dict does not fit the model:
      missing: fc.weight, stages.0.0.bn1.bias, stages.0.0.bn1.running_mean, ... (186 in all)
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"state_dict is a {type(state_dict).__name__}: give what the file holds, as "
            "torch.load(path, weights_only=True) reads it"
        )
    nested = [name for name, value in state_dict.items() if isinstance(value, Mapping)]
    if nested:
        raise ValueError(f"state_dict holds others: give one of them, state_dict[{nested[0]!r}]")
    expected = model.state_dict()
    converted: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state_dict.items():
        ours = _renamed(name.removeprefix("module."))
        if ours is None or not isinstance(tensor, Tensor):
            unknown.append(name)
            continue
        if ours.endswith(".g.bias"):
            tensor = tensor - 1.0
        elif ours.endswith(".gate") and tensor.numel() == 1:
            tensor = tensor.reshape(())
        converted[ours] = tensor
    counters = {name: value for name, value in expected.items() if "num_batches" in name}
    converted = {**counters, **converted}
    shapes = [
        f"{name} is {tuple(tensor.shape)}, not {tuple(expected[name].shape)}"
        for name, tensor in converted.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    problems = {
        "not a name of the published code": unknown,
        "missing": sorted(expected.keys() - converted.keys()),
        "not in the model": sorted(converted.keys() - expected.keys()),
        "of another shape": shapes,
    }
    found = [f"  {problem}: {_shortened(names)}" for problem, names in problems.items() if names]
    if found:
        raise ValueError("\n".join(["state_dict does not fit the model:", *found]))
    return converted


def _renamed(name: str) -> str | None:
    for pattern, ours in _PATTERNS:
        match = re.fullmatch(pattern, name)
        if match:
            stage = int(match[1]) - 1 if "{stage}" in ours else 0
            return match.expand(ours.replace("{stage}", str(stage)))
    return None


def _shortened(names: list[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{', '.join(names[:3])}, ... ({len(names)} in all)"
