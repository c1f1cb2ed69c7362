"""The tiny world: procedural datasets in the layouts of the real ones, written on the spot.

`make` writes one into a folder of the user's; a data module's ``root: tiny:NAME`` goes through `tiny_root`, which writes it into
the cache on first use. Scenes are described and painted in scene.py, set in motion in video.py, spoiled in generators.py.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from genlab.errors import UserError

if TYPE_CHECKING:
    from datamodules.tinyworld.writing import Recipe

DATASETS: dict[str, str] = {  # name -> its writer: write(folder, *, seed, progress, **options)
    "genvideo": "datamodules.tinyworld.genvideo:write_genvideo",
    **{name: f"datamodules.tinyworld.actions:write_{name}" for name in ("kinetics400", "ucf101", "hmdb51", "ssv2")},
    **{
        name: f"datamodules.tinyworld.fewshot:write_{name}"
        for name in (
            "imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc", "sun397", "dtd", "eurosat",
            "ucf101_midframes",
        )
    },
    "domain_images": "datamodules.tinyworld.domains:write_domain_images",
    "dreambooth": "datamodules.tinyworld.subjects:write_dreambooth",
    "multimodal_prompt": "datamodules.tinyworld.subjects:write_multimodal_prompt",
    "defake": "datamodules.tinyworld.defake:write_defake",
    "plain_defake": "datamodules.tinyworld.plain_defake:write_plain_defake",
    "inpainting": "datamodules.tinyworld.holes:write_inpainting",
    "hyspefas": "datamodules.tinyworld.hyspefas:write_hyspefas",
    "interhf": "datamodules.tinyworld.interhf:write_interhf",
    # What the tiny models are pretrained on.
    "captions": "datamodules.tinyworld.captions:write_captions",
    "captions_b": "datamodules.tinyworld.captions:write_captions_b",
    "captioned_clips": "datamodules.tinyworld.captioned_clips:write_captioned_clips",
    "questions": "datamodules.tinyworld.questions:write_visual_questions",
}  # fmt: skip


def make(dataset: str, root: Path, *, seed: int = 0, progress: bool = True, **options: int) -> Path:
    """Writes the tiny dataset into the folder ``root``: all of it or nothing; a call that was interrupted is continued.

    Args:
        options: Those of the dataset's writer; the ones left out have its defaults.

    Returns:
        The folder. One that the same recipe finished before is left as it is.

    Raises:
        UserError: Unknown dataset or option, or ``root`` holds something else.
    """
    from datamodules.tinyworld.writing import build

    recipe = _recipe(dataset, seed, options)
    return build(Path(root), recipe, lambda folder: _writer(dataset)(folder, seed=seed, progress=progress, **recipe.options))


def tiny_root(root: str) -> Path:
    """The folder of ``tiny:NAME``, in the cache (``$GENLAB_CACHE`` or ``~/.cache/genlab``), written on first use; other paths as they are.

    Raises:
        UserError: No tiny dataset has that name.
    """
    dataset = str(root).removeprefix("tiny:")
    if dataset == str(root):
        return Path(root)
    cache = Path(os.environ.get("GENLAB_CACHE") or Path.home() / ".cache" / "genlab")
    return make(dataset, cache / "tiny" / f"{dataset}-{_recipe(dataset, 0, {}).hash}")


def _writer(dataset: str) -> Callable[..., None]:
    if dataset not in DATASETS:
        raise UserError(f"No tiny dataset is called {dataset!r}; there are: {', '.join(DATASETS)}.")
    module, name = DATASETS[dataset].split(":")
    return getattr(importlib.import_module(module), name)


def _recipe(dataset: str, seed: int, options: dict[str, int]) -> Recipe:
    """The recipe with the writer's defaults filled in."""
    from datamodules.tinyworld.scene import RENDERER_VERSION
    from datamodules.tinyworld.writing import Recipe

    signature = inspect.signature(_writer(dataset)).parameters
    defaults = {name: parameter.default for name, parameter in signature.items() if name not in ("folder", "seed", "progress")}
    for option in options.keys() - defaults.keys():
        near = difflib.get_close_matches(option, defaults, 1)
        raise UserError(
            f"{dataset} has no option {option!r}; " + (f"did you mean {near[0]!r}? " if near else "") + f"It has: {', '.join(defaults)}."
        )
    return Recipe(dataset, seed, {**defaults, **options}, RENDERER_VERSION)
