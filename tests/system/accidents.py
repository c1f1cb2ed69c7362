"""What happens to jobs on a cluster, on purpose and at a chosen moment; each once, over all restarts."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.preemption import LastCheckpoint
from genlab.results import slurm_job

What = Literal["preempt", "requeue", "signal", "kill", "lose"]
ASK = {
    "preempt": ["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true"],
    "requeue": ["scontrol", "requeue"],
    "signal": ["scancel", "--signal=USR1"],
    "lose": ["scontrol", "update", "nodename=n2", "state=down", "reason=accident"],
}
PATIENCE = 300.0  # seconds for a signal to come


class Accident(Callback):
    """An accident at a training step, or in the validation after it.

    Args:
        what: ``preempt``: a more urgent job wants the nodes, and SLURM sends TERM; ``requeue``: somebody puts the running job back into the
            queue, with TERM as well; ``signal``: SLURM sends USR1; ``kill``: the ranks of the second node die by KILL; ``lose``: they do so
            as their node is gone.
        at: Optimizer step.
        marks: Folder that remembers what has happened; of several runs that share it, it happens to one.
        validating: Wait for the validation that comes next, and for its second batch.
    """

    def __init__(self, what: What, at: int, marks: str, validating: bool = False) -> None:
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
        if not trainer.strategy.broadcast(trainer.is_global_zero and self._is_the_first(where)):
            return
        if trainer.is_global_zero and self.what in ASK:
            self._ask()
        trainer.strategy.barrier("accident")
        if self.what in ("kill", "lose"):
            if trainer.global_rank:
                os.kill(os.getpid(), signal.SIGKILL)
            return
        listener = next(callback for callback in trainer.callbacks if isinstance(callback, LastCheckpoint))
        deadline = time.monotonic() + PATIENCE
        while not listener.signalled and time.monotonic() < deadline:  # the step ends when the signal is there
            time.sleep(0.01)

    def _is_the_first(self, where: str) -> bool:
        try:
            with self.mark.open("x") as file:
                file.write(where)
        except FileExistsError:
            return False
        return True

    def _ask(self) -> None:
        """Asks SLURM, as somebody outside the job would."""
        outside = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        outside["SLURM_CONF"] = os.environ["SLURM_CONF"]
        which = [str(slurm_job(os.environ))] if self.what in ("requeue", "signal") else []
        subprocess.run([*ASK[self.what], *which], env=outside, check=True, stdout=subprocess.DEVNULL)


class FailsAfterTerm(Callback):
    """TERM arrives within the first step, and what the step needs is gone before the run can save."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise ConnectionResetError("W&B's service is gone")
