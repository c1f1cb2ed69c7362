"""Still pictures of the tiny world as a camera takes them: from somewhere, in some light, smeared where something moves, as JPEG.

A `Photo` is the description (plain data), `take` the camera. Light and noise are those of the clips in video.py.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.tinyworld.backgrounds import MARGIN, Array
from datamodules.tinyworld.scene import BACKGROUNDS, SIZES, Scene, SceneObject, Style, View, mottle, random_object, still_track
from datamodules.tinyworld.video import Clip, Motion, Shot, animate, develop, expose
from genlab.training.randomness import keyed_rng

EXPOSURES = 9  # moments that a smeared picture is the mean of
QUALITY = 90  # of the JPEG files


@dataclass(frozen=True)
class Photo:
    """What a picture shows and how it was taken.

    Args:
        x: Of the middle of the view; ``|x| + 1 / zoom`` is at most 1.4, and the same goes for ``y``.
        zoom: 2 shows half the world.
        aspect: Width / height.
        exposure: Relative brightness; ``unevenness``, ``cast`` and ``noise`` as in `Clip`.
        scales: A factor on the size of each object; none means 1 each.
        motions: What each object does while the picture is taken; none means that all stand still.
        smear: How long it is taken: half-width of the time in which a motion runs from -1 to 1.
    """

    scene: Scene
    x: float = 0.0
    y: float = 0.0
    zoom: float = 1.0
    aspect: float = 1.0
    exposure: float = 1.0
    unevenness: float = 0.0
    cast: float = 0.0
    noise: float = 0.0
    scales: tuple[float, ...] = ()
    motions: tuple[Motion, ...] = ()
    smear: float = 0.0


def random_photo(scene: Scene, zoom: tuple[float, float] = (0.85, 1.25), aim: float = 0.2) -> Photo:
    """A picture of the scene from a random view, at most ``aim`` off the middle, in random light; the scene's key decides."""
    rng = keyed_rng("photo", scene.key)
    factor = rng.uniform(*zoom)
    reach = min(aim, MARGIN - 1 / factor)
    x, y = rng.uniform(-reach, reach, 2)
    return Photo(
        scene=scene,
        x=round(x, 4),
        y=round(y, 4),
        zoom=round(factor, 4),
        aspect=float(rng.choice([0.8, 1.0, 1.25])),
        exposure=round(rng.uniform(0.8, 1.1), 4),
        unevenness=0.13,
        cast=0.07,
        noise=round(rng.uniform(0.012, 0.03), 4),
    )


def photo_scene(key: str, style: Style, things: Sequence[SceneObject], background: str = "", others: int = 0) -> Scene:
    """A scene with the given objects in front and ``others`` small ones of any kind behind them, kept apart as far as a few tries allow.

    Args:
        background: Of either style; drawn from those of the scene's style if left out.
    """
    rng = keyed_rng("photo scene", style, key)
    behind: list[SceneObject] = []
    for _ in range(others):
        tries = [random_object(rng, ("small",), 0.85) for _ in range(8)]
        behind.append(max(tries, key=lambda new: clearance(new, [*things, *behind])))
    chosen = background or str(rng.choice(list(BACKGROUNDS[style])))
    return Scene(style, chosen, (*behind, *things), round(rng.uniform(0.05, 0.1), 4), round(rng.uniform(200, 340), 1), key)


def clearance(thing: SceneObject, others: Sequence[SceneObject]) -> float:
    """Smallest distance between the rims of the object and of any other one, in world units; negative where they overlap."""
    gaps = [math.hypot(thing.x - each.x, thing.y - each.y) - SIZES[thing.size] - SIZES[each.size] for each in others]
    return min(gaps, default=1.0)


def take(photo: Photo, size: int) -> NDArray[np.uint8]:
    """The picture, (H, W, 3) uint8 RGB; its shorter side has ``size`` pixels."""
    longer = round(size * max(photo.aspect, 1 / photo.aspect))
    key, moving = photo.scene.key, bool(photo.motions)
    clip = Clip(
        photo.scene, photo.motions, "still", 0.0, photo.exposure, 0.0, photo.unevenness, photo.cast, photo.noise, frames=1, fps=1, key=key
    )
    s = np.linspace(-photo.smear, photo.smear, EXPOSURES if moving else 1, dtype=np.float32)
    tracks = animate(clip, s)[0] if moving else [still_track(thing) for thing in photo.scene.objects]
    for track, scale in zip(tracks, photo.scales, strict=bool(photo.scales)):
        track.scale = track.scale * np.float32(scale)
    ones = np.ones_like(s)
    shot = Shot(
        clip,
        longer,
        tracks,
        View(ones * photo.x, ones * photo.y, ones * photo.zoom),
        stains=mottle(photo.scene, longer),
        cells=keyed_rng("light", key).standard_normal((1, 4, 4), dtype=np.float32),
        casts=keyed_rng("cast", key).standard_normal((1, 3), dtype=np.float32),
        noise=keyed_rng("noise", key).standard_normal((1, longer, longer), dtype=np.float32),
        progress=np.zeros(1, np.float32),
    )
    picture = develop(shot, expose(shot).mean(0, keepdims=True))[0]
    edge = (longer - size) // 2
    middle = slice(edge, edge + size)
    return picture if longer == size else picture[middle] if photo.aspect > 1 else picture[:, middle]


def with_objects(photo: Photo, extra: Sequence[SceneObject], scales: Sequence[float]) -> Photo:
    """The picture with more objects in front, each with the factor on its size."""
    before = photo.scales or (1.0,) * len(photo.scene.objects)
    return replace(photo, scene=replace(photo.scene, objects=(*photo.scene.objects, *extra)), scales=(*before, *scales))


def jpeg(pixels: NDArray[np.uint8] | Array) -> bytes:
    """The picture as a JPEG file; of floats in [0, 1], too."""
    if pixels.dtype != np.uint8:
        pixels = (pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
