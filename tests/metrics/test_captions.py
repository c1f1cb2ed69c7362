"""Retrieval of captions and spread of hidden states, worked out by hand and over two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from genlab.metrics.captions import CaptionRetrieval, StateSpread, is_part_of, true_captions
from genlab.training.randomness import keyed_torch_generator

pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")

RED, STAR, BLUE, RING, WALL = range(5)


def test_a_caption_is_part_of_one_that_says_more() -> None:
    assert is_part_of([RED, STAR], [RED, BLUE, STAR]) and is_part_of([], [RED]) and is_part_of([RED], [RED])
    assert not is_part_of([STAR, RED], [RED, STAR]) and not is_part_of([RED, RED], [RED, STAR]) and not is_part_of([RED], [])
    words = [[RED, STAR, WALL], [RED, STAR], [STAR, RED], [RED, STAR, WALL], []]
    wanted = [
        [1, 1, 0, 1, 1],
        [0, 1, 0, 0, 1],
        [0, 0, 1, 0, 1],
        [1, 1, 0, 1, 1],
        [0, 0, 0, 0, 1],
    ]
    assert true_captions(words).int().tolist() == wanted
    assert true_captions([]).shape == (0, 0)


def retrieval(angles: list[float], texts: list[float], words: list[list[int]], groups: list[int], among: int = 100) -> float:
    """Embeddings in the plane, of different lengths, at these angles in degrees; fed one by one from the last to the first."""
    metric = CaptionRetrieval(among, 4)
    for i in reversed(range(len(angles))):
        one, other = (torch.deg2rad(torch.tensor([each[i]])) for each in (angles, texts))
        sample, text = (torch.stack([a.cos(), a.sin()], 1) * (length + i) for a, length in ((one, 1), (other, 5)))
        metric.update(sample, text, [words[i]], torch.tensor([groups[i]]), torch.tensor([i]))
    return metric.compute().item()


def test_retrieval_by_hand() -> None:
    words = [[RED], [BLUE], [STAR], [RING]]
    # The second sample (40 degrees) is 28 from its own caption (68) and 5 from the third one (45); the others are closest to their own.
    angles, texts = [0.0, 40.0, 50.0, 180.0], [10.0, 68.0, 45.0, 170.0]
    assert retrieval(angles, texts, words, [0, 1, 2, 3]) == 0.75
    assert retrieval(angles, texts, words, [0, 1, 1, 3], among=2) == 0.75, "members of the group come first"
    assert retrieval(angles, texts, [[RED], [BLUE, STAR], [STAR], [RING]], [0, 1, 2, 3]) == 1.0, "'star' is true of the blue star"
    assert retrieval(angles, texts, [[RED], [STAR], [BLUE, STAR], [RING]], [0, 1, 2, 3]) == 0.75, "'blue star' need not be of a star"
    assert retrieval([0.0, 0.0], [0.0, 0.0], [[RED], [BLUE]], [0, 1]) == 0.0, "a tie is not right"
    assert retrieval([0.0], [180.0], [[RED]], [0]) == 1.0, "alone"


def test_no_more_captions_than_asked_for() -> None:
    """Caption i is 10 i degrees from every sample: among all, only sample 0 finds its own, among two more do."""
    angles, texts, words = [0.0] * 6, [10.0 * i for i in range(6)], [[i] for i in range(6)]
    found = [retrieval(angles, texts, words, list(range(6)), among) for among in (1, 2, 6)]
    assert found[0] == 1 and 1 / 6 < found[1] < 1 and found[2] == pytest.approx(1 / 6)
    assert retrieval(angles, texts, words, [0, 0, 2, 2, 4, 4], among=2) == 0.5, "of each pair, the closer one"


def test_spread_by_hand() -> None:
    # Two sets of two texts with one place and one channel: 1, 3 and 5, 9. Between: (1 + 1 + 4 + 4) / 4 = 2.5.
    # At all: mean 4.5, squares (1 + 9 + 25 + 81) / 4 = 29, variance 29 - 20.25 = 8.75.
    metric = StateSpread(1)
    metric.update(torch.tensor([[[1.0]], [[3.0]]]))
    metric.update(torch.tensor([[[5.0]], [[9.0]]]))
    assert metric.compute().item() == pytest.approx((2.5 / 8.75) ** 0.5)
    # Channels are summed over; places that differ while texts do not are no spread.
    blind, seeing = StateSpread(2), StateSpread(2)
    blind.update(torch.tensor([[[1.0, 0.0], [5.0, 2.0]]] * 3))
    seeing.update(torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]], [[0.0, 0.0]]]))
    assert blind.compute() == 0 and seeing.compute() == pytest.approx(1)
    assert blind.compute().ndim == 0


def test_nothing_seen_is_nan() -> None:
    assert CaptionRetrieval().compute().isnan() and StateSpread(3).compute().isnan()


def captions() -> tuple[Tensor, Tensor, list[list[int]], Tensor, Tensor]:
    generator = keyed_torch_generator("captions")
    samples = torch.randn(53, 6, generator=generator)
    texts = samples + torch.randn(53, 6, generator=generator)
    words = [[int(each)] * int(count) for each, count in torch.randint(1, 5, (53, 2), generator=generator)]
    return samples, texts, words, torch.arange(53) // 4, torch.arange(53)


def fed(chosen: list[int], batch: int = 9) -> tuple[CaptionRetrieval, StateSpread]:
    samples, texts, words, group, index = captions()
    retrieved, spread = CaptionRetrieval(10, 5), StateSpread(2)
    for start in range(0, len(chosen), batch):
        some = chosen[start : start + batch]
        retrieved.update(samples[some], texts[some], [words[i] for i in some], group[some], index[some])
    for i in chosen:
        spread.update(samples[i].view(3, 1, 2))
    return retrieved, spread


def evaluate(rank: int, cases: list[list[list[int]]], rendezvous: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    torch.save([[metric.compute() for metric in fed(shards[rank])] for shards in cases], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.system
def test_two_processes_equal_one(tmp_path: Path) -> None:
    everything = list(range(53))
    dealt_out, one_rank_without_samples = [everything[::2], everything[1::2]], [[], everything]
    retrieved, spread = (metric.compute() for metric in fed(everything, 53))
    assert 0.1 < retrieved < 0.9 and 0.1 < spread < 1
    mp.spawn(evaluate, ([dealt_out, one_rank_without_samples], f"file://{tmp_path}/rendezvous", str(tmp_path)), nprocs=2)
    for rank in range(2):
        for found in torch.load(tmp_path / f"{rank}.pt", weights_only=True):
            assert torch.equal(found[0], retrieved)
            assert torch.allclose(found[1], spread, rtol=1e-12)
