"""Who sees which sample when: samplers as functions of (seed, epoch, rank), and a training loader that can stop within an epoch."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from genlab.training.randomness import keyed_rng


@dataclass(frozen=True, slots=True)
class Draw:
    """One draw of a sample: what its augmentation is keyed by, together with seed and sample id."""

    index: int
    epoch: int
    occurrence: int = 0
    """Counts up when the same sample comes again within the epoch."""


class TrainSampler(Sampler[Draw]):
    """Shuffled, class-balanced, sharded over ranks.

    The global order depends on seed and epoch alone and is dealt out in turn, so that a step of W ranks with batch size b sees the
    samples that one rank with batch size W * b would see. What does not fill a round of ranks is left out of the epoch.

    Args:
        classes: (N,) class of each sample; ``None`` draws every sample once.
        size: Number of samples, where there are no classes.
        seed: Keys the order.
        rank, world_size: This process, and how many there are.

    With classes, an epoch draws min(class sizes) samples of each class without replacement (official code: "balance").
    """

    def __init__(self, classes: np.ndarray | None, size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.members = [np.arange(size)] if classes is None else [np.flatnonzero(classes == c) for c in np.unique(classes)]
        self.per_class = min(len(m) for m in self.members)
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = 0
        self.start = 0
        """Draws of this rank to skip at the next iteration."""

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def order(self) -> np.ndarray:
        """The epoch's samples of all ranks."""
        rng = keyed_rng(self.seed, "train order", self.epoch)
        chosen = np.concatenate([rng.permutation(m)[: self.per_class] for m in self.members])
        return rng.permutation(chosen)

    def __iter__(self) -> Iterator[Draw]:
        mine = self.order()[: len(self) * self.world_size][self.rank :: self.world_size]
        return (Draw(int(index), self.epoch) for index in mine[self.start :])

    def __len__(self) -> int:
        return self.per_class * len(self.members) // self.world_size


class GroupSampler(TrainSampler):
    """Every sample once, members of a group one after the other, groups in random order: batches hold whole groups.

    Args:
        groups: (N,) group of each sample.
        seed, rank, world_size: As of :class:`TrainSampler`.
        mixed_epochs: First epochs, whose order pays no heed to groups.
    """

    def __init__(self, groups: np.ndarray, seed: int, rank: int = 0, world_size: int = 1, mixed_epochs: int = 0) -> None:
        super().__init__(None, len(groups), seed, rank, world_size)
        self.groups, self.mixed_epochs = groups, mixed_epochs

    def order(self) -> np.ndarray:
        rng = keyed_rng(self.seed, "train order", self.epoch)
        shuffled = rng.permutation(len(self.groups))
        if self.epoch < self.mixed_epochs:
            return shuffled
        place = rng.permutation(int(self.groups.max()) + 1)[self.groups[shuffled]]
        return shuffled[np.argsort(place, kind="stable")]


class RepeatedSampler(TrainSampler):
    """Some samples several times an epoch, all shuffled together; a sample that comes again counts up its ``occurrence``.

    Args:
        times: (N,) int, how often each sample comes; with ``weighted``, weights of N draws with replacement.
        seed, rank, world_size: As of :class:`TrainSampler`.
        weighted: See ``times``.
    """

    def __init__(self, times: np.ndarray, seed: int, rank: int = 0, world_size: int = 1, weighted: bool = False) -> None:
        super().__init__(None, len(times) if weighted else int(times.sum()), seed, rank, world_size)
        self.times, self.weighted = times, weighted

    def order(self) -> np.ndarray:
        rng = keyed_rng(self.seed, "train order", self.epoch)
        if self.weighted:
            return rng.choice(len(self.times), len(self.times), p=self.times / self.times.sum())
        return rng.permutation(np.repeat(np.arange(len(self.times)), self.times))

    def __iter__(self) -> Iterator[Draw]:
        order = self.order()
        seen = np.zeros(len(self.times), np.int64)
        occurrences = np.empty(len(order), np.int64)
        for place, index in enumerate(order):
            occurrences[place] = seen[index]
            seen[index] += 1
        mine = slice(self.rank, len(self) * self.world_size, self.world_size)
        draws = zip(order[mine].tolist()[self.start :], occurrences[mine].tolist()[self.start :])
        return (Draw(index, self.epoch, occurrence) for index, occurrence in draws)


def chunked_order(size: int, chunk: int, repeat: int, times: int, seed: int, epoch: int) -> np.ndarray:
    """An epoch's order in which chunks of a permutation come several times (released code of arXiv 2504.14245).

    One generator, seeded once, draws a permutation for each epoch. It is cut into chunks, of which a last short one is left out.

    Args:
        size: Number of samples.
        chunk: Samples of a chunk.
        repeat: A chunk comes so many times, one after the other.
        times: Within it each sample so many times, one after the other.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epoch + 1):
        drawn = torch.randperm(size, generator=generator).numpy()
    chunks = drawn[: size // chunk * chunk].reshape(-1, 1, chunk, 1)
    return np.tile(chunks, (1, repeat, 1, times)).reshape(-1)


class ChunkSampler(TrainSampler):
    """`chunked_order`, dealt out so that every rank has its share of each chunk at the same time.

    Args:
        size: Number of samples.
        chunk: Samples of all ranks that come ``repeat`` times in a row; a multiple of ``world_size``.
        repeat: See there.
        seed, rank, world_size: As of :class:`TrainSampler`.
    """

    def __init__(self, size: int, chunk: int, repeat: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(None, size // chunk * chunk * repeat, seed, rank, world_size)
        self.size, self.chunk, self.repeat = size, chunk, repeat

    def order(self) -> np.ndarray:
        return chunked_order(self.size, self.chunk, self.repeat, 1, self.seed, self.epoch)


class EvalSampler(Sampler[Draw]):
    """Every sample exactly once over all ranks, none twice: ranks may differ by one sample.

    The order is shuffled once and for all, so that the first batches already show every class.

    Args:
        size: Number of samples.
        rank, world_size: This process, and how many there are.
        start: Samples of this rank that are done already.
    """

    def __init__(self, size: int, rank: int = 0, world_size: int = 1, start: int = 0) -> None:
        self.indices = keyed_rng("evaluation order").permutation(size)[rank::world_size][start:]

    def __iter__(self) -> Iterator[Draw]:
        return (Draw(int(index), epoch=0) for index in self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class TrainLoader(DataLoader[Any]):
    """A DataLoader whose position within the epoch can be saved and restored (Lightning asks ``state_dict`` and ``load_state_dict``).

    It starts its workers at the first batch asked for, not before: by then the sampler knows its epoch. Its own generator seeds the
    workers, so that making an iterator leaves the global random numbers alone.
    """

    sampler: TrainSampler

    def __init__(self, dataset: Dataset[Any], sampler: TrainSampler, batch_size: int, drop_last: bool = True, **options: Any) -> None:
        super().__init__(dataset, batch_size, sampler=sampler, drop_last=drop_last, generator=torch.Generator(), **options)
        self._position = {"epoch": -1, "batches": 0}
        self._resume: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return self._batches()

    def _batches(self) -> Iterator[Any]:
        resume, self._resume = self._resume, None
        epoch = self.sampler.epoch
        skipped = resume["batches"] if resume is not None and resume["epoch"] == epoch else 0
        self.sampler.start = skipped * (self.batch_size or 1)
        self._position = {"epoch": epoch, "batches": skipped}
        for batch in super().__iter__():
            self._position["batches"] += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch, and batches handed out in it."""
        return dict(self._position)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next iteration of that epoch continues after the batches that were handed out."""
        self._resume = dict(state)


def leave_interrupts_to_parent(worker: int) -> None:
    """For ``worker_init_fn``: Ctrl-C reaches every process of a terminal, and USR1 and TERM of a scheduler every process of a job, but the
    step under way still needs its batch. A second TERM is heeded: it may be the parent's, who wants the worker to go."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _heed_the_next_one)


def _heed_the_next_one(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)


@atexit.register
def _end_workers() -> None:
    """A process that stops in the midst of an epoch still has workers. At its exit multiprocessing sends each one TERM, which it may not
    heed, and would then wait for it for ever."""
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise at their deaths
    for worker in workers:
        while worker.is_alive():
            worker.terminate()
            worker.join(0.1)
