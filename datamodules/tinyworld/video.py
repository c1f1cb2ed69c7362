"""Moving pictures of the tiny world: scenes whose objects and camera move, filmed under a light by a noisy sensor.

A `Clip` is the description (plain data, JSON). `prepare` works out a `Shot`: every quantity that the filming needs, drawn from
the clip's key. `expose` paints the frames, `develop` adds light, colour cast and sensor noise. A real clip is exactly
``develop(shot, expose(shot))``; a "video generator" (generators.py) spoils one of these quantities on the way.

Everything that a generator spoils over time is also there in real clips, but steady: uneven light, stains, colour cast, noise.
Time runs as s from -1 (first frame) to 1 (last frame), whatever the number of frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.tinyworld.backgrounds import Array
from datamodules.tinyworld.scene import Scene, Style, Track, View, caption, mottle, paint, random_scene
from genlab.training.randomness import keyed_rng


@dataclass
class Path:
    """How a pose departs from the object's place, each a number or an array (T,): world units, log2 of the size, degrees."""

    x: Array | float = 0.0
    y: Array | float = 0.0
    grow: Array | float = 0.0
    turn: Array | float = 0.0


def _orbit(s: Array, reach: float, clockwise: int) -> Path:
    turn = clockwise * math.pi * s * 0.9
    return Path(x=0.8 * reach * np.cos(turn), y=0.8 * reach * np.sin(turn))


MOTIONS: dict[str, tuple[str, Callable[[Array, float], Path]]] = {  # name -> words, path over s for a reach of about 0.5
    "slide_right": ("sliding to the right", lambda s, reach: Path(x=reach * s)),
    "slide_left": ("sliding to the left", lambda s, reach: Path(x=-reach * s)),
    "rise": ("rising", lambda s, reach: Path(y=-reach * s)),
    "sink": ("sinking", lambda s, reach: Path(y=reach * s)),
    "spin_cw": ("spinning clockwise", lambda s, reach: Path(turn=300 * reach * s)),
    "spin_ccw": ("spinning counterclockwise", lambda s, reach: Path(turn=-300 * reach * s)),
    "orbit_cw": ("circling clockwise", lambda s, reach: _orbit(s, reach, 1)),
    "orbit_ccw": ("circling counterclockwise", lambda s, reach: _orbit(s, reach, -1)),
    "approach": ("coming closer", lambda s, reach: Path(grow=1.2 * reach * s)),
    "recede": ("going away", lambda s, reach: Path(grow=-1.2 * reach * s)),
    "speed_up": ("speeding up to the right", lambda s, reach: Path(x=reach * (2 * ((s + 1) / 2) ** 2.2 - 1))),
    "brake": ("braking to the right", lambda s, reach: Path(x=reach * (1 - 2 * ((1 - s) / 2) ** 2.2))),
    "sway": ("swaying from side to side", lambda s, reach: Path(x=0.7 * reach * np.sin(2 * math.pi * s))),
    "bounce": ("bouncing", lambda s, reach: Path(y=0.6 * reach - 1.2 * reach * np.abs(np.sin(1.5 * math.pi * s)))),
    "rock": ("rocking like a pendulum", lambda s, reach: Path(turn=90 * reach * np.sin(2 * math.pi * s))),
    "zigzag": ("zigzagging", lambda s, reach: Path(x=reach * s, y=0.5 * reach * np.sin(2.5 * math.pi * s))),
    "pulse": ("pulsing", lambda s, reach: Path(grow=0.7 * reach * np.sin(2 * math.pi * s))),
}
REVERSED = {  # played backwards, the left ones are the right ones: no single frame tells them apart
    "slide_right": "slide_left", "rise": "sink", "spin_cw": "spin_ccw", "orbit_cw": "orbit_ccw", "approach": "recede",
}  # fmt: skip
CAMERAS: dict[str, Callable[[Array, float], tuple[Array | float, Array | float, Array | float]]] = {  # -> x, y, zoom
    "still": lambda s, reach: (0.0, 0.0, 1.0),
    "pan_right": lambda s, reach: (reach * s, 0.0, 1.0),
    "pan_left": lambda s, reach: (-reach * s, 0.0, 1.0),
    "tilt_up": lambda s, reach: (0.0, -reach * s, 1.0),
    "zoom_in": lambda s, reach: (0.0, 0.0, 1 + reach * (1 + s) / 2),
    "zoom_out": lambda s, reach: (0.0, 0.0, 1 + reach * (1 - s) / 2),
    "handheld": lambda s, reach: (0.25 * reach * np.sin(4.3 * s + 1), 0.25 * reach * np.sin(5.9 * s), 1 + 0.3 * reach),
}
STEADY: dict[Style, tuple[str, ...]] = {"A": ("still", "pan_right", "zoom_in"), "B": tuple(CAMERAS)}
REACH: dict[Style, tuple[float, float]] = {"A": (0.4, 0.55), "B": (0.2, 0.5)}
MAX_OBJECTS = 2  # of a clip


@dataclass(frozen=True)
class Motion:
    """A name of MOTIONS and how far it goes: world units from the middle to either end."""

    name: str
    reach: float


@dataclass(frozen=True)
class Clip:
    """What a clip shows and how it was filmed.

    Args:
        motions: One per object of the scene.
        camera: A name of CAMERAS; ``camera_reach`` in world units, at most 0.3.
        exposure: Relative brightness; ``dimming`` its relative change from first to last frame.
        unevenness: Standard deviation of the brightness of the light over a 4 x 4 grid, the same in all frames.
        cast: Standard deviation of the gains of the three colour channels, the same in all frames.
        noise: Standard deviation of the sensor noise of a white pixel, in units of full scale; new in every frame.
        key: Names the random fields that the filming draws.
    """

    scene: Scene
    motions: tuple[Motion, ...]
    camera: str
    camera_reach: float
    exposure: float
    dimming: float
    unevenness: float
    cast: float
    noise: float
    frames: int
    fps: int
    key: str

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Clip:
        """The clip that `dataclasses.asdict` (and JSON) made a record of."""
        motions = tuple(Motion(**each) for each in record["motions"])
        return cls(**{**record, "scene": Scene.from_dict(record["scene"]), "motions": motions})

    @property
    def caption(self) -> str:
        """The clip in words."""
        return caption(self.scene, tuple(MOTIONS[motion.name][0] for motion in self.motions))


def random_clip(key: str, style: Style, frames: int = 16, fps: int = 8, objects: int | None = None) -> Clip:
    """The clip named ``key``: one or two objects (or ``objects``), a motion for each, and for a third of the clips a moving camera."""
    rng = keyed_rng("clip", style, key)
    scene = random_scene(key, style, objects or int(rng.integers(1, MAX_OBJECTS + 1)), spread=0.48)
    motions = tuple(Motion(str(rng.choice(list(MOTIONS))), round(rng.uniform(*REACH[style]), 4)) for _ in scene.objects)
    camera = "still" if rng.random() < 0.65 else str(rng.choice(STEADY[style][1:]))
    return Clip(
        scene=scene,
        motions=motions,
        camera=camera,
        camera_reach=round(rng.uniform(0.05, 0.15), 4),
        exposure=round(rng.uniform(0.85, 1.08), 4),
        dimming=round(rng.uniform(-0.25, 0.25) if rng.random() < 0.3 else 0.0, 4),
        unevenness=0.13,
        cast=0.07,
        noise=round(rng.uniform(0.012, 0.03), 4),
        frames=frames,
        fps=fps,
        key=key,
    )


@dataclass
class Shot:
    """Everything that the filming of a clip needs. First axis T, or 1 for what does not change over time.

    Attributes:
        tracks: Where the objects are; ``view``: where the camera looks.
        stains: Mottle of the background, (1, C, C), unit variance.
        cells: Unevenness of the light, (1, 4, 4), unit variance.
        casts: Colour cast, (1, 3), unit variance.
        noise: Sensor noise, (T, H, W), unit variance, independent in space and time.
    """

    clip: Clip
    size: int
    tracks: list[Track]
    view: View
    stains: Array
    cells: Array
    casts: Array
    noise: Array
    progress: Array = field(repr=False)  # s of every frame


def prepare(clip: Clip, size: int = 64) -> Shot:
    """Works out tracks and draws all random fields of the clip, each from its own key."""
    s = np.linspace(-1, 1, clip.frames, dtype=np.float32)
    tracks, view = animate(clip, s)
    return Shot(
        clip,
        size,
        tracks,
        view,
        stains=mottle(clip.scene, size),
        cells=keyed_rng("light", clip.key).standard_normal((1, 4, 4), dtype=np.float32),
        casts=keyed_rng("cast", clip.key).standard_normal((1, 3), dtype=np.float32),
        noise=keyed_rng("noise", clip.key).standard_normal((clip.frames, size, size), dtype=np.float32),
        progress=s,
    )


def animate(clip: Clip, s: Array) -> tuple[list[Track], View]:
    """Tracks of the objects and of the camera at the times ``s`` (T,), -1 = start and 1 = end of the clip."""
    zero = np.zeros_like(s)
    tracks = []
    for thing, motion in zip(clip.scene.objects, clip.motions, strict=True):
        path = MOTIONS[motion.name][1](s, motion.reach)
        x, y = zero + thing.x + path.x, zero + thing.y + path.y
        tracks.append(Track(thing, x, y, np.exp2(zero + path.grow), zero + thing.angle + path.turn, zero + 1, zero))
    middle_x, middle_y, zoom = CAMERAS[clip.camera](s, clip.camera_reach)
    return tracks, View(zero + middle_x, zero + middle_y, zero + zoom)


def expose(shot: Shot) -> Array:
    """The frames as a perfect camera would see them in perfect light, (T, H, W, 3) in about [0, 1]."""
    return paint(shot.clip.scene, shot.tracks, shot.view, shot.size, shot.stains)


def develop(shot: Shot, frames: Array) -> NDArray[np.uint8]:
    """Light, colour cast and sensor noise over the exposed frames: (T, H, W, 3) uint8 RGB."""
    clip, size = shot.clip, (shot.size, shot.size)
    grids = [Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC) for cells in shot.cells]
    light = 1 + clip.unevenness * np.stack([np.asarray(grid) for grid in grids])  # (T or 1, H, W)
    gain = clip.exposure * (1 + 0.5 * clip.dimming * shot.progress)[:, None] * (1 + clip.cast * shot.casts)  # (T, 3)
    lit = frames * light[..., None] * gain[:, None, None]
    grain = clip.noise * (0.5 + 0.5 * lit[..., 1]) * shot.noise  # bright pixels are noisier
    return ((lit + grain[..., None]).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def film(clip: Clip, size: int = 64) -> NDArray[np.uint8]:
    """The clip as a real camera records it, (T, size, size, 3) uint8 RGB."""
    shot = prepare(clip, size)
    return develop(shot, expose(shot))
