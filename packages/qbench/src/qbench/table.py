"""A paper's table or figure as data: grid, recipe, what the paper leaves open, and its claims."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from qbench.errors import UserError, unknown

Metric = Literal["test_accuracy", "train_accuracy", "train_loss", "test_loss", "margin"]
Scalar = str | float
RISING: Mapping[Metric, bool] = {
    "test_accuracy": True,
    "train_accuracy": True,
    "train_loss": False,
    "test_loss": False,
    "margin": True,
}
"""Whether more of a metric is better; accuracies are in percent, losses in nats."""


class Frozen(BaseModel):
    """A read-only record in which an unknown key is an error that names the near match."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            allowed = [field.alias or name for name, field in cls.model_fields.items()]
            for key in data:
                if key not in allowed and key not in cls.model_fields:
                    raise ValueError(str(unknown("key", str(key), allowed)))
        return data


class ModelSpec(Frozen):
    """A classifier: linear without bias, a dense form, or one of low rank.

    ``start`` gives parameters at the start by name; without it they are drawn from the seed.

    >>> ModelSpec(kind="low_rank", rank=2).kind
    'low_rank'
    """

    kind: Literal["linear", "dense", "low_rank"]
    rank: int | None = Field(default=None, ge=1)
    affine: bool = False
    start: dict[str, Any] = {}

    @model_validator(mode="after")
    def _fits(self) -> "ModelSpec":
        if (self.kind == "low_rank") != (self.rank is not None):
            raise ValueError("rank belongs to kind low_rank, and only to it")
        if self.kind == "linear" and self.affine:
            raise ValueError("affine belongs to quadratic forms, not to kind linear")
        return self


class Recipe(Frozen):
    """How a trial is trained; full-batch gradient descent on the cross-entropy.

    ``lr`` is per step; ``epochs`` are steps; ``scaling`` is fitted on the training part alone;
    ``init_scale`` multiplies the initial outputs; a point of every curve is recorded each
    ``log_every`` steps and at the end; parameters are recorded at the steps ``snapshots``.
    """

    optimizer: Literal["sgd"] = "sgd"
    lr: float = Field(default=0.01, gt=0)
    epochs: int = Field(ge=1)
    scaling: Literal["raw", "maxabs", "minmax", "standard"] = "raw"
    init_scale: float = Field(default=1.0, ge=0)
    test_fraction: float = Field(default=0.0, ge=0, lt=1)
    log_every: int = Field(default=1, ge=1)
    snapshots: tuple[int, ...] = ()


class Grid(Frozen):
    """The table's rows: every dataset with every model."""

    dataset: tuple[Literal["iris", "wine", "wisconsin", "digits", "xor"], ...] = Field(min_length=1)
    model: dict[str, ModelSpec] = Field(min_length=1)


class Quick(Frozen):
    """What a reduced run takes instead of the full numbers."""

    epochs: int = Field(ge=1)
    seeds: int = Field(ge=1)


class Unstated(Frozen):
    """A choice the paper leaves open: our default, the alternatives, and why it matters."""

    default: Scalar
    also: tuple[Scalar, ...] = ()
    why: str

    @property
    def values(self) -> tuple[Scalar, ...]:
        """The default first, then the alternatives."""
        return (self.default, *self.also)


class _Claim(Frozen):
    """What every claim has: where it stands in the paper, and the axis it is made for each value
    of."""

    source: str
    per: Literal["dataset"] | None = None


class ValueClaim(_Claim):
    """A cell's printed value with its printed spread."""

    cell: dict[str, str]
    metric: Metric
    value: float
    spread: float | None = None


class OrderClaim(_Claim):
    """Models from worst to best by a metric."""

    order: tuple[str, ...] = Field(min_length=2)
    by: Metric


class CloseClaim(_Claim):
    """Two models whose metric differs by no more than ``within``."""

    close: tuple[str, str]
    by: Metric
    within: float


class RisesClaim(_Claim):
    """A metric that never falls from one recorded step to the next, for every model."""

    rises: Metric


class LimitClaim(_Claim):
    """A metric that ends no further than ``within`` from a limit, for every model."""

    limit: Metric
    to: float
    within: float


_KINDS = ("order", "close", "rises", "limit")


def _claim_kind(claim: Any) -> str:
    keys = claim if isinstance(claim, Mapping) else type(claim).model_fields
    return next((kind for kind in _KINDS if kind in keys), "value")


Claim = Annotated[
    Annotated[ValueClaim, Tag("value")]
    | Annotated[OrderClaim, Tag("order")]
    | Annotated[CloseClaim, Tag("close")]
    | Annotated[RisesClaim, Tag("rises")]
    | Annotated[LimitClaim, Tag("limit")],
    Discriminator(_claim_kind),
]


class Table(Frozen):
    """One table or figure of a paper.

    ``version`` rises with every change that alters results. ``control`` is the model against which
    the others are tested. Without ``quick`` the table is quick as it is, and never reduced.

    >>> load_table("xor").grid.dataset
    ('xor',)
    """

    id: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    version: int = Field(ge=1)
    title: str
    paper: str
    shows: str
    control: str | None = None
    main_metric: Metric
    grid: Grid
    recipe: Recipe
    unstated: dict[str, Unstated] = {}
    seeds: int = Field(ge=1)
    quick: Quick | None = None
    claims: tuple[Claim, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> "Table":
        models = list(self.grid.model)
        named = [name for claim in self.claims for name in _models_of(claim)]
        for name in [*named, *([self.control] if self.control else [])]:
            if name not in models:
                raise ValueError(str(unknown("model", name, models)))
        for axis, choice in self.unstated.items():
            if axis not in Recipe.model_fields:
                raise ValueError(str(unknown("choice", axis, Recipe.model_fields)))
            for value in choice.values:
                Recipe.model_validate({**self.recipe.model_dump(), axis: value})
        for claim in self.claims:
            if isinstance(claim, ValueClaim):
                self._check_cell(claim.cell)
        late = [step for step in self.recipe.snapshots if step > self.recipe.epochs]
        if late:
            raise ValueError(
                f"snapshots: step {late[0]} is after the last one, {self.recipe.epochs}"
            )
        return self

    def _check_cell(self, cell: Mapping[str, str]) -> None:
        for axis, value in cell.items():
            if axis not in self.axes:
                raise ValueError(str(unknown("axis", axis, self.axes)))
            try:
                self._value(axis, value)
            except UserError as error:
                raise ValueError(str(error)) from error
        if "model" not in cell:
            raise ValueError("cell: a claimed value needs a model")

    @property
    def axes(self) -> dict[str, tuple[Scalar, ...]]:
        """Every axis with its values: the grid's, then the unstated choices' (default first)."""
        grid: dict[str, tuple[Scalar, ...]] = {
            "dataset": tuple(self.grid.dataset),
            "model": tuple(self.grid.model),
        }
        return grid | {name: choice.values for name, choice in self.unstated.items()}

    @property
    def defaults(self) -> dict[str, Scalar]:
        """The default of every unstated choice."""
        return {name: choice.default for name, choice in self.unstated.items()}

    def cells(
        self,
        only: Mapping[str, tuple[Scalar, ...]] | None = None,
        choices: Mapping[str, tuple[Scalar, ...]] | None = None,
        *,
        reduced: bool = False,
    ) -> Iterator["Cell"]:
        """The cells to run: the grid restricted by ``only``, times the chosen values of the
        choices.

        ``reduced`` takes the table's quick recipe, where it has one.

        Raises ``UserError`` for an axis or a value that the table does not have.
        """
        wanted = {
            axis: (values if axis in ("dataset", "model") else values[:1])
            for axis, values in self.axes.items()
        }
        for axis, values in {**(only or {}), **(choices or {})}.items():
            if axis not in wanted:
                raise unknown("axis", axis, wanted)
            wanted[axis] = tuple(dict.fromkeys(self._value(axis, value) for value in values))
        for combination in itertools.product(*wanted.values()):
            axes = dict(zip(wanted, combination, strict=True))
            yield Cell(self, axes, reduced and self.quick is not None)

    def _value(self, axis: str, value: Scalar) -> Scalar:
        for allowed in self.axes[axis]:
            if value == allowed or (isinstance(value, str) and _as_number(value) == allowed):
                return allowed
        raise unknown(axis, str(value), map(str, self.axes[axis]))


@dataclass(frozen=True)
class Cell:
    """One combination of a table's axes: what is run over several seeds.

    >>> next(load_table("xor").cells()).axes
    {'dataset': 'xor', 'model': 'rank1', 'lr': 0.1}
    """

    table: Table
    axes: dict[str, Scalar]
    reduced: bool = False

    @property
    def dataset(self) -> str:
        """The dataset's name."""
        return str(self.axes["dataset"])

    @property
    def model(self) -> ModelSpec:
        """The classifier."""
        return self.table.grid.model[str(self.axes["model"])]

    @property
    def recipe(self) -> Recipe:
        """The recipe with the unstated choices filled in."""
        chosen: dict[str, Any] = {name: self.axes[name] for name in self.table.unstated}
        if self.reduced and self.table.quick is not None:
            chosen["epochs"] = self.table.quick.epochs
        return Recipe.model_validate({**self.table.recipe.model_dump(), **chosen})

    @property
    def resolved(self) -> dict[str, Any]:
        """Everything that decides the result, but the seed."""
        return {
            "dataset": self.dataset,
            "model": self.model.model_dump(mode="json"),
            "recipe": self.recipe.model_dump(mode="json"),
        }

    @property
    def key(self) -> str:
        """The identity of the cell."""
        return identity(self.table.id, self.table.version, self.resolved)

    def trial_key(self, seed: int) -> str:
        """The identity of a trial: table id and version, resolved recipe, seed; never the
        commit."""
        return identity(self.table.id, self.table.version, self.resolved, seed)

    def __str__(self) -> str:
        return " ".join(str(value) for value in self.axes.values())


def identity(*parts: Any) -> str:
    """A short hash of plain values: 16 hexadecimal digits of the SHA-256 of their canonical JSON.

    >>> identity("uci", 1) == identity("uci", 1), identity("uci", 1) == identity("uci", 2)
    (True, False)
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def table_names() -> list[str]:
    """The names of all tables, sorted."""
    folder = resources.files("qbench") / "tables"
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_table(name: str) -> Table:
    """The table of that name.

    Raises ``UserError`` naming near matches for an unknown name, and for a file that does not fit.

    >>> load_table("uci").seeds
    10
    """
    if name not in table_names():
        raise unknown("table", name, table_names())
    text = (resources.files("qbench") / "tables" / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_table(text, f"{name}.yaml")


def parse_table(text: str, name: str) -> Table:
    """The table in a YAML text; ``name`` stands in the error for one that does not fit."""
    try:
        return Table.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{name}: {place + ': ' if place else ''}{reason}") from error


def _models_of(claim: Claim) -> list[str]:
    if isinstance(claim, OrderClaim):
        return list(claim.order)
    if isinstance(claim, CloseClaim):
        return list(claim.close)
    if isinstance(claim, ValueClaim):
        return [claim.cell["model"]] if "model" in claim.cell else []
    return []


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
