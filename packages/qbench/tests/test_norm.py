"""Models whose inputs, or the inputs of whose quadratic branches, have a norm."""

import functools

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from qbench.architecture import ModelSpec, diqnn_name, normed_name
from qbench.build import build_model
from qbench.cost import multiply_adds
from qbench.errors import UserError
from qbench.leaderboard.standings import formula_of, of_spec
from qbench.recipe import Strategy
from qbench.stack import side_by_side
from qbench.table import load_table
from qcore import Quadratic, QuadraticConv2d, QuadraticLinear, ReLinear

SHAPE = (1, 8, 8)


def drawn(*shape: int) -> Tensor:
    """Inputs of both signs, always the same."""
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(0))


def normalised(x: Tensor) -> Tensor:
    return x / x.square().mean(-1, keepdim=True).sqrt()


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "linear"},
        {"kind": "dense"},
        {"kind": "low_rank", "rank": 2},
        {"kind": "low_rank", "rank": 2, "convolution": {"channels": 3, "kernel": 3}},
        {"kind": "mlp", "hidden": (5,)},
    ],
)
def test_a_norm_of_the_input_stands_right_before_the_first_layer(fields: dict[str, object]) -> None:
    plain = build_model(ModelSpec.model_validate(fields), SHAPE, 10, 1.0, seed=3).double()
    fields = fields | {"norm": "input"}
    model = build_model(ModelSpec.model_validate(fields), SHAPE, 10, 1.0, seed=3).double()
    x = drawn(6, *SHAPE)
    parts = list(plain.children())
    flat = next(i for i, part in enumerate(parts) if isinstance(part, nn.Flatten)) + 1
    features = nn.Sequential(*parts[:flat])(x)
    torch.testing.assert_close(model(x), nn.Sequential(*parts[flat:])(normalised(features)))


@pytest.mark.parametrize("neuron", ["linear", "quadratic"])
def test_a_norm_of_layers_stands_before_each_of_them(neuron: str) -> None:
    fields = {"kind": "mlp", "hidden": (5, 4), "neuron": neuron}
    started = Strategy(start="conventional")
    plain, model = (
        build_model(ModelSpec.model_validate(fields | norm), SHAPE, 10, 1.0, 3, started).double()
        for norm in ({}, {"norm": "layers"})
    )
    x = drawn(6, *SHAPE)
    _, first, relu, second, _, output = plain.children()
    hidden = relu(second(normalised(relu(first(normalised(x.flatten(1)))))))
    torch.testing.assert_close(model(x), output(normalised(hidden)))


def test_a_norm_of_tables_is_of_their_columns() -> None:
    spec = ModelSpec(kind="low_rank", rank=2, norm="input")
    model = build_model(spec, (13,), 3, 1.0, seed=0)
    x = drawn(4, 13).float()
    torch.testing.assert_close(model(x), model(1000 * x))
    assert torch.equal(model(torch.zeros(1, 13)), torch.zeros(1, 3))


def test_a_norm_of_quadratic_branches_leaves_the_reference_as_it_is() -> None:
    spec = ModelSpec(kind="mlp", hidden=(5, 4), neuron="quadratic", norm="quadratic")
    model = build_model(spec, (7,), 3, 1.0, seed=0, strategy=Strategy(start="conventional"))
    x = drawn(6, 7)
    layer = model.double()[0]
    assert isinstance(layer, QuadraticLinear)
    assert all(branch.weight.abs().min() > 0 for branch in layer.values())
    r, g, b = (functools.partial(F.linear, weight=m.weight, bias=m.bias) for m in layer.values())
    written_out = r(x) * (1 + g(normalised(x))) + b(normalised(x * x))
    torch.testing.assert_close(layer(x), written_out)

    at_reference = build_model(spec, (7,), 3, 1.0, seed=0).double()
    linear = [at_reference[0]["r"], at_reference[2]["r"], at_reference[-1]]  # type: ignore[index]
    hidden = linear[1](linear[0](x).relu()).relu()
    torch.testing.assert_close(at_reference(x), linear[2](hidden))


def test_normalised_seeds_side_by_side_do_not_see_each_other() -> None:
    spec = ModelSpec(kind="mlp", hidden=(5,), neuron="quadratic", norm="quadratic")
    started = Strategy(start="conventional")
    models = [build_model(spec, (7,), 3, 1.0, seed, started) for seed in range(3)]
    x = drawn(3, 6, 7).float()
    together = side_by_side(models)(x)
    for model, one, outputs in zip(models, x, together, strict=True):
        torch.testing.assert_close(outputs, model(one))


@pytest.mark.parametrize(
    ("neuron", "rank"),
    [("qres", None), ("product", None), ("squared_output", None), ("bilinear", 2)],
)
def test_a_norm_of_quadratic_branches_is_for_every_neuron(neuron: str, rank: int | None) -> None:
    fields = {"kind": "mlp", "hidden": (5,), "neuron": neuron, "neuron_rank": rank}
    started = Strategy(start="conventional")
    plain, normed = (
        build_model(ModelSpec.model_validate(fields | norm), (7,), 3, 1.0, 0, started)
        for norm in ({}, {"norm": "quadratic"})
    )
    x = normalised(drawn(6, 7).float())  # where a norm of x changes nothing
    assert plain.state_dict().keys() == normed.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(normed.state_dict()[name], value)
    torch.testing.assert_close(plain(x), normed(x))
    layer = normed[0]
    assert isinstance(layer, QuadraticLinear)
    reference = 0.0 if layer.reference is None else layer.reference(9 * x) - layer.reference(x)
    if neuron != "qres":  # in which a product with the reference grows as well
        torch.testing.assert_close(layer(9 * x), layer(x) + reference)


def test_decay_as_published_finds_the_bias_behind_a_norm() -> None:
    spec = ModelSpec(kind="mlp", hidden=(5,), neuron="quadratic", norm="quadratic")
    model = build_model(spec, (7,), 3, 1.0, seed=0)
    layer = model[0]
    strategy = ReLinear(gamma=1.0, weight_decay="published")
    groups = strategy.param_groups(model, lr=0.1, weight_decay=0.5)
    optimizer = strategy.attach(torch.optim.SGD(groups))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert isinstance(layer, QuadraticLinear)
    bias = layer["g"].bias
    torch.testing.assert_close(1 + bias, torch.full_like(bias, 0.95))  # b_g itself decays from 1


def test_a_norm_of_quadratic_branches_is_for_quadratic_neurons() -> None:
    said = "norm: quadratic is of the branches of a quadratic neuron: give kind mlp a neuron"
    with pytest.raises(ValidationError, match=said):
        ModelSpec(kind="mlp", hidden=(5,), norm="quadratic")
    for norm in ("input", "layers"):
        with pytest.raises(ValidationError, match=f"norm: {norm} is not for kind zoo, whose netw"):
            ModelSpec.model_validate({"kind": "zoo", "name": "qresnet20", "norm": norm})
    with pytest.raises(ValidationError, match="norm: layers is of the layers of kind mlp"):
        ModelSpec(kind="low_rank", rank=2, norm="layers")
    linear = ModelSpec(kind="zoo", name="cifar_resnet20", norm="quadratic")
    said = "what quadratic branches see, and cifar_resnet20 has none: leave it out, or quadratize"
    with pytest.raises(UserError, match=said):
        build_model(linear, (3, 8, 8), 10, 1.0, seed=0)
    with pytest.raises(UserError, match=said):
        multiply_adds(linear, "digits32")  # as tables are read
    for fields in ({"name": "qresnet20_rms"}, {"name": "qresnet20", "options": {"rms_norm": True}}):
        with pytest.raises(
            ValidationError, match="has norm: quadratic in a table, not a name with"
        ):
            ModelSpec.model_validate({"kind": "zoo"} | fields)


def test_a_norm_in_a_network_is_of_all_channels_and_pixels_of_an_image() -> None:
    started = Strategy(start="conventional")
    plain, normed = (
        build_model(
            ModelSpec.model_validate({"kind": "zoo", "name": "qresnet20"} | norm),
            (3, 8, 8),
            10,
            1.0,
            0,
            started,
        ).double()
        for norm in ({}, {"norm": "quadratic"})
    )
    assert plain.state_dict().keys() == normed.state_dict().keys()
    layers = [m for m in normed.modules() if isinstance(m, QuadraticConv2d)]
    assert len(layers) == sum(isinstance(m, QuadraticConv2d) for m in plain.modules()) > 10
    layer = layers[0]
    x = drawn(5, 16, 8, 8)
    r, g, b = (
        functools.partial(F.conv2d, weight=m.weight, bias=m.bias, padding=1) for m in layer.values()
    )

    def divided(x: Tensor) -> Tensor:
        return x / x.square().mean((1, 2, 3), keepdim=True).sqrt()

    written_out = r(x) * (1 + g(divided(x))) + b(divided(x * x))
    torch.testing.assert_close(layer(x), written_out)
    beside_large_ones = torch.cat([x[:1], 1000 * x[1:]])
    torch.testing.assert_close(layer(beside_large_ones)[:1], layer(x[:1]))


def test_a_norm_in_a_network_leaves_the_reference_as_it_is() -> None:
    plain, normed = (
        build_model(
            ModelSpec.model_validate({"kind": "zoo", "name": "qresnet20"} | norm),
            (3, 8, 8),
            10,
            1.0,
            seed=0,
        ).double()
        for norm in ({}, {"norm": "quadratic"})
    )
    x = drawn(4, 3, 8, 8)
    torch.testing.assert_close(normed(x), plain(x))


def test_a_network_with_a_norm_is_one_of_the_zoo() -> None:
    (cell,) = load_table("strategies").cells({"model": ("normalised",)})
    assert cell.zoo_name == "qresnet20_rms"
    (plain,) = load_table("strategies").cells({"model": ("free",)})
    assert plain.zoo_name == "qresnet20"
    assert cell.key != plain.key


@pytest.mark.parametrize("name", ["qresnet20_rezero", "qresnet10", "qresnet20_rank4"])
def test_a_network_may_have_a_norm_for_which_the_zoo_has_no_name(name: str) -> None:
    spec = ModelSpec(kind="zoo", name=name, norm="quadratic")
    model = build_model(spec, (3, 8, 8), 10, 1.0, 0)
    assert {m.rms_dims for m in model.modules() if isinstance(m, Quadratic)} == {3}
    (plain,) = load_table("strategies").cells({"model": ("free",)})
    assert normed_name(spec) is None
    assert normed_name(plain.model) == "qresnet20_rms"


def test_a_quadratized_network_may_have_a_norm_which_the_zoo_has_not() -> None:
    spec = ModelSpec(kind="zoo", name="cifar_resnet20", quadratize="compact", norm="quadratic")
    model = build_model(spec, (3, 8, 8), 10, 1.0, 0, Strategy(start="conventional"))
    layers = [m for m in model.modules() if isinstance(m, Quadratic)]
    assert len(layers) == 19
    assert {layer.rms_dims for layer in layers} == {3}
    network = of_spec(spec)
    assert network.neuron == "compact, normalised"
    assert formula_of(network) == "w_r x + b_r + w_b x²/rms(x²) + c"


@pytest.mark.parametrize(
    ("norm", "said", "formula"),
    [
        ("quadratic", "compact, normalised", "w_r x + b_r + w_b x²/rms(x²) + c"),
        ("layers", "compact, normalised layers", "w_r x + b_r + w_b x² + c"),
        ("input", "compact, normalised input", "w_r x + b_r + w_b x² + c"),
    ],
)
def test_the_board_says_of_what_a_norm_is(norm: str, said: str, formula: str) -> None:
    fields = {"kind": "mlp", "hidden": (5,), "neuron": "compact", "norm": norm}
    network = of_spec(ModelSpec.model_validate(fields))
    assert network.neuron == said
    assert formula_of(network) == formula


@pytest.mark.parametrize("more", [{"neuron": "quadratic"}, {"bias": False}, {"norm": "input"}])
def test_a_square_is_a_neuron_of_its_own(more: dict[str, object]) -> None:
    said = "activation: square makes each layer one of neurons squared_output, with their biases"
    with pytest.raises(ValidationError, match=said):
        ModelSpec.model_validate({"kind": "mlp", "hidden": (5,), "activation": "square"} | more)


def test_the_zoo_has_no_name_for_a_normalised_form() -> None:
    assert diqnn_name(ModelSpec(kind="low_rank", rank=4)) == "diqnn_rank4"
    assert diqnn_name(ModelSpec(kind="low_rank", rank=4, norm="input")) is None
