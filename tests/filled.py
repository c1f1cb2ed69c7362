"""Weights of tiny networks that reference numbers were made with: a rule in place of a file."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import nn


def fill_by_name(module: nn.Module, seed: int) -> nn.Module:
    """Fills every named parameter from its name and the seed, as ``weights_rule`` of the reference files says; eval mode."""
    for name, parameter in module.named_parameters():
        if parameter.ndim == 0:
            continue
        rng = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
        values = rng.standard_normal(parameter.numel()).reshape(parameter.shape)
        if parameter.ndim >= 2:
            values = values / np.sqrt(parameter.numel() / parameter.shape[0])
        else:
            values = 1 + 0.1 * values if name.endswith("weight") else 0.1 * values
        parameter.data.copy_(torch.from_numpy(values.astype(np.float32)))
    return module.eval()


def legacy_normal(seed: int, *shape: int) -> torch.Tensor:
    """``numpy.random.RandomState(seed).standard_normal`` in float32."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))
