"""Videos as arrays: one small interface over two decoders, and the rule that picks the frames of a clip.

decord decodes, PyAV reads what decord cannot. Both give upright RGB frames and times that start at 0, so that nothing above this
file knows which one worked. A file that neither reads raises ``UnreadableVideo``, never a decoder's own error.

A reader that was opened before a fork hangs afterwards: call ``open_video`` inside ``__getitem__``.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, Self, TypeVar

import numpy as np

if TYPE_CHECKING:
    import av

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm", ".gif", ".flv", ".mpg", ".mpeg", ".ts", ".wmv"})

Decoder = Literal["auto", "decord", "pyav"]
Indices = Sequence[int] | np.ndarray
T = TypeVar("T")
_SOURCE_LINE = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ")  # decord's messages begin with the time and the line of its source


class UnreadableVideo(Exception):
    """A file from which the frames asked for cannot be had.

    Args:
        path: The file.
        reason: What each decoder that was tried said.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(path, reason)  # both, so that it survives pickling
        self.path, self.reason = Path(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class VideoInfo:
    """What an index holds of a video.

    Args:
        num_frames: Frames in the file.
        fps: Mean frame rate, ``num_frames / duration``, also where the rate varies.
        width: Of the upright picture, in pixels.
        height: Of the upright picture, in pixels.
        duration: Seconds from the first frame's start to the last frame's end.
    """

    num_frames: int
    fps: float
    width: int
    height: int
    duration: float


def is_video(path: str | Path) -> bool:
    """Whether the name is a video's; no to what file managers leave behind (``._x.mp4``, ``.DS_Store``, ``__MACOSX/``)."""
    path = Path(path)
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith("._") and "__MACOSX" not in path.parts


def open_video(path: str | Path, decoder: Decoder = "auto") -> VideoFile:
    """Open a video for ``with``.

    Args:
        path: The file.
        decoder: ``auto`` is decord, and PyAV where decord fails.

    Raises:
        UnreadableVideo: The file is missing, empty, or no decoder can open it. The methods of the result raise it too.
    """
    return VideoFile(path, decoder)


class VideoFile:
    """An open video; see ``open_video``."""

    def __init__(self, path: str | Path, decoder: Decoder = "auto") -> None:
        self.path = Path(path)
        self._names = ["decord", "pyav"] if decoder == "auto" else [decoder]
        self._reasons: list[str] = []
        self._reader: _Reader | None = None
        try:
            size = self.path.stat().st_size
        except OSError as error:
            raise UnreadableVideo(path, error.strerror or str(error)) from error
        if size == 0 or not self.path.is_file():  # decord keeps 3 KB for each file that it cannot open: spare it the commonest
            raise UnreadableVideo(path, "the file is empty" if size == 0 else "not a file")
        self._ask(lambda reader: None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the decoder."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    @property
    def decoder(self) -> str:
        """The decoder in use, ``decord`` or ``pyav``."""
        return self._names[0]

    @cached_property
    def info(self) -> VideoInfo:
        """Size, length and rate; decodes the first frame."""
        height, width = self.frames([0]).shape[1:3]
        return VideoInfo(len(self), len(self) / self.duration, width, height, self.duration)

    @property
    def duration(self) -> float:
        """Seconds from the first frame's start to the last frame's end; decodes nothing."""
        return float(self._spans[-1, 1])

    @property
    def timestamps(self) -> np.ndarray:
        """(N,) seconds at which the frames start, ascending from 0."""
        return self._spans[:, 0]

    def frames(self, indices: Indices) -> np.ndarray:
        """Decode each asked frame once.

        Args:
            indices: Frame numbers in 0..N-1, in any order, repeats allowed.

        Returns:
            (len(indices), H, W, 3) uint8 RGB, in the order asked.

        Raises:
            IndexError: A number is outside 0..N-1.
            UnreadableVideo: A frame cannot be decoded.
        """
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if wanted.size == 0 or wanted.min() < 0 or wanted.max() >= len(self):
            raise IndexError(f"{self.path}: frames {wanted.tolist()} asked, the video has 0..{len(self) - 1}.")
        unique, back = np.unique(wanted, return_inverse=True)
        decoded = self._ask(lambda reader: reader.decode(unique))
        return decoded if np.array_equal(unique, wanted) else decoded[back]

    def __len__(self) -> int:
        return len(self._spans)

    @cached_property
    def _spans(self) -> np.ndarray:
        """(N, 2) start and end of each frame in seconds; starts ascend from 0, only the last end is sure to be after its start."""
        spans = self._ask(lambda reader: reader.spans()).astype(np.float64)
        spans = spans[np.argsort(spans[:, 0])]
        spans = np.round(spans - spans[0, 0], 6)  # decord's are single precision: 0.8, not 0.8000000119
        if spans[-1, 1] <= spans[-1, 0]:  # a still gif, a container without durations
            spans[-1, 1] = spans[-1, 0] + (np.median(np.diff(spans[:, 0])) if len(spans) > 1 else 1 / 25)
        return spans

    def _ask(self, question: Callable[[_Reader], T]) -> T:
        """Answer from the present decoder, or from the next one if it fails."""
        while True:
            try:
                if self._reader is None:
                    self._reader = _READERS[self._names[0]](self.path.absolute())  # absolute: "-x.mp4" and "a:b.mp4" are plain names then
                return question(self._reader)
            except _decoder_errors() as error:
                said = _SOURCE_LINE.sub("", " ".join(str(error).split()))[:300] or type(error).__name__
                self._reasons.append(f"{self._names[0]}: {said}")
                self.close()
                if len(self._names) == 1:
                    raise UnreadableVideo(self.path, "; ".join(self._reasons)) from error
                self._names.pop(0)
                log.debug("%s: %s; now with %s", self.path, self._reasons[-1], self._names[0])


# Decoders: each opens in its constructor, may raise any of _decoder_errors(), and keeps memory only until close().


class _Reader(Protocol):
    def spans(self) -> np.ndarray: ...
    def decode(self, unique: np.ndarray) -> np.ndarray: ...
    def close(self) -> None: ...


def _decoder_errors() -> tuple[type[Exception], ...]:
    """All that the two libraries raise for a bad file; they share no base class."""
    import av
    from decord._ffi.base import DECORDError, DECORDLimitReachedError  # the second is not exported

    return (DECORDError, DECORDLimitReachedError, av.FFmpegError, RuntimeError, ValueError, LookupError, AssertionError, MemoryError)


class _DecordReader:
    def __init__(self, path: Path) -> None:
        import decord

        decord.logging.set_level(decord.logging.QUIET)  # FFmpeg would describe every damaged macroblock on stderr
        # fault_tol: without it a frame that cannot be decoded is silently a copy of its neighbour.
        self._video = decord.VideoReader(str(path), num_threads=1, fault_tol=1e-9)
        self._spans = self._video.get_frame_timestamp(range(len(self._video)))
        if not (np.diff(self._spans[:, 0]) > 0).all() or self._spans[-1, 0] - self._spans[0, 0] > 1e7:
            raise ValueError("no usable presentation times")  # old AVI and MPEG files; decord would return the wrong frames

    def spans(self) -> np.ndarray:
        return self._spans

    def decode(self, unique: np.ndarray) -> np.ndarray:
        return self._video.get_batch(unique).asnumpy()

    def close(self) -> None:
        del self._video


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The stream that has the pictures, to be decoded by one thread; ValueError if there is none, or none that can be decoded."""
    for stream in container.streams.video:
        if stream.codec_context is not None:  # None for a codec that FFmpeg does not know
            stream.codec_context.thread_count = 1  # workers are the parallelism
            return stream
    raise ValueError("no video stream that FFmpeg can decode")


class _PyAVReader:
    def __init__(self, path: Path) -> None:
        self._path = path
        spans: list[tuple[int, int]] = []
        self._key_pts: list[int] = []
        with self._open() as container:
            stream = video_stream(container)
            base = float(stream.time_base or 1)
            packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
            # Old AVIs have no presentation times, only the decoding order: frames are counted then.
            self._counted = any(packet.pts is None for packet in packets) or len({packet.pts for packet in packets}) < len(packets)
            for position, packet in enumerate(packets):
                pts = position if packet.pts is None else packet.pts
                spans.append((pts, pts + (packet.duration or 0)))
                if packet.is_keyframe:
                    self._key_pts.append(pts)
            if self._counted and stream.average_rate:
                base = float(1 / stream.average_rate)
                spans = [(k, k + 1) for k in range(len(spans))]
        if not spans:
            raise ValueError("no frames")
        self._pts = sorted(start for start, _ in spans)
        self._spans = np.array(sorted(spans), dtype=np.float64) * base

    def _open(self) -> av.container.InputContainer:
        import av

        return av.open(str(self._path), metadata_errors="replace")

    def spans(self) -> np.ndarray:
        return self._spans

    def decode(self, unique: np.ndarray) -> np.ndarray:
        for seek in (True, False):  # a seek that lands too late misses frames: then once more from the start
            found = self._collect(unique, seek)
            if len(found) == len(unique):
                return np.stack([found[index] for index in unique.tolist()])
        raise ValueError(f"not all of the frames {unique.tolist()} decode")

    def _collect(self, unique: np.ndarray, seek: bool) -> dict[int, np.ndarray]:
        numbers = {self._pts[index]: index for index in unique.tolist()}
        last = max(numbers)
        found: dict[int, np.ndarray] = {}
        with self._open() as container:
            stream = video_stream(container)
            keys = [pts for pts in self._key_pts if pts <= min(numbers)]
            if seek and not self._counted and keys and max(keys) > self._pts[0]:
                container.seek(max(keys), stream=stream)
            for position, frame in enumerate(container.decode(stream)):
                pts = position if self._counted else frame.pts
                if pts in numbers:
                    size = stream.codec_context.width, stream.codec_context.height
                    pixels = frame.to_ndarray(format="rgb24", width=size[0], height=size[1], interpolation="BICUBIC")
                    found[numbers[pts]] = np.rot90(pixels, frame.rotation // 90)
                if len(found) == len(numbers) or (pts is not None and pts > last):
                    break
        return found

    def close(self) -> None: ...


_READERS: dict[str, Callable[[Path], _Reader]] = {"decord": _DecordReader, "pyav": _PyAVReader}


# Which frames of a video make a clip (DeMamba, arXiv 2405.19707).


def extraction_fps(duration: float) -> float:
    """Rate at which GenVideo's frames are extracted: 2 fps from 4 s on, below that the least whole rate that gives 8 frames.

    The paper says 3 s, the official code 4 s; with 3 s, clips of 3 to 4 s would have fewer than 8 frames.

    Args:
        duration: Seconds, above 0.
    """
    if not duration > 0:
        raise ValueError(f"duration is {duration} s; a video lasts more than 0 s.")
    duration = round(duration, 6)  # sums of frame times are a hair off, and 8 / 1.9999999 would be a rate of 5
    return 2.0 if duration >= 4 else float(math.ceil(round(8 / duration, 6)))


def extracted_indices(timestamps: np.ndarray, duration: float, fps_out: float | None = None) -> np.ndarray:
    """Source frame of every extracted frame: number k shows the source frame nearest to k / fps_out, the earlier one if two are.

    The official frames come from ``ffmpeg -r``, whose constant-rate output has the same spacing and the same count up to one, but
    may show a frame up to one output step away, depending on ffmpeg's version.

    Args:
        timestamps: (N,) seconds, ascending.
        duration: Seconds.
        fps_out: Frames per second to extract; ``None`` for ``extraction_fps(duration)``.

    Returns:
        (K,) int64 ascending, K = duration * fps_out rounded, at least 1. Repeats where fps_out is above the source's rate.
    """
    fps_out = extraction_fps(duration) if fps_out is None else fps_out
    count = max(1, math.floor(round(duration * fps_out, 6) + 0.5))
    times = timestamps - timestamps[0]
    wanted = np.arange(count) / fps_out
    after = np.searchsorted(times, wanted).clip(1, max(1, len(times) - 1))
    if len(times) == 1:
        return np.zeros(count, dtype=np.int64)
    closer_before = wanted - times[after - 1] <= times[after] - wanted + 1e-4  # decoders' times differ by rounding: a tie is one in both
    return np.where(closer_before, after - 1, after).astype(np.int64)


def sample_window(n: int, length: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Numbers of ``length`` consecutive frames out of ``n``; all of them if there are fewer (the caller pads).

    Args:
        n: Extracted frames, at least 1.
        length: Frames of a clip; paper: 8.
        rng: The start is uniform in 0..n-length with it (training), central without (evaluation; the official code also
            evaluates at a random start).
    """
    spare = max(0, n - length)
    start = spare // 2 if rng is None else int(rng.integers(spare + 1))
    return np.arange(start, min(start + length, n))


def eval_windows(n: int, length: int, clips: int) -> list[np.ndarray]:
    """``clips`` evenly spaced windows: the central ones of as many equal parts, so that one clip is ``sample_window(n, length)``.

    Always ``clips`` of them; windows coincide where the video is too short, which leaves the mean of their logits unchanged.
    """
    spare = max(0, n - length)
    starts = [(2 * k + 1) * spare // (2 * clips) for k in range(clips)]
    return [np.arange(start, min(start + length, n)) for start in starts]


def even_frames(count: int, num_frames: int) -> np.ndarray:
    """Numbers of ``num_frames`` frames out of ``count``, in the middles of as many equal parts; repeats where there are fewer."""
    return count * (2 * np.arange(num_frames) + 1) // (2 * num_frames)
