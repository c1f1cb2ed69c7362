"""The picture "generators" of the tiny world: each photographs a scene as a camera does, and gets one thing wrong on the way.

Two of them spoil every pixel, as the last layers of a network do; the others fail in one place, which a person can point at, and say
in words what is wrong there. The place is exact: the smallest box around all pixels that differ from the photograph of the same scene.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from datamodules.tinyworld.backgrounds import Array, smooth_noise
from datamodules.tinyworld.generators import checkerboard, smoothing
from datamodules.tinyworld.scene import COLOURS, SIZES, TEXTURES, Scene, SceneObject
from datamodules.tinyworld.silhouettes import bounds, silhouette
from datamodules.tinyworld.video import Clip, Motion, Shot, develop, expose, prepare, random_clip
from genlab.training.randomness import keyed_rng

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, the last two exclusive
LEAST = 6  # pixels: a flaw with a smaller box could not be seen


@dataclass(frozen=True)
class Flaw:
    """What is wrong with a picture, and where."""

    thing: str
    """What has the flaw, in words: "the red star"."""
    box: Box
    reason: str
    """Goes on from the thing: "has an outline that runs like wax"."""


@dataclass(frozen=True)
class Picture:
    """A picture, (size, size, 3) uint8 RGB, and what is wrong with it; nothing in a photograph."""

    pixels: NDArray[np.uint8]
    flaws: tuple[Flaw, ...] = ()


def still_clip(key: str) -> Clip:
    """The scene and the camera named ``key``, one frame long; at least one object is no smaller than medium."""
    clip = random_clip(key, "B", frames=1)
    things = tuple(replace(thing, size="medium") if thing.size == "small" else thing for thing in clip.scene.objects)
    return replace(clip, scene=replace(clip.scene, objects=things), camera="still", motions=(Motion("sway", 0.0),) * len(things))


def photograph(clip: Clip, size: int = 64) -> Picture:
    """The scene as a camera takes it."""
    return Picture(_develop(prepare(clip, size)))


def generate_picture(name: str, clip: Clip, size: int = 64) -> Picture:
    """The scene as the generator called ``name`` makes it."""
    rng = keyed_rng("image artefact", clip.key)
    if name in GLOBAL:
        generator, reason = GLOBAL[name]
        return Picture(generator(prepare(clip, size), rng)[0], (Flaw("the whole picture", (0, 0, size, size), reason),))
    photo = photograph(clip, size).pixels
    for _ in range(20):  # a flaw may happen to be hidden, behind another object or in its own pattern
        shot = prepare(clip, size)
        place = int(rng.integers(len(shot.tracks)))
        frames, reason = LOCAL[name](shot, place, rng)
        pixels = develop(shot, frames)[0]
        box = bounds((pixels != photo).any(-1))
        if box is not None and min(box[2] - box[0], box[3] - box[1]) >= LEAST:
            break
    else:
        raise RuntimeError(f"{name} finds nothing to spoil in {clip.key}")
    thing = clip.scene.objects[place]
    return Picture(pixels, (Flaw(f"the {thing.colour} {thing.shape}", box, reason),))


def _develop(shot: Shot) -> NDArray[np.uint8]:
    return develop(shot, expose(shot))[0]


# ---- local flaws: a shot and the place of an object -> exposed frames (1, H, W, 3), and what is wrong in words


def melting(shot: Shot, place: int, rng: np.random.Generator) -> tuple[Array, str]:
    """The object's outline runs: pixels around it are shifted by a smooth field of up to some four pixels, which fades at the rim."""
    frames, size = expose(shot), shot.size
    thing = shot.clip.scene.objects[place]
    weight = np.minimum(silhouette(thing, size, grow=size / 16), 0.5 + 0.5 * silhouette(thing, size, grow=size / 32)) * (size / 64)
    shifts = [smooth_noise(rng, 7, size) * 2.6 * weight for _ in range(2)]
    y, x = (np.mgrid[:size, :size] + np.stack(shifts)).clip(0, size - 1.001)
    melted = np.where(weight[..., None] > 0, _sample(frames[0], y, x), frames[0])
    return melted[None], "has an outline that runs like wax"


def two_colours(shot: Shot, place: int, rng: np.random.Generator) -> tuple[Array, str]:
    """From a line through the object on, it has another colour and another pattern."""
    thing = shot.clip.scene.objects[place]
    colour = str(rng.choice([name for name in COLOURS if name != thing.colour]))
    other = replace(thing, colour=colour, texture=str(rng.choice([name for name in TEXTURES if name != thing.texture])))
    turn, size = rng.uniform(0, 2 * math.pi), shot.size
    v, u = np.mgrid[:size, :size].astype(np.float32) / (size / 2) - 1
    beyond = (u - thing.x) * math.cos(turn) + (v - thing.y) * math.sin(turn) > rng.uniform(-0.15, 0.15) * SIZES[thing.size]
    frames, changed = expose(shot), expose(_with(shot, place, other))
    return np.where(beyond[..., None], changed, frames), f"turns {colour} halfway, with another pattern"


def missing_piece(shot: Shot, place: int, rng: np.random.Generator) -> tuple[Array, str]:
    """A round piece at the object's edge is gone; one sees what lies behind it."""
    thing, size = shot.clip.scene.objects[place], shot.size
    rim = np.argwhere(np.abs(silhouette(thing, size) - 0.5) < 0.45)
    inward = rng.uniform(0.2, 0.5)  # from the rim: else the tip of a star would hardly lose anything
    y, x = rim[int(rng.integers(len(rim)))] * (1 - inward) + inward * (np.array([thing.y, thing.x]) + 1) * (size / 2)
    rows, columns = np.mgrid[:size, :size]
    radius = rng.uniform(0.4, 0.6) * SIZES[thing.size] * size / 2
    bite = np.clip(radius + 0.5 - np.hypot(rows - y, columns - x), 0, 1)[..., None]
    frames = expose(shot)
    behind = expose(_with(shot, place, None))
    return frames + bite * (behind - frames), "lacks a piece at its edge, where one sees what is behind it"


def wrong_shadow(shot: Shot, place: int, rng: np.random.Generator) -> tuple[Array, str]:
    """The object's shadow falls towards the light; the shading of its surface is left as it was."""
    thing, size = shot.clip.scene.objects[place], shot.size
    turned = replace(shot.clip.scene, light=(shot.clip.scene.light + rng.uniform(120, 240)) % 360)
    frames = expose(shot)
    before, after = _alone(shot, place, shot.clip.scene), _alone(shot, place, turned)
    outside = 1 - silhouette(thing, size)[..., None]
    ratio = np.maximum(after, 1e-3) / np.maximum(before, 1e-3)  # shadows multiply what they fall on
    return frames * (1 + outside * (ratio - 1)), "has a shadow that falls towards the light"


def _with(shot: Shot, place: int, thing: SceneObject | None) -> Shot:
    """The shot with another object at that place, or none."""
    tracks = [replace(track, thing=thing) if i == place and thing else track for i, track in enumerate(shot.tracks)]
    return replace(shot, tracks=[track for i, track in enumerate(tracks) if thing or i != place])


def _alone(shot: Shot, place: int, scene: Scene) -> Array:
    """The object by itself on its background, in that light."""
    return expose(replace(shot, clip=replace(shot.clip, scene=scene), tracks=[shot.tracks[place]]))


def _sample(picture: Array, y: Array, x: Array) -> Array:
    """Bilinear values of (H, W, 3) at (H, W) places."""
    top, left = y.astype(int), x.astype(int)
    y, x = (y - top)[..., None].astype(np.float32), (x - left)[..., None].astype(np.float32)
    upper = picture[top, left] * (1 - x) + picture[top, left + 1] * x
    lower = picture[top + 1, left] * (1 - x) + picture[top + 1, left + 1] * x
    return upper * (1 - y) + lower * y


GLOBAL: dict[str, tuple[Callable[[Shot, np.random.Generator], NDArray[np.uint8]], str]] = {
    "checkerboard": (checkerboard, "is covered by a fine regular grid"),
    "smoothing": (smoothing, "is too smooth, without the grain of a camera"),
}
LOCAL: dict[str, Callable[[Shot, int, np.random.Generator], tuple[Array, str]]] = {
    "melting": melting, "two_colours": two_colours, "missing_piece": missing_piece, "wrong_shadow": wrong_shadow,
}  # fmt: skip
GENERATORS = (*GLOBAL, *LOCAL)
