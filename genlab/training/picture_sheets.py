"""Drawn pictures as files, and a sheet of all of them: a row for each prompt."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from genlab.files import write_bytes
from genlab.sheets import frame_strip, stack
from genlab.training.gathering import gather_list

MOST = 8  # pictures of a row


class Sheet:
    """Writes ``pictures/<id>.png``, and at the end ``media/grid.png``.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: list[tuple[str, str]] = []

    def add(self, ids: Sequence[str], captions: Sequence[str], pictures: Tensor) -> None:
        """Pictures (B, 3, H, W) in [0, 1] of this process; those of one caption become a row, in the order of their ids."""
        pixels = (pictures.permute(0, 2, 3, 1) * 255 + 0.5).byte().cpu().numpy()
        for name, caption, picture in zip(ids, captions, pixels, strict=True):
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "PNG")
            write_bytes(self.folder / "pictures" / f"{name}.png", buffer.getvalue(), sync=False)
            self._names.append((name, caption))

    def finish(self, first: bool) -> Path:
        """The sheet of all processes, written by the first; all call this."""
        path, rows = self.folder / "media" / "grid.png", dict[str, list[str]]()
        for name, caption in sorted(gather_list(self._names)):
            rows.setdefault(caption, []).append(name)
        if first and rows:
            stack([frame_strip(self._read(names), None, caption) for caption, names in rows.items()], path=path)
        return path

    def _read(self, names: Sequence[str]) -> np.ndarray:
        pictures = []
        for name in names[:MOST]:
            with Image.open(self.folder / "pictures" / f"{name}.png") as picture:
                pictures.append(np.asarray(picture.convert("RGB")))
        return np.stack(pictures)
