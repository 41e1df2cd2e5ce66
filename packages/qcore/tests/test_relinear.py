"""ReLinear: the reference point, the parameter groups, and γ inside each step."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR, MultiplicativeLR, OneCycleLR, StepLR

from qcore import (
    CATALOGUE,
    LowRankForm,
    Quadratic,
    QuadraticConv2d,
    QuadraticLinear,
    ReLinear,
    get_neuron,
)

DOUBLE = torch.float64
WITH_REFERENCE = {
    **{name: {"neuron": name} for name, neuron in CATALOGUE.items() if neuron.reference},
    "bilinear-rank2": {"neuron": "bilinear", "rank": 2},
}
WITHOUT_REFERENCE = [name for name, neuron in CATALOGUE.items() if not neuron.reference]
LAYERS = {
    "linear": lambda **options: (QuadraticLinear(4, 3, **options), torch.randn(6, 4)),
    "conv": lambda **options: (
        QuadraticConv2d(2, 3, 3, padding=1, **options),
        torch.randn(2, 2, 5, 5),
    ),
}
every_kind = pytest.mark.parametrize("kind", LAYERS)
every_reference = pytest.mark.parametrize("options", WITH_REFERENCE.values(), ids=WITH_REFERENCE)
with_and_without_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
attached_or_not = pytest.mark.parametrize("attached", [False, True], ids=["plain", "attached"])


def network(**options):
    """A small model with all three kinds of parameters."""
    return nn.Sequential(
        nn.Linear(4, 4),
        nn.Tanh(),
        QuadraticLinear(4, 4),
        nn.Tanh(),
        QuadraticLinear(4, 3, neuron="bilinear"),
        **options,
    ).to(DOUBLE)


def started(layer):
    """The layer, moved to its reference."""
    ReLinear().init_(layer)
    return layer


# --- the reference point ---


@every_kind
@every_reference
@with_and_without_bias
def test_at_the_reference_a_layer_is_its_linear_branch(kind, options, bias):
    layer, x = LAYERS[kind](**options, bias=bias)
    before = layer(x)
    started(layer)
    assert torch.equal(layer(x), layer.reference(x))
    if layer.quadratic_branches():
        assert not torch.allclose(before, layer(x))


@every_kind
@every_reference
@with_and_without_bias
def test_the_reference_branch_is_left_untouched(kind, options, bias):
    layer, _ = LAYERS[kind](**options, bias=bias)
    before = {name: p.clone() for name, p in layer.reference.named_parameters()}
    started(layer)
    assert before
    assert all(torch.equal(p, before[name]) for name, p in layer.reference.named_parameters())


def parameters_at_zero(branch):
    return [p for p in branch.parameters() if not p.any()]


@every_kind
@every_reference
@with_and_without_bias
def test_one_factor_of_each_quadratic_term_is_zero_and_receives_a_gradient(kind, options, bias):
    layer, x = LAYERS[kind](**options, bias=bias)
    started(layer)
    neuron = get_neuron(options["neuron"])
    for term in neuron.terms:
        quadratic = [k for k in term if k in neuron.quadratic]
        if quadratic:
            assert sum(bool(parameters_at_zero(layer[k])) for k in set(term)) == 1
    output = layer(x)
    (output * torch.randn_like(output)).sum().backward()
    for branch in layer.quadratic_branches().values():
        for parameter in parameters_at_zero(branch):
            assert parameter.grad.ne(0).any()


def test_of_a_signed_low_rank_form_the_signs_alone_become_zero():
    layer = QuadraticLinear(4, 3, neuron="bilinear", rank=2)
    factors = layer["q"].factors.clone()
    ReLinear().init_(layer)
    assert not layer["q"].signs.any()
    assert torch.equal(layer["q"].factors, factors)


def test_init_returns_the_model_and_reaches_every_layer_in_place():
    model = network()
    assert ReLinear().init_(model) is model
    x = torch.randn(5, 4, dtype=DOUBLE)
    linear = nn.Sequential(model[0], nn.Tanh(), model[2]["r"], nn.Tanh(), model[4]["l"])
    assert torch.equal(model(x), linear(x))


def refuses_and_changes_nothing(model, text):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        ReLinear().init_(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", WITHOUT_REFERENCE)
def test_a_neuron_without_reference_is_refused_and_nothing_changed(name):
    model = nn.Sequential(QuadraticLinear(4, 4), QuadraticLinear(4, 3, neuron=name))
    text = (
        f"layer '1' has neuron '{name}', which has no linear reference: "
        "choose one that has, e.g. 'quadratic', 'compact' or 'qres'"
    )
    refuses_and_changes_nothing(model, text)
    refuses_and_changes_nothing(model[1], text.replace("'1'", "'QuadraticLinear'"))


def test_a_low_rank_form_without_signs_is_refused_and_nothing_changed():
    form = Quadratic("bilinear", {"q": LowRankForm(4, 3, rank=2), "l": nn.Linear(4, 3)})
    refuses_and_changes_nothing(
        nn.Sequential(QuadraticLinear(4, 4), form),
        "layer '1' has a low-rank form without trainable signs, which receives no gradient at the "
        "linear reference: build it with signed=True",
    )


@pytest.mark.parametrize(
    "use",
    [ReLinear().init_, lambda model: ReLinear().param_groups(model, lr=0.1)],
    ids=["init_", "param_groups"],
)
def test_a_model_without_quadratic_layers_is_refused(use):
    model = nn.Linear(3, 2)
    text = (
        f"model ({type(model).__name__}) has no quadratic layers: build it from qcore's layers, "
        "e.g. qcore.QuadraticLinear"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        use(model)


def test_the_linear_control_trains_under_the_same_strategy_unchanged_by_it():
    model = QuadraticLinear(3, 2, neuron="linear")
    before = model["r"].weight.clone()
    strategy = ReLinear(gamma=1e-4)
    strategy.init_(model)
    (group,) = strategy.param_groups(model, lr=0.1)
    assert torch.equal(model["r"].weight, before)
    assert (group["relinear"], group["lr"], len(group["params"])) == ("linear", 0.1, 2)


# --- γ ---


@pytest.mark.parametrize(
    ("gamma", "text"),
    [
        (1.5, "gamma=1.5 for g is not allowed: choose from 0 (the linear network) to 1 (free)"),
        (-0.1, "gamma=-0.1 for g is not allowed: choose from 0 (the linear network) to 1 (free)"),
        (
            float("nan"),
            "gamma=nan for g is not allowed: choose from 0 (the linear network) to 1 (free)",
        ),
        (
            (0.5, 2.0),
            "gamma=2.0 for b is not allowed: choose from 0 (the linear network) to 1 (free)",
        ),
        (
            (0.1, 0.2, 0.3),
            "gamma=(0.1, 0.2, 0.3) is not allowed: give a number or a pair (g, b)",
        ),
    ],
    ids=["large", "negative", "nan", "pair", "triple"],
)
def test_gamma_outside_of_zero_to_one_is_refused(gamma, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        ReLinear(gamma=gamma)


@pytest.mark.parametrize(
    ("gamma", "text"),
    [(1, "ReLinear(gamma=(1, 1))"), ((1e-4, 0.5), "ReLinear(gamma=(0.0001, 0.5))")],
)
def test_print_shows_gamma(gamma, text):
    assert repr(ReLinear(gamma)) == text


# --- parameter groups ---


def names_by_group(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["relinear"]: [names[id(p)] for p in group["params"]] for group in groups}


def test_groups_hold_every_parameter_once_by_its_kind():
    model = network()
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


def test_frozen_parameters_are_left_out():
    model = network()
    model[2].requires_grad_(False)
    groups = ReLinear().param_groups(model, lr=0.1)
    assert names_by_group(model, groups)["b"] == ["4.q.triangle"]
    assert "g" not in names_by_group(model, groups)


@pytest.mark.parametrize(
    ("gamma", "rates"),
    [
        (0.25, {"linear": 0.2, "g": 0.05, "b": 0.05}),
        ((0.5, 0.25), {"linear": 0.2, "g": 0.1, "b": 0.05}),
    ],
    ids=["number", "pair"],
)
def test_rates_and_weight_decay_of_the_groups(gamma, rates):
    groups = ReLinear(gamma).param_groups(network(), lr=0.2, weight_decay=0.01)
    assert {group["relinear"]: group["lr"] for group in groups} == pytest.approx(rates)
    assert {group["weight_decay"] for group in groups} == {0.01}


# --- steps ---


def optimizer_for(model, strategy, attached, optimizer=SGD, lr=0.125, weight_decay=0.0, **options):
    made = optimizer(strategy.param_groups(model, lr, weight_decay), **options)
    return strategy.attach(made) if attached else made


GAMMAS = {"number": (0.25, (0.25, 0.25)), "pair": ((0.5, 0.0625), (0.5, 0.0625))}


@attached_or_not
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("gamma", "pair"), GAMMAS.values(), ids=GAMMAS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_step_is_gamma_times_the_plain_step(attached, momentum, gamma, pair, weight_decay):
    model = network()
    lr = 0.125
    optimizer = optimizer_for(
        model, ReLinear(gamma), attached, lr=lr, weight_decay=weight_decay, momentum=momentum
    )
    kind = names_by_group(model, optimizer.param_groups)
    rates = {"linear": lr, "g": pair[0] * lr, "b": pair[1] * lr}
    rate = {name: rates[k] for k, names in kind.items() for name in names}
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    buffers = {name: torch.zeros_like(p) for name, p in expected.items()}
    x = torch.randn(10, 4, dtype=DOUBLE)
    for _ in range(4):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        for name, parameter in model.named_parameters():
            gradient = parameter.grad + weight_decay * expected[name]
            buffers[name] = momentum * buffers[name] + gradient
            expected[name] = expected[name] - rate[name] * buffers[name]
        optimizer.step()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name])


@attached_or_not
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(SGD, {"momentum": 0.9}), (AdamW, {})],
    ids=["SGD", "AdamW"],
)
def test_gamma_zero_keeps_the_quadratic_parameters_to_the_last_bit(attached, optimizer, options):
    model = ReLinear().init_(network())
    made = optimizer_for(model, ReLinear(0.0), attached, optimizer, weight_decay=0.01, **options)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x = torch.randn(10, 4, dtype=DOUBLE)
    for _ in range(3):
        made.zero_grad()
        model(x).square().mean().backward()
        made.step()
    kinds = names_by_group(model, made.param_groups)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], before[name]) for k in "gb" for name in kinds[k])
    assert all(not torch.equal(after[name], before[name]) for name in kinds["linear"])


@attached_or_not
def test_weight_decay_pulls_towards_the_linear_reference(attached):
    model = QuadraticLinear(4, 3, dtype=DOUBLE)
    optimizer = optimizer_for(model, ReLinear(0.5), attached, lr=1.0, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = {"r": 0.5, "g": 0.75, "b": 0.75}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), kept[name[0]] * before[name])


def rates_of_a_run(optimizer, scheduler, steps):
    """By how much each group really moves in each step, and the ``lr`` it shows afterwards."""
    groups = optimizer.param_groups
    moved, shown = [], []
    for _ in range(steps):
        for group in groups:
            for parameter in group["params"]:
                parameter.data.zero_()
                parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        moved.append({g["relinear"]: -g["params"][0].flatten()[0].item() for g in groups})
        shown.append({g["relinear"]: g["lr"] for g in groups})
        scheduler.step()
    return moved, shown


def halve_twice(step):
    return 0.5 ** (step // 2)


SCHEDULES = {
    "StepLR": (lambda o: StepLR(o, step_size=2, gamma=0.5), halve_twice),
    "LambdaLR": (lambda o: LambdaLR(o, halve_twice), halve_twice),
    "MultiplicativeLR": (lambda o: MultiplicativeLR(o, lambda _: 0.5), lambda t: 0.5**t),
}


@attached_or_not
@pytest.mark.parametrize(("make", "factor"), SCHEDULES.values(), ids=SCHEDULES)
def test_schedulers_that_multiply_stay_right(attached, make, factor):
    model = QuadraticLinear(4, 3, dtype=DOUBLE)
    optimizer = optimizer_for(model, ReLinear((0.5, 0.25)), attached)
    moved, shown = rates_of_a_run(optimizer, make(optimizer), 8)
    for t in range(8):
        lr = 0.125 * factor(t)
        effective = {"linear": lr, "g": 0.5 * lr, "b": 0.25 * lr}
        assert moved[t] == pytest.approx(effective)
        assert shown[t] == pytest.approx(
            dict.fromkeys(["g", "b", "linear"], lr) if attached else effective
        )


@attached_or_not
def test_a_scheduler_that_sets_the_rate_is_right_with_attach_alone(attached):
    model = QuadraticLinear(4, 3, dtype=DOUBLE)
    optimizer = optimizer_for(model, ReLinear((0.5, 0.25)), attached)
    scheduler = OneCycleLR(optimizer, max_lr=0.4, total_steps=10, cycle_momentum=False)
    moved, shown = rates_of_a_run(optimizer, scheduler, 9)

    plain = SGD([torch.zeros(1, requires_grad=True)], lr=0.125)
    reference = OneCycleLR(plain, max_lr=0.4, total_steps=10, cycle_momentum=False)
    for t in range(9):
        lr = plain.param_groups[0]["lr"]
        assert shown[t] == pytest.approx({"linear": lr, "g": lr, "b": lr})
        effective = {"linear": lr, "g": 0.5 * lr, "b": 0.25 * lr}
        assert moved[t] == pytest.approx(effective if attached else dict.fromkeys(effective, lr))
        plain.step()
        reference.step()


def test_attach_restores_the_rates_exactly_and_leaves_no_trace():
    model = QuadraticLinear(4, 3)
    optimizer = optimizer_for(model, ReLinear(0.3), attached=True, lr=0.1)
    before = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    assert {group["lr"] for group in before} == {0.1}
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    after = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    assert after == before


@attached_or_not
def test_a_resumed_optimizer_continues_to_the_last_bit(attached):
    def training(model):
        optimizer = optimizer_for(model, ReLinear(0.25), attached, momentum=0.9)
        return optimizer, StepLR(optimizer, step_size=2, gamma=0.5)

    def train(model, optimizer, scheduler, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            scheduler.step()

    x = torch.randn(10, 4, dtype=DOUBLE)
    model, resumed = network(), network()
    pair = training(model)
    train(model, *pair, 3)
    resumed.load_state_dict(model.state_dict())
    other = training(resumed)
    for ours, theirs in zip(other, pair, strict=True):
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    train(model, *pair, 3)
    train(resumed, *other, 3)
    for ours, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


# --- errors of attach ---


def attach_to_plain_groups(strategy, model):
    strategy.attach(SGD(model.parameters(), lr=0.1))


def attach_twice(strategy, model):
    strategy.attach(strategy.attach(SGD(strategy.param_groups(model, lr=0.1))))


def attach_after_the_scheduler(strategy, model):
    optimizer = SGD(strategy.param_groups(model, lr=0.1))
    StepLR(optimizer, step_size=1)
    strategy.attach(optimizer)


@pytest.mark.parametrize(
    ("misuse", "text"),
    [
        (
            attach_to_plain_groups,
            "optimizer has parameter groups that ReLinear.param_groups did not make: build it as "
            "Optimizer(strategy.param_groups(model, lr=...)), then attach",
        ),
        (attach_twice, "optimizer is attached already: attach once"),
        (
            attach_after_the_scheduler,
            "optimizer already has a scheduler: attach before making the scheduler",
        ),
    ],
    ids=["plain groups", "twice", "after the scheduler"],
)
def test_misuse_of_attach_is_refused(misuse, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        misuse(ReLinear(0.5), QuadraticLinear(4, 3))
