"""Which files are pictures, by their first bytes: in collected sets names lie, and web pages end in ``.jpg``."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)

NAMED = 5  # files in a message
STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


def is_picture_file(path: Path) -> bool:
    """Whether a file begins like a JPEG, PNG, GIF, BMP, TIFF or WebP; nothing more of it is read."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head.startswith(STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def pictures_below(root: Path, skip: Iterable[str] = ()) -> list[Path]:
    """All pictures of a folder and of those in it, sorted by path; other files are left out, and said once.

    Args:
        skip: Names of files that need no mention: lists and the like.
    """
    found: list[Path] = []
    others: list[Path] = []
    known = {"Thumbs.db", "tinyworld.json", *skip}
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        for name in files:
            path = Path(folder) / name
            if is_picture_file(path):
                found.append(path)
            elif not name.startswith(".") and name not in known:
                others.append(path)
    if others:
        others.sort()
        named = ", ".join(path.relative_to(root).as_posix() for path in others[:NAMED])
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        log.warning("%s: %d files are no pictures and are left out: %s%s", root, len(others), named, more)
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())
