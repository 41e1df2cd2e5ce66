"""ReLinear: training a quadratic network in reference to the linear one it contains.

Paper: Fan et al., "On Expressivity and Trainability of Quadratic Networks", arXiv 2110.06081. The
name stands for *referenced linear* initialisation; it is a training strategy, not an activation.
"""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from qcore.forms import LowRankForm
from qcore.layers import Quadratic

_KINDS = ("g", "b")


class ReLinear:
    r"""Start a quadratic network at its linear reference, its quadratic part at a rate of its own.

    At the reference, :math:`w_g = 0, b_g = 1, w_b = 0, c = 0`: every quadratic neuron is its linear
    branch. From there the quadratic parameters train with the learning rate
    :math:`\gamma \cdot \eta`: γ = 0 stays the linear network, γ = 1 is free.

    Args:
        gamma: factor in [0, 1] of the quadratic parameters' learning rate; a number, or a pair
            ``(γ_g, γ_b)``: γ_g for factors of products (``g``), γ_b for squared inputs and forms
            (``b``).

    Raises ``ValueError`` for a γ outside [0, 1].

    Source: arXiv 2110.06081, section IV; shrinking of gradients in the authors' repository.

    >>> from qcore import QuadraticLinear
    >>> model = QuadraticLinear(4, 3)
    >>> strategy = ReLinear(gamma=1e-4)
    >>> _ = strategy.init_(model)
    >>> x = torch.randn(5, 4)
    >>> torch.equal(model(x), model["r"](x))
    True
    >>> optimizer = torch.optim.SGD(strategy.param_groups(model, lr=0.1), momentum=0.9)
    >>> [(group["relinear"], group["lr"]) for group in optimizer.param_groups]
    [('linear', 0.1), ('g', 1e-05), ('b', 1e-05)]
    """

    def __init__(self, gamma: float | tuple[float, float] = 1.0) -> None:
        pair = gamma if isinstance(gamma, tuple) else (gamma, gamma)
        if len(pair) != 2:
            raise ValueError(f"gamma={gamma!r} is not allowed: give a number or a pair (g, b)")
        for kind, value in zip(_KINDS, pair, strict=True):
            if not 0.0 <= value <= 1.0:
                raise ValueError(
                    f"gamma={value!r} for {kind} is not allowed: "
                    "choose from 0 (the linear network) to 1 (free)"
                )
        self.gamma = {"g": float(pair[0]), "b": float(pair[1])}

    def init_(self, model: nn.Module) -> nn.Module:
        """Move every quadratic layer of ``model`` to its linear reference, in place; return it.

        Exactly one factor of each quadratic term is set to 0, so that it receives a gradient; the
        reference branch is left as it is, random or trained.

        Raises ``ValueError`` for a model without quadratic layers, and, naming the layer, for a
        neuron without a linear reference and for a low-rank form without trainable signs; nothing
        is changed then.
        """
        zeros: list[nn.Parameter] = []
        for path, layer in _quadratic_layers(model):
            name = path or type(layer).__name__
            if layer.reference is None:
                raise ValueError(
                    f"layer {name!r} has neuron {layer.neuron!r}, which has no linear reference: "
                    "choose one that has, e.g. 'quadratic', 'compact' or 'qres'"
                )
            for branch in layer.branches_zero_at_reference().values():
                zeros += _zeros_at_reference(branch, name)
        with torch.no_grad():
            for parameter in zeros:
                parameter.zero_()
        return model

    def param_groups(
        self, model: nn.Module, lr: float, weight_decay: float = 0.0
    ) -> list[dict[str, Any]]:
        """Groups for any torch optimiser: ``linear`` at ``lr``, ``g`` and ``b`` at ``γ·lr``.

        Parameters that do not require gradients are left out, as are empty groups. ``weight_decay``
        (per unit of learning rate) is the same everywhere; since an offset is not a parameter, it
        pulls the quadratic parameters towards the linear reference.

        Raises ``ValueError`` for a model without quadratic layers.
        """
        kinds: dict[int, str] = {}
        for _, layer in _quadratic_layers(model):
            for letter, branch in layer.quadratic_branches().items():
                kind = "b" if letter in ("b", "q") else "g"
                kinds.update((id(parameter), kind) for parameter in branch.parameters())
        members: dict[str, list[nn.Parameter]] = {"linear": [], "g": [], "b": []}
        for parameter in model.parameters():
            if parameter.requires_grad:
                members[kinds.get(id(parameter), "linear")].append(parameter)
        return [
            {
                "params": parameters,
                "lr": lr * self.gamma.get(kind, 1.0),
                "weight_decay": weight_decay,
                "relinear": kind,
                "relinear_lr": lr,
            }
            for kind, parameters in members.items()
            if parameters
        ]

    def attach(self, optimizer: Optimizer) -> Optimizer:
        """Apply γ inside each step instead of in the groups' ``lr``, and return the optimiser.

        Schedulers then see one common learning rate in all groups, and those that set it outright
        (``OneCycleLR``, ``CyclicLR``) no longer wipe out γ: each step multiplies the rate by γ
        before and restores it after. Without it, γ stands in the groups' ``lr``, which is right for
        every scheduler that multiplies.

        Raises ``ValueError`` for groups that ``param_groups`` did not make, an optimiser that has
        been attached before, or one that already has a scheduler.
        """
        groups = optimizer.param_groups
        if any("relinear" not in group for group in groups):
            raise ValueError(
                "optimizer has parameter groups that ReLinear.param_groups did not make: build it "
                "as Optimizer(strategy.param_groups(model, lr=...)), then attach"
            )
        if any("relinear_lr" not in group for group in groups):
            raise ValueError("optimizer is attached already: attach once")
        if any("initial_lr" in group for group in groups):
            raise ValueError(
                "optimizer already has a scheduler: attach before making the scheduler"
            )
        for group in groups:
            group["lr"] = group.pop("relinear_lr")

        def shrink(optimizer: Optimizer, *_: Any) -> None:
            for group in optimizer.param_groups:
                group["relinear_restore"] = group["lr"]
                group["lr"] = group["lr"] * self.gamma.get(group.get("relinear", "linear"), 1.0)

        def restore(optimizer: Optimizer, *_: Any) -> None:
            for group in optimizer.param_groups:
                group["lr"] = group.pop("relinear_restore")

        optimizer.register_step_pre_hook(shrink)
        optimizer.register_step_post_hook(restore)
        return optimizer

    def __repr__(self) -> str:
        return f"ReLinear(gamma=({self.gamma['g']:g}, {self.gamma['b']:g}))"


def _quadratic_layers(model: nn.Module) -> list[tuple[str, Quadratic]]:
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


def _zeros_at_reference(branch: nn.Module, layer: str) -> list[nn.Parameter]:
    """A branch's parameters to set to 0: all, but of a low-rank form σ alone.

    With its factors at 0 as well, neither they nor σ would receive a gradient.
    """
    forms = [module for module in branch.modules() if isinstance(module, LowRankForm)]
    if not all(form.signed for form in forms):
        raise ValueError(
            f"layer {layer!r} has a low-rank form without trainable signs, which receives no "
            "gradient at the linear reference: build it with signed=True"
        )
    kept = {id(form.factors) for form in forms}
    return [parameter for parameter in branch.parameters() if id(parameter) not in kept]
