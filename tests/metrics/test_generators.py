from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from genlab.metrics.generators import GeneratorMetrics, average_precision, f1_from_rates, roc_auc, threshold_at_fpr
from genlab.training.randomness import keyed_rng
from tests.golden_files import golden_files, load_golden

NAMES = ["Sora", "Gen2", "Lavie"]


def fed(rows: list[tuple[float, int, str]], metric: GeneratorMetrics, index: list[int] | None = None) -> GeneratorMetrics:
    scores, labels, names = zip(*rows)
    metric.update(torch.tensor(scores, dtype=torch.float64), torch.tensor(labels), list(names), torch.tensor(index or range(len(rows))))
    return metric


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("demamba", "metrics"))
def test_equals_the_reference(path):
    golden, _ = load_golden(path)
    expected, tol = golden["expected"], golden["tol"]
    rows = [(score, label, name.split("/")[1] if label else name) for name, label, score in golden["rows"]]
    generators = list(expected["per_generator"])
    exact = fed(rows, GeneratorMetrics(generators)).compute()
    official = fed(rows, GeneratorMetrics(generators, f1_official=True)).compute()
    wanted = {
        **{f"{g}/{key}": value for g, values in expected["per_generator"].items() for key, value in values.items()},
        **expected["macro"],
        "real_acc": expected["real_accuracy"],
        "acc": expected["overall_accuracy"],
        "overall_ap": expected["overall_ap"],
        "overall_auroc": expected["overall_auc"],
        "acc_with_real": expected["acc_avg_11_columns"],
    }
    for key, value in wanted.items():
        found = (
            official[key.replace("f1_official_truncated", "f1")]
            if "truncated" in key
            else exact[key.replace("auc", "auroc")]
            if key.endswith("auc")
            else exact[key]
        )
        assert abs(found.item() - value) <= tol["atol"] + tol["rtol"] * abs(value), key


def test_the_published_sora_row_comes_from_truncated_counts():
    """Paper, Table 3: recall .9821 of 56 and real accuracy .9942 of 10,000 give F1 .6467; the counts behind them, 55 and 58, give .6509."""
    assert f1_from_rates(0.9821, 56, 0.9942, 10_000, truncated=True) == pytest.approx(108 / 167)
    assert f1_from_rates(0.9821, 56, 0.9942, 10_000, truncated=False) == pytest.approx(110 / 169)
    rows = [(0.9, 1, "Sora")] * 55 + [(0.1, 1, "Sora")] + [(0.9, 0, "")] * 58 + [(0.1, 0, "")] * 9942
    assert fed(rows, GeneratorMetrics(["Sora"])).compute()["Sora/f1"].item() == pytest.approx(110 / 169)


def test_a_score_at_the_threshold_is_real():
    values = fed([(0.5, 1, "Sora"), (0.5, 0, "real/msrvtt"), (0.6, 1, "Sora")], GeneratorMetrics(["Sora"])).compute()
    assert values["Sora/recall"] == 0.5
    assert values["real_acc"] == 1


def test_average_precision_and_auroc_by_their_definitions():
    rng = keyed_rng("ranking", 0)
    for _ in range(30):
        labels = np.append(rng.integers(0, 2, 40), [0, 1])
        scores = rng.integers(0, 12, 42) / 12  # many ties
        fakes, reals = scores[labels == 1], scores[labels == 0]
        wins = [(f > r) + 0.5 * (f == r) for f in fakes for r in reals]
        assert roc_auc(scores, labels) == pytest.approx(np.mean(wins), abs=1e-12)
        steps = [(np.mean(fakes == t), labels[scores >= t].mean()) for t in np.unique(scores)]
        assert average_precision(scores, labels) == pytest.approx(sum(gain * precision for gain, precision in steps), abs=1e-12)
    assert average_precision([0.3] * 4, [1, 0, 0, 0]) == 0.25  # a constant detector gets the share of fakes, in any order


def test_what_cannot_be_counted_is_nan():
    only_fakes = fed([(0.9, 1, "Sora")], GeneratorMetrics(["Sora", "Gen2"])).compute()
    assert only_fakes["Sora/recall"] == 1
    assert only_fakes["recall"] == 1  # Gen2 has no fakes and is no part of the mean
    assert only_fakes["Gen2/n"] == 0
    assert all(only_fakes[key].isnan() for key in ("Gen2/recall", "Gen2/f1", "Gen2/ap", "Sora/ap", "ap", "real_acc", "overall_auroc"))
    only_reals = fed([(0.1, 0, "")], GeneratorMetrics(["Sora"])).compute()
    assert only_reals["real_acc"] == 1
    assert only_reals["recall"].isnan()
    assert math.isnan(average_precision([], []))


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="'Pika', which is not in the list"):
        fed([(0.9, 1, "Pika")], GeneratorMetrics(NAMES))
    with pytest.raises(ValueError, match="label: 2"):
        fed([(0.9, 2, "Sora")], GeneratorMetrics(NAMES))
    with pytest.raises(ValueError, match="1 of 2 are not finite, the first at index 7"):
        fed([(0.9, 1, "Sora"), (math.nan, 0, "")], GeneratorMetrics(NAMES), [3, 7]).compute()


def test_threshold_at_a_false_positive_rate():
    rng = keyed_rng("threshold", 0)
    for n in (1, 7, 100):
        scores = rng.integers(0, 30, n) / 30
        for fpr in (0, 0.01, 0.05, 0.29, 0.5, 0.99):
            threshold = threshold_at_fpr(scores, fpr)
            assert np.mean(scores > threshold) <= fpr
            assert all(np.mean(scores > lower) > fpr for lower in scores[scores < threshold])
            assert np.mean(scores > np.nextafter(threshold, -1)) > fpr  # nothing smaller would do
    for scores, fpr in (([], 0.1), ([0.1, math.nan], 0.1), ([0.1], 1.0)):
        with pytest.raises(ValueError, match=r"fpr|real_scores"):
            threshold_at_fpr(scores, fpr)


def clips() -> tuple[torch.Tensor, torch.Tensor, list[str], torch.Tensor]:
    rng = keyed_rng("clips", 0)
    names = [["", *NAMES][i] for i in rng.integers(0, 4, 53)]
    labels = torch.tensor([int(bool(name)) for name in names])
    return torch.from_numpy(rng.integers(0, 20, 53) / 20).float(), labels, names, torch.arange(53)


def evaluate(rank: int, cases: list[list[list[int]]], rendezvous: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    scores, labels, names, index = clips()
    metric = GeneratorMetrics(NAMES)
    found = []
    for shards in cases:
        for batch in range(0, len(shards[rank]), 11):
            chosen = shards[rank][batch : batch + 11]
            metric.update(scores[chosen], labels[chosen], [names[i] for i in chosen], index[chosen])
        found.append(metric.compute())
        metric.reset()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.system
def test_two_processes_equal_one(tmp_path):
    everything = list(range(53))
    uneven_with_padding = [everything[:30], [*everything[30:], 0, 1, 2]]
    one_rank_without_samples = [everything, []]
    alone = GeneratorMetrics(NAMES)
    alone.update(*clips())
    expected = alone.compute()
    mp.spawn(evaluate, ([uneven_with_padding, one_rank_without_samples], f"file://{tmp_path}/rendezvous", str(tmp_path)), nprocs=2)
    for found in [values for rank in range(2) for values in torch.load(tmp_path / f"{rank}.pt", weights_only=True)]:
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
