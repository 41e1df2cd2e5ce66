"""The factors of ReLinear by the kind of parameter, and absolute rates in place of γ."""

import math
from collections.abc import Mapping
from typing import Any

from qcore.strategies.schedule import Schedule, check_factor

Factor = float | Schedule

KINDS = ("g", "b")
"""Of quadratic parameters: factors of products, and squared inputs and forms."""


def factors_by_kind(name: str, given: Factor | tuple[Factor, Factor] | None) -> dict[str, Factor]:
    """Both factors of a name by kind, each checked at its first step."""
    factors: tuple[Any, ...] = given if isinstance(given, tuple) else (given, given)
    if len(factors) != 2:
        raise ValueError(f"{name}={given!r} is not allowed: give a number or a pair (g, b)")
    pair: dict[str, Factor] = {}
    for kind, factor in zip(KINDS, factors, strict=True):
        if given is None:
            pair[kind] = 1.0
        elif callable(factor):
            pair[kind] = factor
            factor_at(name, pair, kind, step=0)
        elif isinstance(factor, int | float):
            pair[kind] = check_factor(factor, f"{name}={factor!r} for {kind}")
        else:
            raise ValueError(
                f"{name}={given!r} is not allowed: give a number, a schedule, or a pair (g, b)"
            )
    return pair


def factor_at(name: str, pair: Mapping[str, Factor], kind: str, step: int) -> float:
    """A factor of a kind at a step."""
    factor = pair[kind]
    if not callable(factor):
        return factor
    value = factor(step)
    return check_factor(value, f"{name}={value!r} for {kind} at step {step}")


def factors_text(pair: Mapping[str, Factor]) -> str:
    """Both factors as ``repr`` of ReLinear shows them."""
    return f"({', '.join(f'{f!r}' if callable(f) else f'{f:g}' for f in pair.values())})"


def absolute_rates(
    gamma: object, lr_g: float | None, lr_b: float | None
) -> dict[str, float] | None:
    """The absolute rates by kind, or None where γ is given instead."""
    if lr_g is None and lr_b is None:
        return None
    if gamma is not None:
        raise ValueError(
            f"gamma={gamma!r} is not allowed with lr_g={lr_g!r} and lr_b={lr_b!r}: give the factor "
            "of the learning rate, or the rates themselves"
        )
    if lr_g is None or lr_b is None:
        raise ValueError(
            f"lr_g={lr_g!r}, lr_b={lr_b!r} is not allowed: give both; 0 where a part is not to "
            "train, or the network has none"
        )
    rates = {"g": lr_g, "b": lr_b}
    for kind, rate in rates.items():
        if not 0.0 <= rate < math.inf:
            raise ValueError(f"lr_{kind}={rate!r} is not allowed: give a rate of 0 or more")
    return rates
