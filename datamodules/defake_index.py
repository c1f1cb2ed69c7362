"""Real and generated pictures, in every form in which such sets are passed on; label 1 = generated.

A folder with ``real/`` and ``fake/`` (what is below ``fake/`` may be sorted by generator), or with ``images/`` whose folders of real
pictures are named so (``real_batch``, ``batch_a``); two folders (`two_folders`); a CSV ``path,label[,generator][,split]``, or the table of
replies ``path,label,pred,response`` in which, as official code writes it, 1 = real; grounding JSONL, a chat per line in the form
of ms-swift, whose ``objects`` are regions with what is wrong there. Files are told by content.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from datamodules.checks import Item
from datamodules.images import open_picture
from datamodules.listfiles import raise_all, read_text
from datamodules.sniffing import pictures_below
from genlab.errors import MissingPath, UserError

REAL, FAKE = 0, 1
WORDS = {"0": REAL, "1": FAKE, "real": REAL, "fake": FAKE, "generated": FAKE, "false": REAL, "true": FAKE}
SHOWN = 256  # pixels of a preview's shorter side at least
NAMED = 10  # wrong lines in a message


@dataclass(frozen=True, slots=True)
class Region:
    """Something in a picture: what it is called, and its box."""

    ref: str
    box: tuple[float, float, float, float]
    """Left, top, right, bottom."""
    relative: bool = False
    """Whether the box is in shares of width and height ("norm1") and not in pixels."""

    def pixels(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The box in a picture of that size."""
        x, y = (width, height) if self.relative else (1, 1)
        left, top, right, bottom = self.box
        return left * x, top * y, right * x, bottom * y


@dataclass(frozen=True, slots=True)
class Grounded:
    """A line of grounding JSONL.

    Args:
        picture: Its path as the line has it.
        turns: Roles and texts before the answer, ``<image>`` where the picture is.
        target: The answer, ``<ref-object>`` and ``<bbox>`` for what the regions are called and where they are, from left to right.
        regions: None for a real picture.
    """

    picture: str
    turns: tuple[tuple[str, str], ...]
    target: str
    regions: tuple[Region, ...]


@dataclass(frozen=True, slots=True)
class DefakeItem(Item):
    """A picture, and what is known to be wrong with it."""

    regions: tuple[Region, ...] = ()
    target: str = ""


# ---- grounding JSONL


def read_grounding(path: Path) -> list[Grounded]:
    """The lines of a grounding file.

    Raises:
        MissingPath: There is no such file.
        UserError: Lines that are not as they should be, all of them in one message.
    """
    found: list[Grounded] = []
    wrong: list[str] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(_grounded(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:  # JSONDecodeError is a ValueError
            why = f"there is no {error}" if isinstance(error, KeyError) else str(error)
            wrong.append(f"{path}:{number}: {why}")
    raise_all(wrong, NAMED)
    if not found:
        raise UserError(f"{path} is empty; it needs a line per picture.")
    return found


def _grounded(record: Any) -> Grounded:
    """Raises ValueError, TypeError or KeyError that say what is wrong."""
    if not isinstance(record, dict):
        raise TypeError('not a JSON object with "messages" and "images"')
    turns = [(str(turn["role"]), str(turn["content"])) for turn in record["messages"]]
    images = [image["path"] if isinstance(image, dict) else image for image in record["images"]]
    if len(images) != 1 or not isinstance(images[0], str):
        raise ValueError(f"images has {len(images)} entries; it is the path of one picture, in a list")
    if not turns or turns[-1][0] != "assistant":
        raise ValueError("the last message is not the assistant's; it is what the model is to say")
    if sum(text.count("<image>") for role, text in turns if role == "user") != 1:
        raise ValueError("<image> stands once in the user's messages, where the picture goes")
    objects = record.get("objects") or {}
    refs, boxes = list(objects.get("ref", [])), list(objects.get("bbox", []))
    kind = objects.get("bbox_type", "real")
    if kind not in ("real", "norm1"):
        raise ValueError(f'bbox_type is {kind!r}; use "real" (pixels) or "norm1" (shares of width and height)')
    target = turns[-1][1]
    asked = target.count("<ref-object>"), target.count("<bbox>")
    if asked != (len(refs), len(boxes)) or len(refs) != len(boxes):
        raise ValueError(
            f"the answer has {asked[0]} <ref-object> and {asked[1]} <bbox>, objects has {len(refs)} ref and {len(boxes)} bbox; "
            "there is one of each per region"
        )
    regions = tuple(Region(str(ref), _box(box), kind == "norm1") for ref, box in zip(refs, boxes))
    return Grounded(images[0], tuple(turns[:-1]), target, regions)


def _box(box: Any) -> tuple[float, float, float, float]:
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        raise ValueError(f"bbox {box} is not [left, top, right, bottom]")
    left, top, right, bottom = box
    if right <= left or bottom <= top:
        raise ValueError(f"bbox {box} is empty: right is more than left, bottom more than top")
    return left, top, right, bottom


# ---- lists and folders


def read_table(path: Path, root: Path) -> list[Item]:
    """A CSV ``path,label[,generator][,split]``; a table of replies has ``pred`` and ``response`` too, and 1 = real.

    Labels are 1, ``fake`` or ``generated``, and 0 or ``real``. Paths count from ``root``.

    Raises:
        MissingPath: There is no such file.
        UserError: No such columns, or lines that are not as they should be.
    """
    rows = csv.DictReader(read_text(path).splitlines(keepends=True))
    columns = set(rows.fieldnames or ())
    if not {"path", "label"} <= columns:
        raise UserError(f"{path}:1: columns are {', '.join(rows.fieldnames or ()) or 'missing'}; a list has path and label.")
    official = {"pred", "response"} <= columns
    found: list[Item] = []
    wrong: list[str] = []
    for row in rows:
        name, word = (row["path"] or "").replace("\\", "/"), (row["label"] or "").strip().lower()
        if not name or word not in WORDS:
            wrong.append(f"{path}:{rows.line_num}: path {name!r}, label {row['label']!r}; a label is 1 or fake, 0 or real.")
            continue
        label = WORDS[word]
        if official and word in ("0", "1"):
            label = 1 - label
        group = (row.get("generator") or "").strip() or ("fake" if label else "real")
        found.append(DefakeItem(name, root / name, label, group, (row.get("split") or "all").strip()))
    raise_all(wrong, NAMED)
    if not found:
        raise UserError(f"{path} is empty; it needs a line per picture.")
    return found


def two_folders(real: Path, fake: Path, root: Path | None = None) -> list[Item]:
    """All pictures below two folders; the first folder below ``fake`` names the generator.

    Args:
        root: What ids count from; left out, pictures are called ``real/...`` and ``fake/...``.

    Raises:
        MissingPath: One of them is not there, or has no pictures.
    """
    found: list[Item] = []
    for label, name, folder in ((REAL, "real", real), (FAKE, "fake", fake)):
        if not folder.is_dir():
            raise MissingPath(f"data.root: {folder} is not a folder; name the one that the {name} pictures lie in.")
        pictures = pictures_below(folder)
        if not pictures:
            raise MissingPath(f"data.root: there is no picture in {folder}, nor in a folder of it.")
        for path in pictures:
            below = path.relative_to(folder)
            group = below.parts[0] if label == FAKE and len(below.parts) > 1 else name
            key = path.relative_to(root).as_posix() if root else f"{name}/{below.as_posix()}"
            found.append(DefakeItem(key, path, label, group, "all"))
    return found


def _batches(images: Path, root: Path) -> list[Item]:
    """``images/<batch>/``: folders whose names begin with "real" have real pictures."""
    found: list[Item] = []
    for path in pictures_below(images):
        batch = path.relative_to(images).parts[0]
        label = REAL if batch.lower().startswith("real") else FAKE
        found.append(DefakeItem(path.relative_to(root).as_posix(), path, label, batch, "all"))
    return found


def items(root: Path, dataset: str) -> list[Item]:
    """Every picture of the folder or the list ``root``, sorted by path, with the regions that grounding files name.

    A list goes before folders, and these before grounding files, whose pictures without regions are real.

    Raises:
        UserError: None of the forms is found.
    """
    if root.is_file():
        return _by_lines({root: read_grounding(root)}, root.parent) if root.suffix == ".jsonl" else read_table(root, root.parent)
    if not root.is_dir():
        raise MissingPath(f"data.root: {root} is not there. Name a folder with real/ and fake/, or a list of pictures.")
    grounding = {path: read_grounding(path) for path in sorted(root.glob("*.jsonl")) if _is_grounding(path)}
    tables = [path for path in sorted(root.glob("*.csv")) if _is_table(path)]
    images = root / "images"
    batches = [path.name for path in images.iterdir() if path.is_dir()] if images.is_dir() else []
    if tables:
        found = [item for path in tables for item in read_table(path, root)]
    elif (root / "real").is_dir() or (root / "fake").is_dir():
        found = two_folders(root / "real", root / "fake", root)
    elif any(name.lower().startswith("real") for name in batches):
        found = _batches(images, root)
    elif grounding:
        return _by_lines(grounding, root)
    else:
        raise UserError(
            f"{root} holds no set of real and generated pictures. Expected real/ and fake/ (in it a folder per generator), a CSV with the "
            "columns path and label, grounding JSONL, or images/ with folders real_batch, batch_a ..."
        )
    lines = {line.picture: line for each in grounding.values() for line in each}
    known = [_with(item, lines.get(item.id)) for item in found]
    return sorted(known, key=lambda item: item.id)


def _with(item: Item, line: Grounded | None) -> Item:
    regions, target = (line.regions, line.target) if line else ((), "")
    return DefakeItem(item.id, item.path, item.label, item.group, item.split, regions=regions, target=target)


def _by_lines(grounding: dict[Path, list[Grounded]], root: Path) -> list[Item]:
    found: list[Item] = []
    for path, lines in grounding.items():
        for line in lines:
            label, name = (FAKE, "fake") if line.regions else (REAL, "real")
            split = path.stem.removeprefix("grounding_")
            found.append(DefakeItem(line.picture, root / line.picture, label, name, split, regions=line.regions, target=line.target))
    return sorted(found, key=lambda item: item.id)


def _is_grounding(path: Path) -> bool:
    """Whether the first line has messages: other JSONL files (annotations of unknown form) may lie beside."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return '"messages"' in file.readline()


def _is_table(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return {"path", "label"} <= set(next(csv.reader(file), []))


# ---- for ``data show``


def preview(item: Item) -> list[Image.Image]:
    """The picture with the boxes of its regions; none if it cannot be read."""
    try:
        picture = open_picture(item.path)
    except OSError:
        return []
    regions = item.regions if isinstance(item, DefakeItem) else ()
    scale = max(1, -(-SHOWN // min(picture.size)))
    shown = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(shown)
    width = max(2, round(min(shown.size) / 100))
    for region in regions:
        left, top, right, bottom = (value * scale for value in region.pixels(*picture.size))
        draw.rectangle((left, top, right - 1, bottom - 1), outline=(255, 40, 40), width=width)
    return [shown]


def note(item: Item) -> str:
    """File name, and what is wrong with it."""
    refs = ", ".join(region.ref for region in item.regions) if isinstance(item, DefakeItem) else ""
    return f"{item.path.name} {refs}".strip()
