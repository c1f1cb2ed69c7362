"""Writes the tiny GenVideo: real clips and those of the generators, in the layouts in which GenVideo is found (arXiv 2405.19707).

`write_genvideo` makes the folder tree of the distribution, with video files; `write_frames_layout` makes extracted frames with
the CSV lists that the official code reads. A clip depends on nothing but (seed, split, kind, number), and real and fake clips
are drawn from the same distribution of scenes, so that only the artefact tells them apart: all mp4 files have the same size,
length, frame rate and codec settings.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.tinyworld.encoding import encode_video
from datamodules.tinyworld.generators import TEST, TRAIN, generate
from datamodules.tinyworld.video import Clip, film, random_clip
from datamodules.tinyworld.writing import Job, write_files
from genlab.errors import UserError
from genlab.files import write_bytes

Split = Literal["train", "test"]
REAL = "Real"
GIF_GENERATOR = "checkerboard"  # its clips are .gif files, as those of I2VGen-XL are in the real training set
JUNK = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "  # begins like the files that archives from a Mac leave beside the real ones
HEADER = ("content_path", "image_path", "type_id", "label", "frame_len", "frame_seq")
TYPE_IDS = ("真实视频", "AIGC视频")  # real video, AI-generated video


def clip_scene(seed: int, split: Split, kind: str, number: int, frames: int = 16, fps: int = 8) -> Clip:
    """Description of one clip; ``kind`` is "Real" or the name of a generator. Splits and kinds never share a clip."""
    return random_clip(f"genvideo/{seed}/{split}/{kind}/{number}", "B", frames, fps)


def render_clip(clip: Clip, kind: str, size: int = 64) -> NDArray[np.uint8]:
    """Frames of the clip, (T, size, size, 3) uint8 RGB, filmed or generated."""
    return film(clip, size) if kind == REAL else generate(kind, clip, size)


def encode_mp4(frames: NDArray[np.uint8], fps: int) -> bytes:
    """H.264 in an MP4 container; the same frames give the same bytes."""
    return encode_video(frames, fps, ".mp4")


def encode_gif(frames: NDArray[np.uint8], fps: int) -> bytes:
    """An animated GIF with a palette of 256 colours per frame."""
    file = io.BytesIO()
    pictures = [Image.fromarray(frame).quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE) for frame in frames]
    ticks = np.diff(np.rint(np.arange(len(frames) + 1) * 100 / fps).astype(int)) * 10  # GIF counts in hundredths of a second
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=ticks.tolist(), loop=0, optimize=False)
    return file.getvalue()


def write_genvideo(
    folder: Path,
    *,
    seed: int = 0,
    progress: bool = True,
    train_clips: int = 300,
    test_clips: int = 50,
    size: int = 64,
    frames: int = 16,
    fps: int = 8,
) -> None:
    """The folder tree of the distribution: Real/, train_<generator>/ and GenVideo-Val/{Real,Fake/<generator>}/.

    Args:
        train_clips: Per training generator; there are as many real training clips as generated ones in all.
        test_clips: Per test generator; twice as many real test clips.
        size: Side of the square frames in pixels, even.
        frames: Per clip, at least 2.
    """
    if min(train_clips, test_clips, fps) < 1 or frames < 2 or size < 16 or size % 2:
        raise UserError(
            f"genvideo: {train_clips=} {test_clips=} {size=} {frames=} {fps=}; clips and fps are at least 1, frames 2, size an even 16."
        )
    validation = folder / "GenVideo-Val"
    sets: list[tuple[Path, Split, str, int]] = [(folder / REAL, "train", REAL, train_clips * len(TRAIN))]
    sets += [(folder / f"train_{name}", "train", name, train_clips) for name in TRAIN]
    sets += [(validation / REAL, "test", REAL, 2 * test_clips)]
    sets += [(validation / "Fake" / name, "test", name, test_clips) for name in TEST]
    jobs: list[Job] = [(validation / REAL / "._clip_00000.mp4", partial(bytes, JUNK))]
    for place, split, kind, count in sets:
        suffix = ".gif" if kind == GIF_GENERATOR else ".mp4"
        for number in range(count):
            make = partial(_video_file, seed, split, kind, number, size, frames, fps)
            jobs.append((place / f"clip_{number:05d}{suffix}", make))
    write_files(jobs, "tiny:genvideo", progress)


def _video_file(seed: int, split: Split, kind: str, number: int, size: int, frames: int, fps: int) -> bytes:
    pixels = render_clip(clip_scene(seed, split, kind, number, frames, fps), kind, size)
    return encode_gif(pixels, fps) if kind == GIF_GENERATOR else encode_mp4(pixels, fps)


def write_frames_layout(
    root: Path, *, seed: int = 0, clips: int = 4, size: int = 64, frames: int = 16, fps: int = 8, flaws: bool = False
) -> list[Path]:
    """Extracted frames, ``<content_path>/<k>.jpg`` with k from 1, and the lists train.csv, val_id.csv and val_ood.csv beside them.

    Content paths are real/youku/<clip>, fake/<generator>/<clip> and, for the real test clips, real/MSRVTT/<clip>. Frames are
    extracted as the official script does: 2 per second, or ceil(8 / duration) per second from clips under 4 s.

    Args:
        clips: Per generator and list; as many real ones as generated ones in train.csv, twice as many in the other lists.
        flaws: What unpacked data has: the first generated clip of each list has 5 frames, the second a truncated frame 3, the first real
            clip a junk file ``._1.jpg``.

    Returns:
        The three lists.
    """
    lists: list[Path] = []
    for name, split, kinds, first in (("train", "train", TRAIN, 0), ("val_id", "train", TRAIN, clips), ("val_ood", "test", TEST, 0)):
        reals = clips * (len(kinds) if name == "train" else 2)
        start = 0 if name != "val_id" else clips * len(kinds)  # the real training clips are numbered on
        rows = []
        members = [(REAL, start + i) for i in range(reals)] + [(kind, first + i) for kind in kinds for i in range(clips)]
        for place, (kind, number) in enumerate(members):
            content = f"{_FRAME_FOLDERS.get((split, kind), f'fake/{kind}')}/clip_{number:05d}"
            pixels = render_clip(clip_scene(seed, split, kind, number, frames, fps), kind, size)  # type: ignore[arg-type]
            pixels = pixels[_extracted(frames, fps)]
            if flaws and place == reals:
                pixels = pixels[:5]
            for k, content_bytes in enumerate(_jpegs(pixels), 1):
                broken = flaws and place == reals + 1 and k == 3
                write_bytes(root / content / f"{k}.jpg", content_bytes[: len(content_bytes) // 3] if broken else content_bytes)
            if flaws and place == 0:
                write_bytes(root / content / "._1.jpg", JUNK)
            label = int(kind != REAL)
            numbers = list(range(1, len(pixels) + 1))
            rows.append((content, f"{content}/1.jpg", TYPE_IDS[label], label, len(pixels), str(numbers)))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([HEADER, *rows])
        write_bytes(root / f"{name}.csv", text.getvalue().encode())
        lists.append(root / f"{name}.csv")
    return lists


_FRAME_FOLDERS = {("train", REAL): "real/youku", ("test", REAL): "real/MSRVTT"}


def _extracted(frames: int, fps: int) -> list[int]:
    """Indices of the frames nearest to k / rate, k = 0, 1, ...; the rate is 2 per second or, under 4 s, ceil(8 / duration)."""
    rate = 2 if frames / fps >= 4 else math.ceil(8 * fps / frames)
    return [min(frames - 1, round(k * fps / rate)) for k in range(frames * rate // fps)]


def _jpegs(frames: NDArray[np.uint8]) -> Iterable[bytes]:
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=92)
        yield file.getvalue()
