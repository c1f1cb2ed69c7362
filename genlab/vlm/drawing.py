"""Regions drawn into pictures, to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

LEAST = 224  # pixels of the shorter side at least
SAID, TRUE = (255, 40, 40), (40, 200, 80)


def drawn_regions(image: Tensor, said: Sequence[Sequence[float]], true: Sequence[Sequence[float]] = ()) -> NDArray[np.uint8]:
    """A picture (3, H, W) uint8 with boxes in its pixels, what was said in red over what is true in green -> (1, h, w, 3), enlarged."""
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    scale = max(1, -(-LEAST // min(picture.size)))
    shown = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    draw, width = ImageDraw.Draw(shown), max(2, round(min(shown.size) / 100))
    for boxes, colour, line in ((true, TRUE, 2 * width), (said, SAID, width)):
        for left, top, right, bottom in boxes:
            corners = (left * scale, top * scale, max(right * scale - 1, left * scale), max(bottom * scale - 1, top * scale))
            draw.rectangle(corners, outline=colour, width=line)
    return np.asarray(shown)[None]
