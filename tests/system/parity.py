"""What comparing one process with several takes, on CPUs: the loss of the whole batch, and batch norms over all processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class BatchLosses(Callback):
    """Writes the loss of every optimizer step, averaged over all ranks, which have equally many samples each.

    Args:
        path: A JSON list.
    """

    def __init__(self, path: str) -> None:
        self.path, self.losses, self.sum = Path(path), list[float](), 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = torch.as_tensor(trainer.strategy.reduce(outputs["loss"].detach().double(), reduce_op="mean"))
        self.sum += float(loss)  # which is divided already by the number of batches that are accumulated
        if trainer.global_step > len(self.losses):
            self.losses.append(self.sum)
            self.sum = 0.0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.path.write_text(json.dumps(self.losses))


class SyncedBatchNorm(nn.BatchNorm2d):
    """Statistics over the batches of all ranks. torch's own SyncBatchNorm is for GPUs alone."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(input)
        count = input.numel() / input.shape[1] * dist.get_world_size()
        mean = all_reduce(input.sum((0, 2, 3))) / count
        centred = input - mean[:, None, None]
        variance = all_reduce(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            assert self.num_batches_tracked is not None and self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


class SyncOnCPU(LayerSync):
    """What ``trainer.sync_batchnorm`` does on GPUs."""

    def apply(self, model: nn.Module) -> nn.Module:
        for part in model.modules():
            if type(part) is nn.BatchNorm2d:
                part.__class__ = SyncedBatchNorm
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        for part in model.modules():
            if type(part) is SyncedBatchNorm:
                part.__class__ = nn.BatchNorm2d
        return model
