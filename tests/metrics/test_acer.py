"""APCER, BPCER, thresholds and rankings against golden numbers; once per sample on any number of processes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from genlab.metrics.acer import AttackMetrics, best_threshold, bpcer_at_apcer, equal_error_rate, rates, threshold_interval
from genlab.metrics.generators import roc_auc
from tests.golden_files import golden_files, load_golden


def agrees(found: float, expected: float | None, tol: float) -> bool:
    return math.isinf(found) if expected is None else abs(found - expected) <= tol


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("spectral_fas", "pad_metrics"))
def test_pad_metrics_golden(path: Path) -> None:
    meta, _ = load_golden(path)
    tol = meta["tol"]["atol"]
    for name, case in meta["cases"].items():
        scores, labels = case["scores"], case["labels"]
        found, grid = rates(scores, labels, case["thr"]), best_threshold(scores, labels)
        assert found == pytest.approx((case["apcer"], case["bpcer"]), abs=tol), name
        assert found.acer == pytest.approx(case["acer"], abs=tol), name
        wanted = case["grid"]
        assert (grid.first, grid.middle, [grid.first, grid.last]) == (
            pytest.approx(wanted["thr_first"], abs=tol), pytest.approx(wanted["thr_plateau_mid"], abs=tol),
            pytest.approx(wanted["plateau"], abs=tol),
        ), name  # fmt: skip
        assert (*grid.rates, grid.rates.acer) == pytest.approx((wanted["apcer"], wanted["bpcer"], wanted["acer"]), abs=tol), name
        rate, threshold = equal_error_rate(scores, labels)
        if case["eer"] is None:
            assert math.isnan(rate) and math.isnan(bpcer_at_apcer(scores, labels, 0.1)[0]), name
        else:
            assert agrees(rate, case["eer"]["eer"], tol) and agrees(threshold, case["eer"]["thr"], tol), name
            assert roc_auc(scores, labels) == pytest.approx(case["auc"], abs=tol), name
            for percent in (1, 10):
                at = case[f"bpcer_at_apcer_{percent}"]
                bpcer, apcer, threshold = bpcer_at_apcer(scores, labels, percent / 100)
                assert agrees(bpcer, at["bpcer"], tol) and agrees(apcer, at["apcer"], tol) and agrees(threshold, at["thr"], tol), name
        if "attack_type" in case:
            types = sorted(case["apcer_per_type"])
            metric = AttackMetrics(types)
            kinds = [kind or "live" for kind in case["attack_type"]]
            metric.update(torch.tensor(scores, dtype=torch.float64), torch.tensor(labels), kinds, torch.arange(len(scores)))
            values = metric.values(metric.compute(), case["thr"])
            for kind in types:
                assert values[f"{kind}/apcer"] == pytest.approx(case["apcer_per_type"][kind], abs=tol), name
            assert (values["apcer_max"], values["acer_max"]) == pytest.approx((case["apcer_max"], case["acer_max"]), abs=tol), name


def test_a_sample_that_comes_twice_counts_once() -> None:
    once, twice = AttackMetrics(["print"]), AttackMetrics(["print"])
    scores, labels, kinds = torch.tensor([0.9, 0.4, 0.6]), torch.tensor([1, 0, 0]), ["live", "print", "print"]
    once.update(scores, labels, kinds, torch.arange(3))
    twice.update(scores[[0, 2, 1, 0]], labels[[0, 2, 1, 0]], [kinds[i] for i in (0, 2, 1, 0)], torch.tensor([0, 2, 1, 0]))
    assert once.values(once.compute(), 0.5) == twice.values(twice.compute(), 0.5)
    assert once.values(once.compute(), 0.5)["apcer"] == 0.5
    with pytest.raises(ValueError, match="not finite"):
        once.update(torch.tensor([math.nan]), torch.tensor([1]), ["live"], torch.tensor([7]))
        once.compute()


def test_the_interval_of_the_threshold_holds_it_and_is_the_same_again() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(200) % 2
    scores = np.clip(0.5 + 0.2 * (labels - 0.5) + 0.15 * rng.standard_normal(200), 0, 1)
    low, high = threshold_interval(scores, labels, "middle")
    assert low <= best_threshold(scores, labels).middle <= high and low < high
    assert threshold_interval(scores, labels, "middle") == (low, high)
