"""Writes the tiny ``defake``: photographs and generated pictures, and for fine-tuning what is wrong with each, in words and boxes.

The folder tree is the one in which such sets are passed on, ``real/`` and ``fake/<generator>/``; ``manifest.csv`` splits it, and
``grounding_<split>.jsonl`` has a chat per picture in the form of ms-swift, ``<ref-object>`` and ``<bbox>`` standing for the entries of
``objects`` (Ji et al., arXiv 2504.14245; Gao et al., arXiv 2506.07045). Real and generated scenes have the same distribution, and the
files the same format, dimensions and number of bytes, so that only flaws tell them apart.
"""

from __future__ import annotations

import csv
import io
import json
from functools import partial
from pathlib import Path

from PIL import Image

from datamodules.tinyworld.image_generators import GENERATORS, Picture, generate_picture, photograph, still_clip
from datamodules.tinyworld.writing import Job, write_files
from genlab.errors import UserError
from genlab.training.randomness import keyed_rng

REAL = "real"
QUESTIONS = (
    "Is this picture real or generated? Give your reasons.",
    "Was this taken by a camera or made by a model? Explain what you see, then decide.",
    "Look for what cannot be. Is the picture real or generated?",
)
NOTHING = ("Outlines, colours and shadows agree.", "Nothing is out of place.", "The objects are whole and the grain is that of a camera.")


def defake_picture(seed: int, split: str, kind: str, number: int, size: int = 64) -> Picture:
    """Picture ``number`` of a split and a kind: "real" or the name of a generator. Splits and kinds never share a scene."""
    clip = still_clip(f"defake/{seed}/{split}/{kind}/{number}")
    return photograph(clip, size) if kind == REAL else generate_picture(kind, clip, size)


def write_defake(folder: Path, *, seed: int = 0, progress: bool = True, train: int = 80, test: int = 40, size: int = 64) -> None:
    """Photographs and generated pictures with grounded reasons: real/, fake/<generator>/, manifest.csv and grounding_<split>.jsonl.

    Args:
        train: Training pictures per generator; there are as many real ones as generated ones in all.
        test: Test pictures per generator, likewise.
        size: Side of the square pictures in pixels.
    """
    if min(train, test) < 1 or size < 32:
        raise UserError(f"defake: {train=} {test=} {size=}; train and test are at least 1, size is at least 32.")
    jobs: list[Job] = []
    for split, first, count in (("train", 0, train), ("test", train, test)):
        for kind, number in _members(count):
            jobs.append((folder / _name(kind, _shift(kind, first) + number), partial(_file, seed, split, kind, number, size)))
        jobs.append((folder / f"grounding_{split}.jsonl", partial(_grounding, seed, split, first, count, size)))
    jobs.append((folder / "manifest.csv", partial(_manifest, train, test)))
    write_files(jobs, "tiny:defake", progress)


def _members(count: int) -> list[tuple[str, int]]:
    return [(REAL, i) for i in range(count * len(GENERATORS))] + [(kind, i) for kind in GENERATORS for i in range(count)]


def _shift(kind: str, first: int) -> int:
    return first * len(GENERATORS) if kind == REAL else first


def _name(kind: str, number: int) -> str:
    return f"{REAL if kind == REAL else f'fake/{kind}'}/{number:05d}.png"


def _file(seed: int, split: str, kind: str, number: int, size: int) -> bytes:
    file = io.BytesIO()  # stored, not compressed: else the number of bytes would tell smooth pictures from grainy ones
    Image.fromarray(defake_picture(seed, split, kind, number, size).pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


def _manifest(train: int, test: int) -> bytes:
    """Columns path, label (1 = generated), generator, split."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("path", "label", "generator", "split"))
    for split, first, count in (("train", 0, train), ("test", train, test)):
        table.writerows((_name(kind, _shift(kind, first) + i), int(kind != REAL), kind, split) for kind, i in _members(count))
    return text.getvalue().encode()


def _grounding(seed: int, split: str, first: int, count: int, size: int) -> bytes:
    lines = []
    for kind, number in _members(count):
        rng = keyed_rng("defake", seed, split, "words", kind, number)
        flaws = defake_picture(seed, split, kind, number, size).flaws
        said = " ".join(f"<ref-object><bbox> {flaw.reason}." for flaw in flaws) or str(rng.choice(NOTHING))
        answer = f"<think>{said}</think><verdict>{'generated' if flaws else 'real'}</verdict>"
        turns = [{"role": "user", "content": f"<image>{rng.choice(QUESTIONS)}"}, {"role": "assistant", "content": answer}]
        record: dict[str, object] = {"messages": turns, "images": [_name(kind, _shift(kind, first) + number)]}
        if flaws:
            record["objects"] = {"ref": [flaw.thing for flaw in flaws], "bbox": [list(flaw.box) for flaw in flaws]}
        lines.append(json.dumps(record))
    return ("\n".join(lines) + "\n").encode()
