"""Action recognition datasets as they are distributed: Kinetics, UCF101, HMDB51 and Something-Something v2.

Two kinds of annotations are read unchanged: those of the datasets' owners (`read_ucf101`, `read_hmdb51`, `read_kinetics`, `read_ssv2`), and
the video lists with label CSVs that few-shot and base-to-novel protocols use (`read_video_list`, `read_labels`; X-CLIP, ViFi-CLIP,
mmaction2). Lists name files as their authors had them, with or without folders: `Files` finds them wherever they lie. Names of
files may hold anything (``! [ ] & # ( )``), so nothing is ever taken for a pattern or an address.
"""

from __future__ import annotations

import csv
import os
import re
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np

from datamodules.checks import Item
from datamodules.listfiles import NAMED, raise_all, read_json, read_text
from datamodules.video import UnreadableVideo, VideoFile, even_frames, is_video, open_video
from genlab.errors import MissingPath, UserError

SHOWN = 4  # frames of a clip in a preview
UNLABELLED = -1
DATASETS = ("kinetics400", "ucf101", "hmdb51", "ssv2")


@dataclass(frozen=True, slots=True)
class Listed:
    """A clip as a list has it: file (perhaps with folders, perhaps without), and number of its class or -1."""

    file: str
    label: int


@dataclass(frozen=True)
class Annotations:
    """What is published of a dataset: class names by label, and the clips of each split."""

    names: list[str]
    splits: dict[str, list[Listed]]


# ---- video lists and label CSVs


def read_video_list(path: Path, names: Sequence[str] | None = None) -> list[Listed]:
    """A list with a line ``file label`` per clip: blank or tab between, CRLF and empty lines allowed, and blanks in names of files.

    Args:
        names: Class names of the label CSV that belongs to it.

    Raises:
        MissingPath: There is no such list.
        UserError: Lines without a label, or labels that the CSV does not have, which then belongs to another list.
    """
    clips: list[Listed] = []
    wrong: list[str] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        parts = line.strip().rsplit(None, 1)
        if len(parts) < 2 or not re.fullmatch(r"\d+", parts[1]):
            wrong.append(f"{path}:{number}: no label behind the file: {line.strip()[:100]}")
        else:
            clips.append(Listed(parts[0].replace("\\", "/"), int(parts[1])))
    if not clips and not wrong:
        wrong.append(f"{path} is empty; it needs a line 'file label' per clip.")
    raise_all(wrong)
    highest = max(clip.label for clip in clips)
    if names is not None and highest >= len(names):
        raise UserError(
            f"{path}: label {highest}, but the label file has {len(names)} classes, 0 to {len(names) - 1}. Lists and label files of base "
            "classes, novel classes and all classes count anew each: take the pair that belongs together."
        )
    return clips


def read_labels(path: Path) -> list[str]:
    """Class names of a CSV ``id,name``, by id; with or without byte order mark, CRLF and quotes.

    Raises:
        MissingPath: There is no such file.
        UserError: No such columns, or ids that are not 0, 1, 2 ...
    """
    rows = csv.DictReader(read_text(path).splitlines())
    if not {"id", "name"} <= set(rows.fieldnames or ()):
        raise UserError(f"{path}:1: columns are {', '.join(rows.fieldnames or ()) or 'missing'}; a label file has id,name.")
    found: dict[int, str] = {}
    wrong: list[str] = []
    for number, row in enumerate(rows, 2):
        key, name = (row["id"] or "").strip(), (row["name"] or "").strip()
        if not re.fullmatch(r"\d+", key) or not name:
            wrong.append(f"{path}:{number}: id {key!r}, name {name!r}; an id is a number from 0, a name is not empty.")
        elif int(key) in found:
            wrong.append(f"{path}:{number}: id {key} is there twice.")
        else:
            found[int(key)] = name
    raise_all(wrong)
    if not found or sorted(found) != list(range(len(found))):
        gaps = sorted(set(range(max(found, default=0) + 1)) - set(found))
        raise UserError(f"{path}: ids count from 0 without gaps; missing: {', '.join(map(str, gaps[:NAMED])) or 'all'}.")
    return [found[i] for i in range(len(found))]


# ---- as their owners publish them


def read_ucf101(folder: Path, split: int = 1) -> Annotations:
    """``ucfTrainTestlist/``: classInd.txt counts from 1; training lists name file and class, test lists the file alone."""
    classes = [line.split(None, 1) for line in read_text(folder / "classInd.txt").splitlines() if line.strip()]
    names = [parts[-1].strip() for parts in classes]
    splits: dict[str, list[Listed]] = {}
    wrong: list[str] = []
    for part in ("train", "test"):
        path = folder / f"{part}list{split:02d}.txt"
        splits[part] = []
        for number, line in enumerate(read_text(path).splitlines(), 1):
            file = re.sub(r"\s+\d+$", "", line.strip())
            if not file:
                continue
            name = PurePosixPath(file).parent.name
            if name not in names:
                wrong.append(f"{path}:{number}: class {name!r} is not in classInd.txt")
                continue
            splits[part].append(Listed(file, names.index(name)))
    raise_all(wrong)
    return Annotations(names, splits)


def read_hmdb51(folder: Path, split: int = 1) -> Annotations:
    """``testTrainMulti_7030_splits/``: a file per class and split, a line per clip: 1 training, 2 test, 0 neither."""
    ending = f"_test_split{split}.txt"
    files = sorted(path for path in folder.iterdir() if path.name.endswith(ending))
    if not files:
        raise MissingPath(f"{folder} has no files that end with {ending}; unpack test_train_splits.rar there.")
    names = [path.name.removesuffix(ending) for path in files]
    splits: dict[str, list[Listed]] = {"train": [], "test": [], "unused": []}
    wrong: list[str] = []
    for label, (name, path) in enumerate(zip(names, files)):
        for number, line in enumerate(read_text(path).splitlines(), 1):
            parts = line.strip().rsplit(None, 1)
            if not parts:
                continue
            if len(parts) < 2 or parts[1] not in ("0", "1", "2"):
                wrong.append(f"{path}:{number}: {line.strip()[:100]!r} does not end with 0, 1 or 2")
                continue
            splits[("unused", "train", "test")[int(parts[1])]].append(Listed(f"{name}/{parts[0]}", label))
    raise_all(wrong)
    return Annotations(names, splits)


def read_kinetics(files: Sequence[Path]) -> Annotations:
    """CSVs ``label,youtube_id,time_start,time_end,split``; classes sorted by name. Videos: ``<id>_<start>_<end>.mp4``, of six digits."""
    rows: list[tuple[str, str, str]] = []
    wrong: list[str] = []
    for path in files:
        reader = csv.DictReader(read_text(path).splitlines())
        for number, row in enumerate(reader, 2):
            try:
                start, end = int(float(row["time_start"])), int(float(row["time_end"]))
                video, split = row["youtube_id"], row.get("split") or path.stem
            except (KeyError, TypeError, ValueError):
                wrong.append(f"{path}:{number}: no youtube_id, time_start and time_end in it")
                continue
            rows.append((f"{video}_{start:06d}_{end:06d}.mp4", row.get("label") or "", {"validate": "val"}.get(split, split)))
    raise_all(wrong)
    names = sorted({label for _, label, _ in rows if label})
    splits: dict[str, list[Listed]] = {}
    for file, label, split in rows:
        splits.setdefault(split, []).append(Listed(f"{split}/{file}", names.index(label) if label else UNLABELLED))
    return Annotations(names, splits)


def read_ssv2(folder: Path) -> Annotations:
    """``labels.json``, ``train.json``, ``validation.json`` and ``test.json`` (without labels), also named ``something-something-v2-*``."""
    ids: Mapping[str, str] = read_json(_ssv2_file(folder, "labels"))
    names = [name for name, _ in sorted(ids.items(), key=lambda pair: int(pair[1]))]
    position = {name: i for i, name in enumerate(names)}
    splits: dict[str, list[Listed]] = {}
    wrong: list[str] = []
    for split in ("train", "validation", "test"):
        path = _ssv2_file(folder, split)
        if split == "test" and not path.is_file():
            continue
        splits[split] = []
        for number, record in enumerate(read_json(path), 1):
            name = str(record.get("template", "")).replace("[", "").replace("]", "")
            if "template" in record and name not in position:
                wrong.append(f"{path}: record {number}: the template {record['template']!r} is not in {_ssv2_file(folder, 'labels').name}")
            else:
                splits[split].append(Listed(f"{record['id']}.webm", position.get(name, UNLABELLED)))
    raise_all(wrong)
    return Annotations(names, splits)


def _ssv2_file(folder: Path, name: str) -> Path:
    plain = folder / f"{name}.json"
    return plain if plain.is_file() else folder / f"something-something-v2-{name}.json"


# ---- files


class Files:
    """Finds the files that lists name, in a folder or in a tar archive.

    As listed, else the only file of that name anywhere below, else the only video of that name with another ending.

    Args:
        root: The folder, or a ``.tar``; its members have paths below the archive's, which `open_clip` reads.
    """

    def __init__(self, root: Path) -> None:
        if not root.exists():
            raise MissingPath(f"data.root: {root} is not there. Name the folder of the videos, or a tar archive of them.")
        self.root = root
        names = list(_members(str(root))) if root.is_file() else [path.relative_to(root).as_posix() for path in _walk(root)]
        self._paths = set(names)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for name in sorted(names):
            path = PurePosixPath(name)
            self._by_name[path.name].append(name)
            self._by_name[path.stem].append(name)

    @property
    def names(self) -> list[str]:
        """Every video, as a path below the root."""
        return sorted(self._paths)

    def find(self, listed: str) -> str | None:
        """Path below the root of a listed file; ``None`` where it is missing, or several could be meant."""
        if listed in self._paths:
            return listed
        path = PurePosixPath(listed)
        for name in (path.name, path.stem):
            there = self._by_name.get(name, [])
            if len(there) > 1:  # val/x.mp4 rather than train/x.mp4
                there = [each for each in there if PurePosixPath(each).parent.name == path.parent.name]
            if len(there) == 1:
                return there[0]
        return None


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root, followlinks=True):
        folders.sort()
        yield from (Path(folder) / name for name in files if is_video(name))


@lru_cache(maxsize=8)
def _members(archive: str) -> dict[str, tuple[int, int]]:
    """Videos in a tar archive: where each begins, and its bytes."""
    try:
        with tarfile.open(archive, "r:") as tar:
            return {member.name.removeprefix("./"): (member.offset_data, member.size) for member in tar if is_video(member.name)}
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"data.root: {archive} is neither a folder nor an uncompressed tar archive ({error}).") from error


@contextmanager
def open_clip(path: Path) -> Iterator[VideoFile]:
    """Opens a video, also one within a tar archive (``.../clips.tar/name.mp4``).

    Raises:
        UnreadableVideo: It is missing, or no decoder can open it.
    """
    archive = next((parent for parent in path.parents if parent.suffix == ".tar" and parent.is_file()), None)
    if archive is None:
        with open_video(path) as video:
            yield video
        return
    where = _members(str(archive)).get(path.relative_to(archive).as_posix())
    if where is None:
        raise UnreadableVideo(path, "not in the archive")
    with tempfile.NamedTemporaryFile(suffix=path.suffix) as copy:
        with archive.open("rb") as tar:
            tar.seek(where[0])
            copy.write(tar.read(where[1]))
        copy.flush()
        with open_video(copy.name) as video:
            yield video


# ---- for ``data show``


def items(root: Path, dataset: str) -> list[Item]:
    """Every clip that is annotated, there or not; by the owners' annotations, else by lists, else by folders named like classes.

    Raises:
        UserError: None of these is found.
    """
    files = Files(root)
    found = annotations_of(root, dataset, files)
    if found is None:
        raise UserError(
            f"{root} holds no annotations of {dataset}. Expected {EXPECTED[dataset]}, or labels/*_labels.csv with video lists in "
            "datasets_splits/, or a folder per class."
        )
    clips: list[Item] = []
    for split, listed in found.splits.items():
        for clip in listed:
            name = files.find(clip.file) or clip.file
            group = found.names[clip.label] if clip.label >= 0 else "without label"
            clips.append(Item(name, root / name, clip.label, group, split))
    return clips


def annotations_of(root: Path, dataset: str, files: Files | None = None) -> Annotations | None:
    """What is known of the clips in a folder: the owners' annotations, else lists, else folders named like classes."""
    return published(root, dataset) or _by_lists(root) or _by_folders(files or Files(root))


KINETICS_TABLES = "train.csv and val.csv with the columns label, youtube_id, time_start, time_end and split"
EXPECTED = {
    "kinetics400": KINETICS_TABLES,
    "kinetics600": KINETICS_TABLES,
    "ucf101": "ucfTrainTestlist/classInd.txt",
    "hmdb51": "testTrainMulti_7030_splits/<class>_test_split1.txt",
    "ssv2": "labels.json, train.json and validation.json",
}


def published(root: Path, dataset: str, split: int = 1) -> Annotations | None:
    """The owners' annotations, in the root or in a folder of it; ``None`` where there are none."""
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())] if root.is_dir() else []
    for folder in folders:
        if dataset == "ucf101" and (folder / "classInd.txt").is_file():
            return read_ucf101(folder, split)
        if dataset == "hmdb51" and any(path.name.endswith(f"_test_split{split}.txt") for path in folder.iterdir()):
            return read_hmdb51(folder, split)
        if dataset == "ssv2" and _ssv2_file(folder, "labels").is_file():
            return read_ssv2(folder)
        if dataset in ("kinetics400", "kinetics600"):
            tables = sorted(path for path in folder.iterdir() if path.suffix == ".csv" and _is_kinetics(path))
            if tables:
                return read_kinetics(tables)
    return None


def _is_kinetics(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return {"youtube_id", "time_start", "time_end"} <= set(file.readline().strip().split(","))


def _by_lists(root: Path) -> Annotations | None:
    """The lists that have labels of all classes: train.txt, val.txt, val1.txt, validation.txt and the largest few-shot one."""
    if not root.is_dir():
        return None
    tables = [path for path in sorted(root.rglob("*_labels.csv")) if not re.search(r"_(base|novel)_labels$", path.stem)]
    if not tables:
        return None
    names = read_labels(tables[0])
    splits: dict[str, list[Listed]] = {}
    for split, choices in {"train": ("train", "train1_few_shot_16"), "val": ("val", "val1", "validation")}.items():
        path = next((path for name in choices for path in sorted(root.rglob(f"{name}.txt"))), None)
        if path is not None:
            splits[split] = read_video_list(path, names)
    return Annotations(names, splits) if splits else None


def _by_folders(files: Files) -> Annotations | None:
    """``class/x.mp4`` or ``train/class/x.mp4``."""
    parts = [PurePosixPath(name).parts for name in files.names]
    names = sorted({each[-2] for each in parts if len(each) > 1} - {"train", "val", "test", "validation"})
    splits: dict[str, list[Listed]] = {}
    for name, each in zip(files.names, parts):
        if len(each) > 1 and each[-2] in names:
            splits.setdefault(each[-3] if len(each) > 2 else "all", []).append(Listed(name, names.index(each[-2])))
    return Annotations(names, splits) if splits else None


def preview(item: Item) -> list[np.ndarray]:
    """Four evenly spaced frames, (H, W, 3) uint8; none if they cannot be read."""
    try:
        with open_clip(item.path) as video:
            return list(video.frames(even_frames(len(video), SHOWN)))
    except UnreadableVideo:
        return []
