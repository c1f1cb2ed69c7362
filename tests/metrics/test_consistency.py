"""The score: golden numbers, what must give 0, additivity, two processes, LPIPS without network."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from genlab.errors import MissingPath, UserError
from genlab.holes import patch_seed
from genlab.metrics.consistency import MAX_PSNR, Distances, ReInpaintingConsistency, detail, fill_holes, reinpaint
from genlab.models.inpainters import Constant, Degraded, Harmonic, Inpainter, Mean, Noise, OpenCV
from tests.golden_files import assert_close, golden_files, load_golden

GOLDEN = golden_files("inpaint_consistency", "consistency")


def inpainters(golden: dict[str, Any]) -> dict[str, Inpainter]:
    return {"mean": Mean(), "const": Constant(golden["const_value"]), "harmonic": Harmonic(golden["harmonic_iters"])}


@pytest.mark.golden
@pytest.mark.parametrize("path", GOLDEN)
def test_equals_the_reference(path: Path) -> None:
    golden, tensors = load_golden(path)
    fills, tol = inpainters(golden), golden["tol"]
    images, holes = tensors["images"], tensors["first_holes"]
    assert golden["values"]
    for key, expected in golden["values"].items():
        pair, avoid = key.split("|")
        f1, f2 = pair.split(">")
        made = reinpaint(
            fills[f1], fills[f2], images, holes, golden["K"],
            ratio=golden["ratio"], patch=golden["patch"], avoid=avoid, base_seed=golden["base_seed"],
        )  # fmt: skip
        assert torch.equal(made.second_holes, tensors[f"second_holes.{avoid}"].bool()) and made.valid.all()
        assert_close(made.first, tensors[f"x1.{f1}"], tol["images"], f"{key}: X1")
        if (name := f"x2.{f1}.{f2}.k0") in tensors and avoid == "pixel":
            assert_close(made.second[:, 0], tensors[name], tol["images"], name)
        distances = Distances(["l1", "ssim", "psnr"], ["full", "second_hole"])
        pairs = distances(made.first.repeat_interleave(golden["K"], 0), made.second.flatten(0, 1), made.second_holes.flatten(0, 1))
        for name in ("l1", "l1_hole", "ssim", "psnr"):
            assert_close(pairs[name].view(golden["B"], golden["K"]), tensors[f"{name}.{key}"], tol["values"], f"{name}.{key}")
        metric = ReInpaintingConsistency(["l1", "mse", "ssim"], ["full", "second_hole"], per_image=True)
        metric.update(made.first, made.second, original=images, first_holes=holes, second_holes=made.second_holes, valid=made.valid)
        found = metric.compute()
        ours = {"D_l1": "l1", "D_l1_hole": "l1_hole", "D_mse": "mse", "D_ssim": "ssim", "D_l1_std_over_k_mean": "l1_std"}
        ours |= {"original_first_l1": "original_first/l1", "original_second_l1": "original_second/l1", "D_l1_per_image": "per_image/l1"}
        for theirs, own in ours.items():
            assert_close(found[own], torch.tensor(expected[theirs], dtype=torch.float64), tol["values"], f"{key}: {theirs}")


def scene(size: int = 32) -> tuple[Tensor, Tensor]:
    """Two pictures, and a hole in each: (2, 3, S, S) and (2, 1, S, S)."""
    generator = torch.Generator().manual_seed(3)
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    images = torch.stack([torch.stack([y, x, 0.5 * (x + y)]), torch.stack([x * y, 1 - x, y])])
    images = (255 * (0.8 * images + 0.2 * torch.rand(images.shape, generator=generator))).round() / 255
    holes = torch.zeros(2, 1, size, size)
    holes[0, :, 8:20, 10:24] = 1
    holes[1, :, 4:9, :] = 1
    return images, holes


class Oracle(Inpainter):
    """Knows what is behind every hole."""

    name, batch_size = "oracle", 8

    def __init__(self, truth: Tensor) -> None:
        self.truth = truth

    def fill(
        self, images: Tensor, holes: Tensor, *, seeds: list[int], prompts: list[str] | None = None, ids: list[str] | None = None
    ) -> Tensor:
        return self.truth


def test_what_is_foretold_exactly_has_distance_zero() -> None:
    images, holes = scene()
    first = fill_holes(Harmonic(20), images, holes, [0, 0]).images
    again = reinpaint(Harmonic(20), Oracle(first), images, holes, 3)
    nothing_hidden = reinpaint(Harmonic(20), Noise(), images, holes, 3, ratio=0.0)
    flat = reinpaint(Mean(), Mean(), torch.full_like(images, 0.25), holes, 3)
    for made in (again, nothing_hidden, flat):
        metric = ReInpaintingConsistency(["l1", "psnr", "ssim"])
        metric.update(made.first, made.second, valid=made.valid)
        found = metric.compute()
        assert float(found["l1"]) < 1e-7 and float(found["psnr"]) == MAX_PSNR and float(found["ssim"]) > 0.9999 and found["n_pairs"] == 6
    assert torch.equal(nothing_hidden.second[:, 0], nothing_hidden.first)


@pytest.mark.parametrize("fills", [OpenCV("telea"), OpenCV("ns"), Noise(), Harmonic(5)], ids=lambda each: each.name)
def test_known_pixels_stay_exactly_as_they_are(fills: Inpainter) -> None:
    images, holes = scene()
    made = reinpaint(fills, fills, images, holes, 2)
    assert torch.equal(made.first[holes.expand_as(images) == 0], images[holes.expand_as(images) == 0])
    for k in range(2):
        known = ~made.second_holes[:, k].expand_as(images)
        assert torch.equal(made.second[:, k][known], made.first[known])
        assert not (made.second_holes[:, k] & (holes > 0)).any()
        assert made.second_holes[:, k].any() and not torch.equal(made.second[:, k], made.first)


def test_a_second_inpainter_that_sees_nothing_tells_nothing_apart() -> None:
    images, holes = scene()
    scores = []
    for f1 in (Noise(), Mean(), Harmonic(30), OpenCV("telea")):
        metric = ReInpaintingConsistency(["l1"])
        made = reinpaint(f1, Constant(), images, holes, 3)
        metric.update(made.first, made.second)
        scores.append(float(metric.compute()["l1"]))
    assert max(scores) - min(scores) < 1e-6 < max(scores)


def test_a_flat_filling_of_a_flat_picture_wins_though_the_truth_is_another() -> None:
    """The known degenerate winner: the score rewards what is easily foretold."""
    images, holes = torch.full((1, 3, 32, 32), 0.5), torch.zeros(1, 1, 32, 32)
    images[:, :, 8:16, 8:16] = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))  # a thing, hidden whole
    holes[:, :, 7:17, 7:17] = 1
    scores, wrong = [], []
    for f1 in (Mean(), Oracle(images)):
        made = reinpaint(f1, Harmonic(50), images, holes, 10, avoid="none")
        metric = ReInpaintingConsistency(["l1"])
        metric.update(made.first, made.second, original=images)
        scores.append(float(metric.compute()["l1"]))
        wrong.append(float(metric.compute()["original_first/l1"]))
    assert scores[0] < 1e-6 < 0.001 < scores[1] and wrong[0] > 0.01 and wrong[1] == 0


def score(f1: Inpainter, f2: Inpainter, images: Tensor, holes: Tensor, golden: dict[str, Any], **more: Any) -> float:
    options = {"ratio": golden["ratio"], "patch": golden["patch"], "base_seed": golden["base_seed"]}
    made = reinpaint(f1, f2, images, holes, golden["K"], **options | more)
    metric = ReInpaintingConsistency(["l1"])
    metric.update(made.first, made.second)
    return float(metric.compute()["l1"])


@pytest.mark.golden
@pytest.mark.parametrize("path", GOLDEN)
def test_better_fillings_score_better_and_spoiled_ones_worse(path: Path) -> None:
    golden, tensors = load_golden(path)
    images, holes, fills = tensors["images"], tensors["first_holes"], inpainters(golden)
    scores = [score(fills[name], fills["harmonic"], images, holes, golden) for name in ("harmonic", "mean", "const")]
    assert scores == sorted(scores) and len(set(scores)) == 3
    f1 = fills["harmonic"]
    noisy = [score(Degraded(f1, "noise", sigma) if sigma else f1, f1, images, holes, golden) for sigma in (0.0, 0.05, 0.1, 0.2)]
    assert noisy == sorted(noisy) and len(set(noisy)) == 4


def test_repeats_in_two_parts_are_the_repeats_in_one() -> None:
    images, holes = scene()
    whole = reinpaint(Harmonic(10), Noise(), images, holes, 6)
    parts = [reinpaint(Harmonic(10), Noise(), images, holes, 3, k_offset=offset) for offset in (0, 3)]
    assert torch.equal(torch.cat([part.second for part in parts], 1), whole.second)
    alone = reinpaint(Harmonic(10), Noise(), images[1:], holes[1:], 6, indices=[1])
    assert torch.equal(alone.second, whole.second[1:]), "a picture's numbers do not depend on its batch"
    assert patch_seed(0, 1, 0) != patch_seed(0, 0, 1)


# The metric object.


def update(metric: ReInpaintingConsistency, numbers: list[int], made: Any, images: Tensor) -> None:
    metric.update(
        made.first[numbers], made.second[numbers], original=images[numbers], second_holes=made.second_holes[numbers],
        valid=made.valid[numbers], ids=numbers,
    )  # fmt: skip


def test_updates_add_up_and_reset_forgets() -> None:
    images, holes = scene()
    images, holes = torch.cat([images, images.flip(3)]), torch.cat([holes, holes.flip(2)])
    made = reinpaint(Harmonic(10), OpenCV("telea"), images, holes, 3)
    made.valid[2, 1] = False
    made.valid[3] = False
    options: dict[str, Any] = {"distances": ["l1", "ssim"], "regions": ["full", "second_hole"], "per_image": True}
    once, often = ReInpaintingConsistency(**options), ReInpaintingConsistency(**options)
    update(once, [0, 1, 2, 3], made, images)
    for number in (2, 0, 1, 3):
        update(often, [number], made, images)
    a, b = once.compute(), pickle.loads(pickle.dumps(often)).compute()
    assert a.keys() == b.keys() and all(torch.allclose(a[name], b[name], rtol=1e-12, equal_nan=True) for name in a)
    assert (int(a["n_images"]), int(a["n_pairs"]), int(a["n_invalid"]), a["ids"].tolist()) == (3, 8, 4, [0, 1, 2])
    by_hand = torch.stack([(made.first[i] - made.second[i, k]).abs().mean() for i, k in ((2, 0), (2, 2))]).double().mean()
    assert float(a["per_image/l1"][2]) == pytest.approx(float(by_hand), rel=1e-6)
    assert float(a["l1"]) == pytest.approx(float(a["per_image/l1"].mean()))
    once.reset()
    with pytest.warns(UserWarning, match="before the ``update``"):
        empty = once.compute()
    assert math.isnan(float(empty["l1"])) and empty["n_images"] == 0 and len(empty["ids"]) == 0
    with pytest.raises(ValueError, match="need"):
        once.update(made.first, made.second[..., :16])


def _rank(rank: int, store: str, results: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    images, holes = scene()
    made = reinpaint(Harmonic(10), Mean(), images, holes, 2)
    metric = ReInpaintingConsistency(["l1"], per_image=True)
    if rank == 0:  # the other one has nothing
        update(metric, [1, 0], made, images)
    results[rank] = {name: value.tolist() for name, value in metric.compute().items()}
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_get_the_numbers_of_one(tmp_path: Path) -> None:
    images, holes = scene()
    made = reinpaint(Harmonic(10), Mean(), images, holes, 2)
    metric = ReInpaintingConsistency(["l1"], per_image=True)
    update(metric, [0, 1], made, images)
    expected = {name: pytest.approx(value.tolist(), rel=1e-12) for name, value in metric.compute().items()}
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, (str(tmp_path / "store"), results), nprocs=2)
        assert dict(results) == {0: expected, 1: expected}


# LPIPS.


def test_lpips_takes_its_backbone_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "net.pth")
    distances = Distances(["lpips_squeeze", "l1"], backbone_weights=tmp_path / "net.pth")
    images = scene(64)[0]
    near, far = (0.9 * images + 0.1 * images.flip(3)), images.flip(3)
    same, small, large = (distances(images, other)["lpips_squeeze"] for other in (images, near, far))
    assert (same == 0).all() and (small > 0).all() and (small < large).all()
    assert not [name for name, weight in distances.named_parameters() if weight.requires_grad]
    with pytest.raises(UserError, match=r"net\.pth is not torchvision's network for lpips_alex"):
        Distances(["lpips_alex"], backbone_weights=tmp_path / "net.pth")
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read as weights"):
        Distances(["lpips_alex"], backbone_weights=tmp_path / "broken.pth")
    monkeypatch.setenv("GENLAB_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingPath, match=r"lpips_alex: its backbone.*alexnet-owt-7be5be79\.pth.*GENLAB_DOWNLOAD=1"):
        Distances(["l1", "lpips_alex"])
    with pytest.raises(UserError, match="lpips is no choice"):
        Distances(["lpips"])  # type: ignore[list-item]


def test_detail_shows_a_flat_filling() -> None:
    images, holes = scene()
    flat, lively = (fill_holes(each, images, holes, [1, 2]).images for each in (Mean(), Noise()))
    assert detail(flat, holes).max() < 1e-6 and detail(lively, holes).min() > 2
    assert ((detail(images, holes) - 1).abs() < 0.4).all()
