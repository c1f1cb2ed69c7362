"""Supervised contrastive loss (Khosla et al., arXiv 2004.11362, Eq. 2) against a cross-batch memory (Wang et al., arXiv 1912.06798)."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def supervised_contrastive(
    anchors: Tensor, labels: Tensor, references: Tensor, reference_labels: Tensor, own: Tensor | None, temperature: float = 0.07
) -> tuple[Tensor, Tensor]:
    """Loss of each anchor: -mean over its positives p of [s_ip - log sum_a exp(s_ia)], s = cosine / temperature.

    Args:
        anchors: (B, E), of any length.
        labels: (B,).
        references: (N, E), likewise.
        reference_labels: (N,).
        own: (B,) place of the anchor itself among the references, which is left out; ``None`` where it is not among them.
        temperature: tau.

    Returns:
        Losses (B,), 0 for anchors without a positive, and which anchors have one, (B,) bool. All are 0 where no anchor has a positive or
        none has a negative: there is nothing to contrast then.
    """
    similar = F.normalize(anchors, dim=-1) @ F.normalize(references, dim=-1).T / temperature
    compared = torch.ones_like(similar, dtype=torch.bool)
    if own is not None:
        compared[torch.arange(len(anchors), device=own.device), own] = False
    same = (labels[:, None] == reference_labels[None]) & compared
    positives = same.sum(1)
    counted = positives > 0
    if not bool(counted.any()) or bool((same == compared).all()):
        return similar.sum(1) * 0, torch.zeros_like(counted)
    everything = similar.masked_fill(~compared, float("-inf")).logsumexp(1)
    losses = everything - (similar * same).sum(1) / positives.clamp_min(1)
    return torch.where(counted, losses, torch.zeros_like(losses)), counted


def mean_of_counted(losses: Tensor, counted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted mean (B,) -> scalar over the anchors that count; 0 where none does.

    Under several processes the weights of all are what is divided by, so that the mean over processes is the one of the whole batch.
    """
    weights = counted.to(losses) if weights is None else counted * weights.to(losses)
    return (losses * weights).sum() / mean_over_ranks(weights.sum()).clamp_min(1e-12)


@torch.no_grad()
def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a number over processes; itself where there is one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


class CrossBatchMemory(nn.Module):
    """A ring of past embeddings that anchors are compared with, besides those of the batch itself. In checkpoints, with its position.

    Under several processes the ring holds the rows of all of them, rank after rank, and is the same everywhere.

    Args:
        size: Slots. Official code: 1200.
        width: E.
        temperature: Of the loss.
    """

    embeddings: Tensor
    labels: Tensor
    position: Tensor
    filled: Tensor

    def __init__(self, size: int, width: int, temperature: float = 0.07) -> None:
        super().__init__()
        self.size, self.temperature = size, temperature
        self.register_buffer("embeddings", torch.zeros(size, width))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self._own: Tensor | None = None

    def forward(self, embeddings: Tensor, labels: Tensor, write: bool = True, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Loss of a batch against the memory, itself included and each anchor's own slot left out.

        Args:
            embeddings: (B, E).
            labels: (B,).
            write: Put the batch into the ring first. Without, it is compared with what the last written batch left, whose slots are
                those of the same anchors: the second of two passes.
            weights: (B,) of the anchors in the mean.

        Returns:
            The loss, and the least that it can be as things stand: the mean of log |P|, P the positives of an anchor.
        """
        if write or self._own is None:
            self._own = self._write(embeddings.detach(), labels)
        there = int(self.filled)
        references, reference_labels = self.embeddings[:there], self.labels[:there]
        losses, counted = supervised_contrastive(
            embeddings, labels, references.to(embeddings), reference_labels, self._own, self.temperature
        )
        positives = (labels[:, None] == reference_labels[None]).sum(1) - 1
        least = mean_of_counted(positives.clamp_min(1).log(), counted, weights)
        return mean_of_counted(losses, counted, weights), least

    @torch.no_grad()
    def _write(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Writes the rows of all ranks and returns the slots of this one's."""
        rank, count = 0, len(labels)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            rank = dist.get_rank()
            every = [torch.empty_like(embeddings) for _ in range(dist.get_world_size())]
            every_label = [torch.empty_like(labels) for _ in range(dist.get_world_size())]
            dist.all_gather(every, embeddings.contiguous())
            dist.all_gather(every_label, labels.contiguous())
            embeddings, labels = torch.cat(every), torch.cat(every_label)
        if len(labels) > self.size:
            raise ValueError(
                f"memory: {len(labels)} rows come at once, it has {self.size} slots; make it larger than a batch of all ranks."
            )
        slots = (self.position + torch.arange(len(labels), device=self.position.device)) % self.size
        self.embeddings[slots] = embeddings.to(self.embeddings)
        self.labels[slots] = labels
        self.position.fill_(int(self.position + len(labels)) % self.size)
        self.filled.fill_(min(int(self.filled) + len(labels), self.size))
        return slots[rank * count : (rank + 1) * count]
