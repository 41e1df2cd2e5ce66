"""Random crop, flip and cutout of whole batches of bytes, from (seed, epoch) alone."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

PADDING = 4
CUTOUT = 16
_STREAM = 0x9E3779B97F4A7C15  # keeps the streams of seeds and epochs apart


def generator(seed: int, epoch: int, purpose: int) -> torch.Generator:
    """Random numbers that depend on these three alone; the same on every device."""
    mixed = (seed * 1_000_003 + epoch * 7 + purpose) * _STREAM
    return torch.Generator().manual_seed(mixed % 2**63)


class Augmentation:
    """The augmentation of one epoch: what happens to each sample is drawn before it starts.

    ``crop``: zeros of 4 pixels around the image, of which a random window of its size is taken;
    ``flip``: left and right exchanged for half of the images; ``cutout``: a square of 16 pixels at
    a random centre is set to zero (DeVries and Taylor, arXiv 1708.04552). In bytes, as torchvision
    does it: zero is black.

    Shapes: images ``(S, B, C, H, W)`` of the samples ``index`` ``(S, B)``.
    """

    def __init__(
        self, kinds: Sequence[str], seeds: Sequence[int], epoch: int, samples: int, device: str
    ) -> None:
        self.kinds = kinds
        self._draws: dict[str, Tensor] = {}
        for purpose, (kind, count) in enumerate((("crop", 2), ("flip", 1), ("cutout", 2)), 1):
            if kind in kinds:
                draws = [
                    torch.rand(samples, count, generator=generator(seed, epoch, purpose))
                    for seed in seeds
                ]
                self._draws[kind] = torch.stack(draws).to(device)  # (S, N, count) in [0, 1)

    def __call__(self, images: Tensor, index: Tensor) -> Tensor:
        """The augmented images."""
        if not self.kinds:
            return images
        rows = torch.arange(len(index), device=index.device).unsqueeze(1)
        drawn = {kind: values[rows, index].flatten(0, 1) for kind, values in self._draws.items()}
        x = images.flatten(0, 1)
        if "crop" in drawn:
            x = _crop(x, (drawn["crop"] * (2 * PADDING + 1)).long())
        if "flip" in drawn:
            x = torch.where(drawn["flip"].view(-1, 1, 1, 1) < 0.5, x.flip(-1), x)
        if "cutout" in drawn:
            x = _cut_out(x, drawn["cutout"])
        return x.unflatten(0, index.shape)


def _crop(x: Tensor, offset: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    padded = F.pad(x, (PADDING,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 9, 9, H, W), a view
    batch = torch.arange(len(x), device=x.device)
    return windows[batch, :, offset[:, 0], offset[:, 1]]


def _cut_out(x: Tensor, centre: Tensor) -> Tensor:
    inside = torch.ones(len(x), 1, 1, 1, dtype=torch.bool, device=x.device)
    for axis, size in ((0, x.shape[-2]), (1, x.shape[-1])):
        middle = (centre[:, axis] * size).long().view(-1, 1)
        distance = torch.arange(size, device=x.device) - middle  # (B, size)
        near = (distance >= -CUTOUT // 2) & (distance < CUTOUT // 2)
        inside = inside & near.view((-1, 1, size, 1) if axis == 0 else (-1, 1, 1, size))
    return x.masked_fill(inside, 0)
