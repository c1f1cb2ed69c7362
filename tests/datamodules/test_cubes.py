"""Converted cubes, their augmentation and samples: what is read anew, what is unreadable, and what a generator decides."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.cube_cache import CubeCache
from datamodules.hyspefas import HySpeFAS
from datamodules.hyspefas_index import UnreadableCube, load_cube, read_challenge
from datamodules.sampling import Draw, RepeatedSampler
from datamodules.spectral_augment import SpectralAugment, resized
from datamodules.spectral_channels import MEAN, STD, Channels
from datamodules.tinyworld import make
from genlab.errors import UserError
from genlab.verbs.data import main as data_verb

SMALL = {"train_captures": 2, "val_captures": 1, "test_captures": 1, "size": 24}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cubes")
    make("hyspefas", folder / "challenge", progress=False, **SMALL)
    make("hyspefas", folder / "full", progress=False, **SMALL, full=1)
    return folder


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(made / "challenge", tmp_path / "challenge"))


def faces(root: Path, stage: str = "fit", **options: Any) -> HySpeFAS:
    data = HySpeFAS(str(root), image_size=16, cache="none", batch_size=4, num_workers=0, **options)
    data.setup(stage)
    return data


def test_cubes_are_converted_once_and_anew_when_they_change(root: Path, tmp_path: Path) -> None:
    cache = CubeCache(tmp_path / "cache", root)
    samples = read_challenge(root)["train"]
    assert cache.fill(samples[:3], workers=0) == {} and cache.fill(samples, workers=0) == {}  # stopped after three, and called again
    assert all(map(cache.has, samples))
    cube, picture = cache.read(samples[0])
    assert isinstance(cube, np.memmap) and cube.dtype == np.float16 and picture.dtype == np.uint8
    np.testing.assert_allclose(cube, load_cube(samples[0].cube).transpose(2, 0, 1), atol=2e-3, rtol=1e-3)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    cache.fill(samples, workers=0)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    shutil.copy(samples[1].cube, samples[0].cube)
    os.utime(samples[0].cube, ns=(1, 1))
    assert not cache.has(samples[0])
    np.testing.assert_allclose(cache.read(samples[0])[0], load_cube(samples[1].cube).transpose(2, 0, 1), atol=2e-3, rtol=1e-3)


def test_a_torn_converted_file_is_made_again(root: Path, tmp_path: Path) -> None:
    cache, sample = CubeCache(tmp_path / "cache", root), read_challenge(root)["train"][0]
    cache.read(sample)
    for path in (tmp_path / "cache").rglob("*.cube.npy"):
        path.write_bytes(path.read_bytes()[:100])
    np.testing.assert_allclose(cache.read(sample)[0], load_cube(sample.cube).transpose(2, 0, 1), atol=2e-3, rtol=1e-3)


def test_broken_cubes_are_named(root: Path, tmp_path: Path) -> None:
    cache, samples = CubeCache(tmp_path / "cache", root), read_challenge(root)["train"]
    samples[0].cube.write_bytes(b"no MATLAB file")
    samples[1].colour.write_bytes(b"no picture")
    samples[2].cube.unlink()
    unread = cache.fill(samples[:4], workers=0)
    assert set(unread) == {each.id for each in samples[:3]} and "is not there" in unread[samples[2].id]
    for sample in samples[:3]:
        with pytest.raises(UnreadableCube):
            cache.read(sample)


def test_unreadable_samples_have_a_substitute_or_no_score(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = faces(root)
    train = data.datasets["train"]
    first = next(i for i, each in enumerate(train.samples) if each.label == 0)
    train.samples[first].cube.write_bytes(b"broken")
    found = train[Draw(first, 0)]
    assert found["substituted"] and found["readable"] and found["label"] == 0 and found["image"].abs().sum() > 0
    val = data.datasets["val"]
    val.samples[0].cube.unlink()
    found = val[Draw(0, 0)]
    assert not found["readable"] and not found["image"].any() and found["shown"].shape == (3, 16, 16)


def test_lists_that_share_pictures_are_said_to(root: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    """The official balanced list holds the validation pictures, each of its rows as often as it counts."""
    trainval = root / "HySpeFAS_trainval"
    val = (trainval / "val_gt.txt").read_text().split("\n")[0].split()
    rows = [*(line.split() for line in (trainval / "train.txt").read_text().splitlines()), val, val]
    (trainval / "train_all_balance.csv").write_text("image,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
    with caplog.at_level(logging.WARNING):
        data = faces(root, train_list="HySpeFAS_trainval/train_all_balance.csv")
    assert "say nothing about new faces" in " ".join(caplog.text.split()) and data.protocol["validation pictures in training"] == 1
    assert Counter(each.repeats for each in data.datasets["train"].samples)[2] == 1
    train = (trainval / "train.txt").read_text().splitlines()
    (trainval / "train.txt").write_text("\n".join([*train, " ".join(val)]) + "\n")
    assert data_verb(["check", "hyspefas", "--root", str(root), "--level", "quick"]) == 0
    assert "1 of 9 val pictures are in the train list as well" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("protocol", [1, 2, 3])
def test_the_full_layout(made: Path, protocol: int) -> None:
    data = faces(made / "full", protocol=protocol)
    assert data.full and data.protocol["protocol"] == protocol and {0, 1} == set(data.datasets["train"].labels.tolist())
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].shape[1:] == (33, 16, 16) and torch.isfinite(batch["image"]).all()
    assert set(data.types) <= {"print", "mask", "2D", "3D"}, data.types


def test_channels_are_those_asked_for() -> None:
    cube = np.random.default_rng(0).random((30, 4, 5), np.float32)
    picture = np.random.default_rng(1).integers(0, 256, (4, 5, 3), np.uint8)
    chosen = Channels("rgb", [21, 30], 30, "as_is")
    x = chosen.pick(cube, picture)
    assert x.shape == (5, 4, 5) and torch.equal(x[4], torch.from_numpy(cube[29])) and x[0, 0, 0] == picture[0, 0, 0] / np.float32(255)
    mean, std = chosen.official()
    assert torch.allclose(mean, torch.tensor([MEAN[2], MEAN[1], MEAN[0], MEAN[23], MEAN[32]])) and std[4] == torch.tensor(STD[32])
    assert Channels("none", None, 30, "per_sample_max").pick(cube, picture).max() == 1
    with pytest.raises(UserError, match="31 is no band"):
        Channels("bgr", [31], 30, "as_is")
    with pytest.raises(UserError, match="nothing left to see"):
        Channels("none", [], 30, "as_is")
    with pytest.raises(UserError, match="Do not mix sensors"):
        chosen.pick(cube[:20], picture)


def test_resizing_is_torchs() -> None:
    x = torch.rand(3, 21, 30)
    for size in (12, 40):
        expected = torch.nn.functional.interpolate(x[None], (size, size), mode="bilinear", align_corners=False)[0]
        assert torch.allclose(resized(x, size), expected, atol=1e-5)


def test_augmentation_is_keyed_and_masks_halves() -> None:
    x, augment = torch.ones(3, 20, 24), SpectralAugment(holes=0, flip=0)
    one, again, other = (
        augment(torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(0)), 16, np.random.default_rng(s)) for s in (1, 1, 2)
    )
    assert one.shape == (3, 16, 16) and torch.equal(one, again) and not torch.equal(one, other)
    kinds: Counter[str] = Counter()
    for seed in range(300):
        made = augment(x, 16, np.random.default_rng(seed))[0]
        rows, columns = made.sum(1) > 0, made.sum(0) > 0
        kinds["all" if made.all() else "upper" if not rows[8:].any() else "right" if not columns[:8].any() else "left"] += 1
    assert 75 < kinds["all"] < 125 and 75 < kinds["upper"] < 125 and 30 < kinds["left"] < 70 and 30 < kinds["right"] < 70
    cut = SpectralAugment(half_mask=False, flip=0, holes=2, hole_size=0.2, scale=(1, 1), ratio=(1, 1))
    shares = [float((cut(x, 20, np.random.default_rng(seed)) == 0).float().mean()) for seed in range(30)]
    assert all(0 < share <= 2 * 0.04 for share in shares)
    dropped = SpectralAugment(half_mask=False, holes=0, drop_channels=0.5)(torch.ones(400, 8, 8), 8, np.random.default_rng(0))
    assert 0.4 < float((dropped.flatten(1).max(1).values == 0).float().mean()) < 0.6


def test_repeated_samples_come_as_often_as_they_should() -> None:
    times = np.array([1, 3, 10])
    sampler = RepeatedSampler(times, 0)
    draws = list(sampler)
    assert Counter(draw.index for draw in draws) == {0: 1, 1: 3, 2: 10}
    assert sorted(draw.occurrence for draw in draws if draw.index == 2) == list(range(10))
    parts = [list(RepeatedSampler(times, 0, rank, 2)) for rank in (0, 1)]
    assert sorted(map(repr, [*parts[0], *parts[1]])) == sorted(map(repr, draws))
    weighted = RepeatedSampler(np.array([1.0, 1.0, 8.0] * 100), 0, weighted=True)
    share = sum(draw.index % 3 == 2 for draw in weighted) / len(weighted)
    assert 0.7 < share < 0.9


@pytest.mark.parametrize("layout", ["challenge", "full"])
def test_cubes_to_predict_find_their_pictures(made: Path, tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture) -> None:
    """Beside them, or in rgb/ of the full distribution; a cube without one is named."""
    cubes = sorted((made / layout).rglob("*.mat"))
    chosen = [path for path in cubes if "sensing" not in path.name][:3]
    alone = tmp_path / "alone.mat"
    shutil.copy(chosen[0], alone)
    data = HySpeFAS(str(made / layout), image_size=24, num_workers=0, predict_paths=[str(path) for path in [*chosen, alone]])
    with caplog.at_level(logging.WARNING):
        data.setup("predict")
    assert "alone.mat" in caplog.text and chosen[0].name not in caplog.text
    readable = [data.datasets["predict"][Draw(i, 0)]["readable"] for i in range(4)]
    assert readable == [True, True, True, False]
