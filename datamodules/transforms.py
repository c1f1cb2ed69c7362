"""What happens to a clip between decoder and network: crop, resize, augment, normalise (DeMamba, arXiv 2405.19707, and its code).

Clips are uint8 tensors (T, 3, H, W) until ``normalise``. The official code augments with albumentations, whose arguments were
renamed between versions and are ignored in silence; here every strength is written down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import functional as vision

from genlab.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

Mode = Literal["clip", "official"]


def edge_crop(video: Tensor, fraction: float) -> Tensor:
    """Cut ``fraction`` of the longer side off *both* its ends: left and right if wider than high, else top and bottom.

    Takes logos and subtitles away. Only in the official code: 0.10 in evaluation, 0.15 in training for real Youku clips.

    Args:
        video: (..., H, W).
        fraction: In [0, 0.5); the number of pixels is truncated.
    """
    if not 0 <= fraction < 0.5:
        raise UserError(f"edge crop is {fraction}; it is the share cut off each end, from 0 to below 0.5.")
    height, width = video.shape[-2:]
    cut = int(max(height, width) * fraction)
    return video[..., cut : width - cut] if width > height else video[..., cut : height - cut, :]


def resize(video: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Bilinear without antialiasing, aspect ratio ignored. (T, 3, H, W) uint8 -> (T, 3, *size) uint8; size is (height, width)."""
    size = (size, size) if isinstance(size, int) else size
    if tuple(video.shape[-2:]) == size:
        return video
    return F.interpolate(video, size, mode="bilinear", antialias=False)


def normalise(
    video: Tensor,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    lengths: Tensor | Sequence[int] | int | None = None,
) -> Tensor:
    """uint8 -> float32 of mean 0 and deviation 1 per channel; padding becomes exactly 0.

    Args:
        video: (T, 3, H, W) or (B, T, 3, H, W), 0..255.
        mean: Of values in 0..1. DeMamba uses ImageNet's for all backbones.
        std: Of values in 0..1.
        lengths: Real frames per clip, one number or (B,): frames from there on are 0 *after* normalisation, which is the mean grey.
    """
    scale = torch.tensor([1 / (255 * s) for s in std], device=video.device)[:, None, None]
    shift = torch.tensor([m / s for m, s in zip(mean, std)], device=video.device)[:, None, None]
    out = video.float().mul_(scale).sub_(shift)
    if lengths is not None:
        number = torch.arange(video.shape[-4], device=video.device)
        padding = number >= torch.as_tensor(lengths, device=video.device)[..., None]  # (T,) or (B, T)
        out.masked_fill_(padding[..., None, None, None], 0.0)
    return out


def jpeg(video: Tensor, quality: int) -> Tensor:
    """Every frame through JPEG of this quality (1..100), colours subsampled 4:2:0."""
    return torch.stack(decode_jpeg(encode_jpeg(list(video.contiguous()), quality=quality)))


def blur(video: Tensor, kernel: int) -> Tensor:
    """Gaussian blur with the deviation that OpenCV gives to a kernel size: 0.8 for 3, 1.1 for 5, 1.4 for 7 pixels."""
    sigma = 0.3 * ((kernel - 1) / 2 - 1) + 0.8
    return vision.gaussian_blur(video, [kernel, kernel], [sigma, sigma])


def gaussian_noise(video: Tensor, variance: float, rng: np.random.Generator) -> Tensor:
    """Add noise of mean 0 and this variance (grey levels squared) to each pixel and channel; rounded and clipped to 0..255."""
    noise = torch.from_numpy(rng.standard_normal(tuple(video.shape), dtype=np.float32))
    return noise.mul_(variance**0.5).add_(video).round_().clamp_(0, 255).to(torch.uint8)


def each_frame(video: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply ``change`` to one frame (1, 3, H, W) after the other, so that it draws anew for each."""
    return torch.cat([change(frame) for frame in video.split(1)])


@dataclass(frozen=True)
class TrainAugmentation:
    """Training augmentation of a resized clip, in this order; probabilities are per clip.

    Args:
        flip: Probability of a horizontal flip.
        jpeg: Probability of JPEG compression.
        jpeg_quality: Range of its quality, both ends included.
        noise: Probability of Gaussian noise.
        noise_variance: Range of its variance, in grey levels (0..255) squared.
        blur: Probability of Gaussian blur, kernel 3 in a third of the cases and 5 in two thirds.
        gray: Probability of grayscale (three equal channels).
        mode: ``clip`` draws every strength once per clip, without flicker. ``official`` does as the released code: JPEG touches each
            frame of a chosen clip with probability 0.5, noise variance and blur kernel are redrawn for every frame.
    """

    flip: float = 0.5
    jpeg: float = 0.5
    jpeg_quality: tuple[int, int] = (50, 100)
    noise: float = 0.3
    noise_variance: tuple[float, float] = (10.0, 50.0)
    blur: float = 0.3
    gray: float = 0.001
    mode: Mode = "clip"

    def __post_init__(self) -> None:
        for name in ("flip", "jpeg", "noise", "blur", "gray"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augmentation.{name} is {getattr(self, name)}; it is a probability, from 0 to 1.")
        if not 1 <= self.jpeg_quality[0] <= self.jpeg_quality[1] <= 100:
            raise UserError(f"augmentation.jpeg_quality is {self.jpeg_quality}; give two ascending numbers from 1 to 100.")
        if not 0 <= self.noise_variance[0] <= self.noise_variance[1]:
            raise UserError(f"augmentation.noise_variance is {self.noise_variance}; give two ascending numbers, not below 0.")

    def __call__(self, video: Tensor, rng: np.random.Generator) -> Tensor:
        """(T, 3, H, W) uint8 -> the same shape; the same ``rng`` state gives the same clip."""
        flip, compress, noisy, blurred, gray = rng.random(5) < (self.flip, self.jpeg, self.noise, self.blur, self.gray)
        if flip:
            video = video.flip(-1)
        if compress:
            quality = int(rng.integers(self.jpeg_quality[0], self.jpeg_quality[1] + 1))
            video = self._vary(video, lambda part: part if self.mode == "official" and rng.random() >= 0.5 else jpeg(part, quality))
        if noisy:
            video = self._vary(video, lambda part: gaussian_noise(part, rng.uniform(*self.noise_variance), rng))
        if blurred:
            video = self._vary(video, lambda part: blur(part, 3 if rng.random() < 1 / 3 else 5))
        return vision.rgb_to_grayscale(video, num_output_channels=3) if gray else video

    def _vary(self, video: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        return each_frame(video, change) if self.mode == "official" else change(video)


def random_part(
    height: int, width: int, scale: Sequence[float], ratio: Sequence[float], rng: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """Top, left, height, width of a random part of a picture, as torchvision's ``RandomResizedCrop`` draws one.

    Args:
        scale: Smallest and largest share of the area.
        ratio: Of width to height, likewise; drawn evenly in its logarithm.

    Returns:
        ``None`` where ten draws in a row did not fit into the picture.
    """
    (smallest, largest), (narrow, broad) = scale, ratio
    for _ in range(10):
        area = height * width * rng.uniform(smallest, largest)
        drawn = float(np.exp(rng.uniform(np.log(narrow), np.log(broad))))
        wide, high = round((area * drawn) ** 0.5), round((area / drawn) ** 0.5)
        if 0 < wide <= width and 0 < high <= height:
            top, left = int(rng.integers(0, height - high + 1)), int(rng.integers(0, width - wide + 1))
            return top, left, high, wide
    return None
