"""Tables are data: every file is validated here, and nothing is trained."""

import math
import re

import pytest

from qbench.errors import UserError
from qbench.table import REDUCTIONS, Cell, identity, load_table, parse_table, table_names

GOOD = """
id: toy
version: 1
title: A toy
paper: arXiv 0000.00000
shows: Table 1
control: linear
main_metric: test_accuracy
grid:
  dataset: [iris]
  model: {linear: {kind: linear}, rank1: {kind: low_rank, rank: 1}}
recipe: {lr: 0.01, epochs: 10, test_fraction: 0.2}
unstated:
  scaling: {default: maxabs, also: [raw], why: not stated}
seeds: 2
claims:
  - {order: [linear, rank1], by: test_accuracy, per: panel, source: Table 1}
"""


@pytest.mark.parametrize("name", table_names())
def test_every_table_file_is_valid_and_named_after_its_id(name: str) -> None:
    table = load_table(name)
    assert table.id == name
    cells = list(table.cells())
    whole = math.prod(len(values) for values in table.grid_axes.values())
    assert (len(cells) == whole) == (not table.without)
    assert len({cell.key for cell in cells}) == len(cells)
    # what a reduced run changes must not make two cells one, nor one a cell of the full run
    for less in REDUCTIONS:
        if (kind := table.reduction(less)) is None:
            assert [cell.key for cell in table.cells(reduced=less)] == [cell.key for cell in cells]
            continue
        reduced = list(table.cells(reduced=less))
        meant = [
            cell.axes
            for cell in cells
            if all(cell.axes[axis] in allowed for axis, allowed in kind.where.items())
        ]
        assert [cell.axes for cell in reduced] == meant
        assert {cell.key for cell in reduced}.isdisjoint(cell.key for cell in cells)
        assert {cell.reduced for cell in reduced} == {less}


def test_uci_is_the_supplements_recipe_and_its_matched_controls() -> None:
    table = load_table("uci")
    assert len(list(table.cells())) * table.seeds == 640
    assert table.axes["scaling"] == ("maxabs", "raw", "minmax", "standard")
    assert (table.recipe.lr, table.recipe.epochs) == (0.01, 1000)
    assert table.defaults == {"scaling": "maxabs", "init_scale": 1.0, "test_fraction": 0.2}
    everything = list(table.cells(choices={"scaling": table.axes["scaling"]}))
    assert len(everything) == 4 * 64


def test_xor_starts_from_the_papers_vectors_and_keeps_its_steps() -> None:
    table = load_table("xor")
    assert table.grid.model["rank1"].start == {"factors": [[[1.0, 0.0]], [[0.0, 1.0]]]}
    assert table.recipe.snapshots == (0, 12, 36, 84, 396)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lr: 0.01", "lrr: 0.01", "recipe: unknown key 'lrr': did you mean 'lr'?"),
        ("seeds: 2", "seedz: 2", "unknown key 'seedz': did you mean 'seeds'?"),
        (
            "kind: linear",
            "kind: linaer",
            "Input should be 'linear', 'dense', 'low_rank', 'mlp' or 'zoo'",
        ),
        ("kind: low_rank, rank: 1", "kind: low_rank", "rank belongs to kind low_rank"),
        ("kind: linear", "kind: linear, affine: true", "affine belongs to quadratic forms"),
        (
            "kind: low_rank, rank: 1",
            'kind: low_rank, rank: 1, "on": {iris: {rank: 2, recipe: {lr: 0.1}}}',
            "grid.model.rank1: on: iris has a recipe, and a model has the same one on every "
            "dataset: put what iris changes under dataset: {iris: {recipe: …}} of the grid",
        ),
        (
            "lr: 0.01",
            "lr: 0.01, strategy: {gamma: {start: 0, stop: 1}}",
            "strategy.gamma.ramp: unknown key 'stop'",
        ),
        (
            "lr: 0.01",
            "lr: 0.01, strategy: {alpha: {start: 0, end: 2}}",
            "strategy.alpha.ramp.end: Input should be less than or equal to 1, and is 2",
        ),
        (
            "lr: 0.01",
            "lr: 0.01, strategy: {gamma: 2}",
            "strategy.gamma.number: Input should be less than or equal to 1, and is 2",
        ),
        (
            "lr: 0.01",
            "lr: 0.01, strategy: {lr_g: 0.001}",
            "lr_g and lr_b: give both, 0 where a part is not to train, or neither",
        ),
        (
            "lr: 0.01",
            "lr: 0.01, strategy: {gamma: {start: 0, end: 1}, lr_g: 0.001, lr_b: 0}",
            "gamma is a factor of the rate, lr_g and lr_b are rates: give one",
        ),
        (
            "lr: 0.01",
            "lr: 0.01, strategy: {lr_g: 0.1, lr_b: 0}",
            "strategy: lr_g 0.1 is above lr 0.01, the free one",
        ),
        ("control: linear", "control: lineal", "unknown model 'lineal': did you mean 'linear'?"),
        ("order: [linear, rank1]", "order: [linear, rank9]", "unknown model 'rank9'"),
        ("  scaling: {", "  scalingg: {", "unknown choice 'scalingg': did you mean 'scaling'?"),
        (
            "why: not stated",
            "why: not stated, where: {model: [rank1]}",
            "where of 'scaling': models are compared under the same choices, so that one cannot be "
            "for some of them: make it a model of its own",
        ),
        (
            "seeds: 2\n",
            "seeds: 2\nquick: {seeds: 1, recipe: {epochs: 1}, where: {dataset: [irish]}}\n",
            "unknown dataset 'irish': did you mean 'iris'?",
        ),
        ("also: [raw]", "also: [rawish]", "Input should be 'raw', 'maxabs', 'minmax'"),
        ("dataset: [iris]", "dataset: [irish]", "unknown dataset 'irish': did you mean 'iris'?"),
        ("epochs: 10", "epochs: 10, snapshots: [11]", "step 11 is after the last one, 10"),
        ("epochs: 10", "epochs: 0", "recipe.epochs: Input should be greater than or equal to 1"),
        ("id: toy", "id: ../toy", "id: String should match pattern"),
        ("id: toy", "id: [", "toy.yaml is not YAML"),
        (
            "id: toy",
            "id: !!python/object/apply:os.system [true]",
            "toy.yaml, line 2: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not "
            "allowed: write plain text, numbers, lists and mappings",
        ),
    ],
)
def test_a_mistake_in_a_table_is_one_sentence_that_names_it(
    old: str, new: str, message: str
) -> None:
    assert GOOD.count(old) >= 1
    with pytest.raises(UserError) as caught:
        parse_table(GOOD.replace(old, new, 1), "toy.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_identity_depends_on_what_decides_the_result_and_on_nothing_else() -> None:
    table = parse_table(GOOD, "toy.yaml")
    cell = next(table.cells())
    again = next(parse_table(GOOD.replace("A toy", "Another title"), "toy.yaml").cells())
    assert cell.trial_key(0) == again.trial_key(0)
    spelled_out = GOOD.replace("lr: 0.01", "optimizer: sgd, lr: 0.01, init_scale: 1.0")
    assert next(parse_table(spelled_out, "toy.yaml").cells()).trial_key(0) == cell.trial_key(0)
    keys = {cell.trial_key(seed) for seed in range(3)}
    for old, new in [("version: 1", "version: 2"), ("lr: 0.01", "lr: 0.02"), ("id: toy", "id: t")]:
        keys.add(next(parse_table(GOOD.replace(old, new), "toy.yaml").cells()).trial_key(0))
    keys.add(Cell(table, {**cell.axes, "scaling": "raw"}).trial_key(0))
    assert len(keys) == 7


def test_identity_is_the_same_in_every_release() -> None:
    # a change here would make every recorded result be run again
    assert identity("uci", 1, {"b": 2.0, "a": [1, "x"]}) == "dabb6fc77a6957f1"


def test_cells_can_be_restricted_and_choices_widened() -> None:
    table = load_table("uci")
    cells = list(
        table.cells({"dataset": ("wine",), "model": ("linear",)}, {"init_scale": ("0.1",)})
    )
    assert [cell.axes for cell in cells] == [
        {
            "dataset": "wine",
            "model": "linear",
            "scaling": "maxabs",
            "init_scale": 0.1,
            "test_fraction": 0.2,
        }
    ]
    assert cells[0].recipe.init_scale == 0.1


def test_a_value_named_twice_is_run_once() -> None:
    cells = load_table("uci").cells({"dataset": ("wine", "wine")}, {"scaling": ("raw", "raw")})
    assert len(list(cells)) == 16


def test_the_whole_recipe_is_part_of_the_identity() -> None:
    # without defaults, so that a field that is added later leaves what is recorded as it is
    assert next(load_table("uci").cells()).resolved == {
        "dataset": "iris",
        "model": {"kind": "linear"},
        "recipe": {"epochs": 1000, "log_every": 20, "scaling": "maxabs", "test_fraction": 0.2},
    }


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ("{dataset: irish, model: linear}", "unknown dataset 'irish': did you mean 'iris'?"),
        ("{modle: linear}", "unknown axis 'modle': did you mean 'model'?"),
        ("{dataset: iris}", "a claimed value needs a model"),
    ],
)
def test_a_claimed_value_must_name_a_cell(claim: str, message: str) -> None:
    text = f"{GOOD}  - {{cell: {claim}, metric: test_accuracy, value: 90, source: S}}\n"
    with pytest.raises(UserError, match=re.escape(message)):
        parse_table(text, "toy.yaml")


def epochs(cell: Cell) -> int:
    """Of a network, and of the one that it starts from."""
    if cell.model.after is None:
        return cell.recipe.epochs
    before = Cell(cell.table, {**cell.axes, "model": cell.model.after}, cell.reduced)
    return epochs(before) + cell.recipe.epochs


@pytest.mark.parametrize("name", [name for name in table_names() if load_table(name).budget])
def test_what_hours_allow_lies_between_minutes_and_the_whole(name: str) -> None:
    table = load_table(name)
    assert table.budget is not None
    assert table.budget.seeds <= table.seeds
    for budget in table.cells(reduced="budget"):
        quick, full = (Cell(table, budget.axes, less) for less in ("quick", None))
        assert len({quick.key, budget.key, full.key}) == 3
        assert epochs(quick) < epochs(budget) < epochs(full)
        assert (budget.recipe.train_samples, budget.recipe.test_samples) == (None, None)


def test_a_reduced_cell_is_another_trial() -> None:
    table = load_table("uci")
    full, reduced = next(table.cells()), next(table.cells(reduced="quick"))
    assert reduced.reduced
    assert reduced.recipe.epochs == 100
    assert full.trial_key(0) != reduced.trial_key(0)
    assert not next(load_table("xor").cells(reduced="quick")).reduced


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ({"dataset": ("whine",)}, "unknown dataset 'whine': did you mean 'wine'?"),
        ({"datasets": ("wine",)}, "unknown axis 'datasets': did you mean 'dataset'?"),
        ({"init_scale": ("7",)}, "unknown init_scale '7'"),
    ],
)
def test_an_unknown_cell_is_named_with_its_near_match(
    only: dict[str, tuple[str, ...]], message: str
) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        list(load_table("uci").cells(only))
