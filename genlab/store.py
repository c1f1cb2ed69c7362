"""Two stores for work that takes long and must survive being stopped: rows (answers, scores) and features (arrays).

Neither knows a model: rows are put by whoever has them, features come from a function that is handed in. Name a store after what
its content depends on: ``content_key(weights_path, data_fingerprint, {"image_size": 224})``.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.errors import MissingPath, UserError

if TYPE_CHECKING:
    import numpy as np

from genlab.files import write_bytes

PATIENCE = 60.0  # seconds that a process waits for another one's write


def content_key(*parts: Any) -> str:
    """32 hex digits that change when a part changes. Parts: what JSON holds, bytes, and paths, which stand for their *content*.

    A folder stands for the names and contents of all files under it. The key does not depend on where a path lies.

    Raises:
        MissingPath: A path is not there.
        TypeError: A part is of another type.
    """

    def digest(part: Any) -> Any:
        if isinstance(part, bytes):
            return {"\0bytes": hashlib.blake2b(part, digest_size=16).hexdigest()}
        if not isinstance(part, Path):
            raise TypeError(f"content_key: {type(part).__name__} has no key; give JSON values, bytes or paths.")
        if part.is_dir():
            return {"\0folder": {file.relative_to(part).as_posix(): digest(file) for file in part.rglob("*") if file.is_file()}}
        if not part.is_file():
            raise MissingPath(f"{part}: not found, but its content is part of a key.")
        with part.open("rb") as file:
            return {"\0file": hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()}

    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=digest).encode(), digest_size=16).hexdigest()


class RowStore:
    """Rows by key in one SQLite file, shared by the processes of one machine; a row whose ``put`` returned survives ``kill -9``.

    Processes on several machines need a file each: SQLite's write-ahead log does not work over network file systems.

    Args:
        path: The file; made when missing, folders too.

    Raises:
        UserError: The file is there and no row store.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._connections: dict[int, sqlite3.Connection] = {}  # by process: one inherited through a fork may not be used, nor even closed
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self.path}: cannot be read as a row store ({error}). Move it away, or name another file.") from error

    def _open(self) -> sqlite3.Connection:
        if (process := os.getpid()) not in self._connections:
            connection = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)  # statements commit
            _use_write_ahead_log(connection)
            connection.execute("PRAGMA synchronous=NORMAL")  # a power cut may take the last rows, a killed process none
            connection.execute("CREATE TABLE IF NOT EXISTS rows (key TEXT PRIMARY KEY, row TEXT NOT NULL)")
            self._connections[process] = connection
        return self._connections[process]

    def put(self, key: str, row: dict[str, Any]) -> None:
        """Stores a row of JSON values (NumPy scalars too); a later row of the same key replaces an earlier one."""
        text = json.dumps(row, default=_plain)
        self._open().execute("INSERT INTO rows VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET row = excluded.row", (key, text))

    def get(self, key: str) -> dict[str, Any] | None:
        found = self._open().execute("SELECT row FROM rows WHERE key = ?", (key,)).fetchone()
        return json.loads(found[0]) if found else None

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys that have no row yet, each once, in the given order: what is left to do."""
        query = "SELECT value FROM json_each(?) WHERE value NOT IN (SELECT key FROM rows) ORDER BY json_each.key"
        return [key for (key,) in self._open().execute(query, (json.dumps(list(dict.fromkeys(keys))),))]

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """All (key, row), sorted by key: the order does not tell which process was faster."""
        for key, text in self._open().execute("SELECT key, row FROM rows ORDER BY key"):
            yield key, json.loads(text)

    def close(self) -> None:
        if connection := self._connections.pop(os.getpid(), None):
            connection.close()

    def __reduce__(self) -> tuple[type[RowStore], tuple[Path]]:
        return RowStore, (self.path,)  # a spawned process opens the file anew


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    deadline = time.monotonic() + PATIENCE
    while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:  # "locked" at once, whatever the timeout, while another process makes the same switch
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be stored in a row; give JSON values.")


class FeatureStore:
    """Arrays per sample id, computed once: safetensors files in ``folder/key/``, one per batch, each written atomically.

    Args:
        folder: Where stores live.
        key: What the content depends on, see :func:`content_key`.
    """

    def __init__(self, folder: Path | str, key: str) -> None:
        self.folder = Path(folder) / key

    def fill(
        self,
        ids: Sequence[str],
        compute: Callable[[list[str]], dict[str, np.ndarray]],
        batch: int = 64,
        rank: int = 0,
        world_size: int = 1,
    ) -> int:
        """Computes what is missing of this rank's share; stopped anywhere and called again, it goes on. Ranks need no order.

        Each rank writes its own ids only: wait for all of them (a barrier) before ``load``.

        Args:
            ids: All sample ids, the same list on every rank.
            compute: B ids -> arrays by name, each (B, ...); name, type and trailing shape are the same for every batch.
            batch: Ids per call and file.
            rank: This process, in [0, world_size).
            world_size: Number of processes.

        Returns:
            Number of samples computed now.
        """
        from safetensors.numpy import save

        todo = self.missing(list(dict.fromkeys(ids))[rank::world_size])  # shared out before looking: others are writing meanwhile
        for start in range(0, len(todo), batch):
            some = todo[start : start + batch]
            arrays = {name: array.copy(order="C") for name, array in compute(some).items()}
            if "id" in arrays or not arrays or any(len(array) != len(some) for array in arrays.values()):
                shapes = {name: array.shape for name, array in arrays.items()}
                raise ValueError(f"compute: {len(some)} ids gave {shapes}; need a row per id, under other names than 'id'.")
            write_bytes(self.folder / f"{content_key(some)}.safetensors", save(arrays, {"ids": json.dumps(some)}))
        return len(todo)

    def missing(self, ids: Iterable[str]) -> list[str]:
        """The ids that are not computed yet, in the given order."""
        there = {name for _, names in self._shards() for name in names}
        return [name for name in ids if name not in there]

    def load(self, ids: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Arrays (N, ...) by name, in the order of ``ids``; without, all in the order of sorted ids. ``"id"`` holds the ids (N,).

        Raises:
            KeyError: An id is not computed, or the store is empty.
        """
        import numpy as np
        from safetensors.numpy import load_file

        shards = list(self._shards())
        wanted = sorted({name for _, names in shards for name in names}) if ids is None else list(ids)
        if not wanted or (absent := self.missing(wanted)):
            raise KeyError(f"{self.folder}: {'no features' if not wanted else f'no features of {absent[0]!r}'}; call fill first.")
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(wanted):
            rows.setdefault(name, []).append(row)
        loaded: dict[str, np.ndarray] = {"id": np.array(wanted)}
        for path, names in shards:
            pairs = [(row, source) for source, name in enumerate(names) for row in rows.get(name, ())]
            for name, array in load_file(path).items() if pairs else ():
                target = loaded.setdefault(name, np.empty((len(wanted), *array.shape[1:]), array.dtype))
                to, source_rows = zip(*pairs)
                target[list(to)] = array[list(source_rows)]
        return loaded

    def reader(self) -> FeatureReader:
        """Single samples of what is stored now."""
        return FeatureReader(list(self._shards()))

    def _shards(self) -> Iterator[tuple[Path, list[str]]]:
        from safetensors import safe_open

        for path in sorted(self.folder.glob("[!.]*.safetensors")):
            with safe_open(path, framework="numpy") as file:  # reads the header alone
                yield path, json.loads(file.metadata()["ids"])


class FeatureReader:
    """Reads one sample at a time, a slice of its file each; small enough to be handed to loader workers for millions of samples.

    Args:
        shards: Files, and the ids of their rows.
    """

    def __init__(self, shards: Sequence[tuple[Path, Sequence[str]]]) -> None:
        import numpy as np

        keys = np.array([_short(name) for _, names in shards for name in names], np.uint64)
        files = np.array([number for number, (_, names) in enumerate(shards) for _ in names], np.int32)
        rows = np.array([row for _, names in shards for row in range(len(names))], np.int32)
        order = np.argsort(keys, kind="stable")
        self._paths, self._keys, self._files, self._rows = [path for path, _ in shards], keys[order], files[order], rows[order]

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, name: str) -> dict[str, np.ndarray]:
        """Arrays by name, without the batch axis.

        Raises:
            KeyError: The sample is not stored.
        """
        import numpy as np
        from safetensors import safe_open

        key = np.uint64(_short(name))
        place = int(np.searchsorted(self._keys, key))
        if place == len(self._keys) or self._keys[place] != key:
            raise KeyError(f"no features of {name!r} among the {len(self)} stored.")
        row = int(self._rows[place])
        with safe_open(self._paths[self._files[place]], framework="numpy") as file:
            return {each: file.get_slice(each)[row : row + 1][0] for each in file.keys()}  # noqa: SIM118 - not a dict


def _short(name: str) -> int:
    """64 bits that name an id."""
    return int.from_bytes(hashlib.blake2b(str(name).encode(), digest_size=8).digest(), "big")
