"""How fast it goes: samples per second, and how long the loop waited for data."""

from __future__ import annotations

import logging
import time
from collections.abc import Sized
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)

TOO_LONG = 0.25  # share of waiting that is worth a word


class Throughput(Callback):
    """Logs ``train/samples_per_second`` (over all ranks) and ``train/data_wait``, the share of time spent waiting for batches, 0..1.

    Both are averages over the steps since they were last logged, and include no validation. Training that waits for its data for long says
    so, once; not for the first steps, in which the loader's workers start.
    """

    def __init__(self) -> None:
        self._reset()
        self._ended = 0.0
        self._intervals, self._said = 0, False

    def _reset(self) -> None:
        self._samples, self._busy, self._waited = 0, 0.0, 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended = time.perf_counter()  # a run that is continued within an epoch does not start one

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._started = time.perf_counter()
        self._waited += self._started - self._ended

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._ended = time.perf_counter()
        self._busy += self._ended - self._started
        self._samples += len(batch["label"]) if "label" in batch else len(next((v for v in batch.values() if isinstance(v, Sized)), []))
        if trainer.global_step % max(1, getattr(trainer, "log_every_n_steps", 50)) == 0:
            total = self._busy + self._waited
            pl_module.log("train/samples_per_second", self._samples * trainer.world_size / max(total, 1e-9), batch_size=1)
            wait = self._waited / max(total, 1e-9)
            pl_module.log("train/data_wait", wait, batch_size=1)
            self._intervals += 1
            if wait > TOO_LONG and self._intervals > 1 and not self._said:
                self._said = True
                log.warning(
                    "training waits for data %.0f %% of the time: more of data.num_workers may help, or frames or features that are stored "
                    "decoded, where the data has options for it (docs/scaling.md)",
                    100 * wait,
                )
            self._reset()
