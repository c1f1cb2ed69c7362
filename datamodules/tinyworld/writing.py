"""Atomic, resumable writing, shared by all writers of the tiny world.

A dataset grows in a hidden folder beside its place (``.NAME.HASH.partial``) and is renamed as a whole when it is complete: its place
holds either nothing or everything. A writer that was killed finds its files there and writes the missing ones. The stamp file
in it names the recipe; its lock keeps a second process waiting, which then finds the dataset finished.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datamodules.processes import in_processes, worth_starting
from genlab.errors import UserError
from genlab.files import write_bytes

STAMP = "tinyworld.json"
CHUNK = 32  # files that a process writes before it reports
Job = tuple[Path, Callable[[], bytes]]  # a file of the dataset, and what makes its content: picklable, so no lambda


@dataclass(frozen=True)
class Recipe:
    """What a dataset is made from: the same recipe gives the same files."""

    dataset: str
    seed: int
    options: dict[str, Any]
    renderer: int

    @property
    def text(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @property
    def hash(self) -> str:
        return hashlib.blake2b(self.text.encode(), digest_size=6).hexdigest()


def build(root: Path, recipe: Recipe, write: Callable[[Path], None]) -> Path:
    """Has ``write`` fill the folder ``root``, unless it is there already.

    Args:
        write: Writes the dataset into the folder it is given, where files of an interrupted call may lie (see `write_files`).

    Raises:
        UserError: ``root`` holds something else.
    """
    root = root.expanduser().resolve()
    if _is_finished(root, recipe):
        return root
    partial = root.parent / f".{root.name}.{recipe.hash}.partial"
    with _locked(partial):
        if _is_finished(root, recipe):  # by the process that we waited for; the folder we hold is empty or gone
            _discard(partial)
            return root
        write(partial)
        for left in partial.rglob("*.tmp"):  # of a killed call
            left.unlink()
        (partial / STAMP).write_text(recipe.text)
        partial.rename(root)  # an empty folder gives way
    return root


def _is_finished(root: Path, recipe: Recipe) -> bool:
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file; name a folder that does not exist yet, or an empty one.")
    if not root.is_dir() or not any(root.iterdir()):
        return False
    stamp = root / STAMP
    if not stamp.is_file():
        raise UserError(f"{root} is not empty and was not written by the tiny world; name a new or empty folder.")
    if stamp.read_text() != recipe.text:
        found, wanted = (" ".join(text.split()) for text in (stamp.read_text(), recipe.text))
        raise UserError(f"{root} holds another tiny dataset: {found}, asked for {wanted}. Name another folder, or delete this one.")
    return True


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Holds the lock of the folder, made if need be. It is on the stamp file, which moves along when the folder is renamed."""
    stamp = None
    while stamp is None:
        try:
            partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{partial.parent} is not a folder that can be written to ({error.strerror}); name another one.") from error
        with suppress(FileNotFoundError):  # renamed since the line above
            stamp = (partial / STAMP).open("a")
    with stamp:
        fcntl.flock(stamp, fcntl.LOCK_EX)
        yield


def _discard(partial: Path) -> None:
    """Removes a folder that holds nothing but an unused stamp, if it is still there."""
    if partial.is_dir() and [path.name for path in partial.iterdir()] == [STAMP]:
        (partial / STAMP).unlink()
        with suppress(OSError):  # a third process moved in
            partial.rmdir()


def write_files(jobs: Sequence[Job], label: str, progress: bool = True) -> None:
    """Writes those files that are not there yet, in a process per core, under a progress bar."""
    missing = [job for job in jobs if not job[0].exists()]
    chunks = {str(start): missing[start : start + CHUNK] for start in range(0, len(missing), CHUNK)}
    with tqdm(total=len(jobs), initial=len(jobs) - len(missing), desc=label, unit="file", disable=not progress) as bar:
        work = in_processes(_write_jobs, chunks, worth_starting(None, len(missing)))
        try:
            for key, written in work:
                if written is None:
                    raise RuntimeError(f"a process that wrote {chunks[key][0][0]} and the files after it was killed")
                bar.update(written)
        finally:  # an interrupt, too, stops at the files under way
            work.close()
    os.sync()  # before the folder is renamed and counts as finished


def _write_jobs(jobs: Sequence[Job]) -> int:
    for path, content in jobs:
        write_bytes(path, content(), sync=False)
    return len(jobs)
