"""Arguments that networks have in common, checked."""

from collections.abc import Sequence
from typing import Any


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise ``ValueError`` for a value that is none of those allowed."""
    if value not in allowed:
        raise ValueError(
            f"{name}={value!r} is not allowed: choose from {', '.join(map(repr, allowed))}"
        )


def check_classifier(
    num_classes: int, global_pool: str, pools: Sequence[str], *, pooling: str
) -> None:
    """Raise ``ValueError`` for a classifier that cannot be; ``pooling`` is the way out in words."""
    check_choice("global_pool", global_pool, pools)
    if num_classes < 0:
        raise ValueError(
            f"num_classes={num_classes} is not allowed: give 1 or more, or 0 for no classifier"
        )
    if not global_pool and num_classes:
        raise ValueError(
            "global_pool='' leaves an image, which a classifier with "
            f"num_classes={num_classes} cannot take: give num_classes=0 as well, or {pooling}"
        )


def head_options(head: str, rank: int | None, signed: bool, affine: bool) -> dict[str, Any]:
    """The arguments of a head's form.

    Raises ``ValueError`` for those that it does not have.
    """
    if head == "low_rank":
        if rank is None:
            raise ValueError("head='low_rank' needs a rank: give rank=1 or more")
        return {"rank": rank, "signed": signed, "affine": affine}
    if signed:
        raise ValueError(
            f"signed=True is for low-rank heads, but head={head!r}: choose head='low_rank'"
        )
    if head == "dense":
        return {"affine": affine}
    if affine:
        raise ValueError(
            "affine=True is for quadratic heads; a linear head has its bias: choose head='dense' "
            "or head='low_rank'"
        )
    return {}
