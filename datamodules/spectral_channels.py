"""Which channels of a spectral cube and its colour picture make up a sample, and their official means and deviations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from genlab.errors import UserError

Colour = Literal["bgr", "rgb", "none"]
BANDS = 30
# Official code; blue, green, red, then the 30 bands.
MEAN = (
    0.35215, 0.66979, 0.57979, 0.22949, 0.27021, 0.33661, 0.32604, 0.28016, 0.26948, 0.39492, 0.50754, 0.53631, 0.55311, 0.51977, 0.41486,
    0.34004, 0.29859, 0.27718, 0.29235, 0.31529, 0.31187, 0.31366, 0.31363, 0.33947, 0.36436, 0.37508, 0.35468, 0.34376, 0.33043, 0.30675,
    0.31427, 0.33295, 0.24814,
)  # fmt: skip
STD = (
    0.06572, 0.13852, 0.11732, 0.09394, 0.11766, 0.14910, 0.14450, 0.12406, 0.11110, 0.16880, 0.23178, 0.25605, 0.26473, 0.25176, 0.20660,
    0.16688, 0.13876, 0.12013, 0.12526, 0.13763, 0.13851, 0.14021, 0.13672, 0.14666, 0.15653, 0.15890, 0.15247, 0.15162, 0.14895, 0.14175,
    0.14216, 0.14799, 0.10000,
)  # fmt: skip


class Channels:
    """Which channels a sample has, from cube and picture.

    Args:
        colour: Order of the colours, or none of them.
        bands: Numbers of bands from 1; ``None`` takes all of ``of``.
        of: Bands of a cube.
        scaling: ``per_sample_max`` divides each cube by its largest value.
    """

    def __init__(self, colour: Colour, bands: Sequence[int] | None, of: int, scaling: Literal["as_is", "per_sample_max"]) -> None:
        chosen = list(range(1, of + 1)) if bands is None else list(bands)
        if wrong := [band for band in chosen if not 1 <= band <= of]:
            raise UserError(f"data.bands: {wrong[0]} is no band; cubes have 1 to {of}.")
        self.colour, self.bands, self.of, self.scaling = colour, [band - 1 for band in chosen], of, scaling
        self.count = len(self.bands) + (0 if colour == "none" else 3)
        if not self.count:
            raise UserError("data.colour: none, and data.bands: []: there is nothing left to see.")

    def pick(self, cube: np.ndarray, picture: np.ndarray) -> Tensor:
        """(bands, H, W) and (H, W, 3) uint8 RGB -> (C, H, W) float32.

        Raises:
            UserError: The cube has another number of bands than the first one.
        """
        if cube.shape[0] != self.of:
            raise UserError(f"data.root: a cube has {cube.shape[0]} bands, the first one {self.of}. Do not mix sensors in one folder.")
        x = torch.empty(self.count, *cube.shape[1:])
        colours = 0
        if self.colour != "none":
            colours = 3
            order = (2, 1, 0) if self.colour == "bgr" else (0, 1, 2)
            for place, channel in enumerate(order):
                x[place] = torch.from_numpy(np.array(picture[..., channel]))
            x[:3] /= 255
        for place, band in enumerate(self.bands, colours):
            x[place] = torch.from_numpy(np.array(cube[band]))
        if self.bands and self.scaling == "per_sample_max":
            x[colours:] /= max(float(np.max(cube)), 1e-6)
        return x

    def official(self) -> tuple[Tensor, Tensor]:
        """Means and deviations of the official code for these channels, (C,) each."""
        order = {"bgr": [0, 1, 2], "rgb": [2, 1, 0], "none": []}[self.colour]
        places = [*order, *(3 + band for band in self.bands)]
        return torch.tensor(MEAN)[places], torch.tensor(STD)[places]
