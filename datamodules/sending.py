"""Picture files as they leave the house: without what cameras and programs wrote beside the picture, or encoded anew, all alike."""

from __future__ import annotations

import io
import struct
from typing import Literal

from PIL import Image, ImageOps

Reencode = Literal["none", "png", "jpeg"]
JPEG_QUALITY = 95
KEPT_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"sBIT", b"bKGD", b"hIST"}
ORIENTATION = 0x0112


def sent_bytes(file: bytes, reencode: Reencode = "none", max_side: int | None = None, strip_metadata: bool = True) -> bytes:
    """A picture file as it is to be sent.

    Args:
        reencode: ``png`` or ``jpeg`` (quality 95) makes all files alike; ``none`` leaves the encoded picture as it is.
        max_side: Larger pictures are reduced to it, and encoded as PNG where ``reencode`` is ``none``.
        strip_metadata: Leave out EXIF, comments and texts of JPEG and PNG files; the encoded picture stays bit for bit. One that EXIF turns
            is turned and encoded anew.

    Raises:
        OSError: The picture cannot be decoded.
    """
    with Image.open(io.BytesIO(file)) as picture:
        kind, turned = picture.format, picture.getexif().get(ORIENTATION, 1) != 1
        large = max_side is not None and max(picture.size) > max_side
        if reencode == "none" and not large and not (turned and strip_metadata):
            if not strip_metadata:
                return file
            return _jpeg_without(file) if kind == "JPEG" else _png_without(file) if kind == "PNG" else file
        shown = ImageOps.exif_transpose(picture)
        shown = shown.convert("RGB" if reencode == "jpeg" or "A" not in shown.getbands() else "RGBA")
        if large and max_side is not None:
            shown.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        as_jpeg = reencode == "jpeg" or (reencode == "none" and not large and kind == "JPEG")
        shown.info = {}
        shown.save(buffer, "JPEG", quality=JPEG_QUALITY) if as_jpeg else shown.save(buffer, "PNG")
        return buffer.getvalue()


def _jpeg_without(file: bytes) -> bytes:
    """Without the segments APP1 (EXIF, XMP), APP3 to APP13 and comments; colour profiles (APP2) and Adobe's marker (APP14) stay."""
    out, at = bytearray(file[:2]), 2
    while at + 4 <= len(file) and file[at] == 0xFF:
        marker = file[at + 1]
        if marker == 0xDA:  # the picture itself follows
            break
        end = at + 2 + int(struct.unpack(">H", file[at + 2 : at + 4])[0])
        if not (marker == 0xE1 or 0xE3 <= marker <= 0xED or marker == 0xFE):
            out += file[at:end]
        at = end
    return bytes(out + file[at:])


def _png_without(file: bytes) -> bytes:
    """With the chunks alone that the picture's look depends on."""
    out, at = bytearray(file[:8]), 8
    while at + 12 <= len(file):
        length = int(struct.unpack(">I", file[at : at + 4])[0])
        if file[at + 4 : at + 8] in KEPT_CHUNKS:
            out += file[at : at + 12 + length]
        at += 12 + length
    return bytes(out)
