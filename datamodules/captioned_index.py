"""Captioned pictures in the form that Hugging Face calls ``imagefolder``: ``<split>/metadata.jsonl`` with a line per picture.

A line names its file, relative to the folder of ``metadata.jsonl``, and holds its caption and any further columns:
``{"file_name": "000/000017.png", "text": "a red star in a studio", "shape": "star"}``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from datamodules.checks import Item
from genlab.errors import MissingPath, UserError

METADATA = "metadata.jsonl"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Captioned:
    """A picture (or a clip), its caption, and the other columns of its line."""

    id: str
    """Path below the root, with forward slashes."""
    path: Path
    caption: str
    columns: dict[str, str]


def splits_of(root: Path) -> list[str]:
    """The splits that ``root`` has, ``train`` first; ``[""]`` where ``metadata.jsonl`` lies in the root itself."""
    if (root / METADATA).is_file():
        return [""]
    found = [path.parent.name for path in root.glob(f"*/{METADATA}")]
    return [*(s for s in SPLITS if s in found), *sorted(set(found) - set(SPLITS))]


def read_split(root: Path, split: str) -> list[Captioned]:
    """The lines of ``<root>/<split>/metadata.jsonl``, in their order.

    Raises:
        MissingPath: There is no such file, or pictures that it names are missing.
        UserError: Lines that are not as they should be, all of them in one message.
    """
    found = []
    for name, record in read_lines(root, split, {"text": "a red star"}):
        text = str(record.pop("text"))
        columns = {key: str(value) for key, value in record.items() if value is not None}
        found.append(Captioned(f"{split}/{name}".lstrip("/"), root / split / name, text, columns))
    return found


def read_lines(root: Path, split: str, texts: dict[str, str]) -> list[tuple[str, dict[str, Any]]]:
    """File names and the other values of the lines of ``<root>/<split>/metadata.jsonl``, in their order.

    Args:
        texts: Keys that every line has beside ``file_name``, their values texts, with an example each.

    Raises:
        MissingPath: There is no such file, or pictures that it names are missing.
        UserError: Lines that are not as they should be, all of them in one message.
    """
    folder = root / split
    file = folder / METADATA
    if not file.is_file():
        raise MissingPath(
            f"data.root: {file} is not there. Expected a folder per split with pictures and {METADATA}, lines such as "
            f"{json.dumps({'file_name': '0001.png'} | texts)}."
        )
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.name.startswith(".")}
    found: list[tuple[str, dict[str, Any]]] = []
    wrong: list[str] = []
    missing: list[str] = []
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            record = _parse(line, ("file_name", *texts))
            if record is None:
                wrong.append(f"{file}:{number}: not a JSON object with the texts file_name and {' and '.join(texts)}: {line.strip()[:80]}")
            elif record["file_name"] not in names:
                missing.append(f"{file}:{number}: {record['file_name']}")
            else:
                found.append((str(record.pop("file_name")), record))
    if wrong:
        raise UserError("\n".join([*wrong[:10], *([f"... and {len(wrong) - 10} more lines."] if len(wrong) > 10 else [])]))
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise MissingPath(
            f"data.root: pictures that the list names are missing: {'; '.join(missing[:5])}{more}. Bring them, or drop the lines."
        )
    if not found:
        raise UserError(f"data.root: {file} is empty; it needs a line per picture.")
    return found


def _parse(line: str, texts: Sequence[str]) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and all(isinstance(record.get(name), str) for name in texts) else None


def items(root: Path, dataset: str) -> list[Item]:
    """Every picture, or clip, of the folder, for ``data show``."""
    splits = splits_of(root)
    if not splits:
        raise MissingPath(f"{root}: there is no {METADATA} in it, nor in a folder of it.")
    read = [(split or "all", each) for split in splits for each in read_split(root, split)]
    return [Item(each.id, each.path, 0, _row(each), split) for split, each in read]


def _row(sample: Captioned) -> str:
    """What it is shown beside: clips of the same motion, pictures of the same background."""
    return next((sample.columns[name] for name in ("motion", "background") if name in sample.columns), "all")


def preview(item: Item) -> list[Image.Image]:
    """The picture; none if it cannot be read."""
    try:
        with Image.open(item.path) as picture:
            return [picture.convert("RGB")]
    except (OSError, ValueError):
        return []
