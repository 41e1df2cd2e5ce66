"""A folder of weights: what training leaves, and what ``qzoo bundle`` and ``qzoo publish`` take.

It holds ``model.safetensors`` and ``provenance.json``.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import timm
import torch
from pydantic import ValidationError
from timm.data.config import resolve_data_config
from torch import Tensor, nn

from qzoo.errors import WeightsError
from qzoo.hub import HUB_FILE
from qzoo.index import replace_file
from qzoo.models.architectures import get_architecture
from qzoo.pretrained import pretrained_cfg
from qzoo.provenance import Preprocessing, Provenance

RECORD = "provenance.json"


def save_weights(
    model: nn.Module,
    folder: str | Path,
    *,
    tag: str,
    reduced: bool,
    preprocessing: Preprocessing | None = None,
    **facts: Any,
) -> Provenance:
    """Write a network's weights, and where they come from, to a folder.

    Args:
        model: a network of the zoo with the shape of its registered name.
        folder: is made where there is none.
        tag, reduced, facts: fields of :class:`qzoo.Provenance`.
        preprocessing: what the network was trained with; by default, what its ``pretrained_cfg``
            says.

    Returns the record, as it is written.

    Raises :class:`qzoo.WeightsError` for weights that do not fit the registered network or are not
    finite, and ``pydantic.ValidationError`` for other facts; nothing is written then.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_weights(timm.create_model("qresnet20"), folder, tag="example", reduced=True).name
    'qresnet20.example'
    """
    if preprocessing is None:
        config = resolve_data_config({}, model=model)
        known = {key: config[key] for key in Preprocessing.model_fields}
        preprocessing = Preprocessing.model_validate(known)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    content = safetensors.torch.save(state)
    record = Provenance(
        model=model.pretrained_cfg["architecture"],  # type: ignore[index]
        tag=tag,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        num_classes=model.num_classes,
        preprocessing=preprocessing,
        reduced=reduced,
        **facts,
    )
    check_fit(state, record)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / HUB_FILE, content)
    replace_file(folder / RECORD, (record.model_dump_json(indent=1) + "\n").encode())
    return record


class WeightsFolder(NamedTuple):
    """A folder of weights that was found to be whole."""

    file: Path
    record: Provenance
    state: dict[str, Tensor]

    def model(self) -> nn.Module:
        """The network with these weights, in eval mode."""
        overlay = {**pretrained_cfg(self.record), "tag": self.record.tag, "file": str(self.file)}
        return timm.create_model(
            self.record.model, pretrained=True, pretrained_cfg_overlay=overlay
        ).eval()


def read_folder(folder: str | Path) -> WeightsFolder:
    """Open a folder of weights; all of it is checked.

    Raises :class:`qzoo.WeightsError` for a missing or damaged file, weights that are not what the
    record says or do not fit the network, and an unknown network.
    """
    folder = Path(folder)
    for name in (HUB_FILE, RECORD):
        if not (folder / name).is_file():
            raise WeightsError(
                f"{folder} has no {name}: give a folder with {HUB_FILE} and {RECORD}, as "
                "qzoo.save_weights makes it"
            )
    try:
        record = Provenance.model_validate_json((folder / RECORD).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise WeightsError(f"{folder / RECORD}: {where}: {first['msg']}") from None
    record.check(folder / HUB_FILE)
    try:
        get_architecture(record.model)
        state = safetensors.torch.load_file(folder / HUB_FILE)
    except (safetensors.SafetensorError, ValueError) as error:
        raise WeightsError(f"{folder}: {error}") from None
    check_fit(state, record)
    return WeightsFolder(folder / HUB_FILE, record, state)


def check_fit(state: dict[str, Tensor], record: Provenance) -> None:
    """Raise :class:`qzoo.WeightsError` where tensors are not those of the network, or not finite.

    The network is made on the meta device: no memory, no time.
    """
    channels = record.preprocessing.input_size[0]
    expected = timm.create_model(
        record.model, num_classes=record.num_classes, in_chans=channels, device="meta"
    ).state_dict()
    problems = {
        "lack": sorted(expected.keys() - state.keys()),
        "have too much": sorted(state.keys() - expected.keys()),
        "have another shape of": sorted(
            name
            for name in expected.keys() & state.keys()
            if expected[name].shape != state[name].shape
        ),
        "are not finite in": sorted(
            name for name, value in state.items() if not torch.isfinite(value).all()
        ),
    }
    for problem, names in problems.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise WeightsError(
                f"the weights {problem} {names[0]}{more}: they are not those of "
                f"{record.model} with {channels} channels and {record.num_classes} classes"
            )
