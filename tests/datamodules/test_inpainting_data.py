"""Pictures with holes as batches: masks from every place, generated ones, squares, and ``data check``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.inpainting import GeneratedHoles, Inpainting
from genlab.batches import InpaintingBatch
from genlab.errors import MissingPath, UserError
from genlab.verbs.data import main


def batch_of(**options: object) -> InpaintingBatch:
    data = Inpainting(**{"batch_size": 100, "size": 16, **options})  # type: ignore[arg-type]
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    order = batch["index"].argsort().tolist()
    return {name: [value[i] for i in order] if isinstance(value, list) else value[order] for name, value in batch.items()}  # type: ignore[return-value]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures, left half red, of three sizes; one lies in a folder."""
    for name, (width, height) in {"a.png": (32, 32), "b.jpg": (40, 20), "sub/c.png": (16, 48)}.items():
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[:, : width // 2, 0] = 255
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=95)
    return tmp_path / "photos"


def write_masks(photos: Path, folder: Path) -> Path:
    """The right half of each picture is the hole."""
    for path in [each for each in photos.rglob("*") if each.is_file()]:
        with Image.open(path) as picture:
            mask = np.zeros((picture.height, picture.width), np.uint8)
        mask[:, mask.shape[1] // 2 :] = 255
        to = (folder / path.relative_to(photos)).with_suffix(".png")
        to.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(to)
    return folder


def test_pictures_become_squares_and_holes_stay_on_their_place(photos: Path, tmp_path: Path) -> None:
    masks = write_masks(photos, tmp_path / "masks")
    batch = batch_of(root=str(photos), masks=str(masks))
    assert batch["id"] == ["a.png", "b.jpg", "sub/c.png"] and batch["image"].shape == (3, 3, 16, 16)
    assert batch["image"].dtype == torch.uint8 and batch["hole"].dtype == torch.bool
    assert batch["hole"][..., 9:].all() and not batch["hole"][..., :7].any()
    assert (batch["image"][:, 0, :, :6] > 240).all() and (batch["image"][:, 0, :, 10:] < 15).all()
    inverted = batch_of(root=str(photos), masks=str(masks), invert_masks=True)
    assert torch.equal(inverted["hole"], ~batch["hole"])
    one = batch_of(root=str(photos), masks=str(masks / "a.png"))
    assert one["hole"].float().mean((1, 2, 3)).tolist() == [0.5] * 3
    alone = batch_of(root=str(photos / "a.png"), masks=str(masks / "a.png"))
    assert alone["id"] == ["a.png"] and torch.equal(alone["image"], batch["image"][:1])
    (masks / "b.png").unlink()
    with pytest.raises(UserError, match=r"has no mask for b\.jpg"):
        batch_of(root=str(photos), masks=str(masks))
    with pytest.raises(MissingPath, match="neither a folder of masks nor one mask"):
        batch_of(root=str(photos), masks=str(tmp_path / "none"))


def test_generated_holes_depend_on_the_picture_alone(photos: Path) -> None:
    holes = GeneratedHoles("box", 0.25, 0.25)
    whole = batch_of(root=str(photos), holes=holes)
    assert whole["hole"].sum((1, 2, 3)).tolist() == [64, 64, 64] and whole["usable"].all()
    part = batch_of(root=str(photos), holes=holes, n_images=2, subset_seed=1)
    assert len(part["id"]) == 2
    for n, name in enumerate(part["id"]):
        at = whole["id"].index(name)
        assert torch.equal(part["hole"][n], whole["hole"][at]) and int(part["index"][n]) == at, "seeds count in the whole list"
    assert not torch.equal(batch_of(root=str(photos), holes=GeneratedHoles("box", 0.25, 0.25, seed=1))["hole"], whole["hole"])
    with pytest.raises(UserError, match="kinds are free_form"):
        GeneratedHoles("round")  # type: ignore[arg-type]


def test_prompts_and_groups_come_along_and_bad_pictures_are_told(photos: Path, tmp_path: Path) -> None:
    masks = write_masks(photos, tmp_path / "masks")
    lines = [f"photos/{name},masks/{Path(name).with_suffix('.png')},{prompt},g" for name, prompt in (("a.png", "red"), ("b.jpg", ""))]
    (tmp_path / "list.csv").write_text("\n".join(["image,mask,prompt,group", *lines]) + "\n")
    (photos / "b.jpg").write_bytes(b"\xff\xd8\xff nothing")
    Image.new("L", (32, 32), 255).save(masks / "a.png")
    batch = batch_of(root=str(tmp_path / "list.csv"))
    assert batch["prompt"] == ["red", ""] and batch["group"] == ["g", "g"]
    assert batch["readable"].tolist() == [True, False] and batch["usable"].tolist() == [False, False]
    assert batch_of(root=str(tmp_path / "list.csv"), max_hole=1.0)["usable"].tolist() == [True, False]


def test_data_check_and_show(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "set"
    root.mkdir()
    photos.rename(root / "images")
    masks = write_masks(root / "images", root / "masks")
    assert main(["check", "inpainting", "--root", str(root), "--workers", "0"]) == 0
    assert "0 errors" in capsys.readouterr().out
    Image.new("L", (32, 32), 0).save(masks / "a.png")
    assert main(["check", "inpainting", "--root", str(root), "--level", "full", "--workers", "0"]) == 1
    assert "its mask a.png hides nothing" in capsys.readouterr().out
    assert main(["check", "inpainting", "--root", str(root), "--level", "quick"]) == 0
    assert main(["show", "inpainting", "--root", str(root), "--out", str(tmp_path / "sheet.png")]) == 0
    with pytest.raises(UserError, match="takes no --train_list"):
        main(["check", "inpainting", "--root", str(root), "--train_list", "x"])
