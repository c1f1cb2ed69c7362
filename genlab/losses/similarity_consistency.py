"""Consistency of the similarities within a batch between two versions of it (DomainGallery, arXiv 2411.04571, Eq. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["mean", "batchmean"]
Direction = Literal["source", "target"]


def other_similarities(features: Tensor) -> Tensor:
    """Cosines of each sample with every other one of its batch, (B, ...) -> (B, B - 1)."""
    flat = F.normalize(features.flatten(1), dim=1)
    count = len(flat)
    others = ~torch.eye(count, dtype=torch.bool, device=flat.device)
    return (flat @ flat.T)[others].view(count, count - 1)


def similarity_consistency(
    target: Sequence[Tensor], source: Sequence[Tensor], reduction: Reduction = "mean", direction: Direction = "source"
) -> tuple[Tensor, list[Tensor]]:
    """L_sim: the KL divergence between the softmax over a sample's similarities in both batches, averaged over layers.

    Args:
        target: Features (B, ...) of each layer, of the batch that is trained.
        source: Likewise, of the batch that stays.
        reduction: ``mean`` over all B (B - 1) elements, as the released code; ``batchmean`` over samples, as Eq. 4.
        direction: Whose distribution weights the logarithms: KL(source || target), as the released code, or KL(target || source), as Eq. 4.

    Returns:
        The loss, and that of each layer. 0 with two samples, whose only similarity has probability 1.

    Raises:
        ValueError: Fewer than two samples.
    """
    if len(target[0]) < 2:
        raise ValueError(f"{len(target[0])} samples have no similarities; take three or more.")
    layers: list[Tensor] = []
    for one, other in zip(target, source, strict=True):
        p, q = (other_similarities(each).log_softmax(1) for each in (one, other))
        wanted, given = (q, p) if direction == "source" else (p, q)
        divergence = wanted.exp() * (wanted - given)
        layers.append(divergence.mean() if reduction == "mean" else divergence.sum(1).mean())
    return torch.stack(layers).mean(), layers
