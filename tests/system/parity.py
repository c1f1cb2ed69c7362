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

from genlab.vlm.scoring import Expected, Reward


class ForLetters(Reward):
    """What an untrained model can earn: a hundredth for each letter of its completion."""

    def terms(self, completion: str, expected: Expected) -> dict[str, float]:
        return {"letters": sum(map(str.isalpha, completion)) / 100}


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


def synced(norm: nn.BatchNorm1d | nn.BatchNorm2d, input: Tensor) -> Tensor:
    """A batch norm with statistics over the batches of all ranks. torch's own SyncBatchNorm is for GPUs alone."""
    axes, shape = [0, *range(2, input.ndim)], [-1, *[1] * (input.ndim - 2)]
    count = input.numel() / input.shape[1] * dist.get_world_size()
    mean = all_reduce(input.sum(axes)) / count
    centred = input - mean.view(shape)
    variance = all_reduce(centred.square().sum(axes)) / count
    with torch.no_grad():
        assert norm.num_batches_tracked is not None and norm.momentum is not None
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * count / (count - 1), norm.momentum)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return centred * scale.view(shape) + norm.bias.view(shape)


class SyncedBatchNorm1d(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return synced(self, input) if self.training and dist.is_initialized() else super().forward(input)


class SyncedBatchNorm2d(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return synced(self, input) if self.training and dist.is_initialized() else super().forward(input)


SYNCED: dict[type[nn.Module], type[nn.Module]] = {nn.BatchNorm1d: SyncedBatchNorm1d, nn.BatchNorm2d: SyncedBatchNorm2d}


class SyncOnCPU(LayerSync):
    """What ``trainer.sync_batchnorm`` does on GPUs."""

    def apply(self, model: nn.Module) -> nn.Module:
        for part in model.modules():
            if type(part) in SYNCED:
                part.__class__ = SYNCED[type(part)]
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        for part in model.modules():
            for plain, shared in SYNCED.items():
                if type(part) is shared:
                    part.__class__ = plain
        return model
