"""Frames and crops of action clips: reference numbers, views, and augmentation keyed by the sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.action_transforms import (
    ActionAugment,
    crop_places,
    crop_sizes,
    evaluation_crops,
    middle_frames,
    random_frames,
    short_side,
    three_crops,
    view_frames,
)
from genlab.metrics.few_shot import harmonic_mean
from genlab.training.schedules import warm_unshifted_cosine
from tests.golden_files import golden_files, load_golden


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("msta", "sampling"))
def test_frames_crops_and_rates_of_the_reference(path: Path) -> None:
    meta, _ = load_golden(path)
    for case in meta["test_mode"]:
        assert middle_frames(case["total_frames"], case["num_clips"], case["clip_len"], case["interval"]) == case["indices"]
    for case in meta["train_mode"]:
        asked: list[tuple[int, int]] = []

        def given(high: int, count: int, case: dict[str, list[int]] = case, asked: list[tuple[int, int]] = asked) -> Sequence[int]:
            asked.append((high, count))
            return case["draws"]

        assert random_frames(case["total_frames"], case["num_clips"], given, case["clip_len"], case["interval"]) == case["indices"]
        assert len(asked) == bool(case["draws"]) and all(high > max(case["draws"]) for high, _ in asked)
    for case in meta["deterministic_multi_view"]:
        assert view_frames(case["total_frames"], case["frames"], case["views"]) == case["indices"]
    for case in meta["three_crop"]:
        assert [list(place) for place in three_crops(case["height"], case["width"], case["crop"])] == case["offsets_xy"]
    for case in meta["short_side_resize"]:
        assert list(short_side(case["height"], case["width"], case["short"])) == case["out_hw"]
    for case in meta["multi_scale_crop"]:
        sizes = crop_sizes(case["height"], case["width"], case["input"], case["scales"])
        assert [list(size) for size in sizes] == case["sizes_wh"]
        wide, high = sizes[-1]
        assert [list(place) for place in crop_places(case["height"], case["width"], high, wide)] == case["offsets_xy_of_last"]
    tol = meta["tol"]["lr"]
    for case in meta["lr_schedule"]:
        for step, expected in zip(case["steps"], case["lr"]):
            found = case["base"] * warm_unshifted_cosine(step, case["warmup_steps"], case["total_steps"], case["lr_min"] / case["base"])
            assert abs(found - expected) <= tol["atol"] + tol["rtol"] * expected, (step, found)
    tol = meta["tol"]["harmonic_mean"]
    for case in meta["harmonic_mean"]:
        assert abs(harmonic_mean(case["base"], case["novel"]) - case["hm"]) <= tol["atol"] + tol["rtol"] * case["hm"]


@pytest.mark.parametrize(
    ("epoch", "expected"), [(1, 2.0e-4), (4, 8.0e-4), (5, 9.75773e-4), (6, 9.65239e-4), (25, 5.05e-4), (35, 2.14046e-4), (49, 1.0977e-5)]
)
def test_rates_of_the_authors_logs(epoch: int, expected: float) -> None:
    assert 1e-3 * warm_unshifted_cosine(13 * epoch, 5 * 13, 50 * 13) == pytest.approx(expected, rel=5e-5)


def test_one_view_is_the_middle_of_each_segment() -> None:
    for total in (5, 8, 40, 301):
        assert all(abs(a - b) <= 1 for a, b in zip(view_frames(total, 8, 1)[0], middle_frames(total, 8)))


def test_augmentation_is_the_same_for_all_frames_and_keyed() -> None:
    still = torch.randint(0, 256, (1, 3, 48, 64), dtype=torch.uint8).expand(4, -1, -1, -1)
    augment = ActionAugment()
    made = [augment(still, 32, 0.5, np.random.default_rng(seed)) for seed in (1, 1, 2, 3)]
    assert made[0].shape == (4, 3, 32, 32) and made[0].dtype == torch.uint8
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2]) and not torch.equal(made[2], made[3])
    assert all((each == each[:1]).all() for each in made)
    each_frame = ActionAugment(jitter=1.0, grey=0.0, per_frame_jitter=True)(still, 32, 0.0, np.random.default_rng(1))
    assert not (each_frame == each_frame[:1]).all()


def test_three_crops_cover_a_wide_clip() -> None:
    video = torch.arange(64, dtype=torch.uint8).expand(2, 3, 32, 64)
    left, right, middle = evaluation_crops(video, 32, 3)
    assert (left[0, 0, 0, 0], right[0, 0, 0, -1], middle[0, 0, 0, 0]) == (0, 63, 16)
    assert evaluation_crops(video, 28, 1).shape == (1, 2, 3, 28, 28)
