"""What :mod:`datamodules.checks` needs to know of GenVideo: its items, how one is read, and names that contradict a label."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from datamodules.checks import VERSION, CheckReport, Facts, Item, check_all, check_sample, checks_folder
from datamodules.genvideo_index import FRAME, REAL_FOLDER, TEST_NAMES, TRAIN_NAMES, Clips
from datamodules.video import UnreadableVideo, extracted_indices, extraction_fps, open_video, sample_window
from genlab.files import write_bytes
from genlab.training.randomness import fold_key

LABELS = {0: "real", 1: "fake"}
CLIP_FRAMES = 8  # of a clip (paper)
WORDS = {"sd", "svd", "morph", "wild", "latte", "crafter"}  # generators whose names are also ordinary words or initials
GENERATORS = {name: paper for known in (TEST_NAMES, TRAIN_NAMES) for name, paper in known.items() if "/" not in name and name not in WORDS}
LIKE_A_FAKE = re.compile(rf"({'|'.join(sorted(map(re.escape, GENERATORS), key=len, reverse=True))})(?=[-_ .\d]|$)", re.IGNORECASE)
LIKE_A_REAL = re.compile(r"(youku|kinetics|msr-?vtt)(?=[-_ .\d]|$)|real[-_]?\d+$", re.IGNORECASE)


def quick_check(index: Mapping[str, Clips], root: Path, sample: int = 200) -> CheckReport:
    """:func:`check_sample` of GenVideo's splits, remembered until the lists change; while something is wrong it is done anew."""
    state = fold_key(VERSION, str(root.absolute()), sample, *(f"{split} {clips.fingerprint}" for split, clips in index.items()))
    cache = checks_folder() / f"quick-{state:032x}.json"
    if cache.is_file():
        return CheckReport(**json.loads(cache.read_text()))
    report = check_sample(items_of(index, root), read_clip, LABELS, sample)
    if not report.errors and not any(row["problem"] == "missing" for row in report.findings):
        write_bytes(cache, json.dumps(asdict(report)).encode())
    return report


def full_check(index: Mapping[str, Clips], root: Path, workers: int | None = None, progress: bool = True) -> CheckReport:
    """:func:`check_all` of GenVideo's splits."""
    store = checks_folder() / f"clips-{fold_key(str(root.absolute())):032x}.sqlite"
    report = check_all(items_of(index, root), read_clip, LABELS, store, workers, progress, suspicious_name)
    for split, clips in index.items():
        if len(present := set(clips.label.tolist())) == 1:
            report.warnings.append(f"{split}: there are only {LABELS[present.pop()]} clips.")
    return report


def items_of(index: Mapping[str, Clips], root: Path) -> list[Item]:
    items: list[Item] = []
    for split, clips in index.items():
        columns = (column.tolist() for column in (clips.id, clips.label, clips.generator, clips.size, clips.first))
        for name, label, generator, size, first in zip(*columns):
            items.append(Item(name, root / name, label, generator, split, size if first >= 0 else 0, first))
    return items


def read_clip(item: Item, whole: bool) -> Facts:
    """A video file or a folder of extracted frames: wholly, or only the clip that an evaluation takes and the last frame."""
    if item.first >= 0:
        return _read_frames(item, whole)
    try:
        with open_video(item.path) as video:
            info, last = video.info, len(video) - 1
            extracted = extracted_indices(video.timestamps, info.duration)
            try:
                video.frames([*extracted[sample_window(len(extracted), CLIP_FRAMES)], last])
                flaw = _flaw_inside(item.path) if whole else ""
            except UnreadableVideo as error:
                flaw = _flaw_inside(item.path) or error.reason
    except UnreadableVideo as error:
        return Facts("unreadable", error.reason)
    measures: dict[str, float | str] = {
        "fps": info.fps, "extraction fps": extraction_fps(info.duration), "seconds": info.duration,
        "resolution": f"{info.width}x{info.height}",
    }  # fmt: skip
    different = len(np.unique(extracted))
    if not flaw and different < CLIP_FRAMES:
        return Facts("short", f"{different} of {CLIP_FRAMES} frames", measures=measures)
    return Facts("truncated" if flaw else "", flaw, measures=measures)


def _flaw_inside(path: Path) -> str:
    """What is wrong with a video that opens, by decoding all of it; an empty string if nothing is."""
    import av

    if path.suffix.lower() == ".gif" and not path.read_bytes().rstrip(b"\0").endswith(b";"):
        return "the file ends early"
    packets = broken = 0
    try:
        with av.open(str(path.absolute()), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            promised, end = stream.frames, 0.0
            alone = len(container.streams) == 1 and not promised  # else the header's duration may be the sound's
            seconds = (container.duration or 0) / av.time_base if alone else 0.0
            for packet in container.demux(stream):
                packets += packet.size > 0
                try:
                    for frame in packet.decode():
                        broken += frame.is_corrupt
                        end = max(end, (frame.time or 0.0) + float(frame.duration or 0) * float(frame.time_base or 0))
                except av.FFmpegError:
                    broken += 1
    except av.FFmpegError as error:
        return f"after {packets} frames: {error.strerror}"
    if broken:
        return f"{broken} of {promised or packets} frames cannot be decoded"
    if promised - packets > max(1, promised // 50):
        return f"{packets} of {promised} frames are there"
    return f"{end:.1f} of {seconds:.1f} s are there" if seconds - end > max(0.5, seconds / 20) else ""


def _read_frames(item: Item, whole: bool) -> Facts:
    numbers = np.arange(item.first, item.first + item.frames)
    if not len(numbers):
        return Facts("empty", "the list names no frames")
    there = frame_files(item)
    asked = (numbers if whole else numbers[sample_window(len(numbers), CLIP_FRAMES)]).tolist()
    sizes = {number: _picture_size(there[number]) if number in there else "" for number in asked}
    broken = [str(number) for number, size in sizes.items() if not size]
    if len(broken) == len(asked):
        return Facts("unreadable", f"none of its {len(asked)} frames")
    measures: dict[str, float | str] = {"frames": float(item.frames), "resolution": next(size for size in sizes.values() if size)}
    if broken:
        return Facts("truncated", f"{len(broken)} of {len(asked)} frames missing or broken: {', '.join(broken[:10])}", measures=measures)
    short = item.frames < CLIP_FRAMES
    return Facts("short" if short else "", f"{item.frames} of {CLIP_FRAMES} frames" if short else "", measures=measures)


def frame_files(item: Item) -> dict[int, Path]:
    """Those of the promised frames that are there, by number, ascending."""
    there = {int(match[1]): file for file in item.path.iterdir() if (match := FRAME.fullmatch(file.name))}
    return {number: there[number] for number in range(item.first, item.first + item.frames) if number in there}


def _picture_size(path: Path) -> str:
    try:
        with Image.open(path) as image:
            image.load()
            return f"{image.width}x{image.height}"
    except (OSError, SyntaxError):  # PIL's ways to say that a picture is broken
        return ""


def suspicious_name(item: Item) -> str:
    """Why a clip's name speaks against its label: a real one named after a generator, a fake one after a source of real clips.

    Only the start of the file's name counts, and folder names as a whole: prompts and titles hold any word.
    """
    path = PurePosixPath(item.id)
    folders = path.parts[:-1]
    if item.label == 0:
        hit = next((folder for folder in folders if folder.lower() in GENERATORS), None) or ((m := LIKE_A_FAKE.match(path.stem)) and m[1])
        return f"real, but named like {GENERATORS[hit.lower()]}" if hit else ""
    hit = next((folder for folder in folders if REAL_FOLDER.fullmatch(folder)), None) or ((m := LIKE_A_REAL.match(path.stem)) and m[0])
    return f"fake, but named {hit}" if hit else ""


def preview(item: Item) -> list[np.ndarray]:
    """First and last frame of the window that an evaluation takes, (H, W, 3) uint8; none if they cannot be read."""
    try:
        if item.first >= 0:
            files = list(frame_files(item).values())
            window = sample_window(len(files), CLIP_FRAMES)[[0, -1]].tolist() if files else []
            return [np.asarray(Image.open(files[k]).convert("RGB")) for k in window]
        with open_video(item.path) as video:
            extracted = extracted_indices(video.timestamps, video.duration)
            return list(video.frames(extracted[sample_window(len(extracted), CLIP_FRAMES)[[0, -1]]]))
    except (UnreadableVideo, OSError, SyntaxError):  # the last two are PIL's
        return []
