"""How good verdicts are that may be missing: rates over all and over answered pictures, intervals, and tests between two judges.

Inside, label 1 = fake; an unknown verdict is None. Every share of nothing is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Z95 = 1.959963984540054


def verdict_metrics(labels: Sequence[int], verdicts: Sequence[int | None]) -> dict[str, Any]:
    """Counts, refusal rates, accuracies, precision, recall, F1, MCC, and Wilson's interval of ``accuracy_answered``.

    Args:
        labels: 1 = fake, 0 = real.
        verdicts: The same, None where there is none.
    """
    pairs = list(zip(labels, verdicts, strict=True))
    n, n_fake = len(pairs), sum(labels)
    count = {(truth, said): sum(pair == (truth, said) for pair in pairs) for truth in (0, 1) for said in (0, 1, None)}
    tp, fn, fp, tn = count[1, 1], count[1, 0], count[0, 1], count[0, 0]
    answered, correct = tp + fn + fp + tn, tp + tn
    unknown = n - answered
    real, fake = _share(tn, tn + fp), _share(tp, tp + fn)
    f1_fake, f1_real = _share(2 * tp, 2 * tp + fp + fn), _share(2 * tn, 2 * tn + fp + fn)
    return {
        "n": n,
        "n_real": n - n_fake,
        "n_fake": n_fake,
        "n_unknown": unknown,
        "refusal_rate": _share(unknown, n),
        "coverage": _share(answered, n),
        "refusal_rate_real": _share(count[0, None], n - n_fake),
        "refusal_rate_fake": _share(count[1, None], n_fake),
        "accuracy_answered": _share(correct, answered),
        "accuracy_strict": _share(correct, n),
        "accuracy_real": real,
        "accuracy_fake": fake,
        "balanced_accuracy": (real + fake) / 2,
        "precision_real_official": _share(tn, tn + fn),
        "recall_real_official": real,
        "precision_fake": _share(tp, tp + fp),
        "recall_fake": fake,
        "f1_fake": f1_fake,
        "f1_real": f1_real,
        "macro_f1": (f1_fake + f1_real) / 2,
        "mcc": _share(tp * tn - fp * fn, math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))),
        "wilson95": wilson(correct, answered),
        "confusion": {"fake_fake": tp, "real_as_fake": fp, "fake_as_real": fn, "real_real": tn},
    }


def score_metrics(labels: Sequence[int], p_fake: Sequence[float]) -> dict[str, float]:
    """AUROC (ties half), expected calibration error in 10 equal bins of P(fake), Brier score."""
    fakes = [p for p, label in zip(p_fake, labels, strict=True) if label]
    reals = [p for p, label in zip(p_fake, labels, strict=True) if not label]
    wins = sum((a > b) + 0.5 * (a == b) for a in fakes for b in reals)
    bins: dict[int, list[tuple[float, int]]] = {}
    for p, label in zip(p_fake, labels, strict=True):
        bins.setdefault(min(int(p * 10), 9), []).append((p, label))
    error = sum(abs(sum(p for p, _ in each) - sum(label for _, label in each)) for each in bins.values())
    brier = sum((p - label) ** 2 for p, label in zip(p_fake, labels, strict=True))
    return {
        "auroc_fake": _share(wins, len(fakes) * len(reals)),
        "ece10": _share(error, len(labels)),
        "brier": _share(brier, len(labels)),
    }


def wilson(correct: int, n: int, z: float = Z95) -> list[float]:
    """Wilson's interval of a share; [0, 0] of nothing."""
    if not n:
        return [0.0, 0.0]
    p, shrink = correct / n, 1 + z * z / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [(centre - half) / shrink, (centre + half) / shrink]


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p-value of McNemar's test; b and c count pictures that only one of two judges gets right."""
    n = b + c
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(b, c) + 1)) / 2**n) if n else 1.0


def kappa(first: Sequence[int], second: Sequence[int]) -> float:
    """Cohen's kappa of two judges' answers to the same pictures; 0 where chance agreement is already complete."""
    n = len(first)
    agreed = _share(sum(a == b for a, b in zip(first, second, strict=True)), n)
    chance = sum(_share(list(first).count(value), n) * _share(list(second).count(value), n) for value in {*first, *second})
    return _share(agreed - chance, 1 - chance) if chance < 1 else 0.0


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
