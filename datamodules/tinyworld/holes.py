"""Writes ``inpainting``: pictures and masks of what is to be filled in, ``images/`` and ``masks/`` with equal names.

White is the hole. There are three kinds, in turn: strokes of a brush (as in free-form inpainting, Yu et al., arXiv 1806.03589), boxes, and
the silhouettes of objects, slightly grown, as for removing them. ``pairs.csv`` names picture, mask, caption and kind.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from datamodules.tinyworld.scene import Scene, caption, random_scene, render
from datamodules.tinyworld.silhouettes import silhouette
from datamodules.tinyworld.writing import Job, write_files
from genlab.errors import UserError
from genlab.training.randomness import keyed_rng

KINDS = ("strokes", "boxes", "objects")
SHARE = (0.03, 0.5)  # of the picture that a hole may take


def holed_scene(seed: int, number: int) -> Scene:
    """What picture ``number`` shows: one or two objects in style B, none of them small."""
    rng = keyed_rng("inpainting", seed, "scene", number)
    scene = random_scene(f"inpainting/{seed}/{number}", "B", int(rng.integers(1, 3)), spread=0.5)
    return replace(scene, objects=tuple(replace(thing, size=str(rng.choice(("medium", "large")))) for thing in scene.objects))


def hole(scene: Scene, seed: int, number: int, size: int) -> NDArray[np.bool_]:
    """(size, size), True in the hole. Its kind is ``KINDS[number % 3]``; it takes between 3 % and half of the picture."""
    kind = KINDS[number % len(KINDS)]
    for attempt in range(100):
        mask = _HOLES[kind](scene, keyed_rng("inpainting", seed, "hole", number, attempt), size)
        if SHARE[0] <= mask.mean() <= SHARE[1]:
            return mask
    raise RuntimeError(f"no hole of kind {kind} fits picture {number}")


def _strokes(scene: Scene, rng: np.random.Generator, size: int) -> NDArray[np.bool_]:
    """One to three bent lines with round ends."""
    canvas = Image.new("1", (size, size))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(1, 4))):
        width, heading = float(rng.uniform(0.06, 0.14)) * size, float(rng.uniform(0, 2 * math.pi))
        x, y = rng.uniform(0.1, 0.9, 2) * size
        for _ in range(int(rng.integers(3, 7))):
            heading += float(rng.uniform(-0.9, 0.9))
            length = rng.uniform(0.1, 0.22) * size
            to = (float(np.clip(x + length * math.cos(heading), 0, size)), float(np.clip(y + length * math.sin(heading), 0, size)))
            draw.line(((x, y), to), fill=1, width=round(width))
            for px, py in ((x, y), to):
                draw.ellipse((px - width / 2, py - width / 2, px + width / 2, py + width / 2), fill=1)
            x, y = to
    return np.asarray(canvas, bool)


def _boxes(scene: Scene, rng: np.random.Generator, size: int) -> NDArray[np.bool_]:
    """One or two rectangles."""
    mask = np.zeros((size, size), bool)
    for _ in range(int(rng.integers(1, 3))):
        width, height = (int(side) for side in np.rint(rng.uniform(0.15, 0.5, 2) * size))
        left, top = int(rng.integers(0, size - width + 1)), int(rng.integers(0, size - height + 1))
        mask[top : top + height, left : left + width] = True
    return mask


def _objects(scene: Scene, rng: np.random.Generator, size: int) -> NDArray[np.bool_]:
    """One object whole, and 1 to 3 pixels (of 64) around it."""
    thing = scene.objects[int(rng.integers(len(scene.objects)))]
    return silhouette(thing, size, grow=float(rng.uniform(1, 3)) * size / 64) > 0.5


_HOLES = {"strokes": _strokes, "boxes": _boxes, "objects": _objects}


def write_inpainting(folder: Path, *, seed: int = 0, progress: bool = True, pictures: int = 120, size: int = 64) -> None:
    """Pictures with holes: images/ and masks/ with equal names, white where the hole is, and pairs.csv with captions and kinds of holes.

    Args:
        pictures: How many; strokes, boxes and objects take turns.
        size: Side of the square pictures in pixels.
    """
    if pictures < 1 or size < 32:
        raise UserError(f"inpainting: {pictures=} {size=}; there is at least one picture, and size is at least 32.")
    jobs: list[Job] = []
    for number in range(pictures):
        jobs.append((folder / "images" / _name(number), partial(_image, seed, number, size)))
        jobs.append((folder / "masks" / _name(number), partial(_mask, seed, number, size)))
    jobs.append((folder / "pairs.csv", partial(_pairs, seed, pictures)))
    write_files(jobs, "tiny:inpainting", progress)


def _name(number: int) -> str:
    return f"{number:05d}.png"


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _image(seed: int, number: int, size: int) -> bytes:
    return _png(Image.fromarray(render(holed_scene(seed, number), size)))


def _mask(seed: int, number: int, size: int) -> bytes:
    return _png(Image.fromarray(hole(holed_scene(seed, number), seed, number, size).astype(np.uint8) * 255))


def _pairs(seed: int, pictures: int) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("image", "mask", "prompt", "group"))
    for number in range(pictures):
        words = caption(holed_scene(seed, number))
        table.writerow((f"images/{_name(number)}", f"masks/{_name(number)}", words, KINDS[number % len(KINDS)]))
    return text.getvalue().encode()
