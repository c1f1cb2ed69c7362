"""From GenVideo's downloads to what its reader takes: archives -> videos, and videos -> frames and lists in the official format.

Frames are extracted as the paper does (2 per second, or ceil(8 / duration) from clips under 4 s) to ``<content_path>/<k>.jpg``, k from 1,
at full size; ``train.csv`` and ``val_ood.csv`` beside them list the clips. Both halves go on where they were stopped.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import shutil
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from datamodules.archives import Archive, find_archives, space_needed, unpack
from datamodules.frame_cache import extract, source_state, to_jpeg
from datamodules.genvideo_index import CSV_COLUMNS, FRAME, REAL_FOLDER, TEST_FOLDERS, Clips, cached_scan, classify
from datamodules.processes import core_count, in_processes, worth_starting
from datamodules.video import UnreadableVideo, is_video
from genlab.errors import UserError
from genlab.files import write_bytes
from genlab.store import RowStore, content_key
from genlab.training.randomness import fold_key

log = logging.getLogger(__name__)

LISTS = {"train": "train.csv", "test": "val_ood.csv"}
TYPE_IDS = {1: "AIGC视频", 0: "真实视频"}  # "AIGC video" and "real video", as the official lists have it
QUALITY = 95


@dataclass
class PrepareReport:
    """What was done.

    Args:
        rows: A table, one line per archive, or per split and generator.
        failed: Members that were refused, or clips that cannot be read, with the reason.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


# Archives


def unpack_archives(folder: Path, root: Path, workers: int | None = None, progress: bool = True) -> PrepareReport:
    """Unpacks all archives below ``folder`` into ``root``; one that is done is not read again.

    A clip whose folders in the archive say neither real nor fake goes into one named like the archive, if that says it.

    Raises:
        UserError: Parts are missing, an archive is damaged, or the disk is too small: before anything is written where it can be known.
    """
    archives = find_archives(folder)
    if not archives:
        raise UserError(f"--archives: there are no archives (zip, tar, tar.gz, NAME.split.aa, NAME_part_aa ...) in {folder.absolute()}.")
    root.mkdir(parents=True, exist_ok=True)
    state = Path(os.environ.get("GENLAB_CACHE") or "~/.cache/genlab").expanduser() / "prepare"
    stop, report, problems = threading.Event(), PrepareReport(), list[str]()
    with closing(RowStore(state / f"archives-{fold_key(str(root.resolve())):032x}.sqlite")) as store:
        done = {archive: row for archive in archives if (row := _unpacked_before(archive, root, store)) is not None}
        todo = [archive for archive in archives if archive not in done]
        needed, free = sum(space_needed(archive, root) for archive in todo), shutil.disk_usage(root).free
        if needed > free:
            raise UserError(f"{root.absolute()}: the archives need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free.")
        bar = tqdm(desc="unpacking", total=sum(a.size for a in todo), unit="B", unit_scale=True, disable=not progress or not todo)
        with bar, ThreadPoolExecutor(max(1, min(core_count() if workers is None else workers, len(todo)))) as pool:
            futures = {pool.submit(unpack, archive, root, place, partial(_advance, bar), stop): archive for archive in todo}
            try:
                for future in as_completed(futures):
                    try:
                        unpacked = future.result()
                    except UserError as error:
                        problems.append(str(error))
                        continue
                    row = {"files": unpacked.files, "refused": unpacked.refused, "junk": unpacked.junk}
                    store.put(_state(futures[future]), row)
                    done[futures[future]] = row | {"written": unpacked.written}
            finally:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
    if problems:  # the other archives are done by now
        raise UserError("\n".join(problems))
    for archive in archives:
        row = done[archive]
        report.rows.append({
            "archive": archive.name, "parts": len(archive.parts), "files": len(row["files"]), "written now": row.get("written", 0),
            "junk left out": row["junk"], "refused": len(row["refused"]),
        })  # fmt: skip
        report.failed |= {f"{archive.name}: {name}": why for name, why in row["refused"].items()}
    return report


_LOCK = threading.Lock()


def _advance(bar: Any, count: int) -> None:
    with _LOCK:
        bar.update(count)


def _state(archive: Archive) -> str:
    return content_key([[str(part.resolve()), *source_state(part)] for part in archive.parts])


def _unpacked_before(archive: Archive, root: Path, store: RowStore) -> dict[str, Any] | None:
    row = store.get(_state(archive))
    if row is None or any(source_state(root / name)[0] != size for name, size in row["files"].items()):
        return None
    return row


def place(archive: str, member: PurePosixPath) -> PurePosixPath:
    """Where a member goes: as the archive has it, if its folders or nothing at all tell the class, else into the archive's folder."""
    clip = member.parent if FRAME.fullmatch(member.name) else member
    if not (is_video(member.name) or clip is not member) or classify(clip) is not None:
        return member
    return archive / member if classify(archive / clip) is not None else member


# Frames


@dataclass(frozen=True)
class _Task:
    video: Path
    folder: Path


@dataclass(frozen=True)
class _Extracted:
    source: tuple[int, int]
    frames: int = 0
    problem: str = ""


def extract_frames(root: Path, frames: Path, workers: int | None = None, progress: bool = True) -> PrepareReport:
    """Extracts the frames of every video below ``root`` and lists them; what is extracted already is left as it is.

    Raises:
        UserError: ``frames`` lies in ``root``, where it would be read as more clips.
    """
    if frames.resolve().is_relative_to(root.resolve()) or root.resolve().is_relative_to(frames.resolve()):
        raise UserError(f"--frames {frames}: give a folder beside {root}, not inside or around it; its clips would be there twice.")
    clips, unclear = cached_scan(root)
    for folder, count in sorted(unclear.items()):
        log.warning("left out, since neither real nor fake by their folder: %d clips in %s/", count, folder)
    if extracted := int((clips.first >= 0).sum()):
        log.info("%d folders of extracted frames are left as they are", extracted)
    clips = clips.where(clips.first < 0)
    contents = content_paths(clips)
    frames.mkdir(parents=True, exist_ok=True)
    with closing(RowStore(frames / ".prepare.sqlite")) as store:
        tasks = {content: _Task(root / name, frames / content) for content, name in zip(contents, clips.id.tolist())}
        todo = {content: task for content, task in tasks.items() if not _extracted_before(store.get(content), task)}
        bar = tqdm(desc="extracting", total=len(tasks), initial=len(tasks) - len(todo), unit="clip", disable=not progress)
        with bar, closing(in_processes(_extract, todo, worth_starting(workers, len(todo)))) as results:
            for content, result in results:
                result = result or _Extracted(source_state(tasks[content].video), problem="the decoder crashes on it")
                store.put(content, {"source": result.source, "frames": result.frames, "problem": result.problem})
                bar.update()
        rows = [store.get(content) or {} for content in contents]
    return _lists(clips, contents, rows, frames)


def content_paths(clips: Clips) -> list[str]:
    """``fake/<generator>/<video>`` and ``real/<source>/<video>`` of every clip, as the official lists name them, all different."""
    facts = zip(clips.id.tolist(), clips.label.tolist(), clips.generator.tolist(), clips.split.tolist())
    paths = [_content_path(PurePosixPath(name), label, generator, split) for name, label, generator, split in facts]
    copies = Counter(path.lower() for path in paths)  # some file systems tell no cases apart
    return [p if copies[p.lower()] == 1 else f"{p}_{fold_key(name) >> 96:08x}" for p, name in zip(paths, clips.id.tolist())]


def _content_path(path: PurePosixPath, label: int, generator: str, split: str) -> str:
    verdict, folders = (label, generator, split), path.parts[:-1]
    deciding = next((i for i in range(1, len(folders) + 1) if classify(PurePosixPath(*folders[:i], "clip")) == verdict), len(folders))
    name = path.stem
    while is_video(name):  # a.mp4.mp4: a folder called a.mp4 would be taken for a video
        name = "_".join(name.rsplit(".", 1))
    if label == 1:
        return str(PurePosixPath("fake", generator, *folders[deciding:], name))
    decided = folders[deciding - 1]
    source = [] if decided.lower() == "real" else [decided]  # "youku" decides how a clip is cropped
    if split == "test" and not source and not any(REAL_FOLDER.fullmatch(folder) for folder in folders[deciding:]):
        source = ["MSRVTT"] if any(f.lower() in TEST_FOLDERS for f in folders) else []  # what GenVideo-Val/Real holds (paper)
    return str(PurePosixPath("real", *source, *folders[deciding:], name))


def _extracted_before(row: dict[str, Any] | None, task: _Task) -> bool:
    if row is None or tuple(row["source"]) != source_state(task.video):
        return False
    return bool(row["problem"]) or all((task.folder / f"{k}.jpg").is_file() for k in (1, row["frames"]))


def _extract(task: _Task) -> _Extracted:
    source = source_state(task.video)
    beside = task.folder.with_name(f".{fold_key(task.folder.name) >> 64:016x}.part")
    try:
        shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
        pictures, _ = extract(task.video)
        beside.mkdir(parents=True)
        count = 0
        for count, frame in enumerate(pictures, 1):
            (beside / f"{count}.jpg").write_bytes(to_jpeg(frame, QUALITY))
        if task.folder.is_dir():
            shutil.rmtree(task.folder)
        beside.rename(task.folder)
        return _Extracted(source, count)
    except UnreadableVideo as error:
        return _Extracted(source, problem=error.reason)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _lists(clips: Clips, contents: Sequence[str], rows: Sequence[dict[str, Any]], frames: Path) -> PrepareReport:
    report = PrepareReport()
    listed: dict[str, list[list[Any]]] = {split: [] for split in LISTS}
    counts: dict[tuple[str, int, str], list[int]] = {}
    facts = zip(clips.id.tolist(), clips.label.tolist(), clips.generator.tolist(), clips.split.tolist(), contents, rows)
    for name, label, generator, split, content, row in facts:
        count = counts.setdefault((split, label, generator), [0, 0, 0])
        count[0] += 1
        if row["problem"]:
            count[2] += 1
            report.failed[name] = row["problem"]
            continue
        count[1] += row["frames"]
        numbers = list(range(1, row["frames"] + 1))
        listed[split].append([content, f"{content}/1.jpg", TYPE_IDS[label], label, row["frames"], str(numbers)])
    for split, lines in listed.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([CSV_COLUMNS, *lines])
        if lines:
            write_bytes(frames / LISTS[split], text.getvalue().encode())
    for (split, _, generator), (total, extracted, unreadable) in sorted(counts.items(), key=lambda item: (item[0][0] != "train", item[0])):
        row = {"split": split, "generator": generator, "clips": total, "frames": extracted, "unreadable": unreadable}
        report.rows.append(row)
    return report
