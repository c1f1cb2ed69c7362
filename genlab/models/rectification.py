"""Prototypes moved towards their nearest unlabelled pictures (CPR, arXiv 2404.09872), without a tensor over pictures, classes and width.

Picture b and class c have the prototype P_bc = (t_c + r_b) / |t_c + r_b|. Of a bank F of unit features its k nearest are those with the
largest t_c f + r_b f, since the length does not change the order. With m their mean, the rectified prototype is a P + (1 - a) m and the
logit a logit + (1 - a) 100 mean(x f): neither P nor m is ever needed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SCALE = 100.0  # of the official code, a constant
FLOATS_AT_ONCE = 2**24  # of a block of scores, 64 MiB


class Rectified(NamedTuple):
    """Of each picture: the winning class, its rectified logit, and its neighbours."""

    label: Tensor
    """(B,)."""
    logit: Tensor
    """(B,)."""
    neighbours: Tensor
    """(B, k) positions in the bank."""


def top_positions(scores: Tensor, k: int) -> Tensor:
    """Positions (..., k) of the k largest along the last axis, in no particular order.

    The k largest lie in the k blocks with the largest maxima, which are found without sorting anything long.
    """
    size = scores.shape[-1]
    block = int(size**0.5)
    if size < 4096 or size // block < k:
        return scores.topk(k, sorted=False).indices
    blocks = size // block
    whole = scores[..., : blocks * block].unflatten(-1, (blocks, block))
    first = whole.amax(-1).topk(k, sorted=False).indices  # (..., k)
    places = (first[..., None] * block + torch.arange(block, device=scores.device)).flatten(-2)
    rest = torch.arange(blocks * block, size, device=scores.device).expand(*places.shape[:-1], -1)
    places = torch.cat([places, rest], -1)
    return places.gather(-1, scores.gather(-1, places).topk(k, sorted=False).indices)


class Rectifier:
    """The bank of a set of pictures, and the classes that are looked for in it.

    Args:
        t: (C, D) unit text features.
        bank: (N, D) unit features of unlabelled pictures.
        k: Neighbours; fewer where the bank is smaller.
        alpha: Weight of the prototype.
    """

    def __init__(self, t: Tensor, bank: Tensor, k: int = 5, alpha: float = 0.95) -> None:
        self.bank, self.k, self.alpha = bank, k, alpha
        self.by_class = t @ bank.T  # (C, N)

    def logits(self, logits: Tensor, x: Tensor, r: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rectified logits of all classes, (B, C), and the neighbours (B, C, k) as positions in the bank.

        Args:
            logits: (B, C), with factor 100.
            x: (B, D) unit features of the pictures.
            r: (B, D) residuals.
            own: (B,) position of the picture itself in the bank, which is then left out; ``None`` lets it be its own neighbour.
        """
        size, number, k = len(self.bank), logits.shape[1], self._neighbours(own)
        out, near = torch.empty_like(logits), torch.empty(*logits.shape, k, dtype=torch.long, device=logits.device)
        classes = max(1, min(number, FLOATS_AT_ONCE // size))
        rows = max(1, FLOATS_AT_ONCE // (classes * size))
        for first in range(0, len(x), rows):
            part = slice(first, first + rows)
            by_picture, similar = self._products(x[part], r[part], None if own is None else own[part])
            for start in range(0, number, classes):
                some = slice(start, start + classes)
                places = top_positions(self.by_class[None, some] + by_picture[:, None], k)
                near[part, some] = places
                mean = similar.gather(1, places.flatten(1)).view(places.shape).mean(-1)
                out[part, some] = self.alpha * logits[part, some] + (1 - self.alpha) * SCALE * mean
        return out, near

    def classes(self, logits: Tensor, x: Tensor, r: Tensor, own: Tensor | None = None, rows: int = 64, at_once: int = 512) -> Rectified:
        """The winner of `logits`, with neighbours looked for only where a class can still win.

        However a class's neighbours lie, mean(x f) is at most the mean of the k largest x f. So classes are tried from the largest logit
        down, until that bound no longer reaches the best found. Exact, up to which of two equal logits comes first.

        Args:
            logits, x, r, own: As of `logits`.
            rows: Pictures looked at together; small, so that their scores stay in the processor's cache.
            at_once: Pictures multiplied with the bank together.
        """
        count, k = len(x), self._neighbours(own)
        label, best = torch.zeros(count, dtype=torch.long, device=x.device), torch.full((count,), -torch.inf, device=x.device)
        near = torch.zeros(count, k, dtype=torch.long, device=x.device)
        for start in range(0, count, at_once):
            block = slice(start, start + at_once)
            products = self._products(x[block], r[block], None if own is None else own[block])
            parts = (each.split(rows) for each in (logits[block], *products, label[block], best[block], near[block]))
            for some in zip(*parts):
                self._search(*some)
        return Rectified(label, best, near)

    def _neighbours(self, own: Tensor | None) -> int:
        return min(self.k, len(self.bank) - (own is not None))

    def _products(self, x: Tensor, r: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, N) each: what orders the bank for a picture, beside the class; and how alike they are. The picture itself comes last."""
        by_picture, similar = r @ self.bank.T, x @ self.bank.T
        if own is not None:
            each = torch.arange(len(x), device=x.device)
            by_picture[each, own] = similar[each, own] = -torch.inf
        return by_picture, similar

    def _search(self, logits: Tensor, by_picture: Tensor, similar: Tensor, label: Tensor, best: Tensor, near: Tensor) -> None:
        """Fills ``label``, ``best`` and ``near`` in place."""
        ranked, order = logits.sort(1, descending=True)
        k, alpha = near.shape[1], self.alpha
        bound = (1 - alpha) * SCALE * similar.gather(1, top_positions(similar, k)).mean(1) + 1e-4  # of rounding
        for number in range(logits.shape[1]):
            rows = (alpha * ranked[:, number] + bound > best).nonzero().squeeze(1)
            if not len(rows):
                return
            classes = order[rows, number]
            places = top_positions(self.by_class[classes] + by_picture[rows], k)
            value = alpha * ranked[rows, number] + (1 - alpha) * SCALE * similar[rows].gather(1, places).mean(1)
            better = value > best[rows]
            won = rows[better]
            best[won], label[won], near[won] = value[better], classes[better], places[better]
