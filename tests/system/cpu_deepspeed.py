"""DeepSpeed on CPU processes with gloo, for tests: the strategy, less what asks for GPUs."""

from __future__ import annotations

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import DeepSpeedStrategy

from genlab.training.sharding import DeepSpeed


class CPUDeepSpeed(DeepSpeed):
    """Run it with ``DS_ACCELERATOR=cpu`` in the environment."""

    def setup_environment(self) -> None:
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", 0)

    def _get_process_group_backend(self) -> str:
        return "gloo"
