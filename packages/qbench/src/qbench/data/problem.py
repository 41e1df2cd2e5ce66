"""A classification problem for several seeds at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from qbench.catalogue import DATASETS
from qbench.data import images, tabular
from qbench.errors import UserError, unknown
from qbench.recipe import Recipe

Prepare = Callable[[Tensor], Tensor]


def _as_it_is(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Samples:
    """Inputs and classes of one part of a problem, for S seeds.

    Shapes: ``x`` ``(S, N, *input)`` and ``y`` ``(S, N)`` where every seed has its own, ``(N,
    *input)`` and ``(N,)`` where they share them. ``prepare`` turns what is stored, such as bytes,
    into what a model takes; it maps ``(..., *input)`` to floating point of the same shape.

    >>> samples = Samples(torch.arange(6).view(3, 2), torch.tensor([0, 1, 2]), seeds=2)
    >>> x, y = samples.take(torch.tensor([[2], [0]]))  # sample 2 for one seed, 0 for the other
    >>> x.tolist(), y.tolist()
    ([[[4, 5]], [[0, 1]]], [[2], [0]])
    """

    x: Tensor
    y: Tensor
    seeds: int
    prepare: Prepare = _as_it_is

    @property
    def shared(self) -> bool:
        """Whether all seeds have the same samples."""
        return self.y.dim() == 1

    def __len__(self) -> int:
        return self.y.shape[-1]

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The samples at ``index`` ``(S, B)``, as they are stored: ``(S, B, *input)``."""
        if self.shared:
            flat = index.reshape(-1)
            x = self.x.index_select(0, flat).unflatten(0, index.shape)
            return x, self.y.index_select(0, flat).view(index.shape)
        rows = torch.arange(self.seeds, device=index.device).unsqueeze(1)
        return self.x[rows, index], self.y[rows, index]

    def chunks(self, size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples in order, prepared, at most ``size`` at once: ``(S, b, *input)``."""
        step = size or max(len(self), 1)
        for first in range(0, len(self), step):
            if self.shared:
                x = self.prepare(self.x[first : first + step])
                y = self.y[first : first + step]
                yield x.expand(self.seeds, *x.shape), y.expand(self.seeds, -1)
            else:
                part = slice(first, first + step)
                yield self.prepare(self.x[:, part]), self.y[:, part]

    def to(self, device: str) -> "Samples":
        """The same samples on a device."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))


@dataclass(frozen=True)
class Problem:
    """Training, validation and test samples of a dataset, for S seeds.

    Tables are split by each seed, so that seed s trains on ``train.x[s]``; images have their own
    test part. The validation part comes off the training part, and is empty unless the recipe asks
    for one. ``shape`` is that of an input.
    """

    train: Samples
    validation: Samples
    test: Samples
    shape: tuple[int, ...]
    classes: int

    def to(self, device: str) -> "Problem":
        """The same problem on a device."""
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
        )


def load_problem(
    name: str, recipe: Recipe, seeds: Sequence[int], root: Path | None = None
) -> Problem:
    """The dataset as the recipe has it, for these seeds.

    ``root`` is the folder that holds images, by default the environment's ``QBENCH_DATA``.

    Raises ``UserError`` for a name without data, and for images that are not there, or damaged.

    >>> problem = load_problem("iris", Recipe(epochs=1, test_fraction=0.2), seeds=[0, 1])
    >>> problem.train.x.shape, problem.test.x.shape, problem.classes
    (torch.Size([2, 120, 4]), torch.Size([2, 30, 4]), 3)
    """
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS)
    info = DATASETS[name]
    if not info.train:
        raise UserError(f"dataset {name!r} has no samples: it stands for networks without data")
    if info.test:
        stored = images.load_images(name, root)
        train, validation, test = images.parts(stored, recipe)
        prepare = images.preparation(recipe.pixels, train[0])
        made = [Samples(x, y, len(seeds), prepare) for x, y in (train, validation, test)]
    else:
        split = tabular.load_parts(name, recipe, seeds)
        made = [Samples(x, y, len(seeds)) for x, y in split]
    train_samples, validation_samples, test_samples = made
    return Problem(
        train_samples, validation_samples, test_samples, shape=info.shape, classes=info.classes
    )
