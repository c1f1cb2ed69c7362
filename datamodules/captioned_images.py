"""Captioned pictures for pretraining: any folder in Hugging Face's ``imagefolder`` form, or the tiny world's ``tiny:captions``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from datamodules.captioned_index import Captioned, read_split, splits_of
from datamodules.images import open_picture
from datamodules.loading import SplitData
from datamodules.processes import core_count
from datamodules.sampling import Draw, GroupSampler, TrainLoader, TrainSampler
from datamodules.tinyworld import tiny_root
from genlab.batches import CaptionedBatch
from genlab.errors import UserError
from genlab.files import fingerprint
from genlab.nearest import did_you_mean
from genlab.training.randomness import keyed_rng

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]


class CaptionedDataset(Dataset[dict[str, Any]]):
    """Samples of one split.

    Args:
        samples: What the split has.
        read: File -> uint8 array (..., 3, H, W), the same shape for every file.
        labels: Column -> its classes.
        in_memory: Read everything now and keep it.
        augment: Flip and shift; ``None`` for evaluation.
    """

    def __init__(
        self,
        samples: Sequence[Captioned],
        read: Callable[[Path], Pixels],
        labels: dict[str, list[str]],
        in_memory: bool,
        augment: Callable[[Pixels, np.random.Generator], Pixels] | None = None,
        seed: int = 0,
    ) -> None:
        self.paths = np.array([str(each.path) for each in samples])
        self.ids = np.array([each.id for each in samples])
        self.captions = np.array([each.caption for each in samples])
        self.groups = group_numbers(samples)
        self.labels = {name: np.array([_position(each, name, known) for each in samples]) for name, known in labels.items()}
        self.read, self.augment, self.seed = read, augment, seed
        self.kept: Pixels | None = None
        if in_memory:
            with ThreadPoolExecutor(core_count()) as pool:
                self.kept = np.stack(list(pool.map(read, (each.path for each in samples))))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        i = draw.index
        pixels = self.kept[i] if self.kept is not None else self.read(Path(str(self.paths[i])))
        if self.augment is not None:
            pixels = self.augment(pixels, keyed_rng(self.seed, "augment", draw.epoch, str(self.ids[i]), draw.occurrence))
        return {
            "pixels": pixels,
            "caption": str(self.captions[i]),
            "labels": {name: int(values[i]) for name, values in self.labels.items()},
            "group": int(self.groups[i]),
            "id": str(self.ids[i]),
            "index": i,
            "occurrence": draw.occurrence,
        }


def group_numbers(samples: Sequence[Captioned]) -> NDArray[np.int64]:
    """(N,) number of each sample's group; samples without the column ``group`` are groups of their own."""
    names = [each.columns.get("group", f"\0{i}") for i, each in enumerate(samples)]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _position(sample: Captioned, column: str, known: list[str]) -> int:
    value = sample.columns.get(column)
    return known.index(value) if value in known else -1


def read_picture(path: Path, size: int) -> Pixels:
    """A picture as (3, size, size) uint8 RGB; larger or smaller ones are resized on the short side and cropped in the middle.

    Raises:
        UserError: It cannot be read.
    """
    try:
        picture = open_picture(path)
    except OSError as error:
        raise UserError(f"data.root: {path} cannot be read as a picture ({error}). Bring it again, or drop its line.") from error
    return to_square(picture, size)


def to_square(picture: Image.Image, size: int) -> Pixels:
    """An RGB picture as (3, size, size) uint8: resized on the short side, cropped in the middle."""
    if picture.size != (size, size):
        scale = size / min(picture.size)
        width, height = (max(size, round(side * scale)) for side in picture.size)
        left, top = (width - size) // 2, (height - size) // 2
        picture = picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


class FlipAndShift:
    """Mirrors with probability ``flip`` and shifts by up to ``shift`` pixels; the border is repeated. Works on (..., 3, H, W)."""

    def __init__(self, flip: float, shift: int) -> None:
        self.flip, self.shift = flip, shift

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        if rng.random() < self.flip:
            pixels = pixels[..., ::-1]
        if self.shift:
            down, right = rng.integers(-self.shift, self.shift + 1, 2)
            height, width = pixels.shape[-2:]
            rows, columns = np.arange(height) - down, np.arange(width) - right
            pixels = pixels[..., rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)]
        return np.ascontiguousarray(pixels)


class Jitter:
    """Other light and contrast, a slight tint, blur, cloudy or grainy noise: a network shall not rely on how clean pictures are.

    What captions say stays true: shapes, sizes and the names of colours. Works on (..., 3, H, W); clips are changed alike in all frames.

    Args:
        strength: In [0, 1]; at 1 contrast is 0.5 to 1.5 of what it was, light moves by -0.4 to 0.2 of the range, noise at each of five
            grains (1 to 16 pixels) has a deviation of up to 0.08. Half of the pictures stay as they are.
    """

    GRAINS = (1, 2, 4, 8, 16)

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        if rng.random() < 0.5:
            return pixels
        height, width = pixels.shape[-2:]
        field = np.zeros((height, width, 3), np.float32)
        for grain in self.GRAINS:
            shape = (-(-height // grain) + 1, -(-width // grain) + 1)
            grey, tint = rng.standard_normal((*shape, 1), np.float32), rng.standard_normal((*shape, 3), np.float32)
            coarse = rng.uniform(0, 0.08) * (grey + 0.3 * tint)
            field += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        contrast, light = 1 + self.strength * rng.uniform(-0.5, 0.5), self.strength * rng.uniform(-0.4, 0.2)
        gains = contrast * (1 + 0.1 * self.strength * rng.uniform(-1, 1, 3))
        values: NDArray[Any] = (pixels.astype(np.float32) / 255 - 0.5) * gains.astype(np.float32)[:, None, None] + np.float32(0.5 + light)
        values += self.strength * field.transpose(2, 0, 1)
        if rng.random() < 0.3:
            deviation = self.strength * rng.uniform(0.3, 1.0)
            flat = values.reshape(-1, height, width)
            blurred = [np.asarray(cv2.GaussianBlur(plane, (0, 0), deviation), np.float32) for plane in flat]
            values = np.stack(blurred).reshape(values.shape)
        return (values.clip(0, 1) * 255 + 0.5).astype(np.uint8)


class Augmentation:
    """One change after another, all drawn from the same generator."""

    def __init__(self, *changes: Callable[[Pixels, np.random.Generator], Pixels]) -> None:
        self.changes = changes

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        for change in self.changes:
            pixels = change(pixels, rng)
        return pixels


class CaptionedImages(SplitData):
    """Pictures with captions.

    Args:
        root: Folder with ``train/``, ``validation/`` and ``test/``, each with ``metadata.jsonl`` and its pictures; ``tiny:captions``
            writes a procedural one on first use. A split that is not there is missed only when it is asked for.
        more_roots: Further such folders, read together with the first one.
        select: Column -> allowed values: only pictures that have them are used. Left out, all.
        eval_caption: Column that evaluation takes its captions from, where those of training are short or worded in many ways; ``None``
            takes the same ones.
        labels: Columns whose values are classes to learn; the batch has them in ``labels``.
        image_size: Pixels per side.
        in_memory: Read all pictures once and keep them (12 KB each at 64 pixels).
        keep_groups: Batches hold whole groups (column ``group``: samples that are hard to tell apart).
        mixed_epochs: First epochs in which they do not: what groups share is learned from mixed batches.
        flip: Probability of mirroring a training picture.
        shift: Largest shift of a training picture in pixels.
        jitter: Strength in [0, 1] of changes of light, contrast, tint and noise of training pictures.
        batch_size: Pictures per device.
        eval_batch_size: Pictures per device in evaluation.
        num_workers: Loading processes per device.
        seed: Keys order and augmentation.
    """

    kind = "image"

    def __init__(
        self,
        root: str,
        more_roots: list[str] | None = None,
        select: dict[str, list[str]] | None = None,
        eval_caption: str | None = None,
        labels: list[str] | None = None,
        image_size: int = 64,
        in_memory: bool = False,
        keep_groups: bool = False,
        mixed_epochs: int = 0,
        flip: float = 0.0,
        shift: int = 0,
        jitter: float = 0.0,
        batch_size: int = 64,
        eval_batch_size: int = 100,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        for name, value in {"image_size": image_size, "batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if value < 1:
                raise UserError(f"data.{name}: {value} is too small; use 1 or more.")
        if not 0 <= flip <= 1 or shift < 0:
            raise UserError(f"data.flip: {flip}, data.shift: {shift}; flip is a probability, shift a number of pixels.")
        if not 0 <= jitter <= 1:
            raise UserError(f"data.jitter: {jitter} is no strength in [0, 1].")
        self.samples: dict[str, list[Captioned]] = {}
        self.datasets: dict[str, CaptionedDataset] = {}
        self.collate = Collate(self.kind)
        self.classes: dict[str, list[str]] = {}
        """Column -> its values, sorted: what the numbers in ``labels`` mean. Taken from the training split, and the same in all."""

    @property
    def fingerprint(self) -> dict[str, str]:
        """Hash of the paths and sizes of each split that is set up."""
        return {name: fingerprint((each.id, each.path.stat().st_size) for each in found) for name, found in self.samples.items()}

    @property
    def protocol(self) -> dict[str, Any]:
        """What must agree for two results to be comparable."""
        h = self.hparams
        counts = {f"n_{name}": len(found) for name, found in self.samples.items()}
        return {"select": h.select, "image_size": h.image_size, "tiny_world": h.root.startswith("tiny:")} | counts

    def prepare_data(self) -> None:
        """Writes the tiny datasets, if that is what the roots name (rank zero)."""
        self.roots()

    def roots(self) -> list[Path]:
        """The folders; tiny ones are written on first use."""
        return [tiny_root(root) for root in [self.hparams.root, *(self.hparams.more_roots or [])]]

    def setup(self, stage: str) -> None:
        """Reads the lists of the stage, and the pictures too where they are to be kept.

        Raises:
            UserError: Broken lines, missing pictures, an unknown column, nothing selected; each names the file.
        """
        names = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ("train",))
        if not self.classes and self.hparams.labels:
            train = self._read("train")
            self.classes = {name: self._values(train, name) for name in self.hparams.labels}
        for name in names:
            if name not in self.datasets:
                self.samples[name] = self._read(name)
                if name != "train" and self.hparams.eval_caption is not None:
                    self.samples[name] = [self._recaptioned(each) for each in self.samples[name]]
                augment = self.augmentation() if name == "train" else None
                h = self.hparams
                self.datasets[name] = CaptionedDataset(self.samples[name], self.read_file, self.classes, h.in_memory, augment, h.seed)
                log.info("%s: %d captioned %ss", name, len(self.samples[name]), self.kind)

    def augmentation(self) -> Augmentation:
        """What happens to training samples."""
        moved = FlipAndShift(self.hparams.flip, self.hparams.shift)
        return Augmentation(moved, Jitter(self.hparams.jitter)) if self.hparams.jitter else Augmentation(moved)

    def read_file(self, path: Path) -> Pixels:
        """One file as uint8 (..., 3, H, W)."""
        return read_picture(path, self.hparams.image_size)

    def _read(self, split: str) -> list[Captioned]:
        folder = {"val": "validation"}.get(split, split)
        found = []
        for root in self.roots():
            there = splits_of(root)
            if folder not in there:
                listed = ", ".join(f"{name}/" for name in there if name) or "none"
                raise UserError(f"data.root: {root} has no {folder}/metadata.jsonl; its splits: {listed}.")
            found += read_split(root, folder)
        for column, allowed in (self.hparams.select or {}).items():
            values = {each.columns.get(column) for each in found} - {None}
            if unknown := sorted(set(allowed) - values):
                known = ", ".join(sorted(map(str, values))) or "no values: there is no such column"
                hint = did_you_mean(unknown[0], map(str, values))
                raise UserError(f"data.select: {column} is never {unknown[0]!r} in {folder}/{hint or '.'} It has {known}.")
            found = [each for each in found if each.columns.get(column) in allowed]
        if not found:
            raise UserError(f"data.select: no {self.kind} of {folder}/ has {self.hparams.select}.")
        return found

    def _recaptioned(self, sample: Captioned) -> Captioned:
        column = self.hparams.eval_caption
        if column not in sample.columns:
            hint = did_you_mean(column, sample.columns) or f". It has {', '.join(sample.columns)}."
            raise UserError(f"data.eval_caption: the line of {sample.id} has no column {column!r}{hint}")
        return replace(sample, caption=sample.columns[column])

    def _values(self, samples: Sequence[Captioned], column: str) -> list[str]:
        values = sorted({each.columns[column] for each in samples if column in each.columns})
        if not values:
            there = sorted({name for each in samples[:100] for name in each.columns})
            raise UserError(f"data.labels: there is no column {column!r}{did_you_mean(column, there) or '.'} There are {', '.join(there)}.")
        return values

    def train_dataloader(self) -> TrainLoader:
        dataset, h = self.datasets["train"], self.hparams
        rank, world_size = self.ranks()
        sampler: TrainSampler
        if h.keep_groups:
            sampler = GroupSampler(dataset.groups, h.seed, rank, world_size, h.mixed_epochs)
        else:
            sampler = TrainSampler(None, len(dataset), h.seed, rank, world_size)
        if len(sampler) < h.batch_size:
            raise UserError(f"data.batch_size: {h.batch_size} is more than the {len(sampler)} {self.kind}s of an epoch on each device.")
        return TrainLoader(dataset, sampler, h.batch_size, **self.loading())

    def on_after_batch_transfer(self, batch: CaptionedBatch, dataloader_idx: int) -> CaptionedBatch:
        """uint8 -> float32 in [0, 1] on the device."""
        batch[self.kind] = batch[self.kind].float() / 255  # type: ignore[literal-required]
        return batch


class Collate:
    """Samples -> batch; ``kind`` names the key of the pixels."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {self.kind: torch.from_numpy(np.stack([each["pixels"] for each in samples]))}
        batch["labels"] = {name: torch.tensor([each["labels"][name] for each in samples]) for name in samples[0]["labels"]}
        batch |= {name: torch.tensor([each[name] for each in samples]) for name in ("group", "index", "occurrence")}
        return batch | {name: [each[name] for each in samples] for name in ("caption", "id")}
