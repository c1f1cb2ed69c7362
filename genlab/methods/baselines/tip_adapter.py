"""Tip-Adapter and Tip-Adapter-F (Zhang et al., ECCV 2022): a cache of the training pictures beside CLIP's own answer.

logits = 100 f w + alpha exp(-beta (1 - f k)) V, with the pictures' features k as keys and their labels V as values. Tip-Adapter trains
nothing, Tip-Adapter-F the keys. Both look for alpha and beta on the validation set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.batches import FewShotBatch
from genlab.errors import UserError
from genlab.models.visual_prototypes import cache_keys
from genlab.training.few_shot import FewShotMethod, Scores, TextKind

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

SCALE, BETA = 100.0, 1.0
STEPS = (200, 20)  # of the search, beta and alpha


class Search(NamedTuple):
    """Of a dataset in the official configurations: alpha to start with, and how far beta and alpha are looked for."""

    alpha: float
    beta_scale: float
    alpha_scale: float


SEARCHES = {
    "imagenet": Search(1.17, 7, 3),
    "caltech101": Search(3, 12, 5),
    "oxford_pets": Search(1.17, 7, 3),
    "stanford_cars": Search(3, 20, 10),
    "oxford_flowers": Search(10, 50, 50),
    "food101": Search(1.17, 10, 10),
    "fgvc": Search(5, 30, 30),
    "sun397": Search(1.17, 12, 10),
    "dtd": Search(2, 13, 13),
    "eurosat": Search(2, 12, 10),
    "ucf101_midframes": Search(3, 7, 3),
}


def cache_logits(x: Tensor, keys: Tensor, values: Tensor, beta: float) -> Tensor:
    """exp(-beta (1 - f k)) V: (B, D), (N, D), (N, C) -> (B, C)."""
    return (-beta * (1 - x @ keys.T)).exp() @ values


def search_list(scale: float, steps: int) -> list[float]:
    """What the official code tries: from 0.1 up to just below ``scale``."""
    return [i * (scale - 0.1) / steps + 0.1 for i in range(steps)]


def search(
    x: Tensor, labels: Tensor, clip_logits: Tensor, keys: Tensor, values: Tensor, scales: Sequence[float], steps: Sequence[int]
) -> tuple[float, float]:
    """The first beta and alpha with the most right answers; beta is the outer loop.

    Args:
        x: (B, D) unit features of validation pictures; ``labels`` (B,).
        clip_logits: (B, C) of the texts.
        keys, values: (N, D) and (N, C).
        scales: Ends of what is tried, for beta and alpha; ``steps``, how many.
    """
    best, found = 0, (search_list(scales[0], 1)[0], search_list(scales[1], 1)[0])
    alphas = search_list(scales[1], steps[1])
    for beta in search_list(scales[0], steps[0]):
        cache = cache_logits(x, keys, values, beta)
        for alpha in alphas:
            right = int(((clip_logits + alpha * cache).argmax(1) == labels).sum())
            if right > best:
                best, found = right, (beta, alpha)
    return found


class PictureCache(FewShotMethod):
    """The cache of the training pictures, which both variants answer with."""

    from_training = ("keys", "values")
    keys: Tensor
    values: Tensor
    _filled = False
    _found = (BETA, 0.0)

    @property
    def protocol(self) -> dict[str, Any]:
        """Switches that could make two numbers incomparable."""
        return {"text": self.hparams.text, "search": self.hparams.search, "official_shuffle": self.hparams.official_shuffle}

    def build(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        pictures = len(data.labels("train")) if hasattr(data, "labels") else 1
        self.register_buffer("keys", torch.zeros(pictures, self.clip.width))
        self.register_buffer("values", torch.zeros(pictures, self.train_classes()))

    def prepare(self) -> None:
        labels = self.data.labels("train")
        self.keys.copy_(cache_keys(self.read("train"), scramble=self.hparams.official_shuffle))
        self.values.copy_(F.one_hot(labels, self.values.shape[1]).float())
        self._filled = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._filled = True

    def _texts_of(self, name: str) -> Tensor:
        classes = self.data.classes(name)
        if classes.names != self.data.classes("train").names:
            raise UserError(
                f"data: {type(self).__name__} answers with labels of its training pictures; it cannot move to the classes of {name!r}."
            )
        return self.texts(name, self.hparams.text)

    def _start_values(self) -> tuple[float, float]:
        known = SEARCHES.get(self.data.classes("train").dataset, Search(1.17, 7, 3))
        return self.hparams.beta, known.alpha if self.hparams.alpha is None else self.hparams.alpha

    def prepare_set(self, name: str) -> Tensor:
        if not self._filled:
            self.prepare()
        texts, self._found = self._texts_of(name), self._start_values()
        if self.hparams.search and name != "val":
            known = SEARCHES.get(self.data.classes("train").dataset, Search(1.17, 7, 3))
            x = F.normalize(self.read("val").float(), dim=-1).to(self.device)
            labels, scales = self.data.labels("val").to(self.device), (known.beta_scale, known.alpha_scale)
            self._found = search(x, labels, SCALE * x @ texts.T, self.keys, self.values, scales, STEPS)
        return texts

    def scores(self, x: Tensor, prepared: Tensor, batch: FewShotBatch) -> Scores:
        return Scores(self.logits(x, prepared, *self._found))

    def logits(self, x: Tensor, texts: Tensor, beta: float, alpha: float) -> Tensor:
        """(B, D), (C, D) -> (B, C)."""
        return SCALE * x @ texts.T + alpha * cache_logits(x, self.keys, self.values, beta)


class TipAdapter(PictureCache):
    """The cache, not trained.

    Args:
        backbone: ``tiny:clip``, hub id or folder, ``open_clip:ARCH/TAG``, ``openai:FILE``.
        text: Of the classes: ``template``, ``ensemble`` or ``descriptions``.
        alpha: Weight of the cache before the search; left out, the official value of the dataset.
        beta: Sharpness before the search.
        search: Look for both on the validation set, as the official code does; else they stay as they are.
        official_shuffle: Average augmented views of *different* pictures into one key (a fault of the CPR repository).
    """

    needs_checkpoint = False

    def __init__(
        self,
        backbone: str = "openai/clip-vit-base-patch16",
        text: TextKind = "template",
        alpha: float | None = None,
        beta: float = BETA,
        search: bool = True,
        official_shuffle: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)


class TipAdapterF(PictureCache):
    """The cache with trained keys.

    Args:
        backbone: ``tiny:clip``, hub id or folder, ``open_clip:ARCH/TAG``, ``openai:FILE``.
        text: Of the classes: ``template``, ``ensemble`` or ``descriptions``.
        alpha: Weight of the cache in training; left out, the official value of the dataset.
        beta: Sharpness in training.
        search: Afterwards look for both on the validation set.
        official_shuffle: See :class:`TipAdapter`.
        lr: Of AdamW, falling to 0 on a cosine step by step. Official code: 1e-3.
        eps: Of AdamW. Official code: 1e-4.
    """

    def __init__(
        self,
        backbone: str = "openai/clip-vit-base-patch16",
        text: TextKind = "template",
        alpha: float | None = None,
        beta: float = BETA,
        search: bool = True,
        official_shuffle: bool = False,
        lr: float = 1e-3,
        eps: float = 1e-4,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)

    def build(self) -> None:
        super().build()
        keys = self.keys
        del self.keys
        self.keys = nn.Parameter(keys)

    def prepare(self) -> None:
        with torch.no_grad():
            super().prepare()

    def prepare_texts(self) -> Tensor:
        return self._texts_of("train")

    def training_step(self, batch: FewShotBatch, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.logits(self.unit(batch), self.train_texts(), *self._start_values()), batch["label"])
        return self.log_losses({"loss": loss}, batch_size=len(batch["label"]))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.AdamW([self.keys], self.hparams.lr, eps=self.hparams.eps)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
