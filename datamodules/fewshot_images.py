"""Few-shot classification on the eleven datasets of CoOp (Zhou et al., IJCV 2022): few pictures of each class, and its name.

A *set* is a list of pictures of some classes: ``train`` and ``val``, and what is tested: ``test``; ``base`` and ``new`` classes; or, on
other datasets than the one trained on, one named after each.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datamodules.checks import CheckReport, Item, check_all, check_sample, checks_folder
from datamodules.fewshot_index import PLACES, FewShotLists, read_lists, read_sentences, spoken
from datamodules.fewshot_index import items as listed_items
from datamodules.fewshot_index import preview as listed_preview
from datamodules.fewshot_pictures import FewShotDataset, PictureSet, centre, collate, picture_set
from datamodules.fewshot_sampling import Sampler, draws, halves
from datamodules.fewshot_texts import ENSEMBLES, TEMPLATES, read_names, sentences_of
from datamodules.image_facts import read_facts
from datamodules.images import is_picture, open_picture
from datamodules.loading import SplitData
from datamodules.sampling import Draw, EvalSampler, TrainLoader, TrainSampler
from datamodules.tinyworld import DATASETS as TINY
from datamodules.tinyworld import tiny_root
from datamodules.transforms import CLIP_MEAN, CLIP_STD, normalise
from datamodules.user_files import user_files
from genlab.batches import ClassTexts, FewShotBatch
from genlab.errors import UserError
from genlab.files import file_size, fingerprint
from genlab.nearest import did_you_mean
from genlab.training.randomness import keyed_rng

log = logging.getLogger(__name__)

Protocol = Literal["few_shot", "base_to_new", "cross_dataset"]


class FewShotImages(SplitData):
    """One of CoOp's datasets, read as distributed, with few training pictures.

    Args:
        root: Folder of the datasets under CoOp's names, or of the one; ``tiny`` writes procedural ones in the same layouts on first use.
        dataset: Which.
        shots: Training pictures per class.
        protocol: ``few_shot``: all classes; ``base_to_new``: trained on the first half of the classes, tested on both halves;
            ``cross_dataset``: tested on ``targets``.
        targets: Datasets to test on; left out, the ten others.
        sampler: ``coop``: a class with fewer pictures gives all of them; ``cpr``: they are drawn with replacement (Tip-Adapter, CPR).
        val: ``few``: min(shots, 4) validation pictures per class; ``all``; or ``test``: choose by the test pictures, as the official code
            of CPR, Tip-Adapter-F and CLIP-Adapter does. ImageNet has no validation pictures; ``few`` holds out training pictures there.
        descriptions: ``cupl``: the sentences that come with the dataset (``gpt3_prompts/``); a JSON file of the same form; or ``null``,
            templates alone.
        views: Augmented views of each training picture whose features are kept; epoch e sees view e modulo this. ``null``: every epoch has
            views of its own, and the image tower runs in every step.
        crop_scale: Area of the random crops. CPR and Tip-Adapter: from 0.5; CoOp: from 0.08.
        image_size: Pixels per side that the backbone reads.
        batch_size: Pictures per device; no more than there are.
        eval_batch_size: Pictures per device in evaluation.
        num_workers: Processes that read pictures.
        seed: Keys which pictures are drawn, their order and crops.
        class_names: For ``predict`` on classes of one's own: their names, or one file with a name per line.
        predict_paths: Pictures, and folders of pictures, for ``predict``; the command line's positional arguments.
    """

    def __init__(
        self,
        root: str,
        dataset: str,
        shots: int = 16,
        protocol: Protocol = "few_shot",
        targets: list[str] | None = None,
        sampler: Sampler = "coop",
        val: Literal["few", "all", "test"] = "few",
        descriptions: str | None = "cupl",
        views: int | None = 10,
        crop_scale: tuple[float, float] = (0.5, 1.0),
        image_size: int = 224,
        batch_size: int = 1,
        eval_batch_size: int = 64,
        num_workers: int = 8,
        seed: int = 1,
        class_names: list[str] | None = None,
        predict_paths: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        for name, value in (("shots", shots), ("batch_size", batch_size), ("eval_batch_size", eval_batch_size), ("views", views or 1)):
            if value < 1:
                raise UserError(f"data.{name}: {value} is too small; use 1 or more.")
        for key, each in [("dataset", dataset), *(("targets", name) for name in targets or [])]:
            if each not in PLACES:
                raise UserError(
                    f"data.{key}: no dataset is called {each!r}{did_you_mean(each, PLACES) or '.'} There are {', '.join(PLACES)}."
                )
        if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise UserError(f"data.crop_scale: {crop_scale} are shares of the area, ascending, above 0 and up to 1.")
        if targets and protocol != "cross_dataset":
            raise UserError(f"data.targets: only the protocol cross_dataset tests on other datasets; it is {protocol}.")
        if val == "test":
            log.warning("data.val: checkpoints are chosen by the test pictures; such numbers cannot be compared with honest ones.")
        self.collate = collate
        self.sets: dict[str, PictureSet] = {}
        self.datasets: dict[str, FewShotDataset] = {}

    # What there is

    @property
    def root(self) -> Path:
        """Folder of the dataset, or of several."""
        return self.root_of(self.hparams.dataset)

    def root_of(self, dataset: str) -> Path:
        """Where a dataset is looked for; a tiny one is written on first use."""
        root = str(self.hparams.root)
        if root.startswith("tiny:") and root != f"tiny:{dataset}":
            raise UserError(f"data.root: {root} is another dataset than {dataset}; write --data.root tiny for any of them.")
        return tiny_root(f"tiny:{dataset}") if root.startswith("tiny") and dataset in TINY and not Path(root).is_dir() else Path(root)

    @property
    def data_name(self) -> str:
        """Names the folder of an evaluation: ``test-dtd``, ``test-dtd-base_to_new``."""
        h = self.hparams
        return h.dataset if h.protocol == "few_shot" else f"{h.dataset}-{h.protocol}"

    @property
    def fingerprint(self) -> dict[str, str]:
        """Hash of the paths and sizes of each set that is read."""
        return {name: self._fingerprint(name) for name in self.sets if name in self.datasets}

    def _fingerprint(self, name: str) -> str:
        own = self.sets[name]
        return fingerprint((f"{i} {id}", file_size(path)) for i, (id, path) in enumerate(zip(own.ids.tolist(), own.paths.tolist())))

    @property
    def protocol(self) -> dict[str, Any]:
        """What must agree for two results to be comparable, and what leaks labels."""
        h = self.hparams
        names = ("dataset", "shots", "protocol", "sampler", "val", "views", "crop_scale", "image_size", "seed")
        leaks = ["chosen by test pictures"] if h.val == "test" else []
        counts = {f"n_{name}": len(own) for name, own in self.sets.items()}
        described = h.descriptions if h.descriptions in (None, "cupl") else Path(h.descriptions).name
        return {name: h[name] for name in names} | counts | {"descriptions": described, "leaks": leaks, "tiny_world": self._tiny}

    @property
    def _tiny(self) -> bool:
        return str(self.hparams.root).startswith("tiny") and "predict" not in self.sets

    # Sets

    def prepare_data(self) -> None:
        """Writes the tiny datasets, if that is what the root names (rank zero)."""
        if not self._own_classes:
            for dataset in {self.hparams.dataset, *self.targets()}:
                self.root_of(dataset)

    @property
    def _own_classes(self) -> bool:
        return self.hparams.class_names is not None

    def targets(self) -> list[str]:
        """Datasets that are tested on, where they are others than the one trained on."""
        h = self.hparams
        if h.protocol != "cross_dataset":
            return []
        return h.targets or [name for name in PLACES if name != h.dataset]

    def setup(self, stage: str) -> None:
        """Reads the lists and draws the few pictures; ``predict`` with classes of one's own reads no dataset.

        Raises:
            UserError: Lists or pictures are missing or wrong.
        """
        if stage == "predict" and "predict" not in self.sets:
            self.sets["predict"] = self._user_pictures()
        if "train" in self.sets or self._own_classes:
            return
        h = self.hparams
        lists = read_lists(self.root, h.dataset)
        self.sets |= self._drawn(lists)
        for dataset in self.targets():
            other = read_lists(self.root_of(dataset), dataset)
            self.sets[dataset] = picture_set(dataset, other, "test", range(len(other.splits["test"])), range(len(other.names)))
        for name, own in self.sets.items():
            log.info("%s: %d pictures of %d classes", name, len(own), len(own.names))

    def _drawn(self, lists: FewShotLists) -> dict[str, PictureSet]:
        h = self.hparams
        labels = {split: [picture.label for picture in pictures] for split, pictures in lists.splits.items()}
        number = 2 if h.sampler == "cpr" and h.protocol == "base_to_new" else 1  # the official code draws anew for the new classes
        found = draws(labels["train"], labels.get("val"), h.shots, h.seed, h.sampler, number)
        self._warn_of_few(lists, labels["train"])
        chosen = {("train", 0): found[0].train, ("train", 1): found[-1].train}
        val_split, val = ("val", found[0].val)
        if h.val == "test" or (h.val == "all" and "val" not in labels):
            val_split, val = "test", list(range(len(labels["test"])))
        elif h.val == "all":
            val = list(range(len(labels["val"])))
        elif "val" not in labels:
            val_split, val = "train", _held_out(labels["train"], found[0].train, h.shots, h.seed)
        everyone = list(range(len(lists.names)))
        base, new = halves(labels["train"]) if h.protocol == "base_to_new" else (everyone, [])
        make = partial(picture_set, h.dataset, lists)
        sets = {"train": make("train", chosen["train", 0], base), "val": make(val_split, val, base)}
        every_test = range(len(labels["test"]))
        if h.protocol == "base_to_new":
            sets |= {"base": make("test", every_test, base), "new": make("test", every_test, new)}
            sets["new_train"] = make("train", chosen["train", 1], new)
        elif h.protocol == "few_shot":
            sets["test"] = make("test", every_test, everyone)
        return sets

    def _warn_of_few(self, lists: FewShotLists, labels: Sequence[int]) -> None:
        counts = np.bincount(labels, minlength=len(lists.names))
        if few := [f"{lists.names[label]} ({counts[label]})" for label in np.flatnonzero(counts < self.hparams.shots)]:
            how = "all of them are used" if self.hparams.sampler == "coop" else "they are drawn with replacement"
            log.warning("data.shots: fewer than %d training pictures of %s; %s.", self.hparams.shots, ", ".join(few[:5]), how)

    def _user_pictures(self) -> PictureSet:
        """The user's own pictures: files, and folders searched through. Ids are the paths as given."""
        accepted = user_files(self.hparams.predict_paths, "pictures", "cat.jpg", lambda path: is_picture(path.name))
        found = [str(path) for path in accepted]
        names = self._given_names() if self._own_classes else []
        files = np.array(found)
        return PictureSet("", files, files, np.full(len(files), -1), names, list(range(len(names))), len(names))

    def _given_names(self) -> list[str]:
        given = self.hparams.class_names
        if len(given) == 1 and Path(given[0]).is_file():
            given = read_names(Path(given[0]))
        names = [spoken(name.strip()) for name in given if name.strip()]
        if len(names) < 2:
            raise UserError(f"data.class_names: {len(names)} names; a choice needs two or more: [cat, dog], or a file with one a line.")
        return names

    # For the method: genlab.training.few_shot.FewShotSource

    def eval_sets(self, stage: str) -> list[str]:
        """What ``val`` or ``test`` measures, in the order of the loaders."""
        if stage == "val":
            return ["val"]
        h = self.hparams
        return {"few_shot": ["test"], "base_to_new": ["base", "new"], "cross_dataset": self.targets()}[h.protocol]

    def classes(self, name: str) -> ClassTexts:
        """Names and templates of a set's classes."""
        own = self.sets["train" if name == "predict" and not self._own_classes else name]
        template = TEMPLATES.get(own.dataset, TEMPLATES["imagenet"])
        return ClassTexts(own.dataset, own.names, template, ENSEMBLES.get(own.dataset, [template]), own.places, own.of)

    def descriptions(self, name: str) -> list[list[str]]:
        """Sentences for each class of a set; empty lists where templates alone are to be used."""
        own, source = self.sets["train" if name == "predict" and not self._own_classes else name], self.hparams.descriptions
        if source is None:
            return [[] for _ in own.names]
        if source == "cupl" and not own.dataset:
            raise UserError("data.descriptions: CuPL does not know classes of your own; give a JSON file of sentences, or null for none.")
        if source == "cupl":
            return read_sentences(self.root_of(own.dataset), own.dataset, own.names)
        return sentences_of(Path(source), own.names)

    def labels(self, name: str) -> torch.Tensor:
        """(N,) of a set's pictures."""
        return torch.from_numpy(self.sets[name].labels)

    def views(self, name: str) -> int | None:
        """Augmented views that are kept of a set's pictures; ``None`` where there are none."""
        if not name.endswith("train"):
            return None
        return int(self.hparams.views) if self.hparams.views is not None else None

    def dataset(self, name: str) -> FewShotDataset:
        """Samples of a set."""
        if name not in self.datasets:
            crops = self.hparams.crop_scale if name.endswith("train") else None
            self.datasets[name] = FewShotDataset(self.sets[name], self.hparams.image_size, crops, self.hparams.seed)
        return self.datasets[name]

    def _draws(self, name: str) -> list[Draw]:
        return [Draw(i, view) for view in range(self._kept_views(name)) for i in range(len(self.sets[name]))]

    def _kept_views(self, name: str) -> int:
        return (self.views(name) or 10) if name.endswith("train") else 1

    def feature_ids(self, name: str) -> list[str]:
        """Names the pictures of a set, all of the first view first. A picture that was drawn twice comes twice."""
        own = self.sets[name]
        return [f"{own.ids[draw.index]}#{draw.index}.{draw.epoch}" for draw in self._draws(name)]

    def feature_key(self, name: str) -> dict[str, Any]:
        """All that the pixels of a set depend on."""
        h = self.hparams
        key = {"pictures": self._fingerprint(name), "image_size": h.image_size, "transform": "centre"}
        return key | ({"transform": "random crop 1", "seed": h.seed, "crop_scale": list(h.crop_scale)} if name.endswith("train") else {})

    def feature_loader(self, name: str, positions: Sequence[int]) -> DataLoader[Any]:
        """Pixels of what is at these positions of ``feature_ids``."""
        h, every = self.hparams, self._draws(name)
        pixels = FewShotDataset(self.sets[name], h.image_size, h.crop_scale if name.endswith("train") else None, h.seed)
        chosen = [every[i] for i in positions]
        return DataLoader(pixels, h.eval_batch_size, sampler=chosen, generator=torch.Generator(), **self.loading())

    def use_features(self, name: str, features: torch.Tensor, readable: torch.Tensor) -> None:
        """From now on the set's loader reads these."""
        dataset = self.dataset(name)
        dataset.features, dataset.readable = features, readable

    def picture(self, name: str, position: int) -> np.ndarray | None:
        """(H, W, 3) uint8 as the backbone sees it, for looking at; ``None`` where it cannot be read."""
        try:
            picture = open_picture(Path(str(self.sets[name].paths[position])))
        except OSError:
            return None
        return centre(picture, self.hparams.image_size).permute(1, 2, 0).numpy()

    # Loaders

    def train_dataloader(self) -> TrainLoader:
        dataset, h = self.dataset("train"), self.hparams
        sampler = TrainSampler(None, len(dataset), h.seed, *self.ranks())
        size = min(h.batch_size, len(sampler))
        if not size:
            raise UserError(f"data.shots: {len(dataset)} training pictures are too few for {self.ranks()[1]} devices.")
        return TrainLoader(dataset, sampler, size, drop_last=False, **self._options(dataset))

    def val_dataloader(self) -> DataLoader[Any]:
        return self._eval_loader("val")

    def test_dataloader(self) -> list[DataLoader[Any]]:
        return [self._eval_loader(name) for name in self.eval_sets("test")]

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._eval_loader("predict")

    def _eval_loader(self, name: str) -> DataLoader[Any]:
        dataset = self.dataset(name)
        if not len(dataset):
            raise UserError(f"data.root: the lists of {self.sets[name].dataset} have no pictures for {name!r}.")
        sampler = EvalSampler(len(dataset), *self.ranks())
        options = self._options(dataset) if name == "predict" else self.loading() | {"num_workers": 0}  # features by then
        return DataLoader(dataset, batch_size=self.hparams.eval_batch_size, sampler=sampler, generator=torch.Generator(), **options)

    def _options(self, dataset: FewShotDataset) -> dict[str, Any]:
        """Of loaders: features are slices of a mapped file, not worth a process."""
        return self.loading() | ({"num_workers": 0} if dataset.features is not None else {})

    def on_after_batch_transfer(self, batch: FewShotBatch, dataloader_idx: int) -> FewShotBatch:
        """uint8 -> normalised float32 on the device."""
        if "image" in batch:
            batch["image"] = normalise(batch["image"], CLIP_MEAN, CLIP_STD)
        return batch

    # For ``data check`` and ``data show``

    def items(self) -> list[Item]:
        """Every picture that is listed, there or not."""
        return listed_items(self.root, self.hparams.dataset)

    def preview(self, item: Item) -> list[Image.Image]:
        """The picture of an item, none if it cannot be read."""
        return listed_preview(item)

    def check(self, level: Literal["quick", "full"], workers: int | None = None) -> CheckReport:
        """Looks the dataset through: ``quick``, the lists and a sample of the pictures; ``full``, every picture, and copies.

        Args:
            level: Which.
            workers: Processes of a full check; ``None`` is one per core.
        """
        lists, items = read_lists(self.root, self.hparams.dataset), self.items()
        names = dict(enumerate(spoken(name) for name in lists.names))
        if level == "quick":
            return check_sample(items, read_facts, names)
        report = check_all(items, read_facts, names, checks_folder() / f"{self.hparams.dataset}.sqlite", workers)
        try:
            read_sentences(self.root, self.hparams.dataset, lists.names)
        except UserError as error:
            report.warnings.append(str(error))
        return report


def _held_out(labels: Sequence[int], taken: Sequence[int], shots: int, seed: int) -> list[int]:
    """Validation pictures for a dataset without: of each class, training pictures that were not drawn."""
    free = np.setdiff1d(np.arange(len(labels)), taken)
    rng = keyed_rng(seed, "held-out validation")
    of_free = np.asarray(labels)[free]
    chosen = [rng.permutation(free[of_free == label])[: min(shots, 4)] for label in np.unique(of_free)]
    return [int(i) for own in chosen for i in own]
