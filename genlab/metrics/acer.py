"""Presentation-attack detection: APCER, BPCER and ACER (ISO/IEC 30107-3), EER and AUC.

Label 1 = live, score = P(live); a face is called live when score >= threshold.

APCER is the share of attacks that are taken for live, BPCER that of live faces taken for attacks, ACER their mean. A rate of a class that
has no sample is 1, as in the official evaluation of the HySpeFAS challenge; rankings are undefined (NaN) then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics import Metric

from genlab.metrics.generators import roc_auc

Rule = Literal["middle", "first"]
GRID = 100  # thresholds i / GRID


class Rates(NamedTuple):
    """In [0, 1]."""

    apcer: float
    bpcer: float

    @property
    def acer(self) -> float:
        return (self.apcer + self.bpcer) / 2


class GridThreshold(NamedTuple):
    """Thresholds of least ACER among 0, 0.01 .. 1: the first, the middle of the run that begins there, its end, and the rates."""

    first: float
    middle: float
    last: float
    rates: Rates


def _split(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values, live = np.asarray(scores, np.float64), np.asarray(labels).astype(bool)
    return np.sort(values[live]), np.sort(values[~live])


def rates(scores: ArrayLike, labels: ArrayLike, threshold: float) -> Rates:
    """At a threshold."""
    live, attacks = _split(scores, labels)
    return _rates(live, attacks, np.array([threshold]))[0]


def _rates(live: NDArray[np.float64], attacks: NDArray[np.float64], thresholds: NDArray[np.float64]) -> list[Rates]:
    rejected = np.searchsorted(live, thresholds, side="left")
    accepted = len(attacks) - np.searchsorted(attacks, thresholds, side="left")
    return [
        Rates(float(a / len(attacks)) if len(attacks) else 1.0, float(r / len(live)) if len(live) else 1.0)
        for a, r in zip(accepted, rejected)
    ]


def best_threshold(scores: ArrayLike, labels: ArrayLike) -> GridThreshold:
    """Where ACER is least on the grid; of validation scores alone."""
    live, attacks = _split(scores, labels)
    found = _rates(live, attacks, np.arange(GRID + 1) / GRID)
    least = min(each.acer for each in found)
    first = next(i for i, each in enumerate(found) if each.acer == least)
    last = first
    while last < GRID and found[last + 1].acer == least:
        last += 1
    return GridThreshold(first / GRID, (first + last) / 2 / GRID, last / GRID, found[first])


def equal_error_rate(scores: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """Mean of the two rates where they differ least, and the first threshold that does so; NaN where a class is missing."""
    live, attacks = _split(scores, labels)
    if not len(live) or not len(attacks):
        return math.nan, math.nan
    thresholds = np.append(np.unique(np.asarray(scores, np.float64)), math.inf)
    found = _rates(live, attacks, thresholds)
    place = min(range(len(found)), key=lambda i: (abs(found[i].apcer - found[i].bpcer), i))
    return found[place].acer, float(thresholds[place])


def bpcer_at_apcer(scores: ArrayLike, labels: ArrayLike, target: float) -> tuple[float, float, float]:
    """BPCER at the smallest threshold whose APCER is at most ``target``, that APCER, the threshold; NaN where a class is missing."""
    live, attacks = _split(scores, labels)
    if not len(live) or not len(attacks):
        return math.nan, math.nan, math.nan
    thresholds = np.append(np.unique(np.asarray(scores, np.float64)), math.inf)
    found = _rates(live, attacks, thresholds)
    place = next(i for i, each in enumerate(found) if each.apcer <= target)
    return found[place].bpcer, found[place].apcer, float(thresholds[place])


def threshold_interval(scores: ArrayLike, labels: ArrayLike, rule: Rule, draws: int = 200) -> tuple[float, float]:
    """95 % interval of the chosen threshold over bootstrap draws of the samples, live and attacks apart; keyed, always the same."""
    values, live = np.asarray(scores, np.float64), np.asarray(labels).astype(bool)
    rng = np.random.default_rng(0)
    chosen: list[float] = []
    for _ in range(draws):
        some = np.concatenate([rng.choice(np.flatnonzero(each), int(each.sum())) for each in (live, ~live) if each.any()])
        found = best_threshold(values[some], live[some])
        chosen.append(found.middle if rule == "middle" else found.first)
    low, high = np.percentile(chosen, [2.5, 97.5])
    return float(low), float(high)


class AttackMetrics(Metric):
    """All numbers at the end of an evaluation, each sample once however many processes saw it.

    ``compute`` gives ``acer apcer bpcer`` at the threshold, ``apcer_max`` and ``acer_max`` (of the most successful attack type, ISO),
    ``<type>/apcer`` and ``<type>/n``, ``acer_at_0.5``, ``eer auc bpcer_at_apcer_1 bpcer_at_apcer_10``.

    Args:
        types: Names of the attack types.
    """

    full_state_update = False
    index: list[Tensor] | Tensor
    scores: list[Tensor] | Tensor
    labels: list[Tensor] | Tensor
    type_ids: list[Tensor] | Tensor

    def __init__(self, types: Sequence[str]) -> None:
        super().__init__()
        self.types = list(types)
        for name in ("index", "scores", "labels", "type_ids"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, labels: Tensor, types: Sequence[str], index: Tensor) -> None:
        """(B,) P(live), (B,) 0 or 1, names (those of live faces do not count), (B,) position in the evaluated list."""
        numbers = [self.types.index(name) if name in self.types else -1 for name in types]
        for name, value in (("index", index), ("labels", labels), ("type_ids", torch.tensor(numbers, device=scores.device))):
            getattr(self, name).append(value.detach().to(torch.int64))
        self.scores.append(scores.detach().to(torch.float64))  # type: ignore[union-attr]

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gathers the states of all ranks; a rank that saw no sample takes part with empty ones of the right type."""
        if isinstance(self.index, list) and not self.index:
            self.index, self.labels, self.type_ids = ([torch.empty(0, dtype=torch.int64, device=self.device)] for _ in range(3))
            self.scores = [torch.empty(0, dtype=torch.float64, device=self.device)]
        super().sync(*args, **kwargs)

    def gathered(self) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
        """Scores, whether live, and types, in the order of the evaluated list."""
        states = (self.index, self.scores, self.labels, self.type_ids)
        index, scores, labels, types = (
            (each if isinstance(each, Tensor) else torch.cat(each) if each else torch.empty(0)).cpu().numpy() for each in states
        )
        _, first = np.unique(index, return_index=True)
        scores = scores[first].astype(np.float64)
        if len(broken := np.flatnonzero(~np.isfinite(scores))):
            raise ValueError(f"scores: {len(broken)} of {len(scores)} are not finite; the model has diverged.")
        return scores, labels[first].astype(bool), types[first].astype(np.int64)

    def compute(self) -> Tensor:
        """Scores, labels and types together, (3, N) float64: the numbers depend on a threshold, see :meth:`values`."""
        scores, live, types = self.gathered()
        return torch.from_numpy(np.stack([scores, live.astype(np.float64), types.astype(np.float64)]))

    def values(self, gathered: Tensor, threshold: float) -> dict[str, float]:
        """The numbers of what ``compute`` has given."""
        scores, live, kinds = gathered[0].numpy(), gathered[1].numpy().astype(bool), gathered[2].numpy().astype(int)
        whole = rates(scores, live, threshold)
        found = {"acer": whole.acer, "apcer": whole.apcer, "bpcer": whole.bpcer, "acer_at_0.5": rates(scores, live, 0.5).acer}
        by_type: dict[str, float] = {}
        for number, name in enumerate(self.types):
            mine = ~live & (kinds == number)
            if mine.any():
                by_type[name] = float((scores[mine] >= threshold).mean())
                found |= {f"{name}/apcer": by_type[name], f"{name}/n": float(mine.sum())}
        worst = max(by_type.values(), default=whole.apcer)
        found |= {"apcer_max": worst, "acer_max": (worst + whole.bpcer) / 2}
        found |= {"eer": equal_error_rate(scores, live)[0], "auc": roc_auc(scores, live) if live.any() and not live.all() else math.nan}
        for percent in (1, 10):
            found[f"bpcer_at_apcer_{percent}"] = bpcer_at_apcer(scores, live, percent / 100)[0]
        return found | {"n_live": float(live.sum()), "n_attack": float((~live).sum())}
