"""The augmentation of Custom Diffusion (Kumari et al., arXiv 2212.04488): the picture at another size, and words that say so."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as vision

FAR, CLOSE = ("a far away ", "very small "), ("zoomed in ", "close up ")
LATENT = 8  # pixels of a latent's side in Stable Diffusion


class Placed(NamedTuple):
    """(3, S, S) uint8, grey where the picture is not; (1, s, s) float32, 1 at latents that lie wholly within it; words for the prompt."""

    picture: Tensor
    mask: Tensor
    prefix: str


def draw_scale(size: int, rng: np.random.Generator) -> int:
    """Pixels per side: smaller with probability 0.66, evenly from a third to the whole; else enlarged to 1.2 to 1.4 times."""
    if rng.random() < 0.66:
        return int(rng.integers(size // 3, size + 1))
    return int(rng.integers(int(1.2 * size), int(1.4 * size)))


def prefixes(scale: int, size: int) -> tuple[str, ...]:
    """What may stand before the prompt."""
    return FAR if scale < 0.6 * size else CLOSE if scale > size else ()


def placed(picture: Tensor, scale: int, top: int, left: int, size: int, grid: int) -> tuple[Tensor, Tensor]:
    """The picture brought to ``scale`` x ``scale`` and put at a place, or what is seen of it from there where it is larger.

    Args:
        picture: (3, H, W) uint8; its aspect ratio is not kept.
        grid: Latents per side.

    Returns:
        (3, size, size) uint8 and (1, grid, grid) float32.
    """
    resized = vision.resize(picture, [scale, scale], InterpolationMode.BILINEAR, antialias=True)
    if scale > size:
        return resized[:, top : top + size, left : left + size], torch.ones(1, grid, grid)
    canvas, mask, factor = torch.full((3, size, size), 128, dtype=torch.uint8), torch.zeros(1, grid, grid), size // grid
    canvas[:, top : top + scale, left : left + scale] = resized
    rows, columns = (slice(start // factor + 1, (start + scale) // factor - 1) for start in (top, left))
    mask[:, rows, columns] = 1
    if not mask.any():  # at small sizes nothing is left without a border; the code divides by zero then
        mask[:, top // factor : (top + scale) // factor, left // factor : (left + scale) // factor] = 1
    return canvas, mask


def jittered(picture: Tensor, size: int, rng: np.random.Generator, latent: int = LATENT) -> Placed:
    """A random one of these.

    Args:
        latent: Pixels of a latent's side.
    """
    picture = vision.horizontal_flip(picture) if rng.random() < 0.5 else picture
    scale = draw_scale(size, rng)
    top, left = (int(rng.integers(0, abs(size - scale) + 1)) for _ in range(2))
    canvas, mask = placed(picture, scale, top, left, size, size // latent)
    words = prefixes(scale, size)
    return Placed(canvas, mask, str(rng.choice(words)) if words else "")
