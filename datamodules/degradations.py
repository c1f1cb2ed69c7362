"""The eight degradations under which DeMamba is tested (arXiv 2405.19707, robustness experiment and official code).

Each is constant over the frames of a clip and drawn from a generator that the caller keys by clip and degradation,
``keyed_rng(seed, "degrade", clip_id, name)``, so that all runs see the same degraded test set:

==========  =======  ====================================================================================
name        stage    strength
==========  =======  ====================================================================================
h264        file     re-encoded by libx264, crf 28, preset medium
text        source   white text [default: 8 % of the height, opacity 0.6] at a random place
image       source   a logo [default: 20 % of the width, opacity 0.5] at a random place
jpeg        clip     quality 35
flip        clip     horizontal or vertical, half each
crop        clip     corner in 0..16, sides in 160..208 of 224 pixels (71-93 %), bilinear back
gaussian    clip     blur, 7 x 7, deviation 1.4; the paper calls it noise of deviation 7, the code blurs
color       clip     brightness, contrast or saturation times 0.5..1.5, or hue turned by -0.5..0.5
==========  =======  ====================================================================================

Stages: ``file`` before decoding (``reencode_h264``), ``source`` on decoded frames before edge crop and resize, ``clip`` after them and
before normalisation. [default] marks what neither paper nor code states: content, size and opacity of the watermarks.
"""

from __future__ import annotations

import errno
import math
import platform
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from datamodules.transforms import Mode, blur, each_frame, jpeg, resize
from datamodules.video import UnreadableVideo, video_stream
from genlab.errors import MissingPath

Degradation = Literal["h264", "jpeg", "flip", "crop", "text", "image", "gaussian", "color"]
DEGRADATIONS: tuple[Degradation, ...] = get_args(Degradation)
STAGES: dict[Degradation, Literal["file", "source", "clip"]] = dict.fromkeys(DEGRADATIONS, "clip")
STAGES |= {"h264": "file", "text": "source", "image": "source"}

WATERMARK_TEXT, TEXT_HEIGHT, TEXT_OPACITY = "watermark", 0.08, 0.6  # [default]
LOGO_WIDTH, LOGO_OPACITY = 0.2, 0.5  # [default]


def apply(name: Degradation, video: Tensor, rng: np.random.Generator, mode: Mode = "clip") -> Tensor:
    """Degrade a clip.

    Args:
        name: Any but ``h264``, which works on the file.
        video: (T, 3, H, W) uint8; before edge crop and resize for the stage ``source``, after them for ``clip``.
        rng: Keyed by clip and degradation.
        mode: ``clip`` is constant over the frames. ``official`` differs for ``color`` alone: as in the code, the kind is drawn once,
            each frame is changed with probability 0.5, by a strength of its own.

    Returns:
        The same shape and dtype.
    """
    match name:
        case "jpeg":
            return jpeg(video, quality=35)
        case "flip":
            return video.flip(-1 if rng.random() < 0.5 else -2)
        case "crop":
            return _crop(video, rng)
        case "text":
            return _stamp(video, _text(*video.shape[-2:]), TEXT_OPACITY, rng)
        case "image":
            return _stamp(video, _logo(*video.shape[-2:]), LOGO_OPACITY, rng)
        case "gaussian":
            return blur(video, kernel=7)
        case "color":
            kind = int(rng.integers(4))
            if mode == "official":
                return each_frame(video, lambda frame: _color(frame, kind, rng) if rng.random() < 0.5 else frame)
            return _color(video, kind, rng)
        case "h264":
            raise ValueError("h264 re-encodes the file before it is decoded: use reencode_h264.")
        case _:
            raise ValueError(f"degradation is {name!r}; there are {', '.join(DEGRADATIONS)}.")


def _crop(video: Tensor, rng: np.random.Generator) -> Tensor:
    """Width and height are drawn independently; other sizes than 224 scale the ranges."""
    height, width = video.shape[-2:]
    left, top = (round(int(rng.integers(0, 17)) * side / 224) for side in (width, height))
    wide, high = (max(1, math.floor(int(rng.integers(160, 209)) * side / 224)) for side in (width, height))
    return resize(video[..., top : top + high, left : left + wide], (height, width))


def _color(video: Tensor, kind: int, rng: np.random.Generator) -> Tensor:
    if kind == 3:
        return vision.adjust_hue(video, float(rng.uniform(-0.5, 0.5)))
    adjust = (vision.adjust_brightness, vision.adjust_contrast, vision.adjust_saturation)[kind]
    return adjust(video, float(rng.uniform(0.5, 1.5)))


def _stamp(video: Tensor, mark: Image.Image, opacity: float, rng: np.random.Generator) -> Tensor:
    """Blend an RGBA picture into all frames at one random place, wholly inside."""
    pixels = torch.from_numpy(np.array(mark)).permute(2, 0, 1).float()  # (4, h, w)
    colour, alpha = pixels[:3], pixels[3:] * (opacity / 255)
    high, wide = pixels.shape[-2:]
    top, left = (int(rng.integers(side - size + 1)) for side, size in zip(video.shape[-2:], (high, wide)))
    stamped = video.clone()
    under = video[..., top : top + high, left : left + wide].float()
    stamped[..., top : top + high, left : left + wide] = torch.lerp(under, colour, alpha.expand_as(colour)).round().to(torch.uint8)
    return stamped


def _text(height: int, width: int) -> Image.Image:
    """The watermark's letters in white, as high as stated unless that is wider than the frame."""
    font = ImageFont.load_default(size=64)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(WATERMARK_TEXT))
    mask = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(mask).text((-left, -top), WATERMARK_TEXT, fill=255, font=font)
    scale = min(TEXT_HEIGHT * height / mask.height, width / mask.width)
    mask = mask.resize((max(1, int(mask.width * scale)), max(1, round(mask.height * scale))), Image.Resampling.LANCZOS)
    letters = Image.new("RGBA", mask.size, "white")
    letters.putalpha(mask)
    return letters


def _logo(height: int, width: int) -> Image.Image:
    """A round badge: a white ring around orange with a blue triangle, drawn large and scaled down."""
    large = Image.new("RGBA", (256, 256))
    draw = ImageDraw.Draw(large)
    draw.ellipse((0, 0, 255, 255), fill="white")
    draw.ellipse((20, 20, 235, 235), fill="darkorange")
    draw.polygon([(96, 64), (96, 192), (200, 128)], fill="navy")
    side = max(1, min(round(LOGO_WIDTH * width), height))
    return large.resize((side, side), Image.Resampling.LANCZOS)


def reencode_h264(src: Path, dst: Path, crf: int = 28, preset: str = "medium") -> None:
    """Write ``src`` (a gif too) to ``dst`` as an MP4, H.264 4:2:0 without sound, upright, with the same frame times.

    An odd side loses a pixel by scaling, since 4:2:0 has none. The official script mixes a gif's palette into the H.264 stream; here
    gifs are coded like any video. ``dst`` appears only once complete.

    Args:
        src: Video file.
        dst: File to write, in an existing folder.
        crf: Constant rate factor, 0..51, higher is worse; paper: 28.
        preset: libx264's preset.

    Raises:
        UnreadableVideo: ``src`` cannot be decoded to its end.
        MissingPath: The folder of ``dst`` is not there.
        OSError: ``dst`` cannot be written.
    """
    import av

    if not dst.parent.is_dir():
        raise MissingPath(f"{dst.parent} is not a folder; make it before re-encoding into it.")
    part = dst.with_name(f".{dst.name}.part")
    try:
        with av.open(str(src.absolute()), metadata_errors="replace") as source, av.open(str(part), "w", format="mp4") as target:
            stream = video_stream(source)
            options = {"crf": str(crf), "preset": preset}
            if min(stream.codec_context.width, stream.codec_context.height) < 256 and platform.machine().lower() in ("x86_64", "amd64"):
                options["x264-params"] = "asm=sse4.2"  # x264's AVX-512 differs from run to run below 16 macroblocks a row
            out = target.add_stream("libx264", rate=stream.average_rate or 25, options=options)
            out.pix_fmt = "yuv420p"
            out.codec_context.thread_count = 1  # x264's result depends on their number: one result on all machines
            out.codec_context.time_base = stream.time_base or Fraction(1, 1000)
            last = -1
            for frame in source.decode(stream):
                turned = frame.rotation // 90 % 4
                if turned:
                    upright = av.VideoFrame.from_ndarray(np.rot90(frame.to_ndarray(format="rgb24"), turned).copy(), format="rgb24")
                    upright.pts, upright.time_base = frame.pts, frame.time_base
                    frame = upright
                if last < 0:
                    out.width, out.height = max(2, frame.width // 2 * 2), max(2, frame.height // 2 * 2)
                frame = frame.reformat(out.width, out.height, "yuv420p", interpolation="BICUBIC")
                last = frame.pts = max(last + 1, frame.pts or 0)
                frame.pict_type = 0  # the source's key frames are not the target's
                target.mux(out.encode(frame))
            if last < 0:
                raise UnreadableVideo(src, "no frames")
            target.mux(out.encode())
        part.replace(dst)
    except (av.FFmpegError, ValueError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise  # not the clip's fault
        raise UnreadableVideo(src, str(error)) from error
    finally:
        part.unlink(missing_ok=True)
