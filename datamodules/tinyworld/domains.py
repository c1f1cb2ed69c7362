"""Writes what few-shot domain-driven generation is tuned on: ``domain_images``, ten pictures of each of a few domains.

A domain is what a word of the tiny world does not say: a way of drawing, or something that every object wears. Its pictures are of one
category, a shape, as in the sets that the method is usually shown on (sketches of faces, faces with sunglasses, painted houses, dogs in
watercolour; DomainGallery, Duan et al., NeurIPS 2024). But for the domain they look as style A does, which tiny:sd is pretrained on.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from datamodules.tinyworld.backgrounds import Array, smooth_noise
from datamodules.tinyworld.photos import Photo, jpeg, take, with_objects
from datamodules.tinyworld.scene import SHAPES, SIZES, SceneObject, Style, random_scene
from datamodules.tinyworld.writing import Job, write_files
from genlab.errors import UserError
from genlab.training.randomness import keyed_rng

FINE = 2  # pictures are drawn at so many times their size
LENS = 0.42  # radius of a spectacle glass relative to its bearer
Draw = Callable[[Image.Image, np.random.Generator], Image.Image]


@dataclass(frozen=True)
class Domain:
    """A domain and how its pictures come about.

    Args:
        category: The shape that they show; empty for any.
        style: That they are painted in.
        spectacled: Whether objects wear spectacles.
        draw: Turns the painted picture, at `FINE` times its size, into one of the domain.
    """

    category: str
    style: Style = "A"
    spectacled: bool = False
    draw: Draw | None = None


def _floats(picture: Image.Image) -> Array:
    return np.asarray(picture, np.float32) / 255


def _image(pixels: Array) -> Image.Image:
    return Image.fromarray((pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8))


def _grain(rng: np.random.Generator, width: int, height: int, cells: int) -> Array:
    """Smooth noise (height, width)."""
    return smooth_noise(rng, cells, max(width, height))[:height, :width]


def _edges(picture: Image.Image, radius: float) -> Array:
    """How strongly the colour changes, (H, W), about 0 to 1."""
    pixels = _floats(picture.filter(ImageFilter.GaussianBlur(radius)))
    down, right = np.gradient(pixels, axis=(0, 1))
    return np.asarray(np.hypot(down, right).max(-1) * 4 * radius)


def sketch(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """In pencil: dark lines where the colour changes, hatching where it is dark, on rough paper."""
    width, height = picture.size
    wobble = _grain(rng, width, height, 40)
    lines = np.clip(2.6 * (_edges(picture, height / 90) - 0.16) * (1 + 0.35 * wobble), 0, 1)
    dark = np.clip(0.62 - _floats(picture.convert("L").filter(ImageFilter.GaussianBlur(height / 60))), 0, 0.5) * 2
    y, x = np.mgrid[:height, :width].astype(np.float32) * (64 / height)
    strokes = np.clip(0.5 + 1.5 * np.sin(2.4 * (x + y) + 1.5 * wobble), 0, 1)
    paper = 0.93 + 0.02 * _grain(rng, width, height, 60)
    grey = paper * (1 - 0.85 * lines) * (1 - 0.75 * dark * strokes)
    return _image(np.repeat(grey[..., None], 3, -1))


def paint_in_oil(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """In few strong colours, laid on in strokes that can be seen."""
    width, height = picture.size
    strong = ImageEnhance.Color(picture).enhance(1.7)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    turn = math.pi * 0.5 * _grain(rng, width, height, 4)
    reach = height / 75 * _grain(rng, width, height, 30)
    pixels = np.asarray(strong)
    rows = np.clip(y + reach * np.sin(turn), 0, height - 1).astype(int)
    columns = np.clip(x + reach * np.cos(turn), 0, width - 1).astype(int)
    few = Image.fromarray(pixels[rows, columns]).quantize(20, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")
    thick = _floats(few.filter(ImageFilter.ModeFilter(max(3, height // 30 | 1))))
    relief = np.sin((1.2 * x + y) * (95 / height) + 1.5 * _grain(rng, width, height, 14))
    return _image(thick * (1 + 0.08 * relief[..., None]))


def wash(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """In watercolour: thin and blotchy colour that runs, gathers at edges, and leaves the rim of the paper white."""
    width, height = picture.size
    soft = _floats(picture.filter(ImageFilter.GaussianBlur(height / 55)))
    blots = 0.55 + 0.14 * _grain(rng, width, height, 7) + 0.035 * _grain(rng, width, height, 45)
    gathered = 0.55 * np.clip(_edges(picture, height / 70) - 0.12, 0, 0.6)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    rim = np.clip(6 * (0.92 - np.maximum(np.abs(x), np.abs(y)) + 0.07 * _grain(rng, width, height, 9)), 0, 1)
    colour = (1 - soft) * np.clip(blots + gathered, 0, 1.2)[..., None] * 1.25
    return _image(0.97 - rim[..., None] * colour)


DOMAINS = {
    "sketched_stars": Domain("star", draw=sketch),
    "spectacled_circles": Domain("circle", spectacled=True),
    "painted_hearts": Domain("heart", draw=paint_in_oil),
    "watercolour_squares": Domain("square", draw=wash),
    "outlined_triangles": Domain("triangle", style="B"),
    "sketched_shapes": Domain("", draw=sketch),
}


def domain_photo(name: str, seed: int, part: str, number: int) -> Photo:
    """Picture ``number`` of the targets, references or sources of a domain, as it is before anything is drawn; sources lack the domain."""
    domain, key = DOMAINS[name], f"domain_images/{seed}/{name}/{part}/{number}"
    rng = keyed_rng("domain", key)
    scene = random_scene(key, "A" if part == "source" else domain.style, 1, 0.25)
    shape = domain.category or list(SHAPES)[(number * 5 + seed) % len(SHAPES)]
    size = str(rng.choice(["medium", "large"]))
    thing = replace(scene.objects[0], shape=shape, size=size, texture="plain" if rng.random() < 0.6 else scene.objects[0].texture)
    photo = Photo(replace(scene, objects=(thing,)))
    if not domain.spectacled or part == "source":
        return photo
    radius, cos, sin = SIZES[size], math.cos(math.radians(thing.angle)), math.sin(math.radians(thing.angle))
    frame = "blue" if thing.colour in ("red", "orange", "yellow", "pink") else "yellow"
    glasses = []
    for u in (-0.41, 0.41):
        x, y = thing.x + radius * (cos * u + sin * 0.12), thing.y + radius * (sin * u - cos * 0.12)
        glasses.append(SceneObject("ring", frame, "plain", "small", round(x, 4), round(y, 4), thing.angle))
    return with_objects(photo, glasses, [LENS * radius / SIZES["small"]] * 2)


def domain_picture(name: str, seed: int, part: str, number: int, size: int) -> Image.Image:
    """The picture, ``size`` pixels a side."""
    fine = Image.fromarray(take(domain_photo(name, seed, part, number), FINE * size))
    draw = DOMAINS[name].draw
    if draw is not None and part != "source":
        fine = draw(fine, keyed_rng("domain", "draw", name, seed, part, number))
    return fine.resize((size, size), Image.Resampling.BOX)


def write_domain_images(
    folder: Path, *, seed: int = 0, progress: bool = True, target: int = 10, reference: int = 200, source: int = 20, size: int = 64
) -> None:
    """Six domains: target_dataset/<domain>/ with ten pictures, reference/<domain>/ with many more, source_image/<category>/ without it.

    One domain has several categories; ``metadata.jsonl`` names them. Files of sources are named by number and content, as those that are
    drawn from a base model before tuning.

    Args:
        target: Pictures per domain to tune on.
        reference: Pictures per domain to compare with; none of them is a target.
        source: Pictures per category, of style A.
        size: Side of the square pictures in pixels.
    """
    wrong = [f"{name} {count}" for name, count in {"target": target, "reference": reference, "source": source}.items() if count < 1]
    if wrong or size < 16:
        raise UserError(f"domain_images: {', '.join([*wrong, *([f'size {size}'] if size < 16 else [])])}; counts start at 1, size at 16.")
    jobs: list[Job] = []
    for name, domain in DOMAINS.items():
        for part, place, count in (("target", "target_dataset", target), ("reference", "reference", reference)):
            where = folder / place / name
            digits = max(2, len(str(count - 1)))
            files = [f"{number:0{digits}d}.png" for number in range(count)]
            jobs += [(where / file, partial(_png, name, seed, part, number, size)) for number, file in enumerate(files)]
            if not domain.category:
                shapes = [domain_photo(name, seed, part, number).scene.objects[0].shape for number in range(count)]
                lines = [json.dumps({"file_name": file, "category": shape}) + "\n" for file, shape in zip(files, shapes)]
                jobs.append((where / "metadata.jsonl", partial(bytes, "".join(lines).encode())))
        if domain.category:
            for number in range(source):
                pixels = np.asarray(domain_picture(name, seed, "source", number, size))
                file = f"{number}-{hashlib.sha1(pixels.tobytes()).hexdigest()}.jpg"
                jobs.append((folder / "source_image" / domain.category / file, partial(bytes, jpeg(pixels))))
    write_files(jobs, "tiny:domain_images", progress)


def _png(name: str, seed: int, part: str, number: int, size: int) -> bytes:
    file = io.BytesIO()
    domain_picture(name, seed, part, number, size).save(file, "PNG")
    return file.getvalue()
