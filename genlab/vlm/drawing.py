"""Replies with their regions drawn into the picture, to look at."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIDE, PANEL, FONT = 256, 640, 22  # pixels: of the picture's height, and of the text beside it
SAID, TRUE, INK = (255, 40, 40), (40, 200, 80), (30, 30, 30)


def drawn_reply(image: Tensor, text: str, said: Sequence[Sequence[float]], true: Sequence[Sequence[float]] = ()) -> NDArray[np.uint8]:
    """A picture (3, H, W) uint8 beside a reply about it -> (1, h, w, 3): boxes that were said in red, over the true ones in green."""
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    scale = SIDE / picture.height
    sheet = Image.new("RGB", (round(picture.width * scale) + PANEL, SIDE), "white")
    sheet.paste(picture.resize((sheet.width - PANEL, SIDE), Image.Resampling.NEAREST), (0, 0))
    draw = ImageDraw.Draw(sheet)
    for boxes, colour, line in ((true, TRUE, 7), (said, SAID, 3)):
        for box in boxes:
            left, top, right, bottom = (value * scale for value in box)
            draw.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), outline=colour, width=line)
    draw.rectangle((sheet.width - PANEL, 0, sheet.width, SIDE), fill="white")  # over boxes that reach beyond the picture
    lines = textwrap.wrap(text, 56)[: SIDE // (FONT + 6)]
    draw.multiline_text((sheet.width - PANEL + 12, 6), "\n".join(lines), INK, ImageFont.load_default(FONT), spacing=6)
    return np.asarray(sheet)[None]
