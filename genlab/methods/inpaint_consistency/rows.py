"""What a study has measured so far: a row per filling, in files that survive being killed and that processes do not share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from genlab.store import RowStore

WHOLE = "rows.sqlite"


class Rows:
    """Rows by key. Every process writes a file of its own; ``merge`` puts what they left into one.

    Args:
        folder: Where the files lie.
        rank: This process.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank = folder, rank
        self._stores: list[RowStore] = []

    def merge(self, fresh: bool = False) -> None:
        """Rank zero's, while no process has the files open: one file of all. Interrupted, the next call does the rest.

        Args:
            fresh: Forget everything first.
        """
        if fresh:
            for path in self.folder.glob("rows*.sqlite*"):
                path.unlink()
        whole = RowStore(self.folder / WHOLE)
        for path in sorted(self.folder.glob("rows-*.sqlite")):
            part = RowStore(path)
            for key, row in part.rows():
                whole.put(key, row)
            part.close()
            for rest in self.folder.glob(f"{path.name}*"):  # SQLite's log too
                rest.unlink()
        whole.close()

    def open(self) -> None:
        """From now on rows can be found and put."""
        self._stores = [RowStore(self.folder / WHOLE), RowStore(self.folder / f"rows-{self.rank}.sqlite")]

    def close(self) -> None:
        for store in self._stores:
            store.close()
        self._stores = []

    def put(self, key: str, row: dict[str, Any]) -> None:
        self._stores[1].put(key, row)

    def get(self, key: str) -> dict[str, Any] | None:
        return next((row for store in self._stores if (row := store.get(key)) is not None), None)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys without a row, in the given order."""
        left = list(keys)
        for store in self._stores:
            left = store.missing(left)
        return left
