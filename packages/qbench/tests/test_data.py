"""Datasets: the paper's sizes, splits by seed alone, scalings that see the training part alone."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_wine

from qbench.catalogue import DATASETS
from qbench.data import load_problem
from qbench.recipe import Recipe

RECIPE = Recipe(epochs=1, test_fraction=0.2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("iris", (150, 4, 3)),
        ("wine", (178, 13, 3)),
        ("wisconsin", (569, 30, 2)),
        ("digits", (1797, 64, 10)),
        ("xor", (4, 2, 2)),
    ],
)
def test_sizes_are_the_papers(name: str, expected: tuple[int, int, int]) -> None:
    problem = load_problem(name, Recipe(epochs=1), [0])
    info = DATASETS[name]
    found = (len(problem.train), *problem.shape, problem.classes)
    assert found == expected == (info.train, info.features, info.classes)
    assert set(problem.train.y.unique().tolist()) == set(range(info.classes))


@pytest.mark.parametrize("name", ["iris", "wine", "wisconsin", "digits"])
def test_a_split_is_stratified_disjoint_and_decided_by_its_seed(name: str) -> None:
    problem = load_problem(name, RECIPE, [0, 1, 7])
    samples, classes = DATASETS[name].train, DATASETS[name].classes
    train, test = problem.train.x.shape[1], problem.test.x.shape[1]
    assert train + test == samples
    assert test == -(-samples // 5)
    for k in range(classes):
        share = (problem.test.y == k).sum(1) / test
        whole = (problem.train.y == k).sum(1).add((problem.test.y == k).sum(1)) / samples
        assert torch.all((share - whole).abs() <= 1 / test + 1e-6)
    alone = load_problem(name, RECIPE, [7])
    assert torch.equal(alone.train.x[0], problem.train.x[2])
    assert torch.equal(alone.test.y[0], problem.test.y[2])
    assert not torch.equal(problem.train.x[0], problem.train.x[1])


def test_train_and_test_together_are_the_dataset() -> None:
    x, _ = load_wine(return_X_y=True)
    problem = load_problem("wine", RECIPE, [3])
    both = torch.cat([problem.train.x[0], problem.test.x[0]]).numpy()
    order, original = np.lexsort(both.T), np.lexsort(x.astype(np.float32).T)
    assert np.array_equal(both[order], x.astype(np.float32)[original])


@pytest.mark.parametrize(
    ("scaling", "statistic"),
    [
        ("maxabs", lambda x: x.abs().amax(0)),
        ("minmax", lambda x: x.amax(0) - x.amin(0)),
        ("standard", lambda x: x.std(0, correction=0)),
    ],
)
def test_a_scaling_is_fitted_on_the_training_part_alone(scaling: str, statistic: object) -> None:
    recipe = RECIPE.model_copy(update={"scaling": scaling})
    problem, raw = load_problem("wine", recipe, [0]), load_problem("wine", RECIPE, [0])
    measured = statistic(problem.train.x[0])  # type: ignore[operator]
    assert torch.allclose(measured, torch.ones(13), atol=1e-5)
    # the same map on the test part: scaling is affine, feature by feature
    slope = 1 / statistic(raw.train.x[0])  # type: ignore[operator]
    step = problem.test.x[0, 0] - problem.test.x[0, 1]
    expected = (raw.test.x[0, 0] - raw.test.x[0, 1]) * slope
    assert torch.allclose(step, expected, rtol=1e-3, atol=1e-4)


def test_xor_has_no_test_part_and_its_class_is_whether_the_signs_differ() -> None:
    problem = load_problem("xor", Recipe(epochs=1), [0])
    assert problem.test.x.shape[1] == 0
    assert torch.equal(problem.train.y[0], (problem.train.x[0].prod(-1) < 0).long())


def test_a_tables_validation_part_comes_off_its_training_part_alone() -> None:
    plain = load_problem("wine", RECIPE, [0, 3])
    problem = load_problem("wine", RECIPE.model_copy(update={"validation": 30}), [0, 3])
    assert torch.equal(problem.test.x, plain.test.x)
    assert (len(problem.train), len(problem.validation), len(problem.test)) == (112, 30, 36)
    for s in range(2):
        both = torch.cat([problem.train.x[s], problem.validation.x[s]]).tolist()
        assert sorted(both) == sorted(plain.train.x[s].tolist())
    assert not torch.equal(problem.validation.x[0], problem.validation.x[1])
