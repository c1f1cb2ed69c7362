"""What replies earn: reference numbers of the released and of a later version, and the recommended rewards."""

from __future__ import annotations

from pathlib import Path

import pytest

from genlab.vlm.rewards import StagedReward, box_reward, form_reward, overlap, tag_reward, verdict_reward
from tests.golden_files import golden_files, load_golden


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("mllm_defake", "rewards"))
def test_reference_numbers(path: Path) -> None:
    meta, _ = load_golden(path)
    tol = meta["tol"]

    def close(found: float, expected: float) -> bool:
        return abs(found - expected) <= tol["atol"] + tol["rtol"] * abs(expected)

    for case in meta["v0"]:
        form, verdict = form_reward(case["completion"]), verdict_reward(case["completion"], case["target"])
        assert close(form, case["format"]) and close(verdict, case["verdict"]) and close(form + verdict, case["total"]), case
    for case in meta["iou"]:
        assert close(box_reward(case["pred"], case["gt"]), case["recommended"]), case
        assert close(box_reward(case["pred"], case["gt"], "official"), case["official"]), case
    stages = {name: StagedReward(**values) for name, values in meta["staged_params"].items()}
    for case in meta["staged"]:
        found = stages[case["stage"]](case["iou"], case["label_correct"], case["format_correct"])
        assert close(found, case["reward"]), case


def test_boxes_apart_do_not_meet() -> None:
    assert overlap((0, 0, 10, 10), (20, 20, 30, 30)) == 0 and overlap((0, 0, 10, 10), (20, 20, 30, 30), clamp=False) == 1
    assert box_reward([(0, 0, 4, 4), (10, 10, 14, 14)], [(10, 10, 14, 14), (0, 0, 4, 4)]) == 1


def test_tags() -> None:
    assert tag_reward("Hands, text", "text ,  hands") == 1 and tag_reward("hands", "text, hands") == 0.5
    assert tag_reward("", "") == 1 and tag_reward("", "hands") == 0
