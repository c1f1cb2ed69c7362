"""Writes captioned clips for pretraining tiny video models, in style A.

The form is that of captioned pictures (captions.py), with MP4 files. Clips come in groups of sixteen that share shape, colour, texture,
size and background and differ in the action: within a group nothing but motion tells which caption belongs to which clip. The camera
stands still, as it does not in the benchmarks.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from datamodules.tinyworld.acting import ACTIONS, STANDING, acting_clip, showing
from datamodules.tinyworld.action_texts import descriptions
from datamodules.tinyworld.encoding import encode_video
from datamodules.tinyworld.scene import TEXTURES, SceneObject, caption, random_scene
from datamodules.tinyworld.video import Clip, film
from datamodules.tinyworld.writing import Job, write_files
from genlab.errors import UserError
from genlab.training.randomness import keyed_rng

GROUP = len(ACTIONS)  # clips of a group, one per action
PREFIXES = ("", "", "a video of ", "a clip of ")
ALONE = 0.85  # share of groups with one object; the others have a second one that stands still
SHORT = 0.3  # share of training captions that name the action and little else, as class names do
TOLD = 0.15  # share of training captions that tell a detail of the action, as descriptions of classes do
PLAIN = 0.55  # share of objects without a texture


def captioned_clip(seed: int, split: str, number: int, frames: int = 8, fps: int = 8) -> tuple[Clip, str, str]:
    """Clip ``number`` of a split, the name of its action, and its caption; numbers 16g to 16g + 15 are a group.

    Captions of other splits than the training one are complete.
    """
    group, member = divmod(number, GROUP)
    shared = keyed_rng("captioned_clips", seed, split, "group", group)
    objects = 1 if shared.random() < ALONE else 2
    base = random_scene(f"captioned_clips/{seed}/{split}/group/{group}", "A", objects)
    things = tuple(_dressed(thing, shared) for thing in base.objects)
    action = str(shared.permutation(list(ACTIONS))[member])
    clip = acting_clip(f"captioned_clips/{seed}/{split}/{number}", "A", action, frames, fps, objects, cast=things[0])
    rest = (
        replace(like, x=thing.x, y=thing.y, angle=thing.angle)
        for thing, like in zip(clip.scene.objects[1:], things[1:])
    )  # fmt: skip
    scene = replace(clip.scene, background=base.background, objects=(clip.scene.objects[0], *rest))
    clip = replace(clip, scene=scene, camera="still")
    if split != "train":  # complete, in the usual words
        return clip, action, full_caption(clip, ACTIONS[action].words[0])
    return clip, action, _words(clip, action, keyed_rng("captioned_clips", seed, split, "words", number))


def _dressed(thing: SceneObject, rng: np.random.Generator) -> SceneObject:
    """The object with a texture that shows its turning, and not small."""
    thing = replace(
        thing,
        texture="plain" if rng.random() < PLAIN else str(rng.choice(TEXTURES[1:])),
        size="medium" if thing.size == "small" else thing.size,
    )
    return replace(thing, texture=showing(thing, rng))


def _words(clip: Clip, action: str, rng: np.random.Generator) -> str:
    """A caption to learn from: in one of several wordings, and not always complete."""
    prefix, doing = str(rng.choice(PREFIXES)), str(rng.choice(ACTIONS[action].words))
    end, draw = "." if rng.random() < 0.3 else "", rng.random()
    if draw < TOLD:
        return str(rng.choice(descriptions(doing, action, "s" if rng.random() < 0.4 else "t", 8)))
    if draw >= TOLD + SHORT:
        return prefix + full_caption(clip, doing) + end
    thing = clip.scene.objects[0]
    who = str(rng.choice(["", "something ", f"a {thing.shape} ", f"a {thing.colour} {thing.shape} "]))
    return prefix + who + doing + end


def full_caption(clip: Clip, doing: str) -> str:
    """The clip in words, complete, with ``doing`` for what its first object does."""
    return caption(clip.scene, (doing, *(STANDING for _ in clip.scene.objects[1:])))


def write_captioned_clips(
    folder: Path,
    *,
    seed: int = 0,
    progress: bool = True,
    clips: int = 6400,
    held_out: int = 480,
    size: int = 64,
    frames: int = 8,
    fps: int = 8,
) -> None:
    """Captioned clips in style A, to pretrain on: train/, validation/ and test/ with metadata.jsonl.

    Args:
        clips: Of the training split; a multiple of 16.
        held_out: Of the validation and the test split each; a multiple of 16.
        size: Side of the square frames in pixels, even.
        frames: Per clip, at least 2.
        fps: Frames per second.
    """
    if min(clips, held_out) < GROUP or clips % GROUP or held_out % GROUP or size < 16 or size % 2 or frames < 2 or fps < 1:
        raise UserError(
            f"captioned_clips: {clips=} {held_out=} {size=} {frames=} {fps=}; clips and held_out are multiples of {GROUP}, size an even "
            "16 or more, frames at least 2, fps at least 1."
        )
    jobs: list[Job] = []
    for split, count in (("train", clips), ("validation", held_out), ("test", held_out)):
        for number in range(count):
            jobs.append((folder / split / _name(number), partial(_video, seed, split, number, size, frames, fps)))
        jobs.append((folder / split / "metadata.jsonl", partial(_metadata, seed, split, count, frames, fps)))
    write_files(jobs, "tiny:captioned_clips", progress)


def _name(number: int) -> str:
    return f"{number // 1000:03d}/{number:06d}.mp4"


def _video(seed: int, split: str, number: int, size: int, frames: int, fps: int) -> bytes:
    return encode_video(film(captioned_clip(seed, split, number, frames, fps)[0], size), fps, ".mp4")


def _metadata(seed: int, split: str, count: int, frames: int, fps: int) -> bytes:
    """A line per clip; the attributes are those of the object that acts."""
    lines = []
    for number in range(count):
        clip, action, text = captioned_clip(seed, split, number, frames, fps)
        thing, doing = clip.scene.objects[0], ACTIONS[action].words[0]
        record = {"file_name": _name(number), "text": text, "caption": full_caption(clip, doing), "group": f"{split}/{number // GROUP}"}
        record |= {"motion": doing, "background": clip.scene.background, "objects": str(len(clip.scene.objects))}
        record |= {key: getattr(thing, key) for key in ("shape", "colour", "texture", "size")}
        lines.append(json.dumps(record))
    return ("\n".join(lines) + "\n").encode()
