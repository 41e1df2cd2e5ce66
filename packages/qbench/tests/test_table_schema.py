"""Any change of any table's file gives a table or one sentence, and nothing else."""

import copy
import itertools
import json
from collections.abc import Callable
from functools import partial
from importlib import resources
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qbench.errors import UserError
from qbench.table import REDUCTIONS, Cell, Reduction, Table, parse_table, table_names

FILES = {
    name: yaml.safe_load(
        (resources.files("qbench") / "tables" / f"{name}.yaml").read_text(encoding="utf-8")
    )
    for name in table_names()
}

_WORDS = st.sampled_from(
    ["on", "after", "model", "dataset", "lr", "iris", "kind", "zoo", "sets", "where", "../x", "1"]
)
_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | _WORDS
)
VALUES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(_LEAVES.filter(lambda key: key == key), inner, max_size=3)
    ),
    max_leaves=6,
)


def containers(data: Any) -> list[Any]:
    """Every list and mapping in a file that holds something, outermost first."""
    if not isinstance(data, dict | list) or not data:
        return []
    inner = data.values() if isinstance(data, dict) else data
    return [data, *(found for value in inner for found in containers(value))]


@st.composite
def changed_files(draw: st.DrawFn) -> Any:
    """A table's file of which a few places have another value, are gone, or are new."""
    data = copy.deepcopy(FILES[draw(st.sampled_from(sorted(FILES)))])
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(containers(data)))
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys))
        what = draw(st.sampled_from(["another value", "gone", "new", "another name"]))
        if what == "another value":
            place[key] = draw(VALUES)
        elif what == "gone":
            del place[key]
        elif isinstance(place, list):
            place.append(draw(VALUES))
        elif what == "new":
            place[draw(_LEAVES)] = draw(VALUES)
        else:
            place[draw(_LEAVES)] = place.pop(key)
        if not data:
            break
    return data


def attempted(make: Callable[[], Any]) -> tuple[Any, str]:
    """What was made, or None and the sentence that refused it."""
    try:
        return make(), ""
    except UserError as error:
        return None, str(error)


def check(content: bytes) -> Table | None:
    """The table of a file, whose cells all have an identity; None where one sentence refuses it.

    What is wrong in few cells alone is refused when they are asked for.
    """
    table, said = attempted(lambda: parse_table(content, "toy.yaml"))
    assert said.isprintable()
    if table is None:
        assert said.startswith("toy.yaml")
        return None
    asked = [{}, *({axis: tuple(map(str, values))} for axis, values in table.axes.items())]
    for choices, reduced in itertools.product(asked, (None, *REDUCTIONS)):
        cells, said = attempted(partial(every_cell, table, choices, reduced))
        assert said.isprintable()
        assert cells or choices or reduced
        for cell in cells or ():
            assert len(cell.trial_key(0)) == 16
            json.dumps(cell.resolved, allow_nan=False)
            assert str(cell)
    return table


def every_cell(
    table: Table, choices: dict[str, tuple[str, ...]], reduced: Reduction | None
) -> list[Cell]:
    return list(table.cells(choices=choices, reduced=reduced))


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(changed_files())
def test_a_changed_file_is_a_table_or_one_sentence(data: Any) -> None:
    try:
        content = yaml.safe_dump(data, allow_unicode=True).encode("utf-8", "surrogatepass")
    except yaml.YAMLError:  # such as a key that sorts beside no other
        return
    check(content)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "ignore"))
)
def test_any_bytes_are_refused_in_one_sentence(content: bytes) -> None:
    assert check(content) is None


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_a_file_that_was_cut_or_overwritten(name: str, data: st.DataObject) -> None:
    path = resources.files("qbench") / "tables" / f"{name}.yaml"
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    check(content[:start] + data.draw(st.binary(max_size=4)) + content[start + 4 :])


@pytest.mark.parametrize("name", table_names())
def test_every_table_survives_the_way_through_python(name: str) -> None:
    # what the changes above are made to is what the file says
    again = check(yaml.safe_dump(FILES[name], allow_unicode=True).encode())
    assert again is not None
    assert again.id == name
