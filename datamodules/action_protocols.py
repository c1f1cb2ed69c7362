"""Which clips and classes are trained on and tested on: base-to-novel, few-shot, zero-shot and fully supervised (ViFi-CLIP, MSTA).

Video lists and label files of the ViFi-CLIP repository are taken where they lie below the folder of lists. Without them, the owners'
annotations or class folders give the same protocols: few clips are drawn by a generator per class, and base classes are the half with more
clips (of equally frequent ones the last by name), as those lists were made.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datamodules.action_index import Annotations, Listed, annotations_of, published, read_labels, read_video_list
from genlab.errors import MissingPath, UserError
from genlab.training.randomness import keyed_rng

log = logging.getLogger(__name__)

ActionProtocol = Literal["base_to_novel", "few_shot", "zero_shot", "supervised"]
ActionDataset = Literal["kinetics400", "kinetics600", "ucf101", "hmdb51", "ssv2"]


@dataclass(frozen=True)
class Names:
    """What the files of a dataset are called in the ViFi-CLIP and ETL4Video repositories.

    Args:
        folder: Of the dataset, where several lie together.
        lists: ``<lists>_splits/``.
        labels: ``<labels>_labels.csv``.
        halves: ``<halves>_base_labels.csv`` and ``_novel_``.
        described: Ending of the description files.
        splits: Official splits, or label sets, that a test is averaged over.
    """

    folder: str
    lists: str
    labels: str
    halves: str
    described: str
    splits: int = 1


NAMES: dict[str, Names] = {
    "kinetics400": Names("kinetics400", "k400", "kinetics_400", "kinetics_400", "k400"),
    "kinetics600": Names("kinetics600", "k600", "kinetics_600", "kinetics_600", "k600", 3),
    "ucf101": Names("ucf101", "ucf", "ucf_101", "ucf_101", "ucf_101", 3),
    "hmdb51": Names("hmdb51", "hmdb", "hmdb_51", "hmdb_51", "hmdb", 3),
    "ssv2": Names("ssv2", "ssv2", "ssv2", "ssv2_174", "ssv2"),
}


@dataclass(frozen=True)
class ActionSet:
    """Clips of some classes.

    Args:
        dataset: Which they are from.
        clips: As listed.
        names: Of the classes, by label.
        of: All classes of the dataset that they are some of, by id; empty where that is not known.
        part: ``""``, ``_base`` or ``_novel``: how files of descriptions of these classes end.
        drawn: Whether the clips were drawn here rather than listed.
    """

    dataset: str
    clips: list[Listed]
    names: list[str]
    of: list[str]
    part: str = ""
    drawn: bool = False


class Lists:
    """What is known of a dataset.

    Args:
        dataset: Name.
        root: Folder of its videos, or a tar archive of them.
        folder: Of lists, label files and annotations; usually the same.
    """

    def __init__(self, dataset: str, root: Path, folder: Path) -> None:
        self.dataset, self.root, self.folder, self.called = dataset, root, folder, NAMES[dataset]

    def file(self, name: str, *below: str) -> Path | None:
        """The file of this name anywhere in the folder of lists, below folders of these names."""
        found = (
            sorted(path for path in self.folder.rglob(name) if all(part in path.parts for part in below)) if self.folder.is_dir() else []
        )
        return found[0] if found else None

    def labels(self) -> list[str] | None:
        """All class names by id, of the label file."""
        path = self.file(f"{self.called.labels}_labels.csv")
        return read_labels(path) if path is not None else None

    def annotations(self, split: int) -> Annotations:
        """All clips: the owners' annotations, else class folders.

        Raises:
            MissingPath: There are none.
        """
        found = published(self.folder, self.dataset, split) if self.folder.is_dir() else None
        found = found or annotations_of(self.root, self.dataset)
        if found is None:
            raise MissingPath(
                f"data.root: {self.root} has neither lists ({self.called.lists}_splits/, labels/), nor annotations, nor a folder per class "
                f"of {self.dataset}. Unpack them there, or name their folder with --data.lists."
            )
        return found

    # Protocols

    def training(self, split: int) -> ActionSet:
        """All training clips."""
        names, path = self.labels(), self.file("train.txt", f"{self.called.lists}_splits")
        if names is not None and path is not None:
            return ActionSet(self.dataset, read_video_list(path, names), names, names)
        known = self.annotations(split)
        clips = _part(known, ("train", "all"))
        return ActionSet(self.dataset, clips, known.names, names or known.names)

    def testing(self, split: int) -> ActionSet:
        """The test clips of an official split: ``val<split>.txt``, ``validation.txt``, ``val.txt``, or the owners' annotations."""
        names = self.labels()
        if self.dataset == "kinetics600" and (subset := self.file(f"ZS_split{split}_K600.csv")) is not None:
            names = read_labels(subset)
        choices = [f"val{split}.txt", f"k600_zs_split{split}.txt", *(["validation.txt", "val.txt"] if split == 1 else [])]
        path = next((found for name in choices if (found := self.file(name, f"{self.called.lists}_splits"))), None)
        if names is not None and path is not None:
            return ActionSet(self.dataset, read_video_list(path, names), names, self.labels() or names)
        known = self.annotations(split)
        return ActionSet(self.dataset, _part(known, ("test", "val", "validation", "all")), known.names, names or known.names)

    def few_shot(self, shots: int, seed: int, split: int) -> ActionSet:
        """``shots`` clips of each class: a published draw, else one of our own."""
        names, path = self.labels(), self.file(f"train1_few_shot_{shots}.txt", f"{self.called.lists}_splits")
        if names is not None and path is not None:
            return ActionSet(self.dataset, read_video_list(path, names), names, names)
        whole = self.training(split)
        return ActionSet(self.dataset, draw(whole.clips, whole.names, shots, seed), whole.names, whole.of, drawn=True)

    def base_to_novel(self, shots: int, number: int) -> dict[str, ActionSet]:
        """``train``, ``base`` and ``novel``; labels count from 0 within base and within novel classes.

        Args:
            number: Which of the three published draws; without them the seed of our own.
        """
        halves = {part: self.file(f"{self.called.halves}_{part}_labels.csv") for part in ("base", "novel")}
        files = {
            "train": self.file(f"fs_base_s{number}_train.txt", f"{self.called.lists}_splits"),
            "base": self.file("base_val.txt", f"{self.called.lists}_splits"),
            "novel": self.file("novel_val.txt", f"{self.called.lists}_splits"),
        }
        if halves["base"] is not None and halves["novel"] is not None and all(files.values()):
            names = {part: read_labels(path) for part, path in halves.items() if path is not None}
            names["train"] = names["base"]
            every = self.labels() or []
            return {
                part: ActionSet(
                    self.dataset, read_video_list(path, names[part]), names[part], every, "_novel" if part == "novel" else "_base"
                )
                for part, path in files.items()
                if path is not None
            }
        return self._halved(shots, number)

    def _halved(self, shots: int, seed: int) -> dict[str, ActionSet]:
        whole, tested = self.training(1), self.testing(1)
        counts = Counter(clip.label for clip in whole.clips)
        order = sorted(range(len(whole.names)), key=lambda label: (counts[label], whole.names[label]), reverse=True)
        base = sorted(order[: (len(order) + 1) // 2])
        novel = [label for label in range(len(whole.names)) if label not in base]
        few = draw(whole.clips, whole.names, shots, seed)
        parts = {"train": (few, base, "_base"), "base": (tested.clips, base, "_base"), "novel": (tested.clips, novel, "_novel")}
        return {
            name: ActionSet(
                self.dataset,
                [Listed(clip.file, labels.index(clip.label)) for clip in clips if clip.label in labels],
                [whole.names[label] for label in labels],
                whole.of,
                part,
                drawn=True,
            )
            for name, (clips, labels, part) in parts.items()
        }


def draw(clips: Sequence[Listed], names: Sequence[str], shots: int, seed: int) -> list[Listed]:
    """``shots`` clips of each class, or all where it has fewer; a generator per class, so that other classes change nothing."""
    chosen: list[Listed] = []
    few: list[str] = []
    for label, name in enumerate(names):
        own = sorted((clip for clip in clips if clip.label == label), key=lambda clip: clip.file)
        if len(own) < shots:
            few.append(f"{name} ({len(own)})")
        chosen += [own[i] for i in sorted(keyed_rng(seed, "few shot", name).permutation(len(own))[:shots].tolist())]
    if few:
        log.warning("data.shots: fewer than %d training clips of %s; all of them are used.", shots, ", ".join(few[:5]))
    return chosen


def _part(known: Annotations, choices: Sequence[str]) -> list[Listed]:
    for name in choices:
        if labelled := [clip for clip in known.splits.get(name, []) if clip.label >= 0]:
            return labelled
    raise UserError(f"data.root: the annotations have {', '.join(known.splits) or 'nothing'}, but nothing for {choices[0]}.")
