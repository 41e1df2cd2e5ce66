"""Quadratic convolutions: drop-ins for torch's, in one, two and three dimensions."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from qcore import kernels
from qcore.forms import LowRankForm, QuadraticForm
from qcore.layers import Constant, Quadratic, build_branches, build_form, resolve
from qcore.neurons import Neuron

Size = int | tuple[int, ...]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class _Convolution(Quadratic):
    """What the convolutions of one, two and three dimensions share: everything but the branches."""

    _branch: ClassVar[type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]]
    _dims: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | Literal["valid", "same"] = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        neuron: str | Neuron = "quadratic",
        rank: int | None = None,
        rms_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        spec = resolve(neuron, bias, rank, rms_norm=rms_norm)

        def convolution(has_bias: bool) -> nn.Module:
            return self._branch(
                in_channels,
                out_channels,
                kernel_size,  # type: ignore[arg-type]
                stride,  # type: ignore[arg-type]
                padding,  # type: ignore[arg-type]
                dilation,  # type: ignore[arg-type]
                groups,
                has_bias,
                padding_mode,
                **factory,
            )

        def patch_form() -> nn.Module:
            if groups != 1:
                raise ValueError(
                    f"neuron {spec.name!r} as a convolution is a form over whole patches and takes "
                    f"groups=1, not groups={groups}"
                )
            kernel = _repeated(kernel_size, self._dims)
            form = build_form(in_channels * math.prod(kernel), out_channels, rank, **factory)
            return PatchForm(form, kernel, stride, padding, dilation, padding_mode)

        super().__init__(
            spec,
            build_branches(
                spec,
                linear=convolution,
                form=patch_form,
                constant=lambda: Constant(out_channels, dims=self._dims, **factory),
            ),
            rms_dims=self._dims + 1 if rms_norm else 0,
        )
        self.in_channels = in_channels
        self.out_channels = out_channels


class QuadraticConv1d(_Convolution):
    """A drop-in for ``nn.Conv1d`` whose neurons are quadratic: as :class:`QuadraticConv2d`.

    Shapes: input ``(B, in_channels, L)``, output ``(B, out_channels, L')``; without B too.

    >>> QuadraticConv1d(3, 8, 5, padding=2)(torch.randn(2, 3, 20)).shape
    torch.Size([2, 8, 20])
    """

    _branch = nn.Conv1d
    _dims = 1


class QuadraticConv2d(_Convolution):
    r"""A drop-in for ``nn.Conv2d`` whose neurons are quadratic.

    Each branch is a convolution of the input or of its square with the same kernel size, stride,
    padding, dilation and groups; ``"bilinear"`` is the quadratic form over each patch.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode: as
            in ``nn.Conv2d``; ``"bilinear"`` takes ``groups=1``.
        bias, neuron, rank, device, dtype: as in :class:`QuadraticLinear`.
        rms_norm: whether the quadratic branches see each image divided by its root mean square over
            all channels and pixels: see :class:`Quadratic`.

    Shapes: input ``(B, in_channels, H, W)``, output ``(B, out_channels, H', W')``; without B too.

    Cost: the default neuron has three times the parameters and multiply-adds of ``nn.Conv2d``.

    Raises ``ValueError`` for an unknown neuron, for ``rank`` with a neuron that has no form, for
    ``rms_norm`` with one that has no quadratic branch, and for groups with a form.

    Source: arXiv 2110.06081, section V (default neuron); the catalogue names the others'.

    >>> QuadraticConv2d(3, 8, 3, padding=1)(torch.randn(2, 3, 16, 16)).shape
    torch.Size([2, 8, 16, 16])
    """

    _branch = nn.Conv2d
    _dims = 2


class QuadraticConv3d(_Convolution):
    """A drop-in for ``nn.Conv3d`` whose neurons are quadratic: as :class:`QuadraticConv2d`.

    Shapes: input ``(B, in_channels, D, H, W)``, output ``(B, out_channels, D', H', W')``; without B
    too.

    >>> QuadraticConv3d(1, 4, 3, stride=2)(torch.randn(2, 1, 9, 9, 9)).shape
    torch.Size([2, 4, 4, 4, 4])
    """

    _branch = nn.Conv3d
    _dims = 3


class _ConvolutionTranspose(Quadratic):
    """What the transposed convolutions of one, two and three dimensions share."""

    _branch: ClassVar[
        type[nn.ConvTranspose1d] | type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]
    ]
    _dims: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: Literal["zeros"] = "zeros",
        *,
        neuron: str | Neuron = "quadratic",
        rms_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        spec = resolve(neuron, bias, rank=None, rms_norm=rms_norm)

        def convolution(has_bias: bool) -> nn.Module:
            return self._branch(
                in_channels,
                out_channels,
                kernel_size,  # type: ignore[arg-type]
                stride,  # type: ignore[arg-type]
                padding,  # type: ignore[arg-type]
                output_padding,  # type: ignore[arg-type]
                groups,
                has_bias,
                dilation,  # type: ignore[arg-type]
                padding_mode,
                **factory,
            )

        def no_form() -> nn.Module:
            raise ValueError(
                f"neuron {spec.name!r} is a quadratic form over each input patch, and a transposed "
                "convolution has none: choose another neuron, e.g. 'quadratic'"
            )

        super().__init__(
            spec,
            build_branches(
                spec,
                linear=convolution,
                form=no_form,
                constant=lambda: Constant(out_channels, dims=self._dims, **factory),
            ),
            rms_dims=self._dims + 1 if rms_norm else 0,
        )
        self.in_channels = in_channels
        self.out_channels = out_channels

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The neuron's formula; ``output_size`` as in ``nn.ConvTranspose2d``."""
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            path = kernels.path(self, x)
            if path != "plain" and output_size is None:
                return kernels.run(self, x, path)
            dtype = kernels.autocast_dtype(x)
            if dtype is not None:
                return self._autocast(x, dtype, output_size)
        squared = x * x if 1 in self._lifts else x
        values: list[Tensor] = []
        for i, branch in enumerate(self.values()):
            value = branch(self._seen(squared if self._lifts[i] == 1 else x, i), output_size)
            values.append(value + self._offsets[i] if self._offsets[i] != 0.0 else value)
        return self._combine(values)


class QuadraticConvTranspose1d(_ConvolutionTranspose):
    """A drop-in for ``nn.ConvTranspose1d``: as :class:`QuadraticConvTranspose2d`.

    Shapes: input ``(B, in_channels, L)``, output ``(B, out_channels, L')``; without B too.

    >>> QuadraticConvTranspose1d(8, 3, 4, stride=2)(torch.randn(2, 8, 5)).shape
    torch.Size([2, 3, 12])
    """

    _branch = nn.ConvTranspose1d
    _dims = 1


class QuadraticConvTranspose2d(_ConvolutionTranspose):
    """A drop-in for ``nn.ConvTranspose2d`` whose neurons are quadratic.

    Each branch is a transposed convolution of the input or of its square, with the same geometry.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups: as in
            ``nn.ConvTranspose2d``.
        dilation, padding_mode: as in ``nn.ConvTranspose2d``.
        bias, neuron, device, dtype: as in :class:`QuadraticLinear`; all neurons but ``"bilinear"``.
        rms_norm: as in :class:`QuadraticConv2d`.

    Shapes: input ``(B, in_channels, H, W)``, output ``(B, out_channels, H', W')``; without B too.

    Cost: the default neuron has three times the parameters and multiply-adds of
    ``nn.ConvTranspose2d``.

    Raises ``ValueError`` for an unknown neuron, for one with a quadratic form, and for ``rms_norm``
    with one that has no quadratic branch.

    Source: arXiv 2110.06081, eq. 1 (default neuron); the catalogue names the others'.

    >>> QuadraticConvTranspose2d(8, 3, 4, stride=2, padding=1)(torch.randn(2, 8, 7, 7)).shape
    torch.Size([2, 3, 14, 14])
    """

    _branch = nn.ConvTranspose2d
    _dims = 2


class QuadraticConvTranspose3d(_ConvolutionTranspose):
    """A drop-in for ``nn.ConvTranspose3d``: as :class:`QuadraticConvTranspose2d`.

    Shapes: input ``(B, in_channels, D, H, W)``, output ``(B, out_channels, D', H', W')``; without B
    too.

    >>> QuadraticConvTranspose3d(4, 1, 2, stride=2)(torch.randn(2, 4, 3, 3, 3)).shape
    torch.Size([2, 1, 6, 6, 6])
    """

    _branch = nn.ConvTranspose3d
    _dims = 3


class PatchForm(nn.Module):
    """A quadratic form over each patch of a signal, an image or a volume.

    It is the ``q`` branch of a bilinear convolution.

    Args:
        form: a form with ``in_channels·Π kernel_size`` inputs, ordered channel first as in
            ``nn.Conv2d.weight``.
        kernel_size: one number for each dimension.
        stride, padding, dilation, padding_mode: as in ``nn.Conv2d``.

    Shapes: input ``(B, in_channels, *S)``, output ``(B, out_features, *S')`` with as many
    dimensions ``S`` as ``kernel_size`` has; without B too.

    Cost: that of the form for each patch; the patches are laid out in memory.

    Source: CQNN (Mantini and Shah, 2021); Volterra convolutions (Zoumpourlis et al., 2017).

    >>> PatchForm(QuadraticForm(3 * 9, 8), (3, 3), stride=2)(torch.randn(2, 3, 9, 9)).shape
    torch.Size([2, 8, 4, 4])
    """

    def __init__(
        self,
        form: QuadraticForm | LowRankForm,
        kernel_size: Sequence[int],
        stride: Size = 1,
        padding: Size | Literal["valid", "same"] = 0,
        dilation: Size = 1,
        padding_mode: PaddingMode = "zeros",
    ) -> None:
        super().__init__()
        self.form = form
        self.kernel_size = list(kernel_size)
        dims = len(self.kernel_size)
        self.stride = _repeated(stride, dims)
        self.dilation = _repeated(dilation, dims)
        self.padding_mode = "constant" if padding_mode == "zeros" else padding_mode
        self._reach = [
            d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)
        ]
        # as functional.pad takes it: before and after, the last dimension first
        self._pads: list[int] = []
        for i in reversed(range(dims)):
            if isinstance(padding, str):
                total = self._reach[i] - 1 if padding == "same" else 0
                self._pads += [total // 2, total - total // 2]
            else:
                self._pads += [_repeated(padding, dims)[i]] * 2

    def reset_parameters(self) -> None:
        """Draw the form anew."""
        self.form.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """The form of each patch, back in the layout of the input."""
        dims = len(self.kernel_size)
        patches = functional.pad(x, self._pads, self.padding_mode)
        for i in range(dims):
            # the dimension to cut is always the same: each cut appends the window at the end
            patches = patches.unfold(-dims, self._reach[i], self.stride[i])
            patches = patches[..., :: self.dilation[i]]
        # (B, C, *S', *kernel) -> (B, *S', C·Π kernel)
        patches = patches.movedim(-2 * dims - 1, -dims - 1).flatten(-dims - 1)
        return self.form(patches).movedim(-1, -dims - 1)


def _repeated(size: Size, dims: int) -> list[int]:
    return [size] * dims if isinstance(size, int) else list(size)
