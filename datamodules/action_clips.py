"""Action clips as samples: frames drawn segment by segment, augmented in training, in several views in evaluation."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from datamodules.action_index import open_clip
from datamodules.action_transforms import ActionAugment, evaluation_crops, middle_frames, random_frames, view_frames
from datamodules.sampling import Draw
from datamodules.video import Decoder, UnreadableVideo
from genlab.batches import ActionBatch
from genlab.errors import UserError
from genlab.training.randomness import keyed_rng

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clips:
    """Clips of a set.

    Args:
        root: Folder, or tar archive.
        ids: (N,) below the root.
        labels: (N,) among ``names``; -1 for none.
        names: Of the classes.
        missing: Listed clips that are not there and were left out.
    """

    root: Path
    ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    names: list[str]
    missing: list[str]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class ViewSettings:
    """How clips are seen.

    Args:
        num_frames: T.
        image_size: Pixels per side.
        clips: Views in time of an evaluated clip.
        crops: Views in space, 1 or 3.
        random_views: Draw the frames of several views, keyed by the clip.
        flip: Probability of a mirror image in training.
        seed: Keys frames and augmentation.
        decoder: See :func:`datamodules.video.open_video`.
    """

    num_frames: int
    image_size: int
    clips: int = 1
    crops: int = 1
    random_views: bool = False
    flip: float = 0.5
    seed: int = 0
    decoder: Decoder = "auto"


class ActionClips(Dataset[dict[str, Any]]):
    """Samples of :class:`genlab.batches.ActionBatch`.

    Args:
        clips: The clips.
        settings: How they are seen.
        training: One random view, and a substitute for what cannot be read.
        augment: For training; ``None`` resizes and takes the middle.
    """

    def __init__(self, clips: Clips, settings: ViewSettings, training: bool = False, augment: ActionAugment | None = None) -> None:
        self.clips, self.settings, self.training, self.augment = clips, settings, training, augment
        self._warned: set[Path] = set()

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        clips, index, s = self.clips, draw.index, self.settings
        candidates = [index]
        if self.training:  # the next readable clip of the same class, by id: the same on every machine
            same = np.flatnonzero(clips.labels == clips.labels[index])
            candidates = np.roll(same, -int(np.searchsorted(same, index))).tolist()
        for candidate in candidates:
            try:
                video = self._training(candidate, draw) if self.training else self._views(candidate)
            except UnreadableVideo as error:
                self._warn(error)
                continue
            return self._sample(index, video, True, candidate != index)
        if self.training:
            name = clips.names[int(clips.labels[index])]
            raise UserError(f"data.root: not one of the {len(candidates)} training clips of {name!r} can be read.")
        return self._sample(
            index, torch.zeros(s.clips * s.crops, s.num_frames, 3, s.image_size, s.image_size, dtype=torch.uint8), False, False
        )

    def _sample(self, index: int, video: Tensor, readable: bool, substituted: bool) -> dict[str, Any]:
        sample = {"video": video, "label": int(self.clips.labels[index]), "id": str(self.clips.ids[index]), "index": index}
        return sample | {"readable": readable, "substituted": substituted}

    def _warn(self, error: UnreadableVideo) -> None:
        if error.path not in self._warned:  # once a file and process
            self._warned.add(error.path)
            log.warning("unreadable, %s: %s", "another clip of its class takes its place" if self.training else "not scored", error)

    def _decoded(self, index: int, frames: list[list[int]] | None, rng: np.random.Generator | None = None) -> list[Tensor]:
        """Some views' frames, each (T, 3, H, W) uint8; without numbers, drawn ones."""
        s, path = self.settings, self.clips.root / str(self.clips.ids[index])
        with open_clip(path) as video:
            total = len(video)
            if frames is None:
                views = s.clips if rng is None or not self.training else 1
                frames = self._numbers(total, views, rng)
            flat = video.frames([number for view in frames for number in view])  # each one decoded once
        return list(torch.from_numpy(flat).permute(0, 3, 1, 2).unflatten(0, (len(frames), -1)))

    def _numbers(self, total: int, views: int, rng: np.random.Generator | None) -> list[list[int]]:
        length = self.settings.num_frames
        if rng is not None:
            return [random_frames(total, length, lambda high, count: rng.integers(0, high, count).tolist()) for _ in range(views)]
        return [middle_frames(total, length)] if views == 1 else view_frames(total, length, views)

    def _training(self, index: int, draw: Draw) -> Tensor:
        s = self.settings
        rng = keyed_rng(s.seed, "clip", draw.epoch, str(self.clips.ids[draw.index]), draw.occurrence)
        (video,) = self._decoded(index, None, rng)
        if self.augment is None:
            return evaluation_crops(video, s.image_size, 1)
        return self.augment(video, s.image_size, s.flip, rng)[None].contiguous()

    def _views(self, index: int) -> Tensor:
        """(V, T, 3, S, S): one crop after the other, the views in time within each."""
        s = self.settings
        rng = keyed_rng(s.seed, "views", str(self.clips.ids[index])) if s.random_views and s.clips > 1 else None
        made = [evaluation_crops(video, s.image_size, s.crops) for video in self._decoded(index, None, rng)]
        return torch.stack(made, 1).flatten(0, 1).contiguous()


def collate(samples: list[dict[str, Any]]) -> ActionBatch:
    """Samples -> batch."""
    batch: Any = default_collate([{key: value for key, value in each.items() if key != "id"} for each in samples])
    return batch | {"id": [each["id"] for each in samples]}
