"""What data modules for tuning text-to-image models on a few pictures have in common: prompts to draw, and pictures as floats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.images import pictures_in
from datamodules.listfiles import some
from datamodules.loading import SplitData
from datamodules.sampling import Draw, EvalSampler
from genlab.batches import PromptBatch
from genlab.errors import MissingPath

PICTURES = ("target", "source", "subject", "subject_source")


class PromptDataset(Dataset[dict[str, Any]]):
    """Prompts, each so often."""

    def __init__(self, prompts: Sequence[str], each: int) -> None:
        self.prompts, self.each = list(prompts), each

    def __len__(self) -> int:
        return len(self.prompts) * self.each

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        prompt, number = divmod(draw.index, self.each)
        return {"prompt": self.prompts[prompt], "number": number, "id": f"{prompt:02d}-{number:04d}", "index": draw.index}


def collate_prompts(samples: list[dict[str, Any]]) -> PromptBatch:
    """Samples -> batch."""
    batch: Any = {key: [each[key] for each in samples] for key in ("prompt", "id")}
    return batch | {key: torch.tensor([each[key] for each in samples]) for key in ("number", "index")}


class FewPictures(SplitData):
    """A data module of a few pictures, whose evaluations draw prompts; pictures are ``target`` and ``source`` of a batch.

    Subclasses have the hyperparameters ``source``, ``crop`` and ``eval_batch_size``.
    """

    @property
    def wants_source(self) -> bool:
        """Whether the plain model has to draw the source pictures."""
        return self.hparams.source is None

    @property
    def fixed_crop(self) -> bool:
        """Whether a picture is always cut the same."""
        return bool(self.hparams.crop == "center")

    def drawn(self, prompts: Sequence[str], each: int) -> DataLoader[Any]:
        """Every prompt so often, over all processes."""
        return self.prompt_loader(PromptDataset(prompts, each), collate_prompts)

    def prompt_loader(self, dataset: PromptDataset, collate: Callable[[list[dict[str, Any]]], Any]) -> DataLoader[Any]:
        """Every prompt so often, over all processes."""
        options = self.options(collate) | {"num_workers": 0}
        sampler = EvalSampler(len(dataset), *self.ranks())
        return DataLoader(dataset, batch_size=self.hparams.eval_batch_size, sampler=sampler, generator=torch.Generator(), **options)

    def options(self, collate: Callable[[list[dict[str, Any]]], Any]) -> dict[str, Any]:
        """Of a loader."""
        self.collate = collate
        return self.loading()

    def reference_pictures(self) -> Tensor | None:
        """Many more (N, 3, S, S) uint8, to compare drawn ones with; ``None`` where there are not."""
        return None

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """uint8 -> float32 in [0, 1] on the device."""
        return batch | {key: batch[key].float() / 255 for key in PICTURES if key in batch}


class SeveralSources(FewPictures):
    """Such a data module whose plain pictures lie in a folder for each concept, or for each scene."""

    def __init__(self) -> None:
        super().__init__()
        self.source: list[list[Path]] = []

    def use_source(self, folder: Path, count: int | None = None) -> None:
        """All of them come from there."""
        self.use_sources([folder], count)

    def use_sources(self, folders: Sequence[Path], count: int | None = None) -> None:
        """From now on they come from there, the first ``count`` of each folder.

        Raises:
            MissingPath: There are none.
        """
        self.source = [pictures_in(folder)[:count] for folder in folders]
        if empty := [str(folder) for folder, found in zip(folders, self.source) if not found]:
            raise MissingPath(f"data.source: no pictures in {some(empty)}.")
