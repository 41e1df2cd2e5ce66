"""Small tables: split by seed, scaled by what the training part shows."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from sklearn import datasets, model_selection, preprocessing
from torch import Tensor

from qbench.recipe import Recipe

Array = np.ndarray[Any, Any]
Arrays = tuple[Array, Array]


def load_parts(name: str, recipe: Recipe, seeds: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Training, validation and test part: inputs ``(S, N, features)`` float32, classes ``(S, N)``.

    The split is stratified and random by the seed alone; the scaling is fitted on the training part
    only and applied to all. Parts that the recipe does not ask for are empty.
    """
    x, y = arrays(name)
    splits = [_split(x, y, recipe, seed) for seed in seeds]
    parts = []
    for part in zip(*splits, strict=True):
        inputs = np.stack([x for x, _ in part]).astype(np.float32)
        classes = np.stack([y for _, y in part]).astype(np.int64)
        parts.append((torch.from_numpy(inputs), torch.from_numpy(classes)))
    return parts


def _split(x: Array, y: Array, recipe: Recipe, seed: int) -> list[Arrays]:
    train, test = (x, y), (x[:0], y[:0])
    if recipe.test_fraction:
        train, test = _divide(train, recipe.test_fraction, seed)
    validation = (x[:0], y[:0])
    if recipe.validation:
        train, validation = _divide(train, recipe.validation, seed)
    made = [train, validation, test]
    if (make_scaler := SCALINGS[recipe.scaling]) is not None:
        scaler = make_scaler().fit(train[0])
        made = [(scaler.transform(part) if len(part) else part, of) for part, of in made]
    return made


def _divide(part: Arrays, share: float, seed: int) -> tuple[Arrays, Arrays]:
    x, y = part
    first, second, of_first, of_second = model_selection.train_test_split(
        x, y, test_size=share, stratify=y, random_state=seed
    )
    return (first, of_first), (second, of_second)


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
def arrays(name: str) -> Arrays:
    """Inputs and classes of a whole table."""
    return _SOURCES[name]()
