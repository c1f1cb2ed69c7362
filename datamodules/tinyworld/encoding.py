"""Frames to the bytes of a video file, the same ones every time: one thread, and no time of writing in the file."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

FORMATS: dict[str, tuple[str, str, dict[str, str]]] = {  # ending -> container, codec and its options
    ".mp4": (  # cpu-independent: without it, x264 165 gives other bytes from call to call
        "mp4", "libx264", {"crf": "18", "preset": "veryfast", "threads": "1", "x264-params": "cpu-independent=1"},
    ),
    ".avi": ("avi", "mpeg4", {"flags": "+qscale+bitexact", "global_quality": "354", "threads": "1"}),
    ".webm": ("webm", "libvpx", {"deadline": "realtime", "cpu-used": "8", "crf": "8", "b": "2M", "threads": "1"}),
}  # fmt: skip


def encode_video(frames: NDArray[np.uint8], fps: int, suffix: str) -> bytes:
    """(T, H, W, 3) uint8 RGB with even H and W as ``.mp4`` (H.264), ``.avi`` (MPEG-4) or ``.webm`` (VP8)."""
    container_name, codec, options = FORMATS[suffix]
    file = io.BytesIO()
    with av.open(file, "w", format=container_name, options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.time_base = Fraction(1, fps)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()
