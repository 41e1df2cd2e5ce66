"""ReLinear: the reference point, the parameter groups, and the factors inside each step."""

import copy
import io
import math
import pickle
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    MultiplicativeLR,
    OneCycleLR,
    StepLR,
)

from qcore import (
    CATALOGUE,
    Branch,
    Constant,
    CosineSchedule,
    LinearSchedule,
    LowRankForm,
    Neuron,
    Quadratic,
    QuadraticConv2d,
    QuadraticLinear,
    ReLinear,
    ReZero,
    StepSchedule,
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


def network(bias=True):
    """A small model with all three kinds of parameters; all are matrices without ``bias``."""
    return nn.Sequential(
        nn.Linear(4, 4, bias),
        nn.Tanh(),
        QuadraticLinear(4, 4, bias),
        nn.Tanh(),
        QuadraticLinear(4, 3, bias, neuron="bilinear"),
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


@every_kind
@every_reference
@with_and_without_bias
def test_after_one_step_every_quadratic_parameter_has_left_the_reference(kind, options, bias):
    layer, x = LAYERS[kind](**options, bias=bias)
    strategy = ReLinear(0.5)
    strategy.init_(layer)
    optimizer = optimizer_for(layer, strategy)
    for _ in range(2):
        optimizer.zero_grad()
        output = layer(x)
        (output * torch.randn_like(output)).sum().backward()
        optimizer.step()
    for branch in layer.quadratic_branches().values():
        for parameter in branch.parameters():
            assert parameter.grad.ne(0).any()
            assert parameter.ne(0).any()


def layer_of(terms, **offsets):
    """A hand-made neuron of linear maps, with reference ``r``."""
    letters = sorted({letter for term in terms for letter in term})
    neuron = Neuron(
        "made",
        {k: Branch(offset=offsets.get(k, 0.0)) for k in letters},
        terms,
        "r",
        "here",
    )
    return Quadratic(neuron, {k: nn.Linear(4, 3) for k in letters})


@pytest.mark.parametrize(
    ("terms", "letter"),
    [
        ((("r",), ("g", "g")), "g"),
        ((("r",), ("g", "l"), ("g", "g")), None),
        ((("r",), ("g", "h"), ("h", "l"), ("g", "l")), None),
    ],
    ids=["square", "square and product", "triangle"],
)
def test_a_neuron_that_receives_no_gradient_at_its_reference_is_refused(terms, letter):
    layer = layer_of(terms)
    if letter is not None:
        refuses_and_changes_nothing(
            nn.Sequential(nn.Linear(4, 4), layer),
            f"layer '1' has neuron 'made', whose branch {letter!r} receives no gradient at the "
            "linear reference, where all that multiplies it is 0: change its terms, or give a "
            "factor an offset",
        )
    else:
        started(layer)
        layer(torch.randn(6, 4)).square().sum().backward()
        for branch in layer.branches_zero_at_reference().values():
            assert all(parameter.grad.ne(0).any() for parameter in branch.parameters())


# --- from a conventional network ---


class Bottle(nn.Module):
    """A network with every way to hold state; ``layer`` makes its inner layers."""

    def __init__(self, layer):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3)
        self.body = nn.ModuleDict({"conv": layer(4, 4), "norm": nn.BatchNorm2d(4)})
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.body["norm"](self.body["conv"](self.stem(x).relu()))
        return self.head(x.mean((2, 3)))


def trained_bottle():
    model = Bottle(lambda i, o: nn.Conv2d(i, o, 3))
    for _ in range(3):
        model(torch.randn(8, 2, 8, 8))  # running statistics of its own
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


@every_reference
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_from_a_conventional_network_training_starts_at_its_outputs(options, training):
    conventional = trained_bottle()
    model = Bottle(lambda i, o: QuadraticConv2d(i, o, 3, **options))
    if options["neuron"] == "product_linear":  # its branches have no bias, nor any constant
        conventional.body["conv"].bias = None
    assert ReLinear().init_(model, conventional=conventional) is model
    x = torch.randn(8, 2, 8, 8)
    expected = conventional.train(training)(x)
    torch.testing.assert_close(model.train(training)(x), expected, rtol=1e-6, atol=1e-6)
    # a copy: training one leaves the other alone
    model.stem.weight.data.zero_()
    assert conventional.stem.weight.any()


def test_the_control_of_linear_neurons_is_a_conventional_network_too():
    control = nn.Sequential(QuadraticLinear(4, 4, neuron="linear"), nn.Tanh(), nn.Linear(4, 3))
    model = nn.Sequential(QuadraticLinear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    x = torch.randn(5, 4)
    assert torch.equal(ReLinear().init_(model, conventional=control)(x), control(x))
    single = QuadraticLinear(4, 3)
    assert torch.equal(ReLinear().init_(single, conventional=model[2])(x), model[2](x))


def test_a_constant_beside_a_bias_is_none_of_the_conventional_network():
    branches = {"r": nn.Linear(4, 3), "g": nn.Linear(4, 3), "c": Constant(3)}
    branches["c"].bias.data.fill_(5.0)
    model, conventional, x = Quadratic("qres", branches), nn.Linear(4, 3), torch.randn(5, 4)
    assert torch.equal(ReLinear().init_(model, conventional)(x), conventional(x))


@pytest.mark.parametrize(
    ("conventional", "text"),
    [
        (
            lambda: nn.Sequential(nn.Linear(4, 4)),
            "model has '1.weight', which conventional has not (2 such names): the two must be one "
            "architecture, layer for layer under the same paths",
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(3, 3, bias=False)),
            "conventional has '2.weight', which model has not (1 such names): the two must be one "
            "architecture, layer for layer under the same paths",
        ),
        (
            lambda: nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)),
            "conventional has '0.weight' of shape (4, 5), but model needs (4, 4): the two must be "
            "one architecture",
        ),
        (
            lambda: nn.Sequential(QuadraticLinear(4, 4), nn.Linear(4, 3)),
            "conventional has the quadratic layer '0' (quadratic): give a network of ordinary "
            "layers, or of layers with neuron='linear'",
        ),
    ],
    ids=["missing", "more", "shape", "quadratic"],
)
def test_a_conventional_network_that_does_not_match_is_refused(conventional, text):
    model = nn.Sequential(QuadraticLinear(4, 4), nn.Linear(4, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        ReLinear().init_(model, conventional=conventional())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


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


def test_groups_show_the_common_rate_and_weight_decay():
    groups = ReLinear((0.5, 0.25)).param_groups(network(), lr=0.2, weight_decay=0.01)
    assert [(g["relinear"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("linear", 0.2, 0.01),
        ("g", 0.2, 0.01),
        ("b", 0.2, 0.01),
    ]


def test_weight_decay_that_is_not_given_is_the_optimizers():
    optimizer = SGD(ReLinear(0.5).param_groups(network(), lr=0.2), weight_decay=0.03)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.03}


# --- steps ---


def optimizer_for(model, strategy, optimizer=SGD, lr=0.125, weight_decay=0.0, **options):
    made = optimizer(strategy.param_groups(model, lr, weight_decay), **options)
    return strategy.attach(made)


GAMMAS = {"number": (0.25, (0.25, 0.25)), "pair": ((0.5, 0.0625), (0.5, 0.0625))}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("gamma", "pair"), GAMMAS.values(), ids=GAMMAS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_step_is_gamma_times_the_plain_step(momentum, gamma, pair, weight_decay):
    model = network()
    lr = 0.125
    optimizer = optimizer_for(
        model, ReLinear(gamma), lr=lr, weight_decay=weight_decay, momentum=momentum
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


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(SGD, {"momentum": 0.9}), (AdamW, {})],
    ids=["SGD", "AdamW"],
)
def test_gamma_zero_keeps_the_quadratic_parameters_to_the_last_bit(optimizer, options):
    model = ReLinear().init_(network())
    made = optimizer_for(model, ReLinear(0.0), optimizer, weight_decay=0.01, **options)
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


def test_weight_decay_pulls_towards_the_linear_reference():
    model = QuadraticLinear(4, 3, dtype=DOUBLE)
    optimizer = optimizer_for(model, ReLinear(0.5), lr=1.0, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = {"r": 0.5, "g": 0.75, "b": 0.75}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), kept[name[0]] * before[name])


def common_rates(make_scheduler, steps, lr=0.125):
    """The rates that a scheduler gives to an optimiser without ReLinear."""
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def rates_of_a_run(optimizer, scheduler, steps):
    """By how much each group really moves in each step, and the ``lr`` it shows meanwhile."""
    groups = optimizer.param_groups
    moved, shown = [], []
    for _ in range(steps):
        for group in groups:
            for parameter in group["params"]:
                parameter.data.zero_()
                parameter.grad = torch.ones_like(parameter)
        shown.append({g["relinear"]: g["lr"] for g in groups})
        optimizer.step()
        moved.append({g["relinear"]: -g["params"][0].flatten()[0].item() for g in groups})
        scheduler.step()
    return moved, shown


SCHEDULERS = {
    "StepLR": lambda o: StepLR(o, step_size=2, gamma=0.5),
    "LambdaLR": lambda o: LambdaLR(o, lambda t: 0.5 ** (t // 2)),
    "MultiplicativeLR": lambda o: MultiplicativeLR(o, lambda _: 0.5),
    "ExponentialLR": lambda o: ExponentialLR(o, gamma=0.7),
    "CosineAnnealingLR": lambda o: CosineAnnealingLR(o, T_max=5, eta_min=0.01),
    "WarmRestarts": lambda o: CosineAnnealingWarmRestarts(o, T_0=3, eta_min=0.01),
    "OneCycleLR": lambda o: OneCycleLR(o, max_lr=0.4, total_steps=10, cycle_momentum=False),
    "CyclicLR": lambda o: CyclicLR(o, 0.01, 0.4, step_size_up=3, cycle_momentum=False),
}
RATES = {
    "constant": (ReLinear((0.5, 0.25)), lambda t: (0.5, 0.25)),
    "absolute": (ReLinear(lr_g=0.025, lr_b=0.0), lambda t: (0.2, 0.0)),
    "schedule": (
        ReLinear((LinearSchedule(0.0, 1.0, steps=4), StepSchedule((1.0, 0.5), (3,)))),
        lambda t: (min(t / 4, 1.0), 1.0 if t < 3 else 0.5),
    ),
}


@pytest.mark.parametrize("before", [False, True], ids=["scheduler-last", "scheduler-first"])
@pytest.mark.parametrize(("strategy", "factors"), RATES.values(), ids=RATES)
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_factors_and_schedulers_multiply(make, strategy, factors, before):
    model = QuadraticLinear(4, 3, dtype=DOUBLE)
    optimizer = SGD(strategy.param_groups(model, lr=0.125))
    if before:
        scheduler = make(optimizer)
        strategy.attach(optimizer)
    else:
        scheduler = make(strategy.attach(optimizer))
    moved, shown = rates_of_a_run(optimizer, scheduler, 9)
    for t, lr in enumerate(common_rates(make, 9)):
        g, b = factors(t)
        assert shown[t] == pytest.approx(dict.fromkeys(["linear", "g", "b"], lr))
        assert moved[t] == pytest.approx({"linear": lr, "g": g * lr, "b": b * lr})


WITHOUT_A_RATE = ("LBFGS", "Rprop")
OPTIMIZERS = {
    name: value
    for name, value in vars(torch.optim).items()
    if isinstance(value, type)
    and issubclass(value, torch.optim.Optimizer)
    and name not in ("Optimizer", "SparseAdam", *WITHOUT_A_RATE)
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_optimizer_steps_as_with_the_rates_in_its_own_groups(optimizer):
    model = network(bias=False)
    plain = copy.deepcopy(model)
    gamma = {"linear": 1.0, "g": 0.25, "b": 0.0625}
    attached = optimizer_for(model, ReLinear((0.25, 0.0625)), optimizer, weight_decay=0.01)
    groups = ReLinear().param_groups(plain, lr=0.125, weight_decay=0.01)
    for group in groups:
        group["lr"] *= gamma[group.pop("relinear")]
    ordinary = optimizer(groups)
    x = torch.randn(10, 4, dtype=DOUBLE)
    for _ in range(4):
        for network_, stepped in ((model, attached), (plain, ordinary)):
            stepped.zero_grad()
            network_(x).square().mean().backward()
            stepped.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_attach_restores_the_rates_exactly_and_leaves_the_position_alone():
    model = QuadraticLinear(4, 3)
    optimizer = optimizer_for(model, ReLinear(0.3), lr=0.1)
    before = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    assert {group["lr"] for group in before} == {0.1}
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    after = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    assert after == [group | {"relinear_step": 1} for group in before]


def test_a_step_that_broke_off_leaves_no_trace_in_the_next():
    def interrupted():
        raise KeyboardInterrupt

    model = QuadraticLinear(4, 3, dtype=DOUBLE)
    optimizer = optimizer_for(model, ReLinear(0.5))
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(interrupted)
    before = model["g"].weight.detach().clone()
    model(torch.randn(2, 4, dtype=DOUBLE)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(
        model["g"].weight.detach(), before - 0.5 * 0.125 * model["g"].weight.grad
    )
    assert {group["lr"] for group in optimizer.param_groups} == {0.125}


# --- absolute rates ---


@pytest.mark.parametrize("rate", [1e-5, 1e-3, 0.0])
def test_published_rates(rate):
    model = QuadraticLinear(4, 3, dtype=DOUBLE)
    optimizer = optimizer_for(model, ReLinear(lr_g=rate, lr_b=rate), lr=0.1)
    scheduler = StepLR(optimizer, step_size=2, gamma=0.1)
    moved, _ = rates_of_a_run(optimizer, scheduler, 4)
    for t, factor in enumerate([1.0, 1.0, 0.1, 0.1]):
        assert moved[t] == pytest.approx(
            {"linear": 0.1 * factor, "g": rate * factor, "b": rate * factor}
        )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"gamma": 0.5, "lr_g": 1e-5, "lr_b": 1e-5},
            "gamma=0.5 is not allowed with lr_g=1e-05 and lr_b=1e-05: give the factor of the "
            "learning rate, or the rates themselves",
        ),
        (
            {"lr_b": 1e-5},
            "lr_g=None, lr_b=1e-05 is not allowed: give both; 0 where a part is not to train, or "
            "the network has none",
        ),
        (
            {"lr_g": -1.0, "lr_b": 0.0},
            "lr_g=-1.0 is not allowed: give a rate of 0 or more",
        ),
        (
            {"lr_g": 0.0, "lr_b": math.inf},
            "lr_b=inf is not allowed: give a rate of 0 or more",
        ),
    ],
    ids=["with gamma", "one alone", "negative", "infinite"],
)
def test_wrong_absolute_rates_are_refused(options, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        ReLinear(**options)


@pytest.mark.parametrize("kind", ["g", "b"])
def test_an_absolute_rate_above_the_common_one_is_refused(kind):
    strategy = ReLinear(**{"lr_g": 0.1, "lr_b": 0.1, f"lr_{kind}": 0.2})
    text = (
        f"lr_{kind}=0.2 is not allowed with lr=0.1: choose from 0 (the linear network) to lr (free)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        strategy.param_groups(network(), lr=0.1)


# --- α and β ---


def still_step(model, strategy, lr=0.125, **options):
    """One step without gradients: what remains is the shrinking."""
    optimizer = optimizer_for(model, strategy, lr=lr, **options)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def shrunk(values, alpha, threshold):
    """sign(αθ) · max(|αθ| − t, 0), written out for each number."""
    return [math.copysign(max(abs(alpha * v) - threshold, 0.0), v) for v in values]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    alpha=st.tuples(*[st.floats(0, 1)] * 2),
    beta=st.tuples(*[st.floats(1e-3, 1)] * 2),
    gamma=st.floats(0, 1),
    lr=st.floats(0, 1),
)
def test_alpha_and_beta_shrink_as_written_out(alpha, beta, gamma, lr):
    model = QuadraticLinear(5, 3, dtype=DOUBLE)
    before = {name: p.flatten().tolist() for name, p in model.named_parameters()}
    still_step(model, ReLinear(gamma, alpha=alpha, beta=beta), lr)
    for name, parameter in model.named_parameters():
        factors = {"r": (1.0, 1.0), "g": (alpha[0], beta[0]), "b": (alpha[1], beta[1])}[name[0]]
        expected = shrunk(before[name], factors[0], lr * (1 / factors[1] - 1))
        assert parameter.flatten().tolist() == pytest.approx(expected, rel=1e-12, abs=1e-15)


@every_kind
@every_reference
@pytest.mark.parametrize("factor", ["gamma", "alpha", "beta"])
def test_zero_is_the_linear_network_however_long_it_trains(kind, options, factor):
    layer, x = LAYERS[kind](**options)
    strategy = ReLinear(**{factor: 0.0})
    strategy.init_(layer)
    optimizer = optimizer_for(layer, strategy, AdamW, weight_decay=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
    constant = layer["c"](x) if "c" in layer else 0.0
    torch.testing.assert_close(layer(x), layer.reference(x) + constant, rtol=0, atol=1e-6)
    # the branch that keeps its value is no zero factor: it trains, and nothing comes of it
    assert all(
        not parameter.any()
        for branch in layer.branches_zero_at_reference().values()
        for name, parameter in branch.named_parameters()
        if not name.endswith("factors")
    )


@pytest.mark.parametrize("factor", ["alpha", "beta"])
def test_zero_shrinks_to_the_linear_network_from_anywhere_even_at_rate_zero(factor):
    model = network()
    still_step(model, ReLinear(**{factor: 0.0}), lr=0.0)
    x = torch.randn(5, 4, dtype=DOUBLE)
    linear = nn.Sequential(model[0], nn.Tanh(), model[2]["r"], nn.Tanh(), model[4]["l"])
    assert torch.equal(model(x), linear(x))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"neuron": "product_linear"}, {"l.weight", "r.weight"}),
        ({"neuron": "bilinear", "rank": 2}, {"l.weight", "l.bias", "q.factors"}),
        ({"neuron": "qres"}, {"r.weight", "c.bias"}),
    ],
    ids=["product_linear", "bilinear", "qres"],
)
def test_shrinking_spares_the_factor_that_keeps_the_gradient_alive(options, kept):
    model = QuadraticLinear(4, 3, **options)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    still_step(model, ReLinear(alpha=0.5))
    after = dict(model.named_parameters())
    assert {name for name in before if torch.equal(before[name], after[name])} == kept
    for name in before.keys() - kept:
        torch.testing.assert_close(after[name].detach(), 0.5 * before[name])


def test_the_threshold_of_beta_follows_the_scheduler_and_alpha_its_schedule():
    model = QuadraticLinear(4, 3, dtype=DOUBLE)
    strategy = ReLinear(0.0, alpha=CosineSchedule(1.0, 0.5, steps=2), beta=0.8)
    optimizer = optimizer_for(model, strategy, lr=0.1)
    scheduler = ExponentialLR(optimizer, gamma=0.5)
    expected = model["b"].weight.flatten().tolist()
    for t, alpha in enumerate([1.0, 0.75, 0.5, 0.5]):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        scheduler.step()
        expected = shrunk(expected, alpha, 0.1 * 0.5**t * 0.25)
        assert model["b"].weight.flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", WITHOUT_REFERENCE)
def test_shrinking_needs_a_linear_reference(name):
    text = (
        f"layer 'QuadraticLinear' has neuron '{name}', which has no linear reference: "
        "choose one that has, e.g. 'quadratic', 'compact' or 'qres'"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        ReLinear(alpha=0.5).param_groups(QuadraticLinear(4, 3, neuron=name), lr=0.1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"alpha": 1.5},
            "alpha=1.5 for g is not allowed: choose from 0 (the linear network) to 1 (free)",
        ),
        (
            {"beta": (1, -1)},
            "beta=-1 for b is not allowed: choose from 0 (the linear network) to 1 (free)",
        ),
        (
            {"gamma": (0.5, lambda t: 2.0 - t)},
            "gamma=2.0 for b at step 0 is not allowed: "
            "choose from 0 (the linear network) to 1 (free)",
        ),
        (
            {"alpha": [0.1, 0.2]},
            "alpha=[0.1, 0.2] is not allowed: give a number, a schedule, or a pair (g, b)",
        ),
        (
            {"weight_decay": 1e-4},
            "weight_decay=0.0001 is not allowed: choose 'reference' or 'published'; "
            "its strength goes to param_groups(model, lr=..., weight_decay=...)",
        ),
    ],
    ids=["alpha", "beta", "schedule", "list", "weight decay"],
)
def test_wrong_arguments_are_refused(options, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        ReLinear(**options)


def test_a_schedule_that_leaves_zero_to_one_is_refused_where_it_does():
    model = QuadraticLinear(4, 3)
    optimizer = optimizer_for(model, ReLinear(lambda t: 0.75 * t))
    optimizer.step()
    optimizer.step()
    text = (
        "gamma=1.5 for g at step 2 is not allowed: choose from 0 (the linear network) to 1 (free)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        optimizer.step()


# --- weight decay as published ---


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (SGD, {"momentum": 0.9}),
        (AdamW, {}),
        (torch.optim.Adam, {}),
        (torch.optim.Adagrad, {}),
    ],
    ids=["SGD", "AdamW", "Adam", "Adagrad"],
)
def test_published_weight_decay_steps_as_if_the_parameter_were_b_g(optimizer, options, dtype):
    model = ReLinear().init_(QuadraticLinear(4, 3, dtype=dtype))
    # the arrangement of the scripts: b_g is the parameter, and starts at 1
    theirs = {name: nn.Parameter(p.detach().clone()) for name, p in model.named_parameters()}
    theirs["g.bias"].data.fill_(1.0)
    gamma, settings_ = 0.25, {"lr": 0.05, "weight_decay": 0.1}
    scripts = optimizer(
        [
            {"params": [p], **settings_, "lr": 0.05 * (1 if name[0] == "r" else gamma)}
            for name, p in theirs.items()
        ],
        **options,
    )
    strategy = ReLinear(gamma, weight_decay="published")
    ours = strategy.attach(optimizer(strategy.param_groups(model, **settings_), **options))
    for _ in range(5):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            theirs[name].grad = parameter.grad.clone()
        ours.step()
        scripts.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter + 1.0 if name == "g.bias" else parameter, theirs[name])


def test_published_weight_decay_pulls_b_g_and_reference_does_not():
    kept = {}
    for mode in ("published", "reference"):
        model = ReLinear().init_(QuadraticLinear(4, 3, dtype=DOUBLE))
        still_step(model, ReLinear(weight_decay=mode), weight_decay=0.5)
        kept[mode] = 1.0 + model["g"].bias.detach()
    torch.testing.assert_close(kept["published"], torch.full((3,), 1 - 0.125 * 0.5, dtype=DOUBLE))
    assert torch.equal(kept["reference"], torch.ones(3, dtype=DOUBLE))


def test_published_weight_decay_touches_no_bias_where_nothing_decays():
    for options in ({"weight_decay": 0.0}, {"weight_decay": 0.5}):
        model = QuadraticLinear(4, 3)
        before = model["g"].bias.detach().clone()
        optimizer = optimizer_for(model, ReLinear(weight_decay="published"), **options)
        if options["weight_decay"] == 0.0:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # without gradients, torch skips a parameter
        assert torch.equal(model["g"].bias, before)


def test_published_weight_decay_with_a_closure_is_refused():
    optimizer = optimizer_for(QuadraticLinear(4, 3), ReLinear(weight_decay="published"))
    text = (
        "closure is not allowed with weight_decay='published': the step sees b_g in place of its "
        "distance from 1; call step() after backward(), without a closure"
    )
    for step in (lambda: optimizer.step(lambda: 0.0), lambda: optimizer.step(closure=lambda: 0.0)):
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            step()
    optimizer.step(closure=None)


# --- states ---


@pytest.mark.parametrize("weight_decay", ["reference", "published"])
@pytest.mark.parametrize("optimizer", [SGD, AdamW], ids=["SGD", "AdamW"])
def test_a_resumed_run_continues_to_the_last_bit(optimizer, weight_decay):
    def fresh():
        model = network()
        strategy = ReLinear(
            (LinearSchedule(0.0, 1.0, steps=5), StepSchedule((0.1, 0.9), (4,))),
            alpha=CosineSchedule(1.0, 0.9, steps=6),
            beta=0.999,
            weight_decay=weight_decay,
        )
        made = optimizer_for(model, strategy, optimizer, weight_decay=0.01)
        return model, made, CosineAnnealingLR(made, T_max=6)

    def train(model, optimizer, scheduler, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            scheduler.step()

    x = torch.randn(10, 4, dtype=DOUBLE)
    run, resumed = fresh(), fresh()
    train(*run, 3)
    saved = io.BytesIO()
    torch.save([part.state_dict() for part in run], saved)
    saved.seek(0)
    for part, state in zip(resumed, torch.load(saved), strict=True):
        part.load_state_dict(state)
    train(*run, 4)
    train(*resumed, 4)
    for ours, theirs in zip(resumed[0].parameters(), run[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    # a run that forgets its position does not get there
    forgetful = fresh()
    train(*forgetful, 4)
    assert not torch.equal(forgetful[0][2]["g"].weight, run[0][2]["g"].weight)


# --- groups of others ---


def test_layer_decay_groups_are_split_and_keep_all_their_keys():
    model = network()
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


def test_an_absolute_rate_keeps_the_ratio_of_the_groups_rates():
    model = QuadraticLinear(4, 3, dtype=DOUBLE)
    halves = [
        {"params": [model["g"].weight], "lr": 0.05},
        {"params": [model["b"].weight]},
    ]
    strategy = ReLinear(lr_g=1e-3, lr_b=1e-3)
    optimizer = strategy.attach(SGD(strategy.param_groups(model, lr=0.1, groups=halves)))
    moved, _ = rates_of_a_run(optimizer, ExponentialLR(optimizer, 1.0), 1)
    assert moved[0] == pytest.approx({"g": 0.5e-3, "b": 1e-3})


def test_names_of_parameters_stay_with_them():
    model = network()
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
def test_what_is_no_parameter_group_is_refused(wrong, kind):
    text = (
        f"groups holds a {kind} that is no parameter group: give dictionaries with the key "
        "'params', as to a torch optimiser"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        ReLinear().param_groups(network(), lr=0.1, groups=[wrong])


def test_a_group_added_later_joins_the_others_in_their_schedule():
    model = network()
    model[2].requires_grad_(False)
    strategy = ReLinear(LinearSchedule(0.0, 1.0, steps=4))
    optimizer = optimizer_for(model, strategy)
    optimizer.step()
    optimizer.step()
    model[2].requires_grad_(True)
    late = [{"params": model[2].parameters()}]
    for group in strategy.param_groups(model, lr=0.125, groups=late):
        optimizer.add_param_group(group)
    moved, _ = rates_of_a_run(optimizer, ExponentialLR(optimizer, 1.0), 1)
    assert moved[0] == pytest.approx({"linear": 0.125, "g": 0.0625, "b": 0.0625})


def test_the_gate_of_rezero_trains_at_the_full_rate():
    model = nn.Sequential(ReZero(QuadraticLinear(4, 4)))
    groups = ReLinear(1e-3).param_groups(model, lr=0.1)
    assert names_by_group(model, groups) == {
        "linear": ["0.gate", "0.branch.r.weight", "0.branch.r.bias"],
        "g": ["0.branch.g.weight", "0.branch.g.bias"],
        "b": ["0.branch.b.weight", "0.branch.b.bias"],
    }


# --- summary ---


def test_summary_shows_every_parameter_with_its_part_and_next_rate():
    model = nn.Sequential(nn.Linear(4, 4), ReZero(QuadraticLinear(4, 3, neuron="product_linear")))
    model[0].bias.requires_grad_(False)
    strategy = ReLinear(
        LinearSchedule(0.0, 1.0, steps=2), alpha=0.9, beta=(0.5, 1.0), weight_decay="published"
    )
    optimizer = optimizer_for(model, strategy, lr=0.1, weight_decay=1e-4)
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


def test_print_shows_absolute_rates():
    assert repr(ReLinear(lr_g=1e-5, lr_b=0)) == "ReLinear(lr_g=1e-05, lr_b=0)"


# --- misuse ---

NOT_ATTACHED = (
    "optimizer has ReLinear's parameter groups, but is not attached, and would train the "
    "quadratic parameters at the full rate: call strategy.attach(optimizer) first, again after "
    "copying or unpickling an optimizer"
)


def forgot(strategy, model):
    return SGD(strategy.param_groups(model, lr=0.125))


def copied(strategy, model):
    return copy.deepcopy(optimizer_for(model, strategy))


def unpickled(strategy, model):
    return pickle.loads(pickle.dumps(optimizer_for(model, strategy)))  # noqa: S301 - our own bytes


@pytest.mark.parametrize("make", [forgot, copied, unpickled])
def test_a_step_without_attach_is_refused_and_attach_cures_it(make):
    model = QuadraticLinear(4, 3)
    strategy = ReLinear(0.5)
    optimizer = make(strategy, model)
    for group in optimizer.param_groups:  # a copy has parameters of its own
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    before = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    with pytest.raises(RuntimeError, match=f"^{re.escape(NOT_ATTACHED)}$"):
        optimizer.step()
    after = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    strategy.attach(optimizer)
    optimizer.step()
    moved = {
        g["relinear"]: (before_ - g["params"][0]).mean().item()
        for g, before_ in zip(optimizer.param_groups, before[::2], strict=True)
    }
    assert moved == pytest.approx({"linear": 0.125, "g": 0.0625, "b": 0.0625})


def test_an_optimizer_without_relinear_steps_as_ever():
    ReLinear().param_groups(network(), lr=0.1)
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    SGD([parameter], lr=0.5).step()
    assert parameter.tolist() == [-0.5, -0.5]


def test_an_optimizer_that_steps_another_is_attached_itself(tmp_path):
    from torch import distributed
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = network()
    plain = copy.deepcopy(model)
    strategy = ReLinear((0.5, 0.25))
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    try:
        groups = strategy.param_groups(model, lr=0.125)
        sharded = strategy.attach(ZeroRedundancyOptimizer(groups, optimizer_class=SGD, lr=0.125))
        whole = optimizer_for(plain, strategy)
        x = torch.randn(10, 4, dtype=DOUBLE)
        for _ in range(3):
            for network_, optimizer in ((model, sharded), (plain, whole)):
                optimizer.zero_grad()
                network_(x).square().mean().backward()
                optimizer.step()
    finally:
        distributed.destroy_process_group()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


FOREIGN_GROUPS = (
    "optimizer has parameter groups that ReLinear.param_groups did not make: build it as "
    "Optimizer(strategy.param_groups(model, lr=...)), then attach; make groups that are added "
    "later in the same way"
)


def attach_to_plain_groups(strategy, model):
    strategy.attach(SGD(model.parameters(), lr=0.1))


def summary_of_plain_groups(strategy, model):
    strategy.summary(model, SGD(model.parameters(), lr=0.1))


def add_a_plain_group(strategy, model):
    optimizer = optimizer_for(model, strategy)
    optimizer.add_param_group({"params": nn.Parameter(torch.zeros(2))})
    optimizer.step()


def attach_twice(strategy, model):
    strategy.attach(strategy.attach(SGD(strategy.param_groups(model, lr=0.1))))


def attach_to_rprop(strategy, model):
    strategy.attach(torch.optim.Rprop(strategy.param_groups(model, lr=0.1)))


def attach_to_lbfgs(strategy, model):
    # one group, which LBFGS takes: it refuses more by itself
    (group,) = strategy.param_groups(model[3], lr=0.1)
    strategy.attach(torch.optim.LBFGS([group]))


@pytest.mark.parametrize(
    ("misuse", "text"),
    [
        (attach_to_plain_groups, FOREIGN_GROUPS),
        (summary_of_plain_groups, FOREIGN_GROUPS),
        (add_a_plain_group, FOREIGN_GROUPS),
        (attach_twice, "optimizer is attached already: attach once"),
        *[
            (
                misuse,
                f"optimizer {name} does not scale a group's step by its learning rate, so "
                "quadratic parameters cannot have a rate of their own: choose another, e.g. SGD "
                "or AdamW",
            )
            for misuse, name in ((attach_to_rprop, "Rprop"), (attach_to_lbfgs, "LBFGS"))
        ],
    ],
    ids=["plain groups", "summary", "plain group later", "twice", "Rprop", "LBFGS"],
)
def test_misuse_of_attach_is_refused(misuse, text):
    model = nn.Sequential(
        QuadraticLinear(4, 4), nn.Tanh(), nn.Linear(4, 4), QuadraticLinear(4, 3, neuron="product")
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        misuse(ReLinear(0.5), model)
