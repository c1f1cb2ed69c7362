"""Means over seeds with intervals, and paired tests: over seeds, and over the samples of two evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genlab.comparison.records import SEEDS, Record, finite

RESAMPLES = 2000
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but what they are grouped by."""

    name: str
    records: tuple[Record, ...]

    def values(self, metric: str) -> dict[Any, float]:
        """Of a metric, by seed; of several runs of one seed the last."""
        return {record.seed: record.metrics[metric] for record in self.records if finite(record.metrics.get(metric))}


def grouped(records: Sequence[Record], by: Sequence[str]) -> list[Group]:
    """Groups of records whose settings agree but for keys of the configuration; ``seed`` stands for all seeds.

    A group is called by its experiment and evaluation, and by the settings in which groups of the same name differ.
    """
    left_out = [key for name in by for key in (SEEDS if name == "seed" else (name,))]
    found: dict[tuple[tuple[str, str], ...], list[Record]] = {}
    for record in records:
        found.setdefault(record.settings(left_out), []).append(record)
    names: dict[str, list[tuple[tuple[str, str], ...]]] = {}
    for settings in found:
        names.setdefault(" ".join(value for _, value in settings[:2]).strip(), []).append(settings)
    called: dict[tuple[tuple[str, str], ...], str] = {}
    for name, alike in names.items():
        keys = sorted({key for settings in alike for key, _ in settings})
        tell = [key for key in keys if len({dict(settings).get(key) for settings in alike}) > 1]
        for settings in alike:
            own = dict(settings)
            called[settings] = ", ".join([name, *(f"{key}={own.get(key, '')}" for key in tell[:4])])
    groups = [Group(called[settings], tuple(members)) for settings, members in found.items()]
    return sorted(groups, key=lambda group: group.name)


@dataclass(frozen=True)
class Estimate:
    """Mean of n values with their deviation and a 95 % interval; both NaN of one value."""

    mean: float
    deviation: float
    low: float
    high: float
    n: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, deviation (n - 1) and Student's 95 % interval of a mean."""
    from scipy import stats

    x = np.asarray(values, np.float64)
    if not len(x):
        return Estimate(math.nan, math.nan, math.nan, math.nan, 0)
    mean = float(x.mean())
    if len(x) == 1:
        return Estimate(mean, math.nan, math.nan, math.nan, 1)
    deviation = float(x.std(ddof=1))
    half = float(stats.t.ppf(0.975, len(x) - 1)) * deviation / math.sqrt(len(x))
    return Estimate(mean, deviation, mean - half, mean + half, len(x))


def over_seeds(ours: Group, baseline: Group, metric: str) -> dict[str, Any] | None:
    """Paired difference over the seeds that both have: mean, 95 % interval, and p of the paired t test where there are two or more."""
    from scipy import stats

    mine, theirs = ours.values(metric), baseline.values(metric)
    seeds = [seed for seed in mine if seed in theirs]
    if not seeds:
        return None
    differences = [mine[seed] - theirs[seed] for seed in seeds]
    found = estimate(differences)
    if len(seeds) < 2:
        p = math.nan
    elif found.deviation == 0:
        p = 1.0 if found.mean == 0 else 0.0
    else:
        p = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return {"group": ours.name, "metric": metric, "difference": found.mean, "low": found.low, "high": found.high, "p": p, "seeds": found.n}


def over_samples(
    ours: Sequence[Mapping[str, str]], theirs: Sequence[Mapping[str, str]], resamples: int = RESAMPLES, seed: int = 0
) -> list[dict[str, Any]]:
    """What the samples that two evaluations share say of their difference.

    Of labels 0 and 1 with scores, AP and AUROC with bootstrap intervals, samples of the two classes drawn apart; of answers (``called``,
    where labels name them), the accuracy with McNemar's exact test.

    Args:
        ours: Rows of ``predictions.csv``.
        theirs: The baseline's.
    """
    pairs = _paired(ours, theirs)
    rows: list[dict[str, Any]] = []
    if len(pairs) < 2:
        return rows
    scored = _scored(pairs)
    if scored is not None:
        rows += _bootstrapped(*scored, resamples, seed)
    right = [(_right(a), _right(b)) for a, b in pairs]
    known = [(a, b) for a, b in right if a is not None and b is not None]
    if known:
        rows.append(_mcnemar(known))
    return rows


def _paired(ours: Sequence[Mapping[str, str]], theirs: Sequence[Mapping[str, str]]) -> list[tuple[Mapping[str, str], Mapping[str, str]]]:
    other = {(row.get("set"), row["id"]): row for row in theirs if row.get("status") == "ok"}
    found = [(row, other[row.get("set"), row["id"]]) for row in ours if row.get("status") == "ok" and (row.get("set"), row["id"]) in other]
    return [(a, b) for a, b in found if a["label"] == b["label"]]


def _scored(pairs: Sequence[tuple[Mapping[str, str], Mapping[str, str]]]) -> tuple[Array, Array, Array] | None:
    try:
        values = [(float(a["label"]), float(a["score"]), float(b["score"])) for a, b in pairs]
    except ValueError:
        return None
    labels, mine, other = np.asarray(values, np.float64).T
    return (labels, mine, other) if set(labels) == {0.0, 1.0} else None


def _bootstrapped(labels: Array, mine: Array, other: Array, resamples: int, seed: int) -> list[dict[str, Any]]:
    from genlab.metrics.generators import average_precision, roc_auc

    measures: dict[str, Callable[[Array, Array], float]] = {"AP": average_precision, "AUROC": roc_auc}
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero(labels == value) for value in (0, 1)]
    drawn = [np.concatenate([rng.choice(each, len(each)) for each in classes]) for _ in range(resamples)]
    rows: list[dict[str, Any]] = []
    for name, measure in measures.items():
        differences = np.array([measure(mine[i], labels[i]) - measure(other[i], labels[i]) for i in drawn])
        low, high = np.quantile(differences, (0.025, 0.975))
        beyond = min((differences <= 0).mean(), (differences >= 0).mean())
        found = measure(mine, labels) - measure(other, labels)
        p = min(1.0, 2 * max(float(beyond), 1 / resamples))
        rows.append({"measure": name, "difference": found, "low": float(low), "high": float(high), "p": p, "samples": len(labels)})
    return rows


def _right(row: Mapping[str, str]) -> bool | None:
    called, label = row.get("called", ""), row.get("label", "")
    if not called or label == "":
        return None
    if label in ("0", "1") and "threshold" in row and called not in ("0", "1"):  # a detector: called by a word, labelled by a number
        try:
            return (float(row["score"]) >= float(row["threshold"])) == (label == "1")
        except ValueError:
            return None
    return called == label


def _mcnemar(right: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    from scipy import stats

    won, lost = sum(a and not b for a, b in right), sum(b and not a for a, b in right)
    n = len(right)
    difference = (won - lost) / n
    half = 1.96 * math.sqrt(max(won + lost - (won - lost) ** 2 / n, 0.0)) / n
    p = float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
    return {"measure": "accuracy", "difference": difference, "low": difference - half, "high": difference + half, "p": p, "samples": n}
