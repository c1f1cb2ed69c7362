"""What happens to jobs on a cluster, on purpose and at a chosen moment; each once in the life of a run, over all its restarts."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.preemption import LastCheckpoint

PREEMPT = ["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true"]


class Accident(Callback):
    """An accident at a training step, or in the validation after it.

    Args:
        what: ``preempt``: a more urgent job wants the nodes, and SLURM sends TERM; ``kill``: the ranks of the second node die by KILL;
            ``signal``: SLURM sends USR1.
        at: Optimizer step.
        validating: Wait for the validation that comes next, and for its second batch.
        marks: Folder that remembers what has happened.
    """

    def __init__(self, what: Literal["preempt", "kill", "signal"], at: int, marks: str, validating: bool = False) -> None:
        self.what, self.at, self.validating = what, at, validating
        self.mark = Path(marks) / f"{what}-{at}"

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if not self.validating and trainer.global_step >= self.at:
            self._happen(trainer, f"step {trainer.global_step}")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.validating and not trainer.sanity_checking and trainer.global_step >= self.at and batch_idx == 1:
            self._happen(trainer, f"step {trainer.global_step}, validation batch {batch_idx}")

    def _happen(self, trainer: Trainer, where: str) -> None:
        trainer.strategy.barrier("accident")
        happened = self.mark.exists()
        trainer.strategy.barrier("accident")
        if happened:
            return
        if trainer.is_global_zero:
            self.mark.write_text(where)
        trainer.strategy.barrier("accident")
        if self.what == "kill":
            if trainer.global_rank:
                os.kill(os.getpid(), signal.SIGKILL)
            return
        if trainer.is_global_zero:
            outside = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
            outside |= {"SLURM_CONF": os.environ["SLURM_CONF"]}
            ask = PREEMPT if self.what == "preempt" else ["scancel", "--signal=USR1", os.environ["SLURM_JOB_ID"]]
            subprocess.run(ask, env=outside, check=True, stdout=subprocess.DEVNULL)
        listener = next(callback for callback in trainer.callbacks if isinstance(callback, LastCheckpoint))
        deadline = time.monotonic() + 300
        while not listener.signalled and time.monotonic() < deadline:  # the step ends when the signal is there
            time.sleep(0.01)
