"""Verdict metrics against golden numbers."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from genlab.metrics.verdicts import kappa, mcnemar, score_metrics, verdict_metrics
from tests.golden_files import golden_files, load_golden


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("mllm_defake", "mcnemar"))
def test_mcnemar_golden(path: Path) -> None:
    meta, _ = load_golden(path)
    for case in meta["cases"]:
        assert mcnemar(case["b"], case["c"]) == pytest.approx(case["p"], rel=meta["tol"]["rtol"], abs=meta["tol"]["atol"])


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("mllm_defake", "cache_expected"))
def test_metrics_golden(path: Path) -> None:
    meta, _ = load_golden(path)
    with (path.parent / f"{path.stem.replace('cache_expected', 'cache_sample')}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == meta["n_rows"]
    labels = [1 - int(row["label"]) for row in rows]  # official 1 = real
    verdicts = [None if int(row["pred"]) == -1 else 1 - int(row["pred"]) for row in rows]
    found = verdict_metrics(labels, verdicts) | score_metrics(labels, meta["p_fake"])
    assert found.keys() == meta["metrics"].keys()
    for name, expected in meta["metrics"].items():
        assert found[name] == pytest.approx(expected, rel=0, abs=meta["tol"]["atol"]), name


def test_kappa_by_hand() -> None:
    assert kappa([1, 1, 0, 0], [1, 0, 0, 0]) == pytest.approx(0.5)  # 3/4 agree, 1/2 by chance
    assert kappa([1, 0], [1, 0]) == 1.0
