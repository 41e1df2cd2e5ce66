"""A folder of weights: what training leaves, and what ``qzoo bundle`` and ``qzoo publish`` take.

It holds ``model.safetensors`` and ``provenance.json``.
"""

from pathlib import Path
from typing import Any, NamedTuple, get_args

import safetensors.torch
import timm
from pydantic import ValidationError
from timm.data.config import resolve_data_config
from torch import Tensor, nn

from qzoo.architectures import get_architecture
from qzoo.errors import WeightsError
from qzoo.hub import HUB_FILE
from qzoo.index import RECORD, RECORD_TYPE, problem, read_records, replace_files
from qzoo.models import DIQNN, CifarQResNet
from qzoo.pretrained import cfg_of, check_finite, check_fit, check_norm, no_safetensors
from qzoo.provenance import Dtype, Preprocessing, Provenance, fingerprint


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
        tag: what tells them from others of that network: small letters, digits and ``_``.
        reduced: whether the run was shorter than it should be.
        facts: further fields of :class:`qzoo.Provenance`: table, recipe, seed, commit, versions,
            hardware, claimed, evaluation, label_names, licence.
        preprocessing: what the network was trained with; by default, what its ``pretrained_cfg``
            says.

    Returns the record, as it is written.

    Raises ``TypeError`` for any other model, and :class:`qzoo.WeightsError` for weights that do not
    fit the registered network or are not finite, and for other facts; nothing is written then.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_weights(timm.create_model("qresnet20"), folder, tag="example", reduced=True).name
    'qresnet20.example'
    """
    if not isinstance(model, CifarQResNet | DIQNN):
        raise TypeError(
            f"model is a {type(model).__name__}: give a network of the zoo, out of what wraps it"
        )
    name: str = model.pretrained_cfg["architecture"]  # type: ignore[index, assignment]
    if isinstance(model, CifarQResNet):
        check_norm(name, model.rms_norm)
    if preprocessing is None:
        config = resolve_data_config({}, model=model)
        known = {key: config[key] for key in Preprocessing.model_fields}
        preprocessing = Preprocessing.model_validate(known)
        if preprocessing.input_size[0] != model.in_chans:
            raise WeightsError(
                f"{name} takes {model.in_chans} channels, and its pretrained_cfg prepares "
                f"{preprocessing.input_size[0]}: say by preprocessing= what it was trained with"
            )
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    dtype = _dtype(state)
    if dtype not in get_args(Dtype):
        raise WeightsError(
            f"the weights are {dtype}: save {', '.join(get_args(Dtype))}, such as model.float()"
        )
    content = safetensors.torch.save(state)
    try:
        record = Provenance(
            model=name,
            tag=tag,
            dtype=dtype,
            num_classes=model.num_classes,
            preprocessing=preprocessing,
            reduced=reduced,
            **fingerprint(content),
            **facts,
        )
    except ValidationError as error:
        raise WeightsError(f"no record of weights has this: {problem(error)}") from None
    _check(state, record)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = record.model_dump_json(indent=1) + "\n"
    replace_files({folder / HUB_FILE: content, folder / RECORD: text.encode()})
    return record


class WeightsFolder(NamedTuple):
    """A folder of weights that was found to be whole."""

    file: Path
    record: Provenance
    state: dict[str, Tensor]

    def model(self) -> nn.Module:
        """The network with these weights, in eval mode."""
        overlay = {**cfg_of(self.record), "tag": self.record.tag, "file": str(self.file)}
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
    record = read_records(folder / RECORD, RECORD_TYPE)
    record.check(folder / HUB_FILE)
    try:
        get_architecture(record.model)
        state = safetensors.torch.load_file(folder / HUB_FILE)
    except safetensors.SafetensorError as error:
        raise WeightsError(no_safetensors(folder / HUB_FILE, error)) from None
    except ValueError as error:
        raise WeightsError(f"{folder}: {error}") from None
    _check(state, record)
    return WeightsFolder(folder / HUB_FILE, record, state)


def _dtype(state: dict[str, Tensor]) -> str:
    """The dtype of all tensors with two or more dimensions."""
    dtypes = {str(value.dtype).removeprefix("torch.") for value in state.values() if value.ndim > 1}
    return " and ".join(sorted(dtypes))


def _check(state: dict[str, Tensor], record: Provenance) -> None:
    """Raise :class:`qzoo.WeightsError` where tensors are not those of the record, or not finite.

    The network is made on the meta device: no memory, no time.
    """
    channels = record.preprocessing.input_size[0]
    network = timm.create_model(
        record.model, num_classes=record.num_classes, in_chans=channels, device="meta"
    )
    what = f"{record.model} with {channels} channels and {record.num_classes} classes"
    check_fit(state, network.state_dict(), what)
    if _dtype(state) != record.dtype:
        raise WeightsError(f"the weights are {_dtype(state)}, and {record.dtype} by the record")
    check_finite(state)
