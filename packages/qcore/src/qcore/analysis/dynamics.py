"""How the normalised margin moves under gradient flow, and what DIQNN's theorem 2 says of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from qcore.analysis.homogeneity import homogeneity_degree
from qcore.analysis.parametric import Function, Parameters, as_function, flatten, placed
from qcore.strategies.margin import normalized_margin

_PROBE = 16  # inputs at which the degree is measured


@dataclass(frozen=True, eq=False)
class MarginDynamics:
    r"""The rate of change of the margin, and the proof's inner product, sample by sample.

    Attributes:
        derivatives: :math:`d\mu_n/dt` per sample, ``(N,)``.
        inner_products: :math:`\langle \alpha_n, \dot\theta \rangle / \lVert\Phi_n\rVert` per
            sample, ``(N,)``.
        drift: :math:`d \log a_n / dt` per sample, ``(N,)``; the theorem's first assumption is that
            it is 0.
        degree: the degree L of homogeneity that was used.
    """

    derivatives: Tensor
    inner_products: Tensor
    drift: Tensor
    degree: float

    @property
    def derivative(self) -> Tensor:
        """dΔμ/dt, the mean over samples: ``()``."""
        return self.derivatives.mean()

    @property
    def inner_product(self) -> Tensor:
        """The inner product of the proof, the mean over samples: ``()``."""
        return self.inner_products.mean()

    @property
    def ratio(self) -> Tensor:
        """``derivative / inner_product``, 1 where the first assumption holds: ``()``."""
        return self.derivative / self.inner_product

    @property
    def correlation(self) -> Tensor:
        """Pearson's correlation of both over samples: ``()``; NaN where either is constant."""
        both = torch.stack([self.derivatives, self.inner_products])
        centred = both - both.mean(1, keepdim=True)
        # rounding alone must not look like a correlation
        constant = centred.abs().amax(1) <= 1e-12 * both.abs().amax(1)
        value = functional.cosine_similarity(centred[0], centred[1], dim=0, eps=0.0)
        return torch.where(constant.any(), torch.nan, value)


def margin_dynamics(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    degree: float | None = None,
    velocity: Mapping[str, Tensor] | None = None,
    batch_size: int = 256,
) -> MarginDynamics:
    r"""dΔμ/dt under gradient flow of the cross-entropy, beside the inner product of the proof.

    With :math:`\dot\theta = -\nabla_\theta \mathcal L`, the lead
    :math:`s_n = \Phi_{y_n} - \max_{j \ne y_n} \Phi_j` and the degree L of homogeneity,

    .. math::
        \frac{d\Delta\mu}{dt} = \langle \nabla_\theta \Delta\mu, \dot\theta \rangle
        \quad\text{and}\quad
        \Big\langle \frac1N \sum_n \frac{\alpha_n}{\lVert\Phi_n\rVert}, \dot\theta \Big\rangle,
        \qquad \alpha_n = \partial_\theta s_n - \frac{L s_n}{\lVert\theta\rVert^2}\, \theta .

    The proof of theorem 2 equates them. They differ by how much
    :math:`a_n = \lVert\Phi_n\rVert / \lVert\theta\rVert^L` moves, which its first assumption rules
    out: inner product = derivative + mean of :math:`\mu_n \, d\log a_n/dt`. On XOR their ratio is
    :math:`(a+b)^2 / (2(a^2+b^2))`, 1 at the start and then below.

    Both are directional derivatives by the chain rule, no finite differences, in double precision.
    Along a training run, compare the values of successive calls, as figure 4 of the supplement.

    Args:
        model: a classifier; it runs in eval mode and is not changed. θ are its trainable
            parameters.
        x: the inputs of the N training samples.
        y: their classes as integers.
        degree: L; None measures it with :func:`homogeneity_degree`. For a model that is not
            homogeneous a number must be given; the derivative does not depend on it.
        velocity: :math:`\dot\theta` by parameter name, such as minus the gradient of a small batch
            that training is about to take; None is the gradient flow on these samples.
        batch_size: samples worked off at once; it only affects memory and speed.

    Shapes: x ``(N, *input)``, y ``(N,)``.

    Cost: three forward and three backward passes over the samples; one gradient in memory.

    Raises ``ValueError`` for a model that is not homogeneous where ``degree`` is None, for no
    samples, shapes that do not match, a velocity of other parameters, and a sample whose output is
    0, where no margin has a derivative.

    Source: DIQNN (arXiv 2307.13609), supplement 3.3, eq. 3.

    >>> from qcore import LowRankForm
    >>> xor = LowRankForm(2, 2, rank=1)
    >>> with torch.no_grad():
    ...     _ = xor.factors.copy_(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
    >>> with torch.no_grad():  # one step away from the start, where the ratio is 1
    ...     _ = xor.factors.add_(torch.tensor([[[0.0, 0.5]], [[-0.5, 0.0]]]))
    >>> x = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    >>> dynamics = margin_dynamics(xor, x, torch.tensor([0, 0, 1, 1]))
    >>> a, b = 1.5**2, 0.5**2
    >>> round(dynamics.ratio.item(), 6), round((a + b) ** 2 / (2 * (a**2 + b**2)), 6)
    (0.609756, 0.609756)
    """
    check_samples(x, y)
    function, theta = as_function(model)
    x, y = placed(x, theta), y.to(next(iter(theta.values())).device)
    if degree is None:
        degree = homogeneity_degree(model, x[:_PROBE])
    batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))

    def loss(theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(function(theta, x), y, reduction="sum")

    if velocity is None:
        flow = {name: torch.zeros_like(value) for name, value in theta.items()}
        for inputs, classes in batches:
            for name, gradient in torch.func.grad(loss)(theta, inputs, classes).items():
                flow[name] -= gradient.detach() / len(x)
    else:
        _check_velocity(velocity, theta)
        flow = {name: velocity[name].to(value) for name, value in theta.items()}
    pairs = [_outputs_and_rates(function, theta, flow, inputs) for inputs, _ in batches]
    outputs = torch.cat([pair[0] for pair in pairs])  # Φ, (N, classes)
    rates = torch.cat([pair[1] for pair in pairs])  # dΦ/dt
    length = output_lengths(outputs)
    margins = torch.func.grad(lambda outputs: normalized_margin(outputs, y, "none").sum())
    derivatives = (margins(outputs) * rates).sum(-1)  # a sample's margin sees its own outputs
    other = rivals(outputs, y)
    position = flatten(theta)
    growth = degree * (position @ flatten(flow)) / (position @ position)  # d log ‖θ‖^L / dt
    inner = (lead(rates, y, other) - growth * lead(outputs, y, other)) / length
    drift = (outputs * rates).sum(-1) / length**2 - growth
    return MarginDynamics(derivatives, inner, drift, degree)


def _check_velocity(velocity: Mapping[str, Tensor], theta: Parameters) -> None:
    given = {name: tuple(value.shape) for name, value in velocity.items()}
    needed = {name: tuple(value.shape) for name, value in theta.items()}
    if given != needed:
        raise ValueError(
            f"velocity has the shapes {given}, but the trainable parameters have {needed}: give "
            "one tensor for each, under its name"
        )


def _outputs_and_rates(
    function: Function, theta: Parameters, flow: Parameters, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Φ and dΦ/dt where θ moves along the flow."""
    names = list(theta)

    def outputs_at(*values: Tensor) -> Tensor:
        return function(dict(zip(names, values, strict=True)), x)

    # by two backward passes: every layer has those, forward mode it may not have
    point, direction = tuple(theta.values()), tuple(flow[name] for name in names)
    outputs, velocity = torch.autograd.functional.jvp(outputs_at, point, direction)
    return outputs, velocity


def check_samples(x: Tensor, y: Tensor) -> None:
    """Refuses an empty batch and classes that do not fit the inputs."""
    if len(x) == 0 or y.shape != x.shape[:1]:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}, but they must be (N, *input) "
            "and (N,): one class per sample, and at least one sample"
        )


def output_lengths(outputs: Tensor) -> Tensor:
    """``‖Φ_n‖`` per sample, ``(N,)``; refuses zeros."""
    length = outputs.norm(dim=-1)
    if not length.all():
        index = int((length == 0).nonzero()[0])
        raise ValueError(
            f"the output for sample {index} is 0, where the margin has no derivative; "
            "leave the sample out"
        )
    return length


def rivals(outputs: Tensor, y: Tensor) -> Tensor:
    """``j_n``, the best class other than the true one: ``(N,)``."""
    return outputs.scatter(-1, y.unsqueeze(-1), float("-inf")).argmax(-1)


def lead(outputs: Tensor, y: Tensor, other: Tensor) -> Tensor:
    """``Φ_y − Φ_j`` per sample: ``(N,)``; linear in the outputs."""
    pairs = outputs.gather(-1, torch.stack([y, other], dim=-1))
    return pairs[:, 0] - pairs[:, 1]
