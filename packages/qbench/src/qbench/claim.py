"""What papers claim, as data: a value, an order, a limit."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from qbench.frozen import Frozen
from qbench.metrics import Metric


class _Claim(Frozen):
    """What every claim has: where it stands in the paper, and the panels that it is made for.

    ``per: panel`` makes it for every combination of the grid's other axes, ``pooled`` for all of
    them together, ``where`` for those with these values alone.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    source: str
    per: Literal["panel", "pooled"] | None = None
    where: dict[str, tuple[str, ...]] = Field(default={})


class ValueClaim(_Claim):
    """A cell's printed value with its printed spread."""

    cell: dict[str, str]
    metric: Metric
    value: float
    spread: float | None = None


class AtBest(Frozen):
    """The value of an axis of the grid that is best for a model by ``chosen_by``, in the mean over
    seeds: each model is taken at its own."""

    axis: str
    chosen_by: Metric


class OrderClaim(_Claim):
    """Models from worst to best by a metric, each ``at_best`` where that is given."""

    order: tuple[str, ...] = Field(min_length=2)
    by: Metric
    at_best: AtBest | None = None


class CloseClaim(_Claim):
    """Two models whose metric differs by no more than ``within``."""

    close: tuple[str, str]
    by: Metric
    within: float


class RisesClaim(_Claim):
    """A metric that never falls from one recorded step to the next, for every model, or for
    ``models``."""

    rises: Metric
    models: tuple[str, ...] = ()


class LimitClaim(_Claim):
    """A metric that ends no further than ``within`` from a limit, for every model, or for
    ``models``."""

    limit: Metric
    to: float
    within: float
    models: tuple[str, ...] = ()


class InteriorClaim(_Claim):
    """Models along a parameter of which an inner one is better than both ends.

    The inner one is chosen by the metric ``chosen_by``, and compared by ``by``.
    """

    interior: tuple[str, ...] = Field(min_length=3)
    by: Metric
    chosen_by: Metric


_KINDS = ("order", "close", "rises", "limit", "interior")


def _claim_kind(claim: Any) -> str:
    keys = claim if isinstance(claim, Mapping) else getattr(type(claim), "model_fields", ())
    return next((kind for kind in _KINDS if kind in keys), "value")


Claim = Annotated[
    Annotated[ValueClaim, Tag("value")]
    | Annotated[OrderClaim, Tag("order")]
    | Annotated[CloseClaim, Tag("close")]
    | Annotated[RisesClaim, Tag("rises")]
    | Annotated[LimitClaim, Tag("limit")]
    | Annotated[InteriorClaim, Tag("interior")],
    Discriminator(_claim_kind),
]


def models_of(claim: Claim) -> tuple[str, ...]:
    """The models that a claim names; none where it speaks of all."""
    if isinstance(claim, OrderClaim):
        return claim.order
    if isinstance(claim, CloseClaim):
        return claim.close
    if isinstance(claim, InteriorClaim):
        return claim.interior
    if isinstance(claim, ValueClaim):
        return (claim.cell["model"],) if "model" in claim.cell else ()
    return claim.models
