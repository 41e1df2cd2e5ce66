"""The catalogue, and what makes a neuron valid."""

import copy
import pickle
import re
from dataclasses import FrozenInstanceError

import pytest

import qcore
from qcore import CATALOGUE, Branch, Neuron, get_neuron

X = Branch()
SQUARE = Branch("x2")
FORM = Branch("form")
ONE = Branch("one")
EVERY_NEURON = pytest.mark.parametrize("neuron", CATALOGUE.values(), ids=CATALOGUE)


def neuron(branches, terms, reference=None):
    return Neuron("mine", branches, terms, reference, "a test")


# Formulas with and without bias, and the reference, of every neuron.
TABLE = {
    "quadratic": (
        "(w_r x + b_r)(w_g x + b_g) + w_b x² + c",
        "(w_r x)(w_g x + 1) + w_b x²",
        "r",
    ),
    "compact": ("w_r x + b_r + w_b x² + c", "w_r x + w_b x²", "r"),
    "product": ("(w_r x)(w_g x)", "(w_r x)(w_g x)", None),
    "product_linear": ("(w_r x)(w_g x) + w_l x", "(w_r x)(w_g x) + w_l x", "l"),
    "qres": ("(w_r x)(w_g x) + w_r x + b", "(w_r x)(w_g x) + w_r x", "r"),
    "squared_output": ("(w x + b)²", "(w x)²", None),
    "squared_input": ("w x²", "w x²", None),
    "bilinear": ("xᵀ W x + w x + b", "xᵀ W x + w x", "l"),
    "linear": ("w x + b", "w x", "r"),
}


def test_the_catalogue_has_the_nine_neurons_in_order():
    assert list(CATALOGUE) == list(TABLE)
    assert all(name == entry.name for name, entry in CATALOGUE.items())


@pytest.mark.parametrize("name", TABLE)
def test_formula_with_and_without_bias_and_reference(name):
    formula, without_bias, reference = TABLE[name]
    entry = get_neuron(name)
    assert entry.formula == formula
    assert entry.without_bias().formula == without_bias
    assert entry.reference == entry.without_bias().reference == reference


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("quadratic", "(w_r x + b_r)(w_g x/rms(x) + b_g) + w_b x²/rms(x²) + c"),
        ("compact", "w_r x + b_r + w_b x²/rms(x²) + c"),
        ("product", "(w_r x/rms(x))(w_g x/rms(x))"),
        ("squared_output", "(w x/rms(x) + b)²"),
        ("squared_input", "w x²/rms(x²)"),
        ("bilinear", "xᵀ W x/rms(x)² + w x + b"),
        ("linear", "w x + b"),
    ],
)
def test_a_normalised_formula_has_the_norm_where_it_is_taken(name, formula):
    assert get_neuron(name).normalised_formula == formula


@EVERY_NEURON
def test_a_norm_is_all_that_is_added_to_a_formula(neuron):
    factors = [letter for term in neuron.terms for letter in dict.fromkeys(term)]
    taken = sum(letter in neuron.quadratic for letter in factors)
    assert neuron.normalised_formula.count("/rms(") == taken
    assert re.sub(r"/rms\(x²?\)²?", "", neuron.normalised_formula) == neuron.formula


@EVERY_NEURON
def test_every_neuron_names_its_source(neuron):
    assert neuron.source


ZERO_AT_REFERENCE = {
    "quadratic": ("g", "b"),
    "compact": ("b",),
    "product_linear": ("g",),
    "qres": ("g",),
    "bilinear": ("q",),
    "linear": (),
}


@pytest.mark.parametrize("name", ZERO_AT_REFERENCE)
def test_letters_that_are_zero_at_the_reference(name):
    assert CATALOGUE[name].zero_at_reference == ZERO_AT_REFERENCE[name]


def test_one_factor_is_zero_even_where_the_other_stands_in_a_term_of_its_own():
    branches = {"r": X, "g": X, "l": X}
    entry = neuron(branches, (("g", "l"), ("g",), ("r",)), "r")
    assert entry.zero_at_reference == ("g",)


def test_the_catalogue_is_read_only():
    with pytest.raises(TypeError, match="does not support item assignment"):
        CATALOGUE["quadratic"] = CATALOGUE["linear"]
    with pytest.raises(TypeError, match="does not support item deletion"):
        del CATALOGUE["quadratic"]


def test_a_neuron_is_read_only_and_keeps_its_own_branches():
    branches = {"r": X}
    entry = neuron(branches, (("r",),))
    branches["g"] = X
    assert list(entry.branches) == ["r"]
    with pytest.raises(FrozenInstanceError):
        entry.name = "other"
    with pytest.raises(TypeError, match="does not support item assignment"):
        entry.branches["g"] = X


@EVERY_NEURON
@pytest.mark.parametrize(
    "round_trip",
    [lambda entry: pickle.loads(pickle.dumps(entry)), copy.deepcopy, copy.copy],  # noqa: S301
    ids=["pickle", "deepcopy", "copy"],
)
def test_a_neuron_survives(neuron, round_trip):
    assert round_trip(neuron) == neuron


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("quadratc", "did you mean 'quadratic'? "),
        ("Compact", "did you mean 'compact'? "),
        ("square_input", "did you mean 'squared_input'? "),
        ("xyz", ""),
    ],
)
@pytest.mark.parametrize(
    "look_up",
    [get_neuron, lambda name: qcore.QuadraticLinear(2, 2, neuron=name)],
    ids=["get_neuron", "QuadraticLinear"],
)
def test_an_unknown_name_is_refused_with_a_near_match(name, hint, look_up):
    text = f"unknown neuron {name!r}: {hint}The catalogue has {', '.join(CATALOGUE)}"
    text += "; one of your own is given as a qcore.Neuron"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        look_up(name)


def test_another_lift_is_refused():
    text = "lift='x3' is not allowed: choose from x, x2, form, one"
    with pytest.raises(ValueError, match=text):
        Branch("x3")


@pytest.mark.parametrize(
    ("branches", "terms", "text"),
    [
        pytest.param({}, (), "neuron 'mine' has no terms: give at least one", id="no terms"),
        pytest.param(
            {"r": X},
            (("r", "g"),),
            "neuron 'mine': term ('r', 'g') names 'g', but the branches are ['r']",
            id="unknown letter",
        ),
        pytest.param({"r": X}, (("r",), ()), "term () has 0 factors and degree 0", id="empty"),
        pytest.param(
            {"r": X, "g": X, "l": X},
            (("r", "g", "l"),),
            "term ('r', 'g', 'l') has 3 factors and degree 3; a quadratic neuron has terms of one "
            "or two factors and degree at most 2",
            id="cubic",
        ),
        pytest.param(
            {"r": X, "b": SQUARE}, (("r", "b"),), "2 factors and degree 3", id="linear times square"
        ),
        pytest.param(
            {"r": X, "q": FORM}, (("r", "q"),), "2 factors and degree 3", id="linear times form"
        ),
        pytest.param(
            {"r": X, "c": ONE}, (("r", "r", "c"),), "3 factors and degree 2", id="three factors"
        ),
        pytest.param(
            {"r": X, "g": X},
            (("r",),),
            "neuron 'mine': no term uses branch 'g'; name it in a term or leave it out",
            id="unused branch",
        ),
    ],
)
def test_invalid_terms_are_refused(branches, terms, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        neuron(branches, terms)


@pytest.mark.parametrize(
    ("branches", "terms", "reference"),
    [
        pytest.param({"r": X, "g": X}, (("r", "g"),), "r", id="product vanishes"),
        pytest.param({"r": X}, (("r",),), "l", id="no such branch"),
        pytest.param({"r": X}, (("r", "r"), ("r",)), "r", id="its own square remains"),
        pytest.param({"b": SQUARE}, (("b",),), "b", id="not linear"),
        pytest.param({"r": X, "g": Branch(offset=2.0)}, (("r", "g"),), "r", id="twice as large"),
        pytest.param({"r": X, "g": Branch(offset=1.0)}, (("r", "g"), ("r",)), "r", id="twice"),
    ],
)
def test_a_reference_that_is_not_what_remains_is_refused(branches, terms, reference):
    text = (
        f"neuron 'mine': reference '{reference}' is not what remains when the quadratic "
        "parameters are 0; use reference=None or change the terms"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        neuron(branches, terms, reference)


def test_a_cost_of_no_rank_is_refused():
    with pytest.raises(ValueError, match=r"^rank=0 is not allowed: a form has at least one factor"):
        CATALOGUE["bilinear"].cost(4, rank=0)
