"""Captioned clips for pretraining: a folder of videos with ``metadata.jsonl``, or the tiny world's ``tiny:captioned_clips``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.captioned_images import Augmentation, CaptionedImages, FlipAndShift, Pixels, to_square
from datamodules.video import UnreadableVideo, even_frames, open_video
from genlab.errors import UserError


def read_clip(path: Path, num_frames: int, size: int) -> Pixels:
    """A video as (num_frames, 3, size, size) uint8 RGB, its frames evenly spaced, resized on the short side and cropped in the middle.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with open_video(path) as video:
            frames = video.frames(even_frames(len(video), num_frames))
    except UnreadableVideo as error:
        raise UserError(f"data.root: {error}. Bring the clip again, or drop its line.") from error
    return np.stack([to_square(Image.fromarray(frame), size) for frame in frames])


class CaptionedVideos(CaptionedImages):
    """Clips with captions. They are never mirrored: their captions say left, right and clockwise.

    Args:
        root: Folder with ``train/``, ``validation/`` and ``test/``, each with ``metadata.jsonl`` and its videos; ``tiny:captioned_clips``
            writes a procedural one on first use. A split that is not there is missed only when it is asked for.
        more_roots: Further such folders, read together with the first one.
        select: Column -> allowed values: only clips that have them are used. Left out, all.
        eval_caption: Column that held-out clips take their caption from; left out, ``text``.
        labels: Columns whose values are classes to learn; the batch has them in ``labels``.
        num_frames: Frames of a clip, evenly spaced.
        image_size: Pixels per side.
        in_memory: Read all clips once and keep them (25 KB each for 8 frames of 32 pixels).
        keep_groups: Batches hold whole groups (column ``group``: clips that are hard to tell apart).
        mixed_epochs: First epochs in which they do not: what groups share is learned from mixed batches.
        shift: Largest shift of a training clip in pixels, the same in all frames.
        batch_size: Clips per device.
        eval_batch_size: Clips per device in evaluation.
        num_workers: Loading processes per device.
        seed: Keys order and augmentation.
    """

    kind = "video"

    def __init__(
        self,
        root: str,
        more_roots: list[str] | None = None,
        select: dict[str, list[str]] | None = None,
        eval_caption: str | None = None,
        labels: list[str] | None = None,
        num_frames: int = 8,
        image_size: int = 64,
        in_memory: bool = False,
        keep_groups: bool = False,
        mixed_epochs: int = 0,
        shift: int = 0,
        batch_size: int = 64,
        eval_batch_size: int = 100,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            root,
            more_roots=more_roots,
            select=select,
            eval_caption=eval_caption,
            labels=labels,
            image_size=image_size,
            in_memory=in_memory,
            keep_groups=keep_groups,
            mixed_epochs=mixed_epochs,
            shift=shift,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        if num_frames < 1:
            raise UserError(f"data.num_frames: {num_frames} is too small; use 1 or more.")

    def augmentation(self) -> Augmentation:
        return Augmentation(FlipAndShift(0.0, self.hparams.shift))

    def read_file(self, path: Path) -> Pixels:
        return read_clip(path, self.hparams.num_frames, self.hparams.image_size)
