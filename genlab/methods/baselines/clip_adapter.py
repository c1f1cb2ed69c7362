"""CLIP-Adapter (Gao et al., arXiv 2110.04544): a small network on the picture's feature, mixed with the feature itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.batches import FewShotBatch
from genlab.training.few_shot import FewShotMethod, Scores, TextKind

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

SCALE = 100.0


class Bottleneck(nn.Module):
    """A(f): two linear layers without biases, each followed by ReLU."""

    def __init__(self, width: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = width // reduction
        self.fc = nn.Sequential(nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, width, bias=False), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def mixed(x: Tensor, adapted: Tensor, ratio: float) -> Tensor:
    """ratio A(f) + (1 - ratio) f, normalised: (B, D)."""
    return F.normalize(ratio * adapted + (1 - ratio) * x, dim=-1)


class CLIPAdapter(FewShotMethod):
    """The visual adapter; texts stay as they are.

    Args:
        backbone: ``tiny:clip``, hub id or folder, ``open_clip:ARCH/TAG``, ``openai:FILE``.
        text: Of the classes: ``template``, ``ensemble`` or ``descriptions``.
        ratio: Share of the adapted feature. Paper: 0.2 for ImageNet.
        reduction: Width over that of the hidden layer. Paper: 4.
        lr: Of AdamW, falling to 0 on a cosine step by step. From the CPR repository, since the original's configuration is not published.
        eps: Of AdamW. CPR repository: 1e-4.
    """

    def __init__(
        self,
        backbone: str = "openai/clip-vit-base-patch16",
        text: TextKind = "template",
        ratio: float = 0.2,
        reduction: int = 4,
        lr: float = 2e-3,
        eps: float = 1e-4,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)

    @property
    def protocol(self) -> dict[str, Any]:
        """Switches that could make two numbers incomparable."""
        return {"text": self.hparams.text}

    def build(self) -> None:
        self.adapter = Bottleneck(self.clip.width, self.hparams.reduction)

    def _logits(self, x: Tensor, texts: Tensor) -> Tensor:
        return SCALE * mixed(x, self.adapter(x), self.hparams.ratio) @ texts.T

    def prepare_texts(self) -> Tensor:
        return self.texts("train", self.hparams.text)

    def training_step(self, batch: FewShotBatch, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self._logits(self.unit(batch), self.train_texts()), batch["label"])
        return self.log_losses({"loss": loss}, batch_size=len(batch["label"]))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.AdamW(self.adapter.parameters(), self.hparams.lr, eps=self.hparams.eps)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def prepare_set(self, name: str) -> Tensor:
        return self.texts(name, self.hparams.text)

    def scores(self, x: Tensor, prepared: Tensor, batch: FewShotBatch) -> Scores:
        return Scores(self._logits(x, prepared))
