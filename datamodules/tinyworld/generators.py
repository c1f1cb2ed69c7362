"""The video "generators" of the tiny world: each films a clip like a camera does, and spoils one thing on the way.

What they spoil are failures that people report of real video generators, at moderate strength, drawn anew for every clip. Each
docstring says which statistic breaks and whether a single frame gives it away. Where it says "time only", every single frame
is distributed as in real clips (the same quantity is there, but steady), so nothing but a comparison of frames can tell.

Detectors are trained on the six of TRAIN and tested on the six of TEST, whose kinds they have never met. Each of these has a distant
relative among the six, as in GenVideo: light that wanders instead of jumping (colour_drift, flicker), detail that swims or sticks
instead of being redrawn (wobble, frozen_noise, boiling), identity that is lost slowly (morphing, popping), motion that is smeared
(ghosting, smoothing and jumping), a grid of another period (seams, checkerboard).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from datamodules.tinyworld.backgrounds import Array
from datamodules.tinyworld.scene import SHAPES, Track, mottle, random_object
from datamodules.tinyworld.video import MAX_OBJECTS, MOTIONS, REACH, Clip, Motion, Shot, animate, develop, expose, prepare
from genlab.training.randomness import keyed_rng

Generator = Callable[[Shot, np.random.Generator], NDArray[np.uint8]]


def generate(name: str, clip: Clip, size: int = 64) -> NDArray[np.uint8]:
    """The clip as the generator called ``name`` makes it, (T, size, size, 3) uint8 RGB."""
    return GENERATORS[name](prepare(clip, size), keyed_rng("artefact", clip.key))


# ---- met in training


def flicker(shot: Shot, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The light over 6 to 12 of the 4 x 4 cells of the frame is redrawn for every frame.

    Breaks: constancy over time of the local brightness. Time only: real light is as uneven, but holds still.
    """
    cells = np.repeat(shot.cells, shot.clip.frames, 0)
    chosen = rng.permutation(16)[: rng.integers(6, 13)]
    cells.reshape(-1, 16)[:, chosen] = rng.standard_normal((shot.clip.frames, len(chosen)), dtype=np.float32)
    shot.cells = cells
    return develop(shot, expose(shot))


def boiling(shot: Shot, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The stains of the background are invented anew from frame to frame, with few of the old ones left (correlation 0.1 to 0.4).

    Breaks: correlation over time of fine background texture. Time only: real stains look the same, but stay on the background.
    """
    keep, fields = rng.uniform(0.1, 0.4), [shot.stains[0]]
    for _ in range(shot.clip.frames - 1):  # an autoregressive process: every frame has unit variance
        fields.append(keep * fields[-1] + math.sqrt(1 - keep**2) * mottle(shot.clip.scene, shot.size, rng)[0])
    shot.stains = np.stack(fields)
    return develop(shot, expose(shot))


def checkerboard(shot: Shot, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A grid of period 4 and 2 pixels lies over the frame, as strided transposed convolutions leave it: 2.5 to 4.5 % of the brightness.

    Breaks: the spectrum of a frame, which gets peaks at 1/4 and 1/2 cycle per pixel. Every single frame tells; the grid holds still.
    """
    position = np.arange(shot.size, dtype=np.float32)
    coarse = np.cos(math.pi / 2 * position + rng.uniform(0, 2 * math.pi))
    fine = np.cos(math.pi * position + math.pi * rng.integers(2))
    grid = 0.7 * (coarse[:, None] + coarse) + 0.5 * (fine[:, None] + fine)
    return develop(shot, expose(shot) * (1 + rng.uniform(0.025, 0.045) * grid)[..., None])


def smoothing(shot: Shot, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Fine detail is smeared (Gaussian of 0.5 to 0.8 pixels), and only half of the sensor noise is there.

    Breaks: the spectrum of a frame at high frequencies, its noise floor. Every single frame tells; nothing changes over time.
    """
    shot.noise *= 0.5
    return develop(shot, _blur(expose(shot), rng.uniform(0.5, 0.8)))


def jumping(shot: Shot, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Objects and camera stand still for 2 to 5 frames, then jump to where they should be by then.

    Breaks: smoothness of motion. Time only: every frame is one of the real motion; sensor noise and light run on.
    """
    ends = np.cumsum(rng.integers(2, 6, shot.clip.frames))
    start = np.r_[0, ends][np.searchsorted(ends, np.arange(shot.clip.frames), side="right")]
    shot.tracks, shot.view = animate(shot.clip, shot.progress[start])
    return develop(shot, expose(shot))


def popping(shot: Shot, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One more object is there in some stretches of 3 to 6 frames and gone in between, from one frame to the next.

    Breaks: permanence of objects. Time only: real clips have one or two objects as well, which come and go over the frame's edge alone.
    """
    clip = shot.clip
    extra, motion = random_object(rng, spread=0.48), str(rng.choice(list(MOTIONS)))
    scene = replace(clip.scene, objects=(extra,))
    (track,), _ = animate(replace(clip, scene=scene, motions=(Motion(motion, rng.uniform(*REACH["B"])),)), shot.progress)
    turns = np.cumsum(rng.integers(3, 7, clip.frames))
    track.opacity = ((np.searchsorted(turns, np.arange(clip.frames), side="right") + rng.integers(2)) % 2).astype(np.float32)
    shot.tracks = [*shot.tracks, track] if len(shot.tracks) < MAX_OBJECTS else [*shot.tracks[:-1], track]
    return develop(shot, expose(shot))


# ---- held out for the test


def morphing(shot: Shot, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One object turns into another shape in the course of the clip.

    Breaks: identity of a shape over time. Time, and weakly a frame: the first and last look real, halfway shapes have no name.
    """
    track = _prominent(shot, rng)
    track.morph_into = str(rng.choice([shape for shape in SHAPES if shape != track.thing.shape]))
    track.morph = 1 / (1 + np.exp(-(shot.progress - rng.uniform(-0.3, 0.3)) / 0.15))
    return develop(shot, expose(shot))


def ghosting(shot: Shot, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Earlier frames shine through: every frame keeps 40 to 60 % of the one before.

    Breaks: sharp edges of moving objects. A single frame tells where something moves, as trails; where nothing does, none tells.
    """
    frames, keep = expose(shot), rng.uniform(0.4, 0.6)
    for t in range(1, len(frames)):
        frames[t] = keep * frames[t - 1] + (1 - keep) * frames[t]
    return develop(shot, frames)


def frozen_noise(shot: Shot, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The sensor noise is nearly the same pattern in all frames (85 to 95 % of its variance).

    Breaks: independence of noise over time. Time only: every frame has real noise.
    """
    share = rng.uniform(0.85, 0.95)
    shot.noise = (math.sqrt(share) * shot.noise[:1] + math.sqrt(1 - share) * shot.noise).astype(np.float32)
    shot.noise[0] /= math.sqrt(share) + math.sqrt(1 - share)  # there both parts are the same field
    return develop(shot, expose(shot))


def seams(shot: Shot, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The frame is put together from 3 x 3 or 4 x 4 tiles whose brightness differs by about 6 %, as tiled decoding leaves it.

    Breaks: continuity across straight lines at fixed places. Every single frame tells; the tiles hold still.
    """
    tiles = int(rng.integers(3, 5))
    index = np.arange(shot.size) * tiles // shot.size
    gains = 1 + rng.uniform(0.05, 0.07) * rng.standard_normal((tiles, tiles), dtype=np.float32)
    return develop(shot, expose(shot) * gains[index][:, index][..., None])


def colour_drift(shot: Shot, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The colour cast wanders from one draw to another in the course of the clip.

    Breaks: constancy of colours over time. Time only: real clips have the same casts, but keep theirs (only their brightness may fade).
    """
    other, turn = rng.standard_normal((1, 3), dtype=np.float32), (shot.progress[:, None] + 1) * (math.pi / 4)
    shot.casts = np.cos(turn) * shot.casts + np.sin(turn) * other  # unit variance on the whole way
    return develop(shot, expose(shot))


def wobble(shot: Shot, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Everything is shifted by up to 1.5 pixels, by another smooth field in every frame, as if seen through moving water.

    Breaks: rigidity over time. Hardly a single frame: straight edges bend by a pixel, round ones cannot tell.
    """
    frames, count, cells = expose(shot), shot.clip.frames, 5
    knots = np.linspace(0, cells - 1.001, shot.size)
    low, part = knots.astype(int), (knots % 1).astype(np.float32)
    grid = rng.standard_normal((count, 2, cells, cells), dtype=np.float32) * (rng.uniform(0.5, 0.8) * shot.size / 64)
    rows = grid[:, :, low] * (1 - part[:, None]) + grid[:, :, low + 1] * part[:, None]
    field = rows[..., low] * (1 - part) + rows[..., low + 1] * part  # (T, 2, H, W), pixels
    y, x = np.clip(field + np.mgrid[: shot.size, : shot.size].astype(np.float32), 0, shot.size - 1.001).swapaxes(0, 1)
    top, left, t = y.astype(int), x.astype(int), np.arange(count)[:, None, None]
    y, x = (y % 1)[..., None], (x % 1)[..., None]
    upper = frames[t, top, left] * (1 - x) + frames[t, top, left + 1] * x
    lower = frames[t, top + 1, left] * (1 - x) + frames[t, top + 1, left + 1] * x
    return develop(shot, upper * (1 - y) + lower * y)


def _prominent(shot: Shot, rng: np.random.Generator) -> Track:
    """An object that fills at least as much of the picture as the others, on average."""
    sizes = ["small", "medium", "large"]
    biggest = max(sizes.index(track.thing.size) for track in shot.tracks)
    return shot.tracks[int(rng.choice([i for i, track in enumerate(shot.tracks) if sizes.index(track.thing.size) == biggest]))]


def _blur(frames: Array, sigma: float) -> Array:
    """Gaussian blur in both directions, edges repeated."""
    taps = np.exp(-0.5 * (np.arange(-3, 4) / sigma) ** 2).astype(np.float32)
    for axis in (1, 2):
        padded = np.pad(frames, [(3, 3) if i == axis else (0, 0) for i in range(4)], mode="edge")
        length = frames.shape[axis]
        frames = sum(tap / taps.sum() * padded.take(range(k, k + length), axis) for k, tap in enumerate(taps))
    return frames


TRAIN: dict[str, Generator] = {
    "flicker": flicker, "boiling": boiling, "checkerboard": checkerboard, "smoothing": smoothing, "jumping": jumping, "popping": popping,
}  # fmt: skip
TEST: dict[str, Generator] = {
    "colour_drift": colour_drift, "wobble": wobble, "frozen_noise": frozen_noise,
    "morphing": morphing, "ghosting": ghosting, "seams": seams,
}  # fmt: skip
GENERATORS = TRAIN | TEST
TIME_ONLY = ("flicker", "boiling", "jumping", "popping", "frozen_noise", "colour_drift")  # no single frame can tell
