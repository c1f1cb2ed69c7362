"""W&B: one run per GenLab run, over every resume, with the per-set table."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from genlab.results import RunFolder, metric_tables


class Tracker(Callback):
    """Writes the W&B run id into ``run.json``, from which the next start takes it, and logs the table of metrics per set.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @staticmethod
    def _loggers(trainer: Trainer) -> list[WandbLogger]:
        return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)] if trainer.is_global_zero else []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in self._loggers(trainer):
            run = logger.experiment
            self.folder.update(wandb={"id": run.id, "project": run.project, "entity": run.entity or None, "name": run.name})

    def _table(self, trainer: Trainer, stage: str) -> None:
        rows = metric_tables(trainer.callback_metrics, stage).get("sets", [])
        for logger in self._loggers(trainer) if rows else []:
            columns = list(rows[0])
            data: list[list[Any]] = [[row.get(column) for column in columns] for row in rows]
            logger.log_table(f"{stage}/table", columns=columns, data=data)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._table(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._table(trainer, "test")
