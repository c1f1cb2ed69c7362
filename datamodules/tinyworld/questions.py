"""Writes ``questions``: pictures in style A with questions and answers, to pretrain a tiny vision-language model on.

A folder per split with pictures and ``metadata.jsonl``, a line per question; every picture has six or seven. Four of them are answered
yes or no, one of each kind, and half of each kind's answers are yes. Whatever a question asks for is as likely to be there as not, whatever
the other answers are: who does not look at the picture is right half of the time. The others have short open answers.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.tinyworld.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, Scene, random_scene, render
from datamodules.tinyworld.writing import Job, write_files
from genlab.errors import UserError
from genlab.training.randomness import keyed_rng

KINDS = ("shape", "colour", "background", "presence")  # of questions that are answered yes or no
OPEN = ("what_shape", "what_colour", "where", "how_many")
NUMBERS = ("no", "one", "two")
SIZE = "large"  # smaller shapes would be a patch or two
PLAIN = 0.7  # share of objects without a texture
ALONE = 0.8  # share of scenes with one object; the others have two


@dataclass(frozen=True)
class Asked:
    """One question about a scene."""

    kind: str
    question: str
    answer: str


def asked_scene(seed: int, split: str, number: int) -> Scene:
    """Picture ``number`` of a split."""
    rng = keyed_rng("questions", seed, split, "scene", number)
    count = 1 if rng.random() < ALONE else 2
    scene = random_scene(f"questions/{seed}/{split}/{number}", "A", count, spread=0.45)
    textures = ["plain" if rng.random() < PLAIN else str(rng.choice(TEXTURES[1:])) for _ in range(count)]
    things = tuple(replace(thing, size=SIZE, texture=texture) for thing, texture in zip(scene.objects, textures))
    return replace(scene, objects=things)


def questions(scene: Scene, seed: int, split: str, number: int) -> list[Asked]:
    """The questions about picture ``number``: one of each of `KINDS`, and two or three open ones."""
    rng = keyed_rng("questions", seed, split, "words", number)
    answers = [(kind, _is_yes(kind, seed, split, number)) for kind in KINDS]
    closed = [Asked(kind, _closed(kind, scene, yes, rng), "yes" if yes else "no") for kind, yes in answers]
    asked = OPEN[2:] if len(scene.objects) > 1 else (*OPEN[:2], str(rng.choice(OPEN[2:])))  # of one object alone: what is it?
    return closed + [_open(kind, scene) for kind in asked]


def _is_yes(kind: str, seed: int, split: str, number: int) -> bool:
    """Yes for one of the pictures 2n and 2n + 1, whichever: half of each kind's answers are yes, and none tells another one."""
    first = keyed_rng("questions", seed, split, "yes", kind, number // 2).integers(2) == 1
    return bool(first == (number % 2 == 0))


def _closed(kind: str, scene: Scene, yes: bool, rng: np.random.Generator) -> str:
    """A question whose answer is yes, or no. What it names is distributed in the same way in both cases."""

    def one_of(pool: list[str], there: set[str]) -> str:
        return str(rng.choice([name for name in pool if (name in there) == yes]))

    if kind == "background":
        name = one_of(list(BACKGROUNDS["A"]), {scene.background})
        return f"is this {BACKGROUNDS['A'][name]}?"
    if kind == "shape":
        return f"is there a {one_of(list(SHAPES), {thing.shape for thing in scene.objects})}?"
    if kind == "colour":
        return f"is anything {one_of(list(COLOURS), {thing.colour for thing in scene.objects})}?"
    pairs = {(thing.colour, thing.shape) for thing in scene.objects}
    thing = scene.objects[int(rng.integers(len(scene.objects)))]
    colour, shape = thing.colour, thing.shape
    while not yes and (colour, shape) in pairs:  # a near miss: the colour is there or the shape is, but not on one object
        if rng.random() < 0.5:
            colour = str(rng.choice(list(COLOURS)))
        else:
            shape = str(rng.choice(list(SHAPES)))
    return f"is there a {colour} {shape}?"


def _open(kind: str, scene: Scene) -> Asked:
    thing = scene.objects[0]
    asked = {
        "what_shape": ("what shape is the object?", thing.shape),
        "what_colour": ("what colour is the object?", thing.colour),
        "where": ("where is this?", BACKGROUNDS["A"][scene.background]),
        "how_many": ("how many objects are there?", NUMBERS[len(scene.objects)]),
    }
    return Asked(kind, *asked[kind])


def write_visual_questions(
    folder: Path, *, seed: int = 0, progress: bool = True, pictures: int = 8000, held_out: int = 250, size: int = 64
) -> None:
    """Pictures in style A with six or seven questions and answers each: train/, validation/ and test/ with metadata.jsonl.

    Args:
        pictures: Of the training split; an even number.
        held_out: Of the validation and the test split each; an even number.
        size: Side of the square pictures in pixels.
    """
    if min(pictures, held_out) < 2 or pictures % 2 or held_out % 2 or size < 16:
        raise UserError(f"questions: {pictures=} {held_out=} {size=}; pictures and held_out are even and at least 2, size at least 16.")
    jobs: list[Job] = []
    for split, count in (("train", pictures), ("validation", held_out), ("test", held_out)):
        jobs += [(folder / split / _name(number), partial(_picture, seed, split, number, size)) for number in range(count)]
        jobs.append((folder / split / "metadata.jsonl", partial(_metadata, seed, split, count)))
    write_files(jobs, "tiny:questions", progress)


def _name(number: int) -> str:
    return f"{number // 1000:03d}/{number:06d}.png"


def _picture(seed: int, split: str, number: int, size: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(render(asked_scene(seed, split, number), size)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _metadata(seed: int, split: str, count: int) -> bytes:
    lines = []
    for number in range(count):
        for each in questions(asked_scene(seed, split, number), seed, split, number):
            line = {"file_name": _name(number), "question": each.question, "answer": each.answer, "kind": each.kind}
            lines.append(json.dumps(line))
    return ("\n".join(lines) + "\n").encode()
