"""A paper's table or figure as data: grid, recipe, what the paper leaves open, and its claims."""

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from qbench.architecture import FIELDS, ModelSpec, diqnn_name, normed_name
from qbench.catalogue import DATASETS
from qbench.claim import Claim, InteriorClaim, OrderClaim, ValueClaim, models_of
from qbench.errors import UserError, first_problem, one_line, shown, unknown
from qbench.frozen import Count, Frozen, Scalar
from qbench.metrics import Metric
from qbench.recipe import Recipe
from qbench.report.paper_figures import FIGURES
from qbench.report.wording import format_value
from qbench.safe_yaml import read_yaml

Record = TypeVar("Record", bound=Frozen)

Reduction = Literal["quick", "budget"]
"""How a run can be less than the full one: minutes of any table, or hours where it takes weeks."""

REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
"""Both, from the smaller one on."""


def _named(value: Any) -> Any:
    """Records of before there were two kinds say true for a quick run, and false for a full one."""
    return {True: "quick", False: None}[value] if isinstance(value, bool) else value


RecordedReduction = Annotated[Reduction | None, BeforeValidator(_named)]
"""Of which kind of reduced runs a record is; None for a full one."""


def option_of(reduced: Reduction | None) -> list[str]:
    """What a command needs for a run of this kind.

    >>> option_of("budget"), option_of(None)
    (['--budget'], [])
    """
    return [f"--{reduced}"] if reduced else []


MOST_CELLS = 10_000
"""Cells of a table, or of what is asked for of it."""

_MOST_STARTS = 10  # networks of which each starts from the weights of the one before


class Patch(Frozen):
    """What a value of an axis changes in the model and in the recipe of its cells."""

    model: dict[str, Any] = Field(default={})
    recipe: dict[str, Any] = Field(default={})

    @model_validator(mode="after")
    def _known_fields(self) -> "Patch":
        known = sorted(frozenset().union(*FIELDS.values()) - {"after"})
        for name in self.model:
            if name not in known:
                raise ValueError(str(unknown("field of a model", name, known)))
        return self


class Grid(Frozen):
    """The table's rows: every dataset with every model, and with every value of each axis in
    ``other``.

    In a file these axes stand beside ``dataset`` and ``model``. An axis is a mapping of names to
    what each changes, or, for a field of recipe or model, a list of its values.
    """

    dataset: dict[str, Patch] = Field(min_length=1)
    model: dict[str, ModelSpec] = Field(min_length=1)
    other: dict[str, dict[Scalar, Patch]] = Field(default={})

    @model_validator(mode="before")
    @classmethod
    def _spread_out(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        known = {name: data[name] for name in ("dataset", "model", "other") if name in data}
        if isinstance(known.get("dataset"), list | tuple):
            known["dataset"] = {name: {} for name in _plain("dataset", known["dataset"])}
        other = known.get("other", {})
        if not isinstance(other, Mapping):
            return known  # which says what is wrong with it
        other = dict(other)
        for axis, values in data.items():
            if axis not in known:
                other[axis] = (
                    {value: _patch(axis, value) for value in _plain(axis, values)}
                    if isinstance(values, list)
                    else values
                )
        return {**known, **({"other": other} if other else {})}

    @model_validator(mode="after")
    def _known_datasets(self) -> "Grid":
        for name in self.dataset:
            if name not in DATASETS:
                raise ValueError(str(unknown("dataset", name, DATASETS)))
        return self


class Reduced(Frozen):
    """What a reduced run takes instead of the full numbers; ``where`` restricts it to cells with
    these values of axes, of which alone it then consists."""

    seeds: Count
    recipe: dict[str, Any]
    where: dict[str, tuple[Scalar, ...]] = Field(default={})


class Unstated(Frozen):
    """A choice the paper leaves open: our default, the alternatives, and why it matters.

    The axis is a field of the recipe, or ``sets`` says what each value changes. ``where`` restricts
    it to cells with these values of other axes.
    """

    default: Scalar
    also: tuple[Scalar, ...] = ()
    why: str
    sets: dict[Scalar, Patch] = Field(default={})
    where: dict[str, tuple[Scalar, ...]] = Field(default={})

    @property
    def values(self) -> tuple[Scalar, ...]:
        """The default first, then the alternatives."""
        return (self.default, *self.also)

    def patch(self, axis: str, value: Scalar) -> Patch:
        """What a value of the choice changes."""
        return self.sets[value] if self.sets else Patch(recipe={axis: value})


class Table(Frozen):
    """One table or figure of a paper.

    ``experiment`` is what a trial does: ``training``, or ``expressivity``, which measures networks
    as they are drawn. ``version`` rises with every change that alters results. ``control`` is the
    model against which the others are tested; ``without`` leaves out the cells with all values of
    one of its entries. Without ``quick`` the table is quick as it is, and never reduced.
    ``budget`` is for tables that would take weeks on a CPU: what hours allow, reduced as well.
    ``figures`` are those of the paper beside the common ones. ``departs`` says, in sentences, where
    the table does on purpose something else than the paper.

    >>> list(load_table("xor").grid.dataset)
    ['xor']
    """

    id: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    version: Count
    title: str
    paper: str
    shows: str
    experiment: Literal["training", "expressivity"] = "training"
    control: str | None = None
    main_metric: Metric
    also: tuple[Metric, ...] = ()
    grid: Grid
    without: tuple[dict[str, Scalar], ...] = ()
    recipe: Recipe
    unstated: dict[str, Unstated] = Field(default={})
    seeds: Count
    quick: Reduced | None = None
    budget: Reduced | None = None
    claims: tuple[Claim, ...] = ()
    figures: tuple[str, ...] = ()
    departs: tuple[str, ...] = ()
    _size: int

    @model_validator(mode="after")
    def _consistent(self) -> "Table":
        models = list(self.grid.model)
        named = [name for claim in self.claims for name in models_of(claim)]
        named += [spec.after for spec in self.grid.model.values() if spec.after]
        for name in [*named, *([self.control] if self.control else [])]:
            if name not in models:
                raise ValueError(str(unknown("model", name, models)))
        self._check_models()
        for axis, choice in self.unstated.items():
            if axis in self.grid_axes:
                raise ValueError(f"unstated: {shown(axis)} is an axis of the grid already")
            if not choice.sets and axis not in Recipe.model_fields:
                raise ValueError(str(unknown("choice", axis, Recipe.model_fields)))
            for value in choice.values:
                if choice.sets and value not in choice.sets:
                    raise ValueError(
                        str(unknown(f"value of {axis}", str(value), map(str, choice.sets)))
                    )
                Recipe.model_validate(
                    _merged(_given(self.recipe), choice.patch(axis, value).recipe)
                )
            if "model" in choice.where:
                raise ValueError(
                    f"where of {shown(axis)}: models are compared under the same choices, so that "
                    "one cannot be for some of them: make it a model of its own"
                )
            self._check_where(choice.where)
        for claim in self.claims:
            if isinstance(claim, OrderClaim) and claim.at_best is not None:
                if claim.at_best.axis not in self.grid.other:
                    raise ValueError(
                        f"at_best: {unknown('axis', claim.at_best.axis, self.grid.other)}"
                    )
                if claim.per == "pooled":
                    raise ValueError(
                        "at_best: a value is chosen in each panel, so that none can be pooled: "
                        "make it per: panel"
                    )
            if isinstance(claim, ValueClaim):
                self._check_cell(claim.cell)
                if "model" not in claim.cell:
                    raise ValueError("cell: a claimed value needs a model")
            self._check_where(claim.where)
        for left_out in self.without:
            self._check_cell(left_out)
        late = [step for step in self.recipe.snapshots if step > self.recipe.epochs]
        if self.recipe.batch_size is None and late:
            raise ValueError(
                f"snapshots: step {late[0]} is after the last one, {self.recipe.epochs}"
            )
        for name in self.figures:
            if name not in FIGURES:
                raise ValueError(str(unknown("figure", name, FIGURES)))
        for less in (self.quick, self.budget):
            if less is not None:
                Recipe.model_validate(_merged(_given(self.recipe), less.recipe))
                self._check_where(less.where)
        try:
            cells = list(self.cells())  # every model with its recipe
        except UserError as error:
            raise ValueError(str(error)) from error
        if not cells:
            raise ValueError("without: it leaves out every cell of the grid")
        for cell in cells:
            if cell.recipe.augment and len(DATASETS[cell.dataset].shape) != 3:
                raise ValueError(f"augment: {cell.dataset} has no images")
        self._size = len(cells)
        return self

    def _check_models(self) -> None:
        """What models say of datasets and of one another."""
        for name, spec in self.grid.model.items():
            for dataset in spec.on:
                if dataset not in self.grid.dataset:
                    raise ValueError(
                        f"on of model {shown(name)}: "
                        f"{unknown('dataset', dataset, self.grid.dataset)}"
                    )
            chain = [name]
            while (start := self.grid.model[chain[-1]].after) is not None:
                chain.append(start)
                if start == name or len(chain) > _MOST_STARTS:
                    end = "and so on" if start != name else "again"
                    raise ValueError(
                        f"after: model {shown(name)} starts from {' from '.join(chain[1:])} {end}: "
                        "let one of them start from nothing"
                    )

    def _check_cell(self, cell: Mapping[str, Scalar]) -> None:
        for axis, value in cell.items():
            if axis not in self.axes:
                raise ValueError(str(unknown("axis", axis, self.axes)))
            try:
                self._value(axis, value)
            except UserError as error:
                raise ValueError(str(error)) from error

    def _check_where(self, where: Mapping[str, Sequence[Scalar]]) -> None:
        for axis, values in where.items():
            if axis not in self.axes:
                raise ValueError(str(unknown("axis", axis, self.axes)))
            if not values:
                raise ValueError(
                    f"where: {axis} has no value, so that it is for nothing: give one or more, or "
                    "leave it out"
                )
            for value in values:
                self._check_cell({axis: value})

    @property
    def grid_axes(self) -> dict[str, tuple[Scalar, ...]]:
        """The grid's axes with their values: the dataset, the model, and the others."""
        return {
            "dataset": tuple(self.grid.dataset),
            "model": tuple(self.grid.model),
            **{axis: tuple(values) for axis, values in self.grid.other.items()},
        }

    @property
    def axes(self) -> dict[str, tuple[Scalar, ...]]:
        """Every axis with its values: the grid's, then the unstated choices' (default first)."""
        return self.grid_axes | {name: choice.values for name, choice in self.unstated.items()}

    @property
    def defaults(self) -> dict[str, Scalar]:
        """The default of every unstated choice."""
        return {name: choice.default for name, choice in self.unstated.items()}

    def completed(self, axes: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Axes as they were recorded, with the defaults of choices that the table did not leave
        open then.

        >>> load_table("xor").completed({"dataset": "xor", "model": "rank1"})
        {'dataset': 'xor', 'model': 'rank1', 'lr': 0.1}
        """
        return {**axes, **{k: v for k, v in self.defaults.items() if k not in axes}}

    def reduction(self, name: Reduction | None) -> Reduced | None:
        """What that reduced run takes; None for the full one, and where the table has none."""
        return {"quick": self.quick, "budget": self.budget, None: None}[name]

    def usual_seeds(self, reduced: Reduction | None) -> int:
        """The seeds per cell of a run that names no other number."""
        less = self.reduction(reduced)
        return self.seeds if less is None else less.seeds

    @property
    def measured(self) -> tuple[Metric, ...]:
        """The main metric and the others that a report shows, each once."""
        orders = [claim for claim in self.claims if isinstance(claim, OrderClaim)]
        inner = [claim for claim in self.claims if isinstance(claim, InteriorClaim)]
        claimed = [
            *(claim.by for claim in orders),
            *(metric for claim in inner for metric in (claim.by, claim.chosen_by)),
            *(claim.at_best.chosen_by for claim in orders if claim.at_best),
        ]
        return tuple(dict.fromkeys([self.main_metric, *self.also, *claimed]))

    @property
    def size(self) -> int:
        """The number of cells of the whole table under the default choices."""
        return self._size

    def cells(
        self,
        only: Mapping[str, tuple[Scalar, ...]] | None = None,
        choices: Mapping[str, tuple[Scalar, ...]] | None = None,
        *,
        reduced: Reduction | None = None,
    ) -> Iterator["Cell"]:
        """The cells to run: the grid restricted by ``only``, times the chosen values of the
        choices.

        A choice that changes nothing for a cell is made once for it, by its default. ``reduced``
        takes the table's recipe of that name, where it has one, and the cells that it is for.

        Raises ``UserError`` for an axis or a value that the table does not have.
        """
        wanted = {
            axis: (values if axis in self.grid_axes else values[:1])
            for axis, values in self.axes.items()
        }
        for axis, values in {**(only or {}), **(choices or {})}.items():
            if axis not in wanted:
                raise unknown("axis", axis, wanted)
            wanted[axis] = tuple(dict.fromkeys(self._value(axis, value) for value in values))
        number = math.prod(len(values) for values in wanted.values())
        if number > MOST_CELLS:
            raise UserError(
                f"table {self.id} has {number:,} cells here, and {MOST_CELLS:,} are the most: "
                "take fewer values of an axis"
            )
        less = self.reduction(reduced)
        seen = set()
        for combination in itertools.product(*wanted.values()):
            axes = dict(zip(wanted, combination, strict=True))
            if any(left_out.items() <= axes.items() for left_out in self.without):
                continue
            if less is not None and any(
                axes[axis] not in allowed for axis, allowed in less.where.items()
            ):
                continue
            cell = self._with_defaults(Cell(self, axes, reduced if less is not None else None))
            if cell.key not in seen:
                seen.add(cell.key)
                yield cell

    def _with_defaults(self, cell: "Cell") -> "Cell":
        """The same cell, named by the default of each choice that does not matter for it."""
        for axis, default in self.defaults.items():
            if cell.axes[axis] != default:
                plain = Cell(self, {**cell.axes, axis: default}, cell.reduced)
                if plain.key == cell.key:
                    cell = plain
        return cell

    def _value(self, axis: str, value: Scalar) -> Scalar:
        for allowed in self.axes[axis]:
            if value == allowed or (isinstance(value, str) and _as_number(value) == allowed):
                return allowed
        raise unknown(axis, str(value), map(str, self.axes[axis]))

    def changes(self, axes: Mapping[str, Scalar]) -> Iterator[Patch]:
        """What the axes of a cell change, in the order in which they do: dataset, other axes of
        the grid, the model's own recipe, the unstated choices."""
        yield self.grid.dataset[str(axes["dataset"])]
        for axis, values in self.grid.other.items():
            yield values[axes[axis]]
        yield Patch(recipe=self.grid.model[str(axes["model"])].recipe)
        for axis, choice in self.unstated.items():
            if all(axes[other] in allowed for other, allowed in choice.where.items()):
                yield choice.patch(axis, axes[axis])


@dataclass(frozen=True)
class Cell:
    """One combination of a table's axes: what is run over several seeds.

    >>> next(load_table("xor").cells()).axes
    {'dataset': 'xor', 'model': 'rank1', 'lr': 0.1}
    """

    table: Table
    axes: dict[str, Scalar]
    reduced: Reduction | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", self.table.completed(self.axes))

    @property
    def dataset(self) -> str:
        """The dataset's name."""
        return str(self.axes["dataset"])

    @property
    def panel(self) -> str:
        """The grid's axes but the model in words: what its models are compared within."""
        return panel_of(self.axes, self.table.grid.other)

    @cached_property
    def model(self) -> ModelSpec:
        """What is trained, with what the axes change in it.

        Raises ``UserError`` for what no model can be, as :attr:`recipe` does.
        """
        spec = self.table.grid.model[str(self.axes["model"])]
        if self.dataset in spec.on:
            there = spec.on[self.dataset]
            own = {"recipe": spec.recipe} if "kind" in there else _given(spec)
            spec = self._validated(ModelSpec, _merged(own, there))
        changes = {
            field: value
            for patch in self.table.changes(self.axes)
            for field, value in patch.model.items()
            if field in FIELDS[spec.kind]
        }
        return spec if not changes else self._validated(ModelSpec, {**_given(spec), **changes})

    @property
    def zoo_name(self) -> str | None:
        """The name under which the zoo has what is trained; None where it does not.

        >>> (cell,) = load_table("rank").cells({"dataset": ("mnist",), "model": ("rank4",)})
        >>> cell.zoo_name
        'diqnn_rank4'
        """
        if self.model.kind == "zoo":
            return self.model.full_name if self.model.norm is None else normed_name(self.model)
        return diqnn_name(self.model) if DATASETS[self.dataset].shape == (1, 28, 28) else None

    @cached_property
    def recipe(self) -> Recipe:
        """The table's recipe with what dataset, axes, model and a reduced run change in it."""
        merged = _given(self.table.recipe)
        for patch in self.table.changes(self.axes):
            merged = _merged(merged, patch.recipe)
        if (less := self.table.reduction(self.reduced)) is not None:
            merged = _merged(merged, less.recipe)
        return self._validated(Recipe, merged)

    def _validated(self, kind: type[Record], data: Mapping[str, Any]) -> Record:
        try:
            return kind.model_validate(data)
        except ValidationError as error:
            under = f" under {self.reduced}" if self.reduced else ""
            raise UserError(f"{one_line(self)}{under}: {first_problem(error)}") from error

    @property
    def after(self) -> "Cell | None":
        """The cell from whose weights this one starts.

        Raises ``UserError`` for one whose weights are not kept.
        """
        if self.model.after is None:
            return None
        before = Cell(self.table, {**self.axes, "model": self.model.after}, self.reduced)
        if before.zoo_name is None:
            raise UserError(
                f"after: model {shown(self.model.after)} has a norm, and the zoo no such network, "
                "so that no weights are kept: name one without"
            )
        return before

    @property
    def resolved(self) -> dict[str, Any]:
        """Everything that decides the result, but the seed; defaults are left out."""
        model = self.model.model_dump(mode="json", exclude_defaults=True, exclude={"recipe", "on"})
        after = {} if self.after is None else {"after": self.after.resolved}
        # where nothing is held back, steps are clipped as gradients are
        same = set() if self.recipe.strategy.relinear else {"clip_by"}
        recipe = self.recipe.model_dump(mode="json", exclude_defaults=True, exclude=same)
        return {"dataset": self.dataset, "model": model, "recipe": recipe, **after}

    @cached_property
    def key(self) -> str:
        """The identity of the cell."""
        return identity(self.table.id, self.table.version, self.resolved)

    def trial_key(self, seed: int) -> str:
        """The identity of a trial: table id and version, resolved recipe, seed; never the
        commit."""
        return identity(self.table.id, self.table.version, self.resolved, seed)

    def __str__(self) -> str:
        return " ".join(format_value(value) for value in self.axes.values())


def panel_of(axes: Mapping[str, Scalar], others: Iterable[str]) -> str:
    """A panel in words, from the values of its axes.

    >>> panel_of({"dataset": "cifar10", "depth": 20.0}, ["depth"])
    'cifar10, depth 20'
    """
    named = (f"{axis} {format_value(axes[axis])}" for axis in others)
    return ", ".join([str(axes["dataset"]), *named])


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
    content = (resources.files("qbench") / "tables" / f"{name}.yaml").read_bytes()
    table = parse_table(content, f"{name}.yaml")
    if table.id != name:
        raise UserError(
            f"{name}.yaml: id: {table.id!r} is not the file's name: make it {name!r}, or rename "
            f"the file to {table.id}.yaml"
        )
    return table


def parse_table(content: bytes | str, name: str) -> Table:
    """The table in a YAML file; ``name`` stands in the error for one that does not fit."""
    data = read_yaml(content.encode() if isinstance(content, str) else content, name)
    try:
        return Table.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{name}: {first_problem(error)}") from error


def _given(record: Frozen) -> dict[str, Any]:
    """The fields that were given, as they were."""
    return record.model_dump(exclude_unset=True)


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with what ``change`` has, field by field."""
    merged = dict(base)
    for key, value in change.items():
        inner = merged.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = _merged(inner, value)
        merged[key] = value
    return merged


def _patch(axis: str, value: Scalar) -> dict[str, Any]:
    if axis in Recipe.model_fields:
        return {"recipe": {axis: value}}
    if axis in ModelSpec.model_fields:
        return {"model": {axis: value}}
    fields = [*Recipe.model_fields, *ModelSpec.model_fields]
    raise ValueError(f"{unknown('axis', axis, fields)}, or a mapping of values to what each sets")


def _plain(axis: str, values: Iterable[Any]) -> Iterator[Scalar]:
    """Values as they may be those of an axis."""
    for value in values:
        if not isinstance(value, str | float | int):
            raise ValueError(f"{axis}: {shown(value)} is neither text nor a number")
        yield value


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
