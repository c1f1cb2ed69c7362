"""What gives real and generated pictures away that is not in the picture: file format, dimensions, bytes, quality; and copies."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from datamodules.checks import Facts, Item, shortcut
from datamodules.images import open_picture
from genlab.training.randomness import keyed_rng

SMALLEST = 8  # pixels per side
LOOKED_AT = 1000  # pictures per class before a run
STANDARD = 3688  # sum of the luminance table of JPEG's standard, which quality 50 means
NAMED = 3


def read_facts(item: Item, whole: bool) -> Facts:
    """What :func:`file_measures` says; the picture is decoded."""
    open_picture(item.path)
    return Facts(measures=file_measures(item.path))


def file_measures(path: Path) -> dict[str, float | str]:
    """Format, dimensions, bytes per pixel and, of JPEG, quality; from the header alone.

    Raises:
        OSError: It cannot be read.
    """
    try:
        with Image.open(path) as picture:
            found: dict[str, float | str] = {"format": str(picture.format), "size": f"{picture.width}x{picture.height}"}
            found["bytes per pixel"] = path.stat().st_size / max(1, picture.width * picture.height)
            tables = getattr(picture, "quantization", None)
            if picture.format == "JPEG" and tables:
                found["JPEG quality"] = jpeg_quality(list(tables[min(tables)]))
            return found
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise OSError(f"{path}: {error}") from error


def jpeg_quality(table: Sequence[int]) -> int:
    """The setting of the usual encoder, 1 to 100, from a luminance table; a likely one for other encoders."""
    scale = 100 * sum(table) / STANDARD
    return max(1, min(100, round((200 - scale) / 2 if scale <= 100 else 5000 / scale)))


def before_asking(items: Sequence[Item], labels: dict[int, str]) -> list[str]:
    """What one should know before a set is judged, from headers: what tells the classes apart, tiny and animated pictures, copies."""
    warnings: list[str] = []
    values: dict[str, dict[int, list[Any]]] = defaultdict(lambda: defaultdict(list))
    small: list[str] = []
    moving: list[str] = []
    for item in _sample(items):
        try:
            for measure, value in file_measures(item.path).items():
                values[measure][item.label].append(value)
            with Image.open(item.path) as picture:
                if min(picture.size) < SMALLEST:
                    small.append(item.id)
                if getattr(picture, "n_frames", 1) > 1:
                    moving.append(item.id)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # judged as unreadable
    for measure, by_label in values.items():
        if len(by_label) == 2 and (share := shortcut(*by_label.values())):
            typical = ", ".join(f"{labels[label]} {_typical(each)}" for label, each in sorted(by_label.items()))
            warnings.append(
                f"the {measure} alone tells the class of {share:.0%} of the pictures ({typical}). What a judge says of them may come from "
                "that: --data.reencode png or jpeg makes all files alike."
            )
    for what, found in ((f"smaller than {SMALLEST} pixels", small), ("animated, of which the first frame is seen", moving)):
        if found:
            warnings.append(f"{len(found)} pictures are {what}: {', '.join(found[:NAMED])}{' ...' if len(found) > NAMED else ''}")
    if copies := conflicts(items):
        warnings.append(f"{len(copies)} pictures have the same content under both labels: {'; '.join(copies[:NAMED])}")
    return warnings


def conflicts(items: Sequence[Item]) -> list[str]:
    """Pairs of files with the same content and different labels; only files of equal size are read."""
    by_size: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        if item.path.is_file():
            by_size[item.path.stat().st_size].append(item)
    found: list[str] = []
    for same in by_size.values():
        if len({item.label for item in same}) < 2:
            continue
        first: dict[str, Item] = {}
        for item in same:
            other = first.setdefault(hashlib.sha256(item.path.read_bytes()).hexdigest(), item)
            if other.label != item.label:
                found.append(f"{other.id} and {item.id}")
    return found


def _typical(values: Sequence[Any]) -> str:
    if isinstance(values[0], str):
        return str(Counter(values).most_common(1)[0][0])
    return f"{sorted(values)[len(values) // 2]:.3g}"


def _sample(items: Sequence[Item]) -> list[Item]:
    chosen: list[Item] = []
    for label in {item.label for item in items}:
        own = [item for item in items if item.label == label]
        chosen += [own[i] for i in keyed_rng("before asking", label).permutation(len(own))[:LOOKED_AT]]
    return sorted(chosen, key=lambda item: item.id)
