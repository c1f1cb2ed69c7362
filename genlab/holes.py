"""Holes to be filled: the same ones on every machine, for the same seed. True, or 1, is the hole.

Patch holes hide cells of a grid and are what a second pass is given (Chen et al., arXiv 2405.16263, Algorithm 2). The other kinds are made
as an order in which pixels are covered, cut off where the wanted share is reached: every hole has exactly as many pixels as was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Avoid = Literal["pixel", "cell", "none"]
HoleKind = Literal["free_form", "thin", "thick", "box", "half", "border", "patch"]
KINDS: tuple[HoleKind, ...] = get_args(HoleKind)
REDRAWS = 8  # of a second hole of which the first one left nothing
REDRAW_STEP = 0x9E3779B9  # from one seed to that of the redraw; torch's generator on the CPU looks at the low 32 bits alone
DESIGNED_FOR = 512  # pixels a side that the widths of strokes are given at
WIDTHS: dict[str, tuple[float, float]] = {"free_form": (12, 40), "thin": (4, 12), "thick": (60, 120)}  # of strokes, in such pixels


# ---- patch holes


def patch_seed(base_seed: int, index: int, k: int) -> int:
    """Seed of repeat ``k`` for the picture at ``index`` of the list."""
    return (base_seed * 1000003 + index * 1009 + k) % 2**63


def patch_count(height: int, width: int, patch: int, ratio: float) -> int:
    """How many cells of the grid are hidden."""
    return math.floor(ratio * math.ceil(height / patch) * math.ceil(width / patch) + 0.5)


def patch_cells(height: int, width: int, patch: int, ratio: float, seed: int) -> Tensor:
    """Hidden cells of a grid, (ceil(H / patch), ceil(W / patch)) bool: the first ones of a random order."""
    rows, columns = math.ceil(height / patch), math.ceil(width / patch)
    order = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(seed))
    cells = torch.zeros(rows * columns, dtype=torch.bool)
    cells[order[: patch_count(height, width, patch, ratio)]] = True
    return cells.view(rows, columns)


def patch_hole(height: int, width: int, patch: int, ratio: float, seed: int) -> Tensor:
    """Hidden cells as a hole, (H, W) bool; cells of the last row and column are cut off at the border."""
    return _spread(patch_cells(height, width, patch, ratio, seed), patch, height, width)


def second_hole(first: Tensor, patch: int, ratio: float, seed: int, avoid: Avoid = "pixel") -> Tensor | None:
    """A patch hole that shows what the first hole hid, drawn again with another seed where nothing of it is left.

    Args:
        first: (H, W) bool.
        patch: Side of a cell in pixels.
        ratio: Share of the cells that are hidden, before those of the first hole are given back; in [0, 1].
        seed: Of :func:`patch_seed`.
        avoid: ``pixel`` gives back every pixel of the first hole, ``cell`` every cell that touches it, ``none`` nothing.

    Returns:
        (H, W) bool; ``None`` where nothing is left after ``REDRAWS`` draws.
    """
    height, width = first.shape
    for draw in range(1 + REDRAWS):
        cells = patch_cells(height, width, patch, ratio, (seed + draw * REDRAW_STEP) % 2**63)
        if avoid == "cell":
            cells &= ~_touched(first, patch)
        hole = _spread(cells, patch, height, width)
        if avoid == "pixel":
            hole &= ~first.cpu()
        if hole.any() or patch_count(height, width, patch, ratio) == 0:
            return hole
    return None


def _spread(cells: Tensor, patch: int, height: int, width: int) -> Tensor:
    return cells.repeat_interleave(patch, 0).repeat_interleave(patch, 1)[:height, :width]


def _touched(hole: Tensor, patch: int) -> Tensor:
    """Cells in which some pixel is hidden."""
    height, width = hole.shape
    padded = torch.zeros(math.ceil(height / patch) * patch, math.ceil(width / patch) * patch, dtype=torch.bool)
    padded[:height, :width] = hole.cpu()
    return padded.unflatten(0, (-1, patch)).unflatten(2, (-1, patch)).any(3).any(1)


# ---- the other kinds


def make_hole(kind: HoleKind, height: int, width: int, ratio: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A hole of ``round(ratio * height * width)`` pixels, (H, W); of kind ``patch``, as many whole cells as come nearest to that.

    Args:
        kind: ``free_form``: strokes of a brush as in Yu et al., arXiv 1806.03589; ``thin`` and ``thick`` ones; ``box``; ``half``, one side
            of the picture; ``border``, all around it; ``patch``, cells of a grid of 16 x 16.
        ratio: Share of the picture, in [0, 1].
        rng: Draws where it lies and what it looks like.
    """
    if kind == "patch":
        return patch_hole(height, width, math.ceil(max(height, width) / 16), ratio, int(rng.integers(2**62))).numpy()
    count = round(ratio * height * width)
    order = np.argsort(_ORDERS[kind](kind, height, width, count, rng).ravel(), kind="stable")  # equal ones in the order of rows
    hole = np.zeros(height * width, bool)
    hole[order[:count]] = True
    return hole.reshape(height, width)


def _box(kind: str, height: int, width: int, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Pixels by their distance to a place, in the shape of a box that fits into the picture."""
    ratio = count / (height * width)
    low = max(ratio, 0.5)  # of the sides, at the least: a box with less would have to be longer than the picture
    shape = math.sqrt(float(rng.uniform(low, 1 / low)))
    tall, wide = min(math.sqrt(ratio) * shape, 1.0), min(math.sqrt(ratio) / shape, 1.0)
    tall, wide = max(tall, ratio / wide), max(wide, ratio / tall)
    top, left = float(rng.uniform(0, 1 - tall)), float(rng.uniform(0, 1 - wide))
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    away = np.maximum(np.abs(y[:, None] - top - tall / 2) / tall, np.abs(x[None] - left - wide / 2) / wide)
    return away


def _half(kind: str, height: int, width: int, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    y, x = np.mgrid[:height, :width].astype(np.float64)
    return (y, -y, x, -x)[int(rng.integers(4))]


def _border(kind: str, height: int, width: int, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    y, x = np.mgrid[:height, :width].astype(np.float64)
    return np.minimum(np.minimum(y, height - 1 - y) / height, np.minimum(x, width - 1 - x) / width)


def _strokes(kind: str, height: int, width: int, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """When a brush that leaves discs along bent lines first covers each pixel; it paints until enough is covered."""
    when = np.full((height, width), np.inf)
    scale = min(height, width) / DESIGNED_FOR
    mean_length = math.hypot(height, width) / 8
    covered, time = 0, 0
    while covered < count:
        radius = max(float(rng.uniform(*WIDTHS[kind])) * scale / 2, 0.5)
        y, x = float(rng.uniform(0, height)), float(rng.uniform(0, width))
        for vertex in range(int(rng.integers(4, 19))):
            angle = 2 * math.pi / 5 + float(rng.uniform(-1, 1)) * 2 * math.pi / 15
            angle = 2 * math.pi - angle if vertex % 2 else angle
            length = abs(float(rng.normal(mean_length, mean_length / 2)))
            end_y = float(np.clip(y + length * math.sin(angle), 0, height))
            end_x = float(np.clip(x + length * math.cos(angle), 0, width))
            for step in np.linspace(0, 1, max(math.ceil(length / max(radius / 2, 1)), 1) + 1):
                covered += _disc(when, y + step * (end_y - y), x + step * (end_x - x), radius, time)
                time += 1
            y, x = end_y, end_x
            if covered >= count:
                break
    return when


def _disc(when: NDArray[np.float64], y: float, x: float, radius: float, time: int) -> int:
    """Marks the pixels of a disc that were free, and counts them."""
    top, left = max(math.floor(y - radius), 0), max(math.floor(x - radius), 0)
    part = when[top : math.ceil(y + radius) + 1, left : math.ceil(x + radius) + 1]
    rows, columns = np.ogrid[: part.shape[0], : part.shape[1]]
    new = ((rows + top - y) ** 2 + (columns + left - x) ** 2 <= radius**2) & np.isinf(part)
    part[new] = time
    return int(new.sum())


_ORDERS: dict[str, Callable[[str, int, int, int, np.random.Generator], NDArray[np.float64]]] = {
    "free_form": _strokes,
    "thin": _strokes,
    "thick": _strokes,
    "box": _box,
    "half": _half,
    "border": _border,
}
