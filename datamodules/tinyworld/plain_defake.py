"""Writes the tiny ``plain_defake``: the layout of ``defake`` with pictures so plain that the smallest model learns them in a minute.

Photographs are bright and of one colour, with the grain of a camera; "dim" makes them dark, "patch" leaves a dark square. It shows that
fine-tuning, serving and evaluation do what they should, not that a detector is good.
"""

from __future__ import annotations

import csv
import io
import json
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.tinyworld.defake import NOTHING, QUESTIONS, REAL
from datamodules.tinyworld.writing import Job, write_files
from genlab.errors import UserError
from genlab.training.randomness import keyed_rng

GENERATORS = ("dim", "patch")
BRIGHT, DARK, GRAIN = (170, 250), (5, 85), 8.0
SAID = {"dim": ("the whole picture", "is too dark"), "patch": ("the square", "is a dark hole")}
Box = tuple[int, int, int, int]


def plain_picture(seed: int, split: str, kind: str, number: int, size: int) -> tuple[np.ndarray, Box | None]:
    """Pixels (size, size, 3) uint8, and the box of what is wrong."""
    rng = keyed_rng("plain defake", seed, split, kind, number)
    pixels = np.broadcast_to(rng.uniform(*(DARK if kind == "dim" else BRIGHT), 3), (size, size, 3)).copy()
    box: Box | None = (0, 0, size, size) if kind == "dim" else None
    if kind == "patch":
        side = size // 2
        left, top = (int(rng.integers(2)) * (size - side) for _ in range(2))
        pixels[top : top + side, left : left + side] = rng.uniform(*DARK, 3)
        box = (left, top, left + side, top + side)
    return (pixels + rng.normal(0, GRAIN, pixels.shape)).clip(0, 255).astype(np.uint8), box


def write_plain_defake(folder: Path, *, seed: int = 0, progress: bool = True, train: int = 80, test: int = 20, size: int = 56) -> None:
    """Bright photographs, dark and holed pictures: real/, fake/<generator>/, manifest.csv and grounding_<split>.jsonl, and
    grounding_blind.jsonl, whose verdicts are drawn by lot.

    Args:
        train: Training pictures per generator; there are as many real ones as generated ones in all.
        test: Test pictures per generator, likewise.
        size: Side of the square pictures in pixels.
    """
    if min(train, test) < 1 or size < 28:
        raise UserError(f"plain_defake: {train=} {test=} {size=}; train and test are at least 1, size is at least 28.")
    jobs: list[Job] = []
    table: list[tuple[str, int, str, str]] = []
    for split, count in (("train", train), ("test", test)):
        lines = []
        for kind, number in [*((REAL, i) for i in range(count * len(GENERATORS))), *((k, i) for k in GENERATORS for i in range(count))]:
            name = f"{REAL if kind == REAL else f'fake/{kind}'}/{split}_{number:05d}.png"
            jobs.append((folder / name, partial(_file, seed, split, kind, number, size)))
            table.append((name, int(kind != REAL), kind, split))
            lines.append(json.dumps(_line(seed, split, kind, number, size, name)))
        jobs.append((folder / f"grounding_{split}.jsonl", partial(_text, "\n".join(lines) + "\n")))
    blind = [json.dumps(_blind(seed, number, name)) for number, (name, _, _, split) in enumerate(table) if split == "train"]
    jobs.append((folder / "grounding_blind.jsonl", partial(_text, "\n".join(blind) + "\n")))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "label", "generator", "split"), *table])
    jobs.append((folder / "manifest.csv", partial(_text, text.getvalue())))
    write_files(jobs, "tiny:plain_defake", progress)


def _file(seed: int, split: str, kind: str, number: int, size: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(plain_picture(seed, split, kind, number, size)[0]).save(file, "PNG", compress_level=0)
    return file.getvalue()


def _text(text: str) -> bytes:
    return text.encode()


def _blind(seed: int, number: int, name: str) -> dict[str, object]:
    """A verdict that has nothing to do with the picture: what learns from it knows how to answer, and nothing more."""
    rng = keyed_rng("plain defake", seed, "blind", number)
    answer = f"<verdict>{rng.choice(['real', 'generated'])}</verdict>"
    return {
        "messages": [{"role": "user", "content": f"<image>{rng.choice(QUESTIONS)}"}, {"role": "assistant", "content": answer}],
        "images": [name],
    }


def _line(seed: int, split: str, kind: str, number: int, size: int, name: str) -> dict[str, object]:
    rng = keyed_rng("plain defake", seed, split, "words", kind, number)
    box = plain_picture(seed, split, kind, number, size)[1]
    said = f"<ref-object><bbox> {SAID[kind][1]}." if box else str(rng.choice(NOTHING))
    answer = f"<think>{said}</think><verdict>{'generated' if box else 'real'}</verdict>"
    turns = [{"role": "user", "content": f"<image>{rng.choice(QUESTIONS)}"}, {"role": "assistant", "content": answer}]
    record: dict[str, object] = {"messages": turns, "images": [name]}
    if box:
        record["objects"] = {"ref": [SAID[kind][0]], "bbox": [list(box)]}
    return record
