"""Still pictures on the disk: which files are some, and how one is opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps

from datamodules.checks import Item
from genlab.errors import MissingPath

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif")


def is_picture(name: str) -> bool:
    """Whether a file is one, by its name; hidden files are not."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def pictures_in(folder: Path) -> list[Path]:
    """The pictures that lie in the folder itself, by name: systems list folders in an order of their own.

    Raises:
        MissingPath: There is no such folder.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if is_picture(entry.name))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingPath(f"{folder} is not a folder. Name the one that the pictures lie in.") from error
    return [folder / name for name in names]


def open_picture(path: Path) -> Image.Image:
    """The picture as RGB, turned as the camera was held.

    Raises:
        OSError: It is not there or cannot be decoded; Pillow's other complaints about broken files become this one.
    """
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise OSError(f"{path}: {error}") from error


Unfit = Literal["animated", "CMYK", "unreadable"]


def unfit(path: Path) -> Unfit | None:
    """Why a picture cannot be one of a few that each count: it moves, its colours are inks, or it cannot be read. ``None``: it is fit."""
    try:
        with Image.open(path) as picture:
            if getattr(picture, "n_frames", 1) > 1:
                return "animated"
            if picture.mode == "CMYK":
                return "CMYK"
        open_picture(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "unreadable"
    return None


def preview(item: Item) -> list[Image.Image]:
    """The picture of a sample, for ``data show``; none if it cannot be read."""
    try:
        return [open_picture(item.path)]
    except OSError:
        return []
