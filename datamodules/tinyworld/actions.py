"""Writes the action recognition benchmarks in style B: ``kinetics400``, ``ucf101``, ``hmdb51`` and ``ssv2``, as they are distributed.

Each folder holds the videos, the annotations as their owners publish them, and what few-shot and base-to-novel protocols add to them
(ViFi-CLIP, Rasheed et al., CVPR 2023; ETL4Video, Chen et al., CVPR 2025): ``labels/*.csv``, ``datasets_splits/**/*.txt`` and
``description/*.json``. Classes are actions of acting.py under names such as these datasets have them; objects, backgrounds, cameras and
speeds are others than in the style A that tiny models are pretrained on.
"""

from __future__ import annotations

import csv
import io
import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.tinyworld.acting import acting_clip
from datamodules.tinyworld.action_texts import descriptions
from datamodules.tinyworld.encoding import encode_video
from datamodules.tinyworld.scene import random_object
from datamodules.tinyworld.video import Clip, film
from datamodules.tinyworld.writing import Job, write_files
from genlab.errors import UserError
from genlab.training.randomness import keyed_rng

FPS = 12
FRAMES = (12, 40)  # of a clip, least and most
COMPANY = 0.35  # share of clips with a second object, which stands still
SHOTS = (2, 4, 8, 16)
KINDS: tuple[Literal["s", "t"], ...] = ("s", "t")  # spatial and temporal descriptions
SEEDS = (1, 2, 3)  # of the base-to-novel lists

KINETICS = {  # action -> name of its class
    "slide_right": "sliding to the right", "slide_left": "sliding to the left", "rise": "rising", "sink": "sinking",
    "spin_cw": "spinning clockwise", "spin_ccw": "spinning counterclockwise", "orbit_cw": "circling clockwise",
    "orbit_ccw": "circling counterclockwise", "approach": "coming closer", "recede": "going away", "speed_up": "speeding up to the right",
    "brake": "braking to the right", "sway": "swaying from side to side", "bounce": "bouncing", "rock": "rocking like a pendulum",
    "pulse": "pulsing",
}  # fmt: skip
UCF = {
    "slide_right": "GoingRight", "slide_left": "GoingLeft", "rise": "MovingUp", "sink": "MovingDown", "spin_cw": "RotatingClockwise",
    "spin_ccw": "RotatingCounterclockwise", "approach": "Growing", "recede": "Shrinking", "sway": "MovingLeftAndRight",
    "bounce": "JumpingUpAndDown", "rock": "TiltingBackAndForth", "pulse": "BreathingInAndOut",
}  # fmt: skip
HMDB = {
    "slide_right": "going_right", "slide_left": "going_left", "rise": "climbing", "sink": "falling", "spin_cw": "turning_clockwise",
    "spin_ccw": "turning_counterclockwise", "approach": "getting_bigger", "recede": "getting_smaller", "bounce": "jumping",
    "sway": "swaying",
}  # fmt: skip
SSV2 = {
    "slide_right": "Moving [something] from left to right", "slide_left": "Moving [something] from right to left",
    "rise": "Moving [something] up", "sink": "Moving [something] down", "spin_cw": "Turning [something] clockwise",
    "spin_ccw": "Turning [something] counterclockwise", "orbit_cw": "Moving [something] in a circle, clockwise",
    "orbit_ccw": "Moving [something] in a circle, counterclockwise", "approach": "Moving [something] closer",
    "recede": "Moving [something] away", "speed_up": "Moving [something] to the right faster and faster",
    "brake": "Moving [something] to the right slower and slower",
}  # fmt: skip


# ---- clips


def action_clip(dataset: str, seed: int, action: str, number: int, scene: int | None = None) -> Clip:
    """Clip ``number`` of an action, with 12 to 40 frames.

    Args:
        scene: Clips of an action that share this number show the same object.
    """
    key = f"{dataset}/{seed}/{action}/{number}"
    rng = keyed_rng("action clip", key)
    cast = None if scene is None else random_object(keyed_rng("action cast", dataset, seed, action, scene))
    frames, objects = int(rng.integers(FRAMES[0], FRAMES[1] + 1)), 2 if rng.random() < COMPANY else 1
    return acting_clip(key, "B", action, frames, FPS, objects, cast)


def action_frames(clip: Clip, width: int = 64) -> NDArray[np.uint8]:
    """The clip as a wide picture, (T, 3/4 width, width, 3) uint8 RGB: what is filmed without its top and bottom."""
    cut = width // 8
    return film(clip, width)[:, cut : width - cut]


def _video(dataset: str, seed: int, action: str, number: int, scene: int | None, width: int, suffix: str) -> bytes:
    return encode_video(action_frames(action_clip(dataset, seed, action, number, scene), width), FPS, suffix)


# ---- lists, labels and descriptions, the same for all four


@dataclass(frozen=True)
class Protocol:
    """What the lists of a dataset are called and made from.

    Args:
        dataset: Its name.
        folder: Of its lists: ``<folder>_splits``.
        labels: CSV of its labels is ``<labels>_labels.csv``; those of base and novel classes are ``<split_labels>_base_labels.csv``.
        split_labels: See there.
        description: Its description files end with this.
        names: Class names in the order of their ids.
        actions: Their actions.
        seed: Of the dataset.
    """

    dataset: str
    folder: str
    labels: str
    split_labels: str
    description: str
    names: tuple[str, ...]
    actions: tuple[str, ...]
    seed: int

    @property
    def base(self) -> tuple[str, ...]:
        """Names of the classes to train on; the others are novel. In the order of their ids."""
        count = (len(self.names) + 1) // 2
        if self.dataset == "hmdb51":  # a balanced dataset: by the alphabet
            return self.names[-count:]
        chosen = keyed_rng("base classes", self.dataset).permutation(len(self.names))[:count]
        return tuple(self.names[i] for i in sorted(chosen.tolist()))

    @property
    def novel(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name not in self.base)


Listed = Sequence[tuple[str, str]]  # what a list names the file, and the class


def _lists(
    p: Protocol, folder: Path, train: Listed, tests: Mapping[str, Listed], full: Mapping[str, Listed], *, few_shot: bool, crlf: str = ""
) -> list[Job]:
    """Video lists: the tests, few-shot draws from ``train``, base-to-novel ones with labels counted anew; and all label CSVs."""
    splits, novel = folder / "datasets_splits" / f"{p.folder}_splits", folder / "datasets_splits/base2novel_splits" / f"{p.folder}_splits"
    test = next(iter(tests.values()))
    files: dict[Path, bytes] = {}
    for name, rows in {**tests, **full}.items():
        files[splits / f"{name}.txt"] = _list(rows, p.names, "\r\n" if name == crlf else "\n")
    for shots in SHOTS if few_shot else ():
        rng = keyed_rng("few shot", p.dataset, p.seed, shots)
        files[splits / f"train1_few_shot_{shots}.txt"] = _list(_draw(train, p.names, shots, rng), p.names)
    for number in SEEDS:
        rng = keyed_rng("base to novel", p.dataset, p.seed, number)
        files[novel / f"fs_base_s{number}_train.txt"] = _list(_draw(train, p.base, SHOTS[-1], rng), p.base)
    files[novel / "base_val.txt"] = _list([row for row in test if row[1] in p.base], p.base)
    files[novel / "novel_val.txt"] = _list([row for row in test if row[1] in p.novel], p.novel)
    labels = {p.labels: p.names, f"{p.split_labels}_base": p.base, f"{p.split_labels}_novel": p.novel}
    for position, (name, names) in enumerate(labels.items()):
        files[folder / "labels" / f"{name}_labels.csv"] = _labels(names, "\r\n" if position == 0 else "\n")
    return [(path, partial(bytes, content)) for path, content in files.items()]


def _draw(rows: Listed, names: Sequence[str], shots: int, rng: np.random.Generator) -> Listed:
    """``shots`` clips of each class, or all that there are."""
    chosen: list[tuple[str, str]] = []
    for name in names:
        there = [row for row in rows if row[1] == name]
        chosen += [there[i] for i in rng.permutation(len(there))[:shots]]
    return chosen


def _list(rows: Listed, names: Sequence[str], end: str = "\n") -> bytes:
    return "".join(f"{file} {names.index(name)}{end}" for file, name in rows).encode()


def _labels(names: Sequence[str], end: str) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator=end).writerows([("id", "name"), *enumerate(names)])
    return text.getvalue().encode()


def _descriptions(p: Protocol, folder: Path) -> list[Job]:
    files: list[Job] = []
    by_name = dict(zip(p.names, p.actions))
    for count in (2, 4, 8):
        for kind in KINDS:
            sets = {p.description: p.names}
            if count == 2:
                sets |= {f"{p.description}_base": p.base, f"{p.description}_novel": p.novel}
            for which, names in sets.items():
                content = {str(i): descriptions(name, by_name[name], kind, count) for i, name in enumerate(names)}
                if (which, kind, count) == ("k400", "s", 8):  # one class of the real file has a single sentence that holds all eight
                    content[str(len(names) // 2)] = [" ".join(content[str(len(names) // 2)])]
                text = json.dumps(content, indent=1).encode()
                files.append((folder / "description" / f"{count}_{kind}_description_{which}.json", partial(bytes, text)))
    return files


def _protocol(dataset: str, names: Mapping[str, str], folder: str, labels: str, split_labels: str, description: str, seed: int) -> Protocol:
    ordered = sorted(names, key=lambda action: names[action])
    return Protocol(dataset, folder, labels, split_labels, description, tuple(names[action] for action in ordered), tuple(ordered), seed)


def _check(dataset: str, seed: int, **sizes: int) -> None:
    for name, value in sizes.items():
        least = 16 if name == "size" else 1
        if value < least or (name == "size" and value % 16):
            raise UserError(f"{dataset}: {name} {value} is wrong; use {'a multiple of 16' if name == 'size' else '1 or more'}.")


# ---- the four datasets


def write_kinetics400(
    folder: Path, *, seed: int = 0, progress: bool = True, train_clips: int = 24, val_clips: int = 10, size: int = 64
) -> None:
    """Kinetics-400 with 16 classes: train/ and val/ of MP4 files, annotation CSVs, lists, labels and descriptions.

    Args:
        train_clips: Per class.
        val_clips: Per class.
        size: Width of the frames in pixels, a multiple of 16; they are 3/4 as high.
    """
    _check("kinetics400", seed, train_clips=train_clips, val_clips=val_clips, size=size)
    p = _protocol("kinetics400", KINETICS, "k400", "kinetics_400", "kinetics_400", "k400", seed)
    jobs: list[Job] = []
    listed: dict[str, list[tuple[str, str]]] = {"train": [], "val": []}
    rows: dict[str, list[tuple[str, ...]]] = {"train": [], "val": []}
    for action, name in zip(p.actions, p.names):
        for number in range(train_clips + val_clips):
            split = "train" if number < train_clips else "val"
            video = _youtube_id(seed, action, number)
            start = int(keyed_rng("start", seed, video).integers(0, 300))
            file = f"{split}/{video}_{start:06d}_{start + 10:06d}.mp4"
            jobs.append((folder / file, partial(_video, "kinetics400", seed, action, number, None, size, ".mp4")))
            listed[split].append((file, name))
            rows[split].append((name, video, str(start), str(start + 10), split, "0"))
    for split, found in rows.items():
        text = io.StringIO()
        gone = (p.names[0], _youtube_id(seed, "gone", len(found)), "7", "17", split, "0")  # videos get removed from YouTube
        header = ("label", "youtube_id", "time_start", "time_end", "split", "is_cc")
        csv.writer(text, lineterminator="\n").writerows([header, *found, gone])
        jobs.append((folder / "annotations" / f"{split}.csv", partial(bytes, text.getvalue().encode())))
    jobs += _lists(p, folder, listed["train"], {"val": listed["val"]}, {"train": listed["train"]}, few_shot=False, crlf="val")
    write_files([*jobs, *_descriptions(p, folder)], "tiny:kinetics400", progress)


def _youtube_id(seed: int, action: str, number: int) -> str:
    letters = list(string.ascii_letters + string.digits + "-_")
    return "".join(keyed_rng("youtube", seed, action, number).choice(letters, 11))


def write_ucf101(folder: Path, *, seed: int = 0, progress: bool = True, groups: int = 16, clips: int = 2, size: int = 64) -> None:
    """UCF101 with 12 classes: a folder of AVI files per class, ucfTrainTestlist/ with three splits, lists, labels and descriptions.

    Args:
        groups: Per class; clips of a group show the same object. A quarter of them is the test set of a split.
        clips: Per group.
        size: Width of the frames in pixels, a multiple of 16; they are 3/4 as high.
    """
    _check("ucf101", seed, groups=groups, clips=clips, size=size)
    if groups < 4:
        raise UserError(f"ucf101: groups {groups} is wrong; use 4 or more, for three test sets and a training set.")
    p = _protocol("ucf101", UCF, "ucf", "ucf_101", "ucf_101", "ucf_101", seed)
    jobs: list[Job] = []
    tests: dict[int, list[tuple[str, str]]] = {1: [], 2: [], 3: []}
    trains: dict[int, list[tuple[str, str]]] = {1: [], 2: [], 3: []}
    for action, name in zip(p.actions, p.names):
        for group in range(groups):
            for clip in range(clips):
                file = f"v_{name}_g{group + 1:02d}_c{clip + 1:02d}.avi"
                make = partial(_video, "ucf101", seed, action, group * clips + clip, group, size, ".avi")
                jobs.append((folder / name / file, make))
                for split in tests:
                    tested = (split - 1) * (groups // 4) <= group < split * (groups // 4)
                    (tests if tested else trains)[split].append((file, name))
    raw = {"classInd.txt": "".join(f"{i} {name}\r\n" for i, name in enumerate(p.names, 1))}
    for split in tests:
        raw[f"trainlist0{split}.txt"] = "".join(f"{name}/{file} {p.names.index(name) + 1}\r\n" for file, name in trains[split])
        raw[f"testlist0{split}.txt"] = "".join(f"{name}/{file}\r\n" for file, name in tests[split])
    jobs += [(folder / "ucfTrainTestlist" / name, partial(bytes, text.encode())) for name, text in raw.items()]
    jobs += _lists(p, folder, trains[1], {f"val{split}": rows for split, rows in tests.items()}, {}, few_shot=True)
    write_files([*jobs, *_descriptions(p, folder)], "tiny:ucf101", progress)


def write_hmdb51(folder: Path, *, seed: int = 0, progress: bool = True, clips: int = 32, size: int = 64) -> None:
    """HMDB51 with 10 classes: a folder of AVI files per class, testTrainMulti_7030_splits/ with three splits, lists, labels, descriptions.

    Args:
        clips: Per class; 70 % for training and 30 % for the test of each split, less one that a split leaves out.
        size: Width of the frames in pixels, a multiple of 16; they are 3/4 as high.
    """
    _check("hmdb51", seed, clips=clips, size=size)
    if clips < 4:
        raise UserError(f"hmdb51: clips {clips} is wrong; use 4 or more, for training, test and one left out.")
    p = _protocol("hmdb51", HMDB, "hmdb", "hmdb_51", "hmdb_51", "hmdb", seed)
    jobs: list[Job] = []
    tests: dict[int, list[tuple[str, str]]] = {1: [], 2: [], 3: []}
    train: list[tuple[str, str]] = []
    for action, name in zip(p.actions, p.names):
        files = [f"{_TITLES[i % len(_TITLES)]}_{name}_f_cm_np1_fr_med_{i}.avi" for i in range(clips)]
        for number, file in enumerate(files):
            jobs.append((folder / name / file, partial(_video, "hmdb51", seed, action, number, None, size, ".avi")))
        for split in tests:
            order = keyed_rng("hmdb51 split", seed, action, split).permutation(clips)
            marks = np.full(clips, 1)
            marks[order[0]] = 0
            marks[order[1 : 1 + max(1, round(0.3 * clips))]] = 2
            text = "".join(f"{file} {mark} \n" for file, mark in zip(files, marks))
            jobs.append((folder / "testTrainMulti_7030_splits" / f"{name}_test_split{split}.txt", partial(bytes, text.encode())))
            tests[split] += [(file, name) for file, mark in zip(files, marks) if mark == 2]
            train += [(file, name) for file, mark in zip(files, marks) if mark == 1 and split == 1]
    jobs += _lists(p, folder, train, {f"val{split}": rows for split, rows in tests.items()}, {}, few_shot=True)
    write_files([*jobs, *_descriptions(p, folder)], "tiny:hmdb51", progress)


_TITLES = ("A_Day_in_the_Studio!", "[Paper]_&_Wood", "Shapes_(Part_1)", "#1_of_the_Tiny_World", "Still_Life")


def write_ssv2(
    folder: Path, *, seed: int = 0, progress: bool = True, train_clips: int = 20, val_clips: int = 10, test_clips: int = 2, size: int = 64
) -> None:
    """Something-Something v2 with 12 classes that only time tells apart: WebM files, JSON annotations, lists, labels and descriptions.

    Args:
        train_clips: Per class.
        val_clips: Per class.
        test_clips: Per class, without a label, as in the real test set.
        size: Width of the frames in pixels, a multiple of 16; they are 3/4 as high.
    """
    _check("ssv2", seed, train_clips=train_clips, val_clips=val_clips, test_clips=test_clips, size=size)
    templates = {action: template.replace("[", "").replace("]", "") for action, template in SSV2.items()}
    p = _protocol("ssv2", templates, "ssv2", "ssv2", "ssv2_174", "ssv2", seed)
    jobs: list[Job] = []
    listed: dict[str, list[tuple[str, str]]] = {"train": [], "validation": []}
    records: dict[str, list[dict[str, object]]] = {"train": [], "validation": [], "test": []}
    per_class = train_clips + val_clips + test_clips
    ids = keyed_rng("ssv2 ids", seed).permutation(len(p.names) * per_class) + 1
    for position, (action, name) in enumerate(zip(p.actions, p.names)):
        for number in range(per_class):
            split = "train" if number < train_clips else "validation" if number < train_clips + val_clips else "test"
            video = str(ids[position * per_class + number])
            jobs.append((folder / f"{video}.webm", partial(_video, "ssv2", seed, action, number, None, size, ".webm")))
            if split == "test":
                records[split].append({"id": video})
                continue
            thing = action_clip("ssv2", seed, action, number).scene.objects[0].words
            label = SSV2[action].replace("[something]", f"a {thing}").lower()
            records[split].append({"id": video, "label": label, "template": SSV2[action], "placeholders": [f"a {thing}"]})
            listed[split].append((f"{video}.webm", name))
    raw: dict[str, object] = {**records, "labels": {name: str(i) for i, name in enumerate(p.names)}}
    jobs += [(folder / "labels" / f"{name}.json", partial(bytes, json.dumps(content).encode())) for name, content in raw.items()]
    jobs += _lists(p, folder, listed["train"], {"validation": listed["validation"]}, {}, few_shot=True)
    write_files([*jobs, *_descriptions(p, folder)], "tiny:ssv2", progress)
