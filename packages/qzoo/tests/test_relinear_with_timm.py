"""ReLinear with timm's parameter groups, optimisers and schedulers, on our model and on timm's."""

import copy
import io
import math

import pytest
import timm
import torch
from timm.optim import (
    create_optimizer_v2,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from timm.scheduler import CosineLRScheduler
from torch.nn.functional import cross_entropy, softshrink
from torch.optim import SGD, AdamW

import qcore
import qzoo  # noqa: F401 - registers its models with timm
from qcore import LinearSchedule, ReLinear

DOUBLE = torch.float64
LR = 0.125  # it, and every γ that bits are compared at, are powers of two: the products are exact
MODELS = {
    "qresnet20": lambda: timm.create_model("qresnet20"),
    "qresnet20_rezero": lambda: timm.create_model("qresnet20_rezero"),
    "quadratized-resnet18": lambda: qcore.quadratize(timm.create_model("resnet18", num_classes=10)),
}
GROUPS = {
    "layer-decay": lambda model, never: param_groups_layer_decay(
        model, weight_decay=0.05, no_weight_decay_list=never, layer_decay=0.5
    ),
    "weight-decay": lambda model, never: param_groups_weight_decay(
        model, weight_decay=0.05, no_weight_decay_list=never
    ),
    "fallback": lambda model, never: param_groups_weight_decay(
        model, weight_decay=0.05, no_weight_decay_list=never, fallback_list=["fc.*"]
    ),
}
# One of each family that timm has. Not MADGRAD: it adds its ε to the rate, so that at γ = 0 it
# moves parameters all the same.
OPTIMIZERS = [
    "sgd",
    "sgdw",
    "adamw",
    "cadamw",
    "adamc",
    "nadamw",
    "radam",
    "adabelief",
    "adafactorbv",
    "adamp",
    "adan",
    "adopt",
    "lamb",
    "laprop",
    "lars",
    "lion",
    "mars",
    "muon",
    "novograd",
    "rmsproptf",
    "lookahead_adamw",
]
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def leave_the_reference(model):
    """Give what starts at 0 other values, so that decay and shrinking have something to act on."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0.0, 0.05)
    return model


def small_model():
    model = timm.create_model("qresnet20", depths=(1, 1), widths=(4, 8))
    return leave_the_reference(model)


def layer_decay(model):
    return param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)


def kind(name):
    """The part of a default neuron that a parameter belongs to, by its name alone."""
    branch = name.split(".")[-2]
    return branch if branch in ("g", "b") else "linear"


def values(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_equal(model, expected):
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def loss_of(model, x):
    return cross_entropy(model(x), torch.arange(len(x)))


def train(model, optimizer, scheduler, batches, start=0):
    """A step per batch, the scheduler's update after each, as timm's script makes them."""
    for t, x in enumerate(batches, start):
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()
        scheduler.step(t + 1)


# --- groups ---


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_timm_s_groups_are_split_by_kind_and_keep_all_their_keys(model, groups):
    model = model()
    never_decayed = getattr(model, "no_weight_decay", set)()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    given = groups(model, never_decayed)
    expected = {
        names[id(parameter)]: {k: v for k, v in group.items() if k != "params"} | {"lr": LR}
        for group in given
        for parameter in group["params"]
    }
    made = ReLinear(0.25).param_groups(model, lr=LR, weight_decay=0.5, groups=given)
    found = [names[id(parameter)] for group in made for parameter in group["params"]]
    assert sorted(found) == sorted(names.values())  # each of them once
    for group in made:
        kept = {k: v for k, v in group.items() if k != "params" and not k.startswith("relinear")}
        for name in [names[id(parameter)] for parameter in group["params"]]:
            assert kept == expected[name], name
            assert group["relinear"] == kind(name), name
    for name in never_decayed:
        assert expected[name]["weight_decay"] == 0.0


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_layer_decay_rises_to_the_head_and_is_one_within_a_quadratic_layer(model):
    model = model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    made = ReLinear(0.25).param_groups(model, lr=LR, groups=layer_decay(model))
    scale = {names[id(p)]: group["lr_scale"] for group in made for p in group["params"]}
    layers = [path for path, module in model.named_modules() if isinstance(module, qcore.Quadratic)]
    scales = [
        {scale[f"{path}.{letter}.weight"] for letter in model.get_submodule(path)}
        for path in layers
    ]
    assert all(len(same) == 1 for same in scales)
    in_order = [max(same) for same in scales]
    assert in_order == sorted(in_order)
    assert len(set(in_order)) > 4
    assert max(scale.values()) == 1.0
    assert min(scale.values()) < 0.5**4


# --- steps ---

# A strategy, what it makes of the rates at step t, and its α and β.
STRATEGIES = {
    "gamma": (ReLinear((0.25, 0.0625)), lambda t: {"g": 0.25, "b": 0.0625}, 1.0, 1.0),
    "schedule": (
        ReLinear(LinearSchedule(0.0, 1.0, steps=4)),
        lambda t: {"g": t / 4, "b": t / 4},
        1.0,
        1.0,
    ),
    "rates": (ReLinear(lr_g=0.025, lr_b=0.005), lambda t: {"g": 0.2, "b": 0.04}, 1.0, 1.0),
    "shrinking": (
        ReLinear(0.5, alpha=0.9375, beta=0.96875),
        lambda t: {"g": 0.5, "b": 0.5},
        0.9375,
        0.96875,
    ),
}


@pytest.mark.parametrize(
    ("model", "strategy"),
    [("qresnet20", name) for name in STRATEGIES] + [("quadratized-resnet18", "gamma")],
)
def test_a_step_under_timm_s_cosine_schedule_in_closed_form(model, strategy):
    model = leave_the_reference(MODELS[model]()).to(DOUBLE)
    strategy, factors, alpha, beta = STRATEGIES[strategy]
    groups = layer_decay(model)
    options = {
        id(p): (group["lr_scale"], group["weight_decay"])
        for group in groups
        for p in group["params"]
    }
    optimizer = strategy.attach(SGD(strategy.param_groups(model, lr=LR, groups=groups)))
    scheduler = CosineLRScheduler(
        optimizer, t_initial=4, lr_min=0.01, warmup_t=1, warmup_lr_init=0.02
    )
    # timm multiplies by lr_scale whatever its schedulers set, the warm-up and lr_min included
    for t, rate in enumerate((0.02, 0.01 + (LR - 0.01) * (1 + math.cos(math.pi / 4)) / 2)):
        model.zero_grad()
        loss_of(model, torch.randn(2, 3, 32, 32, dtype=DOUBLE)).backward()
        expected = {}
        for name, p in model.named_parameters():
            scale, decay = options[id(p)]
            gamma = (factors(t) | {"linear": 1.0})[kind(name)]
            stepped = p.detach() - rate * scale * gamma * (p.grad + decay * p.detach())
            if kind(name) != "linear":
                stepped = softshrink(alpha * stepped, rate * scale * (1 / beta - 1))
            expected[name] = stepped
        optimizer.step()
        for name, p in model.named_parameters():
            # no looser: a parameter far from the head moves by 1e-7 and less
            torch.testing.assert_close(p.detach(), expected[name], rtol=1e-14, atol=1e-16)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(rate * group["lr_scale"])
        scheduler.step(t + 1)


def test_lr_scale_acts_through_timm_s_schedulers_alone():
    model, strategy = small_model(), ReLinear(0.25)
    groups = strategy.param_groups(model, lr=LR, groups=layer_decay(model))
    optimizer = strategy.attach(SGD(groups))
    loss_of(model, torch.randn(2, 3, 32, 32)).backward()
    before = values(model)
    optimizer.step()
    name = "stages.0.0.conv1.b.weight"
    parameter = model.get_parameter(name)
    (group,) = [g for g in groups if any(p is parameter for p in g["params"])]
    assert group["lr_scale"] < 1.0
    gradient = parameter.grad + group["weight_decay"] * before[name]
    torch.testing.assert_close(parameter.detach(), before[name] - LR * 0.25 * gradient)


def create(name, groups):
    torch.manual_seed(1)
    return create_optimizer_v2(groups, name, lr=0.5)  # the groups' own rate has precedence


def schedule(optimizer):
    return CosineLRScheduler(optimizer, t_initial=8)


@every_optimizer
def test_timm_s_optimizers_step_as_with_the_rates_in_their_own_groups(name):
    model = small_model()
    plain = copy.deepcopy(model)
    gamma = {"linear": 1.0, "g": 0.25, "b": 0.0625}
    strategy = ReLinear((0.25, 0.0625))
    groups = strategy.param_groups(model, lr=2**-6, groups=layer_decay(model))
    attached = strategy.attach(create(name, groups))
    groups = strategy.param_groups(plain, lr=2**-6, groups=layer_decay(plain))
    for group in groups:
        group["lr"] *= gamma[group.pop("relinear")]
    ordinary = create(name, groups)
    before = values(model)
    batches = torch.randn(7, 2, 3, 32, 32).unbind()  # of Lookahead's slow steps the sixth is one
    train(model, attached, schedule(attached), batches)
    train(plain, ordinary, schedule(ordinary), batches)
    assert_equal(model, values(plain))
    weights = [key for key in before if key.endswith("weight")]
    assert not [key for key in weights if torch.equal(model.get_parameter(key), before[key])]


@every_optimizer
def test_gamma_zero_keeps_quadratic_parameters_to_the_last_bit(name):
    model = small_model()
    strategy = ReLinear(0.0)
    groups = strategy.param_groups(model, lr=2**-6, groups=layer_decay(model))
    optimizer = strategy.attach(create(name, groups))
    before = values(model)
    train(model, optimizer, schedule(optimizer), torch.randn(7, 2, 3, 32, 32).unbind())
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before[key]) == (kind(key) != "linear"), key


def test_a_param_group_fn_of_timm_s_factory():
    model = small_model()
    strategy = ReLinear(0.0)
    optimizer = create_optimizer_v2(
        model,
        "adamw",
        lr=LR,
        weight_decay=0.05,
        param_group_fn=lambda m: strategy.param_groups(m, lr=LR, groups=layer_decay(m)),
    )
    strategy.attach(optimizer)
    before = values(model)
    train(model, optimizer, schedule(optimizer), [torch.randn(2, 3, 32, 32)])
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before[key]) == (kind(key) != "linear"), key


# --- states ---


@pytest.mark.parametrize("with_scheduler", [True, False], ids=["its-state", "as-timm-s-script"])
@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lion", "adan", "lookahead_adamw"])
def test_a_resumed_run_continues_to_the_last_bit(name, with_scheduler):
    def fresh():
        torch.manual_seed(2)
        model = small_model()
        strategy = ReLinear(LinearSchedule(0.0, 1.0, steps=5), alpha=0.99, beta=0.9999)
        groups = strategy.param_groups(model, lr=2**-6, groups=layer_decay(model))
        return model, strategy.attach(create(name, groups))

    batches = torch.randn(7, 2, 3, 32, 32).unbind()
    model, optimizer = fresh()
    scheduler = schedule(optimizer)
    train(model, optimizer, scheduler, batches[:3])
    saved = io.BytesIO()
    torch.save([part.state_dict() for part in (model, optimizer, scheduler)], saved)
    train(model, optimizer, scheduler, batches[3:], start=3)

    saved.seek(0)
    states = torch.load(saved)
    resumed, its_optimizer = fresh()
    if with_scheduler:
        its_scheduler = schedule(its_optimizer)
        its_scheduler.load_state_dict(states[2])
    resumed.load_state_dict(states[0])
    its_optimizer.load_state_dict(states[1])
    if not with_scheduler:  # which makes it after loading the optimiser, and steps to the epoch
        its_scheduler = schedule(its_optimizer)
        its_scheduler.step(3)
    train(resumed, its_optimizer, its_scheduler, batches[3:], start=3)
    assert_equal(resumed, values(model))

    # a run that forgets its position in the schedule of γ does not get there
    forgetful, its_optimizer = fresh()
    forgetful.load_state_dict(states[0])
    its_optimizer.load_state_dict(states[1])
    for group in its_optimizer.param_groups:
        group["relinear_step"] = 0
    its_scheduler = schedule(its_optimizer)
    its_scheduler.step(3)
    train(forgetful, its_optimizer, its_scheduler, batches[3:], start=3)
    last = "stages.1.0.conv2.g.weight"
    assert not torch.equal(forgetful.get_parameter(last), model.get_parameter(last))


# --- mixed precision ---


def options_of(optimizer):
    return [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


SCALED = {
    "sgd": lambda groups: SGD(groups, momentum=0.9),
    "adamw": AdamW,
    "sgd-fused": lambda groups: SGD(groups, momentum=0.9, fused=True),
    "adamw-fused": lambda groups: AdamW(groups, fused=True),
}


# of a fused optimiser the scaler calls the step even so, which then changes nothing
@pytest.mark.parametrize("make", SCALED.values(), ids=SCALED)
@pytest.mark.parametrize("weight_decay", ["reference", "published"])
def test_a_step_that_the_grad_scaler_skips_leaves_no_trace(make, weight_decay):
    def fresh():
        torch.manual_seed(2)
        model = small_model()
        strategy = ReLinear(
            LinearSchedule(0.0, 1.0, steps=4), alpha=0.99, beta=0.9999, weight_decay=weight_decay
        )
        groups = strategy.param_groups(model, lr=2**-6, groups=layer_decay(model))
        return model, strategy.attach(make(groups))

    scaler = torch.amp.GradScaler("cpu")
    batches = torch.randn(3, 2, 3, 32, 32).unbind()
    model, optimizer = fresh()
    for t in range(3):
        if t == 1:
            optimizer.zero_grad()
            before, options = values(model), options_of(optimizer)
            scale = scaler.get_scale()
            scaler.scale(loss_of(model, batches[0])).backward()
            model.fc.bias.grad[0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
            assert scaler.get_scale() == scale / 2
            assert_equal(model, before)
            assert options_of(optimizer) == options
            assert {group["relinear_step"] for group in optimizer.param_groups} == {1}
        optimizer.zero_grad()
        scaler.scale(loss_of(model, batches[t])).backward()
        scaler.step(optimizer)
        scaler.update()
    # the scale is a power of two: the run without it, and without that batch, has the same bits
    other, optimizer = fresh()
    for x in batches:
        optimizer.zero_grad()
        loss_of(other, x).backward()
        optimizer.step()
    assert_equal(model, values(other))
