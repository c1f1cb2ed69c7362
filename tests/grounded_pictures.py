"""Bright photographs and dark generated pictures with grounding JSONL, in the layout in which such sets are passed on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from genlab.training.randomness import keyed_rng

LIGHTS = {"real": (170, 250), "fake": (5, 85)}
QUESTION = "Is this picture real or generated?"


def write_lights(root: Path, train: int = 64, test: int = 32, size: int = 56, reasons: bool = True, blind: bool = False) -> Path:
    """``real/``, ``fake/dim/``, ``grounding_train.jsonl``, ``grounding_test.jsonl``; every second picture is generated.

    Args:
        reasons: Answers have reasons, boxes and a verdict; else the word alone, ``<verdict>`` around it.
        blind: The answers have nothing to do with the pictures.
    """
    for split, count in (("train", train), ("test", test)):
        lines = []
        for number in range(count):
            kind, rng = ("real", "fake")[number % 2], keyed_rng("lights", split, number)
            name = f"{'real' if kind == 'real' else 'fake/dim'}/{split}{number:04d}.png"
            pixels = rng.integers(*LIGHTS[kind], 3) + rng.normal(0, 8, (size, size, 3))
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name)
            generated = bool(rng.integers(2)) if blind else kind == "fake"
            verdict = f"<verdict>{'generated' if generated else 'real'}</verdict>"
            said = "<ref-object><bbox> is dark." if generated else "It is bright."
            turns = [{"role": "user", "content": f"<image>{QUESTION}"}]
            line = {"messages": [*turns, {"role": "assistant", "content": f"<think>{said}</think>{verdict}" if reasons else verdict}]}
            line["images"] = [name]
            if generated and reasons:
                line["objects"] = {"ref": ["the whole"], "bbox": [[0, 0, size, size]]}
            elif generated:
                line["objects"] = {"ref": [], "bbox": []}
            lines.append(json.dumps(line))
        (root / f"grounding_{split}.jsonl").write_text("\n".join(lines) + "\n")
    return root
