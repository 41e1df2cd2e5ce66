"""``pretrained=True``: timm loads what was found and checked here, and safetensors alone."""

from collections.abc import Mapping
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from timm.models import build_model_with_cfg, get_arch_pretrained_cfgs, resolve_pretrained_cfg
from torch import nn

from qzoo.errors import WeightsError
from qzoo.hub import HUB_FILE, download, hub_id, weights_file
from qzoo.index import get_provenance, package_index
from qzoo.provenance import Provenance


def pretrained_cfg(row: Provenance) -> dict[str, Any]:
    """What timm needs to know of a row of the index."""
    return {
        **row.preprocessing.model_dump(),
        "num_classes": row.num_classes,
        "label_names": row.label_names,
        "license": row.licence,
        "hf_hub_id": hub_id(row),
    }


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
            of somebody else, that is loaded, and only its form is checked.
        options: as timm's function.

    Raises :class:`qzoo.WeightsError` where there are no weights, for such as are not what the index
    says, for anything but safetensors, and for an unknown tag.
    """
    if isinstance(pretrained_cfg, str):
        _check_tag(name, pretrained_cfg)
    overlay = dict(pretrained_cfg_overlay or {})
    cfg = asdict(resolve_pretrained_cfg(name, pretrained_cfg, overlay))
    if pretrained and not cfg["state_dict"]:
        file = str(_checked_file(name, cfg, cache_dir))
        overlay = {**overlay, "file": file, "source": "", "custom_load": False}
    model: Any = build_model_with_cfg(
        model_cls,
        name,
        pretrained,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=overlay,
        **options,
    )
    for key in ("file", "source"):  # where it was found is not part of what it is
        if cfg[key] is None:
            model.pretrained_cfg.pop(key, None)
        else:
            model.pretrained_cfg[key] = cfg[key]
    return model


def _check_tag(name: str, tag: str) -> None:
    tags = [full.partition(".")[2] for full in get_arch_pretrained_cfgs(name)]
    if tag and tag not in tags:
        near = get_close_matches(tag, tags, n=3) or tags
        raise WeightsError(f"{name} has no tag {tag!r}: choose from {', '.join(near)}")


def _checked_file(name: str, cfg: Mapping[str, Any], cache_dir: str | Path | None) -> Path:
    """The safetensors file that a pretrained cfg stands for."""
    if cfg["source"] == "local-dir":
        return _checked_form(Path(cfg["file"]) / HUB_FILE)
    if cfg["file"]:
        return _checked_form(Path(cfg["file"]))
    if cfg["hf_hub_id"]:
        repository, _, revision = cfg["hf_hub_id"].partition("@")
        ours = {hub_id(row): row for row in package_index().values()}
        if repository in ours:
            return weights_file(ours[repository], cache_dir)
        file = cfg["hf_hub_filename"] or HUB_FILE
        if not file.endswith(".safetensors"):
            raise WeightsError(f"{file} of {repository} is not opened: {_NO_PICKLE}")
        return _checked_form(download(repository, file, cache_dir, revision or None))
    if cfg["url"]:
        raise WeightsError(f"url={cfg['url']!r} is not loaded: download it, and give file=")
    return weights_file(get_provenance(f"{name}.{cfg['tag']}" if cfg["tag"] else name), cache_dir)


_NO_PICKLE = "only safetensors are, for a pickle can run anything; convert it first"


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
        raise WeightsError(f"{path} is damaged, or no safetensors file: {error}") from None
