"""Rows of all ranks: one loss over them has the gradient of one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from genlab.training.gathering import gather_list, gather_rows

ROWS = torch.arange(12.0).reshape(6, 2) / 10


def loss_of(weight: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Couples all rows, as contrastive losses do."""
    out = gather_rows(rows @ weight)
    return (out @ out.T).softmax(-1).diagonal().log().mean()


def rank_main(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    weight = torch.eye(2, requires_grad=True)
    loss = loss_of(weight, ROWS[3 * rank : 3 * rank + 3])
    loss.backward()
    assert weight.grad is not None
    dist.all_reduce(weight.grad)
    torch.save({"loss": loss.detach(), "grad": weight.grad / 2, "names": gather_list([f"{rank}a", f"{rank}b"])}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.system
@pytest.mark.slow
def test_two_ranks_have_the_gradient_of_one(tmp_path: Path) -> None:
    weight = torch.eye(2, requires_grad=True)
    loss = loss_of(weight, ROWS)
    loss.backward()
    multiprocessing.spawn(rank_main, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        held = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(held["loss"], loss.detach())
        torch.testing.assert_close(held["grad"], weight.grad)
        assert held["names"] == ["0a", "0b", "1a", "1b"]
