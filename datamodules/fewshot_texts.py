"""What is said of a few-shot dataset's classes: templates (CoOp; Tip-Adapter's ensemble for ImageNet), sentences and names from files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from datamodules.fewshot_index import spoken
from datamodules.listfiles import read_json
from genlab.errors import UserError

TEMPLATES = {
    "imagenet": "a photo of a {}.",
    "caltech101": "a photo of a {}.",
    "oxford_pets": "a photo of a {}, a type of pet.",
    "stanford_cars": "a photo of a {}.",
    "oxford_flowers": "a photo of a {}, a type of flower.",
    "food101": "a photo of {}, a type of food.",
    "fgvc": "a photo of a {}, a type of aircraft.",
    "sun397": "a photo of a {}.",
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "ucf101_midframes": "a photo of a person doing {}.",
}
ENSEMBLES = {  # averaged over, where a dataset has more than the one
    "imagenet": [
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ],
}


def sentences_of(path: Path, names: Sequence[str]) -> list[list[str]]:
    """Sentences for each class from a JSON file in CuPL's form: class name -> list of sentences. Case and underscores do not matter.

    Raises:
        UserError: The file has another form, or lacks classes; all of them in one message.
    """
    content = read_json(path, "python -m genlab data prepare descriptions writes one.")
    if not isinstance(content, dict) or not all(isinstance(v, list) and all(isinstance(s, str) for s in v) for v in content.values()):
        raise UserError(f"{path}: expected an object: class name -> list of sentences.")
    known = {spoken(name).lower(): lines for name, lines in content.items()}
    if missing := [name for name in names if not known.get(name.lower())]:
        raise UserError(f"{path} has no sentences for {len(missing)} of {len(names)} classes: {', '.join(missing)}. Add them there.")
    return [known[name.lower()] for name in names]


def read_names(path: Path) -> list[str]:
    """Class names of a text file with one a line, or the keys of a JSON object."""
    if path.suffix == ".json":
        return list(json.loads(path.read_text(encoding="utf-8")))
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
