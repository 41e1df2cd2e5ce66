"""A trial's weights as a folder that ``qzoo bundle`` and ``qzoo publish`` take."""

from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import safetensors.torch
import timm
from torch import Tensor, nn

from qbench.build import build_model
from qbench.catalogue import DATASETS, DatasetInfo
from qbench.data.image_folder import image_root
from qbench.data.images import load_images, normalisation, parts
from qbench.errors import UserError
from qbench.report.wording import format_value
from qbench.table import Cell, load_table, table_names
from qbench.trial import WEIGHTS, Result, RunFolder, read_result
from qzoo import WeightsError
from qzoo.architectures import tag_of
from qzoo.evaluation import TOLERANCE, evaluate
from qzoo.folder import read_folder, save_weights
from qzoo.provenance import Evaluation, Preprocessing, Provenance


def exportable(out: Path) -> list[Result]:
    """The trials under ``out`` whose weights are there: networks of the zoo, by table and cell.

    Those of another version of their table are left out, as a report leaves them out.
    """
    found: list[Result] = []
    for table in table_names():
        paths = [path.with_name("result.json") for path in (out / table).glob(f"*/{WEIGHTS}")]
        results = [read_result(path) for path in paths if path.is_file()]
        if results:  # else the table is not even loaded
            version = load_table(table).version
            found += [result for result in results if result.version == version]
    return sorted(found, key=lambda result: (result.table, str(result.axes), result.seed))


def find_trial(out: Path, key: str) -> Result:
    """The trial whose key begins with ``key``.

    Raises ``UserError`` that lists those that there are for none, or for several.
    """
    every = exportable(out)
    found = [result for result in every if result.key.startswith(key)]
    if len(found) == 1 and key:
        return found[0]
    shown = "; ".join(described(result) for result in (found or every)[:20])
    if not every:
        raise UserError(
            f"no trial of a table's present version in {str(out)!r} has weights to export: train a "
            "network of the zoo first, such as qbench run digits"
        )
    none = "is no trial of a table's present version with weights"
    said = "is the beginning of several keys" if found else none
    raise UserError(f"{key!r} {said} in {str(out)!r}. There are: {shown}")


def described(result: Result) -> str:
    """A trial in a line: key, cell, seed, test accuracy."""
    axes = " ".join(format_value(value) for value in result.axes.values())
    accuracy = result.metrics.get("test_accuracy")
    shown = "" if accuracy is None else f", {accuracy:.2f} %"
    reduced = ", reduced" if result.reduced else ""
    return f"{result.key} {result.table} {axes} seed {result.seed}{shown}{reduced}"


def export(
    out: Path, key: str, to: Path, *, tag: str | None = None, root: Path | None = None
) -> Provenance:
    """Write a trial's weights, and where they come from, to the folder ``to``.

    The accuracy of the written file is measured in float32, through timm's own reading of the
    images; it has to be what the trial recorded. One of another precision recorded what it has in
    that one, and may differ: both accuracies are in the record, and they are not compared. ``tag``
    is by default the dataset's short name, with ``relinear_`` before it where ReLinear was used.

    Raises ``UserError`` for a trial that is not there, weights that are damaged, another accuracy
    than the recorded one, and where the zoo refuses the network. Nothing is left in ``to`` then.
    """
    result = find_trial(out, key)
    table = load_table(result.table)
    folder = RunFolder(out, table)
    state = safetensors.torch.load(folder.read_file(result, WEIGHTS))
    cell = Cell(table, result.axes, result.reduced)
    if cell.trial_key(result.seed) != result.key:
        raise UserError(
            f"trial {result.key} is not of this version of table {table.id!r}: run it again"
        )
    info = DATASETS[cell.dataset]
    if not info.timm:
        raise UserError(
            f"trial {result.key} was trained on {cell.dataset}, for which the zoo has no networks: "
            f"choose one of {', '.join(name for name, known in DATASETS.items() if known.timm)}"
        )
    model = _network(cell, result.seed, state)
    train, _, _ = parts(load_images(cell.dataset, root), result.recipe)
    mean, std = normalisation(result.recipe.pixels, train[0])
    preprocessing = Preprocessing(
        input_size=info.shape,
        mean=_decimal(mean),
        std=_decimal(std),
    )
    facts: dict[str, Any] = {
        "tag": tag or tag_of(info.tag, relinear=bool(cell.recipe.strategy.relinear)),
        "reduced": result.reduced is not None,
        "preprocessing": preprocessing,
        "table": table.id,
        "table_version": table.version,
        "recipe": result.recipe.model_dump(mode="json"),
        "seed": result.seed,
        "commit": result.environment.commit,
        "versions": result.environment.versions,
        "hardware": result.environment.hardware,
        "claimed": result.metrics["test_accuracy"],
    }
    try:
        with TemporaryDirectory() as draft, image_root(cell.dataset, root) as images:
            save_weights(model, draft, **facts)
            evaluation = evaluate(read_folder(draft).model(), info.timm, root=images)
        _check_accuracy(result, evaluation)
        return save_weights(model, to, evaluation=evaluation, **facts)
    except (TypeError, WeightsError) as error:
        raise UserError(f"trial {result.key} cannot be exported: {error}") from error


def _decimal(values: Tensor) -> tuple[float, ...]:
    """The shortest numbers that are these in float32.

    >>> _decimal(Tensor([0.485]))
    (0.485,)
    """
    return tuple(float(str(value)) for value in values.numpy())


def _check_accuracy(result: Result, evaluation: Evaluation) -> None:
    """Refuses a file that is not as accurate as the trial, on the whole test set, in float32.

    In half precision, and in TF32, which keeps no more digits than float16, images fall on the
    other side of a boundary, and these may be more than the tolerance allows.
    """
    recipe, recorded = result.recipe, result.metrics["test_accuracy"]
    if recipe.test_samples is not None or recipe.precision != "float32":
        return
    if recorded is None or abs(evaluation.top1 - recorded) > TOLERANCE:
        raise UserError(
            f"the file of trial {result.key} has a test accuracy of {evaluation.top1:.2f} %, and "
            f"the trial recorded {recorded} %: something between training and reading images "
            "differs, and nothing was exported"
        )


def _network(cell: Cell, seed: int, state: dict[str, Tensor]) -> nn.Module:
    info = DATASETS[cell.dataset]
    spec = cell.model
    if spec.kind != "zoo" and cell.zoo_name is not None:
        return _diqnn(cell.zoo_name, info, state)
    model = build_model(spec, info.shape, info.classes, 1.0, seed, cell.recipe.strategy)
    model.load_state_dict(state)
    return model


_NAMES = MappingProxyType(
    {"convolution": "features.0", "head.triangle": "fc.weight", "head.factors": "fc.weight"}
)
"""What the zoo calls the parameters of a classifier."""


def _diqnn(name: str, info: DatasetInfo, state: dict[str, Tensor]) -> nn.Module:
    model: nn.Module = timm.create_model(name, num_classes=info.classes, in_chans=info.shape[0])
    named = {}
    for parameter, value in state.items():
        old = next(old for old in _NAMES if parameter.startswith(old))
        named[_NAMES[old] + parameter.removeprefix(old)] = value
    model.load_state_dict(named)
    return model
