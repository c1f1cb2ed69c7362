"""Terms that couple the samples of a batch, over all ranks: their values are gathered, and the gradient is that of one large batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all W ranks, rank after rank, (B, ...) -> (W * B, ...); every rank has equally many.

    Each rank works out the same loss over all rows. Backward sums, for a rank's own rows, the gradients that all ranks have for them; DDP's
    mean over ranks then makes the gradient of parameters what one process with the whole batch would have.
    """
    if _ranks() == 1:
        return rows
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(rows.contiguous()))


def gather_list(items: Sequence[T]) -> Sequence[T]:
    """Plain values of all ranks, in the order of :func:`gather_rows`."""
    if _ranks() == 1:
        return items
    found: list[Any] = [None] * _ranks()
    dist.all_gather_object(found, list(items))
    return [item for each in found for item in each]
