"""Writes captioned pictures for pretraining tiny models: ``captions`` in style A, ``captions_b`` in style B.

The form is Hugging Face's ``imagefolder``: a folder per split, pictures, and ``metadata.jsonl`` with a line per picture. Pictures come in
groups of eight scenes that share everything but one thing of their first object or around it: most groups differ in its shape, some in
colour and background, some in size and texture. A batch of whole groups cannot be told apart by colour and background alone; without
such batches a small CLIP hardly learns shapes, and with groups of shapes alone hardly backgrounds.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.tinyworld.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Scene, Style, caption, random_scene, render
from datamodules.tinyworld.writing import Job, write_files
from genlab.errors import UserError
from genlab.training.randomness import keyed_rng

GROUP = len(SHAPES)  # scenes of a group, one per shape
SETTINGS, SURFACES = 0.25, 0.15  # shares of groups that differ in colour and background, and in size and texture
PREFIXES = ("", "", "a photo of ", "a picture of ")
PLAIN = 0.55  # share of objects without a texture
ALONE = 0.7  # share of scenes with one object; the others have two
SMALL = 15  # percentage of objects that are small
SHORT = 0.2  # share of captions that leave the background and some attributes out, as the names of classes do


def captioned_scene(dataset: str, seed: int, split: str, number: int, style: Style, small: int = SMALL) -> tuple[Scene, str]:
    """Picture ``number`` of a split, and its caption; numbers 8g to 8g + 7 are a group."""
    group, member = divmod(number, GROUP)
    shared = keyed_rng(dataset, seed, split, "group", group)
    count = 1 if shared.random() < ALONE else 2
    base = random_scene(f"{dataset}/{seed}/{split}/group/{group}", style, count)
    own = random_scene(f"{dataset}/{seed}/{split}/{number}", style, count)  # places, light and details of the background
    textures = ["plain" if shared.random() < PLAIN else str(shared.choice(TEXTURES[1:])) for _ in range(count)]
    sizes = [str(shared.choice(list(SIZES), p=[small / 100, *[(100 - small) / 200] * 2])) for _ in range(count)]
    things = [
        replace(thing, shape=like.shape, colour=like.colour, size=size, texture=texture)
        for thing, like, size, texture in zip(own.objects, base.objects, sizes, textures)
    ]
    background, kind = base.background, shared.random()
    if kind < SETTINGS:
        backgrounds, colours = shared.permutation(list(BACKGROUNDS[style]))[:4], shared.permutation(list(COLOURS))[:2]
        background = str(backgrounds[member % 4])
        things[0] = replace(things[0], colour=str(colours[member // 4]))
    elif kind < SETTINGS + SURFACES:
        pair = (str(shared.choice(list(SIZES)[:2])) if small else "medium", "large")
        things[0] = replace(things[0], texture=TEXTURES[member % 4], size=pair[member // 4])
    else:
        things[0] = replace(things[0], shape=str(shared.permutation(list(SHAPES))[member]))
    scene = replace(own, background=background, objects=tuple(things))
    return scene, _words(scene, keyed_rng(dataset, seed, split, "words", number))


def _words(scene: Scene, rng: np.random.Generator) -> str:
    prefix = str(rng.choice(PREFIXES))
    if rng.random() >= SHORT:
        return prefix + caption(scene)
    thing = scene.objects[0]
    kept = (thing.size * bool(rng.random() < 0.3), thing.colour * bool(rng.random() < 0.7), thing.texture.replace("plain", ""), thing.shape)
    return prefix + "a " + " ".join(word for word in kept if word)


def write_captions(
    folder: Path, *, seed: int = 0, progress: bool = True, pictures: int = 24000, held_out: int = 1000, size: int = 64, small: int = SMALL
) -> None:
    """Captioned pictures in style A, to pretrain on: train/, validation/ and test/ with metadata.jsonl.

    Args:
        pictures: Of the training split; a multiple of 8.
        held_out: Of the validation and the test split each; a multiple of 8.
        size: Side of the square pictures in pixels.
        small: Percentage of objects that are small; as many are medium as large.
    """
    _write("captions", "A", folder, seed, progress, pictures, held_out, size, small)


def write_captions_b(
    folder: Path, *, seed: int = 0, progress: bool = True, pictures: int = 8000, held_out: int = 1000, size: int = 64, small: int = SMALL
) -> None:
    """Captioned pictures in style B, the look of the benchmarks: train/, validation/ and test/ with metadata.jsonl.

    Args:
        pictures: Of the training split; a multiple of 8.
        held_out: Of the validation and the test split each; a multiple of 8.
        size: Side of the square pictures in pixels.
        small: Percentage of objects that are small; as many are medium as large.
    """
    _write("captions_b", "B", folder, seed, progress, pictures, held_out, size, small)


def _write(
    dataset: str, style: Style, folder: Path, seed: int, progress: bool, pictures: int, held_out: int, size: int, small: int
) -> None:
    if min(pictures, held_out) < GROUP or pictures % GROUP or held_out % GROUP or size < 16:
        raise UserError(f"{dataset}: {pictures=} {held_out=} {size=}; pictures and held_out are multiples of {GROUP}, size at least 16.")
    if not 0 <= small <= 100:
        raise UserError(f"{dataset}: small={small} is a percentage, 0 to 100.")
    jobs: list[Job] = []
    for split, count in (("train", pictures), ("validation", held_out), ("test", held_out)):
        for number in range(count):
            jobs.append((folder / split / _name(number), partial(_picture, dataset, seed, split, number, style, size, small)))
        jobs.append((folder / split / "metadata.jsonl", partial(_metadata, dataset, seed, split, count, style, small)))
    write_files(jobs, f"tiny:{dataset}", progress)


def _name(number: int) -> str:
    return f"{number // 1000:03d}/{number:06d}.png"


def _picture(dataset: str, seed: int, split: str, number: int, style: Style, size: int, small: int) -> bytes:
    scene, _ = captioned_scene(dataset, seed, split, number, style, small)
    file = io.BytesIO()
    Image.fromarray(render(scene, size)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _metadata(dataset: str, seed: int, split: str, count: int, style: Style, small: int) -> bytes:
    """A line per picture; the attributes are those of its first object."""
    lines = []
    for number in range(count):
        scene, text = captioned_scene(dataset, seed, split, number, style, small)
        thing = scene.objects[0]
        record = {"file_name": _name(number), "text": text, "caption": caption(scene), "group": f"{split}/{number // GROUP}"}
        record |= {"objects": str(len(scene.objects)), "background": scene.background}
        record |= {key: getattr(thing, key) for key in ("shape", "colour", "texture", "size")}
        lines.append(json.dumps(record))
    return ("\n".join(lines) + "\n").encode()
