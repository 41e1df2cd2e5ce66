"""Many seeds of a model as one module."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap


class Stacked(nn.Module):
    """Replicas of one model that train side by side, each on its own data.

    The module tree is that of a replica; its parameters and buffers have a leading dimension S, one
    slice per replica, so optimisers and parameter groups see an ordinary module. ``vmap`` runs the
    replicas together; :func:`side_by_side` leaves it out for a single one.

    Shapes: input ``(S, B, ...)``, output ``(S, B, ...)``.

    Raises ``ValueError`` for no replicas, or replicas whose parameters differ in name or shape.

    >>> stacked = Stacked([nn.Linear(4, 3), nn.Linear(4, 3)])
    >>> stacked(torch.randn(2, 5, 4)).shape, stacked.module.weight.shape
    (torch.Size([2, 5, 3]), torch.Size([2, 3, 4]))
    """

    def __init__(self, replicas: Sequence[nn.Module]) -> None:
        super().__init__()
        if not replicas:
            raise ValueError("replicas is empty: give at least one module")
        states = [_tensors(replica) for replica in replicas]
        shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError(
                "replicas differ in their parameters' names or shapes: build them alike"
            )
        self.replicas = len(replicas)
        self.module = deepcopy(replicas[0])
        for name, tensor in states[0].items():
            path, _, leaf = name.rpartition(".")
            owner = self.module.get_submodule(path)
            stack = torch.stack([state[name].detach() for state in states])
            if isinstance(tensor, nn.Parameter):
                setattr(owner, leaf, nn.Parameter(stack, requires_grad=tensor.requires_grad))
            else:
                owner._buffers[leaf] = stack

    def forward(self, x: Tensor) -> Tensor:
        """Each replica on its slice of ``x``."""
        tensors = _tensors(self.module)
        return vmap(self._one)(tensors, x)

    def _one(self, tensors: dict[str, Tensor], x: Tensor) -> Any:
        return functional_call(self.module, tensors, (x,))

    def replica_state(self, index: int) -> dict[str, Tensor]:
        """Parameters and buffers of one replica by name, detached."""
        state = self.module.state_dict()
        return {name: value[index].detach().clone() for name, value in state.items()}

    def replica(self, index: int) -> nn.Module:
        """One replica as a module of its own, with copies of its parameters and buffers."""
        alone = deepcopy(self.module)
        for name, tensor in _tensors(self.module).items():
            path, _, leaf = name.rpartition(".")
            owner, value = alone.get_submodule(path), tensor[index].detach().clone()
            if leaf in owner._parameters:
                setattr(owner, leaf, nn.Parameter(value))
            else:
                owner._buffers[leaf] = value
        return alone


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


class Single(nn.Module):
    """One model in the place of a :class:`Stacked`, without vmap: nothing is copied or wrapped.

    Shapes: input ``(1, B, ...)``, output ``(1, B, ...)``.
    """

    replicas = 1

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """The model on the only slice of ``x``."""
        return self.module(x[0]).unsqueeze(0)

    def replica_state(self, index: int) -> dict[str, Tensor]:
        """Parameters and buffers by name, detached."""
        del index  # there is one
        return {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def replica(self, index: int) -> nn.Module:
        """The model, copied."""
        del index  # there is one
        return deepcopy(self.module)


def side_by_side(replicas: Sequence[nn.Module]) -> Stacked | Single:
    """Replicas as one module; a single one stays what it is."""
    return Single(replicas[0]) if len(replicas) == 1 else Stacked(replicas)
