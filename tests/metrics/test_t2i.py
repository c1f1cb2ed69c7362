"""Few-shot generation metrics: reference numbers, torchmetrics' own KID, and the order of pictures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genlab.metrics.t2i import FewShotQuality, MeanCosine, PromptCosine, cluster_spread, frechet_distance, kernel_distance, kid
from tests.golden_files import golden_files, load_golden


class Flat(torch.nn.Module):
    """Pixels as features, for torchmetrics."""

    num_features = 12

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.float().flatten(1)


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("domaingallery", "cases"))
def test_metrics_of_the_reference(path: Path) -> None:
    meta, given = load_golden(path)
    expected, tol = meta["metrics"], meta["tol"]["metrics"]
    between = given["metric.dist_gen_gen"]
    found = cluster_spread(given["metric.dist_gen_train"], lambda a, b: float(between[a, b]), expected["cap"])
    wanted = expected["ic_lpips"]
    assert found.counts == wanted["counts"] and found.members == wanted["members_kept"]
    assert given["metric.dist_gen_train"].argmin(1).tolist() == wanted["assign"]

    def close(value: float, other: float) -> bool:
        return abs(value - other) <= tol["atol"] + tol["rtol"] * abs(other)

    for mean, other in zip(found.means, wanted["cluster_means"], strict=True):
        assert math.isnan(mean) if other is None else close(mean, other)
    assert close(found.ignoring_small, wanted["i_lpips_ignore_small"])
    assert close(found.small_as_zero, wanted["i_lpips_small_as_zero"]) and close(found.balanced, wanted["b_lpips"])
    value = float(kernel_distance(given["metric.kid_x"], given["metric.kid_y"]))
    assert close(value, expected["kid_single_full_subset"]) and close(1000 * value, expected["kid_x1000"])


def test_kid_of_all_pictures_is_torchmetrics() -> None:
    from torchmetrics.image.kid import KernelInceptionDistance

    real, made = torch.randint(0, 9, (8, 3, 2, 2), dtype=torch.uint8), torch.randint(0, 12, (8, 3, 2, 2), dtype=torch.uint8)
    theirs = KernelInceptionDistance(Flat(), subsets=3, subset_size=8)
    theirs.update(real, real=True)
    theirs.update(made, real=False)
    mean, deviation = kid(real.float().flatten(1), made.float().flatten(1), subsets=3)
    assert mean == pytest.approx(float(theirs.compute()[0]), rel=1e-4) and deviation == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="two or more of each"):
        kernel_distance(torch.zeros(1, 3), torch.zeros(5, 3))


def test_copies_are_near_and_not_diverse() -> None:
    torch.manual_seed(0)

    def measured(pictures: Tensor, order: list[int]) -> dict[str, float]:
        metric = FewShotQuality(lambda x: x.flatten(1), lambda a, b: (a - b).flatten(1).square().mean(1), real)
        for i in order:
            metric.update(pictures[i : i + 1], torch.tensor([i]))
        return {name: float(value) for name, value in metric.compute().items()}

    real = torch.rand(3, 3, 4, 4)
    copies, others = real.repeat(4, 1, 1, 1), torch.rand(12, 3, 4, 4)
    near, far = measured(copies, list(range(12))), measured(others, list(range(12)))
    assert near["kid_x1000"] < far["kid_x1000"] and near["intra"] < 1e-4 < far["intra"]
    shuffled = measured(others, [5, 2, 11, 0, 1, 3, 4, 6, 7, 8, 9, 10])
    assert all(shuffled[name] == pytest.approx(far[name], rel=1e-5) for name in ("kid_x1000", "intra"))
    assert math.isnan(measured(others, [0])["intra"])


def test_frechet_distance_is_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    torch.manual_seed(0)
    real, made = torch.randint(0, 9, (40, 3, 2, 2), dtype=torch.uint8), torch.randint(0, 12, (30, 3, 2, 2), dtype=torch.uint8)
    theirs = FrechetInceptionDistance(Flat())
    theirs.update(real, real=True)
    theirs.update(made, real=False)
    x, y = real.float().flatten(1), made.float().flatten(1)
    assert float(frechet_distance(x, y)) == pytest.approx(float(theirs.compute()), rel=1e-3)
    assert float(frechet_distance(x, x)) == pytest.approx(0, abs=1e-6)
    assert float(frechet_distance(x, x + 2)) == pytest.approx(12 * 4, rel=1e-6), "shifted by 2 in 12 dimensions"
    with pytest.raises(ValueError, match="two or more of each"):
        frechet_distance(x[:1], y)


def test_a_reference_brings_fid_and_copies_are_at_distance_zero() -> None:
    torch.manual_seed(0)
    real, reference = torch.rand(3, 3, 8, 8), torch.rand(40, 3, 8, 8)
    metric = FewShotQuality(lambda x: x.mean((2, 3)), lambda a, b: (a - b).flatten(1).square().mean(1), real, reference=reference, side=4)
    metric.update((real * 255).round() / 255, torch.arange(3))
    found = metric.compute()
    assert set(found) == {"kid_x1000", "kid_x1000_std", "fid", "intra", "intra_small_as_zero", "nearest"}
    assert found["nearest"] < 1e-4 and math.isnan(found["intra"]), "a picture a cluster: no pairs"
    assert metric.pictures[0].shape == (3, 3, 4, 4), "kept as small as the distance needs"
    assert set(FewShotQuality(None, None, real).compute()) == set()


def test_cosines_are_means_over_all_pairs() -> None:
    unit = torch.eye(4)
    metric = MeanCosine(lambda x: unit[x[:, 0, 0, 0].long()], torch.tensor([0.0, 1.0])[:, None, None, None])
    metric.update(torch.tensor([0.0, 2.0, 1.0])[:, None, None, None])
    metric.update(torch.tensor([0.0])[:, None, None, None])
    assert float(metric.compute()) == pytest.approx((0.5 + 0 + 0.5 + 0.5) / 4)
    prompts = PromptCosine(lambda x: unit[x[:, 0, 0, 0].long()], lambda texts: torch.stack([unit[int(each)] for each in texts]))
    prompts.update(torch.tensor([0.0, 2.0])[:, None, None, None], ["0", "3"])
    assert float(prompts.compute()) == 0.5
