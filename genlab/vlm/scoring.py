"""What a completion earns in reinforcement learning, as a sum of terms with weights; see :mod:`genlab.vlm.rewards` for each term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from genlab.vlm.grounded import GENERATED, REAL, Corners, Style, has_grounded_form, read_regions, read_tags, read_verdict
from genlab.vlm.rewards import StagedReward, box_reward, form_reward, tag_reward, verdict_reward


@dataclass(frozen=True)
class Expected:
    """What is known of a picture.

    Args:
        target: The text that a model is to say, regions filled in.
        boxes: In pixels, of what is wrong with it.
        size: Width and height in those pixels.
        generated: Whether it is.
        style: How regions are written.
    """

    target: str
    boxes: Sequence[Corners]
    size: tuple[int, int]
    generated: bool
    style: Style

    @property
    def verdict(self) -> str:
        return GENERATED if self.generated else REAL

    def iou(self, completion: str, matching: Literal["best", "official"]) -> float:
        """How well the completion's boxes cover those expected, in [0, 1]; what is no box is a wrong one."""
        boxes = [region.box or (0.0, 0.0, 0.0, 0.0) for region in read_regions(completion, self.size, self.style)]
        return box_reward(boxes, self.boxes, matching)


class Reward:
    """What a completion earns."""

    def terms(self, completion: str, expected: Expected) -> dict[str, float]:
        """The weighted terms by name, always the same ones; the reward is their sum."""
        raise NotImplementedError(f"{type(self).__name__} must define terms.")


@dataclass(frozen=True)
class WeightedReward(Reward):
    """The released code's form and verdict, and if weighted boxes and tags (ours). 0 to 2 by default.

    Args:
        form: Weight of 1 for the whole form.
        verdict: Weight of 1 for the right verdict, 0.5 for another one.
        boxes: Weight of the intersection over union.
        tags: Weight of the shared share of tags.
        matching: How boxes find their targets; ``official``: a later version of the released code.
    """

    form: float = 1.0
    verdict: float = 1.0
    boxes: float = 0.0
    tags: float = 0.0
    matching: Literal["best", "official"] = "best"

    def terms(self, completion: str, expected: Expected) -> dict[str, float]:
        found = {
            "form": self.form * form_reward(completion) if self.form else 0.0,
            "verdict": self.verdict * verdict_reward(completion, expected.target) if self.verdict else 0.0,
            "boxes": self.boxes * expected.iou(completion, self.matching) if self.boxes else 0.0,
            "tags": self.tags * tag_reward(read_tags(completion), read_tags(expected.target)) if self.tags else 0.0,
        }
        return {name: value for name, value in found.items() if getattr(self, name)}


@dataclass(frozen=True)
class StagedGrounding(Reward):
    """The reward of a later version of the released code: base + w iou^e + label + form.

    Stages of that version: 1 has ``e_iou`` 1.1 and ``format_ok`` 2; 3 has ``base`` -1, ``w_iou`` 2, ``e_iou`` 1.1, ``label_ok`` and
    ``format_ok`` 0.5; the second is not known.

    Args:
        weights: Of the terms.
        matching: How boxes find their targets.
    """

    weights: StagedReward = field(default_factory=StagedReward)
    matching: Literal["best", "official"] = "best"

    def terms(self, completion: str, expected: Expected) -> dict[str, float]:
        w = self.weights
        form = has_grounded_form(completion, expected.generated)
        return {
            "base": w.base,
            "boxes": w.w_iou * expected.iou(completion, self.matching) ** w.e_iou,
            "verdict": w.label_ok if read_verdict(completion) == expected.verdict else w.label_bad,
            "form": w.format_ok if form else w.format_bad,
        }


@dataclass(frozen=True)
class VerdictReward(Reward):
    """For the verdict alone, in ``<verdict>`` or as the whole reply (ours).

    Args:
        right: For the right word.
        wrong: For the other one.
        missing: For anything else.
    """

    right: float = 1.0
    wrong: float = 0.0
    missing: float = -1.0

    def terms(self, completion: str, expected: Expected) -> dict[str, float]:
        plain = completion.strip().lower()
        said = read_verdict(completion) or (plain if plain in (REAL, GENERATED) else "")
        return {"verdict": self.missing if not said else self.right if said == expected.verdict else self.wrong}
