"""A model as a function of its trainable parameters θ and its input, in double precision."""

import math
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

Parameters = dict[str, Tensor]
Function = Callable[[Parameters, Tensor], Tensor]


def as_function(model: nn.Module) -> tuple[Function, Parameters]:
    """``f(θ, x)`` and the model's θ, on a double precision copy in eval mode.

    θ are the parameters that require a gradient; frozen ones and buffers are constants of ``f``.

    Raises ``ValueError`` where there are none.
    """
    copy = deepcopy(model).double().eval()
    theta = {name: p.detach() for name, p in copy.named_parameters() if p.requires_grad}
    if not theta:
        raise ValueError(
            f"model {type(model).__name__} has no trainable parameters; "
            "undo requires_grad_(False) for those to be varied"
        )
    return lambda theta, x: torch.func.functional_call(copy, theta, (x,)), theta


def flatten(theta: Parameters, batch_dims: int = 0) -> Tensor:
    """All parameters side by side in one vector, after ``batch_dims`` leading dimensions."""
    return torch.cat([value.flatten(batch_dims) for value in theta.values()], dim=-1)


def placed(x: Tensor, theta: Parameters) -> Tensor:
    """``x`` where θ is, in double precision; whole numbers, such as token indices, stay whole."""
    device = next(iter(theta.values())).device
    return x.to(device, torch.float64) if x.is_floating_point() else x.to(device)


def generic(theta: Parameters, generator: torch.Generator) -> Parameters:
    """Parameters in general position: θ plus normal noise of each tensor's own size.

    Zeros, such as biases at the start, would hide what they do; they move as well.
    """
    moved = {}
    for name, value in theta.items():
        size = value.norm().item() / math.sqrt(max(value.numel(), 1)) or 0.1
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        moved[name] = value + size * noise.to(value.device)
    return moved


def random_inputs(model: nn.Module, count: int, generator: torch.Generator) -> Tensor:
    """Standard normal inputs ``(count, in_features)`` for a model that begins with such a layer.

    Raises ``ValueError`` where the first layer with parameters has no ``in_features``.
    """
    for module in model.modules():
        size = getattr(module, "in_features", None)
        if isinstance(size, int):
            return torch.randn(count, size, generator=generator, dtype=torch.float64)
        if next(module.parameters(recurse=False), None) is not None:
            break
    raise ValueError(
        f"model {type(model).__name__} does not begin with a layer that has in_features; "
        "give inputs as x="
    )
