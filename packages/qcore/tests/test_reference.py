"""The linear reference: how a model starts there, alone or from a conventional network."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.optim import SGD, AdamW

from qcore import (
    CATALOGUE,
    Branch,
    Constant,
    LowRankForm,
    Neuron,
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


def started(layer):
    """The layer, moved to its reference."""
    ReLinear().init_(layer)
    return layer


def optimizer_for(model, strategy, optimizer=SGD, weight_decay=0.0):
    return strategy.attach(optimizer(strategy.param_groups(model, 0.125, weight_decay)))


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


def test_init_returns_the_model_and_reaches_every_layer_in_place(quadratic_net):
    model = quadratic_net()
    assert ReLinear().init_(model) is model
    x = torch.randn(5, 4, dtype=DOUBLE)
    linear = nn.Sequential(model[0], nn.Tanh(), model[2]["r"], nn.Tanh(), model[4]["l"])
    assert torch.equal(model(x), linear(x))


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


# --- what is refused ---


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


# --- branches of other kinds ---


class LowRankUpdate(nn.Module):
    """A branch whose weight is a product: no parameter of it is called so."""

    def __init__(self):
        super().__init__()
        self.down = nn.Parameter(torch.randn(2, 4))
        self.up = nn.Parameter(torch.randn(3, 2))
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, x):
        return x @ self.down.t() @ self.up.t() + self.bias


def pruned(linear):
    return prune.l1_unstructured(linear, "weight", 2)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: pruned(nn.Linear(4, 3)),
        lambda: nn.utils.weight_norm(nn.Linear(4, 3)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
        LowRankUpdate,
    ],
    ids=["pruned", "weight norm by hooks", "weight norm", "low-rank update"],
)
def test_any_branch_reaches_the_reference(make):
    layer = Quadratic("quadratic", {"r": nn.Linear(4, 3), "g": make(), "b": nn.Linear(4, 3)})
    ReLinear().init_(layer)
    x = torch.randn(5, 4)
    assert torch.equal(layer(x), layer["r"](x))
