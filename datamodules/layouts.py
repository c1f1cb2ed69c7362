"""Which module reads the layout of which dataset. Importing this imports none of them.

Such a module has ``items(root, dataset) -> list[Item]``, every sample of the folder, readable or not, and ``preview(item)``, its pictures:
the same number for every sample of the dataset, none where it cannot be read. It may have ``note(item)``, a line under the pictures;
without, that is the name of the file. The datasets' data modules read their folders through the same functions.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from datamodules.checks import Item

LAYOUTS = {
    **dict.fromkeys(("kinetics400", "ucf101", "hmdb51", "ssv2"), "datamodules.action_index"),
    **dict.fromkeys(
        (
            "imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc", "sun397", "dtd", "eurosat",
            "ucf101_midframes",
        ),
        "datamodules.fewshot_index",
    ),
    "domain_images": "datamodules.domain_images_index",
    **dict.fromkeys(("dreambooth", "multimodal_prompt"), "datamodules.subjects_index"),
    **dict.fromkeys(("defake", "plain_defake"), "datamodules.defake_index"),
    "inpainting": "datamodules.inpainting_index",
    "hyspefas": "datamodules.hyspefas_index",
    "interhf": "datamodules.interhf_index",
    "captions": "datamodules.captioned_index",
    "captions_b": "datamodules.captioned_index",
    "captioned_clips": "datamodules.captioned_clips_index",
    "questions": "datamodules.questions_index",
}  # fmt: skip


class Layout(Protocol):
    """A module that reads the layout of a dataset."""

    def items(self, root: Path, dataset: str) -> list[Item]: ...

    def preview(self, item: Item) -> Sequence[Image | np.ndarray]: ...


def layout_of(dataset: str) -> Layout:
    """The module for a name of ``LAYOUTS``."""
    return cast(Layout, importlib.import_module(LAYOUTS[dataset]))
