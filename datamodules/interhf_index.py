"""Clips of hands that touch faces, in the layout that GenLab has for InterHF, which is not published: ``metadata.jsonl`` and what it names.

metadata.jsonl               a line per clip: clip, video, pattern, subject, fps, width, height, frames, split, and what of masks,
                             keypoints, id (paths) and caption there is
videos/<pattern>/<clip>.mp4  or a folder of frames 000000.jpg ...
masks/<clip>.npz             ``masks`` (T, R, H, W), last axis packed to bits, and ``shape``; or masks/<clip>/<region>/000000.png ...
keypoints/<clip>.npz         ``hands`` (T, 2, 21, 3) and ``face`` (T, 68, 3): x, y in pixels and confidence
id/<clip>.npy                (512,) float32, an ArcFace embedding
patterns.json                names of the patterns, or {"names": [...], "mirror": [...]}: which pattern each becomes in a mirror
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.checks import Item
from datamodules.video import UnreadableVideo, even_frames, open_video
from genlab.errors import MissingPath, UserError

METADATA = "metadata.jsonl"
REGIONS = ("hand", "face")
NUM_PATTERNS = 18
SHOWN = 3  # frames in a preview, before the one with the regions
NAMED = 5  # problems in a message
DILATION = 0.06  # of a hull's size, where masks are made of keypoints
CONFIDENT = 0.3  # from which confidence a keypoint counts
PICTURES = (".jpg", ".jpeg", ".png")
TINTS = ((230, 40, 60), (40, 190, 90), (60, 110, 240))
Masks = NDArray[np.bool_]
REQUIRED: dict[str, type | tuple[type, ...]] = {
    "clip": str, "video": str, "pattern": int, "subject": (str, int), "fps": (int, float), "width": int, "height": int, "frames": int,
    "split": str,
}  # fmt: skip


class UnreadableRegions(Exception):
    """Masks or keypoints that cannot be had.

    Args:
        path: The file or folder.
        reason: What is wrong.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class InteractionClip:
    """A line of ``metadata.jsonl``.

    Args:
        clip: Its name.
        video: A video, or a folder of frames.
        pattern: Number of the pattern, from 0.
        subject: Whom it shows.
        frames: How many there are.
        masks: npz file or folder; ``None`` where there is none.
        keypoints: npz file, or ``None``.
        identity: npy file, or ``None``.
        contact: Frames with contact, where the list says so (the tiny world's does).
    """

    clip: str
    video: Path
    pattern: int
    subject: str
    split: str
    fps: float
    width: int
    height: int
    frames: int
    masks: Path | None = None
    keypoints: Path | None = None
    identity: Path | None = None
    caption: str = ""
    contact: tuple[int, ...] = ()


@dataclass(frozen=True)
class Patterns:
    """Names of the patterns, and what each becomes in a mirror: ``None`` where nobody says, so that clips must not be flipped."""

    names: list[str]
    mirror: list[int] | None


# ---- lists


def read_metadata(root: Path) -> list[InteractionClip]:
    """The clips of ``metadata.jsonl``.

    Masks, keypoints and identities that a line does not name are looked for in their usual places.

    Raises:
        MissingPath: There is no such file.
        UserError: Lines that are not as they should be, or a subject that is in several splits.
    """
    path = root / METADATA
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise MissingPath(
            f"{path} is not there. It needs a line per clip, such as "
            '{"clip": "a01", "video": "videos/pattern_00/a01.mp4", "pattern": 0, '
            '"subject": "p01", "fps": 25, "width": 512, "height": 512, "frames": 64, "split": "train"}.'
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}).") from error
    patterns = len(read_patterns(root).names)
    clips: list[InteractionClip] = []
    wrong: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record = _parse(line)
        problem = "not a JSON object" if record is None else _problem(record, patterns)
        if record is None or problem:
            wrong.append(f"{path}:{number}: {problem}")
        else:
            clips.append(_clip(root, record))
    wrong += [f"{path}: clip {name!r} is there {count} times" for name, count in Counter(clip.clip for clip in clips).items() if count > 1]
    _raise(wrong)
    if not clips:
        raise UserError(f"{path} is empty; it needs a line per clip.")
    splits: dict[str, set[str]] = {}
    for clip in clips:
        splits.setdefault(clip.subject, set()).add(clip.split)
    if both := {subject: sorted(there) for subject, there in splits.items() if len(there) > 1}:
        named = ", ".join(f"{subject} ({' and '.join(there)})" for subject, there in list(both.items())[:NAMED])
        more = f" and {len(both) - NAMED} more" if len(both) > NAMED else ""
        raise UserError(f"{path}: people must be in one split only, else faces are recognised; in several: {named}{more}.")
    return clips


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) else None


def _problem(record: Mapping[str, Any], patterns: int) -> str:
    if missing := [key for key in REQUIRED if key not in record]:
        return f"without {', '.join(missing)}"
    for key, kind in REQUIRED.items():
        if not isinstance(record[key], kind) or isinstance(record[key], bool):
            return (
                f"{key} is {record[key]!r}, not {'a text' if kind is str else 'a number' if kind is not REQUIRED['subject'] else 'a name'}"
            )
    if not 0 <= record["pattern"] < patterns:
        return f"pattern is {record['pattern']}; patterns count from 0 to {patterns - 1}"
    if record["frames"] < 1 or record["fps"] <= 0:
        return f"{record['frames']} frames at {record['fps']} per second; both are above 0"
    return ""


def _clip(root: Path, record: Mapping[str, Any]) -> InteractionClip:
    name = record["clip"]

    def beside(key: str, *usual: str) -> Path | None:
        if record.get(key):
            return root / str(record[key])
        return next((root / place for place in usual if (root / place).exists()), None)

    return InteractionClip(
        name, root / record["video"], record["pattern"], str(record["subject"]), record["split"], float(record["fps"]), record["width"],
        record["height"], record["frames"], beside("masks", f"masks/{name}.npz", f"masks/{name}"),
        beside("keypoints", f"keypoints/{name}.npz"),
        beside("id", f"id/{name}.npy"), str(record.get("caption") or ""), tuple(record.get("contact_frames") or ()),
    )  # fmt: skip


def read_patterns(root: Path) -> Patterns:
    """``patterns.json``: a list of names, or an object with ``names`` and perhaps ``mirror``; ``pattern_00`` ... where there is none.

    Raises:
        UserError: It is none of these, or its mirror is none: what is mirrored twice is what it was.
    """
    path = root / "patterns.json"
    if not path.is_file():
        return Patterns([f"pattern_{i:02d}" for i in range(NUM_PATTERNS)], None)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}).") from error
    names, mirror = (content.get("names"), content.get("mirror")) if isinstance(content, dict) else (content, None)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f'{path}: expected a list of names, or {{"names": [...], "mirror": [...]}}.')
    if isinstance(mirror, dict) and all(key in names and value in names for key, value in mirror.items()):  # by name; others stay
        mirror = [names.index(mirror.get(name, name)) for name in names]
    if mirror is not None:
        good = isinstance(mirror, list) and len(mirror) == len(names) and all(isinstance(i, int) and 0 <= i < len(names) for i in mirror)
        if not good or any(mirror[mirror[i]] != i for i in range(len(names))):
            raise UserError(f"{path}: mirror must have the number of a pattern for each of {len(names)}, and lead back when applied twice.")
    return Patterns(names, mirror)


def with_regions(clips: Sequence[InteractionClip]) -> tuple[list[InteractionClip], int]:
    """Clips that have masks, or keypoints to make them of; and how many have neither."""
    found = [clip for clip in clips if any(path is not None and path.exists() for path in (clip.masks, clip.keypoints))]
    return found, len(clips) - len(found)


# ---- what belongs to a clip


def load_frames(clip: InteractionClip, indices: Sequence[int]) -> NDArray[np.uint8]:
    """Frames (len(indices), H, W, 3) uint8 of a video or of a folder.

    Raises:
        UnreadableVideo: They cannot be had.
    """
    if not clip.video.is_dir():
        with open_video(clip.video) as video:
            if max(indices) >= len(video):
                raise UnreadableVideo(clip.video, f"frame {max(indices)} asked, {len(video)} are there")
            return video.frames(indices)
    files = sorted(path for path in clip.video.iterdir() if path.suffix.lower() in PICTURES and not path.name.startswith("."))
    try:
        return np.stack([np.asarray(Image.open(files[i]).convert("RGB")) for i in indices])
    except (OSError, ValueError, IndexError) as error:
        raise UnreadableVideo(clip.video, f"a frame cannot be read ({error})") from error


def load_masks(clip: InteractionClip, regions: Sequence[str] = REGIONS) -> Masks:
    """Masks (T, R, H, W) of a clip: from its npz file or folders, else hulls of its keypoints.

    Args:
        regions: Names of the folders; npz files have regions by position.

    Raises:
        UnreadableRegions: It has neither, or they cannot be read.
    """
    if clip.masks is not None and clip.masks.is_dir():
        return _masks_of_folders(clip.masks, regions)
    if clip.masks is not None and clip.masks.exists():
        arrays = _npz(clip.masks, ("masks", "shape"))
        shape = tuple(int(side) for side in arrays["shape"])
        packed = arrays["masks"]
        if len(shape) != 4 or packed.shape != (*shape[:3], -(-shape[3] // 8)) or packed.dtype != np.uint8:
            raise UnreadableRegions(
                clip.masks, f"masks are {packed.dtype} {packed.shape}, which is not {shape} with the last axis packed to bits"
            )
        return np.unpackbits(packed, axis=-1, count=shape[3]).astype(bool)
    if clip.keypoints is not None and clip.keypoints.exists():
        hands, face = load_keypoints(clip)
        return masks_of_keypoints(hands, face, clip.height, clip.width)
    raise UnreadableRegions(clip.masks or clip.video, "there are neither masks nor keypoints of this clip")


def _masks_of_folders(folder: Path, regions: Sequence[str]) -> Masks:
    found: list[Masks] = []
    for region in regions:
        files = sorted(path for path in (folder / region).glob("*.png") if not path.name.startswith("."))
        if not files:
            raise UnreadableRegions(folder / region, "there are no PNG masks in it")
        try:
            found.append(np.stack([np.asarray(Image.open(path).convert("L")) > 127 for path in files]))
        except (OSError, ValueError) as error:
            raise UnreadableRegions(folder / region, f"a mask cannot be read ({error})") from error
    if len({masks.shape for masks in found}) > 1:
        raise UnreadableRegions(folder, f"regions differ in number or size of masks: {[masks.shape for masks in found]}")
    return np.stack(found, 1)


def load_keypoints(clip: InteractionClip) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """``hands`` (T, 2, 21, 3) and ``face`` (T, 68, 3) of a clip.

    Raises:
        UnreadableRegions: There are none, or of other shapes.
    """
    if clip.keypoints is None:
        raise UnreadableRegions(clip.video, "there are no keypoints of this clip")
    arrays = _npz(clip.keypoints, ("hands", "face"))
    hands, face = arrays["hands"], arrays["face"]
    if hands.shape[1:] != (2, 21, 3) or face.shape[1:] != (68, 3) or len(hands) != len(face):
        raise UnreadableRegions(clip.keypoints, f"hands {hands.shape} and face {face.shape} should be (T, 2, 21, 3) and (T, 68, 3)")
    return hands.astype(np.float32), face.astype(np.float32)


def load_identity(clip: InteractionClip) -> NDArray[np.float32]:
    """The embedding of the face, (512,) of length 1.

    Raises:
        UnreadableRegions: There is none, or it is no such vector.
    """
    if clip.identity is None:
        raise UnreadableRegions(clip.video, "there is no identity of this clip")
    try:
        vector = np.load(clip.identity, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UnreadableRegions(clip.identity, f"not an npy file that can be read ({error})") from error
    if vector.shape != (512,) or not np.isfinite(vector).all() or not np.linalg.norm(vector) > 0:
        raise UnreadableRegions(clip.identity, f"{vector.shape} is no embedding of 512 finite numbers")
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _npz(path: Path, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as content:
            return {key: content[key] for key in keys}
    except KeyError as error:
        raise UnreadableRegions(path, f"{error.args[0]}; expected the arrays {' and '.join(keys)}") from error
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UnreadableRegions(path, f"not an npz file that can be read ({error})") from error


def masks_of_keypoints(hands: NDArray[np.float32], face: NDArray[np.float32], height: int, width: int) -> Masks:
    """Masks (T, 2, H, W) of hands and face: convex hulls of the confident points, dilated by 6 % of their larger side."""
    masks = np.zeros((len(face), 2, height, width), bool)
    for frame in range(len(face)):
        masks[frame, 0] = _hull(hands[frame, 0], height, width) | _hull(hands[frame, 1], height, width)
        masks[frame, 1] = _hull(face[frame], height, width)
    return masks


def _hull(points: NDArray[np.float32], height: int, width: int) -> Masks:
    """(H, W) pixels whose middles are in the dilated hull; none where fewer than three points are confident."""
    from scipy.spatial import ConvexHull

    mask = np.zeros((height, width), bool)
    sure = points[points[:, 2] >= CONFIDENT, :2].astype(np.float64)
    if len(sure) < 3 or not (size := float(np.ptp(sure, axis=0).max())):
        return mask
    turn = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    hull = ConvexHull((sure[:, None] + DILATION * size * np.stack((np.cos(turn), np.sin(turn)), 1)).reshape(-1, 2))  # of discs around them
    low, high = np.floor(hull.min_bound).astype(int).clip(0), np.ceil(hull.max_bound).astype(int).clip(0, (width, height))
    y, x = np.mgrid[low[1] : high[1], low[0] : high[0]] + 0.5
    mask[low[1] : high[1], low[0] : high[0]] = (
        (hull.equations @ np.stack((x.ravel(), y.ravel(), np.ones(x.size))) <= 0).all(0).reshape(x.shape)
    )
    return mask


# ---- for ``data show``


def items(root: Path, dataset: str) -> list[Item]:
    """Every clip of ``metadata.jsonl``, in the rows of its pattern.

    Raises:
        UserError: There is no such list, or it is wrong.
    """
    if not root.is_dir():
        raise MissingPath(f"data.root: {root} is not a folder; name the one with {METADATA}.")
    names = read_patterns(root).names
    return [
        Item(
            clip.video.relative_to(root).as_posix(), clip.video, clip.pattern,
            names[clip.pattern], clip.split, clip.frames,
            0 if clip.video.is_dir() else -1,
        )
        for clip in read_metadata(root)
    ]  # fmt: skip


@lru_cache(maxsize=4)
def _clips(root: str) -> dict[Path, InteractionClip]:
    return {clip.video: clip for clip in read_metadata(Path(root))}


def preview(item: Item) -> list[np.ndarray]:
    """Three evenly spaced frames, and the middle one with its regions in colours (none, if they cannot be read); [] without frames."""
    clip = _clips(str(item.path.parents[len(Path(item.id).parts) - 1]))[item.path]
    try:
        indices = even_frames(clip.frames, SHOWN)
        frames = load_frames(clip, indices.tolist())
    except UnreadableVideo:
        return []
    middle = indices[len(indices) // 2]
    try:
        masks = load_masks(clip)[middle]
    except (UnreadableRegions, IndexError):
        masks = np.zeros((0, *frames.shape[1:3]), bool)
    tinted = frames[len(indices) // 2].astype(np.float32)
    for mask, tint in zip(masks, TINTS):
        fitted = np.asarray(Image.fromarray(mask).resize((tinted.shape[1], tinted.shape[0]), Image.Resampling.NEAREST))
        tinted[fitted] = 0.5 * tinted[fitted] + 0.5 * np.asarray(tint, np.float32)
    return [*frames, tinted.astype(np.uint8)]


def note(item: Item) -> str:
    """Clip and person."""
    clip = _clips(str(item.path.parents[len(Path(item.id).parts) - 1]))[item.path]
    return f"{clip.clip}, {clip.subject}"


def _raise(wrong: Sequence[str]) -> None:
    if wrong:
        raise UserError("\n".join([*wrong[:NAMED], *([f"... and {len(wrong) - NAMED} more."] if len(wrong) > NAMED else [])]))
