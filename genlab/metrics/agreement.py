"""Do two ways to judge methods agree? Rank correlation, pairs in another order, and intervals over pictures by the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from genlab.training.randomness import keyed_rng

RESAMPLES = 2000
Statistic = Callable[[NDArray[np.float64]], float]  # of means over pictures, one or more a method


class Agreement(TypedDict):
    """How two scores of the same methods agree; NaN where one of them does not tell any two methods apart."""

    spearman: float
    kendall: float
    """tau-b."""
    pearson: float
    pairwise: float
    """Share of the pairs that both order alike; a pair tied in the reference is left out, one tied in the score counts half."""


def agreement(scores: ArrayLike, reference: ArrayLike) -> Agreement:
    """Agreement of a score with a reference, both (M,), one number a method and higher = better."""
    x, y = np.asarray(scores, np.float64), np.asarray(reference, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"scores {x.shape} and reference {y.shape}: need one number of each for every method.")
    if len(x) < 2 or len(set(x)) < 2 or len(set(y)) < 2:
        return {"spearman": math.nan, "kendall": math.nan, "pearson": math.nan, "pairwise": pairwise_accuracy(x, y)}
    from scipy import stats

    return {
        "spearman": float(stats.spearmanr(x, y).statistic),
        "kendall": kendall(x, y),
        "pearson": float(stats.pearsonr(x, y).statistic),
        "pairwise": pairwise_accuracy(x, y),
    }


def pairwise_accuracy(scores: ArrayLike, reference: ArrayLike) -> float:
    """See :class:`Agreement`. NaN where the reference tells no pair apart."""
    x, y = np.asarray(scores, np.float64), np.asarray(reference, np.float64)
    points = [0.5 if x[a] == x[b] else float((x[a] > x[b]) == (y[a] > y[b])) for a, b in combinations(range(len(x)), 2) if y[a] != y[b]]
    return float(np.mean(points)) if points else math.nan


def kendall(scores: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """tau-b of two (M,); quick enough for thousands of resamples."""
    upper = np.triu_indices(len(scores), 1)
    a, b = (np.sign(values[:, None] - values[None])[upper] for values in (scores, reference))
    scale = math.sqrt(float(np.abs(a).sum() * np.abs(b).sum()))
    return float((a * b).sum()) / scale if scale else math.nan


def disagreeing_pairs(names: Sequence[str], scores: ArrayLike, reference: ArrayLike) -> list[tuple[str, str]]:
    """Pairs (first, second) of methods of which the score puts the first above the second, and the reference the second above the first."""
    x, y = np.asarray(scores, np.float64), np.asarray(reference, np.float64)
    found = []
    for a, b in combinations(range(len(names)), 2):
        if (x[a] - x[b]) * (y[a] - y[b]) < 0:
            found.append((names[a], names[b]) if x[a] > x[b] else (names[b], names[a]))
    return found


def resampled_means(values: NDArray[np.float64], resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """Means over pictures drawn with replacement, the same pictures for every column: (N, ...) -> (resamples, ...). NaNs are left out."""
    rng = keyed_rng("bootstrap", seed, len(values), resamples)
    counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), resamples).astype(np.float64)
    flat = values.reshape(len(values), -1)
    there = np.isfinite(flat)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = counts @ np.where(there, flat, 0.0) / (counts @ there)
    return means.reshape(resamples, *values.shape[1:])


def interval(samples: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Where the middle ``level`` of the resampled values lies; NaN for none."""
    finite = samples[np.isfinite(samples)]
    if not len(finite):
        return math.nan, math.nan
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def two_sided_p(differences: NDArray[np.float64]) -> float:
    """Bootstrap p-value of "no difference": twice the smaller share of resampled differences on one side of 0, at least 1 / resamples."""
    finite = differences[np.isfinite(differences)]
    if not len(finite):
        return math.nan
    share = min(float((finite <= 0).mean()), float((finite >= 0).mean()))
    return min(1.0, max(2 * share, 1 / len(finite)))
