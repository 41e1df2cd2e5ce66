"""``fold_batchnorm`` takes batch norms into the quadratic and ordinary layers before them."""

import copy
import inspect
import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from itertools import chain, combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils import parametrize

from qcore.convolutions import PatchForm, QuadraticConvTranspose2d
from qcore.forms import LowRankForm, QuadraticForm
from qcore.layers import Constant, Quadratic
from qcore.surgery.sites import LINEAR, Site, find, obstacles

_FOLDABLE = (*LINEAR, Quadratic)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_OURS = (Quadratic, PatchForm, QuadraticForm, LowRankForm, Constant)
_OUR_FORWARDS = (*(kind.forward for kind in _OURS), QuadraticConvTranspose2d.forward)
_TORCH_FORWARDS = (
    nn.Linear.forward,
    nn.Conv1d.forward,
    nn.Conv2d.forward,
    nn.Conv3d.forward,
    nn.ConvTranspose1d.forward,
    nn.ConvTranspose2d.forward,
    nn.ConvTranspose3d.forward,
)


def fold_batchnorm(model: nn.Module, *, inplace: bool = False, strict: bool = True) -> nn.Module:
    r"""Take every batch norm into the layer right before it; outputs in eval mode stay the same.

    A batch norm in eval mode is :math:`s \cdot y + t`. For the default neuron

    .. math:: s\,(r(x)\,g(x) + w_b x^2 + c) + t = (s\,r(x))\,g(x) + (s\,w_b) x^2 + (s\,c + t)

    and so for any neuron: one factor of each term is scaled, and the shift goes into a bias that
    stands in no product. Linear layers and convolutions, transposed ones too, are scaled and
    shifted themselves. ``nn.Identity`` takes the batch norm's place.

    Which layer comes before which batch norm is read off ``torch.fx`` traces: of the model or,
    where that cannot be traced, of its largest parts that can. A batch norm stays where it follows
    no layer, where the layer's output is used elsewhere as well, where one of both is called twice,
    has hooks, tied weights or a ``forward`` of its own that does more than torch's, and where it
    keeps no running statistics. A batch norm that also drops or activates, such as timm's
    ``BatchNormAct2d``, leaves that part behind.

    Args:
        model: any model in eval mode.
        inplace: change ``model`` itself instead of a deep copy.
        strict: refuse a model with a neuron that has no place for the scale or the shift
            (``"product"``, ``"squared_output"``); False lets its batch norm stay.

    The layer before an ``nn.BatchNorm1d`` is taken to return ``(B, features)`` if it is linear.

    Raises ``ValueError`` for a model in train mode and, if ``strict``, for a neuron with no place,
    naming the layer; nothing is changed then.

    Source: Jacob et al., arXiv 1712.05877, section 3.2, for ordinary convolutions.

    >>> from qcore import QuadraticConv2d
    >>> model = nn.Sequential(QuadraticConv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> folded = fold_batchnorm(model)
    >>> x = torch.randn(2, 3, 5, 5)
    >>> torch.allclose(folded(x), model(x), atol=1e-5), folded[1]
    (True, Identity())
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if model.training or any(norm.training for norm in norms):
        raise ValueError(
            f"model ({type(model).__name__}) is in train mode, in which a batch norm normalises by "
            "its batch: call model.eval() first"
        )
    if not inplace:
        model = copy.deepcopy(model)
    sites = {site.module: site for site in [*find(model, _FOLDABLE), *find(model, _BatchNorm)]}
    tied = obstacles(model, list(sites.values()))
    foldings = []
    for layer, norm in _traced_pairs(model):
        pair = [sites[layer], sites[norm]]
        if any(site.path in tied or len(site.chains) > 1 for site in pair) or any(
            part._forward_hooks or part._forward_pre_hooks
            for site in pair
            for part in site.module.modules()
        ):
            continue
        rest = _rest(norm)
        if rest is None or not _is_scalable(layer):
            continue
        scaled, shifted = _places(layer)
        if scaled and shifted is not None:
            foldings.append((scaled, shifted, sites[norm], norm, rest))
        elif strict:
            raise ValueError(_no_place(pair[0], pair[1], "shift" if scaled else "scale"))
    with torch.no_grad():
        for scaled, shifted, site, norm, rest in foldings:
            scale, shift = _scale_and_shift(norm)
            for branch in scaled:
                _scale_(branch, scale)
            _shift_(shifted, shift)
            site.replace(model, rest.eval())
    return model


def _traced_pairs(part: nn.Module) -> list[tuple[nn.Module, _BatchNorm]]:
    """Layers and the batch norms right after them, each called once in a trace."""
    from torch import fx

    class Tracer(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            own = isinstance(module, (*_FOLDABLE, _BatchNorm, QuadraticForm, LowRankForm))
            return own or super().is_leaf_module(module, name)

    if isinstance(part, _FOLDABLE):
        return []
    attributes = [(vars(module), dict(vars(module))) for module in part.modules()]
    try:
        # arguments with a default are taken to have it: a trace follows one path only
        parameters = inspect.signature(part.forward).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        graph = Tracer().trace(part, concrete_args=defaults)
    except Exception:  # tracing runs the model's own code, which may refuse in any way
        return [pair for child in part.children() for pair in _traced_pairs(child)]
    finally:
        # a model that keeps a tensor of its last run has kept a stand-in
        for now, before in attributes:
            now.clear()
            now.update(before)
    modules = dict(part.named_modules(remove_duplicate=False))
    called = {node: modules[node.target] for node in graph.nodes if node.op == "call_module"}
    times = Counter(id(module) for module in called.values())
    pairs: list[tuple[nn.Module, _BatchNorm]] = []
    for node, norm in called.items():
        if not isinstance(norm, _BatchNorm):
            continue
        (before,) = node.all_input_nodes
        while len(before.users) == 1 and isinstance(called.get(before), nn.Identity):
            (before,) = before.all_input_nodes
        layer = called.get(before)
        if (
            isinstance(layer, _FOLDABLE)
            and len(before.users) == times[id(layer)] == times[id(norm)] == 1
            and _outputs(layer) == norm.num_features
        ):
            pairs.append((layer, norm))
    return pairs


def _outputs(layer: nn.Module) -> int | None:
    """Length of the dimension that a batch norm scales, as far as it is known."""
    if isinstance(layer, Quadratic):
        return next((size for size in map(_outputs, layer.values()) if size is not None), None)
    if isinstance(layer, PatchForm):
        layer = layer.form
    size = getattr(layer, "out_features", getattr(layer, "out_channels", None))
    return size if isinstance(size, int) else None


def _places(layer: nn.Module) -> tuple[list[nn.Module], nn.Module | None]:
    """The branches to scale, one of each term, and the one to shift, in a term of its own.

    No branches, or None, where the neuron has no such.
    """
    if not isinstance(layer, Quadratic):
        return [layer], layer
    factors = [letter for term in layer.terms for letter in term]
    scalable = [letter for letter, offset in layer.offsets.items() if offset == 0.0]
    choices = chain.from_iterable(
        combinations(scalable, count) for count in range(1, len(scalable) + 1)
    )
    scaled = next(
        (
            choice
            for choice in choices
            if all(sum(letter in choice for letter in term) == 1 for term in layer.terms)
        ),
        None,
    )
    shifted = [
        layer[term[0]]
        for term in layer.terms
        if len(term) == 1
        and factors.count(term[0]) == 1
        and isinstance(layer[term[0]], (*LINEAR, Constant))
    ]
    # a branch that has its bias already needs no new one
    shifted.sort(key=lambda branch: getattr(branch, "bias", None) is None)
    return [layer[letter] for letter in scaled or ()], next(iter(shifted), None)


def _no_place(layer: Site, norm: Site, lacking: str) -> str:
    neuron = layer.module
    return (
        f"layer {layer.name!r} (neuron {neuron.neuron!r}: {neuron.formula}) has no place for the "
        f"{lacking} of batch norm {norm.name!r}; neurons with a linear term of its own, such as "
        "'quadratic' or 'product_linear', can be folded, and strict=False folds the rest of a model"
    )


def _scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """A batch norm in eval mode as ``scale·y + shift``, in float32 at least."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError("a batch norm without running statistics is no fixed scale and shift")
    dtype = torch.promote_types(mean.dtype, torch.float32)
    scale = torch.rsqrt(variance.to(dtype) + norm.eps)
    if norm.affine:
        scale = scale * norm.weight
    shift = -mean * scale
    return scale, shift + norm.bias if norm.affine else shift


def _scale_(branch: Any, scale: Tensor) -> None:
    """Multiply each output by its scale.

    ``torch.nn.utils.fuse_conv_bn_weights`` would do for a convolution, but not for a transposed one
    with groups, nor for a branch that takes a scale without a shift.
    """
    form: Any = branch.form if isinstance(branch, PatchForm) else branch
    if isinstance(form, QuadraticForm):
        form.triangle.mul_(scale.unsqueeze(1))
    elif isinstance(form, LowRankForm):
        form.signs.mul_(scale.unsqueeze(1))
    elif isinstance(form, Constant):
        form.bias.mul_(scale)
    else:
        _make_plain_(form)
        weight = form.weight
        trailing = [1] * (weight.ndim - 2)
        if isinstance(form, _ConvTransposeNd):
            grouped = weight.unflatten(0, [form.groups, -1])  # (groups, in, out, *kernel)
            scaled = grouped * scale.view(form.groups, 1, -1, *trailing)
            weight.copy_(scaled.flatten(0, 1))
        else:
            weight.copy_(weight * scale.view(-1, 1, *trailing))
        if form.bias is not None:
            form.bias.mul_(scale)


def _make_plain_(module: Any) -> None:
    """Turn parametrized tensors into plain parameters.

    ``parametrize.remove_parametrizations`` would take the weight away from deep copies as well:
    they share one class, from which it removes the property.
    """
    if parametrize.is_parametrized(module):
        values = {name: getattr(module, name) for name in module.parametrizations}
        frozen = not any(parameter.requires_grad for parameter in module.parameters())
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value.detach(), not frozen))


def _shift_(branch: Any, shift: Tensor) -> None:
    """Add a shift to each output, in a new bias where there is none."""
    if branch.bias is None:
        weight = branch.weight
        branch.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=weight.requires_grad)
    else:
        branch.bias.add_(shift)


def _is_scalable(layer: Any) -> bool:
    """Whether scaling the parameters scales the output; where ``forward`` is own, by a trial.

    It would not in a convolution that standardises its weight.
    """
    forward = type(layer).forward
    if isinstance(layer, _OURS) and forward not in _OUR_FORWARDS:
        return False
    if isinstance(layer, Quadratic):
        return all(_is_scalable(branch) for branch in layer.values())
    if isinstance(layer, PatchForm):
        return _is_scalable(layer.form)
    if isinstance(layer, LowRankForm):
        return layer.signed
    if isinstance(layer, _OURS) or forward in _TORCH_FORWARDS:
        return True
    if not isinstance(layer, LINEAR):
        return False
    if isinstance(layer, nn.Linear):
        shape = [2, layer.in_features]
    else:
        reach = [2 * d * k for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        shape = [2, layer.in_channels, *reach]
    x = _sample(shape, layer.weight)
    outputs = _outputs(layer)
    trailing = [1] * (len(shape) - 2)
    scale, shift = _sample([outputs], layer.weight), _sample([outputs], layer.weight).flip(0)

    def folded() -> Tensor:
        copied = copy.deepcopy(layer)
        _scale_(copied, scale)
        _shift_(copied, shift)
        return copied(x)

    return _agree(folded, lambda: layer(x) * scale.view(-1, *trailing) + shift.view(-1, *trailing))


def _rest(norm: _BatchNorm) -> nn.Module | None:
    """What a batch norm does after normalising, or None where that cannot be told.

    For a ``forward`` of its own, a trial says whether it applies its children one by one.
    """
    if norm.running_mean is None or norm.running_var is None:
        return None
    if type(norm).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
        return nn.Identity()
    dims = next((i + 1 for i, kind in enumerate(_NORMS) if isinstance(norm, kind)), 0)
    x = _sample([2, norm.num_features, *[2] * dims], norm.running_mean)
    rest = nn.Sequential(OrderedDict(norm.named_children())).eval()

    def expected() -> Tensor:
        mean, variance = norm.running_mean, norm.running_var
        normed = functional.batch_norm(x, mean, variance, norm.weight, norm.bias, eps=norm.eps)
        return rest(normed)

    return rest if _agree(lambda: norm(x), expected) else None


def _sample(shape: list[Any], like: Tensor) -> Tensor:
    """Uneven numbers that take none from the random generator."""
    values = torch.arange(1, math.prod(shape) + 1, device=like.device).cos()
    return values.view(shape).to(like.dtype)


@torch.no_grad()
def _agree(left: Callable[[], Tensor], right: Callable[[], Tensor]) -> bool:
    try:
        return torch.allclose(left(), right(), rtol=1e-3, atol=1e-3)
    except Exception:  # it runs the model's own code, which may refuse in any way
        return False
