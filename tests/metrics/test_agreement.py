"""Agreement of two scores: golden numbers, ties, and intervals that hold what they promise."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from genlab.metrics.agreement import agreement, disagreeing_pairs, interval, kendall, resampled_means, two_sided_p
from genlab.training.randomness import keyed_rng
from tests.golden_files import golden_files, load_golden


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("inpaint_consistency", "agreement"))
def test_equals_the_reference(path: Path) -> None:
    golden, _ = load_golden(path)
    found = agreement(-np.array(golden["metric_values"]), golden["human_scores"])
    names = {"spearman": "spearman", "kendall": "kendall_tau_b", "pearson": "pearson"}
    names["pairwise"] = "pairwise_accuracy_ties_in_human_skipped_ties_in_metric_half"
    for ours, theirs in names.items():
        assert found[ours] == pytest.approx(golden[theirs], abs=golden["tol"]["atol"]), ours  # type: ignore[literal-required]


def test_kendall_is_tau_b() -> None:
    for number in range(20):
        rng = keyed_rng("tau", number)
        x, y = rng.integers(0, 4, (2, 9)).astype(float)
        assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)


def test_pairs_in_another_order_and_the_undecidable() -> None:
    assert disagreeing_pairs(["a", "b", "c"], [3, 2, 1], [1, 2, 2]) == [("a", "b"), ("a", "c")]
    assert math.isnan(agreement([1, 1], [1, 2])["kendall"]) and agreement([1, 1], [1, 2])["pairwise"] == 0.5
    assert math.isnan(agreement([1], [2])["pairwise"])
    with pytest.raises(ValueError, match="one number of each"):
        agreement([1, 2], [1])


def test_intervals_cover_the_true_mean_and_leave_missing_values_out() -> None:
    covered, trials = 0, 200
    for number in range(trials):
        values = keyed_rng("cover", number).normal(1.0, 2.0, 40)
        low, high = interval(resampled_means(values[:, None], 400, number)[:, 0])
        covered += low < 1.0 < high
    assert 0.88 * trials <= covered <= 0.99 * trials
    values = np.array([[1.0, np.nan], [3.0, 5.0], [np.nan, 5.0]])
    means = resampled_means(values, 500)
    assert np.nanmin(means[:, 0]) == 1.0 and np.nanmax(means[:, 0]) == 3.0 and np.nanstd(means[:, 1]) == 0.0
    assert all(math.isnan(each) for each in interval(np.array([np.nan])))
    assert two_sided_p(np.array([1.0] * 99 + [-1.0])) == pytest.approx(0.02) and two_sided_p(np.ones(100)) == 0.01
