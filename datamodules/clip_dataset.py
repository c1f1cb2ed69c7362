"""Videos, or folders of extracted frames, as clips of a fixed number of frames: windows, edge crop, augmentation, degradation."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from datamodules.degradations import STAGES, Degradation, apply, reencode_h264
from datamodules.frame_cache import FrameCache
from datamodules.genvideo_index import Clips
from datamodules.sampling import Draw
from datamodules.transforms import TrainAugmentation, edge_crop, resize
from datamodules.video import Decoder, UnreadableVideo, eval_windows, extracted_indices, open_video, sample_window
from genlab.errors import UserError
from genlab.training.randomness import keyed_rng

log = logging.getLogger(__name__)

Windows = int | Literal["all"]
OVER_WINDOWS = ("video", "tokens", "global_vector", "num_frames", "start")


@dataclass(frozen=True)
class ClipSettings:
    """How a clip is cut out of a video.

    Args:
        num_frames: T.
        image_size: H = W after resizing; the aspect is not kept (paper).
        seed: Keys window and augmentation.
        fps: Frames per second of the extraction; ``None`` is the official rule by duration.
        decoder: See :func:`datamodules.video.open_video`.
        windows: Clips of a video in evaluation: that many, evenly spaced, or ``all``, side by side from the first frame to the last.
        degradation: Applied to every clip, keyed by the video, so that all models see the same; evaluation only.
        degradation_mode: ``clip``, constant over the clip, or ``official``, as the released code draws.
    """

    num_frames: int
    image_size: int
    seed: int = 0
    fps: float | None = None
    decoder: Decoder = "auto"
    windows: Windows = 1
    degradation: Degradation | None = None
    degradation_mode: Literal["clip", "official"] = "clip"


@dataclass(frozen=True)
class Frames:
    """Extracted frames of one video, window by window."""

    windows: list[Iterable[np.ndarray]]
    """Each window in blocks (t, H, W, 3) uint8, which are worked on one after the other: a large frame that has been made small before
    the next one is decoded has never left the processor's cache. T frames in all, or fewer of a short video."""
    start: list[float]
    """Seconds into the video; NaN where that is not known."""


class ClipDataset(Dataset[dict[str, Any]]):
    """Samples of :class:`genlab.batches.VideoBatch`, one video each; :func:`collate` puts them together.

    Args:
        clips: The videos.
        settings: How clips are cut out of them.
        edge_crop: Share cut off at both ends of the longer side; per video, (N,).
        training: A random window, and a substitute for what cannot be read.
        augmentation: For training.
        cache: Extracted frames of the videos, read in their stead.
    """

    def __init__(
        self,
        clips: Clips,
        settings: ClipSettings,
        edge_crop: np.ndarray,
        training: bool = False,
        augmentation: TrainAugmentation | None = None,
        cache: FrameCache | None = None,
    ) -> None:
        self.clips, self.settings, self.edge_crop = clips, settings, edge_crop
        self.training, self.augmentation, self.cache = training, augmentation, cache
        self._warned: set[Path] = set()

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        clips, index = self.clips, draw.index
        candidates = [index]
        if self.training:  # the next readable clip of the same class, by id: the same on every machine
            same = np.flatnonzero(clips.label == clips.label[index])
            candidates = np.roll(same, -int(np.searchsorted(same, index))).tolist()
        for candidate in candidates:
            try:
                return self._sample(candidate, *self._pixels(candidate, draw), substituted=candidate != index)
            except UnreadableVideo as error:
                self._warn(error)
        if self.training:
            raise UserError(f"data.root: not one of the {len(candidates)} training clips of label {clips.label[index]} can be read.")
        return self._sample(index, [], [])

    def _warn(self, error: UnreadableVideo) -> None:
        if error.path not in self._warned:  # once a file and process
            self._warned.add(error.path)
            log.warning("unreadable, %s: %s", "another clip of its class takes its place" if self.training else "not scored", error)

    def _sample(self, index: int, pixels: Sequence[Tensor], start: Sequence[float], substituted: bool = False) -> dict[str, Any]:
        clips, size, windows = self.clips, self.settings.image_size, max(1, len(pixels))
        video = torch.zeros(windows, self.settings.num_frames, 3, size, size, dtype=torch.uint8)
        for window, clip in zip(video, pixels):
            window[: len(clip)] = clip
        return {
            "video": video,
            "num_frames": torch.tensor([len(clip) for clip in pixels] or [0]),
            "start": torch.tensor(list(start) or [math.nan], dtype=torch.float64),
            "windows": windows,
            "label": int(clips.label[index]),
            "generator": str(clips.generator[index]),
            "id": str(clips.id[index]),
            "index": index,
            "readable": bool(pixels),
            "substituted": substituted,
        }

    def _pixels(self, index: int, draw: Draw) -> tuple[list[Tensor], list[float]]:
        """Windows of (t, 3, S, S) uint8, and when they start."""
        s, name = self.settings, str(self.clips.id[index])
        rng = keyed_rng(s.seed, "clip", draw.epoch, name, draw.occurrence) if self.training else None
        path = self.clips.root / name
        frames = self._video_frames(path, rng) if self.clips.first[index] < 0 else self._frame_files(path, index, rng)
        stage, made = STAGES[s.degradation] if s.degradation else None, []
        for window in frames.windows:
            video = torch.cat([self._small(torch.from_numpy(block).permute(0, 3, 1, 2), index) for block in window])
            if s.degradation and stage == "clip":
                video = apply(s.degradation, video, keyed_rng("degradation", s.degradation, name), s.degradation_mode)
            made.append(self.augmentation(video, rng) if self.augmentation is not None and rng is not None else video)
        return made, frames.start

    def _small(self, block: Tensor, index: int) -> Tensor:
        """(t, 3, H, W) as decoded -> (t, 3, S, S): what is done to every frame alike, whichever block it comes in."""
        s, name = self.settings, str(self.clips.id[index])
        if s.degradation is not None and STAGES[s.degradation] == "source":  # the same generator for every block: one mark at one place
            block = apply(s.degradation, block, keyed_rng("degradation", s.degradation, name), s.degradation_mode)
        return resize(edge_crop(block, float(self.edge_crop[index])), s.image_size)

    def _windows(self, count: int, rng: np.random.Generator | None) -> list[np.ndarray]:
        length, windows = self.settings.num_frames, self.settings.windows
        if rng is not None:
            return [sample_window(count, length, rng)]
        if windows == "all":
            starts = range(0, max(1, count - length + 1), length)
            rest = [np.arange(count - length, count)] if count > length and (count - length) % length else []
            return [np.arange(start, min(start + length, count)) for start in starts] + rest
        return eval_windows(count, length, windows)

    def _video_frames(self, path: Path, rng: np.random.Generator | None) -> Frames:
        if self.settings.degradation is not None and STAGES[self.settings.degradation] == "file":
            with tempfile.TemporaryDirectory() as folder:
                reencode_h264(path, Path(folder) / "clip.mp4")
                return self._decoded(Path(folder) / "clip.mp4", rng)
        if self.cache is not None:
            name = path.relative_to(self.clips.root).as_posix()
            windows = self._windows(self.cache.count(name), rng)
            return Frames([map(_one, self.cache.each_frame(name, window)) for window in windows], [math.nan] * len(windows))
        return self._decoded(path, rng)

    def _decoded(self, path: Path, rng: np.random.Generator | None) -> Frames:
        with open_video(path, self.settings.decoder) as video:
            extracted = extracted_indices(video.timestamps, video.duration, self.settings.fps)
            windows = [np.asarray(extracted[window]) for window in self._windows(len(extracted), rng)]
            frames = video.frames(np.concatenate(windows))  # each one decoded once
            parts = np.split(frames, np.cumsum([len(window) for window in windows])[:-1])
            return Frames([[part] for part in parts], [float(video.timestamps[window[0]]) for window in windows])

    def _frame_files(self, folder: Path, index: int, rng: np.random.Generator | None) -> Frames:
        if self.settings.degradation is not None and STAGES[self.settings.degradation] == "file":
            raise UserError(f"data.degradations: {self.settings.degradation} encodes videos anew, and {folder} holds extracted frames.")
        first, count = int(self.clips.first[index]), int(self.clips.size[index])
        if count <= 0:
            raise UnreadableVideo(folder, "the list names no frames of it")
        windows = self._windows(count, rng)
        return Frames([[_read_window(folder, first, count, window)] for window in windows], [math.nan] * len(windows))


def _one(frame: np.ndarray) -> np.ndarray:
    """A frame as a block."""
    return frame[None]


def _read_window(folder: Path, first: int, count: int, window: np.ndarray) -> np.ndarray:
    """As the official loader: in place of a missing or broken frame the next one, at the end the one before; but only once round."""
    frames: list[np.ndarray] = []
    for k in window.tolist():
        order = [*range(k, count), *range(k - 1, -1, -1)]
        found = next((frame for i in order if (frame := _read_frame(folder, first + i)) is not None), None)
        if found is None:
            raise UnreadableVideo(folder, f"none of its {count} frames can be read")
        frames.append(found)
    shape = frames[0].shape
    return np.stack([f if f.shape == shape else np.asarray(Image.fromarray(f).resize((shape[1], shape[0]))) for f in frames])


def _read_frame(folder: Path, number: int) -> np.ndarray | None:
    for suffix in ("jpg", "jpeg", "png", "JPG"):
        path = folder / f"{number}.{suffix}"
        if path.is_file():
            try:
                with Image.open(path) as image:
                    return np.asarray(image.convert("RGB"))
            except (OSError, SyntaxError) as error:  # PIL's ways to say that a picture is broken
                log.debug("%s: %s", path, error)
    return None


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Samples to a :class:`genlab.batches.VideoBatch`: windows one after the other, the rest stacked."""
    batch = default_collate([{key: value for key, value in sample.items() if key not in OVER_WINDOWS} for sample in samples])
    return batch | {key: torch.cat([sample[key] for sample in samples]) for key in OVER_WINDOWS if key in samples[0]}
