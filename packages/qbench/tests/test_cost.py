"""What a table costs: counts that follow from the models, and rates that this machine has."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from qbench.architecture import ModelSpec
from qbench.build import build_model
from qbench.catalogue import DATASETS
from qbench.cost import (
    A100,
    Rates,
    TableCost,
    calibrate,
    calibration_path,
    cell_cost,
    known_rates,
    multiply_adds,
    stored_costs,
    table_cost,
)
from qbench.errors import UserError
from qbench.table import load_table, table_names


@pytest.mark.parametrize("name", table_names())
def test_the_stored_cost_of_a_table_is_what_is_counted(name: str) -> None:
    stored, counted = stored_costs()[name], table_cost(load_table(name))
    assert stored.model_dump() == pytest.approx(counted.model_dump()), (
        "tables/costs.json is not of these tables: write it anew with python -m qbench.cost"
    )


def test_no_cost_is_stored_for_a_table_that_is_not_there() -> None:
    assert list(stored_costs()) == table_names()


@pytest.mark.parametrize(
    ("spec", "dataset"),
    [
        (ModelSpec(kind="linear"), "mnist"),
        (ModelSpec(kind="mlp", hidden=(50, 20), bias=False), "mnist"),
        (ModelSpec(kind="linear", convolution={"channels": 4, "kernel": 5, "stride": 3}), "fmnist"),
        (ModelSpec(kind="mlp", hidden=(8, 8), neuron="quadratic"), "digits"),
        (
            ModelSpec(
                kind="mlp",
                hidden=(1,),
                as_large_as={"kind": "low_rank", "rank": 4},
                convolution={"channels": 4, "kernel": 5, "stride": 3},
            ),
            "fmnist",
        ),
        (ModelSpec(kind="zoo", name="cifar_resnet{depth}", depth=20), "cifar10"),
        (ModelSpec(kind="zoo", name="qresnet20", options={"depths": [1, 1, 1]}), "digits32"),
        (ModelSpec(kind="zoo", name="cifar_resnet20", quadratize="compact"), "digits32"),
    ],
)
def test_counted_multiply_adds_are_those_that_torch_counts(spec: ModelSpec, dataset: str) -> None:
    info = DATASETS[dataset]
    model = build_model(spec, info.shape, info.classes, 1.0, seed=0).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *info.shape))
    # torch counts matrix products and convolutions; products of branches are a per mille beside
    assert multiply_adds(spec, dataset) == pytest.approx(counter.get_total_flops() / 2, rel=0.02)


def test_a_low_rank_form_costs_its_factors_and_their_squares() -> None:
    assert multiply_adds(ModelSpec(kind="low_rank", rank=3), "mnist") == 10 * 3 * (784 + 1)
    dense = multiply_adds(ModelSpec(kind="dense"), "digits")
    assert dense == 10 * (64 * 65 // 2 + 64)


def test_a_dense_form_on_too_many_features_is_refused_before_anything_trains() -> None:
    spec = ModelSpec(kind="dense", convolution={"channels": 16, "kernel": 3, "stride": 2})
    said = (
        r"^a dense form on 2704 features has 36571600 parameters, and 1024 features are the most: "
        "choose a low-rank form, or a convolution with a larger stride or fewer channels$"
    )
    with pytest.raises(UserError, match=said):
        multiply_adds(spec, "fmnist")
    with pytest.raises(UserError, match=said):
        build_model(spec, (1, 28, 28), 10, 1.0, seed=0)
    multiply_adds(spec.model_copy(update={"kind": "low_rank", "rank": 1}), "fmnist")


def test_the_cost_of_a_cell_grows_with_what_it_does() -> None:
    (small,) = load_table("rank").cells({"dataset": ("mnist",), "model": ("rank1",)})
    (large,) = load_table("rank").cells({"dataset": ("mnist",), "model": ("rank10",)})
    one, ten = cell_cost(small, 1), cell_cost(small, 10)
    assert ten.forms == 10 * one.forms
    assert ten.steps == one.steps == 5 * 600  # side by side
    assert (ten.trials, one.trials) == (10, 1)
    assert cell_cost(large, 1).forms == 10 * one.forms
    # three passes over the training images in each of 5 epochs, and 10 measurements of the test
    assert one.forms == 10 * 785 * (3 * 5 * 60_000 + 10 * 10_000)
    (quick,) = load_table("rank").cells(
        {"dataset": ("mnist",), "model": ("rank1",)}, reduced="quick"
    )
    assert cell_cost(quick, 1).forms < one.forms / 20
    (deep,) = load_table("collapse").cells({"depth": ("16",), "model": ("linear",), "lr": ("0.1",)})
    assert cell_cost(deep, 10).steps == 30 * 15 * 16  # epochs, batches, layers


def test_hours_add_computing_and_steps() -> None:
    cost = TableCost(forms=3.6e12, networks=7.2e12, steps=1e6, trials=360)
    assert cost.hours(Rates(forms=1e9, networks=2e9, step=1e-3)) == pytest.approx(
        1 + 1 + 1000 / 3600 + 0.01
    )
    assert cost.hours(A100) < 0.2


def test_a_calibration_is_kept_for_the_machine_that_it_was_made_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert known_rates() is None
    rates = calibrate()
    assert known_rates() == rates
    assert 1e8 < rates.networks < 1e14
    assert 1e-6 < rates.step < 1
    kept = json.loads(calibration_path().read_text())
    assert kept["cores"] == os.cpu_count()
    calibration_path().write_text(json.dumps({**kept, "cores": kept["cores"] + 1}))
    assert known_rates() is None
    calibration_path().write_text("{")
    assert known_rates() is None


def test_a_home_that_cannot_be_written_to_costs_nothing_but_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = tmp_path / "home"
    blocker.write_text("")
    monkeypatch.setenv("HOME", str(blocker))
    assert calibrate().forms > 0
    assert known_rates() is None
