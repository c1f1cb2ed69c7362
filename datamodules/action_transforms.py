"""Which frames of a clip are seen, and which part of them, as X-CLIP, ViFi-CLIP and MSTA have it.

Frames of a segment-wise draw are numbered from 0; clips are uint8 (T, 3, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from genlab.errors import UserError

Draws = Callable[[int, int], Sequence[int]]  # (exclusive maximum, how many) -> integers


def middle_frames(total: int, clips: int, length: int = 1, interval: int = 1) -> list[int]:
    """The frames of an evaluation: of each of ``clips`` equal segments the middle, and ``length`` frames from there on."""
    span = length * interval
    average = (total - span + 1) / clips
    offsets = [int(i * average + average / 2) if total >= span else 0 for i in range(clips)]
    return [(offset + j * interval) % total for offset in offsets for j in range(length)]


def random_frames(total: int, clips: int, draws: Draws, length: int = 1, interval: int = 1) -> list[int]:
    """The frames of a training sample: a random one of each segment, and of short clips as evenly as they allow."""
    span = length * interval
    average = (total - span + 1) // clips
    if average > 0:
        offsets = [i * average + draw for i, draw in enumerate(draws(average, clips))]
    elif total > max(clips, span):
        offsets = sorted(draws(total - span + 1, clips))
    elif average == 0:
        offsets = [round(i * (total - span + 1) / clips) for i in range(clips)]  # half to even, as NumPy's
    else:
        offsets = [0] * clips
    return [(offset + j * interval) % total for offset in offsets for j in range(length)]


def view_frames(total: int, frames: int, views: int) -> list[list[int]]:
    """Frames of several views of one clip, shifted evenly against each other; one view is `middle_frames`. The official code draws them."""
    return [[total * (2 * views * i + 2 * view + 1) // (2 * views * frames) for i in range(frames)] for view in range(views)]


def short_side(height: int, width: int, short: int) -> tuple[int, int]:
    """Height and width with the shorter side made ``short``."""
    factor = short / min(height, width)
    return int(height * factor + 0.5), int(width * factor + 0.5)


def three_crops(height: int, width: int, crop: int) -> list[tuple[int, int]]:
    """(x, y) of three crops along the longer side: one end, the other, the middle."""
    x, y = (width - crop) // 2, (height - crop) // 2
    return [(0, 0), (2 * x, 0), (x, 0)] if width >= height else [(0, 0), (0, 2 * y), (0, y)]


def crop_sizes(height: int, width: int, size: int, scales: Sequence[float]) -> list[tuple[int, int]]:
    """(width, height) of the crops that training draws from: sides are shares of the shorter one, ``size`` if close to it."""
    base = min(height, width)
    sides = [size if abs(int(base * scale) - size) < 3 else int(base * scale) for scale in scales]
    return [(wide, high) for i, high in enumerate(sides) for j, wide in enumerate(sides) if abs(i - j) <= 1]


def crop_places(height: int, width: int, high: int, wide: int) -> list[tuple[int, int]]:
    """(x, y) of a crop at the four corners and in the middle."""
    x, y = (width - wide) // 4, (height - high) // 4
    return [(0, 0), (4 * x, 0), (0, 4 * y), (4 * x, 4 * y), (2 * x, 2 * y)]


@dataclass(frozen=True)
class ActionAugment:
    """What happens to a training clip; the same for all of its frames.

    Args:
        scales: Of the crops, shares of the shorter side.
        jitter: Probability of changed colours.
        strength: Of brightness, contrast, saturation and hue.
        grey: Probability of a clip without colours.
        per_frame_jitter: Draw colours for each frame, as the code that the authors built upon does.
    """

    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    jitter: float = 0.8
    strength: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    grey: float = 0.2
    per_frame_jitter: bool = False

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0 or max(self.scales) > 1 or self.strength[3] > 0.5:
            raise UserError(f"data.augment: {self}; scales are shares in (0, 1], the strength of hue is at most 0.5.")

    def __call__(self, video: Tensor, size: int, flip: float, rng: np.random.Generator) -> Tensor:
        """(T, 3, H, W) -> (T, 3, size, size).

        Args:
            flip: Probability of a mirror image.
        """
        video = resized(video, short_side(video.shape[-2], video.shape[-1], round(size * 8 / 7)))
        height, width = video.shape[-2:]
        sizes = crop_sizes(height, width, size, self.scales)
        wide, high = sizes[int(rng.integers(len(sizes)))]
        x, y = crop_places(height, width, high, wide)[int(rng.integers(5))]
        video = resized(video[..., y : y + high, x : x + wide], (size, size))
        if rng.random() < flip:
            video = video.flip(-1)
        if rng.random() < self.jitter:
            video = (
                torch.cat([self._colours(frame, rng) for frame in video.split(1)]) if self.per_frame_jitter else self._colours(video, rng)
            )
        return vision.rgb_to_grayscale(video, 3) if rng.random() < self.grey else video

    def _colours(self, video: Tensor, rng: np.random.Generator) -> Tensor:
        changes = (vision.adjust_brightness, vision.adjust_contrast, vision.adjust_saturation)
        factors = [float(rng.uniform(1 - s, 1 + s)) for s in self.strength[:3]]
        hue = float(rng.uniform(-self.strength[3], self.strength[3]))
        for number in rng.permutation(4).tolist():
            video = vision.adjust_hue(video, hue) if number == 3 else changes[number](video, factors[number])
        return video


def resized(video: Tensor, size: tuple[int, int]) -> Tensor:
    """(T, 3, H, W) uint8 -> (T, 3, *size), bilinear."""
    return video if tuple(video.shape[-2:]) == size else vision.resize(video, list(size), antialias=True)


def evaluation_crops(video: Tensor, size: int, crops: int) -> Tensor:
    """(T, 3, H, W) -> (crops, T, 3, size, size): the middle (shorter side 8/7 of the crop's), or three along the longer side."""
    if crops == 1:
        video = resized(video, short_side(video.shape[-2], video.shape[-1], round(size * 8 / 7)))
        return vision.center_crop(video, [size, size])[None]
    video = resized(video, short_side(video.shape[-2], video.shape[-1], size))
    places = three_crops(video.shape[-2], video.shape[-1], size)
    return torch.stack([video[..., y : y + size, x : x + size] for x, y in places])
