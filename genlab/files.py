"""Files that are written whole or not at all, and the fingerprint of many."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """Where everything is kept that can be made again: ``$GENLAB_CACHE``, or ``~/.cache/genlab``."""
    return Path(os.environ.get("GENLAB_CACHE") or "~/.cache/genlab").expanduser()


def write_bytes(path: Path | str, content: bytes, sync: bool = True) -> Path:
    """Writes beside the file and renames, so that a reader, or whoever comes after a crash, sees the old file or the new one.

    Args:
        sync: Wait until the content is on the disk; without, a power cut may leave an empty file. For thousands of small files that
            are synced together.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """JSON with sorted keys; NaN and infinities become null, since JSON has none."""
    write_bytes(path, (json.dumps(jsonable(content), indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], first: Sequence[str] = ()) -> None:
    """CSV with a header; columns are ``first`` and then the others in the order of their appearance."""
    columns = list(dict.fromkeys([*first, *(key for row in rows for key in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))  # names of files need not be Unicode


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file with a header."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no such file."""
    return json.loads(path.read_text()) if path.is_file() else {}


def jsonable(value: Any) -> Any:
    """The value as JSON can hold it: scalars of NumPy and torch as numbers, NaN and infinities as ``None``, the unknown as text."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # a NumPy or torch scalar
        return jsonable(value.item())
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    return value if isinstance(value, str | int | bool | None) else str(value)


def fingerprint(files: Iterable[tuple[str, int]]) -> str:
    """Names a dataset: hash of its sorted (relative path, size in bytes) pairs."""
    digest = hashlib.blake2b(digest_size=8)
    for name, size in sorted(files):
        digest.update(f"{name}\0{size}\n".encode())
    return digest.hexdigest()


def file_size(path: Path | str) -> int:
    """Bytes; -1 where there is no such file."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return -1
