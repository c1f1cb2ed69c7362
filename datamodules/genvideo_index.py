"""Which clips a GenVideo folder holds: folder trees as people unpack them, extracted frames, and the official CSV lists.

What decides is where a file lies. Below ``GenVideo-Val`` (or ``val``, ``test``) it is a test clip, elsewhere a training clip; below a
folder ``Real...`` it is real; below ``Fake/<generator>``, ``train_<generator>`` or a folder named like a generator of the paper it is
fake. What says neither is left out and reported: a wrong label is worse than a missing clip.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from datamodules.video import is_video
from genlab.errors import MissingPath, UserError
from genlab.files import fingerprint, write_bytes

log = logging.getLogger(__name__)

# Names of the official lists and of the released archives -> names of the paper's tables. The same word may mean different
# generators in training and test: VideoCrafter is VideoCrafter2 there and VideoCrafter1 ("Crafter") here.
TRAIN_NAMES = {
    "zeroscope": "ZeroScope",
    "i2vgen_xl": "I2VGen-XL",
    "i2vgen-xl": "I2VGen-XL",
    "svd": "SVD",
    "videocrafter": "VideoCrafter2",
    "videocrafter2": "VideoCrafter2",
    "pika": "Pika",
    "dynamicrafter": "DynamiCrafter",
    "dynamicraft": "DynamiCrafter",
    "sd": "SD",
    "seine": "SEINE",
    "latte": "Latte",
    "opensora": "OpenSora",
}
TEST_NAMES = {
    "modelscope": "ModelScope",
    "morph": "MorphStudio",
    "morphstudio": "MorphStudio",
    "moonvalley": "MoonValley",
    "hotshot": "HotShot",
    "evalcrafter_t2v_dataset/show_1": "Show_1",
    "show_1": "Show_1",
    "sora": "Sora",
    "wild": "WildScrape",
    "wildscrape": "WildScrape",
    "videocrafter": "Crafter",
    "crafter": "Crafter",
    "lavies": "Lavie",
    "lavie": "Lavie",
    "gen2": "Gen2",
}
TEST_FOLDERS = {"genvideo-val", "genvideo_val", "val", "test"}
REAL_FOLDER = re.compile(r"real([_-].*)?$|kinetics.*|youku.*|msr-?vtt.*", re.IGNORECASE)
FRAME = re.compile(r"(\d+)\.(jpg|jpeg|png)$", re.IGNORECASE)
CSV_COLUMNS = ("content_path", "image_path", "type_id", "label", "frame_len", "frame_seq")


@dataclass(frozen=True)
class Clips:
    """A list of clips in NumPy arrays, which loader workers share without copying."""

    root: Path
    id: np.ndarray
    """(N,) str: path below the root; a file, or a folder of extracted frames."""
    label: np.ndarray
    """(N,) int64: 1 = fake."""
    generator: np.ndarray
    """(N,) str; ``real`` for reals."""
    split: np.ndarray
    """(N,) str: ``train`` or ``test``."""
    size: np.ndarray
    """(N,) int64: bytes of a file, number of frames of a folder."""
    first: np.ndarray
    """(N,) int64: smallest frame number of a folder; -1 for a video file."""

    def __len__(self) -> int:
        return len(self.id)

    def where(self, mask: np.ndarray) -> Clips:
        """The clips that a boolean mask or an index array picks."""
        return Clips(self.root, *(getattr(self, name)[mask] for name in ("id", "label", "generator", "split", "size", "first")))

    @property
    def generators(self) -> list[str]:
        """Names of the fakes' generators, sorted."""
        return sorted(set(self.generator[self.label == 1].tolist()))

    @property
    def fingerprint(self) -> str:
        """Hash of the sorted relative paths and sizes."""
        return fingerprint(zip(self.id.tolist(), self.size.tolist()))


Row = tuple[str, int, str, str, int, int]  # id, label, generator, split, size, first frame


def make_clips(root: Path, rows: Sequence[Row]) -> Clips:
    """Clips sorted by id."""
    columns = list(zip(*sorted(rows))) or [()] * 6
    types = (str, np.int64, str, str, np.int64, np.int64)
    return Clips(root, *(np.array(column, dtype=kind) for column, kind in zip(columns, types)))


def generator_name(name: str, split: str) -> str:
    """The paper's name of a generator, by the longest known prefix; an unknown name stays as it is."""
    known = TEST_NAMES if split == "test" else TRAIN_NAMES
    lower = name.lower()
    for prefix in sorted(known, key=len, reverse=True):
        if lower == prefix or re.match(re.escape(prefix) + r"([/_\-. ]|$)", lower):
            return known[prefix]
    return name


def classify(path: PurePosixPath) -> tuple[int, str, str] | None:
    """(label, generator, split) of a clip by its path below the root; ``None`` where the folders say neither real nor fake."""
    folders = path.parts[:-1]
    split = "test" if any(f.lower() in TEST_FOLDERS for f in folders) else "train"
    folders = tuple(f for f in folders if f.lower() not in TEST_FOLDERS and f.lower() != "genvideo")
    for i, folder in enumerate(folders):
        if REAL_FOLDER.fullmatch(folder):
            return 0, "real", split
        if folder.lower() == "fake":
            rest = "/".join(folders[i + 1 :])
            return (1, _fake(rest, split), split) if rest else None
        if folder.lower().startswith("train_") and len(folder) > 6:
            return 1, generator_name(folder[6:], "train"), split
        if (name := generator_name(folder, split)) != folder or folder in {*TRAIN_NAMES.values(), *TEST_NAMES.values()}:
            return 1, name, split
    return None


def _fake(rest: str, split: str) -> str:
    name = generator_name(rest, split)
    return rest.split("/", 1)[0] if name == rest else name


def scan(root: Path) -> tuple[Clips, dict[str, int]]:
    """Walks a folder tree.

    Returns:
        The clips, and how many were left out per folder that says neither real nor fake.

    Raises:
        MissingPath: The root is no folder.
        UserError: There is no clip in it.
    """
    if not root.is_dir():
        raise MissingPath(
            f"data.root: {root.absolute()} is not a folder. Set it with --data.root DIR, in the YAML, or through GENLAB_DATA."
        )
    rows: list[Row] = []
    unclear: dict[str, int] = {}
    for found, size, first in _walk(root):
        verdict = classify(PurePosixPath(found))
        if verdict is None:
            folder = str(PurePosixPath(found).parent)
            unclear[folder] = unclear.get(folder, 0) + 1
        else:
            rows.append((found, *verdict, size, first))
    if not rows:
        seen = f" It has {sum(unclear.values())} clips in folders that say neither Real nor Fake." if unclear else ""
        raise UserError(
            f"data.root: {root.absolute()} holds no clips of a known layout.{seen} Expected "
            "GenVideo-Val/Real, GenVideo-Val/Fake/<generator>, "
            "Real and train_<generator> with mp4, gif, ... files, or fake/<generator>/<video>/1.jpg; or give data.train_list and "
            "data.test_list."
        )
    return make_clips(root, rows), unclear


def _walk(root: Path) -> Iterator[tuple[str, int, int]]:
    """(path below root, size, first frame) of video files and of folders of numbered frames."""
    for folder, names, files in os.walk(root):
        names[:] = sorted(n for n in names if n != "__MACOSX" and not n.startswith("."))
        below = Path(folder).relative_to(root)
        frames = [int(match[1]) for name in files if (match := FRAME.fullmatch(name))]
        if frames:
            yield below.as_posix(), len(frames), min(frames)
        for name in sorted(files):
            if is_video(Path(name)):
                yield (below / name).as_posix(), (Path(folder) / name).stat().st_size, -1


def cached_scan(root: Path) -> tuple[Clips, dict[str, int]]:
    """:func:`scan`, remembered below ``$GENLAB_CACHE`` until a folder of the tree changes (its modification time tells)."""
    if not root.is_dir():
        return scan(root)  # says what is wrong
    folders = sorted((folder, Path(folder).stat().st_mtime_ns) for folder, _, _ in os.walk(root))
    state = hashlib.blake2b(json.dumps(folders).encode(), digest_size=8).hexdigest()
    cache = Path(os.environ.get("GENLAB_CACHE") or "~/.cache/genlab").expanduser() / "index"
    name = hashlib.blake2b(str(root.resolve()).encode(), digest_size=8).hexdigest()
    path = cache / f"genvideo-{name}.csv"
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            header, *lines = list(csv.reader(file))
        if header[0] == state:
            rows: list[Row] = [(i, int(la), g, s, int(b), int(f)) for i, la, g, s, b, f in lines]
            return make_clips(root, rows), json.loads(header[1])
    clips, unclear = scan(root)
    body = [[state, json.dumps(unclear), "", "", "", ""]]
    body += [list(map(str, row)) for row in zip(clips.id, clips.label, clips.generator, clips.split, clips.size, clips.first)]
    write_bytes(path, _csv_text(body).encode())
    return clips, unclear


def _csv_text(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read_list(path: Path, root: Path, split: str) -> Clips:
    """Reads a list in the official CSV format: ``content_path,image_path,type_id,label,frame_len,frame_seq``; further columns are ignored.

    ``content_path`` names a folder of frames ``<k>.jpg`` below the root (or below ``<root>/GenVideo``), or a video file.

    Raises:
        MissingPath: The list is not there.
        UserError: All problems of its lines at once: a missing column, a label other than 0 and 1, a path outside the root, a frame
            list that is none, an empty list.
    """
    if not path.is_file():
        raise MissingPath(f"data.{split}_list: {path.absolute()} is not a file.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        lines = list(reader)
        missing = [name for name in ("content_path", "label") if name not in (reader.fieldnames or [])]
    if missing:
        raise UserError(f"{path}:1: the header lacks {', '.join(missing)}; expected {','.join(CSV_COLUMNS)}.")
    problems: list[str] = []
    rows: list[Row] = []
    inside = root.resolve()
    for number, line in enumerate(lines, start=2):
        content, label = (line["content_path"] or "").strip(), (line["label"] or "").strip()
        if label not in ("0", "1"):
            problems.append(f"{path}:{number}: label is {label!r}; use 1 for fake and 0 for real.")
        relative = content if (root / content).exists() or not (root / "GenVideo" / content).exists() else f"GenVideo/{content}"
        if not content or not (root / relative).resolve().is_relative_to(inside):
            problems.append(f"{path}:{number}: content_path {content!r} leads out of data.root {root}; give a path below it.")
            continue
        size, first = -1, -1
        if not is_video(Path(content)):
            frames = _frame_numbers(line, f"{path}:{number}", problems)
            size, first = (len(frames), min(frames)) if frames else (0, 1)
        if label in ("0", "1"):
            fake = content.split("/", 1)[1] if content.lower().startswith("fake/") and "/" in content else content
            generator = _fake(str(PurePosixPath(fake).parent), split) if label == "1" else "real"
            rows.append((relative, int(label), generator, split, size, first))
    if not lines:
        problems.append(f"{path}: the list is empty; it needs one line per video after the header.")
    if problems:
        shown = problems[:20] + ([f"... and {len(problems) - 20} more."] if len(problems) > 20 else [])
        raise UserError("\n".join(shown))
    return make_clips(root, rows)


def _frame_numbers(line: dict[str, str], where: str, problems: list[str]) -> list[int]:
    text = line.get("frame_seq") or ""
    try:
        frames = ast.literal_eval(text) if text else list(range(1, int(line.get("frame_len") or 0) + 1))
    except (ValueError, SyntaxError):
        frames = None
    if not isinstance(frames, list) or not all(isinstance(n, int) for n in frames):
        problems.append(f"{where}: frame_seq is {text[:40]!r}; expected a list of frame numbers such as [1, 2, 3].")
        return []
    if not frames:
        problems.append(f"{where}: neither frame_seq nor frame_len names any frame.")
    return frames
