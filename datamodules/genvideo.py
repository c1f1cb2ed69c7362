"""GenVideo (Chen et al., arXiv 2405.19707): real and generated videos, a test set per generator. Label 1 = fake, 0 = real.

Read as distributed: archives unpacked anywhere below ``root`` (``Real/``, ``train_pika/``, ``I2VGEN_XL/*.gif``, ``GenVideo-Val/Fake/Sora/``
...), extracted frames (``fake/pika/<video>/<k>.jpg``), or the official CSV lists. Many-to-many training takes every training generator;
one-to-many is ``train_generators: [Pika]``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules import genvideo_checks
from datamodules.checks import CheckReport, Item
from datamodules.genvideo_index import Clips, cached_scan, make_clips, read_list
from datamodules.sampling import Draw, EvalSampler, TrainLoader, TrainSampler
from datamodules.tinyworld import tiny_root
from datamodules.transforms import IMAGENET_MEAN, IMAGENET_STD, TrainAugmentation, edge_crop, normalise, resize
from datamodules.video import Decoder, UnreadableVideo, extracted_indices, is_video, open_video, sample_window
from genlab.batches import VideoBatch
from genlab.errors import MissingPath, UserError
from genlab.training.randomness import fold_key, keyed_rng

log = logging.getLogger(__name__)

NO_EDGE_CROP = 0.0


class ClipDataset(Dataset[dict[str, Any]]):
    """Clips of consecutive extracted frames, as uint8.

    Args:
        clips: The videos.
        num_frames: T.
        image_size: H = W after resizing; the aspect is not kept (paper).
        edge_crop: Share cut off at both ends of the longer side; per clip, (N,).
        seed: Keys window and augmentation.
        augmentation: For training; ``None`` gives the centred window, unchanged.
        training: Random window, and a substitute for what cannot be read.
        fps: Frames per second of the extraction; ``None`` is the official rule by duration.
        decoder: See :func:`datamodules.video.open_video`.
    """

    def __init__(
        self,
        clips: Clips,
        num_frames: int,
        image_size: int,
        edge_crop: np.ndarray,
        seed: int,
        augmentation: TrainAugmentation | None = None,
        training: bool = False,
        fps: float | None = None,
        decoder: Decoder = "auto",
    ) -> None:
        self.clips, self.num_frames, self.image_size, self.edge_crop, self.seed = clips, num_frames, image_size, edge_crop, seed
        self.augmentation, self.training, self.fps, self.decoder = augmentation, training, fps, decoder
        self._warned: set[Path] = set()

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        clips, index = self.clips, draw.index
        candidates = [index]
        if self.training:  # the next readable clip of the same class, by id: the same on every machine
            same = np.flatnonzero(clips.label == clips.label[index])
            candidates = np.roll(same, -int(np.searchsorted(same, index))).tolist()
        for candidate in candidates:
            try:
                pixels = self._pixels(candidate, draw)
            except UnreadableVideo as error:
                self._warn(error)
                continue
            return self._sample(index if not self.training else candidate, pixels, substituted=candidate != index)
        if self.training:
            raise UserError(f"data.root: not one of the {len(candidates)} training clips of label {clips.label[index]} can be read.")
        return self._sample(index, None)

    def _warn(self, error: UnreadableVideo) -> None:
        if error.path not in self._warned:  # once a file and process
            self._warned.add(error.path)
            log.warning("unreadable, %s: %s", "another clip of its class takes its place" if self.training else "not scored", error)

    def _sample(self, index: int, pixels: Tensor | None, substituted: bool = False) -> dict[str, Any]:
        clips, size = self.clips, self.image_size
        video = torch.zeros(self.num_frames, 3, size, size, dtype=torch.uint8)
        if pixels is not None:
            video[: len(pixels)] = pixels
        return {
            "video": video,
            "num_frames": 0 if pixels is None else len(pixels),
            "label": int(clips.label[index]),
            "generator": str(clips.generator[index]),
            "id": str(clips.id[index]),
            "index": index,
            "readable": pixels is not None,
            "substituted": substituted,
        }

    def _pixels(self, index: int, draw: Draw) -> Tensor:
        """(t, 3, S, S) uint8 with t <= T, since short clips have fewer frames."""
        name = str(self.clips.id[index])
        rng = keyed_rng(self.seed, "clip", draw.epoch, name, draw.occurrence) if self.training else None
        path = self.clips.root / name
        frames = self._video_frames(path, rng) if self.clips.first[index] < 0 else self._frame_files(path, index, rng)
        video = torch.from_numpy(frames).permute(0, 3, 1, 2)
        video = resize(edge_crop(video, float(self.edge_crop[index])), self.image_size)
        return self.augmentation(video, rng) if self.augmentation is not None and rng is not None else video

    def _video_frames(self, path: Path, rng: np.random.Generator | None) -> np.ndarray:
        with open_video(path, self.decoder) as video:
            extracted = extracted_indices(video.timestamps, video.duration, self.fps)
            return video.frames(extracted[sample_window(len(extracted), self.num_frames, rng)])

    def _frame_files(self, folder: Path, index: int, rng: np.random.Generator | None) -> np.ndarray:
        first, count = int(self.clips.first[index]), int(self.clips.size[index])
        if count <= 0:
            raise UnreadableVideo(folder, "the list names no frames of it")
        frames: list[np.ndarray] = []
        for k in sample_window(count, self.num_frames, rng):
            # As the official loader: in place of a missing or broken frame the next one, at the end the one before; but only once round.
            order = [*range(int(k), count), *range(int(k) - 1, -1, -1)]
            found = next((frame for i in order if (frame := _read_frame(folder, first + i)) is not None), None)
            if found is None:
                raise UnreadableVideo(folder, f"none of its {count} frames can be read")
            frames.append(found)
        shape = frames[0].shape
        return np.stack([f if f.shape == shape else np.asarray(Image.fromarray(f).resize((shape[1], shape[0]))) for f in frames])


def _read_frame(folder: Path, number: int) -> np.ndarray | None:
    for suffix in ("jpg", "jpeg", "png", "JPG"):
        path = folder / f"{number}.{suffix}"
        if path.is_file():
            try:
                with Image.open(path) as image:
                    return np.asarray(image.convert("RGB"))
            except (OSError, SyntaxError) as error:  # PIL's ways to say that a picture is broken
                log.debug("%s: %s", path, error)
    return None


class GenVideo(L.LightningDataModule):
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
        augment: The paper's training augmentation, another one, or ``false`` for unchanged frames.
        mean: Of the normalisation, RGB. Official code: ImageNet's, for CLIP backbones too.
        std: Likewise.
        balance: ``classes``: an epoch draws min(#fake, #real) of each (paper); ``none``: every clip once.
        batch_size: Clips per device. Paper: 128 in all.
        eval_batch_size: Clips per device in evaluation.
        num_workers: Decoding processes per device.
        decoder: ``auto`` (decord, then PyAV), ``decord`` or ``pyav``.
        seed: Keys order, windows and augmentation.
        predict_paths: Videos, and folders of videos, for ``predict``; the command line's positional arguments.
    """

    data_name = "genvideo"

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
        augment: bool | TrainAugmentation = True,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        balance: Literal["classes", "none"] = "classes",
        batch_size: int = 16,
        eval_batch_size: int = 16,
        num_workers: int = 8,
        decoder: Decoder = "auto",
        seed: int = 0,
        predict_paths: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        for name, low, value in (("num_frames", 1, num_frames), ("batch_size", 1, batch_size), ("eval_batch_size", 1, eval_batch_size)):
            if value < low:
                raise UserError(f"data.{name}: {value} is too small; use {low} or more.")
        for name, share in (("train_edge_crop", train_edge_crop), ("eval_edge_crop", eval_edge_crop)):
            if not 0 <= share < 0.5:
                raise UserError(f"data.{name}: {share} is cut off both ends; use a share from 0 to below 0.5.")
        # Not from hparams: from the command line those are plain values, also where the argument is an object.
        self.augmentation = TrainAugmentation() if augment is True else augment or None
        self.splits: dict[str, Clips] = {}
        self.index: dict[str, Clips] = {}

    @property
    def hparams(self) -> Any:
        """The constructor's arguments by name (Lightning types this as a plain mapping)."""
        return super().hparams

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
            | {"training": trained, "clips_per_video": 1, "tiny_world": h.root.startswith("tiny:") and "predict" not in self.splits}
            | counts
        )

    def prepare_data(self) -> None:
        """Writes the tiny dataset if that is what ``root`` names, and looks the list through (rank zero)."""
        if self.trainer is not None and self.trainer.predicting:
            return  # the user's own files are all that is needed
        report = self.check("quick")
        if report.errors:
            raise UserError("\n".join(report.errors))
        for line in report.warnings:
            log.warning("data check: %s", line)

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
        if stage in ("fit", "validate") and "val" not in self.splits:
            self.splits |= self._training_splits()
        if stage == "test":
            self.splits["test"] = self._only(self.index["test"], self.hparams.test_generators, "test")

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

    def dataset(self, split: str) -> ClipDataset:
        """The clips of a split that is set up."""
        h, clips, training = self.hparams, self.splits[split], split == "train"
        crop = np.full(len(clips), h.eval_edge_crop if split in ("val", "test") else NO_EDGE_CROP)
        if split == "predict":
            crop[:] = h.eval_edge_crop
        if training:
            crop[["youku" in name.lower() for name in clips.id.tolist()]] = h.train_edge_crop
        augmentation = self.augmentation if training else None
        return ClipDataset(clips, h.num_frames, h.image_size, crop, h.seed, augmentation, training, h.fps, h.decoder)

    def train_dataloader(self) -> TrainLoader:
        clips = self.splits["train"]
        classes = clips.label if self.hparams.balance == "classes" else None
        sampler = TrainSampler(classes, len(clips), self.hparams.seed, *self._ranks())
        if len(sampler) < self.hparams.batch_size:
            raise UserError(
                f"data.batch_size: {self.hparams.batch_size} is more than the {len(sampler)} clips that an epoch has for each device."
            )
        return TrainLoader(self.dataset("train"), sampler, self.hparams.batch_size, **self._loading())

    def val_dataloader(self) -> DataLoader[Any]:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._eval_loader("predict")

    def _eval_loader(self, split: str) -> DataLoader[Any]:
        dataset = self.dataset(split)
        sampler = EvalSampler(len(dataset), *self._ranks())
        # By name: Lightning makes the loader of a prediction anew from its arguments.
        size = self.hparams.eval_batch_size
        return DataLoader(dataset, batch_size=size, sampler=sampler, generator=torch.Generator(), **self._loading())

    def _loading(self) -> dict[str, Any]:
        workers = self.hparams.num_workers
        return {"num_workers": workers, "pin_memory": torch.cuda.is_available(), "persistent_workers": False}

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def on_after_batch_transfer(self, batch: VideoBatch, dataloader_idx: int) -> VideoBatch:
        """uint8 -> normalised float32 on the device; the uint8 stays under ``pixels``."""
        batch["pixels"] = batch["video"]
        mean, std = self.hparams.mean or IMAGENET_MEAN, self.hparams.std or IMAGENET_STD
        batch["video"] = normalise(batch["pixels"], mean, std, batch["num_frames"])
        return batch


def user_clips(paths: Sequence[str]) -> Clips:
    """The user's own videos: files, and folders searched through. Ids are the paths as given.

    Raises:
        MissingPath: A path is not there.
        UserError: There are no videos.
    """
    if not paths:
        raise UserError("predict: name the videos, or folders of videos: python -m genlab predict -c ... --ckpt_path ... clip.mp4 folder/")
    if missing := [name for name in paths if not Path(name).exists()]:
        raise MissingPath(f"predict: {', '.join(missing)}: no such file or folder.")
    found: dict[str, int] = {}
    for name in paths:
        path = Path(name)
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and is_video(p))
        found |= {str(file): file.stat().st_size for file in files}
    if not found:
        raise UserError(f"predict: there are no videos (mp4, gif, ...) in {', '.join(paths)}.")
    return make_clips(Path(), [(name, 0, "", "predict", size, -1) for name, size in found.items()])
