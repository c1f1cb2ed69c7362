"""A cartoon hand that points with its index finger: its 21 joints, and the painter.

Hand units are face units. The hand points to the right along x, with the tip of its index finger at (0, 0) and its thumb at y < 0; `side`
-1 turns it over. Joints are in the order of MediaPipe: wrist, then thumb, index, middle, ring and little finger, each from root to tip.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from datamodules.tinyworld.backgrounds import Array
from datamodules.tinyworld.faces import Colour, Layer, Person, cover

JOINTS = np.array(
    [
        (-0.97, 0.13),
        (-0.82, 0.01), (-0.67, -0.09), (-0.54, -0.13), (-0.42, -0.13),
        (-0.46, 0.01), (-0.29, 0.0), (-0.14, 0.0), (0.0, 0.0),
        (-0.46, 0.12), (-0.31, 0.125), (-0.35, 0.17), (-0.45, 0.17),
        (-0.50, 0.22), (-0.37, 0.235), (-0.41, 0.27), (-0.50, 0.26),
        (-0.57, 0.31), (-0.46, 0.33), (-0.49, 0.355), (-0.56, 0.34),
    ],
    np.float32,
)  # fmt: skip
TIP = 8  # of the index finger
FINGER = 0.066  # half a finger's width, and the radius of its tip
_FINGERS = ((1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12), (13, 14, 15, 16), (17, 18, 19, 20))
_PALM = ((0, 1), (0, 5), (0, 9), (0, 13), (0, 17), (5, 17), (1, 5), (1, 2))
_PALM_WIDTH = 0.085
HAND_PARTS = ("hand", "nail")


def joints(tip: Array, angle: Array, side: int) -> Array:
    """(T, 21, 2) joints in the face's coordinates.

    Args:
        tip: (T, 2) middle of the tip of the index finger.
        angle: (T,) radians: where the hand points to.
        side: 1, or -1 for the hand turned over.
    """
    x, y = JOINTS[:, 0], side * JOINTS[:, 1]
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    return np.stack((tip[:, :1] + x * cos - y * sin, tip[:, 1:] + x * sin + y * cos), 2).astype(np.float32)


def hand_distance(u: Array, v: Array, tip: Array, angle: Array, side: int) -> Array:
    """Signed distance of the hand's edge, negative inside, (T, H, W)."""
    x, y = _own(u, v, tip, angle, side)
    return np.minimum(_palm(x, y), _fingers(x, y))


def hand_layers(u: Array, v: Array, unit: float, tip: Array, angle: Array, side: int) -> Iterator[Layer]:
    """The hand with its sleeve, over a soft shadow.

    Args:
        u: (T, H, W) or broadcastable: where each pixel is, in the face's coordinates.
        v: Likewise.
        unit: Pixels per face unit.
    """
    x, y = _own(u, v, tip, angle, side)
    palm, fingers = _palm(x, y), _fingers(x, y)
    hand = np.minimum(palm, fingers)
    yield "shadow", 0.32 * np.clip(1 - hand / 0.16, 0, 1) ** 2, 1.0
    sleeve = _capsule(x, y, (-1.29, 0.13), (-3.5, 0.2)) - 0.2
    yield "line", cover(hand, unit), 1.0
    inner = hand + 0.024
    yield "hand", cover(inner, unit), 1.04 - 0.22 * np.clip(1 + inner / 0.09, 0, 1) ** 2
    for upper, lower in pairwise(_FINGERS[1:]):  # creases between the fingers
        first, last = (JOINTS[upper[i]] * 0.5 + JOINTS[lower[i]] * 0.5 for i in (0, 1))
        yield "line", 0.6 * cover(_capsule(x, y, first, last) - 0.008, unit), 1.0
    yield "line", 0.4 * cover(_capsule(x, y, (-0.44, -0.06), (-0.70, 0.05)) - 0.008, unit), 1.0  # and beside the thumb
    nail = np.hypot((x + 0.005) / 1.25, y - 0.012) - 0.03
    yield "nail", 0.8 * cover(nail, unit), 1.0
    yield "cuff", cover(sleeve, unit), 0.86
    yield "sleeve", cover(np.maximum(sleeve + 0.02, x + 1.15), unit), 1 - 0.3 * np.clip(1 + sleeve / 0.2, 0, 1) ** 2


def hand_palette(person: Person) -> dict[str, Colour]:
    """Colours of the parts: the person's own hand, with a darker line around it."""
    red, green, blue = person.skin
    shirt = person.shirt
    return {
        "hand": (min(1.0, 0.97 * red + 0.02), 0.93 * green, 0.9 * blue), "line": (0.5 * red, 0.38 * green, 0.35 * blue),
        "nail": (min(1.0, 0.9 * red + 0.12), 0.8 * green + 0.13, 0.8 * blue + 0.14), "shadow": (0.10, 0.05, 0.06),
        "sleeve": shirt, "cuff": (0.8 * shirt[0], 0.8 * shirt[1], 0.8 * shirt[2]),
    }  # fmt: skip


def _own(u: Array, v: Array, tip: Array, angle: Array, side: int) -> tuple[Array, Array]:
    """Pixels in the hand's coordinates."""
    du, dv = u - tip[:, 0, None, None], v - tip[:, 1, None, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    return (du * cos + dv * sin).astype(np.float32), (side * (dv * cos - du * sin)).astype(np.float32)


def _palm(x: Array, y: Array) -> Array:
    return np.minimum.reduce([_capsule(x, y, JOINTS[a], JOINTS[b]) for a, b in _PALM]) - _PALM_WIDTH


def _fingers(x: Array, y: Array) -> Array:
    return np.minimum.reduce([_capsule(x, y, JOINTS[a], JOINTS[b]) for finger in _FINGERS for a, b in pairwise(finger)]) - FINGER


def _capsule(x: Array, y: Array, start: Array | tuple[float, float], end: Array | tuple[float, float]) -> Array:
    """Distance to a line segment."""
    (x0, y0), (x1, y1) = (float(start[0]), float(start[1])), (float(end[0]), float(end[1]))
    along_x, along_y = x1 - x0, y1 - y0
    share = np.clip(((x - x0) * along_x + (y - y0) * along_y) / (along_x**2 + along_y**2), 0, 1)
    return np.hypot(x - x0 - share * along_x, y - y0 - share * along_y)
