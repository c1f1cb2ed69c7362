"""Pictures and the holes that are to be filled in them, in every form in which they lie on disks.

``images/`` and ``masks/`` with equal names (also ``image/`` and ``mask/``); pairs ``x.png`` and ``x_mask001.png``; a CSV or JSONL with
``image`` and ``mask``, and where known ``prompt`` and ``group``; Places365's validation pictures with ``places365_val.txt``; a tree of
results, a folder per method with equal names; and any other folder of pictures, whose holes are still to be made. White, or what is not
0, is the hole.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.checks import Item
from datamodules.images import open_picture
from datamodules.sniffing import pictures_below
from genlab.errors import MissingPath, UserError

PAIRS = (("images", "masks"), ("image", "mask"))
MASK_NAME = re.compile(r"(?P<stem>.+)_mask\d*")
HOLE = (236, 72, 190)  # what a preview lays over it
NAMED = 10  # wrong lines in a message


@dataclass(frozen=True, slots=True)
class InpaintingItem(Item):
    """A picture with its hole."""

    mask: Path | None = None
    """``None`` where the hole is still to be made."""
    prompt: str = ""

    @property
    def companions(self) -> tuple[Path, ...]:
        return () if self.mask is None else (self.mask,)


def read_hole(path: Path, size: tuple[int, int] | None = None, invert: bool = False) -> NDArray[np.bool_]:
    """A mask as (H, W), True in the hole: white, or everything but 0 where the values are those of a label image (0 and 1).

    Args:
        size: Width and height to bring it to, by the nearest pixel.
        invert: Black is the hole.

    Raises:
        OSError: It is not there or cannot be decoded.
    """
    try:
        with Image.open(path) as file:
            numbers = file.mode in ("1", "P")
            values = np.asarray(file if numbers else file.convert("L"))
    except (ValueError, SyntaxError) as error:
        raise OSError(f"{path}: {error}") from error
    hole = values > (0 if numbers or values.max() <= 1 else 127)
    if size is not None and hole.shape[::-1] != size:
        hole = np.asarray(Image.fromarray(hole).resize(size, Image.Resampling.NEAREST))
    return ~hole if invert else hole


# ---- lists


def read_list(path: Path, root: Path) -> list[Item]:
    """A CSV, or JSONL, with the columns ``image`` and ``mask``, and where known ``prompt`` and ``group``; paths count from ``root``.

    Raises:
        MissingPath: There is no such file.
        UserError: No such columns, or lines that are not as they should be, all of them in one message.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise MissingPath(f"{path} is not there.") from error
    rows: list[tuple[int, Any]] = []
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                rows.append((number, _json(line)))
    else:
        table = csv.DictReader(text.splitlines(keepends=True))
        rows = [(table.line_num, row) for row in table]
    found: list[Item] = []
    wrong: list[str] = []
    for number, row in rows:
        image, mask = (row.get("image"), row.get("mask")) if isinstance(row, dict) else (None, None)
        if not image or not mask or not isinstance(image, str) or not isinstance(mask, str):
            wrong.append(f"{path}:{number}: no image and mask in it; a line names both files.")
            continue
        prompt, group = (str(row.get(name) or "") for name in ("prompt", "group"))
        found.append(InpaintingItem(image, root / image, 0, group or "all", "all", mask=root / mask, prompt=prompt))
    if wrong:
        raise UserError("\n".join([*wrong[:NAMED], *([f"... and {len(wrong) - NAMED} more."] if len(wrong) > NAMED else [])]))
    if not found:
        raise UserError(f"{path} is empty; it needs a line with image and mask per picture.")
    return found


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _is_list(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        first = file.readline()
    if path.suffix == ".jsonl":
        record = _json(first)
        return isinstance(record, dict) and {"image", "mask"} <= record.keys()
    return {"image", "mask"} <= set(next(csv.reader([first]), []))


# ---- folders


def _equal_names(images: Path, masks: Path, root: Path) -> list[Item]:
    """A mask has its picture's name, whatever the ending, in the same folder below."""
    by_name = {path.relative_to(masks).with_suffix("").as_posix(): path for path in pictures_below(masks)}
    pictures = pictures_below(images)
    names = [path.relative_to(images).with_suffix("").as_posix() for path in pictures]
    alone = [path.relative_to(root).as_posix() for path, name in zip(pictures, names) if name not in by_name]
    alone += [by_name[name].relative_to(root).as_posix() for name in sorted(by_name.keys() - set(names))]
    if alone:
        more = f" and {len(alone) - NAMED} more" if len(alone) > NAMED else ""
        raise UserError(
            f"data.root: {images.name}/ and {masks.name}/ have no equal names for {', '.join(alone[:NAMED])}{more}. "
            "Bring the missing files, or remove these."
        )
    return [InpaintingItem(p.relative_to(root).as_posix(), p, 0, "all", "all", mask=by_name[n]) for p, n in zip(pictures, names)]


def _named_masks(root: Path, pictures: list[Path]) -> list[Item]:
    """``x_mask001.png`` is a mask of ``x``; a picture with several masks counts several times."""
    by_stem = {path.with_suffix("").as_posix(): path for path in pictures}
    found: list[Item] = []
    for path in pictures:
        named = MASK_NAME.fullmatch(path.stem)
        picture = by_stem.get(path.with_name(named["stem"]).as_posix()) if named else None
        if picture is not None:
            found.append(InpaintingItem(path.relative_to(root).as_posix(), picture, 0, "all", "all", mask=path))
    return found


def _places(root: Path, listed: Path) -> list[Item]:
    """``places365_val.txt``: a file name and the number of its class per line, pictures in ``val_256/`` or ``val_large/``."""
    folder = next((root / name for name in ("val_256", "val_large") if (root / name).is_dir()), root)
    names = _places_classes(root)
    found: list[Item] = []
    for number, line in enumerate(listed.read_text(encoding="utf-8-sig").splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        if len(parts) != 2 or not parts[1].isdigit():
            raise UserError(f"{listed}:{number}: {line[:80]!r} is not a file name and the number of its class.")
        label, path = int(parts[1]), folder / parts[0]
        found.append(InpaintingItem(path.relative_to(root).as_posix(), path, label, names.get(label, str(label)), "val"))
    return found


def _places_classes(root: Path) -> dict[int, str]:
    """``categories_places365.txt``, lines such as ``/a/airfield 0``; empty where it is not there."""
    path = root / "categories_places365.txt"
    lines = path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else []
    pairs = [line.rsplit(None, 1) for line in lines if line.strip()]
    return {int(number): name.split("/", 2)[-1] for name, number in pairs}


def precomputed(root: Path) -> dict[str, dict[str, Path]]:
    """A tree of results: method -> name of the picture -> file. Empty unless two folders or more have just the same names in them."""
    found: dict[str, dict[str, Path]] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in pictures_below(folder)}
        if files:
            found[folder.name] = files
    alike = len({frozenset(files) for files in found.values()}) == 1
    return found if len(found) > 1 and alike else {}


def items(root: Path, dataset: str) -> list[Item]:
    """Every picture, once for each of its holes; where there are none, every picture.

    Raises:
        UserError: Lists or folders that do not fit together, or no picture at all.
    """
    if root.is_file():
        return read_list(root, root.parent)
    if not root.is_dir():
        raise MissingPath(f"data.root: {root} is not there. Name a folder with images/ and masks/, a list, or any folder of pictures.")
    lists = [path for path in sorted([*root.glob("*.csv"), *root.glob("*.jsonl")]) if _is_list(path)]
    if lists:
        return [item for path in lists for item in read_list(path, root)]
    if (root / "places365_val.txt").is_file():
        return _places(root, root / "places365_val.txt")
    for images, masks in PAIRS:
        if (root / images).is_dir() and (root / masks).is_dir():
            return _equal_names(root / images, root / masks, root)
    tree = precomputed(root / "results" if (root / "results").is_dir() else root)
    if tree:
        return [
            InpaintingItem(path.relative_to(root).as_posix(), path, 0, method, "all")
            for method, files in tree.items()
            for _, path in sorted(files.items())
        ]
    pictures = pictures_below(root)
    if not pictures:
        raise MissingPath(f"data.root: there is no picture in {root}, nor in a folder of it.")
    return _named_masks(root, pictures) or [InpaintingItem(p.relative_to(root).as_posix(), p, 0, "all", "all") for p in pictures]


# ---- for ``data show``


def preview(item: Item) -> list[Image.Image]:
    """The picture, its hole tinted; none if either cannot be read."""
    try:
        picture = open_picture(item.path)
        mask = item.mask if isinstance(item, InpaintingItem) else None
        hole = read_hole(mask, picture.size) if mask is not None else None
    except OSError:
        return []
    if hole is not None:
        tint = Image.blend(picture, Image.new("RGB", picture.size, HOLE), 0.75)
        picture = Image.composite(tint, picture, Image.fromarray(hole))
    return [picture]


def note(item: Item) -> str:
    """What the picture shows, where it is known."""
    return (item.prompt if isinstance(item, InpaintingItem) else "") or item.path.name
