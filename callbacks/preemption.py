"""Nothing lost when killed: ``last.ckpt``, and an orderly stop on USR1, TERM or Ctrl-C."""

from __future__ import annotations

import logging
import math
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn

from genlab.errors import CONTINUE_ME, UserError

log = logging.getLogger(__name__)

BEFORE_VALIDATION_SECONDS = 60.0  # more work than this is not put at risk by a validation


class LastCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` within training, and stops with exit code 75 after a signal.

    It is written every ``every_minutes``, every ``every_steps`` optimizer steps, at a signal, at the end of training, and, unless that
    was a moment ago, shortly before a validation: a run that is killed in a validation comes back to before it and validates again.
    Lightning restores exactly what was saved within an epoch or after its end, but skips a validation that was due; so nothing is
    written at a batch after which one is due, but at the optimizer step before. The file is written beside its place and renamed; of a
    sharded checkpoint, which is a folder, ``last.ckpt`` is a link to the latest one that is whole.

    Args:
        path: The file.
        every_minutes: Longest time between two checkpoints.
        every_steps: Likewise in optimizer steps; ``None`` goes by the clock alone.
    """

    def __init__(self, path: Path, every_minutes: float = 15.0, every_steps: int | None = None) -> None:
        self.path, self.every_seconds, self.every_steps = path, every_minutes * 60, every_steps
        self.signalled = False
        self.saved_at, self.saved_step = time.monotonic(), -1
        self._common_batches: list[int] = []

    def _listen(self) -> None:
        """Lightning's own handlers are in by now; ours take their place."""
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: object) -> None:
        self.signalled = True  # a handler may interrupt a collective: never save in here
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # the second Ctrl-C does not wait

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()
        self.saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        done, accumulate = batch_idx + 1, trainer.accumulate_grad_batches
        boundary = _next_boundary(trainer, done)
        if done == boundary or done % accumulate:
            return  # a validation or the epoch's end follows; or gradients are half gathered, and no checkpoint holds them
        elapsed = time.monotonic() - self.saved_at
        late = elapsed > self.every_seconds or (done + accumulate >= boundary and elapsed > BEFORE_VALIDATION_SECONDS)
        self._save_if(trainer, late)
        self._stop_if_signalled(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_if(trainer, time.monotonic() - self.saved_at > self.every_seconds)
        self._stop_if_signalled(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def _save_if(self, trainer: Trainer, late: bool) -> None:
        due = self.every_steps is not None and trainer.global_step % self.every_steps == 0
        # One small collective a step, so that all ranks decide alike whatever their clocks and signals say.
        if trainer.strategy.reduce_boolean_decision(self.signalled or late, all=False) or due:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Writes the checkpoint; called by all ranks."""
        beside = self.path.with_name(f".last-{trainer.global_step}.saved")
        if trainer.is_global_zero and beside.is_dir():  # left by a run that was killed while it wrote, or that went back to before it
            if self.path.resolve() == beside.resolve():
                beside = self.path.with_name(f".last-{trainer.global_step}-again.saved")
            shutil.rmtree(beside, ignore_errors=True)
        beside = trainer.strategy.broadcast(beside)
        trainer.save_checkpoint(beside)
        if trainer.is_global_zero:
            self._put_in_place(beside)
        trainer.strategy.barrier("last.ckpt")
        self.saved_at, self.saved_step = time.monotonic(), trainer.global_step

    def _put_in_place(self, written: Path) -> None:
        """Renames the file, or links to the folder, and removes what earlier writes left."""
        keep = None
        if written.is_dir():
            keep, link = written, self.path.with_name(".last.link")
            link.unlink(missing_ok=True)
            link.symlink_to(written.name)
            link.replace(self.path)
        else:
            written.replace(self.path)
        for older in self.path.parent.glob(".last-*.saved"):
            if older != keep:
                shutil.rmtree(older, ignore_errors=True) if older.is_dir() else older.unlink(missing_ok=True)

    def _stop_if_signalled(self, trainer: Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self.signalled, all=False):
            how = "continue with --ckpt_path last" if trainer.state.fn == TrainerFn.FITTING else "give the same command again"
            log.info("stopped by a signal at step %d; %s", trainer.global_step, how)
            raise SystemExit(CONTINUE_ME)

    # Evaluation: callbacks.evaluation.EvaluationState saves what there is.

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_evaluation(trainer, trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_evaluation(trainer, trainer.num_test_batches)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_evaluation(trainer, trainer.num_predict_batches)

    def _start_evaluation(self, trainer: Trainer, batches: list[int | float]) -> None:
        self._listen()
        # Without padding ranks may differ by a batch; they may only ask each other while all are at it.
        common = torch.tensor([float(count) for count in batches], device=trainer.strategy.root_device)
        if trainer.world_size > 1:
            common = -torch.as_tensor(trainer.strategy.reduce(-common, reduce_op="max"))
        self._common_batches = [int(count) for count in common.tolist()]
        self._refuse_uneven(trainer, batches)

    def _refuse_uneven(self, trainer: Trainer, batches: list[int | float]) -> None:
        """Where parameters are sharded, each forward pass takes all ranks: one with a batch more would wait for the others for ever.

        Raises:
            UserError: Ranks have different numbers of batches.
        """
        if not (isinstance(trainer.strategy, FSDPStrategy) or getattr(trainer.strategy, "zero_stage_3", False)):
            return
        every: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(every, [float(count) for count in batches])
        if any(counts != every[0] for counts in every):
            shown = " and ".join(sorted({str(int(sum(counts))) for counts in every}))
            raise UserError(
                f"data.eval_batch_size: the ranks have {shown} batches, and where parameters are sharded all need equally many. "
                "Change data.eval_batch_size by one or more, or evaluate under ddp or ZeRO-2."
            )

    def _poll(self, trainer: Trainer, batch_idx: int, dataloader_idx: int) -> None:
        if batch_idx < self._common_batches[dataloader_idx]:
            self._stop_if_signalled(trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._poll(trainer, batch_idx, dataloader_idx)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._poll(trainer, batch_idx, dataloader_idx)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._poll(trainer, batch_idx, dataloader_idx)


def _next_boundary(trainer: Trainer, done: int) -> float:
    """The batch, counted from 1 and not before ``done``, after which a validation or the end of the epoch comes."""
    end = float(trainer.num_training_batches)
    every = trainer.val_check_batch
    if every is None or every == math.inf:
        return end
    return min(end, math.ceil(done / every) * every)
