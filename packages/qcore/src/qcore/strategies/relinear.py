"""ReLinear: training a quadratic network in reference to the linear one it contains.

Paper: Fan et al., "On Expressivity and Trainability of Quadratic Networks", arXiv 2110.06081. The
name stands for *referenced linear* initialisation; it is a training strategy, not an activation.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import LBFGS, Optimizer, Rprop

from qcore.strategies.factors import (
    KINDS,
    Factor,
    absolute_rates,
    factor_at,
    factors_by_kind,
    factors_text,
)
from qcore.strategies.groups import ATTACHED, check_groups, split_groups, steps_taken
from qcore.strategies.reference import (
    check_trainable_from_reference,
    conventional_values,
    quadratic_layers,
)


class ReLinear:
    r"""Start a quadratic network at its linear reference, and hold its quadratic part near it.

    At the reference, :math:`w_g = 0, b_g = 1, w_b = 0, c = 0`: every quadratic neuron is its linear
    branch. From there three factors, each from 0, the linear network, to 1, free, say how fast the
    quadratic parameters θ may leave it. In each step, at the learning rate η,

    .. math::
        \theta \leftarrow S_{\eta (1/\beta - 1)}\bigl(\alpha \cdot
            \mathrm{step}_{\gamma \eta}(\theta)\bigr), \qquad
        S_t(\theta) = \mathrm{sign}(\theta) \max(|\theta| - t, 0)

    γ multiplies the learning rate of all quadratic parameters. α (ℓ2) and β (ℓ1) shrink those that
    are 0 at the reference; β = 0 sets them to 0. The authors name the three and their ends; for α
    and β they publish no code, and the formula is this library's. η is the rate that the scheduler
    set, without γ: each factor acts by itself.

    Args:
        gamma, alpha, beta: a factor, or a pair of them: the first for factors of products (``g``),
            the second for squared inputs and forms (``b``). A factor is a number in [0, 1] or a
            schedule, a function of the number of steps taken: :class:`qcore.LinearSchedule`,
            :class:`qcore.CosineSchedule`, :class:`qcore.StepSchedule`, or your own. None is 1.
        lr_g, lr_b: in place of ``gamma``, the rates themselves, as in the published scripts (1e-5,
            1e-3 and 0 at the rate 0.1). They are those at the ``lr`` given to
            :meth:`param_groups`: whatever changes a group's rate changes these in proportion.
        weight_decay: what weight decay pulls g's bias to. ``"reference"``: to the linear network,
            as all other quadratic parameters. ``"published"``: :math:`b_g = 1 + \text{bias}` itself
            to 0, as in the published scripts. For the length of a step the parameter then is b_g:
            right for every optimiser, and with the scripts' rounding, in which a change below half
            a unit in the last place of b_g, 3e-8 in float32, is lost.

    Cost: nothing for γ; one or two passes over the quadratic parameters per step for α and β.

    Raises ``ValueError`` for a factor outside [0, 1], for ``gamma`` with ``lr_g`` or ``lr_b``, for
    one of these without the other or below 0, and for another ``weight_decay``.

    Source: arXiv 2110.06081, section IV, and the authors' repository.

    >>> from qcore import QuadraticLinear
    >>> model = QuadraticLinear(4, 3)
    >>> strategy = ReLinear(gamma=1e-4)
    >>> _ = strategy.init_(model)
    >>> x = torch.randn(5, 4)
    >>> torch.equal(model(x), model["r"](x))
    True
    >>> groups = strategy.param_groups(model, lr=0.1, weight_decay=1e-4)
    >>> optimizer = strategy.attach(torch.optim.SGD(groups, momentum=0.9))
    >>> print(strategy.summary(model, optimizer))
    ReLinear(gamma=(0.0001, 0.0001)), 0 steps taken
    parameter  part    learning rate  weight decay
    r.weight   linear  0.1            0.0001
    r.bias     linear  0.1            0.0001
    g.weight   g       1e-05          0.0001
    g.bias     g       1e-05          0.0001
    b.weight   b       1e-05          0.0001
    b.bias     b       1e-05          0.0001
    """

    def __init__(
        self,
        gamma: Factor | tuple[Factor, Factor] | None = None,
        *,
        alpha: Factor | tuple[Factor, Factor] | None = None,
        beta: Factor | tuple[Factor, Factor] | None = None,
        lr_g: float | None = None,
        lr_b: float | None = None,
        weight_decay: Literal["reference", "published"] = "reference",
    ) -> None:
        if weight_decay not in ("reference", "published"):
            raise ValueError(
                f"weight_decay={weight_decay!r} is not allowed: choose 'reference' or 'published'; "
                "its strength goes to param_groups(model, lr=..., weight_decay=...)"
            )
        self.gamma = factors_by_kind("gamma", gamma)
        self.alpha = factors_by_kind("alpha", alpha)
        self.beta = factors_by_kind("beta", beta)
        self.rates = absolute_rates(gamma, lr_g, lr_b)
        self.weight_decay = weight_decay

    def init_(self, model: nn.Module, conventional: nn.Module | None = None) -> nn.Module:
        """Move every quadratic layer of ``model`` to its linear reference, in place; return it.

        Exactly one factor of each quadratic term is set to 0, so that it receives a gradient.

        Args:
            model: the network with quadratic layers.
            conventional: a network of the same architecture, with ordinary layers where ``model``
                has quadratic ones; its state, from weights to running statistics, is copied, so
                that training starts from it. None leaves the reference branches as they are: random
                from scratch, or trained.

        Raises ``ValueError`` for a model without quadratic layers; naming the layer, for a neuron
        without a linear reference and for one that would receive no gradient there, such as a
        low-rank form without trainable signs; and for a ``conventional`` that does not match.
        Nothing is changed then.

        Source: the repository's figure 1 (both ways to start).

        >>> from qcore import QuadraticLinear
        >>> trained = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> model = nn.Sequential(QuadraticLinear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> x = torch.randn(5, 4)
        >>> torch.equal(ReLinear().init_(model, conventional=trained)(x), trained(x))
        True
        """
        check_trainable_from_reference(model)
        copies = [] if conventional is None else conventional_values(model, conventional)
        with torch.no_grad():
            for _, layer in quadratic_layers(model):
                for parameter in layer.parameters_zero_at_reference():
                    parameter.zero_()
            for ours, theirs in copies:
                ours.copy_(theirs)
        return model

    def param_groups(
        self,
        model: nn.Module,
        lr: float,
        weight_decay: float | None = None,
        *,
        groups: Iterable[Mapping[str, Any]] | None = None,
    ) -> list[dict[str, Any]]:
        """Groups for any torch optimiser, which then goes to :meth:`attach`.

        Each group is split into ``linear``, ``g`` and ``b``, in this order, without empty ones. All
        show the common learning rate: the factors act inside each step. Neurons without a linear
        reference have quadratic parameters as well, which γ slows down.

        Args:
            model: the network with quadratic layers.
            lr: the common learning rate.
            weight_decay: per unit of learning rate, the same everywhere; None leaves it to the
                optimiser. Offsets are no parameters: it pulls towards the linear reference.
            groups: groups to split, such as ``timm.optim.param_groups_layer_decay`` makes. All
                their keys are kept; ``lr`` and ``weight_decay`` are for those that lack them. None
                is one group of all parameters that require gradients.

        Raises ``ValueError`` for a model without quadratic layers, for ``lr_g`` or ``lr_b`` above
        ``lr``, and where α or β is used, for layers that :meth:`init_` refuses.

        >>> from qcore import QuadraticLinear
        >>> model = nn.Sequential(nn.Linear(8, 4), QuadraticLinear(4, 3, neuron="compact"))
        >>> backbone_slower = [
        ...     {"params": model[0].parameters(), "lr": 0.01},
        ...     {"params": model[1].parameters()},
        ... ]
        >>> for group in ReLinear(gamma=0.1).param_groups(model, lr=0.1, groups=backbone_slower):
        ...     print(group["relinear"], group["lr"], len(group["params"]))
        linear 0.01 2
        linear 0.1 2
        b 0.1 2
        """
        if self._shrinks:
            check_trainable_from_reference(model)
        for kind in KINDS:
            self._rate_factor(kind, lr, step=0)
        return split_groups(model, groups, lr, weight_decay)

    def attach(self, optimizer: Optimizer) -> Optimizer:
        """Apply the strategy inside each step of the optimiser, from now on; return it.

        Before a step the groups' rates are multiplied by γ, after it they are restored and θ is
        shrunk: schedulers, those that multiply and those that set a rate, only see the common one.
        The position in schedules is the number of steps taken; it stands in the groups, and so
        travels with the optimiser's ``state_dict``. Hooks do not: attach again where an optimiser
        was built, copied or unpickled anew.

        A step of an optimiser that has groups of :meth:`param_groups` and was not attached is a
        ``RuntimeError``; it would train the quadratic parameters at the full rate. Where one
        optimiser steps another, attach that whose step you call.

        Raises ``ValueError`` for groups that ``param_groups`` did not make, an optimiser that has
        been attached before, and for ``LBFGS`` and ``Rprop``, which know no learning rate of a
        group.
        """
        if isinstance(optimizer, LBFGS | Rprop):
            raise ValueError(
                f"optimizer {type(optimizer).__name__} does not scale a group's step by its "
                "learning rate, so quadratic parameters cannot have a rate of their own: choose "
                "another, e.g. SGD or AdamW"
            )
        check_groups(optimizer)
        if optimizer in ATTACHED:
            raise ValueError("optimizer is attached already: attach once")
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)
        ATTACHED.add(optimizer)
        return optimizer

    @torch.no_grad()
    def clip_grad_norm_(self, optimizer: Optimizer, max_norm: float) -> Tensor:
        r"""Scale all gradients down, to the norm ``max_norm`` of what γ leaves of them.

        .. math::
            g \leftarrow g \cdot \min\Bigl(1, \frac{c}{\lVert \gamma \odot g \rVert_2}\Bigr)

        γ is the factor of each group in the next step, 1 for linear parameters; α, β and rates of
        groups have no part in it. In place of ``torch.nn.utils.clip_grad_norm_``, which counts the
        gradients of quadratic parameters in full, and scales all others down for them even where
        γ = 0. Call it between ``backward()`` (with a ``GradScaler``, its ``unscale_``) and
        ``step()``.

        Args:
            optimizer: of groups that :meth:`param_groups` made.
            max_norm: c, above 0.

        Returns the norm before, not finite where a gradient is not; nothing is scaled up. Cost:
        two passes over the gradients.

        Raises ``ValueError`` for groups that :meth:`param_groups` did not make, and for a
        ``max_norm`` of 0 or less.

        >>> from qcore import QuadraticLinear
        >>> model, strategy = QuadraticLinear(4, 3), ReLinear(gamma=0.0)
        >>> optimizer = strategy.attach(torch.optim.SGD(strategy.param_groups(model, lr=0.1)))
        >>> model(torch.randn(5, 4)).square().sum().backward()
        >>> _ = strategy.clip_grad_norm_(optimizer, max_norm=0.5)
        >>> linear = [parameter.grad for parameter in model["r"].parameters()]
        >>> round(torch.nn.utils.get_total_norm(linear).item(), 4)  # the rest takes no step
        0.5
        """
        if not max_norm > 0:
            raise ValueError(f"max_norm={max_norm} is not allowed: give a norm above 0")
        gradients: list[Tensor] = []
        norms: list[Tensor] = []
        for group, factor in zip(optimizer.param_groups, self.rate_factors(optimizer), strict=True):
            for gradient in (p.grad for p in group["params"] if p.grad is not None):
                # squares of float16 overflow where those of γ times it would not
                precise = torch.promote_types(gradient.dtype, torch.float32)
                gradients.append(gradient)
                norms.append(factor * torch.linalg.vector_norm(gradient, dtype=precise))
        if not norms:
            return torch.zeros(())
        norm = torch.stack([one.to(norms[0].device) for one in norms]).norm()
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale.to(gradient.device))
        return norm

    def rate_factors(self, optimizer: Optimizer) -> list[float]:
        """γ of each of the optimiser's groups in its next step: 1 for linear parameters.

        Raises ``ValueError`` for groups that :meth:`param_groups` did not make.

        >>> from qcore import QuadraticLinear
        >>> strategy = ReLinear(gamma=(0.1, 0.01))
        >>> groups = strategy.param_groups(QuadraticLinear(4, 3), lr=0.1)
        >>> strategy.rate_factors(strategy.attach(torch.optim.SGD(groups)))
        [1.0, 0.1, 0.01]
        """
        check_groups(optimizer)
        step = steps_taken(optimizer)
        return [
            self._rate_factor(group["relinear"], group["relinear_lr"], step)
            for group in optimizer.param_groups
        ]

    def summary(self, model: nn.Module, optimizer: Optimizer) -> str:
        """A table, as text: each parameter's part, its rate in the next step, its weight decay.

        With α or β, their values in the next step as well; a dash stands for what a parameter has
        not, such as a rate where it is not in the optimiser. The class shows an example.

        Raises ``ValueError`` for groups that :meth:`param_groups` did not make.
        """
        factors = self.rate_factors(optimizer)
        step = steps_taken(optimizer)
        header = ["parameter", "part", "learning rate", "weight decay"]
        header += ["alpha", "beta"] if self._shrinks else []
        rows: dict[int, list[str]] = {}
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            kind = group["relinear"]
            rate = float(group["lr"]) * factor
            shown = [kind, f"{rate:g}", f"{group.get('weight_decay', 0.0):g}"]
            for parameter, zero in zip(group["params"], group["relinear_zero"], strict=True):
                shrinking = [f"{value:g}" for value in self._shrink_factors(kind, step)]
                rows[id(parameter)] = shown + (shrinking if zero else ["-", "-"])
        table = [header] + [
            [name, *rows.get(id(parameter), ["-"] * 5)][: len(header)]
            for name, parameter in model.named_parameters()
        ]
        widths = [max(len(row[i]) for row in table) for i in range(len(header))]
        lines = [f"{self!r}, {step} steps taken"]
        for row in table:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    def __repr__(self) -> str:
        if self.rates is None:
            given = [f"gamma={factors_text(self.gamma)}"]
        else:
            given = [f"lr_{kind}={rate:g}" for kind, rate in self.rates.items()]
        for name, pair in (("alpha", self.alpha), ("beta", self.beta)):
            if pair != factors_by_kind(name, None):
                given.append(f"{name}={factors_text(pair)}")
        if self.weight_decay != "reference":
            given.append(f"weight_decay={self.weight_decay!r}")
        return f"ReLinear({', '.join(given)})"

    @property
    def _shrinks(self) -> bool:
        return any(factor != 1.0 for pair in (self.alpha, self.beta) for factor in pair.values())

    def _rate_factor(self, kind: str, base_lr: float, step: int) -> float:
        """γ of a group: given, or the absolute rate relative to the ``lr`` of ``param_groups``."""
        if kind == "linear":
            return 1.0
        if self.rates is None:
            return factor_at("gamma", self.gamma, kind, step)
        rate = self.rates[kind]
        if rate > base_lr:
            raise ValueError(
                f"lr_{kind}={rate:g} is not allowed with lr={base_lr:g}: "
                "choose from 0 (the linear network) to lr (free)"
            )
        return rate / base_lr if rate else 0.0

    def _shrink_factors(self, kind: str, step: int) -> tuple[float, float]:
        if kind == "linear":
            return 1.0, 1.0
        return factor_at("alpha", self.alpha, kind, step), factor_at("beta", self.beta, kind, step)

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        factors = self.rate_factors(optimizer)
        _undo(optimizer)  # where an earlier step broke off, e.g. in its closure
        shifts = self.weight_decay == "published" and not _skips(optimizer)
        if shifts and kwargs.get("closure", args[1] if len(args) > 1 else None) is not None:
            raise ValueError(
                "closure is not allowed with weight_decay='published': the step sees b_g in place "
                "of its distance from 1; call step() after backward(), without a closure"
            )
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            # in the group itself, so that loading a state replaces it together with the rate
            shifted: list[int] = []
            group["relinear_undo"] = (group["lr"], shifted)
            group["lr"] = group["lr"] * factor
            if shifts and group.get("weight_decay"):
                for i, offset in enumerate(group["relinear_offset"]):
                    if offset and group["params"][i].grad is not None:
                        with torch.no_grad():
                            group["params"][i].add_(offset)
                        shifted.append(i)

    def _after_step(
        self, optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]
    ) -> None:
        _undo(optimizer)
        if _skips(optimizer):
            return
        step = steps_taken(optimizer)
        for group in optimizer.param_groups:
            group["relinear_step"] = step + 1
            alpha, beta = self._shrink_factors(group["relinear"], step)
            if alpha == beta == 1.0:
                continue
            threshold = float(group["lr"]) * (1.0 - beta) / beta if beta else math.inf
            for parameter, zero in zip(group["params"], group["relinear_zero"], strict=True):
                if zero:
                    reach = min(threshold, torch.finfo(parameter.dtype).max)
                    with torch.no_grad():
                        parameter.copy_(functional.softshrink(parameter * alpha, reach))


def _skips(optimizer: Optimizer) -> bool:
    """Whether the step changes nothing, an overflow having spoiled its gradients.

    A ``GradScaler`` calls the step of a fused optimiser even so, and leaves the skipping to it.
    """
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def _undo(optimizer: Optimizer) -> None:
    """Restore the rates, and the biases, that ``_before_step`` changed."""
    for group in optimizer.param_groups:
        if "relinear_undo" in group:
            group["lr"], shifted = group.pop("relinear_undo")
            for i in shifted:
                with torch.no_grad():
                    group["params"][i].sub_(group["relinear_offset"][i])
