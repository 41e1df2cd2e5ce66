"""The parameter groups of ReLinear: of a model, of groups made by others, and as a summary."""

import re

import pytest
import torch
from torch import nn
from torch.optim import SGD

from qcore import LinearSchedule, QuadraticLinear, ReLinear, ReZero


def names_by_group(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["relinear"]: [names[id(p)] for p in group["params"]] for group in groups}


def test_groups_hold_every_parameter_once_by_its_kind(quadratic_net):
    model = quadratic_net()
    assert names_by_group(model, ReLinear().param_groups(model, lr=0.1)) == {
        "linear": ["0.weight", "0.bias", "2.r.weight", "2.r.bias", "4.l.weight", "4.l.bias"],
        "g": ["2.g.weight", "2.g.bias"],
        "b": ["2.b.weight", "2.b.bias", "4.q.triangle"],
    }


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("compact", {"linear": ["r.weight", "r.bias"], "b": ["b.weight", "b.bias"]}),
        ("product", {"g": ["r.weight", "g.weight"]}),
        ("product_linear", {"linear": ["l.weight"], "g": ["r.weight", "g.weight"]}),
        ("qres", {"linear": ["r.weight", "c.bias"], "g": ["g.weight"]}),
        ("squared_output", {"g": ["r.weight", "r.bias"]}),
        ("squared_input", {"b": ["b.weight"]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_groups_of_other_neurons_and_no_empty_group(name, kinds):
    model = QuadraticLinear(4, 3, neuron=name)
    assert names_by_group(model, ReLinear().param_groups(model, lr=0.1)) == kinds


def test_frozen_parameters_are_left_out(quadratic_net):
    model = quadratic_net()
    model[2].requires_grad_(False)
    groups = ReLinear().param_groups(model, lr=0.1)
    assert names_by_group(model, groups)["b"] == ["4.q.triangle"]
    assert "g" not in names_by_group(model, groups)


def test_groups_show_the_common_rate_and_weight_decay(quadratic_net):
    groups = ReLinear((0.5, 0.25)).param_groups(quadratic_net(), lr=0.2, weight_decay=0.01)
    assert [(g["relinear"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("linear", 0.2, 0.01),
        ("g", 0.2, 0.01),
        ("b", 0.2, 0.01),
    ]


def test_the_gate_of_rezero_trains_at_the_full_rate():
    model = nn.Sequential(ReZero(QuadraticLinear(4, 4)))
    groups = ReLinear(1e-3).param_groups(model, lr=0.1)
    assert names_by_group(model, groups) == {
        "linear": ["0.gate", "0.branch.r.weight", "0.branch.r.bias"],
        "g": ["0.branch.g.weight", "0.branch.g.bias"],
        "b": ["0.branch.b.weight", "0.branch.b.bias"],
    }


# --- groups of others ---


def test_layer_decay_groups_are_split_and_keep_all_their_keys(quadratic_net):
    model = quadratic_net()
    layer_decay = [  # as timm makes them
        {"params": [model[0].weight], "lr_scale": 0.25, "weight_decay": 0.05},
        {"params": iter([model[0].bias]), "lr_scale": 0.25, "weight_decay": 0.0, "extra": "kept"},
        {"params": model[2].parameters(), "lr_scale": 0.5, "weight_decay": 0.05, "lr": 0.01},
        {"params": model[4]["q"].triangle, "lr_scale": 1.0},
    ]
    groups = ReLinear(0.5).param_groups(model, lr=0.1, weight_decay=0.02, groups=layer_decay)
    shown = [
        (g["relinear"], g["lr"], g["lr_scale"], g["weight_decay"], len(g["params"])) for g in groups
    ]
    assert shown == [
        ("linear", 0.1, 0.25, 0.05, 1),
        ("linear", 0.1, 0.25, 0.0, 1),
        ("linear", 0.01, 0.5, 0.05, 2),
        ("g", 0.01, 0.5, 0.05, 2),
        ("b", 0.01, 0.5, 0.05, 2),
        ("b", 0.1, 1.0, 0.02, 1),
    ]
    assert [g.get("extra") for g in groups] == [None, "kept", None, None, None, None]
    assert [id(p) for g in groups for p in g["params"]] == [
        id(p) for p in [*model[0].parameters(), *model[2].parameters(), model[4]["q"].triangle]
    ]


def test_names_of_parameters_stay_with_them(quadratic_net):
    model = quadratic_net()
    by_name = {"params": list(model.named_parameters()), "lr": 0.1}
    first = SGD(ReLinear().param_groups(model, lr=0.1, groups=[by_name]))
    again = SGD(ReLinear().param_groups(model, lr=0.1, groups=first.param_groups))
    names = dict(model.named_parameters())
    for optimizer in (first, again):
        pairs = [
            pair
            for group in optimizer.param_groups
            for pair in zip(group["param_names"], group["params"], strict=True)
        ]
        assert {name: id(p) for name, p in pairs} == {name: id(p) for name, p in names.items()}


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [(nn.Parameter(torch.zeros(2)), "Parameter"), ({"lr": 0.1}, "dict")],
    ids=["parameter", "no params"],
)
def test_what_is_no_parameter_group_is_refused(wrong, kind, quadratic_net):
    text = (
        f"groups holds a {kind} that is no parameter group: give dictionaries with the key "
        "'params', as to a torch optimiser"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        ReLinear().param_groups(quadratic_net(), lr=0.1, groups=[wrong])


# --- summary ---


def test_summary_shows_every_parameter_with_its_part_and_next_rate():
    model = nn.Sequential(nn.Linear(4, 4), ReZero(QuadraticLinear(4, 3, neuron="product_linear")))
    model[0].bias.requires_grad_(False)
    strategy = ReLinear(
        LinearSchedule(0.0, 1.0, steps=2), alpha=0.9, beta=(0.5, 1.0), weight_decay="published"
    )
    groups = strategy.param_groups(model, lr=0.1, weight_decay=1e-4)
    optimizer = strategy.attach(SGD(groups))
    optimizer.step()
    factor = "LinearSchedule(start=0.0, end=1.0, steps=2)"
    assert strategy.summary(model, optimizer).splitlines() == [
        f"ReLinear(gamma=({factor}, {factor}), alpha=(0.9, 0.9), beta=(0.5, 1), "
        "weight_decay='published'), 1 steps taken",
        "parameter          part    learning rate  weight decay  alpha  beta",
        "0.weight           linear  0.1            0.0001        -      -",
        "0.bias             -       -              -             -      -",
        "1.gate             linear  0.1            0.0001        -      -",
        "1.branch.r.weight  g       0.05           0.0001        -      -",
        "1.branch.g.weight  g       0.05           0.0001        0.9    0.5",
        "1.branch.l.weight  linear  0.1            0.0001        -      -",
    ]
