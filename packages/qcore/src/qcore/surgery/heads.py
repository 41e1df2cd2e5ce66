"""``replace_head`` gives any classifier another head, ``truncate_head`` makes a head low-rank."""

import copy
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from qcore.convolutions import PatchForm
from qcore.forms import LowRankForm, QuadraticForm
from qcore.layers import Quadratic
from qcore.surgery.sites import Site, find, obstacles

Kind = Literal["linear", "dense", "low_rank"]

_HEADS = (nn.Linear, nn.Conv2d, QuadraticForm, LowRankForm, PatchForm, Quadratic)


def replace_head(
    model: nn.Module,
    kind: Kind = "linear",
    *,
    rank: int | None = None,
    signed: bool = False,
    affine: bool = False,
    num_classes: int | None = None,
    inplace: bool = False,
) -> nn.Module:
    r"""Give a classifier a new, untrained head: linear, or one quadratic form per class.

    .. math:: f_k(x) = w_k \cdot x + b_k, \qquad x^\top A_k x, \qquad
        \sum_{i=1}^{r} \sigma_{k,i} \langle c_{k,i}, x \rangle^2

    for ``"linear"``, ``"dense"`` (:class:`qcore.QuadraticForm`) and ``"low_rank"``
    (:class:`qcore.LowRankForm`). In a timm model the head is what its ``get_classifier()`` returns,
    and all of them where there are several; in any other the linear layer or form registered last.

    Args:
        model: any classifier.
        kind: of the new head.
        rank, signed: of a low-rank form; ``rank`` is needed there, and only there.
        affine: whether forms see a constant 1 as well, i.e. have linear and constant terms.
        num_classes: outputs of the new head; None means as many as now.
        inplace: change ``model`` itself instead of a deep copy. A model that is itself a head is
            never changed: the new one is returned.

    Shapes: those of the old head; a 1×1 convolution as head becomes a form of each pixel.

    Cost: per class ``n`` multiply-adds for ``"linear"``, ``r·n`` for ``"low_rank"``, ``5/8·n²`` for
    ``"dense"``, with n features.

    Raises ``ValueError`` for another kind, a missing rank, arguments that the kind does not have, a
    model in which no head is found, and a timm model without classifier if ``num_classes`` is None.

    Source: DIQNN, arXiv 2307.13609, section 3.2.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> replace_head(model, "low_rank", rank=2)[-1]
    LowRankForm(in_features=8, out_features=3, rank=2, signed=False, affine=False)
    """
    _check_arguments(kind, rank, signed, affine)
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes={num_classes} is not allowed: give 1 or more")
    if not inplace:
        model = copy.deepcopy(model)
    for site in _heads(model, num_classes):
        old = site.module
        features, classes, is_convolution = _sizes(old)
        classes = classes if num_classes is None else num_classes
        like = next(old.parameters())
        factory: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        new: nn.Module
        if rank is not None:
            new = LowRankForm(features, classes, rank, signed, affine, **factory)
        elif kind == "dense":
            new = QuadraticForm(features, classes, affine, **factory)
        elif is_convolution:
            new = nn.Conv2d(features, classes, 1, **factory)
        else:
            new = nn.Linear(features, classes, **factory)
        if is_convolution and isinstance(new, QuadraticForm | LowRankForm):
            new = PatchForm(new, [1, 1])
        model = site.replace(model, new.train(old.training))
    return model


def truncate_head(head: QuadraticForm | LowRankForm, rank: int) -> tuple[LowRankForm, Tensor]:
    r"""The best signed approximation of each form by one of lower rank, and the energy it keeps.

    .. math:: A_k = \sum_i \lambda_{k,i} v_{k,i} v_{k,i}^\top \approx
        \sum_{i=1}^{r} \operatorname{sign}(\lambda_{k,i})\, c_{k,i} c_{k,i}^\top, \qquad
        c_{k,i} = \sqrt{|\lambda_{k,i}|}\, v_{k,i}

    with the eigenvalues in the order of their magnitude. No matrix of rank r is closer to
    :math:`A_k` in the Frobenius norm (Eckart and Young).

    Args:
        head: the forms, which stay as they are.
        rank: from 1 to the size n of the forms (which counts the constant 1 of affine ones).

    Returns a :class:`qcore.LowRankForm` with ``signed=True``, affine as ``head`` is, and the energy
    kept, :math:`\sum_{i \le r} \lambda_{k,i}^2 / \sum_i \lambda_{k,i}^2`, for each output:
    ``(out_features,)``; 1 for a form that is 0.

    Cost: an eigendecomposition of each form in float64, ``out·n³`` operations.

    Raises ``ValueError`` for another rank, and ``TypeError`` for a head that is no form.

    Source: Eckart and Young (1936); the low-rank format of DIQNN, arXiv 2307.13609, eq. 3.

    >>> form = QuadraticForm(2, 1)
    >>> form.matrix = torch.tensor([[[0.0, 0.0], [0.0, -2.0]]])
    >>> truncated, energy = truncate_head(form, rank=1)
    >>> truncated.signs.item(), energy.item()
    (-1.0, 1.0)
    """
    if not isinstance(head, QuadraticForm | LowRankForm):
        raise TypeError(
            f"head is a {type(head).__name__}, but only a QuadraticForm or a LowRankForm can be "
            "truncated: pass the form itself, e.g. model.fc"
        )
    if not 1 <= rank <= head.size:
        raise ValueError(
            f"rank={rank} is not allowed: these forms have size {head.size}, so choose from 1 to "
            f"{head.size}"
        )
    with torch.no_grad():
        values, vectors = torch.linalg.eigh(head.matrix.double())  # (out, n), (out, n, n)
        order = values.abs().argsort(-1, descending=True)[:, :rank]
        kept = values.gather(-1, order)  # (out, r)
        columns = vectors.gather(-1, order.unsqueeze(1).expand(-1, head.size, -1))  # (out, n, r)
        like = next(head.parameters())
        form = LowRankForm(
            head.in_features,
            head.out_features,
            rank,
            signed=True,
            affine=head.affine,
            device=like.device,
            dtype=like.dtype,
        )
        form.factors.copy_((columns * kept.abs().sqrt().unsqueeze(1)).transpose(1, 2))
        form.signs.copy_(torch.where(kept < 0, -1.0, 1.0))
        total = values.square().sum(-1)
        energy = torch.where(total > 0, kept.square().sum(-1) / total, 1.0).to(like.dtype)
    return form.train(head.training), energy


def _check_arguments(kind: str, rank: int | None, signed: bool, affine: bool) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r} is not allowed: choose from {get_args(Kind)}")
    if kind == "low_rank" and rank is None:
        raise ValueError("kind='low_rank' needs a rank: give rank=1 or more")
    if kind != "low_rank" and (rank is not None or signed):
        given = f"rank={rank}" if rank is not None else "signed=True"
        raise ValueError(f"{given} is for kind='low_rank' only, not for kind={kind!r}")
    if kind == "linear" and affine:
        raise ValueError("affine=True is for quadratic forms only: a linear head has its bias")


def _heads(model: Any, num_classes: int | None) -> list[Site]:
    """What is to be replaced: timm's classifiers, or the last linear layer or form."""
    if not (hasattr(model, "get_classifier") and hasattr(model, "reset_classifier")):
        return [_last_head(model, model)]
    if num_classes is not None:
        model.reset_classifier(num_classes)  # so that the model's own records are right as well
    classifiers = model.get_classifier()
    if not isinstance(classifiers, tuple | list):
        classifiers = (classifiers,)
    if any(isinstance(classifier, nn.Identity) for classifier in classifiers):
        raise ValueError(
            f"model ({type(model).__name__}) has no classifier now: give num_classes, how many "
            "outputs the new one is to have"
        )
    return [_last_head(model, classifier) for classifier in classifiers]


def _last_head(model: nn.Module, part: nn.Module) -> Site:
    """The head registered last inside ``part`` of ``model``; convolutions only inside a part."""
    sites = [
        site
        for site in find(model, _HEADS)
        if any(module is part for chain in site.chains for _, module in chain)
        and _is_head(site.module, part is not model)
    ]
    reasons = obstacles(model, sites)
    free = [site for site in sites if site.path not in reasons]
    if not free:
        kept = "".join(f"; {path!r} stays: {reason}" for path, reason in reasons.items())
        raise ValueError(
            f"model ({type(model).__name__}) has no linear layer or form to replace as its head"
            f"{kept}. Replace it by hand, e.g. model.fc = qcore.LowRankForm(...)"
        )
    return free[-1]


def _is_head(module: nn.Module, convolutions: bool) -> bool:
    if isinstance(module, Quadratic | nn.Conv2d) and not hasattr(module, "in_features"):
        return convolutions and getattr(module, "kernel_size", None) == (1, 1)
    return convolutions or not isinstance(module, PatchForm)


def _sizes(head: nn.Module) -> tuple[int, int, bool]:
    """Inputs, outputs, and whether it is a 1×1 convolution."""
    if isinstance(head, PatchForm):
        return head.form.in_features, head.form.out_features, True
    if hasattr(head, "in_features"):
        return int(head.in_features), int(head.out_features), False  # type: ignore[arg-type]
    return int(head.in_channels), int(head.out_channels), True  # type: ignore[arg-type]
