"""Samplers and the training loader: balance, disjoint ranks, and a position that survives a stop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from datamodules.sampling import Draw, EvalSampler, TrainLoader, TrainSampler

CLASSES = np.array([0] * 30 + [1] * 11)


class Echo(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return len(CLASSES)

    def __getitem__(self, draw: Draw) -> torch.Tensor:
        return torch.tensor([draw.index, draw.epoch])


def indices(sampler: TrainSampler | EvalSampler) -> list[int]:
    return [draw.index for draw in sampler]


def test_an_epoch_is_balanced_without_repeats_and_changes_with_the_epoch() -> None:
    sampler = TrainSampler(CLASSES, len(CLASSES), seed=3)
    first = indices(sampler)
    assert len(first) == len(sampler) == 22 == len(set(first))
    assert sum(CLASSES[first]) == 11
    assert indices(sampler) == first
    sampler.set_epoch(1)
    assert indices(sampler) != first and sum(CLASSES[indices(sampler)]) == 11


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_the_steps_of_one_process(world_size: int) -> None:
    """Step k of W ranks with batch b sees the samples of step k of one rank with batch W * b."""
    whole = indices(TrainSampler(CLASSES, len(CLASSES), seed=3))
    ranks = [indices(TrainSampler(CLASSES, len(CLASSES), 3, rank, world_size)) for rank in range(world_size)]
    assert len({len(r) for r in ranks}) == 1
    assert not set(ranks[0]) & set(ranks[1])
    for k in range(len(ranks[0]) // 2):
        together = sorted(i for r in ranks for i in r[2 * k : 2 * k + 2])
        assert together == sorted(whole[2 * world_size * k : 2 * world_size * (k + 1)])


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 16])
def test_evaluation_sees_every_sample_once(world_size: int) -> None:
    seen = [i for rank in range(world_size) for i in indices(EvalSampler(11, rank, world_size))]
    assert sorted(seen) == list(range(11))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_continues_after_the_batches_it_handed_out(workers: int) -> None:
    def loader() -> TrainLoader:
        return TrainLoader(Echo(), TrainSampler(CLASSES, len(CLASSES), seed=5), batch_size=4, num_workers=workers)

    whole = loader()
    whole.sampler.set_epoch(2)
    expected = [batch.tolist() for batch in whole]
    stopped = loader()
    stopped.sampler.set_epoch(2)
    iterator = iter(stopped)
    begun = [next(iterator).tolist() for _ in range(2)]
    state = stopped.state_dict()
    assert state == {"epoch": 2, "batches": 2}
    resumed = loader()
    resumed.load_state_dict(state)
    iterator = iter(resumed)  # Lightning makes the iterator before it tells the epoch
    resumed.sampler.set_epoch(2)
    assert begun + [batch.tolist() for batch in iterator] == expected
    resumed.sampler.set_epoch(3)
    assert len(list(resumed)) == len(expected), "the next epoch is whole again"


def test_a_position_of_another_epoch_is_not_applied() -> None:
    loader = TrainLoader(Echo(), TrainSampler(CLASSES, len(CLASSES), seed=5), batch_size=4)
    loader.load_state_dict({"epoch": 1, "batches": 5})
    loader.sampler.set_epoch(2)
    assert len(list(loader)) == 5


def test_making_an_iterator_leaves_the_global_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    list(TrainLoader(Echo(), TrainSampler(CLASSES, len(CLASSES), seed=5), batch_size=4))
    assert torch.equal(before, torch.get_rng_state())


STOPS_WITHIN_AN_EPOCH = """
import sys
from datamodules.sampling import TrainLoader, TrainSampler, leave_interrupts_to_parent
from tests.datamodules.test_sampling import CLASSES, Echo

sampler = TrainSampler(CLASSES, len(CLASSES), seed=3)
loader = TrainLoader(Echo(), sampler, batch_size=2, num_workers=2, worker_init_fn=leave_interrupts_to_parent)
batches = iter(loader)
next(batches)
sys.exit(75)
"""


@pytest.mark.system
def test_a_process_that_stops_within_an_epoch_ends() -> None:
    """Its workers do not heed the first TERM, and multiprocessing would wait for them for ever."""
    command = [sys.executable, "-c", STOPS_WITHIN_AN_EPOCH]
    asked = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert asked.returncode == 75 and not asked.stderr
