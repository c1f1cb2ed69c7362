"""Clips of which only stored features are read: the samples of :class:`datamodules.clip_dataset.ClipDataset`, without their pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset

from datamodules.genvideo_index import Clips
from datamodules.sampling import Draw
from genlab.errors import UserError
from genlab.store import FeatureReader


class FeatureClips(Dataset[dict[str, Any]]):
    """``tokens`` (K, T', G, G, C) fp16 and ``global_vector`` (K, C) in place of ``video``, K windows of one video.

    Args:
        clips: The videos.
        reader: Their features.
        views: Epoch e reads the view e mod ``views``, which was drawn as in that epoch.
    """

    def __init__(self, clips: Clips, reader: FeatureReader, views: int) -> None:
        self.clips, self.reader, self.views = clips, reader, views

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        try:
            row = self.reader[feature_id(self.clips, draw.index, draw.epoch % self.views)]
        except KeyError as error:
            raise UserError(f"model.cached_views: {error.args[0]} The order of this epoch is not the one that was prepared for.") from error
        windows, index = int(row["windows"]), int(row["index"])  # of a substitute its own
        return {
            **{name: torch.from_numpy(row[name][:windows]) for name in ("tokens", "global_vector", "num_frames", "start")},
            "windows": windows,
            "label": int(self.clips.label[index]),
            "generator": str(self.clips.generator[index]),
            "id": str(self.clips.id[index]),
            "index": index,
            "readable": bool(row["readable"]),
            "substituted": bool(row["substituted"]),
        }


def feature_id(clips: Clips, index: int, view: int) -> str:
    """Names a view of a clip."""
    return f"{view}/{clips.id[index]}"
