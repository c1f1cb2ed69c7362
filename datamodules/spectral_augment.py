"""Augmentation of spectral pictures (official code of arXiv 2405.18853): crop, half mask, mirror, cutout, from a keyed generator."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from datamodules.transforms import random_part


def resized(x: Tensor, size: int) -> Tensor:
    """(C, H, W) -> (C, size, size), bilinear; channel by channel, which is four times faster than torch's."""
    if x.shape[-2:] == (size, size):
        return x
    return torch.from_numpy(np.stack([cv2.resize(channel, (size, size), interpolation=cv2.INTER_LINEAR) for channel in x.numpy()]))


@dataclass(frozen=True)
class SpectralAugment:
    """What happens to a training picture, in this order, before normalisation.

    Args:
        scale: Share of the area that the random crop keeps, from and to.
        ratio: Of its sides, likewise.
        half_mask: Blacken, in two of three pictures, the lower half or (half as often each) the left or the right half.
        flip: Probability of a mirror image.
        holes: Rectangles that are cut out of every picture.
        hole_size: Largest side of one, as a share of the picture's. Official code: 50 of 256 pixels.
        drop_channels: Probability of each channel to be black; not of the official code, another team of the challenge did so.
    """

    scale: tuple[float, float] = (0.8, 1.0)
    ratio: tuple[float, float] = (0.8, 1.2)
    half_mask: bool = True
    flip: float = 0.5
    holes: int = 2
    hole_size: float = 50 / 256
    drop_channels: float = 0.0

    def __call__(self, x: Tensor, size: int, rng: np.random.Generator) -> Tensor:
        """(C, H, W) -> (C, size, size)."""
        x = resized(self._crop(x, rng), size).clone()
        if self.half_mask:
            drawn = rng.random()
            if 1 / 3 <= drawn < 2 / 3:
                x[:, size // 2 :] = 0
            elif 2 / 3 <= drawn < 5 / 6:
                x[:, :, : size // 2] = 0
            elif drawn >= 5 / 6:
                x[:, :, size // 2 :] = 0
        if rng.random() < self.flip:
            x = x.flip(-1)
        largest = max(int(self.hole_size * size), 1)
        for _ in range(self.holes):
            high, wide = rng.integers(1, largest + 1, 2)
            top, left = rng.integers(0, size - high + 1), rng.integers(0, size - wide + 1)
            x[:, top : top + high, left : left + wide] = 0
        if self.drop_channels:
            x[torch.from_numpy(rng.random(len(x)) < self.drop_channels)] = 0
        return x

    def _crop(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """A random part, or all of it where none fits."""
        part = random_part(x.shape[-2], x.shape[-1], self.scale, self.ratio, rng)
        if part is None:
            return x
        top, left, high, wide = part
        return x[:, top : top + high, left : left + wide]
