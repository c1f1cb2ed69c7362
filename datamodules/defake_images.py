"""Real and generated pictures as files, for detectors that look at them as a user would send them; label 1 = generated."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from datamodules.checks import CheckReport, Facts, Item, check_all, check_sample, checks_folder
from datamodules.defake_index import DefakeItem, items, preview
from datamodules.images import open_picture
from datamodules.sampling import Draw, EvalSampler, leave_interrupts_to_parent
from datamodules.sniffing import pictures_below
from datamodules.tinyworld import tiny_root
from genlab.errors import MissingPath, UserError
from genlab.files import fingerprint

DATASET = "defake"
LABELS = {0: "real", 1: "fake"}


class PictureFiles(Dataset[dict[str, Any]]):
    """Files with their bytes; those that cannot be decoded have none."""

    def __init__(self, chosen: list[Item]) -> None:
        self.chosen = chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        item = self.chosen[draw.index]
        try:
            open_picture(item.path)
            image: bytes | None = item.path.read_bytes()
        except OSError:
            image = None
        return {"id": item.id, "label": item.label, "group": item.group, "file": image}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples -> lists by name."""
    return {name: [each[name] for each in samples] for name in ("id", "label", "group", "file")}


class DefakeImages(L.LightningDataModule):
    """Pictures in every layout of :mod:`datamodules.defake_index`.

    Args:
        root: A folder with ``real/`` and ``fake/``, a list, grounding JSONL; ``tiny:defake`` writes a procedural set on first use.
        split: Only this one, where the layout has splits; None: all.
        batch_size: Pictures asked about together.
        num_workers: Loading processes per device.
        predict_paths: Pictures, and folders of pictures, for ``predict``; the command line's positional arguments.
    """

    def __init__(
        self, root: str, split: str | None = None, batch_size: int = 16, num_workers: int = 0, predict_paths: list[str] | None = None
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        if batch_size < 1:
            raise UserError(f"data.batch_size: {batch_size} is too small; use 1 or more.")
        self.chosen: list[Item] = []

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
        return {"split": self.hparams["split"], "tiny_world": self.hparams["root"].startswith("tiny:")}

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
            PictureFiles(self.chosen),
            batch_size=self.hparams["batch_size"],
            sampler=EvalSampler(len(self.chosen), *ranks),
            num_workers=self.hparams["num_workers"],
            collate_fn=collate,
            worker_init_fn=leave_interrupts_to_parent,
            generator=torch.Generator(),
        )

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.test_dataloader()


def read_facts(item: Item, whole: bool) -> Facts:
    """Size and file format of a picture."""
    picture = open_picture(item.path)
    return Facts(measures={"size": f"{picture.width}x{picture.height}"})


def _users(path: Path) -> list[Item]:
    if not path.exists():
        raise MissingPath(f"predict: {path} is not there.")
    files = pictures_below(path) if path.is_dir() else [path]
    return [DefakeItem(file.as_posix(), file, 0, "", "all") for file in files]
