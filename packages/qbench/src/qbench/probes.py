"""What some tables measure beside loss, accuracy and margin: along training, and at its end."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from qbench.loop import Training
from qbench.recipe import Recipe
from qcore import LowRankForm, QuadraticForm, normalized_margin, truncate_head
from qcore.analysis import (
    eigenvector_similarity,
    margin_bound,
    margin_dynamics,
    proof_cosine,
    spectrum,
    spike_triggered_average,
)

Probe = Callable[[Training], dict[str, Tensor]]

SAMPLES = 2000
"""Training samples at which theorem 2's equality is measured."""

BOUND_ENTRIES = 2**25
"""Numbers in the gradients from which its bound is computed, at no more than 512 samples."""

RETAINED = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100, 200, 400)
"""Numbers of eigenvectors that are kept."""


@dataclass(frozen=True)
class Findings:
    """What is measured of one seed when its training has ended."""

    parameters: int
    metrics: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, Tensor] = field(default_factory=dict)


def make_probe(recipe: Recipe) -> Probe | None:
    """What the recipe measures at each recorded step."""
    return theorem2 if "theorem2" in recipe.probes else None


def finish(training: Training) -> list[Findings]:
    """What the recipe measures at the end, for each seed."""
    found = []
    for i in range(len(training.seeds)):
        model = replica(training, i)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        diverged = training.curves[i].diverged_at is not None
        if "spectrum" in training.recipe.probes and not diverged:
            metrics, arrays = _spectrum(model, training, i)
            found.append(Findings(parameters, metrics, arrays))
        else:
            found.append(Findings(parameters))
    return found


def replica(training: Training, index: int) -> nn.Module:
    """A seed's model by itself, in eval mode, with copies of its parameters."""
    model = training.model.replica(index)
    return model.eval()


_THEOREM2 = (
    "margin_rate",
    "margin_derivative",
    "inner_product",
    "drift",
    "lower_bound",
    "closeness",
    "reciprocal_condition",
    "alignment",
    "gram_alignment",
    "proof_alignment",
)


def theorem2(training: Training) -> dict[str, Tensor]:
    r"""Both sides of the equality in the proof of theorem 2, and what the theorem assumes.

    With the velocity v of the step to come, minus the gradient of its batch,

    .. math::
        \langle \nabla_\theta \Delta\mu, v \rangle \quad\text{and}\quad
        \Big\langle \frac1N \sum_n \frac{\alpha_n}{\lVert\Phi_n\rVert}, v \Big\rangle ,

    the change of the margin in that step over its length η, and the mean size of the drift of a_n,
    which the first assumption has at 0, and the cosine that the third is to keep from being
    negative, over the first 2000 training samples; over at most 512 of them the theorem's lower
    bound, the factor :math:`e^{-1/\varepsilon}` in it, which the second assumption is to make
    small, 1/c and m of the third, and that cosine again. In double precision. NaN for a seed that
    diverged.

    Source: DIQNN (arXiv 2307.13609), supplement 3.3 and figure 4.
    """
    rows = []
    for i, curve in enumerate(training.curves):
        if curve.diverged_at is not None:
            rows.append(dict.fromkeys(_THEOREM2, torch.tensor(math.nan)))
            continue
        model = replica(training, i).double()
        samples = training.problem.train
        x, y = (part[i][:SAMPLES] for part in next(samples.chunks(SAMPLES)))
        x = x.double()
        theta = {name: value.detach() for name, value in model.named_parameters()}
        velocity = _velocity(model, theta, training, i)
        lr = training.recipe.lr
        moved = {name: value + lr * velocity[name] for name, value in theta.items()}
        with torch.no_grad():
            before, after = (
                normalized_margin(functional_call(model, at, (x,)), y) for at in (theta, moved)
            )
        dynamics = margin_dynamics(model, x, y, velocity=velocity)
        size = sum(value.numel() for value in theta.values())
        few = max(2, min(512, BOUND_ENTRIES // size))
        bound = margin_bound(model, x[:few], y[:few], degree=dynamics.degree, samples=few)
        cosine = proof_cosine(model, x, y, degree=dynamics.degree)
        rows.append(
            {
                "margin_rate": (after - before) / lr,
                "margin_derivative": dynamics.derivative,
                "inner_product": dynamics.inner_product,
                "drift": dynamics.drift.abs().mean(),
                "lower_bound": torch.tensor(bound.lower_bound),
                "closeness": torch.tensor(_inverse_exp(bound.separation)),
                "reciprocal_condition": torch.tensor(1 / bound.condition_number),
                "alignment": torch.tensor(bound.cosine),
                "gram_alignment": torch.tensor(bound.gram_cosine),
                "proof_alignment": torch.tensor(cosine),
            }
        )
    return {
        name: torch.stack([row[name].detach().cpu().double() for row in rows]) for name in _THEOREM2
    }


def _inverse_exp(separation: float) -> float:
    """e^(-1/ε): 1 at a tie, where ε is infinite, and 0 for two classes, where ε is 0."""
    return math.exp(-1 / separation) if separation else 0.0


def _velocity(
    model: nn.Module, theta: dict[str, Tensor], training: Training, index: int
) -> dict[str, Tensor]:
    """Minus the gradient of the loss on the batch of the step to come; at the end, of one more."""
    x, y = training.batch()
    parameters = {name: value.clone().requires_grad_() for name, value in theta.items()}
    gradient = {name: torch.zeros_like(value) for name, value in theta.items()}
    for part, classes in zip(x[index].split(SAMPLES), y[index].split(SAMPLES), strict=True):
        logits = functional_call(model, parameters, (part.double(),))
        total = nn.functional.cross_entropy(logits, classes, reduction="sum") / len(y[index])
        found = torch.autograd.grad(total, list(parameters.values()))
        for name, value in zip(parameters, found, strict=True):
            gradient[name] -= value
    return gradient


def _spectrum(
    model: nn.Module, training: Training, index: int
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Test accuracy with the leading eigenvectors alone, and what these look like.

    Source: DIQNN (arXiv 2307.13609), figure 2 and the supplement's figure 2.
    """
    *front, head = model.children() if isinstance(model, nn.Sequential) else (model,)
    if not isinstance(head, QuadraticForm | LowRankForm):
        raise TypeError(f"probe spectrum needs a quadratic classifier, not {type(head).__name__}")
    trunk = nn.Sequential(*front)
    parts = {
        name: [
            (trunk(x[index]).detach(), y[index])
            for x, y in getattr(training.problem, name).chunks(SAMPLES)
        ]
        for name in ("train", "test")
    }
    features = head.in_features
    ranks = [rank for rank in RETAINED if rank < features]
    accuracies = [_accuracy(truncate_head(head, rank)[0], parts["test"]) for rank in ranks]
    ranks.append(features)
    accuracies.append(_accuracy(head, parts["test"]))
    averages = spike_triggered_average(head, parts["train"])
    similarity = eigenvector_similarity(head, averages).abs()  # (classes, classes)
    own = similarity.diagonal()
    others = (similarity.sum(1) - own) / (len(own) - 1)
    found = spectrum(head)
    metrics = {
        **{f"kept_{k}": a for k, a in zip(ranks, accuracies, strict=True) if k in (1, 3, 10)},
        "lost_10": accuracies[-1] - accuracies[ranks.index(10)],
        "similarity": float(own.nanmean()),
        "similarity_others": float(others.nanmean()),
    }
    arrays = {
        "retained": torch.tensor(ranks),
        "retained_accuracy": torch.tensor(accuracies),
        "eigenvalues": found.values.float().contiguous(),
        "leading": found.vectors[:, 0].float().contiguous(),
        "average": averages.mean.float().contiguous(),
        "similarity": similarity.float().contiguous(),
    }
    return metrics, {name: value.detach().cpu() for name, value in arrays.items()}


@torch.no_grad()
def _accuracy(head: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Percent correct."""
    right = sum(int((head(x).argmax(-1) == y).sum()) for x, y in batches)
    return 100 * right / sum(len(y) for _, y in batches)
