"""``predictions.csv``: one row per evaluated sample, whatever happened to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from genlab.files import write_csv

COLUMNS = ("id", "label", "score", "status")


class Predictions(Callback):
    """Gathers the ``rows`` that evaluation steps return, over all ranks, and writes them sorted by id.

    In ``fit`` the file is that of the latest validation.

    Args:
        folder: Where ``predictions.csv`` goes.

    Attributes:
        rows: Of the latest complete evaluation, on rank zero.
        mine: Of the evaluation under way, those of this rank.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "predictions.csv"
        self.rows: list[dict[str, Any]] = []
        self.mine: list[dict[str, Any]] = []

    @property
    def counts(self) -> dict[str, int]:
        """``n_expected`` and ``n_scored`` of the latest evaluation."""
        return {"n_expected": len(self.rows), "n_scored": sum(row["status"] == "ok" for row in self.rows)}

    def _start(self) -> None:
        self.mine = []

    def _keep(self, outputs: Any) -> None:
        if isinstance(outputs, dict):
            self.mine += outputs.get("rows", [])

    def _finish(self, trainer: Trainer) -> None:
        if trainer.sanity_checking:
            return
        gathered: list[list[dict[str, Any]] | None] = [self.mine]
        if trainer.world_size > 1:
            gathered = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, self.mine)
        if trainer.is_global_zero:
            self.rows = sorted((row for part in gathered for row in part or []), key=lambda row: str(row["id"]))
            if self.rows:
                write_csv(self.path, self.rows, COLUMNS)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._keep(outputs)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._keep(outputs)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._keep(outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)
