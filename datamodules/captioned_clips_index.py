"""Captioned clips: the form of captioned pictures (captioned_index.py), with videos for pictures."""

from __future__ import annotations

import numpy as np

from datamodules.captioned_index import items
from datamodules.checks import Item
from datamodules.video import UnreadableVideo, even_frames, open_video

__all__ = ["items", "preview"]

SHOWN = 4  # frames of a clip in a preview


def preview(item: Item) -> list[np.ndarray]:
    """Four evenly spaced frames, (H, W, 3) uint8; none if they cannot be read."""
    try:
        with open_video(item.path) as video:
            return list(video.frames(even_frames(len(video), SHOWN)))
    except UnreadableVideo:
        return []
