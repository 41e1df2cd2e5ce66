"""Controls that are made as large as a quadratic model: the least width that has its parameters."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qbench.architecture import ModelSpec
from qbench.build import build_model, hidden_widths

FORMS: list[dict[str, Any]] = [
    {"kind": "dense"},
    {"kind": "dense", "affine": True},
    {"kind": "low_rank", "rank": 1},
    {"kind": "low_rank", "rank": 4, "signed": True},
    {"kind": "low_rank", "rank": 10, "affine": True},
]


def parameters(spec: ModelSpec, shape: tuple[int, ...], classes: int) -> int:
    model = build_model(spec, shape, classes, 1.0, seed=0)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", FORMS)
@given(features=st.integers(1, 40), classes=st.integers(2, 10))
def test_it_has_the_parameters_of_the_form_and_a_neuron_less_has_not(
    form: dict[str, Any], bias: bool, features: int, classes: int
) -> None:
    wanted = parameters(ModelSpec.model_validate(form), (features,), classes)
    spec = ModelSpec(kind="mlp", hidden=(1,), bias=bias, as_large_as=form)
    (width,) = hidden_widths(spec, features, classes)
    assert parameters(spec, (features,), classes) >= wanted
    if width > 1:
        narrower = ModelSpec(kind="mlp", hidden=(width - 1,), bias=bias)
        assert parameters(narrower, (features,), classes) < wanted


@given(features=st.integers(1, 30), widths=st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_it_has_the_parameters_of_the_same_layers_of_another_neuron(
    features: int, widths: list[int]
) -> None:
    quadratic = ModelSpec(kind="mlp", hidden=tuple(widths), neuron="quadratic")
    plain = ModelSpec(kind="mlp", hidden=tuple(widths), as_large_as="quadratic")
    wider = hidden_widths(plain, features, 3)
    assert parameters(plain, (features,), 3) >= parameters(quadratic, (features,), 3)
    assert all(now >= before for now, before in zip(wider, widths, strict=True))


def test_behind_a_convolution_both_have_the_same_one() -> None:
    convolution = {"channels": 8, "kernel": 5, "stride": 3}
    form = ModelSpec(kind="low_rank", rank=4, convolution=convolution)
    spec = ModelSpec(
        kind="mlp",
        hidden=(1,),
        as_large_as={"kind": "low_rank", "rank": 4},
        convolution=convolution,
    )
    shape = (1, 28, 28)
    assert hidden_widths(spec, 512, 10) == (40,)
    theirs, ours = parameters(form, shape, 10), parameters(spec, shape, 10)
    assert theirs == 8 * 26 + 10 * 4 * 512
    assert ours == 8 * 26 + 40 * 513 + 10 * 41
    names = [name for name, _ in build_model(spec, shape, 10, 1.0, seed=0).named_children()]
    assert len(names) == 6  # convolution, ReLU, flatten, hidden, ReLU, output


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "linear"},
        {"kind": "mlp", "hidden": (4,)},
        {"kind": "dense", "convolution": {"channels": 8, "kernel": 5}},
        {"kind": "low_rank", "rank": 2, "recipe": {"lr": 0.1}},
        {"kind": "low_rank", "rank": 2, "start": {"weight": [0.0]}},
    ],
)
def test_only_a_classifier_by_itself_says_how_large(other: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="as_large_as: a classifier is kind dense or low_ra"):
        ModelSpec(kind="mlp", hidden=(1,), as_large_as=other)


def test_what_it_is_as_large_as_is_part_of_what_it_is() -> None:
    spec = ModelSpec(kind="mlp", hidden=(1,), as_large_as=FORMS[2])
    assert spec.model_dump(mode="json", exclude_defaults=True) == {
        "kind": "mlp",
        "hidden": [1],
        "as_large_as": {"kind": "low_rank", "rank": 1},
    }
