"""Pictures of a few-shot set, and the samples that they become: CLIP's own crop, random crops, or features that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from datamodules.fewshot_index import FewShotLists, Picture, spoken
from datamodules.fewshot_sampling import subset
from datamodules.images import open_picture
from datamodules.sampling import Draw
from datamodules.transforms import random_part
from genlab.batches import FewShotBatch
from genlab.training.randomness import keyed_rng


@dataclass(frozen=True)
class PictureSet:
    """Pictures of a set.

    Args:
        dataset: Which they are from.
        paths: (N,) of the files.
        ids: (N,) below the dataset's folder.
        labels: (N,) counting from 0 within the set's classes.
        names: Of the classes, as prompts have them.
        places: Of the classes among all of the dataset.
        of: How many that are.
    """

    dataset: str
    paths: NDArray[np.str_]
    ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    names: list[str]
    places: list[int]
    of: int

    def __len__(self) -> int:
        return len(self.paths)


def picture_set(dataset: str, lists: FewShotLists, split: str, positions: Sequence[int], classes: Sequence[int]) -> PictureSet:
    """Those of the pictures at these positions of a split whose class is one of these."""
    pictures: list[Picture] = [lists.splits[split][i] for i in positions]
    kept = subset([picture.label for picture in pictures], classes)
    ids = [pictures[i].path for i, _ in kept]
    paths = [str(lists.folder / name) for name in ids]
    labels = np.array([label for _, label in kept], np.int64)
    places = sorted(classes)
    names = [spoken(lists.names[place]) for place in places]
    return PictureSet(dataset, np.array(paths, np.str_), np.array(ids, np.str_), labels, names, places, len(lists.names))


def centre(picture: Image.Image, size: int) -> torch.Tensor:
    """CLIP's own preprocessing before normalisation: shorter side to ``size``, bicubically, centre crop; (3, size, size) uint8."""
    resized = vision.resize(picture, [size], InterpolationMode.BICUBIC, antialias=True)
    return vision.pil_to_tensor(vision.center_crop(resized, [size, size]))


def random_crop(picture: Image.Image, size: int, scale: Sequence[float], rng: np.random.Generator) -> torch.Tensor:
    """A crop of random area and proportion (3/4 to 4/3), resized bicubically, mirrored half of the time: (3, size, size) uint8.

    Args:
        scale: Smallest and largest share of the area.
    """
    width, height = picture.size
    part = random_part(height, width, scale, (3 / 4, 4 / 3), rng)
    if part is not None:
        top, left, h, w = part
    else:  # the largest middle part of an allowed proportion
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        top, left = (height - h) // 2, (width - w) // 2
    crop = vision.resized_crop(picture, top, left, h, w, [size, size], InterpolationMode.BICUBIC)
    return vision.pil_to_tensor(vision.horizontal_flip(crop) if rng.random() < 0.5 else crop)


class FewShotDataset(Dataset[dict[str, Any]]):
    """Samples of a set: features where they are there, else pixels.

    Args:
        pictures: The set.
        size: Pixels per side.
        crop_scale: Of random crops; ``None`` for evaluation.
        seed: Keys the crops.
    """

    def __init__(self, pictures: PictureSet, size: int, crop_scale: Sequence[float] | None = None, seed: int = 0) -> None:
        self.pictures, self.size, self.crop_scale, self.seed = pictures, size, crop_scale, seed
        self.features: torch.Tensor | None = None  # (N, D) or (V, N, D)
        self.readable: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        i, own = draw.index, self.pictures
        sample = {"label": int(own.labels[i]), "id": str(own.ids[i]), "index": i}
        if self.features is None or self.readable is None:
            return sample | self._pixels(draw)
        at = (draw.epoch % len(self.features), i) if self.features.ndim == 3 else i
        return sample | {"feature": self.features[at], "readable": self.readable[at]}

    def _pixels(self, draw: Draw) -> dict[str, Any]:
        i = draw.index
        try:
            picture = open_picture(Path(str(self.pictures.paths[i])))
        except OSError:
            return {"image": torch.zeros(3, self.size, self.size, dtype=torch.uint8), "readable": torch.tensor(False)}
        if self.crop_scale is None:
            return {"image": centre(picture, self.size), "readable": torch.tensor(True)}
        rng = keyed_rng(self.seed, "augment", draw.epoch, str(self.pictures.ids[i]), draw.occurrence)
        return {"image": random_crop(picture, self.size, self.crop_scale, rng), "readable": torch.tensor(True)}


def collate(samples: list[dict[str, Any]]) -> FewShotBatch:
    """Samples -> batch."""
    batch: Any = default_collate([{key: value for key, value in each.items() if key != "id"} for each in samples])
    return batch | {"id": [each["id"] for each in samples]}
