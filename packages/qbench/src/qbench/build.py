"""Models from a table's entries, each drawn under its own seed."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

import qcore
from qbench.architecture import ModelSpec, normed_name
from qbench.errors import UserError
from qbench.recipe import Strategy
from qcore import LowRankForm, Quadratic, QuadraticForm, QuadraticLinear, ReLinear

MOST_DENSE_FEATURES = 1024
"""Features that a dense form takes: ten classes of 1024 have 5.2 million parameters."""


def build_model(
    spec: ModelSpec,
    shape: tuple[int, ...],
    classes: int,
    init_scale: float,
    seed: int,
    strategy: Strategy | None = None,
    trained: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """A network from inputs of ``shape`` to ``classes``, its parameters drawn under ``seed`` alone.

    The global random state is left as it was. ``init_scale`` scales the outputs at the start: for
    linear layers it multiplies PyTorch's initial weights. ``trained`` is the state of the network
    that ``spec.after`` names.

    Raises ``UserError`` for a dense form on more than 1024 features, and for a norm of quadratic
    branches in a network without.

    >>> build_model(ModelSpec(kind="low_rank", rank=2), (4,), 3, 1.0, seed=0)
    LowRankForm(in_features=4, out_features=3, rank=2, signed=False, affine=False)
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if spec.kind == "zoo":
            model = _zoo(spec, shape, classes, trained)
        elif spec.kind == "mlp":
            model = _mlp(spec, shape, classes, init_scale)
        else:
            model = _classifier(spec, shape, classes, init_scale)
        _place(model, strategy or Strategy(), keep=spec.kind == "zoo")
    with torch.no_grad():
        for name, values in spec.start.items():
            parameter = model.get_parameter(name)
            parameter.copy_(torch.tensor(values, dtype=parameter.dtype))
    return model


def _classifier(
    spec: ModelSpec, shape: tuple[int, ...], classes: int, init_scale: float
) -> nn.Module:
    parts, features = _features(spec, shape)
    if spec.kind == "dense":
        check_dense(features, classes)
    head = _head(spec, features, classes, init_scale)
    if not parts:
        return head
    return nn.Sequential(OrderedDict([*parts.items(), ("head", head)]))


def check_dense(features: int, classes: int) -> None:
    """Raise ``UserError`` where a dense form on so many features would be too large."""
    if features > MOST_DENSE_FEATURES:
        raise UserError(
            f"a dense form on {features} features has {classes * features * (features + 1) // 2} "
            f"parameters, and {MOST_DENSE_FEATURES} features are the most: choose a low-rank form, "
            "or a convolution with a larger stride or fewer channels"
        )


def _features(spec: ModelSpec, shape: tuple[int, ...]) -> tuple[OrderedDict[str, nn.Module], int]:
    """Convolution, flattening and norm, by name, where there are any, and the features that they
    make of an input."""
    parts = OrderedDict[str, nn.Module]()
    features = math.prod(shape)
    if (layer := spec.convolution) is not None:
        if len(shape) != 3 or min(shape[1:]) < layer.kernel:
            raise UserError(
                f"a convolution of {layer.kernel}×{layer.kernel} does not fit inputs of shape "
                f"{shape}: choose images, and a kernel no larger than they are"
            )
        parts["convolution"] = nn.Conv2d(shape[0], layer.channels, layer.kernel, layer.stride)
        parts["relu"] = nn.ReLU()
        features = layer.outputs(shape)
    if len(shape) > 1:
        parts["flatten"] = nn.Flatten()
    if spec.norm == "input":
        parts["norm"] = nn.RMSNorm(features, elementwise_affine=False)
    return parts, features


def _head(spec: ModelSpec, features: int, classes: int, init_scale: float) -> nn.Module:
    if spec.kind == "linear":
        # beside a convolution with its bias the classifier has one as well, as any in PyTorch
        linear = nn.Linear(features, classes, bias=spec.convolution is not None)
        with torch.no_grad():
            linear.weight.mul_(init_scale)
        return linear
    if spec.rank is None:
        return QuadraticForm(features, classes, affine=spec.affine, init_scale=init_scale)
    return LowRankForm(
        features,
        classes,
        spec.rank,
        signed=spec.signed,
        affine=spec.affine,
        init_scale=init_scale,
    )


def _mlp(spec: ModelSpec, shape: tuple[int, ...], classes: int, init_scale: float) -> nn.Module:
    parts, inputs = _features(spec, shape)
    layers = [*parts.values()]
    widths = (inputs, *hidden_widths(spec, inputs, classes))
    for before, after in pairwise(widths):
        if spec.activation == "square":
            # a linear neuron and the quadratic activation z² are this neuron
            layers.append(QuadraticLinear(before, after, neuron="squared_output"))
            continue
        layers += _norm_of_layer(spec, before)
        layers.append(_layer(spec, before, after))
        if spec.activation == "relu":
            layers.append(nn.ReLU())
    layers += _norm_of_layer(spec, widths[-1])
    output = nn.Linear(widths[-1], classes, bias=spec.bias)
    with torch.no_grad():
        for parameter in output.parameters():
            parameter.mul_(init_scale)
    return nn.Sequential(*layers, output)


def hidden_widths(spec: ModelSpec, inputs: int, outputs: int) -> tuple[int, ...]:
    """The hidden widths, multiplied by the least factor with which the parameters suffice."""
    if spec.as_large_as is None:
        return spec.hidden

    def parameters(neuron: str, hidden: tuple[int, ...]) -> int:
        of, linear = qcore.get_neuron(neuron), qcore.get_neuron("linear")
        inside = sum(b * of.cost(a).parameters for a, b in pairwise((inputs, *hidden)))
        biases = 0 if spec.bias else sum(hidden) + outputs
        return inside + outputs * linear.cost(hidden[-1]).parameters - biases

    if isinstance(spec.as_large_as, ModelSpec):
        with torch.device("meta"):  # counted without drawing it
            form = _head(spec.as_large_as, inputs, outputs, init_scale=1.0)
        wanted = sum(parameter.numel() for parameter in form.parameters())
    else:
        wanted = parameters(spec.as_large_as, spec.hidden)
    for extra in itertools.count(spec.hidden[0]):
        hidden = tuple(round(width * extra / spec.hidden[0]) for width in spec.hidden)
        if parameters(spec.neuron, hidden) >= wanted:
            return hidden
    raise AssertionError  # the count does not end


def _norm_of_layer(spec: ModelSpec, inputs: int) -> list[nn.Module]:
    return [nn.RMSNorm(inputs, elementwise_affine=False)] if spec.norm == "layers" else []


def _layer(spec: ModelSpec, inputs: int, outputs: int) -> nn.Module:
    if spec.neuron == "linear":
        return nn.Linear(inputs, outputs, bias=spec.bias)
    return QuadraticLinear(
        inputs,
        outputs,
        bias=spec.bias,
        neuron=spec.neuron,
        rank=spec.neuron_rank,
        rms_norm=spec.norm == "quadratic",
    )


def check_norm(spec: ModelSpec) -> None:
    """Raise ``UserError`` where a network of the zoo has no quadratic branches to have a norm."""
    from qzoo.architectures import CIFAR_QRESNETS

    row = {**CIFAR_QRESNETS.get(spec.full_name, {"neuron": "linear"}), **spec.options}
    if spec.norm and spec.quadratize is None and row.get("neuron") == "linear":
        raise UserError(
            f"norm: quadratic is of what quadratic branches see, and {spec.full_name} has none: "
            "leave it out, or quadratize"
        )


def _zoo(
    spec: ModelSpec, shape: tuple[int, ...], classes: int, trained: Mapping[str, Tensor] | None
) -> nn.Module:
    # timm takes seconds to import, and only these models need it
    import timm

    import qzoo  # noqa: F401 - registers the zoo's models

    check_norm(spec)
    has_norm = spec.norm == "quadratic"
    name, options = spec.full_name, dict(spec.options)
    if has_norm and spec.quadratize is None:
        name, options = normed_name(spec) or name, {**options, "rms_norm": True}
    model: nn.Module = timm.create_model(name, num_classes=classes, in_chans=shape[0], **options)
    if trained is not None:
        model.load_state_dict(dict(trained))
    if spec.quadratize is not None:
        model = qcore.quadratize(model, spec.quadratize, include=nn.Conv2d, rms_norm=has_norm)
    return model


def _place(model: nn.Module, strategy: Strategy, *, keep: bool) -> None:
    """Move quadratic layers to where the strategy starts; ``keep`` if they are at the reference.

    Neurons without a linear reference stay as they were drawn.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, Quadratic)]
    if not layers or any(layer.reference is None for layer in layers):
        return
    if strategy.start == "reference":
        if not keep:
            ReLinear().init_(model)
        return
    for layer in layers:
        for letter, branch in layer.branches_zero_at_reference().items():
            branch.reset_parameters()  # type: ignore[operator]
            if isinstance(bias := getattr(branch, "bias", None), Tensor):
                with torch.no_grad():  # what PyTorch draws is the whole constant, offset included
                    bias.sub_(layer.offsets[letter])
