"""What Lightning's sharding strategies leave to their user: batch norms that all processes share, and networks that are built as usual."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from genlab.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class DeepSpeed(DeepSpeedStrategy):
    """Lightning's DeepSpeed, with ``trainer.sync_batchnorm``, which it takes but does not heed.

    Under ZeRO-3, too, every process builds the whole network, in its main memory, and the weights are spread afterwards: methods load and
    initialise what they have built, and could not if each layer was spread at once.
    """

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        self._init_config_if_needed()
        yield

    def setup(self, trainer: Trainer) -> None:
        if trainer.state.fn == TrainerFn.FITTING and self._layer_sync is not None and self.model is not None:
            self.model = self._layer_sync.apply(self.model)
        if self.model is not None:
            make_broadcastable(self.model)
            if self.exclude_frozen_parameters:
                refuse_what_checkpoints_would_lack(self.model)
        super().setup(trainer)


def make_broadcastable(module: nn.Module) -> None:
    """DeepSpeed hands out parameters as rows of bytes: their last axis must be dense, so channels come first again.

    Raises:
        UserError: A parameter is a single number, which has no axis.
    """
    for name, parameter in module.named_parameters():
        if parameter.dim() == 0:
            raise UserError(f"trainer.strategy: DeepSpeed cannot hand out {name}, a parameter without axes. Use ddp or FSDP.")
        if parameter.stride(-1) != 1:
            parameter.data = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device).copy_(parameter.data)


def refuse_what_checkpoints_would_lack(module: nn.Module) -> None:
    """Frozen parts are pretrained and can be had again; other parameters without gradients, such as a running mean, cannot.

    Raises:
        UserError: There are such parameters.
    """
    is_frozen = getattr(module, "is_frozen", lambda _: False)
    lost = [name for name, parameter in module.named_parameters() if not parameter.requires_grad and not is_frozen(name)]
    if lost:
        raise UserError(
            f"trainer.strategy: checkpoints would lack {len(lost)} parameters without gradients ({', '.join(lost[:2])}). "
            "Set exclude_frozen_parameters of the strategy to false."
        )


def refuse_statistics_of_their_own(module: LightningModule) -> None:
    """DDP hands out rank zero's batch-norm statistics at every step; FSDP and DeepSpeed let each process keep its own, evaluate by them,
    and save those of one.

    Raises:
        UserError: The module has batch norms in training that the processes do not share.
    """
    trainer = module.trainer
    if trainer.world_size == 1 or not isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy):
        return
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    own = [name for name, part in module.named_modules() if type(part) in kinds and part.training and part.track_running_stats]
    if own:
        raise UserError(
            f"trainer.sync_batchnorm: {len(own)} batch norms ({', '.join(own[:2])}) would keep statistics of their own in every process. "
            "Set it to true; DeepSpeed heeds it in the overlays trainer/deepspeed_zero1.yaml to trainer/deepspeed_zero3.yaml."
        )


def writes_shards_of_all(trainer: Trainer) -> bool:
    """Whether checkpoints hold frozen weights as well: FSDP reads shards back into every parameter there is, and misses those it lacks."""
    return isinstance(trainer.strategy, FSDPStrategy)
