"""Recall, F1 and AP per generator of a generated-video detector (DeMamba, arXiv 2405.19707, Sec. 4). Label 1 = fake.

Each generator's fakes are compared with *all* real videos, so the number of false positives FP is the same for every generator:
recall_g = TP_g / n_g, F1_g = 2 TP_g / (2 TP_g + FP + FN_g), AP_g and AUROC_g rank the fakes of g among all reals. Averages are
unweighted over generators. F1_g therefore depends strongly on the ratio of reals to n_g (10,000 to 56 for Sora in GenVideo):
compare it between detectors on one test set, not between test sets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics import Metric

REAL = -1  # generator id of a real video


def _ranking(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """True and false positives (K + 1,) at the K distinct scores from the highest down, after (0, 0); equal scores form one step."""
    values, positive = np.asarray(scores, np.float64), np.asarray(labels).astype(bool)
    order = np.argsort(-values, kind="stable")
    values, positive = values[order], positive[order]
    steps = np.append(np.flatnonzero(np.diff(values)), len(values) - 1) if len(values) else np.array([], int)
    tp, fp = np.cumsum(positive)[steps], np.cumsum(~positive)[steps]
    return np.append(0.0, tp), np.append(0.0, fp)


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Step-wise average precision, ties grouped: sum over distinct scores of (gain in recall) x precision, no interpolation.

    Args:
        scores: (N,), higher = more likely fake; any real numbers.
        labels: (N,), 1 = fake.

    Returns:
        Value in [0, 1]; NaN unless both classes are there, since there is nothing to rank.
    """
    tp, fp = _ranking(scores, labels)
    if not tp[-1] or not fp[-1]:
        return math.nan
    return float(np.sum(np.diff(tp) / tp[-1] * tp[1:] / (tp + fp)[1:]))


def roc_auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Probability that a fake scores above a real, ties counted half. (N,), (N,) -> [0, 1]; NaN unless both classes are there."""
    tp, fp = _ranking(scores, labels)
    if not tp[-1] or not fp[-1]:
        return math.nan
    return float(np.sum(np.diff(fp) * (tp[1:] + tp[:-1]) / 2) / (tp[-1] * fp[-1]))


def roc_curve(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False positive rate and recall (K + 1,) at the K distinct scores from the highest down, from (0, 0) to (1, 1)."""
    tp, fp = _ranking(scores, labels)
    with np.errstate(invalid="ignore"):
        return fp / fp[-1], tp / tp[-1]


def precision_recall_curve(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Recall and precision (K,) at the K distinct scores from the highest down; AP is the sum under its right-to-left steps."""
    tp, fp = _ranking(scores, labels)
    with np.errstate(invalid="ignore"):
        return tp[1:] / tp[-1], tp[1:] / (tp + fp)[1:]


def threshold_at_fpr(real_scores: ArrayLike, fpr: float) -> float:
    """Smallest threshold t such that the share of reals with score > t is at most ``fpr``; one of the given scores.

    Args:
        real_scores: (N,) scores of real videos, e.g. of the validation set.
        fpr: False positive rate allowed, in [0, 1).

    Raises:
        ValueError: No scores, a score that is not finite, or ``fpr`` outside [0, 1).
    """
    scores = np.sort(np.asarray(real_scores, np.float64).reshape(-1))[::-1]
    if not 0 <= fpr < 1:
        raise ValueError(f"fpr: {fpr} is outside [0, 1); 0.01 means that 1 % of the real videos may be called fake.")
    if not len(scores) or not np.isfinite(scores).all():
        raise ValueError(f"real_scores: {len(scores)} scores, {int((~np.isfinite(scores)).sum())} of them not finite; need finite ones.")
    called_fake = np.arange(len(scores))  # with t = scores[k], at most k reals lie above it
    return float(scores[np.flatnonzero(called_fake / len(scores) <= fpr)[-1]])


def f1_from_rates(recall: float, n: int, real_acc: float, n_real: int, truncated: bool) -> float:
    """F1 = 2 TP / (2 TP + FP + FN) in [0, 1] of ``n`` fakes and ``n_real`` reals; NaN without fakes; no reals, no false positives.

    Args:
        recall: Share of the fakes called fake.
        n: Number of fakes.
        real_acc: Share of the reals called real.
        n_real: Number of reals.
        truncated: Form the counts by ``int(rate * count)`` as the official evaluation does, instead of rounding.
    """
    if not n:
        return math.nan
    products = (recall * n, (1 - recall) * n, (1 - real_acc) * n_real if n_real else 0.0)
    tp, fn, fp = (int(x) if truncated else round(x) for x in products)  # rates come from counts, so rounding restores those
    return 2 * tp / (2 * tp + fp + fn) if tp else 0.0


class GeneratorMetrics(Metric):
    """Detection metrics per generator and their averages; exact under DDP, since the scores themselves are gathered.

    ``compute`` returns float64 scalars: for each generator g ``g/recall g/f1 g/ap g/auroc g/n``, their unweighted means over the
    generators that have fakes ``recall f1 ap auroc``, and over all samples ``real_acc`` (share of reals called real), ``acc``,
    ``overall_ap``, ``overall_auroc``, ``n_real``; ``acc_with_real`` is the mean of the recalls and ``real_acc`` as one more column (the
    average of older tables). NaN where nothing is there to count: a generator without fakes (``g/n`` 0), ``real_acc`` without reals,
    AP and AUROC unless both classes are there. All in [0, 1] but the counts.

    Log it as numbers at the end of an epoch: ``self.log_dict({f"val/{k}": v for k, v in metric.compute().items()})``, then ``reset``.

    Args:
        generators: Names of all generators, the same list on every rank; may also be set later, before the first ``update``.
        threshold: A sample is called fake when its score is strictly above; exactly at the threshold is real. Paper: 0.5.
        f1_official: F1 from TP, FN and FP formed by ``int(rate * count)`` as the official evaluation does, which loses counts to
            rounding; so comes the paper's Sora row by 108/167 = 0.6467 where the counts give 110/169 = 0.6509.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    index: list[Tensor]
    scores: list[Tensor]
    labels: list[Tensor]
    generator_ids: list[Tensor]

    def __init__(self, generators: Sequence[str] = (), threshold: float = 0.5, f1_official: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.generators, self.threshold, self.f1_official = list(generators), threshold, f1_official
        for state in ("index", "scores", "labels", "generator_ids"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, label: Tensor, generator: Sequence[str], index: Tensor) -> None:
        """Adds a batch.

        Args:
            scores: (B,) P(fake) in [0, 1].
            label: (B,) 1 = fake, 0 = real.
            generator: B names; those of reals (empty or ``real/...``) are not looked at.
            index: (B,) int64, the sample's place in the evaluated set: a sample that comes twice (a sampler that pads) counts once.

        Raises:
            ValueError: Lengths differ, a label is neither 0 nor 1, or a fake's generator is not in ``generators``.
        """
        labels = label.detach().tolist()
        if not len(scores) == len(labels) == len(generator) == len(index):
            raise ValueError(
                f"one batch with {len(scores)} scores, {len(labels)} labels, {len(generator)} generators, {len(index)} indices."
            )
        if wrong := set(labels) - {0, 1}:
            raise ValueError(f"label: {wrong.pop()!r} is neither 1 (fake) nor 0 (real).")
        ids = {name: number for number, name in enumerate(self.generators)}
        if unknown := sorted({name for name, fake in zip(generator, labels) if fake and name not in ids}):
            raise ValueError(f"generators: a fake of {unknown[0]!r}, which is not in the list given to the metric: {self.generators}.")
        numbers = [ids[name] if fake else REAL for name, fake in zip(generator, labels)]
        self.index.append(index.detach().to(torch.int64))
        self.scores.append(scores.detach().to(torch.float64))
        self.labels.append(label.detach().to(torch.int64))
        self.generator_ids.append(torch.tensor(numbers, dtype=torch.int64, device=scores.device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gathers the states of all ranks; a rank that saw no sample takes part with empty ones of the right type."""
        if not self.index:
            self.index, self.labels, self.generator_ids = ([torch.empty(0, dtype=torch.int64, device=self.device)] for _ in range(3))
            self.scores = [torch.empty(0, dtype=torch.float64, device=self.device)]
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """All numbers, see the class.

        Raises:
            ValueError: A score is not finite, e.g. after a training that diverged.
        """
        index, scores, labels, ids = (_joined(state) for state in (self.index, self.scores, self.labels, self.generator_ids))
        _, first = np.unique(index, return_index=True)
        index, scores, labels, ids = index[first], scores[first], labels[first], ids[first]
        if len(broken := index[~np.isfinite(scores)]):
            raise ValueError(
                f"scores: {len(broken)} of {len(scores)} are not finite, the first at index {broken[0]}; the model has diverged."
            )
        values = self._values(scores, labels.astype(bool), ids)
        return {key: torch.tensor(value, dtype=torch.float64, device=self.device) for key, value in values.items()}

    def _values(self, scores: NDArray[Any], fake: NDArray[Any], ids: NDArray[Any]) -> dict[str, float]:
        called_fake = scores > self.threshold
        real_acc, n_real = _mean(~called_fake[~fake]), int((~fake).sum())
        values: dict[str, float] = {}
        for number, name in enumerate(self.generators):
            mine = ids == number
            chosen = mine | ~fake
            values |= {
                f"{name}/recall": (recall := _mean(called_fake[mine])),
                f"{name}/f1": f1_from_rates(recall, int(mine.sum()), real_acc, n_real, truncated=self.f1_official),
                f"{name}/ap": average_precision(scores[chosen], fake[chosen]),
                f"{name}/auroc": roc_auc(scores[chosen], fake[chosen]),
                f"{name}/n": float(mine.sum()),
            }
        present = [name for number, name in enumerate(self.generators) if (ids == number).any()]
        for metric in ("recall", "f1", "ap", "auroc"):
            values[metric] = _mean([values[f"{name}/{metric}"] for name in present])
        return values | {
            "real_acc": real_acc,
            "acc": _mean(called_fake == fake),
            "acc_with_real": _mean([*(values[f"{name}/recall"] for name in present), real_acc]),
            "overall_ap": average_precision(scores, fake),
            "overall_auroc": roc_auc(scores, fake),
            "n_real": float(n_real),
        }


def _joined(state: list[Tensor] | Tensor) -> NDArray[Any]:
    """A state as one array: a list of batches before, one tensor after the ranks were gathered."""
    return (state if isinstance(state, Tensor) else torch.cat(state) if state else torch.empty(0)).cpu().numpy()


def _mean(values: NDArray[Any] | list[float]) -> float:
    return float(np.mean(values, dtype=np.float64)) if len(values) else math.nan
