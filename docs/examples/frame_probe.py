"""Frame probe: real or generated, from pooled frame features. An example, not a paper; label 1 = fake."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

from genlab.batches import Evaluated, VideoBatch
from genlab.training.base import Method


def consistency_loss(features: Tensor) -> Tensor:
    """Mean squared step between neighbouring frames. (B, T, D) -> scalar; 0 for a still clip."""
    return (features[:, 1:] - features[:, :-1]).pow(2).mean()


class FrameProbe(Method):
    """Linear probe over small convolutional frame features, averaged over time.

    Args:
        width: D, channels of the frame features.
        consistency_weight: Weight of the consistency loss.
        lr: Learning rate of AdamW.
    """

    def __init__(self, width: int = 16, consistency_weight: float = 0.1, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.val_metrics = MetricCollection({"ap": BinaryAveragePrecision(), "auroc": BinaryAUROC()}, prefix="val/")
        self.test_metrics = self.val_metrics.clone(prefix="test/")
        self.head: nn.Linear | None = None

    def configure_model(self) -> None:
        if self.head is not None:  # test() and load_from_checkpoint() come here again
            return
        width = self.hparams.width
        self.frames = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.GELU(), nn.Conv2d(width, width, 3, 2, 1), nn.GELU())
        self.head = nn.Linear(width, 1)

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, 3, H, W), normalised -> logits (B,) and features (B, T, D)."""
        assert self.head is not None
        features = self.frames(video.flatten(0, 1)).mean((2, 3)).unflatten(0, video.shape[:2])
        return self.head(features.mean(1)).squeeze(1), features

    def training_step(self, batch: VideoBatch, batch_idx: int) -> Tensor:
        logits, features = self(batch["video"])
        bce = F.binary_cross_entropy_with_logits(logits, batch["label"].float())
        consistency = consistency_loss(features)
        losses = {"loss": bce + self.hparams.consistency_weight * consistency, "bce": bce, "consistency": consistency}
        return self.log_losses(losses, batch_size=len(logits))

    def validation_step(self, batch: VideoBatch, batch_idx: int) -> Evaluated:
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: VideoBatch, batch_idx: int) -> Evaluated:
        return self._evaluate(batch, self.test_metrics)

    def _evaluate(self, batch: VideoBatch, metrics: MetricCollection) -> Evaluated:
        scores, readable = self(batch["video"])[0].sigmoid(), batch["readable"]
        metrics.update(scores[readable], batch["label"][readable])
        self.log_dict(metrics, batch_size=int(readable.sum()))  # the objects: reduced over epoch and ranks
        columns = zip(batch["id"], batch["label"].tolist(), scores.tolist(), readable.tolist(), batch["generator"])
        return {
            "rows": [
                {"id": name, "label": label, "score": score if ok else "", "status": "ok" if ok else "unreadable", "generator": generator}
                for name, label, score, ok, generator in columns
            ]
        }

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
