"""Pictures with questions and answers, to train vision-language models on: a folder with ``metadata.jsonl``, or ``tiny:questions``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from datamodules.captioned_images import FlipAndShift, Pixels
from datamodules.images import open_picture
from datamodules.loading import SplitData
from datamodules.questions_index import Questioned, read_split, splits_of
from datamodules.sampling import Draw, TrainLoader, TrainSampler
from datamodules.tinyworld import tiny_root
from genlab.batches import QuestionBatch
from genlab.errors import UserError
from genlab.files import fingerprint
from genlab.training.randomness import keyed_rng

log = logging.getLogger(__name__)


class QuestionDataset(Dataset[dict[str, Any]]):
    """Pictures of one split with their questions.

    Args:
        samples: What the split has.
        max_side: Pixels; larger pictures are reduced, their proportions kept.
        turns: Questions that a picture comes with, drawn anew each time and in random order; ``None`` gives all, in their order.
        augment: Flips and shifts; ``None`` for evaluation.
    """

    def __init__(
        self,
        samples: Sequence[Questioned],
        max_side: int,
        turns: int | None = None,
        augment: Callable[[Pixels, np.random.Generator], Pixels] | None = None,
        seed: int = 0,
    ) -> None:
        self.samples, self.max_side, self.turns, self.augment, self.seed = samples, max_side, turns, augment, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        sample = self.samples[draw.index]
        pixels, asked = read_whole(sample.path, self.max_side), list(sample.questions)
        if self.augment is not None:
            pixels = self.augment(pixels, keyed_rng(self.seed, "augment", draw.epoch, sample.id, draw.occurrence))
        if self.turns is not None:
            order = keyed_rng(self.seed, "questions", draw.epoch, sample.id, draw.occurrence).permutation(len(asked))
            asked = [asked[i] for i in order[: self.turns]]
        return {
            "image": torch.from_numpy(pixels),
            "question": [each.text for each in asked],
            "answer": [each.answer for each in asked],
            "kind": [each.kind for each in asked],
            "id": sample.id,
            "index": draw.index,
        }


def read_whole(path: Path, max_side: int) -> Pixels:
    """A picture as (3, H, W) uint8 RGB, its proportions kept, its longer side at most ``max_side`` pixels.

    Raises:
        UserError: It cannot be read.
    """
    try:
        picture = open_picture(path)
    except OSError as error:
        raise UserError(f"data.root: {path} cannot be read as a picture ({error}). Bring it again, or drop its lines.") from error
    picture.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def collate(samples: list[dict[str, Any]]) -> QuestionBatch:
    """Samples -> batch; pictures stay apart, since their sizes differ."""
    batch: Any = {name: [each[name] for each in samples] for name in ("image", "question", "answer", "kind", "id")}
    return batch | {"index": torch.tensor([each["index"] for each in samples])}


class VisualQuestions(SplitData):
    """Pictures with questions and answers.

    Args:
        root: Folder with ``train/``, ``validation/`` and ``test/``, each with its pictures and ``metadata.jsonl``, a line per question;
            ``tiny:questions`` writes a procedural one on first use. A split that is not there is missed only when it is asked for.
        max_side: Pixels; larger pictures are reduced, their proportions kept.
        turns: Most questions that a training picture comes with, drawn anew and shuffled each time.
        flip: Probability of mirroring a training picture; leave it 0 where left and right are asked about.
        shift: Largest shift of a training picture in pixels.
        batch_size: Pictures per device.
        eval_batch_size: Pictures per device in evaluation, each with all its questions.
        num_workers: Loading processes per device.
        seed: Keys order, questions and augmentation.
    """

    def __init__(
        self,
        root: str,
        max_side: int = 1024,
        turns: int = 8,
        flip: float = 0.0,
        shift: int = 0,
        batch_size: int = 16,
        eval_batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        sizes = {"max_side": max_side, "turns": turns, "batch_size": batch_size, "eval_batch_size": eval_batch_size}
        for name, value in sizes.items():
            if value < 1:
                raise UserError(f"data.{name}: {value} is too small; use 1 or more.")
        if not 0 <= flip <= 1 or shift < 0:
            raise UserError(f"data.flip: {flip}, data.shift: {shift}; flip is a probability, shift a number of pixels.")
        self.datasets: dict[str, QuestionDataset] = {}
        self.collate = collate

    @property
    def fingerprint(self) -> dict[str, str]:
        """Hash of the paths and sizes of each split that is set up, and of what is asked."""
        return {
            name: fingerprint((f"{each.id} {each.questions}", each.path.stat().st_size) for each in dataset.samples)
            for name, dataset in self.datasets.items()
        }

    @property
    def protocol(self) -> dict[str, Any]:
        """What must agree for two results to be comparable."""
        h = self.hparams
        counts = {f"n_{name}": sum(len(each.questions) for each in dataset.samples) for name, dataset in self.datasets.items()}
        return {"max_side": h.max_side, "tiny_world": h.root.startswith("tiny:")} | counts

    def texts(self, split: str = "train") -> list[str]:
        """All questions and answers of a split that is set up, each text once: what a tokenizer can be learned from."""
        asked = [question for each in self.datasets[split].samples for question in each.questions]
        return sorted({text for each in asked for text in (each.text, each.answer)})

    def prepare_data(self) -> None:
        """Writes the tiny dataset, if that is what the root names (rank zero)."""
        tiny_root(self.hparams.root)

    def setup(self, stage: str) -> None:
        """Reads the lists of the stage.

        Raises:
            UserError: Broken lines, missing pictures, no such split; each names the file.
        """
        h, root = self.hparams, tiny_root(self.hparams.root)
        for name in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ("train",)):
            if name in self.datasets:
                continue
            folder = {"val": "validation"}.get(name, name)
            there = splits_of(root)
            if folder not in there:
                listed = ", ".join(f"{split}/" for split in there if split) or "none"
                raise UserError(f"data.root: {root} has no {folder}/metadata.jsonl; its splits: {listed}.")
            samples = read_split(root, folder)
            if name == "train":
                self.datasets[name] = QuestionDataset(samples, h.max_side, h.turns, FlipAndShift(h.flip, h.shift), h.seed)
            else:
                self.datasets[name] = QuestionDataset(samples, h.max_side)
            log.info("%s: %d pictures, %d questions", name, len(samples), sum(len(each.questions) for each in samples))

    def train_dataloader(self) -> TrainLoader:
        dataset, h = self.datasets["train"], self.hparams
        sampler = TrainSampler(None, len(dataset), h.seed, *self.ranks())
        if len(sampler) < h.batch_size:
            raise UserError(f"data.batch_size: {h.batch_size} is more than the {len(sampler)} pictures of an epoch on each device.")
        return TrainLoader(dataset, sampler, h.batch_size, **self.loading())
