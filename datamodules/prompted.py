"""What data modules for tuning text-to-image models on a few pictures have in common: prompts to draw, and pictures as floats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader

from datamodules.domain_images import PromptDataset
from datamodules.loading import SplitData
from datamodules.sampling import EvalSampler


class FewPictures(SplitData):
    """A data module of a few pictures, whose evaluations draw prompts; pictures are ``target`` and ``source`` of a batch."""

    def prompt_loader(self, dataset: PromptDataset, collate: Callable[[list[dict[str, Any]]], Any]) -> DataLoader[Any]:
        """Every prompt so often, over all processes."""
        options = self.options(collate) | {"num_workers": 0}
        sampler = EvalSampler(len(dataset), *self.ranks())
        return DataLoader(dataset, batch_size=self.hparams.eval_batch_size, sampler=sampler, generator=torch.Generator(), **options)

    def options(self, collate: Callable[[list[dict[str, Any]]], Any]) -> dict[str, Any]:
        """Of a loader."""
        self.collate = collate
        return self.loading()

    def reference_pictures(self) -> None:
        """There are not many more of a subject."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """uint8 -> float32 in [0, 1] on the device."""
        return batch | {key: batch[key].float() / 255 for key in ("target", "source") if key in batch}
