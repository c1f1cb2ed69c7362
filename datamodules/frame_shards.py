"""Tar files that grow sample by sample and survive being stopped: shards as WebDataset's tools read them."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

from genlab.store import RowStore

BLOCK = 512  # of a tar: every header and every content fills whole ones
END = bytes(2 * BLOCK)  # of a tar file


def member(name: str, content: bytes) -> bytes:
    """A file in a tar: header and content."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % BLOCK)


def filled(size: Any) -> Any:
    """Bytes that a member of this size takes, header included."""
    return BLOCK + (size + BLOCK - 1) // BLOCK * BLOCK


class Shards:
    """``frames-000000.tar`` ... that grow clip by clip; only what a row names counts.

    Args:
        folder: Of the shards; rows name them relative to its parent.
        full: Bytes from which on a next one is begun.
        store: Rows with ``file``, ``offset`` and ``length`` of everything that is stored.
    """

    def __init__(self, folder: Path, full: int, store: RowStore) -> None:
        self.folder, self.full = folder, full
        folder.mkdir(parents=True, exist_ok=True)
        ends: dict[str, int] = {}
        for _, row in store.rows():
            if row["file"]:
                ends[row["file"]] = max(ends.get(row["file"], 0), row["offset"] + row["length"])
        last, end = max(ends.items(), default=("", 0))
        self.number = int(last[-10:-4]) if last else 0
        self._open(end)

    def _open(self, end: int) -> None:
        path = self.folder / f"frames-{self.number:06d}.tar"
        end = min(end, path.stat().st_size) // BLOCK * BLOCK if path.is_file() else 0
        self.file = path.open("r+b" if path.is_file() else "w+b")
        self.file.truncate(end)  # a clip that was being written, or the end of the tar
        self.file.seek(end)

    def append(self, content: bytes) -> tuple[str, int]:
        """Adds a clip; returns file and offset."""
        if self.file.tell() >= self.full:
            self.close()
            self.number += 1
            self._open(0)
        offset = self.file.tell()
        self.file.write(content)
        self.file.flush()
        return f"shards/{Path(self.file.name).name}", offset

    def blank(self, row: dict[str, Any] | None) -> None:
        """Turns what a clip had before into a member that WebDataset passes over."""
        path = self.folder.parent / row["file"] if row and row["file"] else None
        if path is None or row is None or not path.is_file() or path.stat().st_size < row["offset"] + row["length"]:
            return
        info = tarfile.TarInfo(".removed")
        info.size = row["length"] - BLOCK
        with path.open("r+b") as file:
            file.seek(row["offset"])
            file.write(info.tobuf(tarfile.USTAR_FORMAT))

    def close(self) -> None:
        self.file.write(END)
        self.file.close()
