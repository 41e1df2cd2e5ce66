"""``quadratize`` makes the layers of any model quadratic, ``linearize`` hands them back."""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from qcore.convolutions import (
    PatchForm,
    QuadraticConvTranspose1d,
    QuadraticConvTranspose2d,
    QuadraticConvTranspose3d,
)
from qcore.layers import Constant, Quadratic, build_form, resolve
from qcore.neurons import CATALOGUE, Neuron
from qcore.surgery.sites import LINEAR, Site, find, obstacles

Selection = str | type[nn.Module] | Iterable[str | type[nn.Module]]

# Transposed convolutions may be called with an output size, which these pass on.
_TRANSPOSED: dict[type[nn.Module], type[Quadratic]] = {
    nn.ConvTranspose1d: QuadraticConvTranspose1d,
    nn.ConvTranspose2d: QuadraticConvTranspose2d,
    nn.ConvTranspose3d: QuadraticConvTranspose3d,
}


def quadratize(
    model: nn.Module,
    neuron: str | Neuron = "quadratic",
    *,
    include: Selection | None = None,
    exclude: Selection = (),
    rank: int | None = None,
    rms_norm: bool = False,
    inplace: bool = False,
) -> nn.Module:
    r"""Make the linear layers and convolutions of any model quadratic; its outputs stay the same.

    Each ``nn.Linear`` and convolution, transposed ones too, becomes a :class:`Quadratic` whose
    reference branch is that very module. The other branches are new modules of the same kind at the
    linear reference: for the default neuron

    .. math:: y = r(x)\,(w_g x + b_g) + w_b x^2 + c, \qquad w_g = 0,\ b_g = 1,\ w_b = 0,\ c = 0

    with the user's module :math:`r`. Exactly one factor of each quadratic term is 0, so that it
    receives a gradient; other new branches are drawn as PyTorch draws them.

    Left alone are modules whose parameters belong to another module too (tied weights) or are read
    by one around them instead of calling them (``nn.MultiheadAttention.out_proj``);
    :func:`surgery_report` lists them with the reason. A read that cannot be seen in the code of
    ``forward`` ends in an ``AttributeError`` at the first use: name that module in ``exclude``.

    Args:
        model: any model; a module that occurs in several places is replaced once and stays shared.
        neuron: a name of the catalogue with a linear reference, or a :class:`qcore.Neuron`. Layers
            without bias get it without its biases.
        include: which layers: a pattern of module paths as the shell knows it (``*`` also matches
            dots), a module type, or several of them; one that matches a module means all layers in
            it. None means all.
        exclude: which layers not, in the same way.
        rank: for ``"bilinear"``, the rank of signed low-rank forms; None means dense ones.
        rms_norm: whether the quadratic branches see each input vector, or each image's channels and
            pixels, divided by its root mean square: see :class:`Quadratic`.
        inplace: change ``model`` itself instead of a deep copy. A model that is itself a layer is
            never changed: its replacement is returned.

    New parameters have the layer's device and dtype, and are frozen where all of the layer's are.
    Parametrizations (weight norm) and hooks stay on the user's module alone; the new branches have
    neither. The same goes for train and eval mode.

    Cost: the default neuron has three times the parameters and multiply-adds of each layer.

    Raises ``ValueError`` for a neuron without linear reference, for a pattern or type that matches
    no layer, if no layer is left to replace, for ``rank`` with a neuron that has no form, and for
    ``rms_norm`` with one that has no quadratic branch.

    Source: the referenced linear initialisation of arXiv 2110.06081, section IV.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> upgraded = quadratize(model, include="0")
    >>> x = torch.randn(5, 4)
    >>> torch.allclose(upgraded(x), model(x)), list(upgraded[0].keys())
    (True, ['r', 'g', 'b'])
    """
    spec = resolve(neuron, bias=True, rank=rank, rms_norm=rms_norm)
    if spec.reference is None:
        having = ", ".join(entry.name for entry in CATALOGUE.values() if entry.reference)
        raise ValueError(
            f"neuron {spec.name!r} ({spec.formula}) has no linear reference, so that it cannot "
            f"stand in for a linear layer: choose one of {having}"
        )
    if not inplace:
        model = copy.deepcopy(model)
    sites = find(model, LINEAR)
    reasons = _reasons(model, sites, spec)
    chosen = set(range(len(sites))) - _select("exclude", exclude, sites)
    if include is not None:
        chosen &= _select("include", include, sites)
    targets = [site for i, site in enumerate(sites) if i in chosen and site.path not in reasons]
    if not targets:
        stays = [site for site in sites if site.path in reasons]
        kept = "".join(f"; {site.name!r} stays: {reasons[site.path]}" for site in stays[:3])
        raise ValueError(
            f"model ({type(model).__name__}) has no linear layer or convolution to replace{kept}"
        )
    for site in targets:
        model = site.replace(model, _quadratic(site.module, spec, rank, rms_norm=rms_norm))
    return model


def linearize(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Put the linear reference, as trained, in the place of every quadratic layer.

    It undoes :func:`quadratize`: the user's own modules come back, in the same places, and the
    quadratic parameters are dropped. Outputs stay the same where these are at the reference.

    Args:
        model: any model with quadratic layers.
        inplace: change ``model`` itself instead of a deep copy. A model that is itself a layer is
            never changed: its reference is returned.

    Raises ``ValueError`` for a model without quadratic layers, and, naming the layer, for a neuron
    without a linear reference; nothing is changed then.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> linearize(quadratize(model))
    Sequential(
      (0): Linear(in_features=4, out_features=8, bias=True)
      (1): ReLU()
      (2): Linear(in_features=8, out_features=3, bias=True)
    )
    """
    if not inplace:
        model = copy.deepcopy(model)
    sites = find(model, Quadratic)
    if not sites:
        raise ValueError(f"model ({type(model).__name__}) has no quadratic layers to linearize")
    references = []
    for site in sites:
        reference = site.module.reference
        if not isinstance(reference, nn.Module):
            raise ValueError(
                f"layer {site.name!r} has neuron {site.module.neuron!r}, which has no linear "
                "reference to go back to"
            )
        references.append(reference)
    for site, reference in zip(sites, references, strict=True):
        model = site.replace(model, reference)
    return model


@dataclass(frozen=True)
class SurgeryReport:
    """What :func:`quadratize` did to a model, or would do: paths, in order of registration.

    ``quadratic`` has the name of each quadratic layer's neuron, ``linear`` the layers that could be
    replaced, and ``left_alone`` those that could not, with the reason; ``normalised`` are those of
    the quadratic layers that have a norm. ``print`` shows a table.
    """

    quadratic: dict[str, str]
    linear: tuple[str, ...]
    left_alone: dict[str, str]
    normalised: frozenset[str] = frozenset()

    def __str__(self) -> str:
        rows = [
            *(
                (path, f"quadratic: neuron {name!r}" + ", normalised" * (path in self.normalised))
                for path, name in self.quadratic.items()
            ),
            *((path, "linear: can be replaced") for path in self.linear),
            *((path, f"left alone: {reason}") for path, reason in self.left_alone.items()),
        ]
        width = max((len(path) for path, _ in rows), default=0)
        return "\n".join(f"{path:{width}}  {text}" for path, text in rows)


def surgery_report(model: nn.Module, neuron: str | Neuron = "quadratic") -> SurgeryReport:
    """Which layers of a model are quadratic, which could be, and which cannot, with the reason.

    It reads the model as it is, before or after :func:`quadratize`.

    Args:
        model: any model.
        neuron: the one that layers could be replaced by: forms are not for all convolutions.

    Raises ``ValueError`` for an unknown neuron.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2))
    >>> print(surgery_report(quadratize(model)))
    0           quadratic: neuron 'quadratic'
    1.out_proj  left alone: 1 (MultiheadAttention) reads its weight or bias in forward
    """
    sites = find(model, LINEAR)
    left_alone = _reasons(model, sites, resolve(neuron, bias=True, rank=None))
    found = find(model, Quadratic)
    return SurgeryReport(
        quadratic={site.path: str(site.module.neuron) for site in found},
        linear=tuple(site.path for site in sites if site.path not in left_alone),
        left_alone=left_alone,
        normalised=frozenset(site.path for site in found if site.module.rms_dims),
    )


def _reasons(model: nn.Module, sites: list[Site], neuron: Neuron) -> dict[str, str]:
    """Why a layer stays: what any replacement would break, or no form of its patches."""
    reasons = obstacles(model, sites)
    if any(branch.lift == "form" for branch in neuron.branches.values()):
        for site in sites:
            reason = _has_no_form(site.module)
            if reason is not None:
                reasons.setdefault(site.path, f"neuron {neuron.name!r} {reason}")
    return reasons


def _has_no_form(module: nn.Module) -> str | None:
    if isinstance(module, _ConvTransposeNd):
        return "is a form over patches, which a transposed convolution does not have"
    if isinstance(module, _ConvNd):
        if module.groups != 1:
            return f"is a form over whole patches and takes groups=1, not groups={module.groups}"
        if type(module).forward not in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward):
            return f"is a form over patches, and {type(module).__name__} cuts its own"
    return None


def _select(argument: str, wanted: Selection, sites: list[Site]) -> set[int]:
    """The indices of the sites that a selection matches; every part of it must match one."""
    selected: set[int] = set()
    for pattern in [wanted] if isinstance(wanted, str | type) else wanted:
        if not isinstance(pattern, str | type):
            raise TypeError(
                f"{argument} holds {pattern!r}: give patterns of module paths, or module types"
            )
        matched = {
            i
            for i, site in enumerate(sites)
            for chain in site.chains
            for path, module in chain
            if (
                fnmatchcase(path, pattern)
                if isinstance(pattern, str)
                else isinstance(module, pattern)
            )
        }
        if not matched:
            raise ValueError(f"{argument}: {_unmatched(pattern, sites)}")
        selected |= matched
    return selected


def _unmatched(pattern: str | type[nn.Module], sites: list[Site]) -> str:
    if isinstance(pattern, str):
        paths = {path: None for site in sites for chain in site.chains for path, _ in chain if path}
        near = get_close_matches(pattern, paths, n=3, cutoff=0.4) or list(paths)[:3]
        hint = f"near matches are {', '.join(map(repr, near))}" if near else "it has none"
        return f"no linear layer or convolution matches {pattern!r}; {hint}"
    kinds = sorted({type(site.module).__name__ for site in sites})
    return (
        f"no linear layer or convolution is a {pattern.__name__} or inside one; "
        f"the model's layers are {', '.join(kinds) or 'none'}"
    )


def _quadratic(module: Any, spec: Neuron, rank: int | None, *, rms_norm: bool) -> Quadratic:
    """The neuron at its linear reference, which is ``module``."""
    has_bias = module.bias is not None
    if not has_bias:
        spec = spec.without_bias()
    # whether the reference has a bias is the user's choice; the shown formula follows it
    own = replace(spec.branches[str(spec.reference)], bias=has_bias)
    spec = replace(spec, branches={**spec.branches, str(spec.reference): own})
    branches: dict[str, nn.Module] = {}
    for letter, branch in spec.branches.items():
        if letter == spec.reference:
            branches[letter] = module
            continue
        if branch.lift == "one":
            new: nn.Module = _constant(module)
        elif branch.lift == "form":
            new = _form(module, rank)
        else:
            new = _same_kind(module, branch.bias)
        # a frozen layer stays frozen as a whole
        new.requires_grad_(any(parameter.requires_grad for parameter in module.parameters()))
        branches[letter] = new.train(module.training)
    layer = _assemble(module, spec, branches, _dims(module) if rms_norm else 0)
    with torch.no_grad():
        for parameter in layer.parameters_zero_at_reference():
            parameter.zero_()
    layer.training = module.training
    # parents may ask a layer for its sizes: these are what torch's own layers list there
    for name in type(module).__constants__:
        setattr(layer, name, getattr(module, name))
    return layer


def _dims(module: Any) -> int:
    """The trailing dimensions of one input: its features, or its channels and pixels."""
    return 1 if isinstance(module, nn.Linear) else 1 + len(module.kernel_size)


def _assemble(
    module: nn.Module, spec: Neuron, branches: dict[str, nn.Module], rms_dims: int
) -> Quadratic:
    for kind, quadratic in _TRANSPOSED.items():
        if isinstance(module, kind):
            # its constructor would make branches, which are here already
            layer = quadratic.__new__(quadratic)
            Quadratic.__init__(layer, spec, branches, rms_dims=rms_dims)
            return layer
    return Quadratic(spec, branches, rms_dims=rms_dims)


def _like(module: Any) -> dict[str, Any]:
    return {"device": module.weight.device, "dtype": module.weight.dtype}


def _constant(module: Any) -> Constant:
    if isinstance(module, _ConvNd):
        return Constant(module.out_channels, dims=len(module.kernel_size), **_like(module))
    return Constant(module.out_features, **_like(module))


def _form(module: Any, rank: int | None) -> nn.Module:
    if isinstance(module, nn.Linear):
        return build_form(module.in_features, module.out_features, rank, **_like(module))
    size = module.in_channels * math.prod(module.kernel_size)
    return PatchForm(
        build_form(size, module.out_channels, rank, **_like(module)),
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.padding_mode,
    )


def _same_kind(module: Any, bias: bool) -> nn.Module:
    """A new module of the same type and settings, without parametrizations or hooks.

    It is put together by hand: a constructor may take anything, and a deep copy would take along
    the hooks and fail on the computed weights of ``torch.nn.utils.weight_norm``.
    """
    from torch.nn.utils.parametrize import type_before_parametrizations

    kind = type_before_parametrizations(module)
    new: Any = object.__new__(kind)
    nn.Module.__init__(new)
    settings = {
        key: copy.copy(value)
        for key, value in vars(module).items()
        if key not in vars(new) and key != "forward" and not isinstance(value, Tensor)
    }
    vars(new).update(settings)
    for name, child in module._modules.items():
        if name != "parametrizations":
            new.add_module(name, copy.deepcopy(child))
    for name, parameter in module._parameters.items():
        if not _is_main(name):
            new.register_parameter(name, copy.deepcopy(parameter))
    for name, buffer in module._buffers.items():
        if not _is_main(name):
            new.register_buffer(name, copy.deepcopy(buffer))
    new.weight = nn.Parameter(torch.empty_like(module.weight.detach()))
    new.register_parameter(
        "bias", nn.Parameter(torch.empty_like(module.bias.detach())) if bias else None
    )
    new.reset_parameters()
    return new


def _is_main(name: str) -> bool:
    """Whether a parameter is the weight, the bias, or what they are computed from (`weight_g`)."""
    return name.startswith(("weight", "bias"))
