"""The constants of DIQNN's theorem 2 and the lower bound they give."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from qcore.analysis.dynamics import check_samples, lead, output_lengths, rivals
from qcore.analysis.homogeneity import homogeneity_degree
from qcore.analysis.parametric import Function, Parameters, as_function, flatten, placed

_PROBE = 16  # inputs at which the degree is measured
_ENTRIES = 2**26  # numbers in a block of gradients: 512 MiB in double precision


@dataclass(frozen=True)
class MarginBound:
    r"""What theorem 2 needs, and the lower bound it gives for dΔμ/dt.

    Attributes:
        condition_number: c, of the Gram matrix :math:`A_{nm} = \langle \alpha_n, \alpha_m \rangle`;
            infinite where A is singular to working precision.
        gradient_norm: M, the largest :math:`\lVert\partial_\theta s_{nj}\rVert`.
        separation: ε, the smallest for which every sample is ε-separated: one over the smallest
            gap between the two best wrong classes. 0 for two classes, infinite at a tie.
        cosine: m, of the vectors :math:`1/a_n` and :math:`v_n`.
        lower_bound: :math:`-M^2 (k-2) \lVert a \rVert_1 e^{-1/\varepsilon} / (N \lVert\theta
            \rVert^L)`, with :math:`\lVert a \rVert_1 = \sum_n 1/a_n`.
        samples: the number N of samples it was measured on.
        degree: the degree L of homogeneity that was used.
        gram_cosine: the cosine of :math:`\sum_n \alpha_n / a_n` and :math:`\sum_n v_n \alpha_n`,
            :math:`a^T\!A v / \sqrt{a^T\!A a \cdot v^T\!A v}` with the paper's vector a of the
            :math:`1/a_n`, as :func:`proof_cosine` measures it on samples of any number. All that
            the proof needs of the third assumption is that it is not negative. NaN where one of
            the sums is 0.
    """

    condition_number: float
    gradient_norm: float
    separation: float
    cosine: float
    lower_bound: float
    samples: int
    degree: float
    gram_cosine: float

    @property
    def third_assumption(self) -> bool:
        """Whether c is finite, m > 0 and ``c − 1 ≤ 2m / √(1 − m²)``."""
        if not (math.isfinite(self.condition_number) and self.cosine > 0):
            return False
        # multiplied out: for m = 1 the right side is infinite
        return (self.condition_number - 1) * math.sqrt(1 - self.cosine**2) <= 2 * self.cosine


def margin_bound(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    degree: float | None = None,
    samples: int = 512,
    seed: int = 0,
) -> MarginBound:
    r"""The constants of theorem 2, and the cosine that its proof needs, at the present parameters.

    .. math::
        c - 1 \le \frac{2m}{\sqrt{1-m^2}} \;\Rightarrow\;
        \frac{d\Delta\mu}{dt} \ge - \frac{M^2 (k-2) \lVert a \rVert_1}
            {N \lVert\theta\rVert_2^L}\, e^{-1/\varepsilon}

    The implication also needs the theorem's first assumption, that the :math:`a_n` are constant in
    time; ``drift`` of :func:`margin_dynamics` measures it.

    An infinite c is a result: the N vectors :math:`\alpha_n` are orthogonal to θ, so with at least
    as many samples as parameters, or with samples that the model cannot tell apart (x and −x for
    an even form), A is singular and the third assumption cannot hold.

    Args:
        model, x, y, degree: as in :func:`margin_dynamics`.
        samples: the most samples to measure on; of more, a random subset is taken, and N in the
            formula is its size.
        seed: of that subset.

    Shapes: x ``(N, *input)``, y ``(N,)``.

    Cost: a gradient per sample and class, and N²/2 products of gradients. Gradients are held in two
    blocks of at most 512 MiB (or one gradient each); where N of them do not fit, they are computed
    anew for every pair of blocks. Seconds for a low-rank head; with millions of parameters, give
    fewer ``samples``.

    Raises ``ValueError`` as :func:`margin_dynamics` does, and for ``samples`` below 1.

    Source: DIQNN (arXiv 2307.13609), definitions 2 and 3 and theorem 2 of the supplement.

    >>> from qcore import LowRankForm
    >>> xor = LowRankForm(2, 2, rank=1)
    >>> with torch.no_grad():
    ...     _ = xor.factors.copy_(torch.tensor([[[1.0, 0.5]], [[-0.5, 1.0]]]))
    >>> x, y = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([0, 1])
    >>> bound = margin_bound(xor, x, y)
    >>> a, b = 1.5**2, 0.5**2
    >>> round(bound.condition_number, 6), round((a + b) ** 2 / (4 * a * b), 6)
    (2.777778, 2.777778)
    >>> bound.third_assumption
    True
    >>> margin_bound(xor, torch.cat([x, -x]), torch.cat([y, y])).condition_number
    inf
    """
    check_samples(x, y)
    if samples < 1:
        raise ValueError(f"samples={samples} is not allowed: give 1 or more")
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:samples]
    function, theta = as_function(model)
    y = y[chosen.to(y.device)].to(next(iter(theta.values())).device)
    x = placed(x[chosen.to(x.device)], theta)
    if degree is None:
        degree = homogeneity_degree(model, x[:_PROBE])
    with torch.no_grad():
        outputs = function(theta, x)
    length = output_lengths(outputs)
    other = rivals(outputs, y)
    leads = lead(outputs, y, other)
    position = flatten(theta)
    radial = (degree * leads / (position @ position)).unsqueeze(1)  # of ∂s_n along θ, (N, 1)
    classes = outputs.shape[-1]
    block = max(1, _ENTRIES // len(position))

    def difference(theta: Parameters, x: Tensor, direction: Tensor) -> Tensor:
        return function(theta, x.unsqueeze(0))[0] @ direction

    def gradients(rows: Tensor, other: Tensor) -> Tensor:
        """``∂_θ (Φ_y − Φ_other)`` of the samples in ``rows``: ``(rows, parameters)``."""
        true, false = (functional.one_hot(index, classes) for index in (y[rows], other[rows]))
        per_sample = torch.func.vmap(torch.func.grad(difference), in_dims=(None, 0, 0))
        found = per_sample(theta, x[rows], (true - false).to(outputs.dtype))
        return flatten(found, batch_dims=1).detach()

    def alphas(rows: Tensor) -> Tensor:
        return gradients(rows, other) - radial[rows] * position

    blocks = torch.arange(len(x), device=y.device).split(block)
    gram = torch.zeros(len(x), len(x), dtype=torch.float64, device=y.device)
    for i, rows in enumerate(blocks):
        first = alphas(rows)
        for columns in blocks[i:]:
            products = first @ (first if columns is rows else alphas(columns)).mT
            gram[rows.unsqueeze(1), columns] = products
            gram[columns.unsqueeze(1), rows] = products.mT
    largest = max(
        gradients(rows, torch.full_like(y, j)).norm(dim=1).max().item()
        for rows in blocks
        for j in range(classes)
    )
    gap = _smallest_gap(outputs, y)
    v = _rival_probabilities(outputs, other)
    # 1/a_n = ‖θ‖^L / ‖Φ_n‖; the power of ‖θ‖ cancels in both cosines and in the bound
    cosine = functional.cosine_similarity(1 / length, v, dim=0, eps=0.0).clamp(max=1.0).item()
    return MarginBound(
        condition_number=_condition_number(gram),
        gradient_norm=largest,
        separation=1 / gap if gap > 0 else math.inf,
        cosine=cosine,
        lower_bound=-(largest**2) * (classes - 2) * (1 / length).mean().item() * math.exp(-gap),
        samples=len(x),
        degree=degree,
        gram_cosine=_cosine_of_sums(function, theta, x, y, outputs, degree, block),
    )


def proof_cosine(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    degree: float | None = None,
    batch_size: int = 256,
) -> float:
    r"""The cosine that the proof of theorem 2 needs not to be negative, over all given samples.

    .. math::
        \cos\Big(\sum_n \frac{\alpha_n}{a_n},\; \sum_n v_n \alpha_n\Big),
        \qquad \alpha_n = \partial_\theta s_n - \frac{L s_n}{\lVert\theta\rVert^2}\, \theta

    with :math:`a_n = \lVert\Phi_n\rVert / \lVert\theta\rVert^L` and the probability
    :math:`v_n` of the best wrong class. NaN where one of the sums is 0.

    Args:
        model, x, y, degree, batch_size: as in :func:`margin_dynamics`.

    Shapes: x ``(N, *input)``, y ``(N,)``.

    Cost: three forward passes over the samples and two backward; two gradients in memory, so that,
    unlike the other constants of :func:`margin_bound`, it is for any numbers of samples and
    parameters.

    Raises ``ValueError`` as :func:`margin_dynamics` does.

    Source: DIQNN (arXiv 2307.13609), proof of theorem 2 in the supplement.

    >>> from qcore import LowRankForm
    >>> xor = LowRankForm(2, 2, rank=1)
    >>> with torch.no_grad():
    ...     _ = xor.factors.copy_(torch.tensor([[[1.0, 0.5]], [[-0.5, 1.0]]]))
    >>> x, y = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([0, 1])
    >>> round(proof_cosine(xor, x, y), 6)
    1.0
    """
    check_samples(x, y)
    function, theta = as_function(model)
    x, y = placed(x, theta), y.to(next(iter(theta.values())).device)
    if degree is None:
        degree = homogeneity_degree(model, x[:_PROBE])
    with torch.no_grad():
        outputs = torch.cat([function(theta, inputs) for inputs in x.split(batch_size)])
    return _cosine_of_sums(function, theta, x, y, outputs, degree, batch_size)


def _cosine_of_sums(
    function: Function,
    theta: Parameters,
    x: Tensor,
    y: Tensor,
    outputs: Tensor,
    degree: float,
    batch_size: int,
) -> float:
    """The cosine of ``Σ α_n / a_n`` and ``Σ v_n α_n``, each from one weighted gradient."""
    other = rivals(outputs, y)
    leads, position = lead(outputs, y, other), flatten(theta)

    def weighted(theta: Parameters, x: Tensor, y: Tensor, other: Tensor, weights: Tensor) -> Tensor:
        return weights @ lead(function(theta, x), y, other)

    def summed(weights: Tensor) -> Tensor:
        """``Σ w_n α_n``, up to a factor of all w."""
        weights = weights / weights.norm()
        total = torch.zeros_like(position)
        for part in torch.arange(len(x), device=y.device).split(batch_size):
            ours = theta, x[part], y[part], other[part], weights[part]
            total += flatten(torch.func.grad(weighted)(*ours)).detach()
        return total - degree * (weights @ leads) / (position @ position) * position

    pair = summed(1 / output_lengths(outputs)), summed(_rival_probabilities(outputs, other))
    return functional.cosine_similarity(*pair, dim=0, eps=0.0).clamp(-1.0, 1.0).item()


def _rival_probabilities(outputs: Tensor, other: Tensor) -> Tensor:
    """``v_n`` up to a factor, which cancels: no probability of a confident network underflows."""
    log_v = outputs.log_softmax(-1).gather(-1, other.unsqueeze(-1)).squeeze(-1)
    return (log_v - log_v.max()).exp()


def _smallest_gap(outputs: Tensor, y: Tensor) -> float:
    """The smallest lead of the best wrong class over the second best; infinite for two classes."""
    if outputs.shape[-1] < 3:
        return math.inf
    wrong = outputs.scatter(-1, y.unsqueeze(-1), float("-inf")).topk(2, dim=-1).values
    return (wrong[:, 0] - wrong[:, 1]).min().item()


def _condition_number(gram: Tensor) -> float:
    eigenvalues = torch.linalg.eigvalsh(gram)  # ascending
    smallest, largest = eigenvalues[0].item(), eigenvalues[-1].item()
    # the tolerance of torch.linalg.matrix_rank: what is below is 0 but for rounding
    singular = smallest <= len(gram) * torch.finfo(gram.dtype).eps * largest
    return math.inf if singular else largest / smallest
