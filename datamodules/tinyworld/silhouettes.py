"""Which pixels of a picture an object covers: for masks and boxes that are exact."""

from __future__ import annotations

import numpy as np

from datamodules.tinyworld.backgrounds import Array
from datamodules.tinyworld.scene import SHAPES, SIZES, SceneObject


def silhouette(thing: SceneObject, size: int, grow: float = 0.0) -> Array:
    """Opacity of the object in a picture of ``size`` pixels a side, (size, size) in [0, 1], as it is painted.

    Args:
        grow: Pixels by which its outline lies further out.
    """
    half = size / 2
    radius = SIZES[thing.size] * half
    steps = np.arange(size, dtype=np.float32) + 0.5
    dx, dy = ((steps - (thing.x + 1) * half) / radius)[None], ((steps - (thing.y + 1) * half) / radius)[:, None]
    turn = np.radians(thing.angle)
    distance = SHAPES[thing.shape](np.cos(turn) * dx + np.sin(turn) * dy, np.cos(turn) * dy - np.sin(turn) * dx)
    return np.clip(0.5 + grow - distance * radius, 0, 1)


def bounds(inside: np.ndarray) -> tuple[int, int, int, int] | None:
    """The smallest box around the True pixels of (H, W): left, top, right, bottom, the last two exclusive; ``None`` where none is."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1) if len(rows) else None
