"""What data modules have in common: sharded evaluation loaders, and where this process stands among the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.sampling import EvalSampler, leave_interrupts_to_parent


class SplitData(L.LightningDataModule):
    """A data module of a ``root`` with splits, one dataset each, whose items are drawn by :class:`datamodules.sampling.Draw`.

    Subclasses fill ``datasets`` and set ``collate``; their constructors take ``root``, ``eval_batch_size`` and ``num_workers``.
    """

    datasets: dict[str, Any]
    collate: Callable[[list[dict[str, Any]]], Any]

    @property
    def hparams(self) -> Any:
        """The constructor's arguments by name (Lightning types this as a plain mapping)."""
        return super().hparams

    @property
    def data_name(self) -> str:
        """Names the folder of an evaluation: ``test-captions`` for ``tiny:captions`` and ``/data/captions``."""
        return str(self.hparams.root).removeprefix("tiny:").rstrip("/").rsplit("/", 1)[-1]

    def val_dataloader(self) -> DataLoader[Any]:
        return self.eval_loader("val")

    def test_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        return self.eval_loader("test")

    def eval_loader(self, split: str) -> DataLoader[Any]:
        """Every item of the split once, over all processes."""
        dataset: Dataset[Any] = self.datasets[split]
        sampler = EvalSampler(len(dataset), *self.ranks())  # type: ignore[arg-type]
        return DataLoader(dataset, batch_size=self.hparams.eval_batch_size, sampler=sampler, generator=torch.Generator(), **self.loading())

    def loading(self) -> dict[str, Any]:
        """Options of every loader."""
        return {
            "num_workers": self.hparams.num_workers,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": self.collate,
            "worker_init_fn": leave_interrupts_to_parent,
        }

    def ranks(self) -> tuple[int, int]:
        """Number of this process, and of how many."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
