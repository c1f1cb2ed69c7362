"""The backgrounds of the tiny world: one function each, painted on a square canvas that is larger than the frame.

The canvas shows the world from -MARGIN to MARGIN (the frame is [-1, 1]), so that a camera can move over it. Every function takes
a generator for its details (hues, the course of the hills, ...) and the coordinates u (1, C) and v (C, 1), and returns
(C, C, 3) in about [0, 1].
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.floating[Any]]  # float32 throughout; random scalars are made Python floats, which do not widen it
MARGIN = 1.4


def paint_backdrop(name: str, rng: np.random.Generator, pixels: int) -> Array:
    """The background called ``name`` on a canvas of ``pixels`` a side, (pixels, pixels, 3) in about [0, 1]."""
    v = np.linspace(-MARGIN, MARGIN, pixels, dtype=np.float32)[:, None]
    return _BACKDROPS[name](rng, v.T, v)


def canvas_pixels(size: int) -> int:
    """Side of the canvas for frames of ``size`` pixels: twice their resolution."""
    return round(2 * MARGIN * size)


def smooth_noise(rng: np.random.Generator, cells: int, pixels: int) -> Array:
    """Smooth random field (pixels, pixels), mean about 0 and standard deviation about 1, with ``cells`` bumps a side."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((pixels, pixels), Image.Resampling.BICUBIC)) * 1.35


def _hsv(rng: np.random.Generator, hue: tuple[float, float], saturation: float, value: float) -> Array:
    """A random colour near the one given, as (3,)."""
    s, v = np.clip(np.array([saturation, value]) + rng.uniform(-0.06, 0.06, 2), 0, 1)
    return np.array(colorsys.hsv_to_rgb(float(rng.uniform(*hue)) % 1, float(s), float(v)), np.float32)


def _mix(first: Array, second: Array, share: Array) -> Array:
    """``second`` over ``first`` with opacity ``share`` (h, w) or broadcastable."""
    return first + (second - first) * np.clip(share, 0, 1)[..., None]


def _wave(rng: np.random.Generator, x: Array, frequency: float) -> Array:
    """A smooth random course in about [-1, 1]."""
    slow, middle, fast = rng.uniform(0, 2 * math.pi, 3).tolist()
    x = frequency * x
    return 0.6 * np.sin(x + slow) + 0.3 * np.sin(2.3 * x + middle) + 0.15 * np.sin(4.7 * x + fast)


def _studio(rng: np.random.Generator, u: Array, v: Array) -> Array:
    colour = _hsv(rng, (0, 1), 0.22, 0.84)
    return _mix(colour, colour * 0.6, 0.4 * (u - rng.uniform(-0.4, 0.4)) ** 2 + 0.4 * (v - rng.uniform(-0.4, 0.4)) ** 2)


def _fading(rng: np.random.Generator, u: Array, v: Array) -> Array:
    return _mix(_hsv(rng, (0, 1), 0.3, 0.88), _hsv(rng, (0, 1), 0.36, 0.6), 0.5 + 0.36 * v + 0 * u)


def _paper(rng: np.random.Generator, u: Array, v: Array) -> Array:
    pixels = u.shape[1]
    fibres = smooth_noise(rng, pixels // 3, pixels) * 0.5 + smooth_noise(rng, 10, pixels) * 0.5
    return _hsv(rng, (0.08, 0.16), 0.14, 0.88) * (1 + 0.035 * fibres)[..., None]


def _stripes(rng: np.random.Generator, u: Array, v: Array) -> Array:
    colour, turn = _hsv(rng, (0, 1), 0.26, 0.8), rng.uniform(0, math.pi)
    return _mix(colour, colour * 0.82, 0.5 + 4 * np.sin(7 * (u * math.cos(turn) + v * math.sin(turn)) + rng.uniform(0, 6)))


def _dots(rng: np.random.Generator, u: Array, v: Array) -> Array:
    colour, shift = _hsv(rng, (0, 1), 0.26, 0.72), rng.uniform(0, 6, 2).tolist()
    return _mix(colour, colour * 0.6 + 0.36, 6 * (np.cos(8 * u + shift[0]) * np.cos(8 * v + shift[1]) - 0.45))


def _checks(rng: np.random.Generator, u: Array, v: Array) -> Array:
    colour, shift = _hsv(rng, (0, 1), 0.2, 0.82), rng.uniform(0, 6, 2).tolist()
    return _mix(colour, colour * 0.8, 0.5 + 8 * np.sin(5 * u + shift[0]) * np.sin(5 * v + shift[1]))


def _hills(rng: np.random.Generator, u: Array, v: Array) -> Array:
    picture = _mix(_hsv(rng, (0.52, 0.62), 0.42, 0.88), _hsv(rng, (0.04, 0.16), 0.28, 0.95), 0.75 + 0.6 * v + 0 * u)
    hue = rng.uniform(0.2, 0.42)
    for depth, level in enumerate((-0.1, 0.25, 0.65)):
        ridge = level + 0.2 * _wave(rng, u, 2.2 + 0.6 * depth)
        ground = _hsv(rng, (hue, hue + 0.04), 0.26 + 0.12 * depth, 0.74 - 0.13 * depth)
        picture = _mix(picture, ground, (v - ridge) * (u.shape[1] / (2 * MARGIN)))
    return picture


def _sea(rng: np.random.Generator, u: Array, v: Array) -> Array:
    horizon = rng.uniform(-0.45, 0.0)
    depth = np.maximum(v - horizon, 0)
    sky = _mix(_hsv(rng, (0.54, 0.62), 0.35, 0.9), _hsv(rng, (0.0, 0.15), 0.3, 0.96), 1 + 0.8 * (v - horizon) + 0 * u)
    water = _mix(_hsv(rng, (0.48, 0.56), 0.45, 0.76), _hsv(rng, (0.54, 0.62), 0.62, 0.46), depth / (MARGIN - horizon) + 0 * u)
    crests = np.sin(22 * np.sqrt(depth + 0.02) + 0.9 * _wave(rng, u, 3.0)) * np.clip(3 * depth, 0.2, 1)
    return _mix(sky, water * (1 + 0.1 * crests)[..., None], (v - horizon) * (u.shape[1] / (2 * MARGIN)) + 0 * u)


def _lights(rng: np.random.Generator, u: Array, v: Array) -> Array:
    picture = _mix(_hsv(rng, (0.55, 0.85), 0.5, 0.3), _hsv(rng, (0.0, 0.15), 0.4, 0.42), 0.5 + 0.35 * v + 0 * u)
    for _ in range(12):
        x, y, radius = rng.uniform(-MARGIN, MARGIN), rng.uniform(-MARGIN, MARGIN), rng.uniform(0.1, 0.26)
        inside = radius - np.hypot(u - x, v - y)
        picture = picture + (np.clip(inside * 25 + 0.5, 0, 1) * rng.uniform(0.2, 0.4))[..., None] * _hsv(rng, (-0.05, 0.6), 0.5, 0.9)
    return picture


def _bricks(rng: np.random.Generator, u: Array, v: Array) -> Array:
    height, width = 0.21, 0.5
    row = np.floor((v + 3) / height)
    across = (u + 3 + rng.uniform(0, 1)) / width + 0.5 * (row % 2)
    edge = np.minimum(0.5 - np.abs(across % 1 - 0.5), (0.5 - np.abs((v + 3) / height % 1 - 0.5)) * height / width) * width
    tints = 1 + 0.1 * rng.standard_normal((32, 32), dtype=np.float32)
    tint = tints[row.astype(int) % 32, np.floor(across).astype(int) % 32]
    return _mix(_hsv(rng, (0.06, 0.12), 0.12, 0.74), _hsv(rng, (-0.02, 0.06), 0.48, 0.58) * tint[..., None], (edge - 0.012) * 50)


def _clouds(rng: np.random.Generator, u: Array, v: Array) -> Array:
    pixels = u.shape[1]
    puffs = smooth_noise(rng, 5, pixels) + 0.5 * smooth_noise(rng, 10, pixels) + 0.25 * smooth_noise(rng, 22, pixels)
    sky = _mix(_hsv(rng, (0.56, 0.63), 0.52, 0.76), _hsv(rng, (0.52, 0.58), 0.3, 0.9), 0.5 + 0.36 * v + 0 * u)
    return _mix(sky, _hsv(rng, (0.05, 0.6), 0.06, 0.93), 0.5 + 0.7 * puffs)


def _wood(rng: np.random.Generator, u: Array, v: Array) -> Array:
    pixels, plank = u.shape[1], 0.56
    row = np.floor((v + 3) / plank)
    shift = rng.uniform(-1, 1, 16).astype(np.float32)[row.astype(int) % 16]
    bend = smooth_noise(rng, 6, pixels)
    grain = np.sin(26 * v + 9 * shift + 1.6 * bend + 2.2 * u) + 0.5 * np.sin(61 * v + 3 * bend + 17 * shift)
    joint = np.clip((0.5 - np.abs((v + 3) / plank % 1 - 0.5)) * plank * 30, 0.45, 1)
    return _hsv(rng, (0.06, 0.1), 0.5, 0.68) * ((1 + 0.07 * grain + 0.1 * shift) * joint)[..., None]


_BACKDROPS: dict[str, Callable[[np.random.Generator, Array, Array], Array]] = {
    "studio": _studio, "fading": _fading, "paper": _paper, "stripes": _stripes, "dots": _dots, "checks": _checks,
    "hills": _hills, "sea": _sea, "lights": _lights, "bricks": _bricks, "clouds": _clouds, "wood": _wood,
}  # fmt: skip
