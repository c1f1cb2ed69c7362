"""Consistency of adapted class texts with frozen descriptions (MSTA, arXiv 2411.11223): L_CC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Averaging = Literal["normalized", "raw"]


def description_means(embeds: Tensor, counts: Sequence[int], averaging: Averaging = "normalized") -> Tensor:
    """Mean embedding of each class's sentences.

    Args:
        embeds: (M, E), class after class, not normalised.
        counts: Sentences of each class; sums to M.
        averaging: ``normalized`` takes the mean of unit vectors (the paper says only "average"), ``raw`` of the vectors as they are.

    Returns:
        (C, E), not normalised again.
    """
    each = F.normalize(embeds, dim=-1) if averaging == "normalized" else embeds
    return torch.stack([some.mean(0) for some in each.split(list(counts))])


def consistency_per_class(texts: Tensor, spatial: Tensor, temporal: Tensor) -> Tensor:
    """2 - cos(w_c, D_s^c) - cos(w_c, D_t^c) of each class, (C, E) each -> (C,) in [0, 4]; no gradient reaches the descriptions."""
    w = F.normalize(texts, dim=-1)
    cosines = [(w * F.normalize(each.detach(), dim=-1)).sum(-1) for each in (spatial, temporal)]
    return 2 - cosines[0] - cosines[1]


def description_consistency(texts: Tensor, spatial: Tensor, temporal: Tensor) -> Tensor:
    """L_CC: the mean of :func:`consistency_per_class` over the classes (which the paper gives for one class)."""
    return consistency_per_class(texts, spatial, temporal).mean()
