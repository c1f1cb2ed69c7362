"""Writes ``interhf``: cartoon faces that a hand touches and dents, with exact masks and keypoints, as the layout for InterHF has them.

A pattern is a place on the edge of the face (cheek, jaw, temple, on either side of the picture), and what the hand does there: it presses
once, taps twice, or strokes along. The skin gives way around the finger, which never passes through it: the edge is where the tip is.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.tinyworld.backgrounds import MARGIN, Array, canvas_pixels, paint_backdrop
from datamodules.tinyworld.encoding import encode_video
from datamodules.tinyworld.faces import (
    FACE_PARTS,
    Layer,
    Look,
    Person,
    compose,
    cover,
    edge_distance,
    face_layers,
    landmarks,
    outline,
    outward,
    palette_of,
    random_person,
    shrink,
)  # fmt: skip
from datamodules.tinyworld.hand import FINGER, HAND_PARTS, hand_distance, hand_layers, hand_palette, joints
from datamodules.tinyworld.writing import Job, write_files
from genlab.errors import UserError
from genlab.training.randomness import keyed_rng

FPS = 12
FINE = 2  # painted this many times larger
SOFT = 0.2  # face units: how far the skin gives way around the finger
ROOMS = ("studio", "fading", "hills", "sea", "bricks", "clouds")
PLACES = {"cheek": (14.0, 20.0), "jaw": (48.0, 12.0), "temple": (-22.0, 42.0)}  # degrees: on the edge; how far the hand comes from below
DEEDS = ("press", "tap", "stroke")
SAID = {"press": "presses a finger against", "tap": "taps twice on", "stroke": "strokes a finger along"}
PATTERNS = tuple(f"{place}_{side}_{deed}" for place in PLACES for deed in DEEDS for side in ("left", "right"))
MIRROR = tuple(PATTERNS.index(name.replace("left", "*").replace("right", "left").replace("*", "right")) for name in PATTERNS)
NO_FACE = ("hair", "ear", "neck", "shirt", "sleeve", "cuff")
REGIONS = ("hand", "face")


@dataclass(frozen=True)
class Touch:
    """A clip: who is touched where and how.

    Args:
        clip: Its name.
        subject: Number of the person.
        pattern: Number in `PATTERNS`.
        frames: How many.
        size: Of the square frames in pixels.
    """

    seed: int
    clip: str
    subject: int
    pattern: int
    frames: int
    size: int

    @property
    def person(self) -> Person:
        return random_person("interhf", self.seed, self.subject)

    @property
    def right(self) -> bool:
        """Whether the hand comes from the right of the picture."""
        return "_right_" in PATTERNS[self.pattern]


@dataclass(frozen=True)
class Course:
    """Where everything is in T frames, in the face's coordinates.

    Args:
        contact: (T, 2) the point of the edge, at rest, that the finger aims at.
        inward: (T, 2) unit vectors there.
        depth: (T,) how deep the finger presses the edge in.
        gap: (T,) from the finger to the edge; 0 is contact.
        angle: (T,) radians: where the hand points to.
        scale: Pixels per face unit.
        middle: (T, 2) pixels: where the face's origin is.
        turn: (T,) radians: how the head leans.
    """

    contact: Array
    inward: Array
    depth: Array
    gap: Array
    angle: Array
    scale: float
    middle: Array
    turn: Array

    @property
    def tip(self) -> Array:
        """(T, 2) middle of the fingertip."""
        return self.contact + self.inward * (self.depth - self.gap - FINGER)[:, None]

    @property
    def touching(self) -> NDArray[np.bool_]:
        """(T,) frames with contact."""
        return self.gap <= 0

    def bend(self, points: Array) -> Array:
        """(T, N, 2) where the points (N, 2) of the face at rest lie when the finger presses."""
        away = ((points[None] - self.contact[:, None]) ** 2).sum(2)
        return points[None] + (self.inward * self.depth[:, None])[:, None] * np.exp(-away / (2 * SOFT**2))[..., None]

    def unbend(self, u: Array, v: Array) -> tuple[Array, Array]:
        """The inverse of `bend` for the pixels (T, H, W): what is at rest comes to lie there. By iteration, which contracts by half."""
        push = self.inward * self.depth[:, None]
        rest_u, rest_v = u, v
        for _ in range(8):
            away = (rest_u - self.contact[:, 0, None, None]) ** 2 + (rest_v - self.contact[:, 1, None, None]) ** 2
            share = np.exp(-away / (2 * SOFT**2))
            rest_u, rest_v = u - push[:, 0, None, None] * share, v - push[:, 1, None, None] * share
        return rest_u, rest_v

    def to_pixels(self, points: Array) -> Array:
        """(T, N, 2) from the face's coordinates to x, y in pixels; the first pixel reaches from 0 to 1."""
        cos, sin = np.cos(self.turn)[:, None], np.sin(self.turn)[:, None]
        x, y = points[..., 0] * cos - points[..., 1] * sin, points[..., 0] * sin + points[..., 1] * cos
        return np.stack((x, y), 2) * self.scale + self.middle[:, None]

    def grid(self, size: int) -> tuple[Array, Array]:
        """Coordinates (T, FINE size, FINE size) in the face of the pixels' middles."""
        line = (np.arange(FINE * size, dtype=np.float32) + 0.5) / FINE
        x, y = ((line[None] - self.middle[:, axis, None]) / self.scale for axis in (0, 1))
        cos, sin = np.cos(self.turn)[:, None, None], np.sin(self.turn)[:, None, None]
        return (x[:, None] * cos + y[..., None] * sin).astype(np.float32), (y[..., None] * cos - x[:, None] * sin).astype(np.float32)


def course(touch: Touch) -> Course:
    """The course of a clip. Speeds, depth and the swaying of the head differ from clip to clip."""
    rng = keyed_rng("interhf course", touch.seed, touch.clip)
    place, side, deed = PATTERNS[touch.pattern].split("_")
    time = np.linspace(0, 1, touch.frames)
    begin, end = rng.uniform(0.28, 0.36), rng.uniform(0.74, 0.84)
    deepest, start = rng.uniform(0.11, 0.16), rng.uniform(0.55, 0.8)
    within = np.clip((time - begin) / (end - begin), 0, 1)
    gap = start * (_ease(1 - time / begin) + _ease((time - end) / (1 - end)))
    if deed == "tap":
        gap = gap + 0.3 * start * np.sin(math.pi * np.clip((within - 0.34) / 0.32, 0, 1))
        depth = deepest * np.sin(math.pi * np.clip(np.where(within < 0.5, within / 0.34, (within - 0.66) / 0.34), 0, 1))
    else:
        depth = deepest * np.sqrt(np.sin(math.pi * within).clip(0)) * (1.0 if deed == "press" else 0.75)
    gap = np.where(gap < 1e-6, 0.0, gap)
    depth = np.where(gap > 0, 0.0, depth)
    angle, from_below = PLACES[place]
    along = angle + rng.uniform(-4, 4) + (34 * (within - 0.5) if deed == "stroke" else 0 * within)
    lean = math.radians(from_below)
    if side == "left":
        along, lean = 180 - along, -lean
    contact, inward = np.stack(outline(touch.person, along), 1), -np.stack(outward(touch.person, along), 1)
    points_to = np.arctan2(inward[:, 1], inward[:, 0]) + lean
    sway = rng.uniform(0, 2 * math.pi, 3)
    scale = touch.size * rng.uniform(0.235, 0.26)
    across = np.stack((np.sin(3 * time + sway[0]), 0.6 * np.sin(2.5 * time + sway[1])), 1) * 0.06 * scale
    aside = np.array([0.5 - (0.06 if side == "right" else -0.06), 0.47]) * touch.size  # makes room for the hand
    nudge = -0.03 * scale * (depth / deepest)[:, None] * np.array([1 if side == "right" else -1, 0])  # the head gives way, too
    return Course(contact, inward, depth, gap, points_to, float(scale), aside + across + nudge, 0.05 * np.sin(2 * time + sway[2]))


def _ease(share: Array) -> Array:
    share = np.clip(share, 0, 1)
    return share * share * (3 - 2 * share)


def layers(touch: Touch, way: Course) -> Iterator[Layer]:
    """Everything before the background."""
    rng = keyed_rng("interhf look", touch.seed, touch.clip)
    time, blink = np.linspace(0, 1, touch.frames), rng.uniform(0.1, 0.9)
    towards = (1 if touch.right else -1) * (1 - np.clip(2 * way.gap, 0, 1))
    look = Look(np.exp(-(((time - blink) / 0.05) ** 2)), towards, 0.3 * towards * rng.uniform(-1, 1), np.clip(3 * way.depth - 0.1, 0, 0.5))
    u, v = way.grid(touch.size)
    unit = FINE * way.scale
    rest_u, rest_v = (part.astype(np.float32) for part in way.unbend(u, v))
    yield from face_layers(touch.person, rest_u, rest_v, unit, look)
    away = (rest_u - way.contact[:, 0, None, None]) ** 2 + (rest_v - way.contact[:, 1, None, None]) ** 2
    crease = 3 * way.depth[:, None, None] * np.exp(-away / 0.03) * cover(edge_distance(touch.person, rest_u, rest_v), unit)
    yield "shadow", crease, 1.0
    yield from hand_layers(u, v, unit, way.tip, way.angle, 1 if touch.right else -1)


@dataclass(frozen=True)
class Filmed:
    """A clip as it is written.

    Args:
        frames: (T, H, W, 3) uint8 RGB.
        masks: (T, 2, H, W) of the visible hand and face.
        hands: (T, 2, 21, 3) x, y in pixels and confidence; the first is the hand that comes from the left. Outside the frame, and of the
            hand that is not there, the confidence is 0.
        face: (T, 68, 3) likewise; 0 where the hand or the frame's edge hides a point.
    """

    frames: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    hands: Array
    face: Array


@lru_cache(maxsize=2)  # the files of a clip are written one after the other
def film(touch: Touch) -> Filmed:
    """Paints a clip."""
    way, person = course(touch), touch.person
    shape = (touch.frames, FINE * touch.size, FINE * touch.size)
    parts = list(layers(touch, way))
    rng = keyed_rng("interhf room", touch.seed, touch.clip)
    palette: dict[str, Sequence[float] | Array] = {**palette_of(person), **hand_palette(person), "room": _room(rng, touch.size)}
    light = rng.uniform(0.82, 1.08) * (1 + rng.uniform(-0.05, 0.05, 3))
    picture = shrink(compose([("room", np.ones(shape, np.float32), 1.0), *parts], palette, shape), FINE) * light.astype(np.float32)
    flat: list[Layer] = [(part, coverage, 1.0) for part, coverage, _ in parts]
    regions = dict.fromkeys(NO_FACE, (0.0, 0.0)) | dict.fromkeys(FACE_PARTS, (0.0, 1.0)) | dict.fromkeys((*HAND_PARTS, "line"), (1.0, 0.0))
    regions.pop("glasses")  # they lie over what they cover; so do glints and shadows
    masks = shrink(compose(flat, regions, shape), FINE).transpose(0, 3, 1, 2) >= 0.5
    hands = np.zeros((touch.frames, 2, 21, 3), np.float32)
    hands[:, int(touch.right)] = _seen(way.to_pixels(joints(way.tip, way.angle, 1 if touch.right else -1)), touch.size)
    bent = way.bend(landmarks(person))
    face = _seen(way.to_pixels(bent), touch.size)
    hidden = hand_distance(bent[:, None, :, 0], bent[:, None, :, 1], way.tip, way.angle, 1 if touch.right else -1)[:, 0] < 0
    face[..., 2] *= ~hidden
    return Filmed((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8), masks, hands, face)


def _seen(points: Array, size: int) -> Array:
    inside = ((points >= 0) & (points < size)).all(-1, keepdims=True)
    return np.concatenate((points, inside), -1).astype(np.float32)


def _room(rng: np.random.Generator, size: int) -> Array:
    """A background without anything in front of it, (FINE size, FINE size, 3)."""
    pixels = canvas_pixels(FINE * size)
    canvas = paint_backdrop(str(rng.choice(ROOMS)), rng, pixels)
    edge = round(pixels * (1 - 1 / MARGIN) / 2)
    middle = canvas[edge : pixels - edge, edge : pixels - edge]
    squared = Image.fromarray((np.clip(middle, 0, 1) * 255).astype(np.uint8)).resize((FINE * size, FINE * size), Image.Resampling.BOX)
    return 0.75 * np.asarray(squared, np.float32) / 255 + 0.18  # pale, behind the face


def identity(touch: Touch) -> Array:
    """(512,) float32 of length 1 that stands in for an ArcFace embedding: made of the person's traits, a little different in each clip."""
    mixing = keyed_rng("interhf identity").standard_normal((512, len(touch.person.traits)))
    vector = mixing @ touch.person.traits
    vector = vector / np.linalg.norm(vector) + 0.01 * keyed_rng("interhf id", touch.seed, touch.clip).standard_normal(512)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


# ---- files


def write_interhf(
    folder: Path, *, seed: int = 0, progress: bool = True, subjects: int = 16, clips: int = 6, patterns: int = 6, frames: int = 16,
    size: int = 64, frame_folders: int = 0,
) -> None:  # fmt: skip
    """InterHF: videos of faces that a hand touches and dents, with masks, keypoints, identity vectors and metadata.jsonl.

    Args:
        subjects: People; an eighth of them is for validation, an eighth for the test.
        clips: Per person.
        patterns: How many of the 18 patterns occur; the first ones: cheek, then jaw, then temple.
        frames: Per clip.
        size: Of the frames in pixels, a multiple of 16.
        frame_folders: 1 for folders of JPEG frames and PNG masks instead of MP4 and npz files.
    """
    for name, value, low, high in (
        ("subjects", subjects, 3, 9999), ("clips", clips, 1, 999), ("patterns", patterns, 1, len(PATTERNS)), ("frames", frames, 8, 128),
        ("size", size, 32, 512), ("frame_folders", frame_folders, 0, 1),
    ):  # fmt: skip
        if not low <= value <= high:
            raise UserError(f"interhf: {name} {value} is out of range; use {low} to {high}.")
    if size % 16:
        raise UserError(f"interhf: size {size} is wrong; use a multiple of 16.")
    jobs: list[Job] = []
    records: list[str] = []
    for split, touch in touches(seed, subjects, clips, patterns, frames, size):
        record, files = _files(folder, split, touch, bool(frame_folders))
        jobs += files
        records.append(json.dumps(record))
    jobs.append((folder / "metadata.jsonl", partial(bytes, ("\n".join(records) + "\n").encode())))
    jobs.append((folder / "patterns.json", partial(bytes, json.dumps({"names": PATTERNS, "mirror": MIRROR}, indent=1).encode())))
    write_files(jobs, "tiny:interhf", progress)


def touches(seed: int, subjects: int, clips: int, patterns: int, frames: int, size: int) -> list[tuple[str, Touch]]:
    """Split and description of every clip. Nobody is in two splits, and every pattern comes about equally often."""
    aside = max(1, subjects // 8)
    found: list[tuple[str, Touch]] = []
    for subject in range(subjects):
        split = "test" if subject >= subjects - aside else "val" if subject >= subjects - 2 * aside else "train"
        for number in range(clips):
            pattern = (number + subject * clips) % patterns
            found.append((split, Touch(seed, f"s{subject:03d}_{number:02d}", subject, pattern, frames, size)))
    return found


def _files(folder: Path, split: str, touch: Touch, as_folders: bool) -> tuple[dict[str, object], list[Job]]:
    name, clip = PATTERNS[touch.pattern], touch.clip
    place, side, deed = name.split("_")
    video, masks = (f"videos/{name}/{clip}", f"masks/{clip}") if as_folders else (f"videos/{name}/{clip}.mp4", f"masks/{clip}.npz")
    keypoints, face_id = f"keypoints/{clip}.npz", f"id/{clip}.npy"
    record: dict[str, object] = {
        "clip": clip, "video": video, "pattern": touch.pattern, "subject": f"s{touch.subject:03d}", "fps": FPS, "width": touch.size,
        "height": touch.size, "frames": touch.frames, "split": split, "masks": masks, "keypoints": keypoints, "id": face_id,
        "caption": f"a hand {SAID[deed]} the {place} on the {side} of the picture",
        "contact_frames": np.flatnonzero(course(touch).touching).tolist(),
    }  # fmt: skip
    jobs: list[Job] = []
    if as_folders:
        for number in range(touch.frames):
            jobs.append((folder / video / f"{number:06d}.jpg", partial(_frame, touch, number)))
            jobs += [(folder / masks / region / f"{number:06d}.png", partial(_mask, touch, number, r)) for r, region in enumerate(REGIONS)]
    else:
        jobs += [(folder / video, partial(_video, touch)), (folder / masks, partial(_masks, touch))]
    jobs += [(folder / keypoints, partial(_keypoints, touch)), (folder / face_id, partial(_identity, touch))]
    return record, jobs


def _video(touch: Touch) -> bytes:
    return encode_video(film(touch).frames, FPS, ".mp4")


def _masks(touch: Touch) -> bytes:
    masks = film(touch).masks
    return _npz(masks=np.packbits(masks, axis=-1), shape=np.array(masks.shape))


def _keypoints(touch: Touch) -> bytes:
    return _npz(hands=film(touch).hands, face=film(touch).face)


def _identity(touch: Touch) -> bytes:
    file = io.BytesIO()
    np.save(file, identity(touch))
    return file.getvalue()


def _frame(touch: Touch, number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(film(touch).frames[number]).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def _mask(touch: Touch, number: int, region: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(film(touch).masks[number, region]).convert("L").save(file, "PNG")
    return file.getvalue()


def _npz(**arrays: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()
