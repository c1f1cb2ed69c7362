"""Losses of region-aware video diffusion (reconstructed for InterAnimate, arXiv 2504.10905, whose weights and formulas are not public)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def orthogonality(latents: Tensor) -> Tensor:
    """Mean squared cosine between different rows, (..., D) -> scalar in [0, 1]; the paper has such a loss, its form is not known."""
    rows = F.normalize(latents.flatten(0, -2), dim=-1)
    cosines = rows @ rows.T
    count = len(rows)
    return (cosines.square().sum() - cosines.diagonal().square().sum()) / (count * (count - 1))


def region_weights(masks: Tensor, more: Sequence[float] | Tensor) -> Tensor:
    """1 + sum_r lambda_r m_r: (B, R, F, h, w) and (R,) -> (B, 1, F, h, w)."""
    return 1 + (torch.as_tensor(more).to(masks)[None, :, None, None, None] * masks).sum(1, keepdim=True)


def region_weighted_loss(output: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean over clips of the weighted mean of squared errors: (B, C, F, h, w) twice, (B, 1, F, h, w) -> scalar."""
    errors = (output - target).square().mean(1, keepdim=True)
    return ((weights * errors).flatten(1).sum(1) / weights.flatten(1).sum(1)).mean()


def contact_map(hand: Tensor, face: Tensor, radius: int) -> Tensor:
    """Where both masks (B, 1, H, W) are near: each widened by a square of side 2 radius + 1."""
    wide = [F.max_pool2d(each, 2 * radius + 1, stride=1, padding=radius) for each in (hand, face)]
    return wide[0] * wide[1]
