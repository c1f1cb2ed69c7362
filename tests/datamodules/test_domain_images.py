"""A domain's pictures: two streams that go round, bad pictures, and who says what they show."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.domain_images import DomainImages, cut
from datamodules.sampling import Draw
from genlab.errors import MissingPath, UserError


def write(folder: Path, count: int, size: tuple[int, int] = (20, 16)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", size, (10 * i, 0, 0)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path / "mine", 5)


def domain(root: Path, **options: Any) -> DomainImages:
    settings: dict[str, Any] = {"category": "star", "image_size": 12, "batch_size": 3, "num_workers": 0, **options}
    data = DomainImages(str(root), **settings)
    data.setup("fit")
    return data


def test_each_stream_shows_all_of_its_pictures_before_one_again(root: Path, tmp_path: Path) -> None:
    data = domain(root, source=str(write(tmp_path / "source", 7)))
    loader = data.train_dataloader()
    pairs = [loader.dataset[Draw(i, epoch)] for epoch in range(5) for i in range(7)]
    for name, count in (("target", 5), ("source", 7)):
        ids = [pair[f"{name}_id"] for pair in pairs]
        assert set(Counter(ids).values()) == {35 // count}
        rounds = [tuple(ids[k : k + count]) for k in range(0, 35, count)]
        assert all(len(set(each)) == count for each in rounds) and len(set(rounds)) > 1
    batch = next(iter(loader))
    assert batch["target"].shape == batch["source"].shape == (3, 3, 12, 12) and batch["target"].dtype == torch.uint8
    again = domain(root, source=str(tmp_path / "source")).train_dataloader().dataset[Draw(2, 1)]
    assert torch.equal(again["target"], loader.dataset[Draw(2, 1)]["target"])


def test_pictures_are_cut_in_the_middle_or_anywhere() -> None:
    picture = Image.fromarray(np.tile(np.arange(40, dtype=np.uint8), (20, 1))[..., None].repeat(3, 2))
    assert cut(picture, 20, "center")[0, 0, 0] == 10
    starts = {int(cut(picture, 20, "random", np.random.default_rng(seed))[0, 0, 0]) for seed in range(40)}
    assert len(starts) > 8 and min(starts) >= 0 and max(starts) <= 20


def test_bad_pictures_are_named_all_at_once(root: Path) -> None:
    (root / "broken.png").write_bytes(b"no picture")
    (root / "empty.jpg").write_bytes(b"")
    (root / "notes.txt").write_text("passed over")
    with pytest.raises(UserError, match=r"2 are unfit: broken\.png, empty\.jpg \(unreadable; "):
        domain(root)


def test_pictures_whose_colours_or_frames_are_not_known_are_refused(root: Path) -> None:
    Image.new("RGBA", (18, 18), (0, 0, 255, 10)).save(root / "alpha.png")
    Image.new("L", (18, 18)).save(root / "grey.png")
    assert domain(root).real_pictures().shape == (7, 3, 12, 12), "those become RGB"
    Image.new("CMYK", (18, 18), (0, 200, 0, 0)).save(root / "cmyk.jpg")
    frames = [Image.new("RGB", (18, 18), color) for color in ("red", "blue")]
    frames[0].save(root / "moving.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=r"2 are unfit: moving\.gif \(animated; .*; cmyk\.jpg \(CMYK; "):
        domain(root)


def test_somebody_says_what_the_pictures_show(root: Path) -> None:
    with pytest.raises(UserError, match="name what the pictures show"):
        domain(root, category=None)
    (root / "metadata.jsonl").write_text("".join(json.dumps({"file_name": f"{i}.png", "category": "star"}) + "\n" for i in range(5)))
    assert domain(root, category=None).category == "star"
    with pytest.raises(MissingPath, match="is not a folder"):
        domain(root / "nowhere")
    with pytest.raises(MissingPath, match="about ten are enough"):
        domain(write(root / "none", 0))


def test_one_of_several_domains(tmp_path: Path) -> None:
    for name in ("sketches", "cars"):
        write(tmp_path / "target_dataset" / name, 3)
    with pytest.raises(UserError, match="none of cars, sketches"):
        domain(tmp_path)
    assert len(domain(tmp_path, domain="cars").target) == 3
