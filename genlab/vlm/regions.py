"""The part of a picture that is shown enlarged: chosen by edges, by outlines as the released code does, or by DINOv2's attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NEAR = 1e-9
MASS, MARGIN, LEAST_SIDE = 0.6, 0.1, 0.25  # of attention kept, of the box around it, of the picture's sides
PIXELS = 224  # per side of what DINOv2 sees
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Box = tuple[int, int, int, int]


def roi_energy(image: Image.Image) -> tuple[Box, float]:
    """The square window with the strongest edges: (left, top, right, bottom), end-exclusive, and the sum of |gx| + |gy| in it.

    Its side is half the shorter side; central differences of the grey picture; of equal windows the first by rows. Ours.
    """
    rgb = np.asarray(image.convert("RGB"))
    gray = rgb[..., 0] * 0.299
    gray += rgb[..., 1] * 0.587
    gray += rgb[..., 2] * 0.114
    edges = _steps(gray)
    edges += _steps(gray.T).T
    height, width = gray.shape
    side = int(np.floor(0.5 * min(height, width) + 0.5))
    rows, columns = (sorted({each for start in _positions(length, side) for each in (start, start + side)}) for length in gray.shape)
    cells = np.add.reduceat(np.add.reduceat(edges, [y for y in rows if y < height], 0), [x for x in columns if x < width], 1)
    table = np.pad(cells.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    row, column = ({start: i for i, start in enumerate(starts)} for starts in (rows, columns))
    best, box = -np.inf, (0, 0, width, height)
    for y in _positions(height, side):
        for x in _positions(width, side):
            top, bottom, left, right = row[y], row[y + side], column[x], column[x + side]
            total = float(table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left])
            if total > best + NEAR:
                best, box = total, (x, y, x + side, y + side)
    left, top, right, bottom = box
    return box, float(edges[top:bottom, left:right].sum())


def _steps(gray: NDArray[np.float64]) -> NDArray[np.float64]:
    """Size of the central difference along rows, the border repeated: (H, W) -> (H, W)."""
    found = np.zeros_like(gray)
    if gray.shape[1] > 1:
        np.subtract(gray[:, 2:], gray[:, :-2], out=found[:, 1:-1])
        found[:, 0], found[:, -1] = gray[:, 1] - gray[:, 0], gray[:, -1] - gray[:, -2]
    return np.abs(found, out=found)


def _positions(length: int, side: int) -> list[int]:
    last = length - side
    return sorted({*range(0, last + 1, max(1, side // 8)), last})


def roi_dinov2(image: Image.Image, model: Any) -> Box:
    """The box around what the class token attends to in the last layer, averaged over heads. Ours; the released function is empty.

    The fewest patches with 60 % of the attention, of these the largest part that hangs together by edges, 10 % margin, each side at least a
    quarter of the picture's.

    Args:
        model: A ``Dinov2Model`` whose attentions can be had ("eager").
    """
    import torch

    small = image.convert("RGB").resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
    pixels = (np.asarray(small, np.float32) / 255 - MEAN) / DEVIATION
    with torch.no_grad():
        seen = model(pixel_values=torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None], output_attentions=True)
    attention = seen.attentions[-1][0, :, 0, 1:].mean(0)
    grid = round(len(attention) ** 0.5)
    return attention_box(attention.reshape(grid, grid).double().numpy(), image.size)


def attention_box(attention: NDArray[np.float64], size: tuple[int, int]) -> Box:
    """(G, G) attention over a picture of (width, height) -> box; see :func:`roi_dinov2`."""
    from scipy.ndimage import label

    order = np.argsort(-attention, axis=None, kind="stable")
    share = np.cumsum(attention.ravel()[order]) / attention.sum()
    kept = np.zeros(attention.size, bool)
    kept[order[: int(np.searchsorted(share, MASS - NEAR)) + 1]] = True
    parts, _ = label(kept.reshape(attention.shape))  # neighbours by edges
    rows, columns = np.nonzero(parts == np.bincount(parts.ravel())[1:].argmax() + 1)
    (left, right), (top, bottom) = (
        _side(cells.min() / n, (cells.max() + 1) / n, length)
        for cells, n, length in ((columns, attention.shape[1], size[0]), (rows, attention.shape[0], size[1]))
    )
    return left, top, right, bottom


def _side(low: float, high: float, length: int) -> tuple[int, int]:
    """A stretch in shares of a side -> pixels, with margin, at least a quarter, inside."""
    margin = MARGIN * (high - low)
    low, high = low - margin, high + margin
    if high - low < LEAST_SIDE:
        middle = (low + high) / 2
        low, high = middle - LEAST_SIDE / 2, middle + LEAST_SIDE / 2
    low, high = max(0.0, min(low, 1 - LEAST_SIDE)), min(1.0, max(high, LEAST_SIDE))
    first = int(np.floor(low * length))
    return first, max(first + 1, int(np.ceil(high * length)))


def roi_adaptive(image: Image.Image) -> tuple[Image.Image, Box]:
    """The largest outline after an adaptive threshold, set upright, and the box around it, as the released code has it.

    Grey, Gaussian threshold (block 11, C 2, inverted), 3 x 3 closing, then opening; the whole picture where nothing is found.
    """
    import cv2

    gray = cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2GRAY)
    binary = cv2.adaptiveThreshold(gray, 255, cv2.ADAPTIVE_THRESH_GAUSSIAN_C, cv2.THRESH_BINARY_INV, 11, 2)
    kernel = np.ones((3, 3), np.uint8)
    binary = cv2.morphologyEx(cv2.morphologyEx(binary, cv2.MORPH_CLOSE, kernel), cv2.MORPH_OPEN, kernel)
    outlines, _ = cv2.findContours(binary, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not outlines:
        return image, (0, 0, *image.size)
    return _upright(image, cv2.minAreaRect(max(outlines, key=cv2.contourArea)))


def roi_pyramid(image: Image.Image) -> tuple[Image.Image, Box]:
    """The largest outline of edges over a grey pyramid (factor 1.5, down to 30 pixels; Canny 50/150), as the released code has it."""
    import cv2

    level, scale = cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2GRAY), 1.0
    best: Any = None
    while min(level.shape) >= 30:
        outlines, _ = cv2.findContours(cv2.Canny(level, 50, 150), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        if outlines:
            (x, y), (w, h), angle = cv2.minAreaRect(max(outlines, key=cv2.contourArea))
            if best is None or w * h * scale**2 > best[1][0] * best[1][1]:
                best = (x * scale, y * scale), (w * scale, h * scale), angle
        scale *= 1.5
        level = cv2.resize(level, (int(level.shape[1] / 1.5), int(level.shape[0] / 1.5)))
    return (image, (0, 0, *image.size)) if best is None else _upright(image, best)


def _upright(image: Image.Image, rectangle: Any) -> tuple[Image.Image, Box]:
    """A rotated rectangle as a picture, and the box around it; the whole picture where it is too thin to be one."""
    import cv2

    width, height = (round(side) for side in rectangle[1])
    if min(width, height) < 2:
        return image, (0, 0, *image.size)
    corners = cv2.boxPoints(rectangle).astype(np.float32)
    target = np.array([[0, height - 1], [0, 0], [width - 1, 0], [width - 1, height - 1]], np.float32)
    turned = cv2.warpPerspective(
        np.asarray(image.convert("RGB")), cv2.getPerspectiveTransform(corners, target), (width, height), borderMode=cv2.BORDER_REPLICATE
    )
    (left, top), (right, bottom) = corners.min(0), corners.max(0)
    box = max(0, int(left)), max(0, int(top)), min(image.width, int(right) + 1), min(image.height, int(bottom) + 1)
    return Image.fromarray(turned), box
