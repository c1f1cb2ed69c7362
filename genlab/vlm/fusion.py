"""One verdict from the six prompts' verdicts, by numbers: majority, at least m, log-odds. Ours; the paper fuses by a seventh question.

An item is (verdict, p_fake): ``real``, ``fake`` or ``unknown``, and P(fake) in [0, 1] or None where the engine gave none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from genlab.errors import UserError
from genlab.vlm.verdicts import Word

Item = tuple[Word, float | None]
NEAR = 1e-9


class Fused(NamedTuple):
    """A fused verdict, its P(fake) (None where undefined), and ``ok``, ``quorum`` or ``tie``."""

    verdict: Word
    p_fake: float | None
    reason: str


class Fusion:
    """How verdicts become one: numbers, a question, or a fitted rule (:mod:`genlab.vlm.fusing`)."""


@dataclass(frozen=True)
class NumericFusion(Fusion):
    """How verdicts become one.

    Args:
        mode: ``majority``, ``at_least`` (fake if ``m`` prompts say so), ``logodds`` (weighted mean of logits).
        quorum: Usable answers that it takes; fewer give ``unknown``.
        tie: What an even vote is.
        m: Of ``at_least``.
        weights: Of ``logodds``, one a prompt; None: all 1.
        eps: Probabilities are clipped to [eps, 1 - eps].
        default_conf: P of its own verdict for an answer without a probability.
        normalize: Divide by the sum of the used weights.
        bias: Added to the log-odds.
        T: Temperature that log-odds are divided by.
        tau: Threshold on P(fake).
    """

    mode: Literal["majority", "at_least", "logodds"] = "majority"
    quorum: int = 3
    tie: Literal["unknown", "fake", "real", "confidence"] = "unknown"
    m: int = 3
    weights: tuple[float, ...] | None = None
    eps: float = 1e-3
    default_conf: float = 0.8
    normalize: bool = True
    bias: float = 0.0
    T: float = 1.0
    tau: float = 0.5

    def __post_init__(self) -> None:
        if self.T <= 0 or not 0 < self.eps < 0.5:
            raise UserError(f"fusion: T is {self.T}, eps {self.eps}; T is above 0, eps between 0 and 0.5.")

    def __call__(self, items: Sequence[Item]) -> Fused:
        if self.mode == "logodds":
            return self._logodds(items)
        real, fake = (sum(verdict == side for verdict, _ in items) for side in ("real", "fake"))
        known = real + fake
        score = fake / known if known else None
        if known < self.quorum:
            return Fused("unknown", score, "quorum")
        if self.mode == "at_least":
            return Fused("fake" if fake >= self.m else "real", score, "ok")
        if real != fake:
            return Fused("fake" if fake > real else "real", score, "ok")
        return Fused(self._tie(items), score, "tie")

    def _tie(self, items: Sequence[Item]) -> Word:
        if self.tie != "confidence":
            return self.tie
        total = sum(2 * self._probability(item) - 1 for item in items if item[0] != "unknown")
        return "unknown" if abs(total) <= NEAR else "fake" if total > 0 else "real"

    def _probability(self, item: Item) -> float:
        verdict, p = item
        return p if p is not None else self.default_conf if verdict == "fake" else 1 - self.default_conf

    def _logodds(self, items: Sequence[Item]) -> Fused:
        weights = self.weights or (1.0,) * len(items)
        if len(weights) != len(items):
            raise UserError(f"fusion: {len(weights)} weights for {len(items)} prompts; give one a prompt.")
        used = [(w, self._probability(item)) for w, item in zip(weights, items) if item[0] != "unknown" or item[1] is not None]
        clipped = [(w, min(max(p, self.eps), 1 - self.eps)) for w, p in used]
        total = sum(w for w, _ in clipped)
        participants = sum(w > 0 for w, _ in clipped)
        if not participants:
            return Fused("unknown", None, "quorum")
        logit = sum(w * math.log(p / (1 - p)) for w, p in clipped) / (total if self.normalize else 1.0)
        p_fake = sigmoid(self.bias + logit / self.T)
        if participants < self.quorum:
            return Fused("unknown", None, "quorum")
        if abs(p_fake - self.tau) <= NEAR:
            return Fused("unknown" if self.tie == "confidence" else self.tie, p_fake, "tie")
        return Fused("fake" if p_fake > self.tau else "real", p_fake, "ok")


def sigmoid(x: float) -> float:
    """Without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
