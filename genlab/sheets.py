"""Pictures in rows: frames of clips with what spoke for a decision, contact sheets, and sheets one below the other.

Every function returns a PIL image and, given a ``path``, also writes it there as PNG, atomically. Names are drawn as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from genlab.figures import FAKE, INK, QUIET, REAL, SIDES, saved


def _font(size: int, bold: bool = False) -> Any:
    """DejaVu Sans as Matplotlib ships it, found without importing Matplotlib: PIL's own font knows little beyond Latin letters."""
    found = find_spec("matplotlib")
    assert found and found.origin, "matplotlib is a dependency"
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / name, size)


def _fitting(text: str, width: float, font: Any) -> str:
    """The text in one line, shortened in the middle until it is at most `width` pixels wide."""
    text = " ".join(text.split())[:400]
    if font.getlength(text) <= width:
        return text
    for keep in range(len(text) - 1, 0, -1):
        shorter = text[: (keep + 1) // 2] + "…" + text[len(text) - keep // 2 :]
        if font.getlength(shorter) <= width:
            return shorter
    return "…"


def _rgb(name: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(name[1:]))


def frame_strip(
    frames: NDArray[np.uint8],
    heat: NDArray[Any] | None = None,
    title: str = "",
    path: Path | str | None = None,
    height: int = 128,
    sides: tuple[str, str] = SIDES,
) -> Image.Image:
    """A clip's frames in a row; with `heat`, a second row shows where "generated" (red) and where "real" (blue) was seen.

    Args:
        frames: (T, H, W, 3) uint8.
        heat: (T, h, w) of any scale, > 0 speaks for "generated"; its cells are drawn as they are, not smoothed. The strongest cell of the
            clip gets the full colour, so strips cannot be compared by colour: the key tells the value.
        title: One line above; shortened to fit.
        path: PNG to write.
        height: Of one frame in pixels.
        sides: What blue and red mean; an empty word for blue, of a heat that is never below 0.

    Raises:
        ValueError: Shapes that do not fit.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames: {frames.dtype} {frames.shape}; need uint8 (T, H, W, 3).")
    if heat is not None and (heat.ndim != 3 or len(heat) != len(frames)):
        raise ValueError(f"heat: {heat.shape} for {len(frames)} frames; need (T, h, w).")
    width, gap, top = max(round(height * frames.shape[2] / frames.shape[1]), 1), 3, 26 if title else 0
    rows, bottom = (1, 0) if heat is None else (2, 24)
    wide = max((width + gap) * len(frames) - gap, 320 if bottom else 1)  # room for the key
    sheet = Image.new("RGB", (wide, top + (height + gap) * rows - gap + bottom), "white")
    small = [Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS) for frame in frames]
    for number, frame in enumerate(small):
        sheet.paste(frame, ((width + gap) * number, top))
    draw = ImageDraw.Draw(sheet)
    if title:
        font = _font(14, bold=True)
        draw.text((1, 4), _fitting(title, sheet.width - 2, font), INK, font)
    if heat is not None:
        values = np.nan_to_num(np.asarray(heat, np.float64))
        scale = float(np.abs(values).max())
        for number, frame in enumerate(small):
            overlaid = _overlaid(frame, values[number] / (scale or 1.0))
            sheet.paste(overlaid, ((width + gap) * number, top + height + gap))
        _heat_key(draw, sheet, scale, sides)
    return saved(sheet, path)


def _overlaid(frame: Image.Image, heat: NDArray[Any]) -> Image.Image:
    """The frame in pale grey under red (heat 1) or blue (heat -1); grey, so that the clip's own colours are not taken for heat."""
    grey = np.repeat(90 + 0.6 * np.asarray(frame.convert("L"), np.float32)[..., None], 3, 2)
    cells = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(frame.size, Image.Resampling.NEAREST))[..., None]
    color = np.where(cells > 0, np.array(_rgb(FAKE), np.float32), np.array(_rgb(REAL), np.float32))
    alpha = 0.8 * np.abs(cells)
    return Image.fromarray((grey * (1 - alpha) + color * alpha).round().astype(np.uint8))


def _heat_key(draw: ImageDraw.ImageDraw, sheet: Image.Image, scale: float, sides: tuple[str, str]) -> None:
    font, y = _font(11), sheet.height - 18
    blue, red = sides
    left = (f"{blue} {-scale:.2g}" if scale else blue) if blue else "0"
    right = f"{scale:+.2g} {red}" if scale else f"{red} (all zero)"
    x = sheet.width - 100 - int(font.getlength(right)) - 8
    ramp = np.linspace(-1 if blue else 0, 1, 100)[None].repeat(10, 0)
    sheet.paste(_overlaid(Image.new("RGB", (100, 10), "#d2d2d2"), ramp), (x, y + 2))
    draw.text((x - 6 - font.getlength(left), y), left, INK, font)
    draw.text((x + 106, y), right, INK, font)


def contact_sheet(
    images: Sequence[NDArray[np.uint8] | Image.Image],
    captions: Sequence[str] | None = None,
    columns: int = 6,
    path: Path | str | None = None,
    width: int = 160,
) -> Image.Image:
    """Pictures in a grid, each fitted into a cell of the same size, with its caption below.

    Args:
        images: uint8 (H, W, 3) arrays or PIL images, of any sizes.
        captions: One each; lines are split at newlines and shortened to fit.
        columns: Cells per row.
        path: PNG to write.
        width: Of one cell in pixels; its height follows the median shape.

    Raises:
        ValueError: No images, or another number of captions.
    """
    if not images or (captions is not None and len(captions) != len(images)):
        raise ValueError(f"{len(images)} images and {len(captions or [])} captions; need images, and a caption for each or none.")
    pictures = [(image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB") for image in images]
    height = round(width * float(np.clip(np.median([p.height / p.width for p in pictures]), 0.4, 2.0)))
    lines = max((len(caption.splitlines()) for caption in captions or ()), default=0)
    gap, below, font = 8, 15 * lines + (3 if lines else 0), _font(11)
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", ((width + gap) * columns + gap, (height + below + gap) * rows + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for number, picture in enumerate(pictures):
        x, y = gap + (width + gap) * (number % columns), gap + (height + below + gap) * (number // columns)
        factor = min(width / picture.width, height / picture.height)
        size = max(round(picture.width * factor), 1), max(round(picture.height * factor), 1)
        enlarged = Image.Resampling.NEAREST if factor >= 2 else Image.Resampling.LANCZOS  # big pixels rather than a blur
        draw.rectangle((x, y, x + width - 1, y + height - 1), "#f1f3f6")
        sheet.paste(picture.resize(size, enlarged), (x + (width - size[0]) // 2, y + (height - size[1]) // 2))
        for line, text in enumerate((captions[number] if captions else "").splitlines()):
            draw.text((x, y + height + 3 + 15 * line), _fitting(text, width, font), INK if line == 0 else QUIET, font)
    return saved(sheet, path)


def stack(images: Sequence[Image.Image], path: Path | str | None = None, gap: int = 12) -> Image.Image:
    """Pictures below each other on white, e.g. the strips of several clips; at least one."""
    if not images:
        raise ValueError("images: none to stack.")
    sheet = Image.new("RGB", (max(i.width for i in images), sum(i.height + gap for i in images) - gap), "white")
    y = 0
    for image in images:
        sheet.paste(image, (0, y))
        y += image.height + gap
    return saved(sheet, path)
