"""Running mean of a network's parameters."""

from __future__ import annotations

import torch
from torch import nn


def warm_decay(updates: int, decay: float) -> float:
    """Decay at the update of this number, counted from 1: small at first, so that the start is forgotten."""
    return min(decay, (1 + updates) / (10 + updates))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average = decay average + (1 - decay) network, over parameters alone."""
    means, values = [p.detach() for p in average.parameters()], [p.detach() for p in network.parameters()]
    torch._foreach_lerp_(means, values, 1 - decay)


@torch.no_grad()
def update_statistics(average: nn.Module, network: nn.Module, decay: float) -> None:
    """The same of buffers, such as the statistics of batch norms; counts are copied, with ``decay`` 0 everything is."""
    for mean, value in zip(average.buffers(), network.buffers(), strict=True):
        if mean.is_floating_point() and decay:
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)
