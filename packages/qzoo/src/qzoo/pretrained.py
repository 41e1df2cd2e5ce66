"""``pretrained=True``: timm loads what was found and checked here, and safetensors alone."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from timm.models import build_model_with_cfg, get_arch_pretrained_cfgs, resolve_pretrained_cfg
from torch import Tensor, nn

from qzoo.architectures import Arguments, default_tag, get_architecture
from qzoo.errors import WeightsError
from qzoo.hub import HUB_FILE, check_download, download, hub_id, weights_file
from qzoo.index import RECORD, RECORD_TYPE, get_provenance, package_index, read_records
from qzoo.provenance import Provenance

_NO_PICKLE = "only safetensors are, for a pickle can run anything; convert it first"


def cfg_of(row: Provenance) -> dict[str, Any]:
    """What timm needs to know of a row of the index."""
    return {
        **row.preprocessing.model_dump(),
        "num_classes": row.num_classes,
        "label_names": row.label_names,
        "license": row.licence,
        "hf_hub_id": hub_id(row),
    }


def check_norm(name: str, rms_norm: bool) -> None:
    """Raise ``WeightsError`` where a network has a norm that its registered name has not, or lacks
    it: their weights have the same names and shapes."""
    if rms_norm != get_architecture(name).get("rms_norm", False):
        raise WeightsError(
            f"weights of {name} are of a network with rms_norm={not rms_norm}, and this one has "
            f"rms_norm={rms_norm}: the names of networks with a norm end in _rms"
        )


def cfgs_of(
    models: Mapping[str, Arguments], cfg: Callable[[Arguments], dict[str, Any]]
) -> dict[str, Any]:
    """The pretrained cfgs of a family by name and tag, as timm keeps them.

    Every model has its default tag, and those of the index's weights beside it. ``cfg`` says what
    a network of these arguments is fed.
    """
    rows = [row for row in package_index().values() if row.model in models]
    cfgs = {row.name: {**cfg(models[row.model]), **cfg_of(row)} for row in rows}
    # marked by * and last: else timm makes the first tag with weights the default, and with it
    # another input or other classes
    for name, arguments in models.items():
        default = f"{name}.{default_tag(name)}"
        cfgs[f"{default}*"] = cfgs.pop(default, cfg(arguments))
    return cfgs


def build_model(
    model_cls: type[nn.Module],
    name: str,
    pretrained: bool,
    *,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> Any:
    """``timm.models.build_model_with_cfg``, with weights that were checked.

    Args:
        model_cls: the network's class.
        name: its registered name.
        pretrained, pretrained_cfg, pretrained_cfg_overlay, cache_dir: as ``timm.create_model`` got
            them. Where they name a file, a folder (``local-dir:``) or a repository (``hf-hub:``)
            of somebody else, that is loaded: checked are its form, a record that lies beside it,
            and the sha256 by which the Hub announced it.
        options: as timm's function.

    Raises :class:`qzoo.WeightsError` where there are no weights, for such as are not what the index
    says, for anything but safetensors, and for an unknown tag.
    """
    if isinstance(pretrained_cfg, str):
        _check_tag(name, pretrained_cfg)
    overlay = dict(pretrained_cfg_overlay or {})
    cfg = asdict(resolve_pretrained_cfg(name, pretrained_cfg, overlay))
    if pretrained:
        # timm asks the source first: with none, it takes the state dict, and then the file
        overlay = {**overlay, "source": "", "custom_load": False}
        if not cfg["state_dict"]:
            overlay["file"] = str(_checked_file(name, cfg, cache_dir))
    model: Any = build_model_with_cfg(
        model_cls,
        name,
        pretrained,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=_fitting,
        **options,
    )
    # where weights were found is not part of what they are
    model.pretrained_cfg.pop("state_dict", None)
    for key in ("file", "source"):
        if cfg[key] is None:
            model.pretrained_cfg.pop(key, None)
        else:
            model.pretrained_cfg[key] = cfg[key]
    return model


def check_fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Compare names and shapes of tensors with those of a network.

    Raises :class:`qzoo.WeightsError` saying that they are not those of ``what``.
    """
    shared = expected.keys() & state.keys()
    problems = {
        # torch itself starts counters of batch norms at 0 where an old file has none
        "lack": [name for name in expected.keys() - shared if "num_batches" not in name],
        "have too much": list(state.keys() - shared),
        "have another shape of": [n for n in shared if expected[n].shape != state[n].shape],
    }
    for problem, names in problems.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise WeightsError(
                f"the weights {problem} {min(names)}{more}: they are not those of {what}"
            )


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Raise :class:`qzoo.WeightsError` for tensors with numbers that are not finite."""
    not_finite = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if not_finite:
        raise WeightsError(f"the weights are not finite in {min(not_finite)}: training diverged")


def no_safetensors(path: Path, error: Exception) -> str:
    """The sentence for a file that safetensors cannot read."""
    reason = " ".join(str(error).split())[:300]
    return f"{path} is damaged, or no safetensors file ({reason}): get it again, or convert it"


def _fitting(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors that a network takes: its own trunk, and the head of as many classes.

    timm would load what fits, and leave the rest as it was drawn.
    """
    cfg: Any = model.pretrained_cfg
    classifier, first = f"{cfg['classifier']}.", f"{cfg['first_conv']}.weight"
    expected = model.state_dict()
    head = {name: value for name, value in state.items() if name.startswith(classifier)}
    if any(value.ndim == 0 or len(value) != model.num_classes for value in head.values()):
        state = {name: value for name, value in state.items() if name not in head}
        expected = {k: v for k, v in expected.items() if not k.startswith(classifier)}
    of_shape = dict(expected)
    if first in state and state[first].ndim == of_shape[first].ndim:
        # timm adapts the channels of images
        of_shape[first] = of_shape[first][:, :1].expand(-1, state[first].shape[1], -1, -1)
    check_fit(state, of_shape, f"{cfg['architecture']} with the arguments that were given")
    check_finite(state)
    return state


def _check_tag(name: str, tag: str) -> None:
    tags = [full.partition(".")[2] for full in get_arch_pretrained_cfgs(name)]
    if tag and tag not in tags:
        near = get_close_matches(tag, tags, n=3) or tags
        raise WeightsError(f"{name} has no tag {tag!r}: choose from {', '.join(near)}")


def _checked_file(name: str, cfg: Mapping[str, Any], cache_dir: str | Path | None) -> Path:
    """The safetensors file that a pretrained cfg stands for."""
    if cfg["source"] == "local-dir":
        path = _checked_form(Path(cfg["file"]) / HUB_FILE)
        if (path.parent / RECORD).is_file():
            read_records(path.parent / RECORD, RECORD_TYPE).check(path)
        return path
    if cfg["file"]:
        return _checked_form(Path(cfg["file"]))
    if cfg["hf_hub_id"]:
        repository, _, revision = cfg["hf_hub_id"].partition("@")
        ours = {hub_id(row): row for row in package_index().values()}
        if repository in ours and not revision:
            return weights_file(ours[repository], cache_dir)
        file = cfg["hf_hub_filename"] or HUB_FILE
        if not file.endswith(".safetensors"):
            raise WeightsError(f"{file} of {repository} is not opened: {_NO_PICKLE}")
        path = download(repository, file, cache_dir, revision or None)
        check_download(path)
        return _checked_form(path)
    if cfg["url"]:
        raise WeightsError(f"url={cfg['url']!r} is not loaded: download it, and give file=")
    return weights_file(get_provenance(f"{name}.{cfg['tag']}" if cfg["tag"] else name), cache_dir)


def _checked_form(path: Path) -> Path:
    """The path, if safetensors are what it holds."""
    if not path.is_file():
        raise WeightsError(f"there is no file {path}")
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path} is not opened: {_NO_PICKLE}")
    try:
        with safe_open(path, framework="pt"):
            return path
    except (SafetensorError, OSError) as error:
        raise WeightsError(no_safetensors(path, error)) from None
