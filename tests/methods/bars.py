"""Small captioned pictures, a bar on a wall, and a quiet trainer: for the tests of pretraining methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Checkpoint
from PIL import Image

from datamodules.captioned_images import CaptionedImages
from genlab.training.randomness import keyed_rng

SIZE = 16
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (230, 230, 230)}


def write_bars(root: Path) -> Path:
    """A bar of one of four colours on a dark or a pale wall: 16 pictures to train on, 8 of other noise in each held-out split."""
    for split, copies in (("train", 2), ("validation", 1), ("test", 1)):
        (root / split).mkdir()
        lines = []
        for number, (colour, wall) in enumerate([(c, w) for _ in range(copies) for c in COLOURS for w in ("dark", "pale")]):
            pixels = keyed_rng(split, number).integers(0, 40, (SIZE, SIZE, 3)).astype(np.uint8) + np.uint8(130 * (wall == "pale"))
            pixels[2:14, 4:12] = COLOURS[colour]
            Image.fromarray(pixels).save(root / split / f"{number}.png")
            prefix = "a photo of " if number % 3 else ""
            # "type" is also the name of a method of torch's modules; "world" has one class alone.
            line = {"file_name": f"{number}.png", "text": f"{prefix}a {colour} bar on a {wall} wall", "colour": colour}
            lines.append(json.dumps(line | {"type": wall, "world": "tiny"}))
        (root / split / "metadata.jsonl").write_text("\n".join(lines))
    return root


def data_of(root: Path, **options: Any) -> CaptionedImages:
    defaults = {"labels": ["colour", "type", "world"], "image_size": SIZE, "in_memory": True, "shift": 1, "batch_size": 8}
    return CaptionedImages(str(root), **(defaults | options))


def trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks), num_sanity_val_steps=0,
        use_distributed_sampler=False, callbacks=list(callbacks), **options,
    )  # fmt: skip
