"""Images: a validation part off the training part, pixels as inputs, parts for several seeds."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qbench.catalogue import DATASETS
from qbench.data import Samples, load_problem
from qbench.data.images import load_images, normalisation, parts, preparation
from qbench.errors import UserError
from qbench.recipe import Recipe

TRAIN, TEST = 300, 80


def numbered(count: int) -> tuple[Tensor, Tensor]:
    """Images that say which they are, in two pixels, with classes that say it too."""
    number = torch.arange(count)
    x = torch.stack([number // 256, number % 256], 1).to(torch.uint8).view(-1, 1, 1, 2)
    return x, number


STORED = (numbered(TRAIN), numbered(TEST))


def numbers(part: tuple[Tensor, Tensor]) -> list[int]:
    x, y = part
    which = x.long() @ torch.tensor([256, 1])
    assert torch.equal(which.flatten(), y)
    return y.tolist()


def recipe(**values: object) -> Recipe:
    return Recipe.model_validate({"epochs": 1, **values})


@given(validation=st.integers(0, TRAIN - 1))
def test_validation_and_the_rest_are_the_training_images_each_once(validation: int) -> None:
    train, chosen, test = map(numbers, parts(STORED, recipe(validation=validation)))
    assert len(chosen) == validation
    assert sorted(train + chosen) == list(range(TRAIN))
    assert train == sorted(train)  # in the order they were published in
    assert test == list(range(TEST))
    # a larger validation part has all of a smaller one
    _, more, _ = map(numbers, parts(STORED, recipe(validation=min(validation + 5, TRAIN - 1))))
    assert more[:validation] == chosen


@given(few=st.integers(1, TRAIN - 1), more=st.integers(1, TRAIN - 1))
def test_reduced_parts_are_the_beginning_of_one_random_order(few: int, more: int) -> None:
    few, more = sorted((few, more))
    one, _, whole_test = map(numbers, parts(STORED, recipe(train_samples=few)))
    two, _, _ = map(numbers, parts(STORED, recipe(train_samples=more)))
    assert two[:few] == one
    assert len(set(two)) == len(two) == more
    assert whole_test == list(range(TEST))
    train, _, first = map(numbers, parts(STORED, recipe(test_samples=min(few, TEST - 1))))
    _, _, second = map(numbers, parts(STORED, recipe(test_samples=min(more, TEST - 1))))
    assert train == list(range(TRAIN))
    assert second[: len(first)] == first


def test_a_reduced_part_is_mixed_and_no_less_than_all_is_all() -> None:
    some, _, _ = map(numbers, parts(STORED, recipe(train_samples=100)))
    assert max(some) > 200
    for count in (TRAIN, 10 * TRAIN):
        everything, _, _ = map(numbers, parts(STORED, recipe(train_samples=count)))
        assert everything == list(range(TRAIN))


def test_a_reduced_run_validates_on_none_of_its_training_images() -> None:
    train, chosen, _ = map(numbers, parts(STORED, recipe(validation=40, train_samples=200)))
    assert (len(train), len(chosen)) == (200, 40)
    assert not set(train) & set(chosen)


@pytest.mark.parametrize("count", [TRAIN, TRAIN + 1])
def test_a_validation_part_that_leaves_nothing_is_one_sentence(count: int) -> None:
    with pytest.raises(UserError, match=rf"^validation: {count} of 300 images leaves none to"):
        parts(STORED, recipe(validation=count))


def test_the_validation_images_are_those_of_every_other_day() -> None:
    number = torch.arange(50_000)
    stored = (number.view(-1, 1, 1, 1), number), (number[:9].view(-1, 1, 1, 1), number[:9])
    train, chosen, _ = parts(stored, recipe(validation=5000, train_samples=64))
    assert chosen[1][:5].tolist() == [36044, 49165, 37807, 11341, 6091]
    assert train[1][:5].tolist() == [6536, 7063, 25124, 33826, 45902]


def test_all_seeds_share_images_and_the_test_part_is_left_alone() -> None:
    _, (test_x, test_y) = load_images("digits32")
    problem = load_problem("digits32", recipe(validation=200, train_samples=500), [0, 4, 9])
    other = load_problem("digits32", recipe(validation=200, train_samples=500), [5])
    for part in ("train", "validation", "test"):
        samples = getattr(problem, part)
        assert samples.shared
        assert samples.seeds == 3
        assert samples.x.dtype == torch.uint8
        assert torch.equal(samples.x, getattr(other, part).x)
    assert (len(problem.train), len(problem.validation), len(problem.test)) == (500, 200, 360)
    assert torch.equal(problem.test.x, test_x)
    assert torch.equal(problem.test.y, test_y)


def test_digits_as_images_are_the_table_with_every_pixel_four_by_four() -> None:
    problem = load_problem("digits", recipe(), [0])
    (x, y), (test_x, test_y) = load_images("digits32")
    info = DATASETS["digits32"]
    assert (tuple(x.shape[1:]), len(x), len(test_x)) == (info.shape, info.train, info.test)
    both, classes = torch.cat([x, test_x]), torch.cat([y, test_y])
    for i in range(1, 4):
        assert torch.equal(both[..., i::4, ::4], both[..., ::4, ::4])
        assert torch.equal(both[..., ::4, i::4], both[..., ::4, ::4])
    # 17 levels from black to white
    assert both.unique().tolist() == [round(level * 255 / 16) for level in range(17)]
    levels = (both[:, 0, ::4, ::4].flatten(1).double() * 16 / 255).round()
    found = sorted([*row, k] for row, k in zip(levels.tolist(), classes.tolist(), strict=True))
    table = zip(problem.train.x[0].tolist(), problem.train.y[0].tolist(), strict=True)
    assert found == sorted([*row, k] for row, k in table)
    counts = torch.stack([torch.bincount(test_y), torch.bincount(classes)])
    assert (counts[0] - counts[1] / 5).abs().max() < 1
    assert test_y[:5].tolist() == [7, 6, 3, 7, 7]


BYTES = [0, 51, 255]


@pytest.mark.parametrize(
    ("pixels", "channels", "expected"),
    [
        ("raw", 1, [[0.0, 51.0, 255.0]]),
        ("unit", 1, [[0.0, 0.2, 1.0]]),
        ("centred", 2, [[-1.0, -0.6, 1.0]] * 2),
        (
            "imagenet",
            3,
            [
                [-0.485 / 0.229, (0.2 - 0.485) / 0.229, (1 - 0.485) / 0.229],
                [-0.456 / 0.224, (0.2 - 0.456) / 0.224, (1 - 0.456) / 0.224],
                [-0.406 / 0.225, (0.2 - 0.406) / 0.225, (1 - 0.406) / 0.225],
            ],
        ),
        ("imagenet", 1, [[-0.449 / 0.226, (0.2 - 0.449) / 0.226, (1 - 0.449) / 0.226]]),
        # bytes 0, 51 and 255 are 0, 0.2 and 1, of mean 0.4 and variance 0.56 / 3
        ("standardised", 1, [[-0.4 / 0.4320494, -0.2 / 0.4320494, 0.6 / 0.4320494]]),
    ],
)
def test_pixels_by_hand(pixels: str, channels: int, expected: list[list[float]]) -> None:
    x = torch.tensor(BYTES, dtype=torch.uint8).expand(1, channels, 1, 3)
    prepare = preparation(pixels, x)
    found = prepare(x)
    assert found.dtype == torch.float32
    assert torch.allclose(found[0, :, 0], torch.tensor(expected), rtol=1e-6, atol=1e-7)
    assert torch.equal(prepare(x.expand(2, 4, channels, 1, 3))[1, 3], found[0])
    assert x.flatten().tolist() == BYTES * channels
    if pixels == "raw":
        assert found.flatten().tolist() == BYTES


def test_preparing_leaves_what_it_is_given_alone() -> None:
    for pixels in ("unit", "centred"):
        x = torch.full((1, 1, 2, 2), 3.0)
        preparation(pixels, torch.zeros(1, 1, 2, 2, dtype=torch.uint8))(x)
        assert torch.equal(x, torch.full((1, 1, 2, 2), 3.0))


@given(seed=st.integers(0, 1000), channels=st.sampled_from([1, 3]), count=st.integers(2, 9000))
@settings(deadline=None, max_examples=30)
def test_mean_and_deviation_are_exact(seed: int, channels: int, count: int) -> None:
    chosen = torch.Generator().manual_seed(seed)
    high = int(torch.randint(2, 257, (), generator=chosen))
    x = torch.randint(0, high, (count, channels, 2, 3), dtype=torch.uint8, generator=chosen)
    mean, std = normalisation("standardised", x)
    exact = x.double() / 255
    assert torch.allclose(mean.double(), exact.mean((0, 2, 3)), rtol=1.2e-7, atol=0)
    assert torch.allclose(std.double(), exact.std((0, 2, 3), correction=0), rtol=1.2e-7, atol=0)


def test_pixels_are_standardised_by_the_training_part_of_the_run_alone() -> None:
    problem = load_problem(
        "digits32", recipe(pixels="standardised", validation=300, train_samples=500), [0]
    )
    x = problem.train.prepare(problem.train.x).double()
    assert abs(x.mean()) < 1e-6
    assert x.std(correction=0) == pytest.approx(1, abs=1e-6)
    assert abs(problem.test.prepare(problem.test.x).double().mean()) > 1e-4


@pytest.mark.parametrize("shared", [True, False])
def test_samples_are_taken_seed_by_seed(shared: bool) -> None:
    x = torch.randint(0, 256, (11, 3, 2, 2) if shared else (2, 11, 3, 2, 2), dtype=torch.uint8)
    y = torch.randint(0, 5, (11,) if shared else (2, 11))
    samples = Samples(x, y, seeds=2)
    assert samples.shared is shared
    assert len(samples) == 11
    index = torch.tensor([[3, 3, 0, 10], [7, 1, 10, 2]])
    taken, classes = samples.take(index)
    assert taken.shape == (2, 4, 3, 2, 2)
    assert taken.dtype == torch.uint8
    for s in range(2):
        for b in range(4):
            n = index[s, b]
            assert torch.equal(taken[s, b], x[n] if shared else x[s, n])
            assert classes[s, b] == (y[n] if shared else y[s, n])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("size", [None, 1, 4, 11, 50])
def test_chunks_are_all_samples_in_order_prepared(shared: bool, size: int | None) -> None:
    x = torch.arange(11.0).view(11, 1) if shared else torch.arange(33.0).view(3, 11, 1)
    y = x[..., 0].long()
    chunks = list(Samples(x, y, 3, lambda part: part + 0.5).chunks(size))
    assert all(part.shape[:2] == classes.shape for part, classes in chunks)
    assert max(part.shape[1] for part, _ in chunks) == min(size or 11, 11)
    inputs, classes = (torch.cat(parts, 1) for parts in zip(*chunks, strict=True))
    assert torch.equal(inputs, (x + 0.5).expand(3, 11, 1))
    assert torch.equal(classes, y.expand(3, 11))


def test_a_name_without_data_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^unknown dataset 'whine': did you mean 'wine'\? Allowed"):
        load_problem("whine", recipe(), [0])
    with pytest.raises(UserError, match=r"^dataset 'line' has no samples"):
        load_problem("line", recipe(), [0])


@pytest.mark.parametrize(
    ("name", "mean", "std", "train_labels", "test_labels"),
    [
        ("mnist", [0.1307], [0.3081], [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], [7, 2, 1, 0, 4, 1, 4, 9]),
        ("fmnist", [0.2860], [0.3530], [9, 0, 0, 3, 0, 2, 7, 2, 5, 5], [9, 2, 1, 1, 6, 1, 4, 6]),
        (
            "cifar10",
            [0.4914, 0.4822, 0.4465],
            [0.2470, 0.2435, 0.2616],
            [6, 9, 9, 4, 1, 1, 2, 7, 8, 3],
            [3, 8, 8, 0, 6, 6, 1, 6],
        ),
    ],
)
def test_the_real_images(
    name: str,
    mean: list[float],
    std: list[float],
    train_labels: list[int],
    test_labels: list[int],
    real_images: Path,
) -> None:
    (x, y), (test_x, test_y) = load_images(name, real_images)
    info = DATASETS[name]
    assert (tuple(x.shape), tuple(test_x.shape)) == (
        (info.train, *info.shape),
        (info.test, *info.shape),
    )
    assert x.dtype == test_x.dtype == torch.uint8
    assert y[:10].tolist() == train_labels
    assert test_y[:8].tolist() == test_labels
    counts = torch.bincount(y), torch.bincount(test_y)
    if name == "mnist":
        train_counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        assert counts[0].tolist() == train_counts
        assert counts[1].tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    else:
        assert counts[0].tolist() == [info.train // 10] * 10
        assert counts[1].tolist() == [info.test // 10] * 10
    found_mean, found_std = normalisation("standardised", x)
    assert found_mean.tolist() == pytest.approx(mean, abs=5e-5)
    assert found_std.tolist() == pytest.approx(std, abs=5e-5)
    for i in range(info.shape[0]):
        exact = x[:, i].double() / 255
        assert found_mean[i].item() == pytest.approx(exact.mean().item(), rel=1e-7)
        assert found_std[i].item() == pytest.approx(exact.std(correction=0).item(), rel=1e-7)


def test_real_colours_are_red_green_and_blue_and_rows_are_rows(real_images: Path) -> None:
    (x, _), _ = load_images("cifar10", real_images)
    assert x[0, :, 0, 0].tolist() == [59, 62, 63]  # the frog's upper left corner
    assert x[0, :, 0, 1].tolist() == [43, 46, 45]


def test_a_real_validation_part_of_5000(real_images: Path) -> None:
    (x, y), (test_x, _) = load_images("cifar10", real_images)
    problem = load_problem("cifar10", recipe(validation=5000), [0, 1], real_images)
    assert (len(problem.train), len(problem.validation), len(problem.test)) == (
        45_000,
        5000,
        10_000,
    )
    assert torch.equal(problem.test.x, test_x)
    assert torch.equal(
        torch.bincount(problem.train.y) + torch.bincount(problem.validation.y), torch.bincount(y)
    )
    total = problem.train.x.sum(0, dtype=torch.int64) + problem.validation.x.sum(
        0, dtype=torch.int64
    )
    assert torch.equal(total, x.sum(0, dtype=torch.int64))
