"""Where weights come from: a row of the index, the numbers of a model card, a leaderboard entry."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from qzoo.errors import WeightsError

Percent = Annotated[float, Field(ge=0.0, le=100.0)]
Dtype = Literal["float32", "float16", "bfloat16"]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]  # more overflows sizes of tensors
Channels = Annotated[tuple[float, ...], Field(min_length=1)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Preprocessing(_Record):
    """What is done to an image before the network sees it, in timm's terms.

    >>> Preprocessing(input_size=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).crop_pct
    1.0
    """

    input_size: tuple[Count, Count, Count]
    """Channels, height and width."""
    mean: Channels
    """Subtracted from each channel, whose values are in [0, 1]."""
    std: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    """What each channel is then divided by."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] = (
        "bilinear"
    )
    crop_pct: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """The share of the resized image's side that the central crop keeps."""
    crop_mode: Literal["center", "squash", "border"] = "center"

    @model_validator(mode="after")
    def _one_number_per_channel(self) -> Self:
        for name in ("mean", "std"):
            given = len(getattr(self, name))
            if given != self.input_size[0]:
                raise ValueError(
                    f"{name} has {given} numbers for {self.input_size[0]} channels: give one each"
                )
        return self


class Evaluation(_Record):
    """Accuracy as :func:`qzoo.evaluate` measured it."""

    dataset: str
    """By its name in timm's dataset factory, e.g. ``torch/cifar10``."""
    split: str | None
    """None for a dataset that has no name there."""
    images: PositiveInt
    top1: Percent
    """Share of images whose highest logit is the label's, in percent."""
    loss: float
    """Mean cross entropy, in nats."""


def fingerprint(content: bytes) -> dict[str, str | int]:
    """The fields of :class:`Provenance` that tell a file from others: ``sha256`` and ``size``."""
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


class Provenance(_Record):
    """All that is known about one file of weights.

    Raises ``pydantic.ValidationError`` for what is missing, unknown or impossible.

    >>> row = Provenance(
    ...     model="qresnet20", tag="relinear_c10", sha256="0" * 64, size=3_300_000, num_classes=10,
    ...     preprocessing={"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.2,) * 3},
    ...     reduced=False,
    ... )
    >>> row.name, row.filename
    ('qresnet20.relinear_c10', 'qresnet20.relinear_c10.safetensors')
    """

    schema_version: Literal[1] = 1
    model: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    """The registered name of the network."""
    tag: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    """What tells these weights from others of the same network."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: PositiveInt
    """Of the safetensors file, in bytes."""
    dtype: Dtype = "float32"
    """Of the stored tensors with two or more dimensions; a network computes in its own."""
    num_classes: Count
    label_names: tuple[str, ...] | None = None
    preprocessing: Preprocessing
    table: str | None = None
    """The table of the bench whose recipe trained them."""
    table_version: PositiveInt | None = None
    recipe: dict[str, JsonValue] = {}
    """The recipe with all its values."""
    seed: int | None = None
    commit: str | None = None
    versions: dict[str, str] = {}
    hardware: dict[str, str | int] = {}
    reduced: bool
    """Whether the run was shorter than its table asks for."""
    claimed: Percent | None = None
    """Top-1 accuracy on the test set that the training run reported."""
    evaluation: Evaluation | None = None
    """The accuracy that this very file was measured to have."""
    licence: str = "apache-2.0"
    """SPDX identifier."""

    @field_validator("recipe")
    @classmethod
    def _finite(cls, recipe: dict[str, JsonValue]) -> dict[str, JsonValue]:
        try:
            json.dumps(recipe, allow_nan=False)
        except ValueError:
            raise ValueError("a number in it is not finite, which JSON cannot hold") from None
        return recipe

    @model_validator(mode="after")
    def _one_name_per_class(self) -> Self:
        if self.label_names is not None and len(self.label_names) != self.num_classes:
            raise ValueError(
                f"label_names has {len(self.label_names)} names for {self.num_classes} classes: "
                "give one each"
            )
        return self

    @property
    def name(self) -> str:
        """The name for ``timm.create_model``: model and tag."""
        return f"{self.model}.{self.tag}"

    @property
    def filename(self) -> str:
        """The file's name inside the wheel."""
        return f"{self.name}.safetensors"

    def describes(self, path: Path) -> bool:
        """Whether :meth:`check` finds nothing wrong with a file."""
        try:
            self.check(path)
        except WeightsError:
            return False
        return True

    def check(self, path: Path) -> None:
        """Compare a file with size and sha256.

        Raises :class:`qzoo.WeightsError` saying what differs.
        """
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                if size != self.size:
                    raise WeightsError(
                        f"{path} has {size} bytes, but should have {self.size} as {self.name}"
                    )
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
        if found != self.sha256:
            raise WeightsError(
                f"{path} has sha256 {found[:12]}…, "
                f"but should have {self.sha256[:12]}… as {self.name}"
            )
