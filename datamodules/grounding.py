"""Pictures with reasons and boxes, to fine-tune detectors that explain: grounding JSONL as ms-swift has it; label 1 = generated."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from datamodules.checks import CheckReport, Item, check_all, check_sample, checks_folder
from datamodules.defake_images import LABELS, read_facts
from datamodules.defake_index import Grounded, items, preview, read_grounding
from datamodules.images import open_picture
from datamodules.loading import SplitData
from datamodules.sampling import ChunkSampler, Draw, TrainLoader, TrainSampler
from datamodules.sniffing import pictures_below
from datamodules.tinyworld import tiny_root
from datamodules.visual_questions import read_whole
from genlab.batches import GroundedBatch
from genlab.errors import MissingPath, UserError
from genlab.files import fingerprint
from genlab.training.randomness import keyed_rng

log = logging.getLogger(__name__)

PLACE = "<image>"
GENERATED = re.compile(r"<verdict>\s*generated\s*</verdict>", re.I)
Where = Literal["as_written", "first", "last"]


class GroundedDataset(Dataset[dict[str, Any]]):
    """Pictures with their chats.

    Args:
        lines: Of the JSONL.
        root: Folder that their pictures' paths count from.
        max_side: Pixels; larger pictures are reduced, and their boxes with them.
        place: Where the picture stands in its turn.
        training: An unreadable picture gives way to the next readable one of its label.
    """

    def __init__(self, lines: Sequence[Grounded], root: Path, max_side: int, place: Where = "as_written", training: bool = False) -> None:
        self.lines, self.root, self.max_side, self.place, self.training = list(lines), root, max_side, place, training

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        for number in self._candidates(draw.index):
            line = self.lines[number]
            try:
                return self._sample(line, draw.index, substituted=number != draw.index)
            except OSError:
                continue
        if self.training:
            raise UserError(f"data.root: no picture of {self.root} with the label of {self.lines[draw.index].picture} can be read.")
        line = self.lines[draw.index]
        pixels = torch.zeros(3, 1, 1, dtype=torch.uint8)
        return self._with(line, draw.index, pixels, []) | {"readable": False, "substituted": False}

    def _candidates(self, index: int) -> list[int]:
        if not self.training:
            return [index]
        count, label = len(self.lines), is_generated(self.lines[index])
        return [i % count for i in range(index, index + count) if is_generated(self.lines[i % count]) == label]

    def _sample(self, line: Grounded, index: int, substituted: bool) -> dict[str, Any]:
        path = self.root / line.picture
        width, height = open_picture(path).size
        pixels = torch.from_numpy(read_whole(path, self.max_side))
        x, y = pixels.shape[2] / width, pixels.shape[1] / height
        boxes = [(a * x, b * y, c * x, d * y) for a, b, c, d in (region.pixels(width, height) for region in line.regions)]
        return self._with(line, index, pixels, boxes) | {"readable": True, "substituted": substituted}

    def _with(self, line: Grounded, index: int, pixels: torch.Tensor, boxes: list[Any]) -> dict[str, Any]:
        known = bool(line.target)
        return {
            "image": pixels,
            "turns": [(role, placed(text, self.place)) for role, text in line.turns],
            "target": line.target,
            "refs": [region.ref for region in line.regions],
            "boxes": boxes,
            "label": int(is_generated(line)) if known else -1,
            "id": line.picture,
            "index": index,
        }


def is_generated(line: Grounded) -> bool:
    """Whether a line has regions, or is said to be generated without any."""
    return bool(line.regions) or GENERATED.search(line.target) is not None


def placed(text: str, where: Where) -> str:
    """A turn's text with the picture moved."""
    if where == "as_written" or PLACE not in text:
        return text
    rest = text.replace(PLACE, "").strip()
    return PLACE + rest if where == "first" else rest + PLACE


def collate(samples: list[dict[str, Any]]) -> GroundedBatch:
    """Samples -> batch; pictures stay apart, since their sizes differ."""
    batch: Any = {name: [each[name] for each in samples] for name in ("image", "turns", "target", "refs", "boxes", "id")}
    return batch | {name: torch.tensor([each[name] for each in samples]) for name in ("label", "index", "readable", "substituted")}


class Grounding(SplitData):
    """Grounding JSONL: a chat per picture, whose last text is what a model is to say, with regions in ``objects``.

    Args:
        root: Folder that pictures' paths count from (``images_root`` of the released code); ``tiny:defake`` writes one on first use.
        train: File of training lines, in ``root`` or anywhere.
        val: Of validation lines; left out, ``val_share`` of the training lines.
        test: Of test lines.
        val_share: Share of the training lines that is held out, drawn by ``seed`` (``val_split_ratio`` of the released code).
        max_side: Pixels; larger pictures are reduced, and their boxes with them.
        picture: Where the picture stands in the question. ``last`` is how questions go through OpenAI's protocol as the evaluation asks
            them; a small model cares.
        iterations: For reinforcement learning: the pictures of a step come so many times in a row. It has to be the method's.
        question: Of the user's own pictures (``predict``); left out, that of the first training line.
        batch_size: Pictures per device.
        eval_batch_size: Pictures per device in evaluation.
        num_workers: Loading processes per device.
        seed: Keys order and split. Released configurations: 6737151.
        predict_paths: Pictures, and folders of pictures, for ``predict``; the command line's positional arguments.
    """

    def __init__(
        self,
        root: str,
        train: str = "grounding_train.jsonl",
        val: str | None = None,
        test: str = "grounding_test.jsonl",
        val_share: float = 0.1,
        max_side: int = 3584,
        picture: Where = "as_written",
        iterations: int | None = None,
        question: str | None = None,
        batch_size: int = 1,
        eval_batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        predict_paths: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        sizes = {"max_side": max_side, "batch_size": batch_size, "eval_batch_size": eval_batch_size, "iterations": iterations or 1}
        for name, value in sizes.items():
            if value < 1:
                raise UserError(f"data.{name}: {value} is too small; use 1 or more.")
        if not 0 <= val_share < 1:
            raise UserError(f"data.val_share: {val_share} is no share; use 0 or more and less than 1.")
        self.datasets: dict[str, GroundedDataset] = {}
        self.collate = collate

    @property
    def root(self) -> Path:
        """The folder; a tiny one is written on first use."""
        return tiny_root(self.hparams.root)

    @property
    def fingerprint(self) -> dict[str, str]:
        """Hash of the lines of each split that is set up, and of their pictures' sizes."""
        return {
            name: fingerprint((repr(line), _size(dataset.root / line.picture)) for line in dataset.lines)
            for name, dataset in self.datasets.items()
        }

    @property
    def protocol(self) -> dict[str, Any]:
        """What must agree for two results to be comparable."""
        h = self.hparams
        counts = {f"n_{name}": len(dataset) for name, dataset in self.datasets.items()}
        return {"max_side": h.max_side, "picture": h.picture, "tiny_world": h.root.startswith("tiny:")} | counts

    def prepare_data(self) -> None:
        """Writes the tiny dataset, if that is what the root names (rank zero)."""
        tiny_root(self.hparams.root)

    def setup(self, stage: str) -> None:
        """Reads the lines of the stage.

        Raises:
            UserError: Broken lines, missing pictures, or too few; each names the file.
        """
        h, root = self.hparams, self.root
        if not root.is_dir():
            raise MissingPath(f"data.root: {root} is not a folder; name the one that the pictures' paths count from.")
        if stage == "test":
            self._use("test", self._read(h.test), training=False)
        elif stage == "predict":
            paths = [Path(path) for path in h.predict_paths or []]
            self._use("predict", [self._users(file) for path in paths for file in _files(path)], training=False)
        elif h.val is not None:
            self._use("train", self._read(h.train), training=True)
            self._use("val", self._read(h.val), training=False)
        else:
            lines = self._read(h.train)
            held = set(keyed_rng(h.seed, "validation").permutation(len(lines))[: round(h.val_share * len(lines))].tolist())
            self._use("train", [line for i, line in enumerate(lines) if i not in held], training=True)
            self._use("val", [lines[i] for i in sorted(held)], training=False)

    def _use(self, name: str, lines: list[Grounded], training: bool) -> None:
        if not lines and name != "val":
            raise UserError("predict: no picture was named." if name == "predict" else f"data.{name}: there is no line left to train on.")
        h = self.hparams
        folder = Path() if name == "predict" else self.root
        self.datasets[name] = GroundedDataset(lines, folder, h.max_side, h.picture, training)
        log.info("%s: %d pictures, %d of them generated", name, len(lines), sum(is_generated(line) for line in lines))

    def _read(self, name: str) -> list[Grounded]:
        path = Path(name) if Path(name).is_absolute() else self.root / name
        lines = read_grounding(path)
        missing = [line.picture for line in lines if not (self.root / line.picture).is_file()]
        if missing:
            raise MissingPath(
                f"{path}: {len(missing)} of {len(lines)} pictures are not there, such as {self.root / missing[0]}; "
                "paths count from data.root."
            )
        return lines

    def _users(self, file: Path) -> Grounded:
        question = self.hparams.question
        turns = (("user", PLACE + question),) if question else self._read(self.hparams.train)[0].turns
        return Grounded(file.as_posix(), turns, "", ())

    def items(self) -> list[Item]:
        """Every picture, readable or not."""
        return items(self.root, "defake")

    def check(self, level: Literal["quick", "full"], workers: int | None = None) -> CheckReport:
        """Looks the dataset through: ``quick``, a sample of the pictures; ``full``, every one, by ``workers`` processes."""
        if level == "quick":
            return check_sample(self.items(), read_facts, LABELS)
        return check_all(self.items(), read_facts, LABELS, checks_folder() / "grounding.sqlite", workers)

    def preview(self, item: Item) -> list[Image.Image]:
        """The picture with the boxes of its regions."""
        return preview(item)

    def train_dataloader(self) -> TrainLoader:
        dataset, h, ranks = self.datasets["train"], self.hparams, self.ranks()
        sampler = TrainSampler(None, len(dataset), h.seed, *ranks)
        if h.iterations is not None:
            chunk = h.batch_size * ranks[1] * (self.trainer.accumulate_grad_batches if self.trainer is not None else 1)
            sampler = ChunkSampler(len(dataset), chunk, h.iterations, h.seed, *ranks)
        if len(sampler) < h.batch_size:
            raise UserError(
                f"data.batch_size: {h.batch_size}, times devices and accumulated batches, is more than the {len(dataset)} pictures."
            )
        return TrainLoader(dataset, sampler, h.batch_size, **self.loading())

    def val_dataloader(self) -> DataLoader[Any]:
        return self.eval_loader("val")

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.eval_loader("predict")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise MissingPath(f"predict: {path} is not there.")
    return pictures_below(path) if path.is_dir() else [path]
