"""Datasets as tensors: split by seed, scaled by what the training part shows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from sklearn import datasets, model_selection, preprocessing
from torch import Tensor

from qbench.table import Recipe

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Problem:
    """One classification problem per seed, stacked: seed s trains on ``x_train[s]``.

    Shapes: ``x_*`` ``(S, B, features)`` float32, ``y_*`` ``(S, B)`` int64; B may be 0 for the test
    part.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int

    @property
    def features(self) -> int:
        """Length of an input."""
        return self.x_train.shape[-1]

    def to(self, device: str) -> "Problem":
        """The same problem on a device."""
        return Problem(
            self.x_train.to(device),
            self.y_train.to(device),
            self.x_test.to(device),
            self.y_test.to(device),
            self.classes,
        )


def load_problem(name: str, recipe: Recipe, seeds: Sequence[int]) -> Problem:
    """The dataset, split and scaled once per seed.

    The split is stratified and random by the seed alone; the scaling is fitted on the training part
    only and applied to both.

    >>> problem = load_problem("iris", Recipe(epochs=1, test_fraction=0.2), seeds=[0, 1])
    >>> problem.x_train.shape, problem.x_test.shape, problem.classes
    (torch.Size([2, 120, 4]), torch.Size([2, 30, 4]), 3)
    """
    x, y = _arrays(name)
    parts = [_split(x, y, recipe, seed) for seed in seeds]
    x_train, x_test, y_train, y_test = (np.stack(column) for column in zip(*parts, strict=True))
    return Problem(
        torch.from_numpy(x_train.astype(np.float32)),
        torch.from_numpy(y_train.astype(np.int64)),
        torch.from_numpy(x_test.astype(np.float32)),
        torch.from_numpy(y_test.astype(np.int64)),
        classes=int(y.max()) + 1,
    )


def sizes(name: str) -> tuple[int, int, int]:
    """Number of samples, features and classes of a dataset.

    >>> sizes("wine")
    (178, 13, 3)
    """
    x, y = _arrays(name)
    return len(x), x.shape[1], int(y.max()) + 1


def _split(
    x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], recipe: Recipe, seed: int
) -> tuple[np.ndarray[Any, Any], ...]:
    if recipe.test_fraction == 0:
        x_train, x_test, y_train, y_test = x, x[:0], y, y[:0]
    else:
        x_train, x_test, y_train, y_test = model_selection.train_test_split(
            x, y, test_size=recipe.test_fraction, stratify=y, random_state=seed
        )
    make_scaler = SCALINGS[recipe.scaling]
    if make_scaler is not None:
        scaler = make_scaler().fit(x_train)
        x_train = scaler.transform(x_train)
        x_test = scaler.transform(x_test) if len(x_test) else x_test
    return x_train, x_test, y_train, y_test


SCALINGS: Mapping[str, Callable[[], Any] | None] = MappingProxyType(
    {
        "raw": None,
        "maxabs": preprocessing.MaxAbsScaler,
        "minmax": preprocessing.MinMaxScaler,
        "standard": preprocessing.StandardScaler,
    }
)
"""Feature scalings by name: nothing, each feature by its largest |value|, to [0, 1], to mean 0 and
std 1."""


def _xor() -> Arrays:
    """The four points (±1, ±1); the class is whether the signs differ."""
    x = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    return x, (x[:, 0] != x[:, 1]).astype(np.int64)


_SOURCES: Mapping[str, Callable[[], Arrays]] = MappingProxyType(
    {
        "iris": lambda: datasets.load_iris(return_X_y=True),
        "wine": lambda: datasets.load_wine(return_X_y=True),
        "wisconsin": lambda: datasets.load_breast_cancer(return_X_y=True),
        "digits": lambda: datasets.load_digits(return_X_y=True),
        "xor": _xor,
    }
)


@lru_cache
def _arrays(name: str) -> Arrays:
    return _SOURCES[name]()
