"""What completions earn, term by term."""

from __future__ import annotations

import pytest

from genlab.vlm.grounded import fill_target
from genlab.vlm.rewards import StagedReward
from genlab.vlm.scoring import Expected, Reward, StagedGrounding, VerdictReward, WeightedReward

SIZE, BOX = (100, 100), (0.0, 0.0, 50.0, 100.0)
TARGET = fill_target(
    "<think><ref-object><bbox> melts. <tag>hands, text</tag></think><verdict>generated</verdict>", ["hand"], [BOX], SIZE, "qwen"
)
FAKE = Expected(TARGET, [BOX], SIZE, True, "qwen")
REAL = Expected("<think>Fine.</think><verdict>real</verdict>", [], SIZE, False, "qwen")
HALF = TARGET.replace("[0, 0, 50, 100]", "[0, 0, 100, 100]").replace("hands, text", "hands")
ALL = WeightedReward(1, 1, 2, 4)


@pytest.mark.parametrize(
    ("reward", "said", "expected", "terms"),
    [
        (WeightedReward(), TARGET, FAKE, {"form": 1, "verdict": 1}),
        (WeightedReward(), REAL.target, FAKE, {"form": 1, "verdict": 0.5}),
        (WeightedReward(form=0.5, verdict=0), TARGET, FAKE, {"form": 0.5}),
        (ALL, TARGET, FAKE, {"form": 1, "verdict": 1, "boxes": 2, "tags": 4}),
        (ALL, HALF, FAKE, {"form": 1, "verdict": 1, "boxes": 1, "tags": 2}),
        (ALL, TARGET, REAL, {"form": 1, "verdict": 0.5, "boxes": 0, "tags": 0}),
        (ALL, REAL.target, REAL, {"form": 1, "verdict": 1, "boxes": 2, "tags": 4}),
        (ALL, TARGET.replace("[0, 0, 50, 100]", "left"), FAKE, {"form": 1, "verdict": 1, "boxes": 0, "tags": 4}),
        (StagedGrounding(), TARGET, FAKE, {"base": 0, "boxes": 1, "verdict": 1, "form": 1}),
        (StagedGrounding(StagedReward(-1, 2, 2, 0.5, -1, 0.5, -1)), HALF, FAKE, {"base": -1, "boxes": 0.5, "verdict": 0.5, "form": 0.5}),
        (StagedGrounding(), REAL.target, FAKE, {"base": 0, "boxes": 0, "verdict": -1, "form": -1}),
        (VerdictReward(), "Real", REAL, {"verdict": 1}),
        (VerdictReward(), TARGET, REAL, {"verdict": 0}),
        (VerdictReward(), "a cat", REAL, {"verdict": -1}),
    ],
)
def test_terms(reward: Reward, said: str, expected: Expected, terms: dict[str, float]) -> None:
    assert reward.terms(said, expected) == pytest.approx(terms)
