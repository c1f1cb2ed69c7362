"""A cartoon face: who it is, how it looks at the moment, and the painter of both.

The painter gives layers, back to front, each one a part ("skin", "hair", "iris", ...) with its coverage and shade. What a part is made of
is for `compose` to say: three colours make a picture, thirty bands a spectral cube, ones and zeros a mask that is exact.

Face units: the face reaches from v = -1 (crown) to v = 1 (chin), u to the right of the picture, v down.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from datamodules.tinyworld.backgrounds import Array
from genlab.training.randomness import keyed_rng

Colour = tuple[float, float, float]
Layer = tuple[str, Array, Array | float]  # part, coverage in [0, 1] and shade (a factor), both (T, H, W)

SKINS: tuple[Colour, ...] = (
    (0.98, 0.85, 0.76), (0.95, 0.77, 0.65), (0.88, 0.68, 0.53), (0.78, 0.57, 0.42), (0.62, 0.43, 0.31), (0.45, 0.30, 0.22),
)  # fmt: skip
HAIRS: tuple[Colour, ...] = (
    (0.10, 0.08, 0.09), (0.28, 0.17, 0.11), (0.46, 0.28, 0.15), (0.86, 0.68, 0.36), (0.66, 0.27, 0.12), (0.62, 0.62, 0.64),
)  # fmt: skip
IRISES: tuple[Colour, ...] = ((0.30, 0.18, 0.10), (0.20, 0.42, 0.62), (0.26, 0.46, 0.28), (0.42, 0.36, 0.24))
SHIRTS: tuple[Colour, ...] = (
    (0.20, 0.36, 0.62), (0.70, 0.24, 0.26), (0.24, 0.50, 0.40), (0.86, 0.72, 0.36), (0.42, 0.32, 0.54), (0.88, 0.88, 0.86),
    (0.25, 0.27, 0.31),
)  # fmt: skip
STYLES = ("short", "parted", "long", "curly", "bun", "bald")
FACE_PARTS = ("skin", "blush", "nose", "lip", "mouth", "white", "iris", "pupil", "lid", "brow", "beard", "glasses")
EYE_HEIGHT, MOUTH_HEIGHT, NOSE_TIP = -0.06, 0.53, 0.26


@dataclass(frozen=True)
class Person:
    """Who it is. Lengths in face units; colours in [0, 1].

    Args:
        width: Half the width of the face at the height of the eyes.
        jaw: How much narrower the jaw is, 0 to 0.4.
        gap: Of an eye's middle from that of the face.
        bow: How far the corners of the mouth are raised.
    """

    skin: Colour
    hair: Colour
    iris: Colour
    shirt: Colour
    style: str
    width: float
    jaw: float
    gap: float
    eye: float
    brow: float
    nose: float
    mouth: float
    bow: float
    beard: bool
    glasses: bool

    @property
    def traits(self) -> Array:
        """(16,) numbers of about the same spread, from which an identity can be read."""
        shape = (
            (self.width - 0.8) / 0.04, (self.jaw - 0.22) / 0.08, (self.gap - 0.33) / 0.03, (self.eye - 0.14) / 0.02,
            (self.brow - 0.07) / 0.02, (self.nose - 0.1) / 0.02, (self.mouth - 0.27) / 0.04, (self.bow - 0.04) / 0.03,
            2.0 * self.beard - 1, 2.0 * self.glasses - 1,
        )  # fmt: skip
        tone, hair = (np.asarray(colour) for colour in (self.skin, self.hair))
        looks = (6 * (tone.mean() - 0.65), 12 * (tone[0] - tone[2] - 0.28), 4 * (hair.mean() - 0.35), 6 * (hair[0] - hair[2] - 0.15))
        return np.array([*shape, *looks, STYLES.index(self.style) - 2.5, 4 * (self.iris[2] - self.iris[0])], np.float32)


@dataclass(frozen=True)
class Look:
    """How the face looks in T frames; arrays (T,) or numbers: eyes closed 0 to 1, gaze in irises, mouth open 0 to 1."""

    blink: Array | float = 0.0
    gaze_u: Array | float = 0.0
    gaze_v: Array | float = 0.0
    opening: Array | float = 0.0


def random_person(*key: int | str) -> Person:
    """The person whom the key names."""
    rng = keyed_rng("person", *key)

    def some(pool: Sequence[Colour], spread: float = 0.03) -> Colour:
        red, green, blue = np.clip(np.asarray(pool[int(rng.integers(len(pool)))]) + rng.uniform(-spread, spread), 0.03, 0.99)
        return round(float(red), 4), round(float(green), 4), round(float(blue), 4)

    def length(low: float, high: float) -> float:
        return round(float(rng.uniform(low, high)), 4)

    tone = int(rng.integers(len(SKINS)))
    skin = some(SKINS[tone : tone + 1])
    hair = some(HAIRS if tone < 4 else HAIRS[:2])
    style = str(rng.choice(STYLES, p=(0.22, 0.22, 0.22, 0.16, 0.12, 0.06)))
    beard = bool(rng.random() < (0.35 if style in ("short", "parted", "bald") else 0.0))
    return Person(
        skin, hair, some(IRISES if tone < 4 else IRISES[:1]), some(SHIRTS), style, length(0.74, 0.86), length(0.1, 0.34),
        length(0.29, 0.37), length(0.11, 0.165), length(0.045, 0.095), length(0.07, 0.13), length(0.21, 0.33), length(-0.01, 0.09), beard,
        bool(rng.random() < 0.2),
    )  # fmt: skip


def outline(person: Person, angle: Array | float) -> tuple[Array, Array]:
    """Points (u, v) of the face's edge; 0 degrees is on the right of the picture, 90 the chin."""
    turn = np.radians(np.asarray(angle, np.float64))
    v = np.sin(turn)
    return person.width * _taper(person, v) * np.cos(turn), v


def outward(person: Person, angle: Array | float) -> tuple[Array, Array]:
    """Unit vectors (u, v) that stand on the edge, outward."""
    (u0, v0), (u1, v1) = (outline(person, np.asarray(angle) + step) for step in (-0.5, 0.5))
    along_u, along_v = u1 - u0, v1 - v0
    size = np.hypot(along_u, along_v)
    return along_v / size, -along_u / size


def landmarks(person: Person) -> Array:
    """(68, 2) points (u, v) of the face at rest in the order of iBUG: jaw, brows, nose, eyes, mouth, from the left of the picture.

    The jaw's points lie just inside the edge.
    """
    jaw = np.stack(outline(person, np.linspace(180, 0, 17)), 1) * 0.96
    arch = np.linspace(-1, 1, 5)
    brow_v = EYE_HEIGHT - 1.75 * person.eye - person.brow - 0.035 * (1 - arch**2)
    brows = [np.stack((side * person.gap + 0.17 * arch, brow_v), 1) for side in (-1, 1)]
    bridge = np.stack((np.zeros(4), np.linspace(EYE_HEIGHT + 0.02, NOSE_TIP - 0.04, 4)), 1)
    wings = np.stack((person.nose * np.linspace(-1, 1, 5), NOSE_TIP + 0.05 * (1 - np.abs(np.linspace(-1, 1, 5)))), 1)
    around = np.radians([180, 240, 300, 0, 60, 120])
    eyes = [
        np.stack((side * person.gap + 1.1 * person.eye * np.cos(around), EYE_HEIGHT + 0.7 * person.eye * np.sin(around)), 1)
        for side in (-1, 1)
    ]

    def lips(count: int, reach: float, thick: float) -> Array:
        turn = np.radians(180 + np.arange(count) * 360 / count)
        u = reach * np.cos(turn)
        return np.stack((u, _mouth_line(person, u) + thick * np.sin(turn)), 1)

    mouth = [lips(12, 0.95 * person.mouth, 0.06), lips(8, 0.7 * person.mouth, 0.015)]
    return np.concatenate([jaw, *brows, bridge, wings, *eyes, *mouth]).astype(np.float32)


# ---- the painter


def cover(distance: Array, unit: float) -> Array:
    """Coverage of a shape whose signed distance is in face units, negative inside.

    Args:
        unit: Pixels per face unit.
    """
    return np.clip(0.5 - distance * unit, 0, 1)


def compose(layers: Iterable[Layer], palette: Mapping[str, Sequence[float] | Array], shape: tuple[int, ...]) -> Array:
    """Lays the layers over each other, (*shape, C).

    Args:
        palette: What each part is made of, (C,) numbers, or (*shape, C). Parts that it lacks are not painted.
        shape: Of the coverages, (T, H, W).
    """
    channels = np.shape(next(iter(palette.values())))[-1]
    canvas = np.zeros((*shape, channels), np.float32)
    for part, coverage, shade in layers:
        if part in palette:
            paint = np.asarray(palette[part], np.float32)
            if not isinstance(shade, float) or shade != 1.0:
                paint = paint * np.asarray(shade, np.float32)[..., None]
            canvas += (paint - canvas) * coverage[..., None]
    return canvas


def shrink(canvas: Array, factor: int) -> Array:
    """Means of ``factor`` x ``factor`` pixels, (T, H, W, C)."""
    frames, height, width, channels = canvas.shape
    return canvas.reshape(frames, height // factor, factor, width // factor, factor, channels).mean((2, 4))


def face_layers(person: Person, u: Array, v: Array, unit: float, look: Look | None = None, shoulders: bool = True) -> Iterator[Layer]:
    """The person, from the back hair to the fringe.

    Args:
        u: (T, H, W) or broadcastable: where in the face each pixel is. A bent grid gives a bent face.
        v: Likewise.
        unit: Pixels per face unit.
        shoulders: With neck and shirt.
    """
    u, v = np.broadcast_arrays(u, v)
    look = look or Look()
    edge = edge_distance(person, u, v)
    yield from _back_hair(person, u, v, unit)
    if shoulders:
        shirt = _ellipse(u, v, 0, 2.15, 1.75, 1.05)
        yield "shirt", cover(shirt, unit), 1 - 0.25 * np.clip(1 + shirt / 0.3, 0, 1)
        throat = np.maximum(np.abs(u) - 0.42 * person.width / 0.8, np.abs(v - 0.85) - 0.42)
        neck = np.minimum(throat - 0.06, _ellipse(u, v, 0, 1.3, 0.42 * person.width / 0.8 + 0.06, 0.24))
        yield "neck", cover(neck, unit), 0.80 - 0.10 * np.clip(1.25 - v, 0, 0.6)
    for side in (-1, 1):
        ear = _ellipse(u, v, side * person.width * 1.0, 0.02, 0.13, 0.22)
        yield "ear", cover(ear, unit), 0.93 - 0.3 * np.exp(-((ear + 0.09) ** 2) / 0.002)
    light = 1.02 - 0.07 * u - 0.05 * v
    skin = light * (1 - 0.22 * np.clip(1 + edge / 0.3, 0, 1) ** 2)
    yield "skin", cover(edge, unit), skin
    inside = cover(edge, unit)
    for side in (-1, 1):
        away = ((u - side * 0.46) / 0.2) ** 2 + ((v - 0.3) / 0.15) ** 2
        yield "blush", 0.45 * np.exp(-away) * inside, 1.0
    if person.beard:
        beard = np.maximum(edge, _ellipse(u, v, 0, 0.86, 0.78, 0.52))
        moustache = _ellipse(u, v, 0, MOUTH_HEIGHT - 0.12, 0.8 * person.mouth + 0.06, 0.075)
        yield "beard", np.maximum(cover(beard, unit), cover(moustache, unit)), 1.0
    yield from _nose(person, u, v, unit)
    yield from _mouth(person, u, v, unit, look)
    for side in (-1, 1):
        yield from _eye(person, u, v, unit, look, side)
    yield from _front_hair(person, u, v, unit, edge)
    if person.glasses:
        for side in (-1, 1):
            rim = np.abs(_ellipse(u, v, side * person.gap, EYE_HEIGHT + 0.01, 1.75 * person.eye, 1.6 * person.eye)) - 0.022
            yield "glasses", cover(rim, unit), 1.0
        bridge = np.maximum(np.abs(v - EYE_HEIGHT + 0.03) - 0.02, np.abs(u) - person.gap + 1.7 * person.eye)
        yield "glasses", cover(bridge, unit), 1.0


def palette_of(person: Person) -> dict[str, Colour]:
    """Colours of the person's parts."""
    red, green, blue = person.skin
    lip = (0.30 + 0.52 * red, 0.62 * green, 0.66 * blue)
    dark = (0.62 * red, 0.5 * green, 0.45 * blue)
    hair = person.hair
    shadow = (0.55 * hair[0] + 0.25 * red, 0.55 * hair[1] + 0.2 * green, 0.55 * hair[2] + 0.18 * blue)  # skin shines through
    return {
        "skin": person.skin, "neck": person.skin, "ear": person.skin, "lid": (0.9 * red, 0.84 * green, 0.8 * blue),
        "blush": (min(1.0, red * 1.0 + 0.02), green * 0.72, blue * 0.72), "nose": dark, "lip": lip, "mouth": (0.30, 0.08, 0.09),
        "white": (0.96, 0.96, 0.95), "iris": person.iris, "pupil": (0.04, 0.04, 0.05), "glint": (1.0, 1.0, 1.0),
        "brow": (0.8 * hair[0], 0.8 * hair[1], 0.8 * hair[2]), "hair": hair, "beard": shadow, "glasses": (0.12, 0.12, 0.14),
        "shirt": person.shirt,
    }  # fmt: skip


def _taper(person: Person, v: Array) -> Array:
    return 1 - person.jaw * np.clip(v, 0, 1.2) ** 2 * 0.8


def edge_distance(person: Person, u: Array, v: Array) -> Array:
    """Signed distance of the face's edge, to first order."""
    half = person.width * _taper(person, v)
    radius = np.hypot(u / half, v) + 1e-6
    return (radius - 1) * radius / np.hypot(u / half**2, v).clip(1e-3)


def _ellipse(u: Array, v: Array, middle_u: float, middle_v: float, half_u: float, half_v: float) -> Array:
    du, dv = (u - middle_u) / half_u, (v - middle_v) / half_v
    radius = np.hypot(du, dv) + 1e-6
    return (radius - 1) * radius / np.hypot(du / half_u, dv / half_v).clip(1e-3)


def _mouth_line(person: Person, u: Array) -> Array:
    return MOUTH_HEIGHT + person.bow * (0.5 - (u / person.mouth) ** 2)


def _nose(person: Person, u: Array, v: Array, unit: float) -> Iterator[Layer]:
    side = np.exp(-(((u - 0.75 * person.nose) / 0.035) ** 2)) * np.clip((v + 0.05) / 0.3, 0, 1) * (v < NOSE_TIP)
    yield "nose", 0.30 * side, 1.0
    curve = np.abs(v - (NOSE_TIP + 0.06 * (1 - (u / person.nose) ** 2))) - 0.016
    yield "nose", 0.75 * cover(np.maximum(curve, np.abs(u) - person.nose), unit), 1.0
    light = ((u + 0.02) / 0.05) ** 2 + ((v - NOSE_TIP + 0.04) / 0.06) ** 2
    yield "glint", 0.22 * np.exp(-light), 1.0


def _mouth(person: Person, u: Array, v: Array, unit: float, look: Look) -> Iterator[Layer]:
    opening = _per_frame(look.opening)
    reach = np.sqrt(np.clip(1 - (u / person.mouth) ** 2, 0, 1))
    height = np.abs(v - _mouth_line(person, u) - 0.02 * opening)
    ends = np.abs(u) - person.mouth
    yield "lip", cover(np.maximum(height - (0.075 + 0.06 * opening) * reach, ends), unit), 1.0
    yield "mouth", cover(np.maximum(height - (0.014 + 0.075 * opening) * reach, ends), unit), 1.0


def _eye(person: Person, u: Array, v: Array, unit: float, look: Look, side: int) -> Iterator[Layer]:
    blink, gaze_u, gaze_v = (_per_frame(value) for value in (look.blink, look.gaze_u, look.gaze_v))
    du, dv = u - side * person.gap, v - EYE_HEIGHT
    ball = np.hypot(du / 1.2, dv) - 0.82 * person.eye
    opened = np.maximum(ball, (np.abs(dv) - 0.82 * person.eye * (1 - blink)))
    white = cover(opened, unit)
    yield "lid", cover(ball - 0.035, unit), 1.0
    yield "white", white, 1.0
    iris_u, iris_v = du - 0.25 * person.eye * gaze_u, dv - 0.2 * person.eye * gaze_v
    radius = np.hypot(iris_u, iris_v)
    yield "iris", cover(radius - 0.56 * person.eye, unit) * white, 1.0
    yield "pupil", cover(radius - 0.28 * person.eye, unit) * white, 1.0
    yield "glint", cover(np.hypot(iris_u + 0.2 * person.eye, iris_v + 0.22 * person.eye) - 0.17 * person.eye, unit) * white, 1.0
    lash = np.abs(np.hypot(du / 1.2, dv + 0.82 * person.eye * blink * (dv < 0)) - 0.86 * person.eye) - 0.022
    closed = np.maximum(np.abs(dv - 0.12 * person.eye) - 0.02, np.abs(du) - person.eye)
    line = np.maximum(lash, dv) * (1 - blink) + closed * blink
    yield "pupil", 0.85 * cover(line, unit), 1.0
    arch = EYE_HEIGHT - 1.75 * person.eye - 0.9 * person.brow - 0.05 * (1 - (du / 0.2) ** 2) + 0.03 * side * du
    yield "brow", cover(np.maximum(np.abs(v - arch) - 0.5 * person.brow, np.abs(du) - 0.19), unit), 1.0


def _back_hair(person: Person, u: Array, v: Array, unit: float) -> Iterator[Layer]:
    width = person.width
    if person.style == "long":
        lock = np.maximum(_ellipse(u, v, 0, 0.12, 1.3 * width, 1.3), v - 1.12)
        yield "hair", cover(lock, unit), 0.78 + 0.1 * np.sin(u * 22)
    if person.style == "bun":
        yield "hair", cover(_ellipse(u, v, 0, -1.22, 0.34, 0.3), unit), 0.9
    if person.style == "curly":
        yield "hair", cover(_curls(person, u, v), unit), 0.82 + 0.12 * np.sin(u * 15) * np.sin(v * 15)
    if person.style != "bald":
        yield "hair", cover(np.maximum(_ellipse(u, v, 0, -0.16, 1.09 * width, 0.99), v - 0.12), unit), 0.85


def _curls(person: Person, u: Array, v: Array) -> Array:
    distance = np.full(np.shape(u), 9.0, np.float32)
    for angle in np.radians(np.linspace(160, 380, 9)):
        middle_u, middle_v = 1.03 * person.width * math.cos(angle), -0.3 + 0.82 * math.sin(angle)
        distance = np.minimum(distance, np.hypot(u - middle_u, v - middle_v) - 0.3)
    return distance


def _front_hair(person: Person, u: Array, v: Array, unit: float, edge: Array) -> Iterator[Layer]:
    if person.style == "bald":
        yield "glint", 0.25 * np.exp(-(((u + 0.25) / 0.2) ** 2) - ((v + 0.75) / 0.1) ** 2), 1.0
        return
    width = person.width
    cap = _ellipse(u, v, 0, -0.16, 1.09 * width, 0.99)
    if person.style == "parted":
        line = -0.80 + 0.55 * np.clip((u + 0.28) / width, 0, 2) ** 1.5 + 0.9 * np.clip((-0.28 - u) / width, 0, 2)
    elif person.style in ("long", "bun"):
        line = -0.74 + 0.62 * (u / width) ** 2 + 0.35 * np.abs(u / width) ** 6
    elif person.style == "curly":
        line = -0.60 + 0.05 * np.sin(u * 18) + 0.25 * (u / width) ** 4
    else:
        line = -0.62 + 0.04 * np.sin(u * 26) + 0.42 * np.clip(np.abs(u / width) - 0.55, 0, 1)
    steep = 0.75  # the line is slanted, its distance shorter than the height over it
    shine = 1 + 0.22 * np.exp(-((np.hypot(u + 0.1, v + 0.05) - 0.82) ** 2) / 0.006) + 0.05 * np.sin(u * 30)
    yield "hair", cover(np.maximum(cap, (v - line) * steep), unit), shine


def _per_frame(value: Array | float) -> Array:
    return np.asarray(value, np.float32).reshape(-1, 1, 1)
