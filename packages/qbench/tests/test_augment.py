"""Augmentation: what each kind does, by loops, and that (seed, epoch) alone decide it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qbench.data.augment import Augmentation, generator

ALL = ("crop", "flip", "cutout")
seeds = st.lists(st.integers(0, 10_000), min_size=1, max_size=3, unique=True)
kinds = st.lists(st.sampled_from(ALL), min_size=1, max_size=3, unique=True)


def images(*shape: int, seed: int = 0) -> Tensor:
    """Bytes from 1 on, so that every 0 was put there."""
    chosen = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=chosen)


def whole(augment: Augmentation, x: Tensor) -> Tensor:
    """Every sample ``(N, C, H, W)`` once, in order, as each seed sees it: ``(S, N, C, H, W)``."""
    count = len(next(iter(augment._draws.values())))
    index = torch.arange(len(x)).expand(count, -1)
    return augment(x.expand(count, *x.shape), index)


def offsets(augment: Augmentation, samples: int) -> Tensor:
    """Rows and columns of each window, as seen in images that number their pixels: ``(N, 2)``."""
    numbered = torch.arange(1, 145, dtype=torch.uint8).view(1, 1, 12, 12).expand(samples, 1, 12, 12)
    centre = whole(augment, numbered)[0, :, 0, 6, 6].long() - 1
    return torch.stack([centre // 12, centre % 12], 1) - 6 + 4


def test_a_crop_is_a_window_of_the_image_with_four_zeros_around_it() -> None:
    x = images(40, 3, 12, 12)
    augment = Augmentation(("crop",), [3], 2, 40, "cpu")
    found = whole(augment, x)[0]
    drawn = torch.rand(40, 2, generator=generator(3, 2, 1))
    assert torch.equal(offsets(augment, 40), (drawn * 9).long())  # row, then column
    for n, (top, left) in enumerate(offsets(augment, 40).tolist()):
        for channel in range(3):
            for i in range(12):
                for j in range(12):
                    row, column = i + top - 4, j + left - 4
                    inside = 0 <= row < 12 and 0 <= column < 12
                    expected = x[n, channel, row, column] if inside else 0
                    assert found[n, channel, i, j] == expected


def test_every_window_is_as_likely_as_any_other() -> None:
    samples = 81 * 200
    found = offsets(Augmentation(("crop",), [0], 0, samples, "cpu"), samples)
    counts = torch.bincount(found[:, 0] * 9 + found[:, 1])
    assert len(counts) == 81
    assert (counts - 200).abs().max() < 5 * 200**0.5


def test_a_flip_exchanges_left_and_right_of_about_half_and_undoes_itself() -> None:
    x = images(2000, 1, 5, 6)
    augment = Augmentation(("flip",), [1], 0, 2000, "cpu")
    found = whole(augment, x)[0]
    flipped = (found != x).flatten(1).any(1)
    drawn = torch.rand(2000, 1, generator=generator(1, 0, 2))
    assert torch.equal(flipped, drawn[:, 0] < 0.5)
    assert 1000 - 5 * 22.4 < flipped.sum() < 1000 + 5 * 22.4
    for n in range(100):
        for j in range(6):
            expected = x[n, :, :, 5 - j] if flipped[n] else x[n, :, :, j]
            assert torch.equal(found[n, :, :, j], expected)
    assert torch.equal(whole(augment, found)[0], x)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (20, 33)])
def test_a_cutout_zeroes_a_square_whose_centre_lies_anywhere_in_the_image(
    height: int, width: int
) -> None:
    x = images(1000, 2, height, width)
    found = whole(Augmentation(("cutout",), [5], 1, 1000, "cpu"), x)[0]
    drawn = torch.rand(1000, 2, generator=generator(5, 1, 3)).tolist()
    rows, columns = set(), set()
    for n in range(1000):
        black = (found[n, 0] == 0).nonzero()
        row, column = (_centre(black[:, i], found.shape[i - 2]) for i in (0, 1))
        assert [row, column] == [int(drawn[n][0] * height), int(drawn[n][1] * width)]
        rows.add(row)
        columns.add(column)
        expected = x[n].clone()
        for i in range(max(row - 8, 0), min(row + 8, height)):
            for j in range(max(column - 8, 0), min(column + 8, width)):
                expected[:, i, j] = 0
        assert torch.equal(found[n], expected)
    assert rows == set(range(height))
    assert columns == set(range(width))


def _centre(black: Tensor, size: int) -> int:
    """Of 16 pixels in a line, of which the border may have cut some off."""
    first, last = int(black.min()), int(black.max())
    return first + 8 if last == size - 1 else last - 7


@given(kinds=kinds, seeds=seeds, epoch=st.integers(0, 500), data=st.data())
@settings(deadline=None, max_examples=40)
def test_a_sample_is_augmented_alike_wherever_it_appears_in_an_epoch(
    kinds: list[str], seeds: list[int], epoch: int, data: st.DataObject
) -> None:
    x = images(17, 2, 9, 9)
    augment = Augmentation(kinds, seeds, epoch, 17, "cpu")
    expected = whole(augment, x)
    batch = data.draw(st.lists(st.integers(0, 16), min_size=1, max_size=20))
    index = torch.stack([torch.tensor(batch).roll(s) for s in range(len(seeds))])
    found = augment(x[index], index)
    for s in range(len(seeds)):
        assert torch.equal(found[s], expected[s, index[s]])
    assert found.dtype == torch.uint8
    assert found.shape == (len(seeds), len(batch), 2, 9, 9)
    assert torch.equal(x, images(17, 2, 9, 9))  # and the stored image stays as it is


@given(kinds=kinds, seeds=seeds, epoch=st.integers(0, 500))
@settings(deadline=None, max_examples=40)
def test_a_seed_sees_what_it_sees_alone_whatever_was_drawn_before(
    kinds: list[str], seeds: list[int], epoch: int
) -> None:
    x = images(30, 1, 12, 12)
    together = whole(Augmentation(kinds, seeds, epoch, 30, "cpu"), x)
    for s, seed in enumerate(seeds):
        torch.manual_seed(s)
        before = torch.get_rng_state()
        alone = whole(Augmentation(kinds, [seed], epoch, 30, "cpu"), x)
        assert torch.equal(alone[0], together[s])
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ALL)
def test_seeds_and_epochs_differ(kind: str) -> None:
    x = images(60, 1, 24, 24)
    seen = [
        whole(Augmentation((kind,), [seed], epoch, 60, "cpu"), x)
        for seed in range(4)
        for epoch in range(4)
    ]
    for n, first in enumerate(seen):
        for second in seen[:n]:
            assert not torch.equal(first, second)


def test_together_they_are_crop_then_flip_then_cutout_each_as_it_is_alone() -> None:
    x = images(50, 3, 24, 24)
    apart = x
    for kind in ALL:
        apart = whole(Augmentation((kind,), [7], 3, 50, "cpu"), apart)[0]
    for order in (ALL, ALL[::-1]):
        assert torch.equal(whole(Augmentation(order, [7], 3, 50, "cpu"), x)[0], apart)


def test_without_kinds_nothing_changes() -> None:
    x = images(2, 6, 3, 8, 8)
    found = Augmentation((), [0, 1], 0, 6, "cpu")(x, torch.arange(6).expand(2, -1))
    assert torch.equal(found, images(2, 6, 3, 8, 8))


def test_streams_do_not_meet_and_are_those_of_every_other_day() -> None:
    states = {
        tuple(torch.rand(2, generator=generator(seed, epoch, purpose)).tolist())
        for seed in range(12)
        for epoch in range(60)
        for purpose in range(4)
    }
    assert len(states) == 12 * 60 * 4
    expected = torch.tensor([0.0781596302986145, 0.9258217811584473, 0.13386350870132446])
    assert torch.equal(torch.rand(3, generator=generator(3, 5, 1)), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_on_cuda_it_is_the_same_byte_for_byte() -> None:
    x, index = images(2, 40, 3, 32, 32), torch.stack([torch.randperm(40) for _ in range(2)])
    on_cpu = Augmentation(ALL, [1, 2], 4, 40, "cpu")(x, index)
    on_cuda = Augmentation(ALL, [1, 2], 4, 40, "cuda")(x.cuda(), index.cuda())
    assert on_cuda.device.type == "cuda"
    assert torch.equal(on_cuda.cpu(), on_cpu)
