"""AdamW, plain or with its state in eight bits (Dettmers et al., arXiv 2110.02861)."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import nn

from genlab.errors import UserError


def require_eight_bit(wanted: bool) -> None:
    """To be called where the setting is read, so that nothing has been done yet.

    Raises:
        UserError: It is wanted, and bitsandbytes is not installed.
    """
    if wanted and find_spec("bitsandbytes") is None:
        raise UserError(
            "model.eight_bit_adam: it takes the package bitsandbytes, which is not installed. Run 'pip install bitsandbytes' on a machine "
            "with CUDA, or leave it out: plain AdamW takes 8 bytes for each trained parameter."
        )


def adamw(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, eight_bit: bool = False) -> torch.optim.Optimizer:
    """AdamW of the parameters that require gradients."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not eight_bit:
        return torch.optim.AdamW(trained, lr, weight_decay=weight_decay)
    optimizer: torch.optim.Optimizer = import_module("bitsandbytes").optim.AdamW8bit(trained, lr=lr, weight_decay=weight_decay)
    return optimizer
