"""Action recognition on Kinetics-400/600, UCF101, HMDB51 and Something-Something v2, in four protocols (ViFi-CLIP; MSTA, arXiv 2411.11223).

A *set* is a list of clips of some classes: ``train`` and ``val``, and what is tested: ``test``; ``base`` and ``novel`` classes; or sets of
other datasets, ``ucf101/1`` being the first official split.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader

from datamodules.action_clips import ActionClips, Clips, ViewSettings, collate
from datamodules.action_descriptions import find_descriptions, read_descriptions
from datamodules.action_index import EXPECTED, Files, items, preview
from datamodules.action_protocols import NAMES, ActionDataset, ActionProtocol, ActionSet, Lists
from datamodules.action_transforms import ActionAugment
from datamodules.checks import Item
from datamodules.fewshot_texts import read_names
from datamodules.listfiles import some
from datamodules.loading import SplitData
from datamodules.sampling import EvalSampler, TrainLoader, TrainSampler
from datamodules.tinyworld import DATASETS as TINY
from datamodules.tinyworld import tiny_root
from datamodules.user_files import user_files
from datamodules.video import Decoder, is_video
from genlab.errors import MissingPath, UserError
from genlab.files import file_size, fingerprint, write_bytes
from genlab.nearest import did_you_mean

log = logging.getLogger(__name__)

LEFT_AND_RIGHT = ("ssv2",)  # a mirror image is another class
AGAINST_TRAIN = ("test", "base")


class ActionVideo(SplitData):
    """One of the datasets as distributed, with the lists of the ViFi-CLIP repository where they are there.

    Args:
        root: Folder of the videos (or an uncompressed tar archive), or of several datasets under their names; ``tiny`` writes procedural
            ones in the same layouts on first use.
        dataset: Which; ``custom`` for a folder per class.
        protocol: ``base_to_novel``: trained on the base half of the classes, tested on both halves; ``few_shot``; ``zero_shot``: trained on
            all clips, tested on ``targets``; ``supervised``.
        split: Number of the published draw of few clips (base-to-novel: 1, 2, 3), and where there is none, its seed.
        official_split: Of UCF101 and HMDB51, for training and test.
        shots: Training clips per class. Paper: 16 base-to-novel; 2, 4, 8, 16 few-shot.
        targets: Datasets of ``zero_shot``. Paper: ucf101, hmdb51, kinetics600, each over three official splits.
        lists: Folder of lists, label files, annotations and descriptions, where it is another one than ``root``.
        descriptions: Folder of ``{N}_{s|t}_description_*.json``, left out the folder of lists; or two files, spatial and temporal.
        description_number: N. Paper: 2.
        num_frames: T. Paper: 8.
        image_size: Pixels per side. Paper: 224.
        eval_clips: Views of a tested clip in time. Authors' logs: Kinetics 4, HMDB51 10, UCF101 5, SSv2 2.
        eval_crops: Views in space, 1 or 3. Authors' logs: 3.
        random_views: Draw the frames of several views, as the code that the authors built upon does; else they are evenly spaced.
        val_views: Whether validation has all of these views too; else one.
        augment: Crops and colours in training, as ViFi-CLIP, others, or ``false`` for none.
        flip: Probability of mirror images in training; left out, 0.5, and 0 for SSv2, whose classes tell left from right.
        batch_size: Clips per device. Paper: 32 in all.
        eval_batch_size: Clips per device in evaluation.
        num_workers: Decoding processes per device.
        decoder: ``auto`` (decord, then PyAV), ``decord`` or ``pyav``.
        seed: Keys order, frames and augmentation.
        class_names: For ``predict``: names of one's own classes, or one file with a name per line; else those of the training set.
        predict_paths: Videos, and folders of videos, for ``predict``; the command line's positional arguments.
    """

    def __init__(
        self,
        root: str,
        dataset: ActionDataset | Literal["custom"] = "kinetics400",
        protocol: ActionProtocol = "base_to_novel",
        split: int = 1,
        official_split: int = 1,
        shots: int = 16,
        targets: list[ActionDataset] | None = None,
        lists: str | None = None,
        descriptions: str | list[str] | None = None,
        description_number: int = 2,
        num_frames: int = 8,
        image_size: int = 224,
        eval_clips: int = 1,
        eval_crops: Literal[1, 3] = 1,
        random_views: bool = False,
        val_views: bool = False,
        augment: bool | ActionAugment = True,
        flip: float | None = None,
        batch_size: int = 4,
        eval_batch_size: int = 4,
        num_workers: int = 8,
        decoder: Decoder = "auto",
        seed: int = 2048,
        class_names: list[str] | None = None,
        predict_paths: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        sizes = {"split": split, "shots": shots, "num_frames": num_frames, "eval_clips": eval_clips, "batch_size": batch_size}
        for name, value in (sizes | {"eval_batch_size": eval_batch_size, "official_split": official_split}).items():
            if value < 1:
                raise UserError(f"data.{name}: {value} is too small; use 1 or more.")
        for key, each in [("dataset", dataset), *(("targets", name) for name in targets or [])]:
            if each not in NAMES and not (key == "dataset" and each == "custom"):
                raise UserError(
                    f"data.{key}: no dataset is called {each!r}{did_you_mean(each, NAMES) or '.'} There are {', '.join(NAMES)}, custom."
                )
        if eval_crops not in (1, 3):
            raise UserError(f"data.eval_crops: {eval_crops} is neither 1 nor 3.")
        if flip is not None and not 0 <= flip <= 1:
            raise UserError(f"data.flip: {flip} is no probability.")
        if targets and protocol != "zero_shot":
            raise UserError(f"data.targets: only the protocol zero_shot tests on other datasets; it is {protocol}.")
        self.augmentation = ActionAugment() if augment is True else augment or None
        self.collate = collate
        self.sets: dict[str, ActionSet] = {}
        self.clips: dict[str, Clips] = {}

    # What there is

    @property
    def root(self) -> Path:
        """Folder of the dataset."""
        return self.root_of(self.hparams.dataset)

    def root_of(self, dataset: str) -> Path:
        """Where a dataset is looked for; a tiny one is written on first use."""
        root = str(self.hparams.root)
        if root.startswith("tiny") and not Path(root).exists():
            if root.startswith("tiny:") and root != f"tiny:{dataset}":
                raise UserError(f"data.root: {root} is another dataset than {dataset}; write --data.root tiny for any of them.")
            if dataset not in TINY:
                raise UserError(f"data.root: there is no tiny {dataset}.")
            return tiny_root(f"tiny:{dataset}")
        below = Path(root) / dataset
        return below if below.is_dir() else Path(root)

    def lists_of(self, dataset: str) -> Lists:
        """Lists and annotations of a dataset."""
        folder = Path(self.hparams.lists) if self.hparams.lists else self.root_of(dataset)
        if self.hparams.lists and not folder.is_dir():
            raise MissingPath(f"data.lists: {folder} is not a folder.")
        known = dataset if dataset in NAMES else "kinetics400"
        return Lists(known, self.root_of(dataset), folder)

    @property
    def data_name(self) -> str:
        """Names the folder of an evaluation: ``test-ucf101-base_to_novel``."""
        return f"{self.hparams.dataset}-{self.hparams.protocol}"

    @property
    def fingerprint(self) -> dict[str, str]:
        """Hash of the paths and sizes of each set."""
        return {
            name: fingerprint((each, file_size(own.root / each)) for each in own.ids.tolist())
            for name, own in self.clips.items()
            if name != "predict"
        }

    @property
    def protocol(self) -> dict[str, Any]:
        """What must agree for two results to be comparable."""
        h = self.hparams
        names = (
            "dataset", "protocol", "split", "official_split", "shots", "num_frames", "image_size", "eval_clips", "eval_crops",
            "random_views",
        )  # fmt: skip
        counts = {f"n_{name}": len(own) for name, own in self.clips.items()}
        missing = {f"missing_{name}": len(own.missing) for name, own in self.clips.items() if own.missing}
        drawn = {"clips": "drawn here"} if self.sets.get("train") is not None and self.sets["train"].drawn else {}
        return {name: h[name] for name in names} | counts | missing | drawn | {"leaks": self._leaks(), "tiny_world": self._tiny}

    @property
    def _tiny(self) -> bool:
        return str(self.hparams.root).startswith("tiny") and "predict" not in self.clips

    def _leaks(self) -> list[str]:
        """Tested clips that were trained on."""
        if "train" not in self.clips:
            return []
        trained = set(self.clips["train"].ids.tolist())
        both = {name: len(trained & set(own.ids.tolist())) for name, own in self.clips.items() if name in AGAINST_TRAIN}
        return [f"{count} clips of {name} are training clips" for name, count in both.items() if count]

    # Sets

    def prepare_data(self) -> None:
        """Writes the tiny datasets, if that is what the root names (rank zero)."""
        if self.hparams.class_names is None:
            for dataset in {self.hparams.dataset, *self.targets()}:
                self.root_of(dataset)

    def targets(self) -> list[str]:
        """Datasets that are tested on, where they are others than the one trained on."""
        h = self.hparams
        return list(h.targets or ["ucf101", "hmdb51", "kinetics600"]) if h.protocol == "zero_shot" else []

    def setup(self, stage: str) -> None:
        """Reads the lists and finds the clips. Missing ones are reported and left out.

        Raises:
            UserError: Lists or label files are missing or wrong, or nothing that they name is there.
        """
        if stage == "predict" and "predict" not in self.clips:
            self.clips["predict"] = self._user_clips()
        if self.hparams.class_names is not None:
            return
        found = {} if "train" in self.sets else self._sets()
        if stage == "test":  # a fit needs none of the datasets that are tested on alone
            found |= {name: own for name, own in self._targets().items() if name not in self.sets}
        self.sets |= found
        files: dict[Path, Files] = {}
        for name, own in found.items():
            root = self.root_of(own.dataset if self.hparams.dataset != "custom" else "custom")
            if root not in files:
                files[root] = Files(root)
            self.clips[name] = _found(own, root, files[root], name)
            log.info("%s: %d clips of %d classes", name, len(self.clips[name]), len(own.names))
        for leak in self._leaks():
            log.warning("data: %s.", leak)

    def _sets(self) -> dict[str, ActionSet]:
        h = self.hparams
        lists = self.lists_of(h.dataset)
        if h.protocol == "base_to_novel":
            found = lists.base_to_novel(h.shots, h.split)
            found["base"] = _unseen(found["base"], found["train"])
            return {"train": found["train"], "val": found["base"], "base": found["base"], "novel": found["novel"]}
        if h.protocol == "few_shot":
            found = {"train": lists.few_shot(h.shots, h.split, h.official_split), "test": lists.testing(h.official_split)}
        else:
            found = {"train": lists.training(h.official_split), "test": lists.testing(h.official_split)}
        if found["train"].names != found["test"].names:
            raise UserError(
                f"data.lists: training has {len(found['train'].names)} classes, the test {len(found['test'].names)}, or others; the "
                "label file and both lists must belong together."
            )
        found["test"] = _unseen(found["test"], found["train"])
        found["val"] = found.pop("test") if h.protocol == "zero_shot" else found["test"]
        return found

    def _targets(self) -> dict[str, ActionSet]:
        """The official splits of the datasets that are tested on alone."""
        lists = {dataset: self.lists_of(dataset) for dataset in self.targets()}
        return {f"{name}/{split}": own.testing(split) for name, own in lists.items() for split in range(1, NAMES[name].splits + 1)}

    def _user_clips(self) -> Clips:
        found = [str(path) for path in user_files(self.hparams.predict_paths, "videos", "clip.mp4", is_video)]
        return Clips(Path(), np.array(found), np.full(len(found), -1), self._given_names(), [])

    def _given_names(self) -> list[str]:
        given = self.hparams.class_names
        if given is None:
            return []
        if len(given) == 1 and Path(given[0]).is_file():
            given = read_names(Path(given[0]))
        names = [name.strip() for name in given if name.strip()]
        if len(names) < 2:
            raise UserError(f"data.class_names: {len(names)} names; a choice needs two or more: [run, jump], or a file with one a line.")
        return names

    # For the method: genlab.training.video_text.ActionSource

    def eval_sets(self, stage: str) -> list[str]:
        """What ``val`` or ``test`` measures, in the order of the loaders."""
        if stage == "val":
            return ["val"]
        return {"base_to_novel": ["base", "novel"]}.get(self.hparams.protocol) or [
            name for name in self.sets if name not in ("train", "val")
        ]

    def class_names(self, name: str) -> list[str]:
        """Of a set, by label."""
        return self.clips["train" if name == "predict" and not self.clips[name].names else name].names

    def descriptions(self, name: str) -> tuple[list[list[str]], list[list[str]]]:
        """Spatial and temporal sentences for each class of a set."""
        given, number, own = self.hparams.descriptions, self.hparams.description_number, self.sets[name]
        if isinstance(given, list):
            if len(given) != 2:
                raise UserError(f"data.descriptions: {len(given)} files; name two, spatial and temporal, or a folder.")
            return read_descriptions(Path(given[0]), own.names), read_descriptions(Path(given[1]), own.names)
        if given is None and self.hparams.dataset == "custom":
            raise MissingPath(
                "data.descriptions: classes of your own need two files, [spatial.json, temporal.json]: genlab data prepare descriptions "
                "--actions 2 ... makes them. Without: --model.consistency_weight 0."
            )
        folder = Path(given) if given is not None else self.lists_of(self.hparams.dataset).folder
        if not folder.is_dir():
            raise MissingPath(f"data.descriptions: {folder} is not a folder.")
        ending = NAMES[own.dataset].described
        sets: list[tuple[str, Sequence[str]]] = [(ending, own.of)] if own.of else []
        if own.part:
            sets.append((f"{ending}{own.part}", own.names))
        return (find_descriptions(folder, sets, "spatial", number), find_descriptions(folder, sets, "temporal", number))

    # Loaders

    def dataset(self, name: str) -> ActionClips:
        """Samples of a set."""
        h, training = self.hparams, name == "train"
        views = {"clips": h.eval_clips, "crops": h.eval_crops} if name != "val" or h.val_views else {}
        flip = h.flip if h.flip is not None else 0.0 if h.dataset in LEFT_AND_RIGHT else 0.5
        settings = ViewSettings(h.num_frames, h.image_size, **views, random_views=h.random_views, flip=flip, seed=h.seed, decoder=h.decoder)
        return ActionClips(self.clips[name], settings, training, self.augmentation if training else None)

    def train_dataloader(self) -> TrainLoader:
        self._write_drawn_list()
        dataset, h = self.dataset("train"), self.hparams
        sampler = TrainSampler(None, len(dataset), h.seed, *self.ranks())
        if len(sampler) < h.batch_size:
            raise UserError(
                f"data.batch_size: {h.batch_size} is more than the {len(sampler)} training clips that there are for each device."
            )
        return TrainLoader(dataset, sampler, h.batch_size, **self.loading())

    def _write_drawn_list(self) -> None:
        """Clips that were drawn here, as a list beside the run: ``--data.lists`` can read it again."""
        if self.trainer is None or not self.sets["train"].drawn or not self.trainer.is_global_zero:
            return
        own = self.clips["train"]
        text = "".join(f"{name} {label}\n" for name, label in zip(own.ids.tolist(), own.labels.tolist()))
        write_bytes(Path(self.trainer.default_root_dir) / "train_list.txt", text.encode())

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader("val")

    def test_dataloader(self) -> list[DataLoader[Any]]:
        return [self._loader(name) for name in self.eval_sets("test")]

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader("predict")

    def _loader(self, name: str) -> DataLoader[Any]:
        dataset = self.dataset(name)
        sampler = EvalSampler(len(dataset), *self.ranks())
        return DataLoader(dataset, batch_size=self.hparams.eval_batch_size, sampler=sampler, generator=torch.Generator(), **self.loading())

    # For ``data check`` and ``data show``

    def items(self) -> list[Item]:
        """Every clip that is listed, there or not."""
        return items(self.root, self.hparams.dataset if self.hparams.dataset in EXPECTED else "kinetics400")

    def preview(self, item: Item) -> list[np.ndarray]:
        """Four frames of a clip, none if it cannot be read."""
        return preview(item)


def _unseen(tested: ActionSet, trained: ActionSet) -> ActionSet:
    """Where folders have no split of their own, what was drawn for training is not tested.

    Raises:
        UserError: Nothing is left.
    """
    files = {clip.file for clip in trained.clips}
    both = sum(clip.file in files for clip in tested.clips)
    if not both or not (trained.drawn or both == len(tested.clips)):
        return tested  # a leak of published lists is reported, not mended
    left = [clip for clip in tested.clips if clip.file not in files]
    if not left:
        raise UserError(
            "data.root: all clips are training clips, none is left to test on. Make folders train/ and val/ of class folders, or draw few: "
            "--data.protocol few_shot --data.shots 4."
        )
    return replace(tested, clips=left)


def _found(own: ActionSet, root: Path, files: Files, name: str) -> Clips:
    """Those of a set's clips that are there."""
    ids, labels, missing = list[str](), list[int](), list[str]()
    for clip in own.clips:
        place = files.find(clip.file)
        if place is None:
            missing.append(clip.file)
        else:
            ids.append(place)
            labels.append(clip.label)
    if not ids:
        raise UserError(f"data.root: of the {len(own.clips)} clips listed for {name!r} none is in {root}, such as {some(missing)}.")
    if missing:
        log.warning("%s: %d of %d listed clips are not there and left out: %s.", name, len(missing), len(own.clips), some(missing))
    return Clips(root, np.array(ids, np.str_), np.array(labels, np.int64), own.names, missing)
