"""Table files that are wrong in bad ways: one sentence each, at once, and nothing is written."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qbench
import qzoo  # noqa: F401 - seconds, which are no part of reading a table
from qbench.errors import UserError
from qbench.safe_yaml import MOST_LEVELS, MOST_VALUES
from qbench.table import MOST_CELLS, parse_table

GOOD = """
id: toy
version: 1
title: A toy
paper: arXiv 0000.00000
shows: Table 1
main_metric: test_accuracy
grid:
  dataset: [iris, digits32]
  model:
    rank1: {kind: low_rank, rank: 1}
    network: {kind: zoo, name: qresnet20}
    tuned: {kind: zoo, name: qresnet20, after: network}
recipe: {lr: 0.01, epochs: 10, test_fraction: 0.2}
without: [{dataset: iris, model: network}, {dataset: iris, model: tuned}]
unstated:
  scaling: {default: maxabs, also: [raw], why: not stated}
seeds: 2
"""


def refused(content: str | bytes) -> str:
    """What is said of a table; within a second of the processor, on one line."""
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        parse_table(content, "toy.yaml")
    assert time.process_time() - began < 1.0
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 2000
    return said


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def test_the_table_that_the_others_are_made_of_is_good() -> None:
    assert len(list(parse_table(GOOD, "toy.yaml").cells())) == 4


def bomb(levels: int, link: str) -> str:
    """Each level stands for ten of the one below it."""
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, levels + 1):
        lines.append(f"a{level}: &a{level} {link.format(', '.join([f'*a{level - 1}'] * 10))}")
    return "\n".join(lines)


@pytest.mark.parametrize("link", ["[{}]", "{{<<: [{}]}}"], ids=["lists", "merged mappings"])
def test_aliases_that_stand_for_billions_of_values_are_not_followed(link: str) -> None:
    assert refused(bomb(40, link)) == (
        "toy.yaml, line 6: up to here there are more than 100,000 values, with all that aliases "
        "stand for: no table needs that"
    )


@pytest.mark.parametrize("wrapped", ["options: {{x: {}}}", "start: {{x: {}}}"])
def test_a_bomb_in_a_field_that_takes_anything(wrapped: str) -> None:
    text = changed("name: qresnet20}", "name: qresnet20, " + wrapped.format("*a9") + "}")
    assert "more than 100,000 values" in refused(bomb(9, "[{}]") + text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]", "toy.yaml, line 1: *a stands inside of what it names: write out what is"),
        ("a: &a {b: {c: *a}}", "toy.yaml, line 1: *a stands inside of what it names: write out"),
        ("[" * 100_000, "toy.yaml, line 1: lists and mappings stand more than 50 deep in one ano"),
        ("{a: " * 51, "toy.yaml, line 1: lists and mappings stand more than 50 deep in one anot"),
        ("- 1\n" * (MOST_VALUES + 1), "toy.yaml, line 100000: up to here there are more than 100"),
        ("a: *b", "toy.yaml is not YAML: found undefined alias in line 1"),
        ("a: 1\n---\nb: 2", "toy.yaml is not YAML: found another document in line 2"),
        ("? [a]\n: 1", "toy.yaml is not YAML: found unhashable key in line 1"),
        ("a: !!python/name:os.system x", "toy.yaml, line 1: the tag 'tag:yaml.org,2002:python/n"),
        ("a: !!timestamp x", "toy.yaml, line 1: the tag 'tag:yaml.org,2002:timestamp' is not all"),
        ("a: !secret x", "toy.yaml, line 1: the tag '!secret' is not allowed: write plain text, n"),
        ("seeds: " + "9" * 5000, "toy.yaml has a number that none can be: Exceeds the limit"),
        (b"title: caf\xe9", "toy.yaml is not UTF-8 at byte 10: save it as UTF-8"),
        (b"\x80\x04K\x01.", "toy.yaml is not UTF-8 at byte 0: save it as UTF-8"),
        ("a: \x1b[31m", "toy.yaml is not YAML: unacceptable character #x001b: "),
        (changed("seeds: 2", 'seeds: 2\n"x\\e[31m\\ny": 1'), "unknown key 'x\\x1b[31m\\ny': "),
        (changed("seeds: 2", f"seeds: 2\n{'k' * 1000}: 1"), f"unknown key '{'k' * 80}…': "),
        ("", "toy.yaml: Input should be a valid dictionary or instance of Table"),
        ("[]", "toy.yaml: Input should be a valid dictionary or instance of Table"),
        (changed("seeds: 2", "seeds: 2\nseeds: 3"), "line 19: the key 'seeds' stands there a seco"),
        (changed("{lr: 0.01", "{lr: 0.01, lr: 0.1"), "line 14: the key 'lr' stands there a secon"),
    ],
)
def test_yaml_that_is_no_table(text: str | bytes, message: str) -> None:
    assert message in refused(text)


def test_levels_are_counted_to_the_last() -> None:
    def deep(levels: int) -> str:
        inner = "[" * (levels - 5) + "]" * (levels - 5)
        return changed("name: qresnet20}", f"name: qresnet20, start: {{x: {inner}}}}}")

    parse_table(deep(MOST_LEVELS), "toy.yaml")
    assert "more than 50 deep" in refused(deep(MOST_LEVELS + 1))


@pytest.mark.parametrize(
    "id_", ["../../x", "a/b", "/etc", "..", "a b", "a\\nb", "toy\\n", "\\0", "", "ö", "CON.x"]
)
def test_an_id_is_no_path(id_: str) -> None:
    said = refused(changed("id: toy", f'id: "{id_}"'))
    assert said.startswith("toy.yaml: id: String should match pattern '^[a-z][a-z0-9-]*$', and is ")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: 2", "seeds: true", "toy.yaml: seeds: true is no number, and as text it needs quo"),
        ("title: A toy", "title: false", "title: false is no number, and as text it needs quotes"),
        ("title: A toy", "title: [A toy]", "toy.yaml: title: Input should be a valid string"),
        ("seeds: 2", "seeds: 1.5", "toy.yaml: seeds: Input should be a valid integer, got a numb"),
        ("seeds: 2", "seeds: 1000000000000", "seeds: Input should be less than or equal to 10000"),
        ("seeds: 2", "seeds: .nan", "toy.yaml: seeds: Input should be a finite number"),
        ("lr: 0.01", "lr: .nan", "toy.yaml: recipe.lr: Input should be a finite number"),
        ("lr: 0.01", "lr: [0.01]", "toy.yaml: recipe.lr: Input should be a valid number"),
        ("lr: 0.01", "margin_weight: .inf", "recipe.margin_weight: Input should be a finite numb"),
        ("recipe: {lr", "control: {lr", "toy.yaml: control: Input should be a valid string"),
        ("[raw]", "raw", "toy.yaml: unstated.scaling.also: Input should be a valid tuple"),
        ("[raw]", "[.inf]", "unstated.scaling.also.0"),
        ("[raw]", "[[raw]]", "unstated.scaling.also.0"),
        ("[iris, digits32]", "[[iris], digits32]", "grid: dataset: ['iris'] is neither text nor"),
        ("[iris, digits32]", "iris", "toy.yaml: grid.dataset: Input should be a valid dictionary"),
        ("{kind: low_rank, rank: 1}", "low_rank", "grid.model.rank1: Input should be a valid dic"),
        ("  model:\n", "  other: 5\n  model:\n", "grid.other: Input should be a valid dictionary"),
        ("  model:\n", "  1: [2]\n  model:\n", "toy.yaml: grid: unknown axis '1': Allowed: opti"),
        ("  model:\n", "  lr: [[2]]\n  model:\n", "grid: lr: [2] is neither text nor a number"),
        ("  model:\n", "  lrr: [2]\n  model:\n", "grid: unknown axis 'lrr': did you mean 'lr'?"),
        ("why: not", "where: {modle: [1]}, why: not", "unknown axis 'modle': did you mean 'mode"),
        ("why: not", "where: {'': []}, why: not", "unknown axis ''"),
        (
            "why: not",
            "where: {dataset: []}, why: not",
            "where: dataset has no value, so that it is",
        ),
        (
            "why: not",
            "where: {dataset: [iriss]}, why: not",
            "unknown dataset 'iriss': did you mean",
        ),
        ("  scaling: {", "  model: {", "unstated: 'model' is an axis of the grid already"),
        ("seeds: 2", "seeds: 2\nclaims: [rank1]", "claims.0.value: Input should be a valid dicti"),
        ("seeds: 2", "seeds: 2\nclaims: [[]]", "toy.yaml: claims.0.value: Input should be a vali"),
        ("model: tuned}]", "model: tuned}, {}]", "toy.yaml: without: it leaves out every cell of"),
        ("seeds: 2", "seeds: 2\nfigures: [../x]", "toy.yaml: unknown figure '../x': Allowed: "),
        (
            "[iris, digits32]",
            "{iris: {model: {rnak: 2}}, digits32: {}}",
            "grid.dataset.iris: unknown field of a model 'rnak': did you mean 'rank'?",
        ),
        (
            "rank: 1",
            "rank: 1, on: {iris: {rank: 2, on: {digits32: {rank: 3}}}}",
            "grid.model.rank1: on: iris has 'on', which is the same on every dataset: put it besi",
        ),
        (
            "rank: 1",
            "rank: 1, on: {irish: {rank: 2}}",
            "toy.yaml: on of model 'rank1': unknown dataset 'irish': did you mean 'iris'? Allowe",
        ),
        (
            "name: qresnet20}",
            "name: qresnet20, after: tuned}",
            "after: model 'network' starts from tuned from network again: let one of them start f",
        ),
        (
            "name: qresnet20}",
            "name: qresnet20, quadratize: compact, norm: quadratic}",
            "after: model 'network' has a norm, and the zoo no such network, so that no weights ar",
        ),
        (
            "name: qresnet20}",
            "name: qresnet20, on: {digits32: {norm: quadratic, quadratize: compact}}}",
            "after: model 'network' has a norm, and the zoo no such network, so that no weights ar",
        ),
    ],
)
def test_a_wrong_type_or_an_unknown_name_is_said_where_it_stands(
    old: str, new: str, message: str
) -> None:
    assert message in refused(changed(old, new))


@pytest.mark.parametrize(
    "option", ["pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"]
)
def test_a_table_opens_no_file_of_weights(option: str) -> None:
    text = changed("name: qresnet20}", f"name: qresnet20, options: {{{option}: x.pth}}}}")
    assert refused(text) == (
        f"toy.yaml: grid.model.network: options: {option} is not for a table, in which weights are "
        "drawn or come from the model named by after: leave it out"
    )


@pytest.mark.parametrize("name", ["hf-hub:someone/x", "local-dir:/tmp/x", "../x"])
def test_a_network_is_a_registered_one(name: str) -> None:
    text = changed("name: qresnet20}", f'name: "{name}"}}')
    assert refused(text) == (
        f"toy.yaml: grid.model.network: name: '{name}' is no name of a registered network: give "
        "one of timm's or the zoo's, such as qresnet20"
    )


def test_on_needs_no_quotes_and_no_other_word_becomes_a_truth_value() -> None:
    table = parse_table(changed("rank: 1", "rank: 1, on: {iris: {rank: 2}}"), "toy.yaml")
    ranks = {cell.dataset: cell.model.rank for cell in table.cells({"model": ("rank1",)})}
    assert ranks == {"iris": 2, "digits32": 1}
    named = changed("title: A toy", "title: no").replace("rank1:", "off:")
    assert parse_table(named, "toy.yaml").title == "no"
    assert "off" in parse_table(named, "toy.yaml").grid.model
    assert parse_table(changed("title: A toy", "title: 2020-01-01"), "toy.yaml")


def test_as_many_cells_as_can_be_run_and_no_more() -> None:
    # each axis is small, and all of them together are not
    axes = "".join(f"  {axis}: [0, 0.1, 0.2, 0.3]\n" for axis in ("momentum", "weight_decay"))
    values = ", ".join(str(1 / (i + 1)) for i in range(200))
    text = changed("  model:\n", f"{axes}  init_scale: [{values}]\n  model:\n")
    assert refused(text) == (
        f"toy.yaml: table toy has 19,200 cells here, and {MOST_CELLS:,} are the most: take fewer "
        "values of an axis"
    )


@pytest.fixture
def with_table(tmp_path: Path) -> Path:
    """A copy of the package to which a test adds a table, for ``PYTHONPATH``."""
    source = Path(qbench.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, tmp_path / "copy" / "qbench", ignore=ignored)
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (["run", "toy"], "id: [", "toy.yaml is not YAML: did not find expected node content in l"),
        (["status"], "id: [", "toy.yaml is not YAML: did not find expected node content in line 2"),
        (["run", "toy"], GOOD.replace("id: toy", "id: t"), "toy.yaml: id: 't' is not the file's n"),
        (["list"], GOOD, "tables/costs.json has no toy: count what it costs with python -m qbench"),
        (
            ["run", "toy", "--only", "model=network"],
            GOOD.replace("name: qresnet20}", "name: qresnet21}"),
            "a table's model of network 'qresnet21' cannot be made for digits32: no model is named",
        ),
        (
            ["run", "toy", "--only", "model=rank1"],
            GOOD.replace("low_rank, rank: 1", "mlp, hidden: [4], neuron: quadratc"),
            "a table's model of kind mlp cannot be made for iris: ",
        ),
    ],
)
def test_the_command_line_says_it_in_a_sentence_and_writes_nothing(
    with_table: Path, tmp_path: Path, arguments: list[str], text: str, message: str
) -> None:
    (with_table / "qbench" / "tables" / "toy.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "here").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "qbench", *arguments],
        cwd=tmp_path / "here",
        env={**os.environ, "PYTHONPATH": str(with_table)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    # the first `list` of a machine says that it measures that
    assert done.stderr.splitlines()[-1].startswith(f"qbench: {message}")
    assert "Traceback" not in done.stderr
    assert done.stdout.strip() == ""  # where the bar would be is an empty line
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("name", ["../uci", "/etc/passwd", "tables/uci", "uci.yaml", ""])
def test_a_tables_name_is_no_path(tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qbench", "run", name, "--out", str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"qbench: unknown table {name!r}: ")
    assert not (tmp_path / "runs").exists()
