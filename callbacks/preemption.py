"""Nothing lost when killed: ``last.ckpt``, and an orderly stop on USR1 or TERM."""

from __future__ import annotations

import logging
import math
import signal
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)

CONTINUE_ME = 75  # exit code (EX_TEMPFAIL) on which the job script requeues


class LastCheckpoint(Callback):
    """Writes ``last.ckpt`` within training, and stops with exit code 75 after a signal.

    It is written at the ends of training batches only: every ``every_minutes``, every ``every_steps`` optimizer steps, at the last batch
    before a validation and at a signal. So a run that is killed in a validation comes back to just before it and validates again. The
    file is written beside its place and renamed.

    Args:
        path: The file.
        every_minutes: Longest time between two checkpoints.
        every_steps: Likewise in optimizer steps; ``None`` goes by the clock alone.
    """

    def __init__(self, path: Path, every_minutes: float = 15.0, every_steps: int | None = None) -> None:
        self.path, self.every_seconds, self.every_steps = path, every_minutes * 60, every_steps
        self.signalled = False
        self.saved_at = time.monotonic()
        self._common_batches = 0

    def _listen(self) -> None:
        """Lightning's own handlers are in by now; ours take their place."""
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: object) -> None:
        self.signalled = True  # a handler may interrupt a collective: never save in here

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()
        self.saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        done = batch_idx + 1
        last = done >= trainer.num_training_batches
        if not last and done % trainer.accumulate_grad_batches:
            return  # gradients are half gathered, and no checkpoint holds them
        before_validation = last or (trainer.val_check_batch not in (None, math.inf) and done % int(trainer.val_check_batch) == 0)
        due = self.every_steps is not None and trainer.global_step % self.every_steps == 0
        late = time.monotonic() - self.saved_at > self.every_seconds
        # One small collective a step, so that all ranks decide alike whatever their clocks and signals say.
        if trainer.strategy.reduce_boolean_decision(self.signalled or late, all=False) or before_validation or due:
            self.save(trainer)
        self._stop_if_signalled(trainer)

    def save(self, trainer: Trainer) -> None:
        """Writes the checkpoint; called by all ranks."""
        beside = self.path.with_name(".last.ckpt.tmp")
        trainer.save_checkpoint(beside)
        if trainer.is_global_zero:
            beside.replace(self.path)
        trainer.strategy.barrier("last.ckpt")
        self.saved_at = time.monotonic()

    def _stop_if_signalled(self, trainer: Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self.signalled, all=False):
            log.info("stopped by a signal at step %d; continue with --ckpt_path last", trainer.global_step)
            raise SystemExit(CONTINUE_ME)

    # Evaluation: there is nothing to save, what was scored is in the rows that the predictions callback keeps.

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_evaluation(trainer, trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_evaluation(trainer, trainer.num_test_batches)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_evaluation(trainer, trainer.num_predict_batches)

    def _start_evaluation(self, trainer: Trainer, batches: list[int | float]) -> None:
        self._listen()
        # Without padding ranks may differ by a batch; they may only ask each other while all are at it.
        import torch

        mine = torch.tensor(float(sum(batches)), device=trainer.strategy.root_device)
        self._common_batches = int(-float(trainer.strategy.reduce(-mine, reduce_op="max"))) if trainer.world_size > 1 else int(mine)

    def _poll(self, trainer: Trainer, batch_idx: int) -> None:
        if batch_idx < self._common_batches:
            self._stop_if_signalled(trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._poll(trainer, batch_idx)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._poll(trainer, batch_idx)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._poll(trainer, batch_idx)
