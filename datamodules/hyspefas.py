"""HySpeFAS for spectral face anti-spoofing: the challenge's folders and lists, or the full dataset with a protocol, unchanged.

Channels are the colours (blue, green, red in the official order) and then the spectral bands. Label 1 = live.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.checks import CheckReport, Item, check_all, check_sample, checks_folder
from datamodules.cube_cache import CubeCache
from datamodules.cube_dataset import CubeDataset, collate
from datamodules.hyspefas_checks import overlaps, read_facts
from datamodules.hyspefas_index import (
    KEY,
    LIVE,
    Sample,
    UnreadableCube,
    is_full,
    items,
    load_cube,
    picture_of,
    preview,
    read_challenge,
    read_full,
)
from datamodules.listfiles import some
from datamodules.loading import SplitData
from datamodules.sampling import EvalSampler, RepeatedSampler, TrainLoader
from datamodules.spectral_augment import SpectralAugment
from datamodules.spectral_channels import BANDS, Channels, Colour
from datamodules.tinyworld import tiny_root
from datamodules.user_files import user_files
from genlab.errors import MissingPath, UserError
from genlab.files import file_size, fingerprint

log = logging.getLogger(__name__)

Rebalance = Literal["repeat", "sampler", "loss", "none"]


def repeat_factors(n_live: int, n_print: int, n_mask: int) -> dict[str, int]:
    """How often each group comes in an epoch, so that prints match masks and live faces match attacks (official list: 10 and 10)."""
    prints = max(1, n_mask // n_print) if n_print else 1
    live = max(1, (n_mask + prints * n_print) // n_live) if n_live else 1
    return {"live": live, "print": prints, "mask": 1}


def _group(sample: Sample) -> str:
    """Live, print, or anything else that an attack can be."""
    return "live" if sample.label == LIVE else "print" if sample.type == "print" else "mask"


class HySpeFAS(SplitData):
    """Faces in colour and spectral bands, live or attacks.

    Args:
        root: Folder of the challenge (``HySpeFAS_trainval/``, ``HySpeFAS_test/``) or of the full dataset, or ``tiny:hyspefas``.
        protocol: Of the full dataset: 1, 2 or 3.
        train_list: Another list for training, such as ``train_all_balance.csv``; rows that are repeated count so often.
        train_on_val: Train on the validation pictures too, as the winning team did: validation numbers then mean nothing.
        colour: Colours first, in the official order blue, green, red; ``none`` leaves them out.
        bands: Numbers of the spectral bands from 1, ``[]`` for colours alone; ``null`` takes all.
        image_size: Pixels per side.
        scaling: Of the cubes: ``as_is``, or ``per_sample_max`` as the full dataset's baselines do.
        normalise: ``official`` means and deviations of the channels, or those of the training split (``train``).
        rebalance: ``repeat``: an epoch has prints as often as masks and live faces as often as attacks; ``sampler``: such shares by drawing
            with replacement; ``loss``: by weights in the losses; ``none``.
        augment: Of training pictures; left out, the official one.
        cache: Folder of converted cubes; left out, ``$GENLAB_CACHE/cubes``. ``none`` reads the ``.mat`` files each time.
        predict_paths: ``.mat`` cubes of one's own, each with its ``.png`` beside it or in ``rgb/`` as distributed, or folders of them.
        batch_size: Pictures per device. Paper: 240 in all.
        eval_batch_size: Pictures per device in evaluation.
        num_workers: Loading processes per device.
        seed: Keys order and augmentation.
    """

    def __init__(
        self,
        root: str,
        protocol: int = 1,
        train_list: str | None = None,
        train_on_val: bool = False,
        colour: Colour = "bgr",
        bands: list[int] | None = None,
        image_size: int = 256,
        scaling: Literal["as_is", "per_sample_max"] = "as_is",
        normalise: Literal["official", "train"] = "official",
        rebalance: Rebalance = "repeat",
        augment: SpectralAugment | None = None,
        cache: str | None = None,
        predict_paths: list[str] | None = None,
        batch_size: int = 240,
        eval_batch_size: int = 240,
        num_workers: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        if protocol not in (1, 2, 3):
            raise UserError(f"data.protocol: {protocol} is none of the full dataset's, 1, 2 and 3.")
        for name, value in {"image_size": image_size, "batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if value < 1:
                raise UserError(f"data.{name}: {value} is too small; use 1 or more.")
        self.augment = augment or SpectralAugment()
        self.index: dict[str, list[Sample]] = {}
        self.datasets: dict[str, CubeDataset] = {}
        self.collate = collate
        self.chosen: Channels | None = None
        self.statistics: tuple[Tensor, Tensor] | None = None
        """Means and deviations (C,) that the method normalises pictures by."""

    @property
    def data_name(self) -> str:
        return "hyspefas"

    @property
    def root(self) -> Path:
        """The dataset's folder; a tiny one is written on first use."""
        return tiny_root(self.hparams.root)

    @property
    def channels(self) -> Channels:
        """What a picture consists of; known after ``setup``."""
        assert self.chosen is not None, "setup() has not run"
        return self.chosen

    @property
    def types(self) -> list[str]:
        """Names of the attack types in all splits."""
        return sorted({each.type for found in self.index.values() for each in found if each.label != LIVE and each.type} or {"attack"})

    @property
    def fingerprint(self) -> dict[str, str]:
        """Hash of the names and sizes of each split that is set up."""
        return {name: fingerprint((each.id, file_size(each.cube)) for each in data.samples) for name, data in self.datasets.items()}

    @property
    def protocol(self) -> dict[str, Any]:
        """What must agree for two results to be comparable."""
        h = self.hparams
        names = ("colour", "bands", "image_size", "scaling", "normalise", "rebalance", "train_on_val", "train_list")
        counts = {f"n_{name}": dict(sorted(Counter(each.type for each in data.samples).items())) for name, data in self.datasets.items()}
        overlap = len({each.id for each in self.index.get("train", [])} & {each.id for each in self.index.get("val", [])})
        full = {"protocol": h.protocol} if self.full else {}
        leak = {"validation pictures in training": overlap} if overlap else {}
        return {name: h[name] for name in names} | full | leak | {"tiny_world": h.root.startswith("tiny:")} | counts

    @property
    def full(self) -> bool:
        """Whether it is the full dataset."""
        return is_full(self.root) if Path(self.root).is_dir() else False

    @property
    def cubes(self) -> CubeCache:
        folder = self.hparams.cache
        return CubeCache.default(self.root) if folder is None else CubeCache(None if folder == "none" else Path(folder), self.root)

    def read_index(self) -> dict[str, list[Sample]]:
        """Samples of every split as the lists have them.

        Raises:
            UserError: No lists, or ones that are wrong.
        """
        root = self.root
        if not root.is_dir():
            raise MissingPath(f"data.root: {root} is not a folder. Set it in the YAML or with --data.root.")
        if self.full:
            return read_full(root, self.hparams.protocol)
        found = read_challenge(root)
        if self.hparams.train_list is not None:
            path = Path(self.hparams.train_list)
            path = path if path.is_file() else root / path
            found["train"] = read_challenge(root, {"train": path})["train"]
        return found

    def prepare_data(self) -> None:
        """Writes the tiny dataset if that is what ``root`` names, looks the lists through and converts cubes (rank zero)."""
        if self.trainer is not None and self.trainer.predicting:
            return
        report = self.check("quick")
        if report.errors:
            raise UserError("\n".join(report.errors))
        for line in report.warnings:
            log.warning("data check: %s", line)
        found = self.read_index()
        if self.cubes.folder is None:
            return
        unread = self.cubes.fill([each for samples in found.values() for each in samples])
        if unread:
            named = "; ".join(f"{name} ({why})" for name, why in list(unread.items())[:5])
            log.warning("%d cubes cannot be read: %s", len(unread), named)

    def setup(self, stage: str) -> None:
        """Reads the lists of the stage.

        Raises:
            UserError: A class or a split is missing.
        """
        h = self.hparams
        if stage == "predict":
            self._setup_predict()
            return
        if not self.index:
            self.index = self.read_index()
            if h.train_on_val:
                known = {each.id for each in self.index["train"]}
                self.index["train"] = [*self.index["train"], *(each for each in self.index["val"] if each.id not in known)]
        for name in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ()):
            if name in self.datasets:
                continue
            if not self.index.get(name):
                raise UserError(f"data.root: {self.root} has no list of the {name} split; there are {', '.join(self.index)}.")
            samples = self.index[name]
            labels = {each.label for each in samples}
            if name == "train" and labels != {0, 1}:
                counts = Counter(each.type or "without label" for each in samples)
                raise UserError(f"data: training needs live faces and attacks, with labels; the list has {dict(counts)}.")
            if name == "val" and -1 in labels:
                raise UserError("data: validation pictures have no labels; bring val_gt.txt, or lists with labels.")
            self._make(name, samples)
        if stage == "fit" and (both := {each.id for each in self.index["train"]} & {each.id for each in self.index["val"]}):
            log.warning(
                "data: %d of %d validation pictures are in the training list: validation numbers, and the threshold chosen on them, say "
                "nothing about new faces. The official train_all_balance.csv is such a list.", len(both), len(self.index["val"]),
            )  # fmt: skip

    def _make(self, name: str, samples: list[Sample]) -> None:
        h, training = self.hparams, name == "train"
        if self.chosen is None:
            self.chosen = Channels(h.colour, h.bands, self._bands(), h.scaling)
        factors = self.factors(samples) if training and h.rebalance == "loss" else np.ones(len(samples))
        augment = self.augment if training else None
        self.datasets[name] = CubeDataset(samples, self.cubes, self.chosen, h.image_size, factors, augment, h.seed)
        if self.statistics is None:
            self.statistics = self._statistics()
        log.info("%s: %s", name, ", ".join(f"{count} {kind}" for kind, count in Counter(each.type for each in samples).items()))

    def _bands(self) -> int:
        """Of the first cube that can be read."""
        first = "nothing there"
        for found in self.index.values():
            for sample in found[:50]:
                try:
                    return int(self.cubes.read(sample)[0].shape[0])
                except UnreadableCube as error:
                    first = str(error) if first == "nothing there" else first
        raise UserError(f"data.root: no cube can be read; the first: {first}.")

    def factors(self, samples: Sequence[Sample]) -> np.ndarray:
        """(N,) how often each sample should count. A list with repeated rows is balanced already: its own numbers."""
        repeats = np.array([each.repeats for each in samples], np.float64)
        if repeats.max() > 1:
            return repeats
        counts = Counter(map(_group, samples))
        times = repeat_factors(counts["live"], counts["print"], counts["mask"])
        return np.array([times[_group(each)] for each in samples], np.float64)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        channels = self.channels
        if self.hparams.normalise == "official":
            if channels.of != BANDS:
                raise UserError(f"data.normalise: the official statistics are of {BANDS} bands, cubes here have {channels.of}; use train.")
            return channels.official()
        sums, squares, count = torch.zeros(channels.count, dtype=torch.float64), torch.zeros(channels.count, dtype=torch.float64), 0
        train = self.index["train"]
        for sample in train[:: max(len(train) // 200, 1)]:
            try:
                x = channels.pick(*self.cubes.read(sample)).double().flatten(1)
            except UnreadableCube:
                continue
            sums, squares, count = sums + x.sum(1), squares + x.square().sum(1), count + x.shape[1]
        mean = sums / count
        return mean.float(), (squares / count - mean.square()).clamp_min(1e-8).sqrt().float()

    def _setup_predict(self) -> None:
        files = user_files(self.hparams.predict_paths, "cubes (.mat)", "face.mat", lambda path: path.suffix == ".mat")
        samples = [Sample(str(file), file, picture_of(file), -1, "") for file in files]
        without = [str(each.cube) for each in samples if not each.colour.is_file()]
        if without:
            log.warning("predict: no colour picture (.png) beside %s, nor in rgb/ instead of ssi_reconstructed/", some(without))
        h = self.hparams
        bands = next((cube.shape[2] for cube in map(_try_cube, files) if cube is not None), None)
        if bands is None:
            raise UserError(
                f"predict: none of {some([str(file) for file in files])} can be read; a cube is an array {KEY!r} (H, W, bands)."
            )
        self.chosen = Channels(h.colour, h.bands, int(bands), h.scaling)
        self.datasets["predict"] = CubeDataset(samples, CubeCache(None, Path()), self.chosen, h.image_size, np.ones(len(samples)), None, 0)

    def train_dataloader(self) -> TrainLoader:
        dataset, h = self.datasets["train"], self.hparams
        weighted = h.rebalance == "sampler"
        times = self.factors(dataset.samples) if h.rebalance in ("repeat", "sampler") else np.ones(len(dataset))
        sampler = RepeatedSampler(times if weighted else times.astype(np.int64), h.seed, *self.ranks(), weighted=weighted)
        if len(sampler) < h.batch_size:
            raise UserError(f"data.batch_size: {h.batch_size} is more than the {len(sampler)} pictures that an epoch has for each device.")
        return TrainLoader(dataset, sampler, h.batch_size, **self.loading())

    def predict_dataloader(self) -> DataLoader[Any]:
        dataset = self.datasets["predict"]
        sampler = EvalSampler(len(dataset), *self.ranks())
        return DataLoader(dataset, batch_size=self.hparams.eval_batch_size, sampler=sampler, generator=torch.Generator(), **self.loading())

    def items(self) -> list[Item]:
        """Every sample of every split, readable or not."""
        return items(self.root, "hyspefas")

    def preview(self, item: Item) -> list[np.ndarray]:
        """Colours and infrared of an item; none if it cannot be read."""
        return preview(item)

    def check(self, level: Literal["quick", "full"], workers: int | None = None) -> CheckReport:
        """Looks the dataset through: ``quick``, the lists and a sample of the cubes; ``full``, every cube, and copies.

        Args:
            level: Which.
            workers: Processes of a full check; ``None`` is one per core.
        """
        listed, names = self.items(), {1: "live", 0: "attack", -1: "without label"}
        if level == "quick":
            report = check_sample(listed, read_facts, names, sample=40)
        else:
            report = check_all(listed, read_facts, names, checks_folder() / "hyspefas.sqlite", workers)
        report.warnings += overlaps(self.read_index())
        return report


def _try_cube(path: Path) -> np.ndarray | None:
    try:
        return load_cube(path)
    except UnreadableCube:
        return None
