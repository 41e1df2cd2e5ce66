"""``Quadratic`` evaluates any neuron over any branches; ``QuadraticLinear`` builds linear ones."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm as divide_by_rms

from qcore import kernels
from qcore.forms import LowRankForm, QuadraticForm
from qcore.neurons import Lift, Neuron, get_neuron

_LIFTS: tuple[Lift, ...] = ("x", "x2", "form", "one")


# What makes a module's output 0 where it is 0, by itself or with a bias: of forms, of torch's
# layers, and of both kinds of weight norm.
_ENDS = frozenset({"signs", "triangle", "weight", "weight_g", "original0"})


class Quadratic(nn.ModuleDict):
    r"""A quadratic neuron over any branches: the sum of products of what its branches compute.

    .. math:: y = \sum_t \prod_{k \in t} (m_k(x_k) + o_k)

    with the branch modules :math:`m_k` under the neuron's letters, :math:`x_k` the input or its
    square, and the constant offsets :math:`o_k` of the neuron. The branches are ordinary torch
    modules, so every argument, initialisation, device and state dict is torch's own
    (``conv1.r.weight``).

    With ``rms_dims`` the quadratic branches see :math:`x_k` divided by its root mean square

    .. math:: \hat x_k = x_k / \sqrt{\operatorname{mean}(x_k^2) + \varepsilon}

    over that many trailing dimensions, and :math:`x^2` by that of :math:`x^2`. A neuron with a
    linear reference then grows linearly with its input; one without does not see how large it is.

    Args:
        neuron: a name of the catalogue, or a :class:`qcore.neurons.Neuron`.
        branches: a module for each letter of the neuron; the letters of constants may be missing.
        rms_dims: the trailing dimensions of the input that a root mean square is taken over: 1 for
            linear layers, 3 for images ``(B, C, H, W)``; 0, the default, leaves inputs as they are.
            :math:`\varepsilon` is the spacing of numbers at 1, of float32 for narrower ones: an
            :math:`x^2` of inputs below about 0.02 comes out smaller.

    Shapes: those of the branches; all branches must return one shape, or shapes that broadcast.

    Cost: that of the branches, and one multiply-add per output and further factor.

    Raises ``ValueError`` for an unknown neuron, for letters that are missing or unknown, and for
    ``rms_dims`` below 0; ``IndexError`` for an input of fewer dimensions.

    >>> layer = Quadratic("compact", {"r": nn.Linear(3, 2), "b": nn.Linear(3, 2)})
    >>> x = torch.randn(5, 3)
    >>> torch.equal(layer(x), layer["r"](x) + layer["b"](x * x))
    True
    """

    __jit_unused_properties__ = ("reference", "terms", "lifts", "offsets")

    rms_dims: int = 0  # of a layer that was pickled before there were norms, too

    def __init__(
        self, neuron: str | Neuron, branches: Mapping[str, nn.Module], *, rms_dims: int = 0
    ) -> None:
        spec = get_neuron(neuron) if isinstance(neuron, str) else neuron
        if rms_dims < 0:
            raise ValueError(
                f"rms_dims={rms_dims} is not allowed: give the number of trailing dimensions to "
                "take a root mean square over, or 0 for none"
            )
        required = [k for k in spec.branches if k not in spec.constants]
        missing = [k for k in required if k not in branches]
        unknown = [k for k in branches if k not in spec.branches]
        if missing or unknown:
            problem = f"lacks {missing[0]!r}" if missing else f"does not know {unknown[0]!r}"
            raise ValueError(
                f"branches: neuron {spec.name!r} {problem}; its letters are "
                f"{', '.join(spec.branches)}"
            )
        letters = [k for k in spec.branches if k in branches]
        super().__init__({k: branches[k] for k in letters})
        self.neuron = spec.name
        # The neuron as lists of numbers: these script, trace, export and pickle.
        self._lifts = [_LIFTS.index(spec.branches[k].lift) for k in letters]
        self._offsets = [spec.branches[k].offset for k in letters]
        self._terms = [
            [letters.index(k) for k in term] for term in spec.terms if set(term) <= set(letters)
        ]
        self._reference = letters.index(spec.reference) if spec.reference is not None else -1
        self._quadratic = [letters.index(k) for k in spec.quadratic]
        self._zero_at_reference = [letters.index(k) for k in spec.zero_at_reference]
        self.rms_dims = rms_dims
        # once more for each branch: TorchScript knows no type of a list that may be empty
        self._is_quadratic = [k in spec.quadratic for k in letters]
        self.formula = spec.normalised_formula if rms_dims else spec.formula

    @property
    def terms(self) -> tuple[tuple[str, ...], ...]:
        """The products that the neuron adds up, each as the letters of its factors."""
        letters = list(self)
        return tuple(tuple(letters[i] for i in term) for term in self._terms)

    @property
    def lifts(self) -> dict[str, Lift]:
        """What each branch is applied to, as in :class:`qcore.Branch`."""
        return {k: _LIFTS[i] for k, i in zip(self, self._lifts, strict=True)}

    @property
    def offsets(self) -> dict[str, float]:
        """The constant added to each branch."""
        return dict(zip(self, self._offsets, strict=True))

    @property
    def reference(self) -> nn.Module | None:
        """The branch that remains at the linear reference, or None where the neuron has none."""
        return None if self._reference < 0 else list(self.values())[self._reference]

    def quadratic_branches(self) -> dict[str, nn.Module]:
        """The branches whose parameters are quadratic, by letter."""
        items = list(self.items())
        return dict(items[i] for i in self._quadratic)

    def branches_zero_at_reference(self) -> dict[str, nn.Module]:
        """The branches whose parameters are 0 at the linear reference, by letter."""
        items = list(self.items())
        return dict(items[i] for i in self._zero_at_reference)

    def parameters_zero_at_reference(self) -> Iterator[nn.Parameter]:
        """The parameters that are 0 at the linear reference: what its branches end in.

        These are weights and biases; of a low-rank form the signs σ alone, for with its factors at
        0 as well neither would receive a gradient, and of a weight that is a product, such as one
        under weight norm, one factor. Of modules that have none of these it is every parameter.
        """
        for branch in self.branches_zero_at_reference().values():
            for module in branch.modules():
                own = dict(module.named_parameters(recurse=False))
                ends = own.keys() & _ENDS
                yield from (p for k, p in own.items() if not ends or k in ends or k == "bias")

    @torch.jit.unused
    def reset_parameters(self) -> None:
        """Draw all branches anew, each as its own kind does."""
        for branch in self.values():
            branch.reset_parameters()  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        """The neuron's formula."""
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            path = kernels.path(self, x)
            if path != "plain":
                return kernels.run(self, x, path)
            dtype = kernels.autocast_dtype(x)
            if dtype is not None:
                return self._autocast(x, dtype)
        squared = x * x if 1 in self._lifts else x
        values: list[Tensor] = []
        for i, branch in enumerate(self.values()):
            value = branch(self._seen(squared if self._lifts[i] == 1 else x, i))
            values.append(value + self._offsets[i] if self._offsets[i] != 0.0 else value)
        return self._combine(values)

    def _seen(self, x: Tensor, i: int) -> Tensor:
        """What branch ``i`` sees of its input: quadratic ones may have a norm."""
        if self.rms_dims > 0 and self._is_quadratic[i]:
            return divide_by_rms(x, [x.size(k) for k in range(-self.rms_dims, 0)])
        return x

    def _autocast(
        self, x: Tensor, dtype: torch.dtype, output_size: list[int] | None = None
    ) -> Tensor:
        """The formula under autocast, in the type that autocast computes in.

        Squares and products would leave the range of float16: there, squared inputs, forms and
        products are computed in float32, and the result alone is rounded.
        """
        narrow = dtype == torch.float16
        wide = x.float() if narrow else x
        more = () if output_size is None else (output_size,)
        values = []
        for i, branch in enumerate(self.values()):
            lift = _LIFTS[self._lifts[i]]
            alone = narrow and lift in ("x2", "form")
            with torch.autocast(x.device.type, dtype, enabled=not alone):
                value = branch(self._seen(wide * wide if lift == "x2" else wide, i), *more)
            values.append((value.float() if narrow else value) + self._offsets[i])
        return self._combine(values).to(dtype)

    def path(self, x: Tensor) -> str:
        """The arithmetic that this input takes here and now: see :func:`qcore.backend`."""
        return kernels.path(self, x)

    def _combine(self, values: list[Tensor]) -> Tensor:
        """The sum of products of what the branches computed."""
        total = _product(values, self._terms[0])
        for term in self._terms[1:]:
            total = total + _product(values, term)
        return total

    def extra_repr(self) -> str:
        """The neuron and its formula, for ``print``."""
        norm = f", rms_dims={self.rms_dims}" if self.rms_dims else ""
        return f"neuron={self.neuron!r}: {self.formula}{norm}"


def _product(values: list[Tensor], term: list[int]) -> Tensor:
    result = values[term[0]]
    for i in term[1:]:
        result = result * values[i]
    return result


class Constant(nn.Module):
    """A bias alone: the branch of lift ``"one"``, e.g. the ``b`` of ``qres``.

    Args:
        features: number of constants.
        dims: number of trailing dimensions to broadcast over: 0 for linear layers, 2 for images.
        device, dtype: as everywhere in torch.

    Shapes: any input; output ``(features, 1, ..., 1)`` with ``dims`` ones. It starts at 0.

    >>> Constant(3, dims=2)(torch.randn(5, 3, 8, 8)).shape
    torch.Size([3, 1, 1])
    """

    def __init__(
        self,
        features: int,
        dims: int = 0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.shape = [features] + [1] * dims
        self.bias = nn.Parameter(torch.zeros(features, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Back to 0."""
        nn.init.zeros_(self.bias)

    def forward(
        self,
        x: Tensor,  # noqa: ARG002 - a branch is called with the input
        output_size: list[int] | None = None,  # noqa: ARG002 - and a transposed one with a size
    ) -> Tensor:
        """The constants, shaped to broadcast over the output of the other branches."""
        return self.bias.view(self.shape)


class QuadraticLinear(Quadratic):
    r"""A drop-in for ``nn.Linear`` whose neurons are quadratic.

    The default neuron is :math:`(w_r x + b_r)(w_g x + b_g) + w_b x^2 + c`, element by element of
    the output; every name of :data:`qcore.CATALOGUE` is allowed.

    Args:
        in_features, out_features: as in ``nn.Linear``.
        bias: whether the branches have their biases. Offsets stay without it, and so does the
            linear reference.
        neuron: a name of the catalogue, or a :class:`qcore.neurons.Neuron`.
        rank: for ``"bilinear"``, the rank of a signed low-rank form; None means a dense one.
        rms_norm: whether the quadratic branches see each input vector divided by its root mean
            square: see :class:`Quadratic`.
        device, dtype: as everywhere in torch.

    Every branch starts as PyTorch starts it; :class:`qcore.ReLinear` moves to the linear reference.

    Shapes: input ``(..., in_features)``, output ``(..., out_features)``.

    Cost: the default neuron has three times the parameters and multiply-adds of ``nn.Linear``.

    Raises ``ValueError`` for an unknown neuron, for ``rank`` with a neuron that has no form, and
    for ``rms_norm`` with one that has no quadratic branch.

    Source: arXiv 2110.06081, eq. 1 (default neuron); the catalogue names the others'.

    >>> QuadraticLinear(4, 3, neuron="qres")(torch.randn(7, 4)).shape
    torch.Size([7, 3])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        neuron: str | Neuron = "quadratic",
        rank: int | None = None,
        rms_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        spec = resolve(neuron, bias, rank, rms_norm=rms_norm)
        super().__init__(
            spec,
            build_branches(
                spec,
                linear=lambda has_bias: nn.Linear(in_features, out_features, has_bias, **factory),
                form=lambda: build_form(in_features, out_features, rank, **factory),
                constant=lambda: Constant(out_features, **factory),
            ),
            rms_dims=1 if rms_norm else 0,
        )
        self.in_features = in_features
        self.out_features = out_features


def resolve(
    neuron: str | Neuron, bias: bool, rank: int | None, *, rms_norm: bool = False
) -> Neuron:
    """The neuron of that name, without its biases where ``bias`` is false; checks the others."""
    spec = get_neuron(neuron) if isinstance(neuron, str) else neuron
    if rms_norm and not spec.quadratic:
        raise ValueError(
            "rms_norm=True is for what quadratic branches see, and neuron "
            f"{spec.name!r} ({spec.formula}) has none: choose another, or rms_norm=False"
        )
    if rank is not None and all(branch.lift != "form" for branch in spec.branches.values()):
        raise ValueError(
            f"rank={rank} is only for neurons with a quadratic form, such as 'bilinear'; "
            f"neuron {spec.name!r} is {spec.formula}"
        )
    return spec if bias else spec.without_bias()


def build_form(
    size: int, out: int, rank: int | None, **factory: Any
) -> QuadraticForm | LowRankForm:
    """A dense form, or a signed one of low rank."""
    if rank is None:
        return QuadraticForm(size, out, **factory)
    return LowRankForm(size, out, rank, signed=True, **factory)


def build_branches(
    neuron: Neuron,
    linear: Callable[[bool], nn.Module],
    form: Callable[[], nn.Module],
    constant: Callable[[], nn.Module],
) -> dict[str, nn.Module]:
    """A module for each branch, in the neuron's order: that in which random numbers are drawn."""
    branches: dict[str, nn.Module] = {}
    for letter, branch in neuron.branches.items():
        if branch.lift == "one":
            branches[letter] = constant()
        elif branch.lift == "form":
            branches[letter] = form()
        else:
            branches[letter] = linear(branch.bias)
    return branches
