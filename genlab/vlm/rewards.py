"""What a reply that explains its verdict earns (released code of arXiv 2504.14245, and a later version of it): form, verdict, boxes, tags.

Boxes are (x1, y1, x2, y2), in pixels. ``official`` reproduces the code, which takes the product of two negative overlaps for an overlap.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

Box = Sequence[float]
FORM = re.compile(r"<think>.*?</think>.*?<verdict>.*?</verdict>", re.S)
VERDICT = re.compile(r"<verdict>(.*?)</verdict>")


def form_reward(completion: str) -> float:
    """1 where the whole reply is ``<think>...</think>...<verdict>...</verdict>``, else 0."""
    return float(FORM.fullmatch(completion) is not None)


def verdict_reward(completion: str, target: str) -> float:
    """The first ``<verdict>`` of both, letter by letter: equal 1, different 0.5, missing 0."""
    said, true = (VERDICT.search(each) for each in (completion, target))
    if said is None or true is None:
        return 0.0
    return 1.0 if said[1] == true[1] else 0.5


def overlap(one: Box, other: Box, clamp: bool = True) -> float:
    """Intersection over union of two boxes, in [0, 1]; 0 where both are empty.

    Args:
        clamp: Each axis by itself; without it, as the official code, two boxes that are apart on both axes seem to meet.
    """
    wide, high = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    shared = max(wide, 0) * max(high, 0) if clamp else max(wide * high, 0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - shared
    return shared / union if union > 0 else 0.0


def box_reward(predicted: Sequence[Box], target: Sequence[Box], how: Literal["best", "official"] = "best") -> float:
    """How well boxes are found, in [0, 1].

    Args:
        how: ``best``: the one-to-one assignment of most overlap, summed, over the larger number of boxes; 1 where there are none on either
            side. ``official``: each predicted box takes the free target whose centre is nearest, over the number of targets; 1 where there
            are no targets.
    """
    if how == "official":
        return _official(predicted, target)
    if not predicted or not target:
        return float(not predicted and not target)
    overlaps = np.array([[overlap(p, t) for t in target] for p in predicted])
    rows, columns = linear_sum_assignment(-overlaps)
    return float(overlaps[rows, columns].sum() / max(len(predicted), len(target)))


def _official(predicted: Sequence[Box], target: Sequence[Box]) -> float:
    if not target:
        return 1.0
    free, total = list(range(len(target))), 0.0
    for box in predicted:
        if not free:
            break
        nearest = min(free, key=lambda i: _distance(box, target[i]))
        free.remove(nearest)
        total += overlap(box, target[nearest], clamp=False)
    return total / len(target)


def _distance(one: Box, other: Box) -> float:
    return sum(((one[i] + one[i + 2]) / 2 - (other[i] + other[i + 2]) / 2) ** 2 for i in (0, 1))


def tag_reward(predicted: str, target: str) -> float:
    """Shared share of comma-separated tags (ours; the released file is empty): intersection over union, 1 where there are none."""
    one, other = ({tag.strip().lower() for tag in each.split(",") if tag.strip()} for each in (predicted, target))
    return len(one & other) / len(one | other) if one | other else 1.0


@dataclass(frozen=True)
class StagedReward:
    """base + w iou^e + a term for the label + one for the form (a later version of the released code).

    Args:
        base: Of every reply.
        w_iou: w.
        e_iou: e.
        label_ok: For the right verdict.
        label_bad: For a wrong one.
        format_ok: For the right form.
        format_bad: For a wrong one.
    """

    base: float = 0.0
    w_iou: float = 1.0
    e_iou: float = 1.0
    label_ok: float = 1.0
    label_bad: float = -1.0
    format_ok: float = 1.0
    format_bad: float = -1.0

    def __call__(self, iou: float, label_correct: bool, format_correct: bool) -> float:
        label = self.label_ok if label_correct else self.label_bad
        form = self.format_ok if format_correct else self.format_bad
        return self.base + self.w_iou * iou**self.e_iou + label + form
