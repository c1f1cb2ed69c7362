"""Nothing lost when an evaluation is killed: ``validate``, ``test`` and ``predict`` go on where they were."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torchmetrics import Metric

from callbacks.media import Media
from callbacks.predictions import Predictions
from callbacks.preemption import CONTINUE_ME
from genlab.files import jsonable

log = logging.getLogger(__name__)

STAGES = {TrainerFn.VALIDATING: "validate", TrainerFn.TESTING: "test", TrainerFn.PREDICTING: "predict"}


class EvaluationState(Callback):
    """Writes now and then, and at a signal, what an evaluation has come to, and takes it up when the same evaluation starts again.

    That is, for each rank: how many batches of each loader are done, the rows of ``predictions.csv``, the pictures drawn, and the states
    of all torchmetrics objects of the method. So it is for methods that gather nothing elsewhere and say so by ``resumable_evaluation``,
    and datamodules that leave out what ``evaluated`` says is done. Removed when the evaluation has ended well.

    Args:
        folder: Of the evaluation.
        config: The whole configuration: another one is another evaluation.
        checkpoint: File that is evaluated, likewise with its size and time.
        predictions: Has the rows.
        media: Counts the pictures.
        every_seconds: Time between two writes.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        checkpoint: Path | None,
        predictions: Predictions,
        media: Media,
        every_seconds: float = 30.0,
    ) -> None:
        self.folder, self.predictions, self.media, self.every_seconds = folder, predictions, media, every_seconds
        self._asked = {"config": jsonable(config), "checkpoint": _file_state(checkpoint)}
        self._key = ""
        self._before: list[int] = []  # batches that earlier starts have done, by loader
        self._done: list[int] = []
        self._loaded: dict[str, Any] = {}
        self._active = self._more = False
        self._written_at = 0.0

    def _path(self, trainer: Trainer) -> Path:
        return self.folder / f".evaluation-{trainer.global_rank}.pt"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks for a state before the loaders are made; the datamodule is set up."""
        data = getattr(trainer, "datamodule", None)
        able = getattr(pl_module, "resumable_evaluation", False) and hasattr(data, "evaluated")
        self._active = able and trainer.state.fn in STAGES
        if not self._active or data is None:
            return
        parts = {**self._asked, "data": getattr(data, "fingerprint", None), "ranks": trainer.world_size}
        self._key = json.dumps(jsonable(parts), sort_keys=True)
        path = self._path(trainer)
        found = torch.load(path, weights_only=True) if path.is_file() else {}
        self._loaded = found if found.get("key") == self._key else {}
        self._before = list(self._loaded.get("batches", []))
        data.evaluated = list(self._before)

    def _start(self, trainer: Trainer, pl_module: LightningModule, batches: list[int | float]) -> None:
        if not self._active:
            return
        self._before += [0] * (len(batches) - len(self._before))
        self._done = list(self._before)
        self._written_at = time.monotonic()
        if not self._loaded:
            return
        self.predictions.mine, self.media.drawn = list(self._loaded["rows"]), self._loaded["drawn"]
        metrics = _metrics(pl_module)
        for name, state in self._loaded["metrics"].items():
            for key, value in state.items():
                setattr(metrics[name], key, value)
            metrics[name]._update_count = 1  # else it warns that it was never updated
        log.info("%s: goes on after %d batches", STAGES[trainer.state.fn], sum(self._before))  # type: ignore[index]
        self._loaded = {}

    def _count(self, trainer: Trainer, pl_module: LightningModule, batches: list[int | float], batch_idx: int, loader: int) -> None:
        if not self._active:
            return
        self._done[loader] = self._before[loader] + batch_idx + 1
        # Nothing is written at the very last batch: with none left, Lightning would leave the evaluation out at the next start.
        self._more = batch_idx + 1 < batches[loader] or any(count > 0 for count in batches[loader + 1 :])
        if self._more and time.monotonic() - self._written_at >= self.every_seconds:
            self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state = {
            "key": self._key,
            "batches": self._done,
            "rows": self.predictions.mine,
            "drawn": self.media.drawn,
            "metrics": {name: dict(metric.metric_state) for name, metric in _metrics(pl_module).items()},
        }
        path = self._path(trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.tmp")
        torch.save(state, beside)
        beside.replace(path)
        self._written_at = time.monotonic()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A signal stops between two batches: nothing is half counted then."""
        if self._active and self._more and isinstance(exception, SystemExit) and exception.code == CONTINUE_ME:
            self._write(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning calls this at a good end only."""
        if self._active:
            self._path(trainer).unlink(missing_ok=True)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module, trainer.num_val_batches)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module, trainer.num_test_batches)

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module, trainer.num_predict_batches)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._count(trainer, pl_module, trainer.num_val_batches, batch_idx, dataloader_idx)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._count(trainer, pl_module, trainer.num_test_batches, batch_idx, dataloader_idx)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._count(trainer, pl_module, trainer.num_predict_batches, batch_idx, dataloader_idx)


def _metrics(module: LightningModule) -> dict[str, Metric]:
    return {name: part for name, part in module.named_modules() if isinstance(part, Metric)}


def _file_state(path: Path | None) -> list[Any]:
    if path is None or not path.exists():
        return []
    stat = path.stat()
    return [str(path), stat.st_size, stat.st_mtime_ns]
