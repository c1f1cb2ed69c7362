"""Prototypes and caches of training pictures (Tip-Adapter, Zhang et al., ECCV 2022), from features of their augmented views."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.training.randomness import keyed_torch_generator


def cache_keys(views: Tensor, scramble: bool = False, order: Tensor | None = None) -> Tensor:
    """Features of the views, not normalised, (V, N, D) -> one unit key per picture, (N, D).

    Args:
        scramble: Each view in an order of its own, so that a key mixes different pictures: what the official CPR code does, since its
            loader shuffles.
        order: (V, N) these orders; left out, they are drawn.
    """
    if scramble and order is None:
        order = torch.stack([torch.randperm(views.shape[1], generator=keyed_torch_generator("scramble", v)) for v in range(len(views))])
    if order is not None:
        views = torch.stack([view[places] for view, places in zip(views, order)])
    return F.normalize(views.mean(0), dim=-1)


def class_means(keys: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(N, D), (N,) -> (C, D): means of the keys of a class, not normalised again; zeros for a class without pictures."""
    labels = labels.to(keys.device)
    sums = keys.new_zeros(num_classes, keys.shape[1]).index_add_(0, labels, keys)
    return sums / torch.bincount(labels, minlength=num_classes).clamp_min(1)[:, None]
