"""What a picture of the tiny world shows, and the painter that shows it.

First half: the description. A `Scene` is a background and a few objects, plain data that goes to JSON and into a caption.
Second half: the painter. It turns a scene and one `Track` per object (where it is in each frame) into pixels; a still picture
is the case of one frame. Shapes are signed distance functions, so edges are anti-aliased at any size and blend into each other.

World units: the frame is [-1, 1] x [-1, 1], x to the right, y down; angles in degrees, clockwise. Style A is what tiny models
are pretrained on (glossy objects, indoor patterns), style B is what benchmarks show (outlined matte objects, landscapes).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.tinyworld.backgrounds import MARGIN, Array, canvas_pixels, paint_backdrop, smooth_noise
from genlab.training.randomness import keyed_rng

RENDERER_VERSION = 2  # raise it whenever pixels or captions change: cached datasets and committed weights name it

Style = Literal["A", "B"]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (216, 52, 48), "orange": (240, 132, 38), "yellow": (246, 208, 62), "green": (62, 160, 78),
    "cyan": (60, 188, 200), "blue": (52, 96, 210), "purple": (134, 76, 190), "pink": (240, 130, 178),
}  # fmt: skip
SIZES = {"small": 0.25, "medium": 0.35, "large": 0.46}  # radius
TEXTURES = ("plain", "striped", "dotted", "checked")
BACKGROUNDS: dict[Style, dict[str, str]] = {
    "A": {
        "studio": "in a studio", "fading": "on a fading wall", "paper": "on paper",
        "stripes": "on a striped wall", "dots": "on a dotted wall", "checks": "on a checked floor",
    },
    "B": {
        "hills": "in front of hills", "sea": "above the sea", "lights": "in front of blurred lights",
        "bricks": "on a brick wall", "clouds": "in the clouds", "wood": "on a wooden table",
    },
}  # fmt: skip


# ---- the description


@dataclass(frozen=True)
class SceneObject:
    """One object: vocabulary words, and the position and angle of its middle."""

    shape: str
    colour: str
    texture: str
    size: str
    x: float
    y: float
    angle: float

    @property
    def words(self) -> str:
        """"small red striped star"."""  # fmt: skip
        return " ".join(word for word in (self.size, self.colour, self.texture, self.shape) if word != "plain")


@dataclass(frozen=True)
class Scene:
    """A background and the objects on it, last one in front.

    Args:
        mottle: Strength of the stain-like texture on the background (standard deviation of its relative brightness).
        light: Direction that the light comes from, degrees clockwise from the right.
        key: Names the random details of the background (hues, the course of the hills, ...).
    """

    style: Style
    background: str
    objects: tuple[SceneObject, ...]
    mottle: float
    light: float
    key: str

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Scene:
        """The scene that `dataclasses.asdict` (and JSON) made a record of."""
        return cls(**{**record, "objects": tuple(SceneObject(**each) for each in record["objects"])})


def random_object(rng: np.random.Generator, sizes: tuple[str, ...] = tuple(SIZES), spread: float = 0.6) -> SceneObject:
    """An object with every attribute drawn evenly, at most ``spread`` from the middle in x and in y."""
    shape, colour, texture, size = (str(rng.choice(list(pool))) for pool in (SHAPES, COLOURS, TEXTURES, sizes))
    x, y, angle = (round(rng.uniform(-reach, reach), 4) for reach in (spread, spread, 20.0))
    return SceneObject(shape, colour, texture, size, x, y, angle)


def random_scene(key: str, style: Style, objects: int | None = None, spread: float = 0.6) -> Scene:
    """The scene named ``key``: 1 to 4 objects (or ``objects``), kept apart as far as a few tries allow."""
    rng = keyed_rng("scene", style, key)
    count = objects or int(rng.integers(1, 5))
    sizes = tuple(SIZES) if count <= 2 else ("small", "medium")
    placed: list[SceneObject] = []
    for _ in range(count):
        tries = [random_object(rng, sizes, spread) for _ in range(6)]
        placed.append(max(tries, key=lambda new: min((_gap(new, old) for old in placed), default=0.0)))
    background = str(rng.choice(list(BACKGROUNDS[style])))
    mottle = rng.uniform(0.01, 0.03) if style == "A" else rng.uniform(0.06, 0.11)
    return Scene(style, background, tuple(placed), round(mottle, 4), round(rng.uniform(200, 340), 1), key)


def _gap(one: SceneObject, other: SceneObject) -> float:
    return math.hypot(one.x - other.x, one.y - other.y) - SIZES[one.size] - SIZES[other.size]


def caption(scene: Scene, doing: tuple[str, ...] = ()) -> str:
    """The scene in words, complete: "a small red striped star spinning clockwise and a large blue ring in a studio".

    Args:
        doing: One phrase per object ("spinning clockwise"), empty for a still picture.
    """
    parts = [f"a {thing.words} {doing[i]}".rstrip() if doing else f"a {thing.words}" for i, thing in enumerate(scene.objects)]
    listed = " and ".join(parts) if len(parts) < 3 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return f"{listed} {BACKGROUNDS[scene.style][scene.background]}"


# ---- the painter: shapes and textures, in coordinates of the object (u to its right, v down, radius 1)


def _star(u: Array, v: Array) -> Array:
    sector = 2 * math.pi / 5
    angle = np.abs((np.arctan2(u, -v) + sector / 2) % sector - sector / 2)  # five-fold symmetry: only one edge is left
    radius = np.hypot(u, v)
    return 0.415 * (radius * np.cos(angle) - 1) + 0.910 * radius * np.sin(angle)


def _heart(u: Array, v: Array) -> Array:
    u = np.abs(u)
    tip = (u + np.abs(v - 0.1) - 0.78) * 0.7071  # a square on its corner, and a disc on each upper edge
    return np.minimum(tip, np.hypot(u - 0.39, v + 0.29) - 0.55)


SHAPES: dict[str, Callable[[Array, Array], Array]] = {  # signed distances, negative inside
    "circle": lambda u, v: np.hypot(u, v) - 0.88,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.76,
    "triangle": lambda u, v: np.maximum(np.abs(u) * 0.866 - v * 0.5, v) - 0.52,
    "star": _star,
    "heart": _heart,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.66) - 0.24,
    "cross": lambda u, v: np.maximum(np.minimum(np.abs(u), np.abs(v)) - 0.29, np.maximum(np.abs(u), np.abs(v)) - 0.9),
    "moon": lambda u, v: np.maximum(np.hypot(u, v) - 0.9, 0.72 - np.hypot(u - 0.48, v + 0.1)),
}


def _pattern(texture: str, u: Array, v: Array) -> Array | None:
    """Share of the second colour, in [0, 1]; None for a plain surface."""
    if texture == "plain":
        return None
    if texture == "striped":
        return np.clip(0.5 + 1.6 * np.sin(8.0 * v + 0.8), 0, 1)
    waves = np.sin(6.5 * u + 0.6) * np.sin(6.5 * v + 0.6)
    return np.clip(0.5 + 4.0 * (np.abs(waves) - 0.5), 0, 1) if texture == "dotted" else np.clip(0.5 + 3.0 * waves, 0, 1)


@dataclass
class Track:
    """One object in T frames; arrays (T,): middle, factor on its size, degrees clockwise, opacity, share of ``morph_into``."""

    thing: SceneObject
    x: Array
    y: Array
    scale: Array
    angle: Array
    opacity: Array
    morph: Array
    morph_into: str | None = None


@dataclass
class View:
    """The camera in T frames; arrays (T,): middle of the view, and zoom (2 shows half the world). Stays within MARGIN."""

    x: Array
    y: Array
    zoom: Array


def still_track(thing: SceneObject, frames: int = 1) -> Track:
    """The object standing still."""
    one, zero = np.ones(frames, np.float32), np.zeros(frames, np.float32)
    return Track(thing, zero + thing.x, zero + thing.y, one, zero + thing.angle, one.copy(), zero.copy())


def still_view(frames: int = 1) -> View:
    """A camera that shows exactly the frame and does not move."""
    return View(np.zeros(frames, np.float32), np.zeros(frames, np.float32), np.ones(frames, np.float32))


def render(scene: Scene, size: int = 64) -> NDArray[np.uint8]:
    """The still picture, (size, size, 3) uint8 RGB."""
    frames = paint(scene, [still_track(thing) for thing in scene.objects], still_view(), size, mottle(scene, size))
    return (frames[0].clip(0, 1) * 255 + 0.5).astype(np.uint8)


def mottle(scene: Scene, size: int, rng: np.random.Generator | None = None) -> Array:
    """The stain field of the scene's background, (1, C, C), unit variance; another one of its kind with an ``rng``."""
    rng, pixels = rng or keyed_rng("mottle", scene.key), canvas_pixels(size)
    return (0.8 * smooth_noise(rng, 26, pixels) + 0.6 * smooth_noise(rng, 12, pixels))[None]


def paint(scene: Scene, tracks: list[Track], view: View, size: int, stains: Array) -> Array:
    """The scene in motion, (T, size, size, 3) in about [0, 1].

    Args:
        stains: `mottle` of the scene, (1, C, C), or one field per frame, (T, C, C).
    """
    frames = _paint_background(scene, view, size, stains)
    for track in tracks:
        _paint_object(frames, scene, track, view)
    return frames


def _paint_background(scene: Scene, view: View, size: int, stains: Array) -> Array:
    """One canvas at twice the resolution, of which every frame is a window, reduced by a filter that keeps sub-pixel motion smooth."""
    canvas = paint_backdrop(scene.background, keyed_rng("background", scene.style, scene.key), stains.shape[-1])
    still, previous = len(stains) == 1, None
    windows: list[Array] = []
    unit = len(canvas) / (2 * MARGIN)  # canvas pixels
    for t in range(len(view.x)):
        x, y, half = (float(view.x[t]) + MARGIN) * unit, (float(view.y[t]) + MARGIN) * unit, unit / float(view.zoom[t])
        box = (x - half, y - half, x + half, y + half)
        if t == 0 or not still:
            stained = canvas * (1 + scene.mottle * stains[0 if still else t])[..., None]
            picture = Image.fromarray((stained.clip(0, 1) * 255 + 0.5).astype(np.uint8))
        if t == 0 or not still or box != previous:
            window = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box), np.float32) / 255
        windows.append(window)
        previous = box
    return np.stack(windows)


def _paint_object(frames: Array, scene: Scene, track: Track, view: View) -> None:
    """Lays one object and its soft shadow over all frames, in place. All T small boxes around it are computed at once."""
    size, glossy = frames.shape[1], scene.style == "A"
    half = size / 2
    radius = SIZES[track.thing.size] * track.scale * view.zoom * half  # (T,) pixels
    cx, cy = ((track.x - view.x) * view.zoom + 1) * half, ((track.y - view.y) * view.zoom + 1) * half
    light = np.array([math.cos(math.radians(scene.light)), math.sin(math.radians(scene.light))], np.float32)
    drop = np.rint(-light * (0.16 if glossy else 0.26) * float(radius.mean())).astype(int)  # of the shadow, whole pixels
    reach = math.ceil(float(radius.max()) * 1.02 + np.abs(drop).max() + size / 32)
    left, top = np.floor(cx).astype(int) - reach, np.floor(cy).astype(int) - reach
    steps = np.arange(2 * reach, dtype=np.float32) + 0.5
    dx = ((left - cx)[:, None] + steps)[:, None, :] / radius[:, None, None]
    dy = ((top - cy)[:, None] + steps)[:, :, None] / radius[:, None, None]
    turn = np.radians(track.angle)[:, None, None]
    cos, sin = np.cos(turn), np.sin(turn)
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    distance = SHAPES[track.thing.shape](u, v)
    if track.morph_into is not None:
        distance = distance + track.morph[:, None, None] * (SHAPES[track.morph_into](u, v) - distance)

    pixels, opacity = distance * radius[:, None, None], track.opacity[:, None, None]
    alpha = np.clip(0.5 - pixels, 0, 1) * opacity
    softness = size / 24
    shadow = np.clip(0.5 - np.roll(pixels, (drop[1], drop[0]), (1, 2)) / softness, 0, 1) * (opacity * (0.3 if glossy else 0.42))

    colour = np.array(COLOURS[track.thing.colour], np.float32) / 255
    if not glossy:
        colour = colour * 0.86 + 0.04
    second = _pattern(track.thing.texture, u, v)
    flat = colour if second is None else colour + ((1 - colour) * 0.62 if glossy else -0.5 * colour) * second[..., None]
    along = dx * light[0] + dy * light[1]  # towards the light
    shade = (1 + (0.16 if glossy else 0.24) * along) * (1 - 0.22 * np.clip(1 + distance / 0.3, 0, 1) ** 2)
    if not glossy:
        shade = shade * (1 - 0.6 * np.clip(1.4 * size / 64 + pixels, 0, 1))  # a dark outline
    rgb = flat * shade[..., None]
    if glossy:
        away = (dx - 0.4 * light[0]) ** 2 + (dy - 0.4 * light[1]) ** 2
        rgb = rgb + (0.4 * np.exp(-away / 0.05))[..., None] * (1 - rgb)

    keep, add = ((1 - alpha) * (1 - shadow))[..., None], rgb * alpha[..., None]
    for t, frame in enumerate(frames):
        x0, y0 = max(left[t], 0), max(top[t], 0)
        x1, y1 = min(left[t] + 2 * reach, size), min(top[t] + 2 * reach, size)
        if x0 < x1 and y0 < y1:
            box = (t, slice(y0 - top[t], y1 - top[t]), slice(x0 - left[t], x1 - left[t]))
            frame[y0:y1, x0:x1] = frame[y0:y1, x0:x1] * keep[box] + add[box]
