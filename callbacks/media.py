"""Pictures in the run folder: strips of frames with what spoke for the decision, and plots of the scores."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from genlab.batches import Strip
from genlab.figures import SIDES
from genlab.sheets import frame_strip, stack


class Media(Callback):
    """Draws the ``strips`` that evaluation steps return.

    Validation and test: one sheet of the first ``per_sheet`` strips, ``media/val_step<step>.png`` or ``media/test.png``, also sent to
    loggers that take images. Prediction: one picture per sample, ``media/<number>_<name>.png``.

    Args:
        folder: Where the pictures go.
        per_sheet: Strips on a sheet.

    Attributes:
        drawn: Pictures of samples so far; the next one's number.
    """

    def __init__(self, folder: Path, per_sheet: int = 8) -> None:
        self.folder, self.per_sheet = folder, per_sheet
        self._strips: list[Strip] = []
        self.drawn = 0

    def _keep(self, trainer: Trainer, outputs: Any) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking and isinstance(outputs, dict):
            self._strips += outputs.get("strips", [])[: self.per_sheet - len(self._strips)]

    def _sheet(self, trainer: Trainer, name: str, path: Path) -> None:
        if not self._strips:
            return
        sheet = stack([draw(strip) for strip in self._strips], path=path)
        self._strips = []
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):  # W&B and its like
                logger.log_image(name, [sheet], step=trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(name, np.asarray(sheet), trainer.global_step, dataformats="HWC")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._strips = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._keep(trainer, outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sheet(trainer, "val/samples", self.folder / f"val_step{trainer.global_step:06d}.png")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._keep(trainer, outputs)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sheet(trainer, "test/samples", self.folder / "test.png")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        for strip in outputs.get("strips", []) if isinstance(outputs, dict) else []:
            number = self.drawn * trainer.world_size + trainer.global_rank
            draw(strip, self.folder / f"{number:05d}_{file_name(strip['id'])}.png")
            self.drawn += 1


def draw(strip: Strip, path: Path | None = None) -> Image.Image:
    """One strip as a picture, written to ``path`` if that is given."""
    return frame_strip(strip["frames"], strip["heat"], f"{strip['id']}: {strip['caption']}", path, sides=strip.get("sides", SIDES))


def file_name(sample: str) -> str:
    """The last part of a sample's id as a harmless file name."""
    return re.sub(r"[^\w.-]+", "_", Path(sample).stem)[:60] or "sample"
