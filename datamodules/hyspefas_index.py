"""HySpeFAS as it is distributed: the challenge's numbered cubes with their lists, and the full dataset with its protocols.

Lists come as text (``0001.mat 1``, or names alone), as CSV (``image,label``, where a row that is there twice counts twice) and with boxes
(``indoor/real/ID01_..._0.tiff xmin ymin xmax ymax``). Label 1 is live, 0 an attack, -1 unknown. Names of files of the full dataset end the
other way round: ``_0`` is real, ``_1`` an attack.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from datamodules.checks import Item
from datamodules.listfiles import raise_all, read_text
from genlab.errors import MissingPath, UserError

LIVE, ATTACK, UNLABELLED = 1, 0, -1
SPLITS = ("train", "val", "test")
PROTOCOLS = (1, 2, 3)
TYPES = {"real": "live", "2d": "print", "3d": "mask", "photo": "print", "paper": "print"}  # what lists and folders call them -> here
KEY = "var"  # of a cube in its file
EXPECTED = (
    "the challenge's HySpeFAS_trainval/train.txt with images/0001.mat, 0001.png ... (or train.csv, train_all_balance.csv), "
    "or the full dataset's train_p1.txt with ssi_reconstructed/ and rgb/"
)
Box = tuple[int, int, int, int]


class UnreadableCube(Exception):
    """A file without a cube that can be read.

    Args:
        path: The file.
        reason: What is wrong.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of a list: name of the file as it stands there, label or -1, and box (left, top, right, bottom) or nothing."""

    name: str
    label: int = UNLABELLED
    box: Box | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """A cube with its picture.

    Args:
        id: Name in the lists: ``0001.mat``, or ``indoor/real/ID01_..._0.tiff``.
        cube: The ``.mat`` file.
        colour: The ``.png`` file.
        label: 1 live, 0 attack, -1 unknown.
        type: ``live``, ``print``, ``mask``, or as ``types.csv`` has it; ``attack`` where nothing tells, "" where the label is unknown.
        repeats: How often the list has it.
        box: Of the face in the raw snapshot (full dataset).
    """

    id: str
    cube: Path
    colour: Path
    label: int
    type: str
    repeats: int = 1
    box: Box | None = None


# ---- lists


def read_list(path: Path) -> list[Listed]:
    """A list in any of its forms; blanks, tabs or commas between, CRLF, empty lines and a byte order mark allowed. Repeated rows stay.

    Raises:
        MissingPath: There is no such list.
        UserError: Lines that are of none of these forms, or an empty list.
    """
    lines = read_text(path).splitlines()
    header = [part.strip().lower() for part in lines[0].split(",")] if lines else []
    rows: list[Listed] = []
    wrong: list[str] = []
    if "image" in header:
        for number, row in enumerate(csv.DictReader(lines[1:], fieldnames=header), 2):
            name, label = (row["image"] or "").strip(), (row.get("label") or "").strip()
            if not name or ("label" in header and label not in ("0", "1")):
                wrong.append(f"{path}:{number}: image {name!r}, label {label!r}; a label is 1 (live) or 0 (attack)")
            else:
                rows.append(Listed(_slashes(name), int(label) if label else UNLABELLED))
    else:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            listed = _parse(line)
            if listed is None:
                wrong.append(f"{path}:{number}: {line.strip()[:80]!r} is not 'name', 'name 0|1' or 'name xmin ymin xmax ymax'")
            else:
                rows.append(listed)
    if not rows and not wrong:
        wrong.append(f"{path} is empty; it needs a line per image.")
    raise_all(wrong)
    return rows


def _parse(line: str) -> Listed | None:
    found = re.fullmatch(r"\s*(.+?\.(?:mat|png|tiff?))(?:[\s,]+(.+?))?\s*", line, re.IGNORECASE)
    if found is None:
        return None
    name, numbers = _slashes(found[1]), re.split(r"[\s,]+", found[2]) if found[2] else []
    if not all(re.fullmatch(r"-?\d+(\.\d+)?", number) for number in numbers):
        return None
    values = [round(float(number)) for number in numbers]
    if not values:
        return Listed(name)
    if len(values) == 1 and values[0] in (LIVE, ATTACK):
        return Listed(name, values[0])
    if len(values) == 4 and values[0] < values[2] and values[1] < values[3]:
        return Listed(name, box=(values[0], values[1], values[2], values[3]))
    return None


def read_types(path: Path) -> dict[str, str]:
    """``image,type`` -> type by the stem of the image's name; the full dataset's words for them become ``live``, ``print`` and ``mask``."""
    rows = csv.DictReader(read_text(path).splitlines())
    if not {"image", "type"} <= set(rows.fieldnames or ()):
        raise UserError(f"{path}:1: columns are {', '.join(rows.fieldnames or ()) or 'missing'}; a list of types has image,type.")
    types: dict[str, str] = {}
    for row in rows:
        kind = (row["type"] or "").strip().lower()
        types[_stem(row["image"] or "")] = TYPES.get(kind, kind)
    return types


def types_by_multiplicity(rows: Iterable[Listed]) -> dict[str, str]:
    """Types by stem, from a list that was balanced by repeating rows, as ``train_all_balance.csv`` is; empty where no attack is repeated.

    Attacks that are there more than once are prints, which are rarer than masks.
    """
    counts = Counter(_stem(row.name) for row in rows if row.label == ATTACK)
    if not counts or max(counts.values()) == 1:
        return {}
    return {stem: "print" if count > 1 else "mask" for stem, count in counts.items()}


# ---- the challenge


def read_challenge(root: Path, lists: Mapping[str, Path] | None = None) -> dict[str, list[Sample]]:
    """Samples by split. Rows of a list that repeat one another are one sample with ``repeats``.

    Args:
        root: Holds ``HySpeFAS_trainval/`` and ``HySpeFAS_test/``, or is one of them, or holds the lists itself.
        lists: Split -> list, instead of those that lie in the root. Its types come from ``types.csv``, else from what is repeated.

    Raises:
        UserError: No lists, or one that is wrong.
    """
    if lists is None:
        lists = _challenge_lists(root)
    if not lists:
        raise MissingPath(f"{root} holds no lists of HySpeFAS. Expected {EXPECTED}.")
    places = _places(root, (".mat", ".png"))
    kinds: dict[str, str] = {}
    for path in sorted(root.rglob("types.csv")):
        kinds |= read_types(path)
    read = {split: read_list(path) for split, path in lists.items()}
    if not kinds:
        kinds = types_by_multiplicity(row for rows in read.values() for row in rows)
    samples: dict[str, list[Sample]] = {}
    for split, rows in read.items():
        labels: dict[str, int] = {}
        counts: Counter[str] = Counter()
        for row in rows:
            stem = _stem(row.name)
            if labels.setdefault(stem, row.label) != row.label:
                raise UserError(f"{lists[split]}: {row.name} is listed as live and as an attack; one of them is wrong.")
            counts[stem] += 1
        samples[split] = [_challenge_sample(root, stem, labels[stem], count, kinds, places) for stem, count in counts.items()]
    return samples


def _challenge_lists(root: Path) -> dict[str, Path]:
    """Text lists before CSVs, lists with labels before those without."""
    found: dict[str, Path] = {}
    for split in SPLITS:
        names = [f"{split}_gt.txt", f"{split}.txt", f"{split}.csv", *(["train_all_balance.csv"] if split == "train" else [])]
        paths = (folder / name for name in names for folder in (root, root / "HySpeFAS_trainval", root / "HySpeFAS_test"))
        if (path := next((path for path in paths if path.is_file()), None)) is not None:
            found[split] = path
    return found


def _challenge_sample(
    root: Path, stem: str, label: int, repeats: int, kinds: Mapping[str, str], places: Mapping[str, list[Path]]
) -> Sample:
    there = places.get(f"{stem}.mat", [])
    cube = there[0] if there else root / f"{stem}.mat"
    beside = cube.with_suffix(".png")
    pictures = places.get(f"{stem}.png", [])
    colour = beside if beside in pictures or not pictures else pictures[0]
    kind = {LIVE: "live", ATTACK: kinds.get(stem, "attack"), UNLABELLED: kinds.get(stem, "")}[label]
    return Sample(f"{stem}.mat", cube, colour, label, kind, repeats)


# ---- the full dataset


def read_full(root: Path, protocol: int = 1) -> dict[str, list[Sample]]:
    """Samples by split of a protocol, with labels by the last digit of the names, types by folder.

    Args:
        root: The folder of the distribution, or ``data`` or ``data/datasets`` in it.
        protocol: 1, 2 or 3 (trains indoors, tests outdoors).

    Raises:
        UserError: No such lists, or names that do not end with _0 or _1.
    """
    samples: dict[str, list[Sample]] = {}
    places = _places(root, (".mat", ".png"))
    for split in SPLITS:
        path = _full_list(root, f"{split}_p{protocol}.txt")
        if path is None:
            raise MissingPath(f"{root}: {split}_p{protocol}.txt is not there, nor in a folder of it. Expected {EXPECTED}.")
        samples[split] = _full_samples(root, path, places)
    return samples


def _full_list(root: Path, name: str) -> Path | None:
    there = sorted(root.rglob(name), key=lambda path: len(path.parts))
    return there[0] if there else None


def _full_samples(root: Path, path: Path, places: Mapping[str, list[Path]]) -> list[Sample]:
    wrong: list[str] = []
    samples: dict[str, Sample] = {}
    for row in read_list(path):
        parts = PurePosixPath(row.name).parts
        name = re.sub(r"(\.tiff?)?(\.(mat|png))?$", "", parts[-1])
        if name[-2:] not in ("_0", "_1"):
            wrong.append(f"{path}: {row.name}: the name ends neither with _0 (real) nor with _1 (attack)")
            continue
        label = LIVE if name.endswith("_0") else ATTACK
        folder = next((TYPES[part.lower()] for part in reversed(parts[:-1]) if part.lower() in TYPES), "attack")
        if folder != "attack" and (folder == "live") != (label == LIVE):
            wrong.append(f"{path}: {row.name}: the folder says {folder}, the name's last digit {'real' if label else 'attack'}")
            continue
        cube = _nearest(places, (f"{name}.tiff.mat", f"{name}.tif.mat", f"{name}.mat"), parts[:-1])
        colour = _nearest(places, (f"{name}.png", f"{name}.tiff.png"), parts[:-1])
        sample = Sample(
            row.name, cube or root / "ssi_reconstructed" / f"{row.name}.mat", colour or root / "rgb" / f"{name}.png",
            label, "live" if label else folder, 1, row.box,
        )  # fmt: skip
        known = samples.get(row.name)
        samples[row.name] = sample if known is None else replace(known, repeats=known.repeats + 1)
    raise_all(wrong)
    return list(samples.values())


def _nearest(places: Mapping[str, list[Path]], names: Sequence[str], folders: Sequence[str]) -> Path | None:
    """The file of one of the names that lies in most of the folders."""
    there = [path for name in names for path in places.get(name, [])]
    return max(there, key=lambda path: len(set(path.parts) & set(folders)), default=None)


# ---- files


def load_cube(path: Path, key: str = KEY) -> np.ndarray:
    """The cube of a ``.mat`` file, (H, W, bands) float32, as stored: about 0 to 1.

    Raises:
        UnreadableCube: Missing, broken, of MATLAB 7.3, or without a three-dimensional ``key``.
    """
    from scipy.io import loadmat  # seconds to import
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        raise UnreadableCube(path, "not there")
    try:
        content = loadmat(path, variable_names=[key])
    except NotImplementedError as error:
        raise UnreadableCube(path, "a file of MATLAB 7.3; save it with '-v7' instead") from error
    except (MatReadError, OSError, ValueError, TypeError, KeyError, IndexError, EOFError, ImportError, MemoryError) as error:
        raise UnreadableCube(path, f"not a MATLAB file that can be read ({type(error).__name__}: {error})") from error
    except Exception as error:  # zlib.error and whatever else a damaged file provokes in the parser
        raise UnreadableCube(path, f"damaged ({type(error).__name__}: {error})") from error
    if key not in content or content[key].ndim != 3 or content[key].dtype.kind not in "fiu":
        raise UnreadableCube(path, f"holds no array {key!r} of height x width x bands")
    return np.ascontiguousarray(content[key], dtype=np.float32)


def is_full(root: Path) -> bool:
    """Whether a folder holds the full dataset, not the challenge's."""
    return _full_list(root, "train_p1.txt") is not None


def items(root: Path, dataset: str) -> list[Item]:
    """Every sample of every split; of the full dataset those of protocol 1.

    Raises:
        UserError: No lists, or ones that are wrong.
    """
    if not root.is_dir():
        raise MissingPath(f"data.root: {root} is not a folder. Expected {EXPECTED}.")
    found = read_full(root) if is_full(root) else read_challenge(root)
    return [
        Item(sample.cube.relative_to(root).as_posix(), sample.cube, sample.label, sample.type or "without label", split)
        for split, samples in found.items()
        for sample in samples
    ]


def preview(item: Item) -> list[np.ndarray]:
    """The colour picture and one of the last half of the bands (the longest waves red), (H, W, 3) uint8; none if one cannot be read."""
    try:
        cube = load_cube(item.path)
        with Image.open(picture_of(item.path)) as picture:
            colour = np.asarray(picture.convert("RGB"))
    except (UnreadableCube, OSError, ValueError):
        return []
    thirds = np.array_split(cube[..., cube.shape[2] // 2 :], 3, axis=2)[::-1]
    beyond = np.stack([third.mean(2) for third in thirds], 2)
    top = np.percentile(beyond, 99.5, axis=(0, 1)).clip(1e-6)  # each by its own: sensors see less and less there
    return [colour, (np.clip(beyond / top, 0, 1) * 255).astype(np.uint8)]


def picture_of(cube: Path) -> Path:
    """Where the colour picture of a cube lies: beside it, or in ``rgb`` instead of ``ssi_reconstructed``."""
    name = re.sub(r"(\.tiff?)?\.mat$", ".png", cube.name)
    beside = cube.with_name(name)
    apart = Path(*("rgb" if part == "ssi_reconstructed" else part for part in cube.parent.parts), name)
    return beside if beside.is_file() or not apart.is_file() else apart


def _places(root: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """Files below the root by name."""
    places: dict[str, list[Path]] = {}
    for folder, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        for name in sorted(names):
            if name.endswith(tuple(suffixes)) and not name.startswith("."):
                places.setdefault(name, []).append(Path(folder, name))
    return places


def _stem(name: str) -> str:
    return PurePosixPath(_slashes(name.strip())).stem


def _slashes(name: str) -> str:
    return name.strip().replace("\\", "/")
