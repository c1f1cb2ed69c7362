"""Bright pictures are real, dark ones generated; and a small model that has learnt to say so in reply to the shipped prompt ``simple``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from genlab.training.randomness import keyed_rng
from genlab.vlm.conversations import load_prompt
from genlab.vlm.local import as_chat
from genlab.vlm.masking import assistant, training_batch
from genlab.weights import load_pretrained, resolve

STEPS, BATCH = 60, 8


def picture(seed: str, number: int, label: int) -> bytes:
    """A flat colour with noise, 56 x 56, as PNG: 170 to 250 is real, 5 to 85 generated (label 1)."""
    rng = keyed_rng("bright and dark", seed, number, label)
    colour = rng.integers(5, 86, 3) if label else rng.integers(170, 251, 3)
    pixels = np.clip(colour + rng.normal(0, 8, (56, 56, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_set(root: Path, count: int, seed: str = "test") -> Path:
    """``count`` pictures of each kind in real/ and fake/."""
    for label, name in ((0, "real"), (1, "fake")):
        for number in range(count):
            path = root / name / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(seed, number, label))
    return root


def tuned_model(folder: Path) -> Path:
    """``tiny:vlm``, trained for a minute at most on pictures that no test set has."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.manual_seed(0)
    model: Any = load_pretrained(AutoModelForImageTextToText, "tiny:vlm")
    processor: Any = AutoProcessor.from_pretrained(resolve("tiny:vlm"), local_files_only=True)
    prompt = load_prompt("simple")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(STEPS):
        labels = [(step + i) % 2 for i in range(BATCH)]
        chats = [as_chat(next(prompt.ask(picture("train", step * BATCH + i, label)))) for i, label in enumerate(labels)]
        said = [assistant("generated" if label else "real") for label in labels]
        batch = training_batch(processor, [[*chat, end] for (chat, _), end in zip(chats, said)], [pictures for _, pictures in chats])  # type: ignore[misc]
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
