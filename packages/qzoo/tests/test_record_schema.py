"""Any change of a record gives a record that survives its file, or one sentence."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qzoo
from qzoo.index import FOLDER, RECORD_TYPE, index_content, read_index, read_records

ROWS = json.loads((FOLDER / "index.json").read_bytes())

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["../x", "a\nb", "\x1b[0m", "qresnet20", "float16", "NaN"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


def containers(data):
    """Every list and mapping of a record that holds something, outermost first."""
    if not isinstance(data, dict | list) or not data:
        return []
    inner = data.values() if isinstance(data, dict) else data
    return [data, *(found for value in inner for found in containers(value))]


@st.composite
def changed_rows(draw):
    """A row of the package's index of which a few places are something else, gone, or new."""
    row = copy.deepcopy(draw(st.sampled_from(ROWS)))
    for _ in range(draw(st.integers(0, 3))):
        if not row:
            break
        place = draw(st.sampled_from(containers(row)))
        key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        what = draw(st.sampled_from(["another value", "gone", "new"]))
        if what == "another value":
            place[key] = draw(VALUES)
        elif what == "gone":
            del place[key]
        elif isinstance(place, dict):
            place[draw(st.text(max_size=6))] = draw(VALUES)
        else:
            place.append(draw(VALUES))
    return row


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("index")


def attempted(make):
    """What was made, or None and the sentence that refused it."""
    try:
        return make(), ""
    except qzoo.WeightsError as error:
        return None, str(error)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(changed_rows())
def test_a_changed_row_survives_its_file_or_is_refused_in_one_sentence(place, row):
    path = place / "index.json"
    # as Python writes JSON: with NaN and Infinity, which are none
    path.write_bytes(json.dumps([row]).encode())
    rows, said = attempted(lambda: read_index(place))
    assert said.isprintable()
    assert bool(said) == (rows is None)
    if rows is None:
        assert said.startswith(f"{path}: ")
        return
    content = index_content(rows)
    json.loads(content, parse_constant=pytest.fail)
    path.write_bytes(content)
    assert read_index(place) == rows
    ((name, record),) = rows.items()
    assert record.filename == f"{name}.safetensors"
    assert (place / record.filename).parent == place
    path.write_text(record.model_dump_json(), encoding="utf-8")
    assert read_records(path, RECORD_TYPE) == record


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=40), st.integers(0, len(json.dumps(ROWS))))
def test_an_index_that_was_cut_or_overwritten(place, inserted, start):
    content = json.dumps(ROWS).encode()
    path = place / "index.json"
    path.write_bytes(content[:start] + inserted)
    rows, said = attempted(lambda: read_index(place))
    assert said.isprintable()
    assert rows is not None or said.startswith(f"{path}: ")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [{"x": -float("inf")}]])
def test_a_recipe_with_numbers_that_are_none(place, value):
    (place / "index.json").write_text(json.dumps([{**ROWS[0], "recipe": {"lr": value}}]))
    rows, said = attempted(lambda: read_index(place))
    assert rows is None
    assert said.endswith(
        "recipe: Value error, a number in it is not finite, which JSON cannot hold"
    )


def test_an_index_that_is_nothing_but_deep(place):
    (place / "index.json").write_text("[" * 100_000)
    rows, said = attempted(lambda: read_index(place))
    assert rows is None
    assert said.startswith(f"{place / 'index.json'}: all of it: Invalid JSON: recursion limit exc")


def test_the_packages_own_rows_are_records():
    assert [row.model_dump(mode="json") for row in read_index(FOLDER).values()] == ROWS
