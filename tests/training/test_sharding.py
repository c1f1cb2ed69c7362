"""What DeepSpeed needs of parameters, in one process; training under it is in tests/system/test_deepspeed.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from genlab.errors import UserError
from genlab.training.base import Method
from genlab.training.sharding import make_broadcastable, refuse_what_checkpoints_would_lack


def test_parameters_can_be_seen_as_bytes_and_keep_their_values() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)).to(memory_format=torch.channels_last)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(RuntimeError):
        module[0].weight.data.view(torch.uint8)
    make_broadcastable(module)
    for name, parameter in module.named_parameters():
        parameter.data.view(torch.uint8)
        assert torch.equal(parameter, before[name])


def test_a_single_number_is_refused() -> None:
    module = nn.Module()
    module.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(UserError, match="cannot hand out scale"):
        make_broadcastable(module)


class Averaging(Method):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.network, self.mean = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.freeze_part("backbone")


def test_running_means_must_be_in_checkpoints() -> None:
    model = Averaging()
    refuse_what_checkpoints_would_lack(model)
    model.mean.requires_grad_(False)
    with pytest.raises(UserError, match=r"lack 2 parameters without gradients \(mean.weight, mean.bias\)"):
        refuse_what_checkpoints_would_lack(model)
