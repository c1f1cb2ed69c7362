"""Small videos for tests, ordinary and odd, written with PyAV."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def coloured_frames(n: int, height: int = 48, width: int = 64) -> np.ndarray:
    """(n, height, width, 3) uint8: the upper left quarter green, the lower right one blue, the others redder by the frame."""
    frames = np.zeros((n, height, width, 3), np.uint8)
    frames[..., 0] = np.linspace(0, 250, n).astype(np.uint8)[:, None, None]
    frames[:, : height // 2, : width // 2] = [0, 255, 0]
    frames[:, height // 2 :, width // 2 :] = [0, 0, 255]
    return frames


def write_video(
    path: Path,
    frames: np.ndarray,
    fps: float = 25,
    codec: str | None = None,
    times: Sequence[float] | None = None,
    rotation: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Write (N, H, W, 3) uint8 frames; ``times`` (s) for a varying rate, ``rotation`` in degrees clockwise for players."""
    codec = codec or {".gif": "gif", ".webm": "libvpx-vp9", ".avi": "mpeg4"}.get(path.suffix, "libx264")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000), options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[index] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if rotation:
        _set_display_matrix(path, rotation)
    return path


def _set_display_matrix(path: Path, degrees: int) -> None:
    """Put the turn into the track header of an MP4, where phones put it."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40  # version and flags, times, id, duration, layer, group, volume come first
    a, b, c, d = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    content[matrix : matrix + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def write_audio(path: Path) -> Path:
    """A second of silence, and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 44100, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
