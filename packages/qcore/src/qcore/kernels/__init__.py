"""Which arithmetic a quadratic layer runs on: the plain formula, or a faster way to the same value.

The choice stands here and nowhere else. ``"plain"`` is the formula branch by branch, and the only
path while scripting, tracing, compiling, exporting, or under ``torch.func``. ``"fast"`` is
:mod:`qcore.kernels.merged` for the neuron ``quadratic`` over plain convolutions,
:mod:`qcore.kernels.normalised` for the same with a norm, and :mod:`qcore.kernels.triangle` for
dense forms of 256 features and more. ``"triton"`` is :mod:`qcore.kernels.elementwise`, for neurons
of one product and one more branch without a norm, on a GPU.

Measured by ``packages/qcore/benchmarks/speed.py`` on 2 CPU cores in float32: a training step of
QResNet-20 (batch 128, channels last) takes 0.78 of the published arrangement's time with all kept,
0.86 with one factor computed again (the default: 0.61 of the memory), 0.93 with both (0.42). On
CUDA nothing has been measured: the plain path stays the default there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

from qcore.kernels.merged import can_merge, merged_convolution
from qcore.kernels.triangle import blocked_form as blocked_form
from qcore.kernels.triangle import can_block

if TYPE_CHECKING:
    from qcore.forms import QuadraticForm
    from qcore.layers import Quadratic

Backend = Literal["auto", "plain", "fast", "triton"]
Path = Literal["plain", "fast", "triton"]


@dataclass(frozen=True)
class _Setting:
    name: Backend = "auto"
    recompute: int = 1


# Of the process, not of a thread: autograd has threads of its own, in which checkpointed layers
# compute once more.
_setting = _Setting()


@contextmanager
def backend(name: Backend, *, recompute: int = 1) -> Iterator[None]:
    """Choose, for the block, the arithmetic of all quadratic layers; values stay the same.

    It holds for the whole process. Layers under ``torch.utils.checkpoint`` compute once more in the
    backward pass: for them that must lie in the block as well.

    Args:
        name: ``"plain"`` runs the formula as it is written; ``"fast"`` the merged convolutions and
            blocked forms wherever they exist, and the formula elsewhere; ``"triton"`` the Triton
            kernels where there are Triton and a GPU, and the formula elsewhere; ``"auto"``, the
            default, whichever was measured to be faster. A layer's ``path(x)`` says what it takes.
        recompute: how many of the two factors of ``r·g`` the fast path computes again in the
            backward pass instead of keeping them: 0 is fastest, 2 keeps the input alone.

    Raises ``ValueError`` for another name or number.

    >>> from qcore import QuadraticConv2d
    >>> layer, x = QuadraticConv2d(3, 8, 3), torch.randn(2, 3, 8, 8)
    >>> with backend("plain"):
    ...     layer.path(x)
    'plain'
    >>> with backend("fast", recompute=2):
    ...     layer.path(x)
    'fast'
    """
    if name not in get_args(Backend):
        raise ValueError(
            f"backend {name!r} is unknown: choose from {', '.join(map(repr, get_args(Backend)))}"
        )
    if recompute not in (0, 1, 2):
        raise ValueError(
            f"recompute={recompute!r} is not allowed: choose 0, 1 or 2, the number of factors to "
            "compute again in the backward pass"
        )
    global _setting
    before, _setting = _setting, _Setting(name, recompute)
    try:
        yield
    finally:
        _setting = before


def path(layer: "Quadratic", x: Tensor) -> Path:
    """The path that a layer takes for this input, here and now."""
    return _choose(
        x,
        fast=lambda autocast: (
            can_merge(layer)
            and (autocast is not None or x.dtype == layer["r"].weight.dtype)
            # which holds x² divided by its norm where |x| < 256, but not always a sum of x²
            and not (layer.rms_dims and (autocast or x.dtype) == torch.float16)
        ),
        triton=lambda: not layer.rms_dims and _runs_triton(x) and _elementwise().can_fuse(layer),
    )


def form_path(form: "QuadraticForm", x: Tensor) -> Path:
    """The path that a dense form takes for this input, here and now."""
    return _choose(
        x,
        fast=lambda autocast: (
            autocast is None and can_block(form) and x.dtype == form.triangle.dtype
        ),
        triton=lambda: False,
    )


def _choose(
    x: Tensor, *, fast: Callable[[torch.dtype | None], bool], triton: Callable[[], bool]
) -> Path:
    """The choice itself; ``fast``, given the type of autocast, and ``triton`` say what there is."""
    name = _setting.name
    if name == "plain" or not _eager(x) or not x.is_floating_point():
        return "plain"
    autocast = autocast_dtype(x)
    if autocast == torch.float16:
        return "plain"  # which takes the squares in float32: they overflow in float16
    if name == "triton":
        return "triton" if triton() else "plain"
    if name == "auto" and x.device.type != "cpu":
        return "plain"
    return "fast" if fast(autocast) else "plain"


def run(layer: "Quadratic", x: Tensor, path: Path) -> Tensor:
    """The layer's value on a path that is not the plain one."""
    if path == "triton":
        return _elementwise().fused(layer, x, autocast_dtype(x) or x.dtype)
    return merged_convolution(layer, x, _setting.recompute, autocast_dtype(x) or x.dtype)


def _runs_triton(x: Tensor) -> bool:
    """Whether Triton is there and runs on the device of x."""
    return _has_triton() and (x.is_cuda or _elementwise().INTERPRETED)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _elementwise() -> ModuleType:
    """Imported at its first use: Triton is large."""
    from qcore.kernels import elementwise

    return elementwise


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The type that autocast computes in on x's device; None without autocast."""
    if not isinstance(x, Tensor):
        return None  # a tracer's stand-in
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def _eager(x: Tensor) -> bool:
    """Whether x is an ordinary tensor that no tracer or transformation looks at."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and not x.is_meta
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )
