"""Real and generated pictures as files, for detectors that look at them as a user would send them; label 1 = generated."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from datamodules.checks import CheckReport, Item, check_all, check_sample, checks_folder
from datamodules.defake_checks import before_asking, read_facts
from datamodules.defake_index import DefakeItem, items, preview
from datamodules.images import open_picture
from datamodules.sampling import Draw, EvalSampler, leave_interrupts_to_parent
from datamodules.sending import Reencode, sent_bytes
from datamodules.sniffing import pictures_below
from datamodules.tinyworld import tiny_root
from genlab.errors import MissingPath, UserError
from genlab.files import file_size, fingerprint

log = logging.getLogger(__name__)

DATASET = "defake"
LABELS = {0: "real", 1: "fake"}


class PictureFiles(Dataset[dict[str, Any]]):
    """Files with their bytes and the boxes of known flaws in pixels; those that cannot be decoded have no bytes.

    Args:
        chosen: The pictures.
        prepare: File -> what is sent.
    """

    def __init__(self, chosen: list[Item], prepare: Callable[[bytes], bytes]) -> None:
        self.chosen, self.prepare = chosen, prepare

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        item = self.chosen[draw.index]
        try:
            original = open_picture(item.path).size
            image: bytes | None = self.prepare(item.path.read_bytes())
        except (OSError, ValueError):  # what Pillow says of some broken files
            image = None
        regions: list[list[float]] = []
        if image is not None and isinstance(item, DefakeItem):
            with Image.open(io.BytesIO(image)) as sent:
                share = sent.width / original[0]
            regions = [[value * share for value in region.pixels(*original)] for region in item.regions]
        return {"id": item.id, "label": item.label, "group": item.group, "file": image, "regions": regions}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples -> lists by name."""
    return {name: [each[name] for each in samples] for name in ("id", "label", "group", "file", "regions")}


class DefakeImages(L.LightningDataModule):
    """Pictures in every layout of :mod:`datamodules.defake_index`.

    Args:
        root: A folder with ``real/`` and ``fake/``, a list, grounding JSONL; ``tiny:defake`` writes a procedural set on first use.
        split: Only this one, where the layout has splits; None: all.
        batch_size: Pictures asked about together.
        num_workers: Loading processes per device.
        strip_metadata: Leave out EXIF, comments and texts of what is sent; the encoded picture stays as it is.
        reencode: Encode all pictures anew as ``png`` or ``jpeg`` (quality 95), so that their format tells nothing.
        max_side: Reduce larger pictures to it before they are sent.
        predict_paths: Pictures, and folders of pictures, for ``predict``; the command line's positional arguments.
    """

    def __init__(
        self,
        root: str,
        split: str | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
        strip_metadata: bool = True,
        reencode: Reencode = "none",
        max_side: int | None = None,
        predict_paths: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        if batch_size < 1:
            raise UserError(f"data.batch_size: {batch_size} is too small; use 1 or more.")
        if max_side is not None and max_side < 8:
            raise UserError(f"data.max_side: {max_side} is too small; use 8 or more.")
        self.prepare = partial(sent_bytes, reencode=reencode, max_side=max_side, strip_metadata=strip_metadata)
        self.chosen: list[Item] = []
        self.warnings: list[str] = []

    @property
    def data_name(self) -> str:
        """Names the folder of an evaluation: ``test-defake``."""
        return DATASET

    @property
    def root(self) -> Path:
        """The dataset's folder; a tiny one is written on first use."""
        return tiny_root(self.hparams["root"])

    @property
    def fingerprint(self) -> dict[str, str]:
        """Hash of the pictures' paths and sizes."""
        return {"test": fingerprint((i.id, i.path.stat().st_size if i.path.exists() else -1) for i in self.chosen)}

    @property
    def protocol(self) -> dict[str, Any]:
        """What must agree for two results to be comparable."""
        sent = {name: self.hparams[name] for name in ("strip_metadata", "reencode", "max_side")}
        return {"split": self.hparams["split"], **sent, "tiny_world": self.hparams["root"].startswith("tiny:")}

    def prepare_data(self) -> None:
        """Writes the tiny dataset, if that is what the root names (rank zero)."""
        tiny_root(self.hparams["root"])

    def setup(self, stage: str) -> None:
        """Finds the pictures.

        Raises:
            UserError: None is there.
        """
        if stage == "predict":
            self.chosen = [item for path in self.hparams["predict_paths"] or [] for item in _users(Path(path))]
        else:
            self.chosen = [item for item in self.items() if self.hparams["split"] in (None, item.split)]
        if not self.chosen:
            raise UserError(
                "predict: no picture was named." if stage == "predict" else f"data: no picture of split {self.hparams['split']}."
            )
        self.warnings = [] if stage == "predict" else before_asking(self.chosen, LABELS)
        for warning in self.warnings:
            log.warning("data: %s", warning)

    def contents(self, sizes: set[int]) -> dict[str, str]:
        """SHA-256 of the pictures' files that have one of these sizes in bytes -> id."""
        some = [item for item in self.chosen if file_size(item.path) in sizes]
        return {hashlib.sha256(item.path.read_bytes()).hexdigest(): item.id for item in some}

    def items(self) -> list[Item]:
        """Every picture, readable or not."""
        return items(self.root, DATASET)

    def check(self, level: Literal["quick", "full"], workers: int | None = None) -> CheckReport:
        """Looks the dataset through: ``quick``, a sample of the pictures; ``full``, every one, by ``workers`` processes."""
        if level == "quick":
            return check_sample(self.items(), read_facts, LABELS)
        return check_all(self.items(), read_facts, LABELS, checks_folder() / f"{DATASET}.sqlite", workers)

    def preview(self, item: Item) -> list[Image.Image]:
        """The picture with the boxes of its regions."""
        return preview(item)

    def test_dataloader(self) -> DataLoader[Any]:
        ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        # By name: Lightning makes the loader of a prediction anew from its arguments.
        return DataLoader(
            PictureFiles(self.chosen, self.prepare),
            batch_size=self.hparams["batch_size"],
            sampler=EvalSampler(len(self.chosen), *ranks),
            num_workers=self.hparams["num_workers"],
            collate_fn=collate,
            worker_init_fn=leave_interrupts_to_parent,
            generator=torch.Generator(),
        )

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.test_dataloader()


def _users(path: Path) -> list[Item]:
    if not path.exists():
        raise MissingPath(f"predict: {path} is not there.")
    files = pictures_below(path) if path.is_dir() else [path]
    return [DefakeItem(file.as_posix(), file, 0, "", "all") for file in files]
