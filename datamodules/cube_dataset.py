"""Spectral cubes with their colour pictures as samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.cube_cache import CubeCache
from datamodules.hyspefas_index import Sample, UnreadableCube
from datamodules.sampling import Draw
from datamodules.spectral_augment import SpectralAugment, resized
from datamodules.spectral_channels import Channels
from genlab.batches import SpectralBatch
from genlab.errors import UserError
from genlab.training.randomness import keyed_rng


class CubeDataset(Dataset[dict[str, Any]]):
    """Samples of one split.

    Args:
        samples: In the order of the list.
        cache: Has the cubes.
        channels: Picks and orders the channels of a cube and its picture.
        image_size: Pixels per side.
        factors: (N,) weights of the samples in the loss.
        augment: ``None`` for evaluation.
        seed: Keys the augmentation.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        cache: CubeCache,
        channels: Channels,
        image_size: int,
        factors: np.ndarray,
        augment: SpectralAugment | None,
        seed: int,
    ) -> None:
        self.samples, self.cache, self.channels, self.image_size = list(samples), cache, channels, image_size
        self.factors, self.augment, self.seed = factors, augment, seed
        self.labels = np.array([each.label for each in samples])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        index, substituted = draw.index, False
        try:
            cube, picture = self.cache.read(self.samples[index])
        except UnreadableCube as error:
            if self.augment is None:
                return self._item(draw, index, torch.zeros(self.channels.count, self.image_size, self.image_size), None, readable=False)
            index, cube, picture = self._substitute(index, error)
            substituted = True
        x = self.channels.pick(cube, picture)
        if self.augment is not None:
            rng = keyed_rng(self.seed, "augment", draw.epoch, self.samples[draw.index].id, draw.occurrence)
            return self._item(draw, index, self.augment(x, self.image_size, rng), None, substituted=substituted)
        shown = resized(torch.from_numpy(np.array(picture)).permute(2, 0, 1).float(), self.image_size).round().clamp(0, 255).byte()
        return self._item(draw, index, resized(x, self.image_size), shown)

    def _item(
        self, draw: Draw, index: int, image: Tensor, shown: Tensor | None, readable: bool = True, substituted: bool = False
    ) -> dict[str, Any]:
        sample = self.samples[index]
        nothing = torch.zeros(0, dtype=torch.uint8)
        size = (3, self.image_size, self.image_size)
        if shown is None and self.augment is None:
            shown = torch.zeros(size, dtype=torch.uint8)
        return {
            "image": image,
            "shown": nothing if shown is None else shown,
            "label": sample.label,
            "type": sample.type,
            "factor": float(self.factors[index]),
            "id": self.samples[draw.index].id,
            "index": draw.index,
            "occurrence": draw.occurrence,
            "readable": readable,
            "substituted": substituted,
        }

    def _substitute(self, index: int, error: UnreadableCube) -> tuple[int, np.ndarray, np.ndarray]:
        """The next readable sample of the same class, in the order of the ids."""
        mine = np.flatnonzero(self.labels == self.labels[index])
        mine = mine[np.argsort([self.samples[i].id for i in mine])]
        place = int(np.flatnonzero(mine == index)[0])
        for other in np.roll(mine, -place)[1:].tolist():
            try:
                return other, *self.cache.read(self.samples[other])
            except UnreadableCube:
                continue
        raise UserError(f"data.root: no sample of label {self.labels[index]} can be read; the first: {error}.")


def collate(samples: list[dict[str, Any]]) -> SpectralBatch:
    """Samples -> batch."""
    batch: Any = {name: torch.stack([each[name] for each in samples]) for name in ("image", "shown")}
    batch |= {name: torch.tensor([each[name] for each in samples]) for name in ("label", "index", "occurrence")}
    batch |= {name: torch.tensor([each[name] for each in samples], dtype=torch.bool) for name in ("readable", "substituted")}
    batch["factor"] = torch.tensor([each["factor"] for each in samples], dtype=torch.float32)
    return batch | {name: [each[name] for each in samples] for name in ("id", "type")}
