"""GenVideo (Chen et al., arXiv 2405.19707): real and generated videos, a test set per generator. Label 1 = fake, 0 = real.

Read as distributed: archives unpacked anywhere below ``root`` (``Real/``, ``train_pika/``, ``I2VGEN_XL/*.gif``, ``GenVideo-Val/Fake/Sora/``
...), extracted frames (``fake/pika/<video>/<k>.jpg``), or the official CSV lists. Many-to-many training takes every training generator;
one-to-many is ``train_generators: [Pika]``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch.utils.data import DataLoader

from datamodules import genvideo_checks
from datamodules.checks import CheckReport, Item
from datamodules.clip_dataset import ClipDataset, ClipSettings, Windows, collate
from datamodules.clip_features import FeatureClips, feature_id
from datamodules.degradations import Degradation
from datamodules.frame_cache import FrameCache, FrameCacheSettings
from datamodules.genvideo_index import Clips, cached_scan, make_clips, read_list
from datamodules.loading import SplitData
from datamodules.sampling import Draw, EvalSampler, TrainLoader, TrainSampler
from datamodules.tinyworld import tiny_root
from datamodules.transforms import IMAGENET_MEAN, IMAGENET_STD, TrainAugmentation, normalise
from datamodules.user_files import user_files
from datamodules.video import Decoder, is_video
from genlab.batches import VideoBatch
from genlab.errors import UserError
from genlab.store import FeatureReader
from genlab.training.randomness import fold_key

log = logging.getLogger(__name__)

CLEAN = "clean"


class GenVideo(SplitData):
    """GenVideo as distributed.

    Args:
        root: Folder of the dataset; ``tiny:genvideo`` writes a small procedural one in the same layout on first use.
        train_list: Official CSV lists of the training clips, instead of walking the folders.
        test_list: Likewise of the test clips.
        train_generators: Train on fakes of these only (one-to-many protocol); left out, of all (many-to-many).
        test_generators: Test on fakes of these only; left out, of all.
        val_generators: Training generators kept out of training, for validation on generators never seen; left out, none.
        val_fraction: Share of the training videos (of the reals, and of the fakes unless ``val_generators`` are named) for validation,
            chosen by a hash of their path. The official code validates on the test set instead.
        num_frames: T, consecutive extracted frames. Paper: 8.
        image_size: Pixels per side. Paper: 224.
        fps: Extracted frames per second; left out, the official rule: 2, or ceil(8 / duration) for clips under 4 s.
        train_edge_crop: Share cut off both ends of the longer side of real Youku clips in training (official code: 0.15).
        eval_edge_crop: Likewise of every clip in evaluation (official code: 0.10).
        eval_clips: Clips of a video in validation and test, evenly spaced; their logits are averaged. Paper: 1.
        predict_clips: Likewise for the user's own videos: a number, or ``all``, side by side over the whole video.
        degradations: In ``test``, measure on clean clips and on clips degraded in each of these ways (paper, Table 6); ``[all]`` is all
            eight. A degradation is drawn per video, the same for every model.
        degradation_mode: ``clip``, constant over a clip, or ``official``, drawn as the released code does.
        augment: The paper's training augmentation, another one, or ``false`` for unchanged frames.
        mean: Of the normalisation, RGB. Official code: ImageNet's, for CLIP backbones too.
        std: Likewise.
        balance: ``classes``: an epoch draws min(#fake, #real) of each (paper); ``none``: every clip once.
        batch_size: Clips per device. Paper: 128 in all.
        eval_batch_size: Clips per device in evaluation.
        num_workers: Decoding processes per device.
        decoder: ``auto`` (decord, then PyAV), ``decord`` or ``pyav``.
        frame_cache: ``none`` decodes the videos in every epoch; ``jpeg`` and ``webdataset`` extract all frames once, before the fit, and
            read JPEGs of quality 95 afterwards: many times faster, for up to a few MB a clip. ``jpeg`` makes a file per clip,
            ``webdataset`` shards of 1 GB, which network file systems prefer.
        frame_cache_dir: Folder of these frames; left out, ``$GENLAB_CACHE/frames/<fingerprint>``.
        frame_cache_size: Short side in pixels that larger frames are reduced to in there, to save space; left out, full size. Costs
            fine traces: see :mod:`datamodules.frame_cache`.
        seed: Keys order, windows and augmentation.
        predict_paths: Videos, and folders of videos, for ``predict``; the command line's positional arguments.
    """

    def __init__(
        self,
        root: str,
        train_list: str | None = None,
        test_list: str | None = None,
        train_generators: list[str] | None = None,
        test_generators: list[str] | None = None,
        val_generators: list[str] | None = None,
        val_fraction: float = 0.05,
        num_frames: int = 8,
        image_size: int = 224,
        fps: float | None = None,
        train_edge_crop: float = 0.15,
        eval_edge_crop: float = 0.10,
        eval_clips: int = 1,
        predict_clips: Windows = 1,
        degradations: list[Degradation | Literal["all"]] | None = None,
        degradation_mode: Literal["clip", "official"] = "clip",
        augment: bool | TrainAugmentation = True,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        balance: Literal["classes", "none"] = "classes",
        batch_size: int = 16,
        eval_batch_size: int = 16,
        num_workers: int = 8,
        decoder: Decoder = "auto",
        frame_cache: Literal["none", "jpeg", "webdataset"] = "none",
        frame_cache_dir: str | None = None,
        frame_cache_size: int | None = None,
        seed: int = 0,
        predict_paths: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.collate = collate
        self.save_hyperparameters(logger=False)
        sizes = {"num_frames": num_frames, "batch_size": batch_size, "eval_batch_size": eval_batch_size, "eval_clips": eval_clips}
        for name, value in (sizes | ({"predict_clips": predict_clips} if predict_clips != "all" else {})).items():
            if int(value) < 1:
                raise UserError(f"data.{name}: {value} is too small; use 1 or more.")
        for name, share in (("train_edge_crop", train_edge_crop), ("eval_edge_crop", eval_edge_crop)):
            if not 0 <= share < 0.5:
                raise UserError(f"data.{name}: {share} is cut off both ends; use a share from 0 to below 0.5.")
        # Not from hparams: from the command line those are plain values, also where the argument is an object.
        self.augmentation = TrainAugmentation() if augment is True else augment or None
        self.cache_settings = FrameCacheSettings(frame_cache, fps, frame_cache_size) if frame_cache != "none" else None
        self.splits: dict[str, Clips] = {}
        self.index: dict[str, Clips] = {}
        self.evaluated: list[int] = []  # batches of each evaluation loader of this rank that an earlier start has done
        self.allow_zero_length_dataloader_with_multiple_devices = True  # all of a loader may be done on one rank, but not on another
        self.features: dict[str, tuple[FeatureReader, int]] = {}  # splits whose clips are read as features, and in how many views

    @property
    def data_name(self) -> str:
        """Names the folder of an evaluation: ``test-genvideo``."""
        return "genvideo-degraded" if self.hparams.degradations else "genvideo"

    @property
    def generators(self) -> dict[str, list[str]]:
        """Names of the fakes' generators in each split that is set up: ``train``, ``val``, ``test``."""
        return {name: clips.generators for name, clips in self.splits.items()}

    @property
    def fingerprint(self) -> dict[str, str]:
        """Hash of the paths and sizes of each split that is set up."""
        return {name: clips.fingerprint for name, clips in self.splits.items()}

    @property
    def protocol(self) -> dict[str, Any]:
        """What must agree for two results to be comparable."""
        h = self.hparams
        names = ("num_frames", "image_size", "fps", "eval_edge_crop", "val_fraction", "val_generators", "test_generators")
        trained = "many-to-many" if not h.train_generators else f"one-to-many: {', '.join(h.train_generators)}"
        counts = {f"n_{name}": {"fake": int(c.label.sum()), "real": int((c.label == 0).sum())} for name, c in self.splits.items()}
        return (
            {name: h[name] for name in names}
            | {"frames": self.cache_settings.description if self.cache_settings else "decoded"}
            | {
                "training": trained,
                "clips_per_video": h.eval_clips,
                "degradations": self.test_sets,
                "tiny_world": h.root.startswith("tiny:") and "predict" not in self.splits,
            }
            | counts
        )

    @property
    def test_sets(self) -> list[str] | None:
        """What ``test`` measures one after the other: ``clean`` and the degradations; ``None`` where only clean clips are asked for."""
        asked = list(self.hparams.degradations or [])
        names = list(get_args(Degradation)) if "all" in asked else asked
        return [CLEAN, *names] if names else None

    def prepare_data(self) -> None:
        """Writes the tiny dataset if that is what ``root`` names, and looks the list through (rank zero)."""
        if self.trainer is not None and self.trainer.predicting:
            return  # the user's own files are all that is needed
        report = self.check("quick")
        if report.errors:
            raise UserError("\n".join(report.errors))
        for line in report.warnings:
            log.warning("data check: %s", line)
        self._fill_frame_cache()

    def open_frame_cache(self) -> FrameCache | None:
        """The extracted frames of this dataset, where ``frame_cache`` asks for them."""
        folder = self.hparams.frame_cache_dir
        return FrameCache(self.root, self.cache_settings, Path(folder) if folder else None) if self.cache_settings else None

    def _fill_frame_cache(self) -> None:
        """Extracts what the coming stage reads."""
        if (cache := self.open_frame_cache()) is None:
            return
        stage = str(self.trainer.state.fn.value) if self.trainer is not None and self.trainer.state.fn else "fit"
        self.setup(stage)
        names = {"validate": ["val"], "test": ["test"]}.get(stage, ["train", "val"])
        parts = [self.splits[name] for name in names]
        rows = [row for clips in parts for row in zip(clips.id, clips.label, clips.generator, clips.split, clips.size, clips.first)]
        report = cache.build(make_clips(self.root, rows))
        log.info("frame cache: %d clips extracted now, %d in all, in %s", report.built, report.stored, cache.folder)
        if report.unreadable:
            named = "; ".join(f"{name} ({why})" for name, why in list(report.unreadable.items())[:5])
            log.warning("frame cache: %d clips cannot be read: %s", len(report.unreadable), named)

    def check(self, level: Literal["quick", "full"], workers: int | None = None) -> CheckReport:
        """Looks the dataset through: ``quick``, the lists and a sample of the clips; ``full``, every clip.

        Args:
            level: Which.
            workers: Processes of a full check; ``None`` is one per core.
        """
        self.setup("check")
        if level == "quick":
            return genvideo_checks.quick_check(self.index, self.root)
        return genvideo_checks.full_check(self.index, self.root, workers)

    def items(self) -> list[Item]:
        """Every clip of the dataset, readable or not."""
        self.setup("check")
        return genvideo_checks.items_of(self.index, self.root)

    def preview(self, item: Item) -> list[np.ndarray]:
        """Pictures of one item for a contact sheet, (H, W, 3) uint8; none if it cannot be read."""
        return genvideo_checks.preview(item)

    @property
    def root(self) -> Path:
        """The dataset's folder; a tiny one is written on first use."""
        return tiny_root(self.hparams.root)

    def setup(self, stage: str) -> None:
        """Finds the clips. ``check`` finds all of them, ``predict`` those of ``predict_paths``."""
        if stage == "predict":
            self.splits["predict"] = user_clips(self.hparams.predict_paths or [])
            return
        if not self.index:
            self.index = self._read_index()
        before = set(self.splits)
        if stage in ("fit", "validate") and "val" not in self.splits:
            self.splits |= self._training_splits()
        if stage == "test":
            self.splits["test"] = self._only(self.index["test"], self.hparams.test_generators, "test")
        for name in sorted(set(self.splits) - before):
            clips = self.splits[name]
            fakes = int(clips.label.sum())
            log.info("%s: %d real clips, %d fake ones of %d generators", name, len(clips) - fakes, fakes, len(clips.generators))

    def _read_index(self) -> dict[str, Clips]:
        h, root = self.hparams, self.root
        index = {split: read_list(Path(name), root, split) for split, name in (("train", h.train_list), ("test", h.test_list)) if name}
        if len(index) < 2 and not (index and not root.is_dir()):
            clips, unclear = cached_scan(root)
            if unclear:
                some = ", ".join(f"{folder}/ ({n} clips)" for folder, n in sorted(unclear.items())[:5])
                log.warning(
                    "data.root: left out, since neither real nor fake by their folders: %s. Name them train_<generator> or Real.", some
                )
            for split in ("train", "test"):
                index.setdefault(split, clips.where(clips.split == split))
        return index

    def _training_splits(self) -> dict[str, Clips]:
        h = self.hparams
        known = self.index["train"].generators
        held = h.val_generators or []
        if wrong := sorted(set(held) - set(known)):
            raise UserError(f"data.val_generators: no training clips of {', '.join(wrong)}; there are {', '.join(known) or 'none'}.")
        clips = self._only(self.index["train"], h.train_generators and [*h.train_generators, *held], "train")
        share = np.array([fold_key("validation", name) % 10_000 / 10_000 for name in clips.id.tolist()])
        chosen = share < h.val_fraction
        if held:
            chosen = np.where(clips.label == 1, np.isin(clips.generator, held), chosen)
        splits = {"train": clips.where(~chosen), "val": clips.where(chosen)}
        for name, part in splits.items():
            if set(part.label.tolist()) != {0, 1}:
                counts = f"{int((part.label == 0).sum())} real, {int(part.label.sum())} fake"
                raise UserError(
                    f"data: the {name} split has {counts}; it needs both. Look at data.root, data.val_fraction and data.train_generators."
                )
        return splits

    @staticmethod
    def _only(clips: Clips, names: Sequence[str] | None, split: str) -> Clips:
        if not len(clips):
            raise UserError(
                f"data.root: there are no {split} clips; expected {'GenVideo-Val/' if split == 'test' else 'Real/ and train_<generator>/'}."
            )
        if names is None:
            return clips
        if wrong := sorted(set(names) - set(clips.generators)):
            raise UserError(f"data.{split}_generators: no {split} clips of {', '.join(wrong)}; there are {', '.join(clips.generators)}.")
        return clips.where((clips.label == 0) | np.isin(clips.generator, list(names)))

    def dataset(self, split: str, degradation: Degradation | None = None) -> ClipDataset | FeatureClips:
        """The clips of a split that is set up, degraded or not; features of them where those are to be used."""
        if split in self.features and degradation is None:
            return FeatureClips(self.splits[split], *self.features[split])
        return self.clip_dataset(split, degradation)

    def clip_dataset(self, split: str, degradation: Degradation | None = None) -> ClipDataset:
        """The clips of a split in pixels."""
        h, clips, training = self.hparams, self.splits[split], split == "train"
        crop = np.full(len(clips), 0.0 if training else h.eval_edge_crop)
        if training:
            crop[["youku" in name.lower() for name in clips.id.tolist()]] = h.train_edge_crop
        windows = h.predict_clips if split == "predict" else h.eval_clips
        settings = ClipSettings(h.num_frames, h.image_size, h.seed, h.fps, h.decoder, windows, degradation, h.degradation_mode)
        cache = self.open_frame_cache() if split != "predict" else None  # the user's own files are read once
        return ClipDataset(clips, settings, crop, training, self.augmentation if training else None, cache)

    def _train_sampler(self, rank: int, world_size: int) -> TrainSampler:
        clips = self.splits["train"]
        classes = clips.label if self.hparams.balance == "classes" else None
        return TrainSampler(classes, len(clips), self.hparams.seed, rank, world_size)

    def train_dataloader(self) -> TrainLoader:
        sampler = self._train_sampler(*self.ranks())
        if len(sampler) < self.hparams.batch_size:
            raise UserError(
                f"data.batch_size: {self.hparams.batch_size} is more than the {len(sampler)} clips that an epoch has for each device."
            )
        return TrainLoader(self.dataset("train"), sampler, self.hparams.batch_size, **self.loading())

    def val_dataloader(self) -> DataLoader[Any]:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        if self.test_sets is None:
            return self._eval_loader("test")
        sets = [None if name == CLEAN else cast(Degradation, name) for name in self.test_sets]
        return [self._eval_loader("test", degradation, number) for number, degradation in enumerate(sets)]

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._eval_loader("predict")

    def _eval_loader(self, split: str, degradation: Degradation | None = None, number: int = 0) -> DataLoader[Any]:
        dataset, size = self.dataset(split, degradation), self.hparams.eval_batch_size
        done = self.evaluated[number] if number < len(self.evaluated) else 0
        sampler = EvalSampler(len(dataset), *self.ranks(), start=done * size)
        # By name: Lightning makes the loader of a prediction anew from its arguments.
        return DataLoader(dataset, batch_size=size, sampler=sampler, generator=torch.Generator(), **self.loading())

    # Features in place of clips: see genlab.training.features.FeatureSource.

    def feature_draws(self, split: str, views: int) -> list[Draw]:
        """What the coming fit reads; in training, all views of all clips where nobody knows for how many epochs."""
        trainer, world = self.trainer, self.ranks()[1]
        assert trainer is not None
        if split != "train":
            limit = _limited(trainer.limit_val_batches, len(self.splits[split]), world, self.hparams.eval_batch_size, whole=False)
            return list(EvalSampler(len(self.splits[split])))[:limit]
        sampler = self._train_sampler(0, 1)
        if trainer.max_epochs is None or trainer.max_epochs < 0:
            return [Draw(index, view) for view in range(views) for index in range(len(self.splits[split]))]
        limit = _limited(trainer.limit_train_batches, len(sampler), world, self.hparams.batch_size, whole=True)
        draws: dict[Draw, None] = {}
        for epoch in range(trainer.max_epochs):
            sampler.set_epoch(epoch)
            draws |= dict.fromkeys(Draw(int(index), epoch % views) for index in sampler.order()[:limit])
        return list(draws)

    def feature_id(self, split: str, draw: Draw) -> str:
        """Names a draw of ``feature_draws``, which carries its view as epoch."""
        return feature_id(self.splits[split], draw.index, draw.epoch)

    def feature_key(self, split: str) -> dict[str, Any]:
        """All that the pixels of a split's clips depend on."""
        h = self.hparams
        own = ("seed", "train_edge_crop") if split == "train" else ("eval_edge_crop", "eval_clips")
        names = ("num_frames", "image_size", "fps", "decoder", "mean", "std", *own)
        return {name: h[name] for name in names} | {
            "clips": self.splits[split].fingerprint,
            "frames": self.cache_settings.description if self.cache_settings else "decoded",
            "augmentation": repr(self.augmentation) if split == "train" else "",
        }

    def feature_loader(self, split: str, draws: Sequence[Draw]) -> DataLoader[Any]:
        """Batches of these draws, in pixels, in this order."""
        size = self.hparams.eval_batch_size
        return DataLoader(self.clip_dataset(split), size, sampler=list(draws), generator=torch.Generator(), **self.loading())

    def use_features(self, split: str, reader: FeatureReader, views: int) -> None:
        """From now on loaders of this split read features."""
        self.features[split] = (reader, views)

    def on_after_batch_transfer(self, batch: VideoBatch, dataloader_idx: int) -> VideoBatch:
        """uint8 -> normalised float32 on the device; the uint8 stays under ``pixels``. Features become float32."""
        if "tokens" in batch:
            batch["tokens"], batch["global_vector"] = batch["tokens"].float(), batch["global_vector"].float()
            return batch
        batch["pixels"] = batch["video"]
        mean, std = self.hparams.mean or IMAGENET_MEAN, self.hparams.std or IMAGENET_STD
        batch["video"] = normalise(batch["pixels"], mean, std, batch["num_frames"])
        return batch


def _limited(limit: int | float | None, samples: int, world_size: int, batch_size: int, whole: bool) -> int:
    """How many samples of an epoch's order all ranks together get to see under Lightning's limit of batches.

    Args:
        limit: A number of batches of each rank, a share of them, or ``None`` for all.
        samples: In the order.
        world_size: Ranks that it is dealt out to.
        batch_size: Of each rank.
        whole: Whether incomplete batches are left out.
    """
    mine = samples // world_size if whole else -(-samples // world_size)
    batches = mine // batch_size if whole else -(-mine // batch_size)
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return min(samples, batches * batch_size * world_size)


def user_clips(paths: Sequence[str]) -> Clips:
    """The user's own videos: files, and folders searched through. Ids are the paths as given.

    Raises:
        MissingPath: A path is not there.
        UserError: There are no videos.
    """
    found = {str(path): path.stat().st_size for path in user_files(paths, "videos", "clip.mp4", is_video)}
    return make_clips(Path(), [(name, 0, "", "predict", size, -1) for name, size in found.items()])
