"""Pictures of a domain: a flat folder of them, without captions or labels; ``metadata.jsonl`` may name the category of each.

A data set of several has the folders ``target_dataset/<domain>``, ``reference/<domain>`` and ``source_image/<category>``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from datamodules.checks import Item
from datamodules.images import pictures_in, preview
from datamodules.listfiles import raise_all, read_text, some
from genlab.errors import MissingPath, UserError

__all__ = ["DomainPicture", "items", "preview", "read_folder"]

METADATA = "metadata.jsonl"
PARTS = {"target_dataset": "target", "reference": "reference", "source_image": "source"}


@dataclass(frozen=True)
class DomainPicture:
    """A picture, and the noun for what it shows; empty where nothing says."""

    path: Path
    category: str = ""


def read_folder(folder: Path) -> list[DomainPicture]:
    """All pictures of a folder by name; hidden files and whatever is no picture are passed over.

    Raises:
        MissingPath: There is no such folder, it has no pictures, or ``metadata.jsonl`` names others.
        UserError: ``metadata.jsonl`` is not as it should be, or leaves pictures out.
    """
    paths = pictures_in(folder)
    if not paths:
        raise MissingPath(f"data.root: there are no pictures in {folder}. Name the folder that they lie in; about ten are enough.")
    file = folder / METADATA
    if not file.is_file():
        return [DomainPicture(path) for path in paths]
    categories = _read_categories(file)
    names = {path.name for path in paths}
    if gone := sorted(categories.keys() - names):
        raise MissingPath(f"{file} names pictures that are not there: {some(gone)}. Bring them, or drop their lines.")
    if left := sorted(names - categories.keys()):
        raise UserError(f"{file} has no line for {some(left)}. Every picture needs its category once one has it.")
    return [DomainPicture(path, categories[path.name]) for path in paths]


def _read_categories(file: Path) -> dict[str, str]:
    """Category by name of the file."""
    found: dict[str, str] = {}
    wrong: list[str] = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        match record:
            case {"file_name": str(name), "category": str(category)} if name and category and name not in found:
                found[name] = category
            case {"file_name": str(name), "category": str(category)} if name and category:
                wrong.append(f"{file}:{number}: {name} is there twice.")
            case _:
                wrong.append(f'{file}:{number}: {line.strip()[:80]}; expected {{"file_name": "0.png", "category": "face"}}.')
    raise_all(wrong)
    return found


def items(root: Path, dataset: str) -> list[Item]:
    """Every picture: of one flat folder, of the folders of a set of several domains, or of each folder in ``root``.

    Raises:
        UserError: There are no pictures, or what is said of them is wrong.
    """
    if not root.is_dir():
        raise MissingPath(f"data.root: {root} is not a folder. Name one of pictures, or one with a folder per domain.")
    if pictures_in(root):
        return _items(root, [("target", root)])
    found = [(split, folder) for part, split in PARTS.items() for folder in _folders(root / part)]
    return _items(root, found or [("target", folder) for folder in _folders(root)])


def _folders(path: Path) -> list[Path]:
    return sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith(".")) if path.is_dir() else []


def _items(root: Path, folders: list[tuple[str, Path]]) -> list[Item]:
    if not folders:
        raise MissingPath(f"data.root: {root} has neither pictures nor folders of pictures in it. About ten pictures make a domain.")
    names = sorted({folder.name for _, folder in folders})
    return [
        Item(each.path.relative_to(root).as_posix(), each.path, names.index(folder.name), _group(folder, each), split)
        for split, folder in folders
        for each in read_folder(folder)
    ]


def _group(folder: Path, picture: DomainPicture) -> str:
    return f"{folder.resolve().name} ({picture.category})" if picture.category else folder.resolve().name
