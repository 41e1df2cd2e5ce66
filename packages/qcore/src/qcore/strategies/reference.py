"""The linear reference of a model: the point where every quadratic layer is its linear branch."""

import torch
from torch import Tensor, nn

from qcore.forms import LowRankForm
from qcore.layers import Quadratic


def quadratic_layers(model: nn.Module) -> list[tuple[str, Quadratic]]:
    """The layers built as neurons of the catalogue, with their paths.

    ``linear`` is one of them: the control trains under the same strategy, unchanged by it.
    """
    layers = [
        (path, module) for path, module in model.named_modules() if isinstance(module, Quadratic)
    ]
    if not layers:
        raise ValueError(
            f"model ({type(model).__name__}) has no quadratic layers: build it from qcore's "
            "layers, e.g. qcore.QuadraticLinear"
        )
    return layers


def check_trainable_from_reference(model: nn.Module) -> None:
    """Refuse a layer without a linear reference, or one that could never train away from it.

    A parameter receives a gradient at the reference if it is the one factor that is 0 there of
    some product; where the rest of each of its products is 0 as well, it stays where it is.
    """
    for path, layer in quadratic_layers(model):
        name = path or type(layer).__name__
        if layer.reference is None:
            raise ValueError(
                f"layer {name!r} has neuron {layer.neuron!r}, which has no linear reference: "
                "choose one that has, e.g. 'quadratic', 'compact' or 'qres'"
            )
        for letter, branch in layer.branches_zero_at_reference().items():
            if not _receives_gradient(layer, letter):
                raise ValueError(
                    f"layer {name!r} has neuron {layer.neuron!r}, whose branch {letter!r} receives "
                    "no gradient at the linear reference, where all that multiplies it is 0: "
                    "change its terms, or give a factor an offset"
                )
            if not all(form.signed for form in _low_rank_forms(branch)):
                raise ValueError(
                    f"layer {name!r} has a low-rank form without trainable signs, which receives "
                    "no gradient at the linear reference: build it with signed=True"
                )


def conventional_values(model: nn.Module, conventional: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Each tensor of ``model`` at its reference, with the one of ``conventional`` to be copied.

    Refuses networks that do not match, before anything is changed.
    """
    for path, layer in conventional.named_modules():
        if isinstance(layer, Quadratic) and layer.quadratic_branches():
            raise ValueError(
                f"conventional has the quadratic layer {path!r} ({layer.neuron}): give a network "
                "of ordinary layers, or of layers with neuron='linear'"
            )
    (ours, surplus), (theirs, _) = _reference_state(model), _reference_state(conventional)
    for names, there, here in ((theirs, "conventional", "model"), (ours, "model", "conventional")):
        alone = [name for name in names if name not in (ours if names is theirs else theirs)]
        if alone:
            raise ValueError(
                f"{there} has {alone[0]!r}, which {here} has not ({len(alone)} such names): the "
                "two must be one architecture, layer for layer under the same paths"
            )
    for name, tensor in ours.items():
        if tensor.shape != theirs[name].shape:
            raise ValueError(
                f"conventional has {name!r} of shape {tuple(theirs[name].shape)}, but model needs "
                f"{tuple(tensor.shape)}: the two must be one architecture"
            )
    pairs = [(tensor, theirs[name]) for name, tensor in ours.items()]
    return pairs + [(tensor, torch.zeros_like(tensor)) for tensor in surplus]


def _reference_state(model: nn.Module) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The state of the linear network inside the model, under the names that network would have.

    ``conv1.r.weight`` is its ``conv1.weight``; the constant of a neuron like ``qres``, whose
    branches have no bias of their own, is its ``conv1.bias``. Where they have one all the same, the
    constant is surplus: the second result.
    """
    renamed: dict[str, str | None] = {}  # the path of a branch: that of its layer, or None
    for path, layer in model.named_modules():
        if isinstance(layer, Quadratic):
            quadratic = layer.quadratic_branches()
            for letter in layer:
                branch_path = f"{path}.{letter}" if path else letter
                renamed[branch_path] = None if letter in quadratic else path
    state: dict[str, Tensor] = {}
    surplus: list[Tensor] = []
    for key, value in model.state_dict(keep_vars=True).items():
        steps = key.split(".")
        heads = [".".join(steps[:i]) for i in range(1, len(steps))]
        branch_path = next((head for head in heads if head in renamed), "")
        name: str | None = key
        if branch_path:
            path, rest = renamed[branch_path], key[len(branch_path) + 1 :]
            name = None if path is None else f"{path}.{rest}" if path else rest
        if name in state:
            surplus.append(value)
        elif name is not None:
            state[name] = value
    return state, surplus


def _receives_gradient(layer: Quadratic, letter: str) -> bool:
    zero = {k for k in layer.branches_zero_at_reference() if layer.offsets[k] == 0.0}
    for term in layer.terms:
        if letter in term:
            rest = list(term)
            rest.remove(letter)
            if not zero.intersection(rest):
                return True
    return False


def _low_rank_forms(branch: nn.Module) -> list[LowRankForm]:
    return [module for module in branch.modules() if isinstance(module, LowRankForm)]
