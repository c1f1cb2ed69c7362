"""Downloaded archives -> files, without trusting them: parts are joined while they are read, members may not leave the folder.

Nothing that is there is overwritten, links and devices are left out, a file appears under its name only when it is whole. An archive
that was being unpacked goes on after the files that are there already.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import io
import lzma
import re
import shutil
import tarfile
import threading
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import IO

from genlab.errors import MissingPath, UserError

WHOLE = re.compile(r"(?P<name>.+?)\.(zip|tar|tar\.(gz|bz2|xz)|tgz)$", re.IGNORECASE)
PART = re.compile(
    r"(?P<name>.+?)(?P<mark>\.split\.|[._-]part[._-]?|(?<=\.zip)\.|(?<=\.tar)\.|(?<=\.gz)\.|(?<=\.tgz)\.)"
    r"(?P<place>(?!gz|xz|bak|old|tmp|md5|txt)(?:[a-z]{2,3}|z[a-z]{3})|\d{1,5})(?P<suffix>\.zip|\.tar|\.tar\.gz|\.tgz)?$",
    re.IGNORECASE,
)
MAGIC = {b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ": "xz"}
JUNK = {"__macosx", ".ds_store", "thumbs.db", "desktop.ini"}
IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL)
CHUNK = 1 << 20
RESERVE = 64 << 20  # bytes of the disk that stay free
DEPTH = 3  # archives in archives in archives


@dataclass(frozen=True)
class Archive:
    """One archive.

    Args:
        name: Without the suffix.
        parts: Its files in order.
        kind: ``zip``, ``tar``, or a tar compressed by ``gz``, ``bz2`` or ``xz``.
    """

    name: str
    parts: tuple[Path, ...]
    kind: str

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(part.stat().st_size for part in self.parts)


@dataclass
class Unpacked:
    """What came out of an archive.

    Args:
        files: Everything of it that is there now: path below the folder -> bytes.
        written: Number of files written now; the others were there.
        junk: Members left out that file managers leave behind.
        refused: Members left out, and why.
    """

    files: dict[str, int] = field(default_factory=dict)
    written: int = 0
    junk: int = 0
    refused: dict[str, str] = field(default_factory=dict)


Place = Callable[[str, PurePosixPath], PurePosixPath]


class Stopped(Exception):
    """The work was asked to stop."""


class Parts(io.RawIOBase):
    """Several files read as one; nothing is copied."""

    def __init__(self, parts: tuple[Path, ...], progress: Callable[[int], None] = lambda count: None) -> None:
        self._parts, self._progress = parts, progress
        self._ends: list[int] = []
        for part in parts:
            self._ends.append((self._ends[-1] if self._ends else 0) + part.stat().st_size)
        self._place, self._open = 0, -1
        self._file: IO[bytes] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._ends[-1]}[whence])
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        number = next((i for i, end in enumerate(self._ends) if self._place < end), None)
        if number is None:
            return 0
        if number != self._open or self._file is None:
            self._close_part()
            self._open, self._file = number, self._parts[number].open("rb", buffering=0)
        self._file.seek(self._place - (self._ends[number - 1] if number else 0))
        count: int = self._file.readinto(buffer)  # type: ignore[attr-defined]
        if not count:
            raise UserError(f"{self._parts[number]}: it has become shorter while being read.")
        self._place += count
        self._progress(count)
        return count

    def _close_part(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        self._close_part()
        super().close()


def find_archives(folder: Path) -> list[Archive]:
    """The archives below a folder, split ones put together; other files are passed over.

    Raises:
        MissingPath: There is no such folder.
        UserError: All problems at once: parts that are missing or cut short, files that are no archives in spite of their names.
    """
    if not folder.is_dir():
        raise MissingPath(f"--archives: {folder.absolute()} is not a folder.")
    archives: list[Archive] = []
    problems: list[str] = []
    groups: dict[tuple[Path, str], dict[str, Path]] = defaultdict(dict)
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name.startswith(".") or "__MACOSX" in path.parts:
            continue
        if (match := PART.fullmatch(path.name)) and not (match["mark"] == "." and WHOLE.fullmatch(path.name)):  # x.tar.gz
            groups[path.parent, f"{match['name']}{match['mark']}*{match['suffix'] or ''}"][match["place"]] = path
        elif re.fullmatch(r".+\.z\d\d", path.name, re.IGNORECASE):
            problems.append(f"{path}: part of a multi-volume zip, which is no plain cut. First: zip -s 0 NAME.zip --out whole.zip")
        elif match := WHOLE.fullmatch(path.name):
            if kind := _kind(path):
                archives.append(Archive(match["name"], (path,), kind))
            else:
                problems.append(f"{path}: no zip and no tar by its content. Download it again.")
    for (parent, pattern), parts in sorted(groups.items()):
        archives += _joined(parent / pattern, parts, problems)
    if problems:
        raise UserError("\n".join(problems))
    return archives


def _joined(pattern: Path, parts: dict[str, Path], problems: list[str]) -> list[Archive]:
    places = sorted(parts, key=lambda place: (len(place) if place.isalpha() else 0, int(place) if place.isdigit() else 0, place))
    match = PART.fullmatch(parts[places[0]].name)
    name = match["name"] if match else pattern.name
    whole = WHOLE.fullmatch(name)
    name = whole["name"] if whole else name
    kinds = [_kind(parts[place]) for place in places]
    if all(kinds):  # each is an archive of its own
        return [Archive(name, (parts[place],), kind) for place, kind in zip(places, kinds)]
    found: list[str] = []
    if (int(places[0]) > 1) if places[0].isdigit() else places[0].lower().strip("a"):
        found.append(f"the parts before {parts[places[0]].name} are missing")
    for before, after in pairwise(places):
        if after not in _followers(before):
            found.append(f"a part is missing between {parts[before].name} and {parts[after].name}")
    if not kinds[0] and not found:
        found.append(f"{parts[places[0]].name} begins neither a zip nor a tar")
    sizes = [parts[place].stat().st_size for place in places]
    full = max(sizes[:-1], default=0)
    found += [f"{parts[p].name} has {s:,} bytes where others have {full:,}" for p, s in zip(places[:-1], sizes) if s != full]
    if len(sizes) > 1 and sizes[-1] > full:
        found.append(f"the last part, {parts[places[-1]].name}, is larger than the others")
    if found:
        problems.append(f"{pattern}: {'; '.join(found)}. Download what is missing or cut short again.")
        return []
    return [Archive(name, tuple(parts[place] for place in places), str(kinds[0]))]


def _followers(place: str) -> set[str]:
    """What comes after a part: 09 -> 10, 9 -> 10, az -> ba, yz -> zaaa (as GNU split goes on) or za."""
    if place.isdigit():
        return {str(int(place) + 1), f"{int(place) + 1:0{len(place)}d}"}
    low, digits = place.lower(), 0
    for letter in low:
        digits = 26 * digits + ord(letter) - ord("a")
    digits += 1
    letters = "".join(chr(ord("a") + digits // 26**power % 26) for power in reversed(range(len(low))))
    return {letters, letters.upper(), *(("zaaa", "ZAAA") if low == "yz" else ())}


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        begin = file.read(BLOCK := 512)
    for magic, kind in MAGIC.items():
        if begin.startswith(magic):
            return kind
    return "tar" if len(begin) == BLOCK and begin[257:262] == b"ustar" else ""


def space_needed(archive: Archive, into: Path) -> int:
    """Bytes that unpacking needs at most, about: of a compressed tar its own size, since videos do not shrink."""
    if archive.kind != "zip":
        return archive.size
    with _zip(archive) as file:
        return sum(info.file_size for info in file.infolist() if not (into / info.filename.lstrip("/")).is_file())


def unpack(
    archive: Archive,
    into: Path,
    place: Place = lambda archive, member: member,
    progress: Callable[[int], None] = lambda count: None,
    stop: threading.Event | None = None,
    depth: int = DEPTH,
) -> Unpacked:
    """Unpacks what is not there yet, archives within the archive too.

    Args:
        archive: See :func:`find_archives`.
        into: The folder; made when missing.
        place: (archive's name, member) -> where below the folder.
        progress: Is told bytes of the archive that are done with.
        stop: When set, raises :class:`Stopped` soon; what is written stays.

    Raises:
        UserError: The archive is damaged or ends early, a password is needed, or the disk is full.
    """
    done = Unpacked()
    inner: list[Path] = []
    try:
        for original, size, why, content in _members(archive, progress):
            name = original.encode(errors="replace").decode()  # bytes that are no UTF-8 can be neither printed nor stored
            if stop is not None and stop.is_set():
                raise Stopped
            if is_junk(name):
                done.junk += 1
                continue
            member = safe_name(name)
            if why or member is None:
                done.refused[name] = why or "leads out of the folder"
                continue
            below = place(archive.name, member)
            target = into / below
            try:
                done.written += _write(target, size, content, stop)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise _full(into, size) from error
                if error.errno not in IN_THE_WAY:
                    raise
                done.refused[name] = error.strerror or str(error)
                continue
            if depth and WHOLE.fullmatch(target.name) and _kind(target):
                inner.append(target)
            else:
                done.files[below.as_posix()] = size
    except (EOFError, tarfile.ReadError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(_damaged(archive, str(error))) from error
    except RuntimeError as error:  # zipfile's word for a password; NotImplementedError, a kind of it, for an unknown compression
        raise UserError(f"{archive.parts[0]}: {error}.") from error
    for path in inner:
        match = WHOLE.fullmatch(path.name)
        nested = Archive(match["name"] if match else path.stem, (path,), _kind(path))
        below = PurePosixPath(path.parent.relative_to(into).as_posix())
        more = unpack(nested, into, partial(_place_nested, place, below), stop=stop, depth=depth - 1)
        path.unlink()
        done.files |= more.files
        done.refused |= {f"{path.name}: {name}": why for name, why in more.refused.items()}
        done.written, done.junk = done.written + more.written, done.junk + more.junk
    return done


def _place_nested(place: Place, below: PurePosixPath, archive: str, member: PurePosixPath) -> PurePosixPath:
    return place(archive, below / member)


def is_junk(name: str) -> bool:
    """Whether file managers leave such members behind."""
    parts = name.replace("\\", "/").lower().split("/")
    return any(part in JUNK or part.startswith("._") for part in parts)


def safe_name(name: str) -> PurePosixPath | None:
    """A member's path below the folder, or ``None`` if it leads elsewhere: absolute, with a drive, upwards."""
    plain = name.replace("\\", "/")
    parts = plain.split("/")
    if plain.startswith("/") or re.match("[A-Za-z]:", plain) or ".." in parts or "\0" in plain:
        return None
    kept = [part for part in parts if part not in ("", ".")]
    return PurePosixPath(*kept) if kept else None


Member = tuple[str, int, str, Callable[[], IO[bytes]]]  # name, bytes, why it may not be unpacked, its content


def _members(archive: Archive, progress: Callable[[int], None]) -> Iterator[Member]:
    """All members but folders. The content of one is gone when the next is asked for."""
    if archive.kind == "zip":
        with _zip(archive) as file:
            for info in file.infolist():
                mode = info.external_attr >> 16 & 0o170000
                if not info.is_dir():
                    special = "" if mode in (0, 0o100000) else "a link or device"
                    yield info.filename, info.file_size, special, lambda info=info: file.open(info)  # type: ignore[misc]
                progress(info.compress_size)
        return
    with io.BufferedReader(Parts(archive.parts, progress), CHUNK) as raw:
        if archive.kind == "tar":
            raw.seek(-1024, io.SEEK_END)
            if raw.read().strip(b"\0"):
                raise EOFError("no end mark")
            raw.seek(0)
        stream: IO[bytes] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}[archive.kind](raw) if archive.kind != "tar" else raw  # type: ignore[operator]
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                special = "" if member.isreg() else "a link or device"
                if not member.isdir():
                    yield member.name, member.size, special, lambda member=member: tar.extractfile(member)  # type: ignore[misc]
        while stream.read(CHUNK):  # to the end, where the checksum is
            pass


def _zip(archive: Archive) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(io.BufferedReader(Parts(archive.parts), CHUNK))
    except zipfile.BadZipFile as error:
        raise UserError(_damaged(archive, str(error))) from error


def _damaged(archive: Archive, why: str) -> str:
    last = archive.parts[-1]
    if len(archive.parts) == 1:
        what = f"{last.name}: damaged or cut short"
    else:
        what = f"{archive.parts[0].name} to {last.name}: a part is damaged, or the ones after {last.name} are missing"
    return f"{last.parent}: {what} ({why}). Download again what is wrong; what could be unpacked stays."


def _full(folder: Path, size: int) -> UserError:
    return UserError(f"{folder}: no space left for {size:,} bytes more. Free some and start again, it goes on from there.")


def _write(target: Path, size: int, content: Callable[[], IO[bytes]], stop: threading.Event | None) -> int:
    """Writes a file unless it is there; returns how many were written."""
    if target.is_file():
        if target.stat().st_size == size:
            return 0
        raise OSError(errno.EEXIST, f"another file of {target.stat().st_size:,} bytes is there; remove it to have this one of {size:,}")
    target.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(target.parent).free < size + RESERVE:
        raise OSError(errno.ENOSPC, "no space")
    beside = target.with_name(f".{hashlib.blake2b(target.name.encode(errors='surrogateescape'), digest_size=8).hexdigest()}.part")
    try:
        written = 0
        with content() as source, beside.open("wb") as file:
            while block := source.read(CHUNK):
                if stop is not None and stop.is_set():
                    raise Stopped
                written += file.write(block)
        if written != size:
            raise EOFError(f"{target.name} has {written:,} of {size:,} bytes")
        beside.rename(target)
    finally:
        beside.unlink(missing_ok=True)
    return 1
