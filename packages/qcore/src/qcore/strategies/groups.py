"""The parameter groups of ReLinear: made, known in an optimiser, and not stepped unattached."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from qcore.strategies.factors import KINDS
from qcore.strategies.reference import quadratic_layers

ATTACHED: WeakSet[Optimizer] = WeakSet()
"""The optimisers whose steps ReLinear takes part in."""


def split_groups(
    model: nn.Module,
    groups: Iterable[Mapping[str, Any]] | None,
    lr: float,
    weight_decay: float | None,
) -> list[dict[str, Any]]:
    """Each group by kind, with what its steps need under keys that begin with ``relinear``."""
    kinds, zeros, offsets = _roles(model)
    if groups is None:
        groups = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    defaults = {"lr": lr} | ({} if weight_decay is None else {"weight_decay": weight_decay})
    made: list[dict[str, Any]] = []
    for group in groups:
        entries = _entries(group)
        options = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        for kind in ("linear", *KINDS):
            members = [(p, e) for p, e in entries if kinds.get(id(p), "linear") == kind]
            if members:
                made.append(
                    {
                        **defaults,
                        **options,
                        "params": [entry for _, entry in members],
                        "relinear": kind,
                        "relinear_lr": lr,
                        "relinear_step": 0,
                        "relinear_zero": [id(p) in zeros for p, _ in members],
                        "relinear_offset": [offsets.get(id(p), 0.0) for p, _ in members],
                    }
                )
    _refuse_steps_before_attach()
    return made


def _roles(model: nn.Module) -> tuple[dict[int, str], set[int], dict[int, float]]:
    """Of the quadratic parameters, by ``id``: their kinds, the zero ones, the biases' offsets."""
    kinds: dict[int, str] = {}
    zeros: set[int] = set()
    offsets: dict[int, float] = {}
    for _, layer in quadratic_layers(model):
        zeros.update(id(parameter) for parameter in layer.parameters_zero_at_reference())
        offset_of = layer.offsets
        for letter, branch in layer.quadratic_branches().items():
            kind = "b" if letter in ("b", "q") else "g"
            kinds.update((id(parameter), kind) for parameter in branch.parameters())
            if offset_of[letter] and isinstance(bias := getattr(branch, "bias", None), Tensor):
                offsets[id(bias)] = offset_of[letter]
    return kinds, zeros, offsets


def _entries(group: Mapping[str, Any]) -> list[tuple[Tensor, Any]]:
    """The parameters of a group, each with the entry by which torch knows it, maybe with a name."""
    if not isinstance(group, Mapping) or "params" not in group:
        raise ValueError(
            f"groups holds a {type(group).__name__} that is no parameter group: give dictionaries "
            "with the key 'params', as to a torch optimiser"
        )
    params = group["params"]
    entries = [params] if isinstance(params, Tensor) else list(params)
    if "param_names" in group:  # as an optimiser keeps them; torch takes them back as pairs
        entries = list(zip(group["param_names"], entries, strict=True))
    return [(entry[1] if isinstance(entry, tuple) else entry, entry) for entry in entries]


def check_groups(optimizer: Optimizer) -> None:
    """``ValueError`` for groups that :func:`split_groups` did not make."""
    if any("relinear" not in group for group in optimizer.param_groups):
        raise ValueError(
            "optimizer has parameter groups that ReLinear.param_groups did not make: build it as "
            "Optimizer(strategy.param_groups(model, lr=...)), then attach; make groups that are "
            "added later in the same way"
        )


def steps_taken(optimizer: Optimizer) -> int:
    """The position in schedules; a group that was added later joins the others there."""
    return max(group["relinear_step"] for group in optimizer.param_groups)


@cache
def _refuse_steps_before_attach() -> None:
    """Watch over the steps of all optimisers, from the first ``param_groups`` of the process on.

    An optimiser that was never attached, or lost its hooks when it was copied, has no other place
    in which ReLinear could speak up.
    """
    register_optimizer_step_pre_hook(_check_attached)


def _check_attached(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    if optimizer in ATTACHED or all("relinear" not in g for g in optimizer.param_groups):
        return
    # inside the step of an attached optimiser, such as ZeroRedundancyOptimizer, the rates are set
    if any("relinear_undo" in group for outer in ATTACHED for group in outer.param_groups):
        return
    raise RuntimeError(
        "optimizer has ReLinear's parameter groups, but is not attached, and would train the "
        "quadratic parameters at the full rate: call strategy.attach(optimizer) first, again "
        "after copying or unpickling an optimizer"
    )
