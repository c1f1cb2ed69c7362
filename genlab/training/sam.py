"""Adaptive sharpness-aware minimisation (Kwon et al., arXiv 2102.11600): the gradient that counts is taken where the loss is worst."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def perturbed(parameters: Iterable[Tensor], rho: float, adaptive: bool = True, eps: float = 1e-12) -> Iterator[None]:
    """Moves parameters uphill by their gradients, and back at the end, bit for bit.

    w' = w + w^2 g rho / (n + eps) with n the L2 norm of |w| g over all of them; not ``adaptive``: w + g rho / (|g| + eps).

    Args:
        parameters: Those without a gradient stay.
        rho: Size of the step.
        adaptive: Scale it by the parameters.
        eps: In the denominator.
    """
    moving = [(p, p.grad) for p in parameters if p.grad is not None]
    before = [p.detach().clone() for p, _ in moving]
    with torch.no_grad():
        norms = [(p.abs() * grad if adaptive else grad).norm() for p, grad in moving]
        norm = torch.stack(norms).norm() if norms else torch.zeros(())
        for p, grad in moving:
            p.add_((p.square() * grad if adaptive else grad) * (rho / (norm + eps)).to(p.device))
    try:
        yield
    finally:
        with torch.no_grad():
            for (p, _), old in zip(moving, before):
                p.copy_(old)


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms normalise by the batch as in training, and their running statistics stay as they are."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    before = [(part.momentum, part.num_batches_tracked.clone() if part.num_batches_tracked is not None else None) for part in norms]
    for part in norms:
        part.momentum = 0.0
    try:
        yield
    finally:
        for part, (momentum, count) in zip(norms, before):
            part.momentum = momentum
            if count is not None and part.num_batches_tracked is not None:
                part.num_batches_tracked.copy_(count)
