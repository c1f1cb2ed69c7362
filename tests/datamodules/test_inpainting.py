"""Pictures with holes: the tiny ones, and every layout in which they lie on disks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.images import open_picture
from datamodules.inpainting_index import HOLE, InpaintingItem, items, note, precomputed, preview, read_hole
from datamodules.tinyworld import make
from datamodules.tinyworld.holes import KINDS, SHARE, hole, holed_scene
from datamodules.tinyworld.scene import caption, render
from datamodules.tinyworld.silhouettes import silhouette
from genlab.errors import MissingPath, UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("inpainting", tmp_path_factory.mktemp("inpainting") / "inpainting", progress=False, pictures=6)


def test_same_seed_same_files_and_the_index_reads_back_what_was_made(root: Path, tmp_path: Path) -> None:
    again = make("inpainting", tmp_path / "again", progress=False, pictures=6)
    files = [path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file()]
    assert len(files) == 6 + 6 + 2 and all((again / name).read_bytes() == (root / name).read_bytes() for name in files)
    found = items(root, "inpainting")
    assert [item.group for item in found] == list(KINDS) * 2
    for number, item in enumerate(found):
        scene = holed_scene(0, number)
        assert isinstance(item, InpaintingItem) and item.mask is not None
        assert np.array_equal(np.asarray(open_picture(item.path)), render(scene, 64))
        assert np.array_equal(read_hole(item.mask), hole(scene, 0, number, 64)) and note(item) == caption(scene)
    (root / "pairs.csv").rename(root / "pairs.txt")  # without the list, the names tell
    without = items(root, "inpainting")
    (root / "pairs.txt").rename(root / "pairs.csv")
    assert [(item.id, item.path) for item in without] == [(item.id, item.path) for item in found]


def test_holes_take_their_share_and_objects_are_covered_whole() -> None:
    for number in range(90):
        scene = holed_scene(0, number)
        mask = hole(scene, 0, number, 64)
        assert SHARE[0] <= mask.mean() <= SHARE[1]
        if KINDS[number % 3] == "objects":
            assert any(mask[silhouette(thing, 64) > 0].all() for thing in scene.objects)


def test_the_hole_is_drawn(root: Path) -> None:
    item = items(root, "inpainting")[1]
    assert isinstance(item, InpaintingItem) and item.mask is not None
    shown, plain, mask = np.asarray(preview(item)[0]), np.asarray(open_picture(item.path)), read_hole(item.mask)
    assert np.array_equal(shown[~mask], plain[~mask])
    assert np.abs(shown[mask] - (0.25 * plain[mask] + 0.75 * np.array(HOLE))).max() <= 1


# Layouts.


def picture(path: Path, value: int = 0, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)
    return path


def pairs(root: Path) -> list[tuple[str, str | None]]:
    found = items(root, "inpainting")
    assert all(isinstance(item, InpaintingItem) for item in found)
    masks = [item.mask for item in found if isinstance(item, InpaintingItem)]
    return [(item.path.relative_to(root).as_posix(), mask and mask.relative_to(root).as_posix()) for item, mask in zip(found, masks)]


@pytest.mark.parametrize(("images", "masks"), [("images", "masks"), ("image", "mask")])
def test_equal_names(tmp_path: Path, images: str, masks: str) -> None:
    for name in ("0000", "sub/0001"):
        picture(tmp_path / images / f"{name}.jpg")
        picture(tmp_path / masks / f"{name}.png")
    assert pairs(tmp_path) == [(f"{images}/{name}.jpg", f"{masks}/{name}.png") for name in ("0000", "sub/0001")]
    picture(tmp_path / images / "0002.jpg")
    with pytest.raises(UserError, match=f"no equal names for {images}/0002.jpg"):
        items(tmp_path, "inpainting")


def test_masks_beside_their_pictures_and_folders_without_any(tmp_path: Path) -> None:
    for name in ("a", "a_mask000", "a_mask001", "b_mask", "c"):
        picture(tmp_path / "x" / f"{name}.png")
    assert pairs(tmp_path) == [("x/a.png", "x/a_mask000.png"), ("x/a.png", "x/a_mask001.png")]
    for name in ("a_mask000", "a_mask001"):
        (tmp_path / "x" / f"{name}.png").unlink()
    assert pairs(tmp_path) == [("x/a.png", None), ("x/b_mask.png", None), ("x/c.png", None)]


def test_lists(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('image,mask,prompt,group\na.png,m/1.png,"a red, round thing",places\nb.png,m/2.png,,\n')
    first, second = items(tmp_path, "inpainting")
    assert isinstance(first, InpaintingItem) and (first.prompt, first.group, second.group) == ("a red, round thing", "places", "all")
    (tmp_path / "x.csv").unlink()
    (tmp_path / "y.jsonl").write_text(json.dumps({"image": "a.png", "mask": "m/1.png"}) + "\n")
    assert pairs(tmp_path) == [("a.png", "m/1.png")] == pairs(tmp_path)
    (tmp_path / "y.jsonl").write_text('{"image": "a.png", "mask": "m.png"}\n{"image": "b.png"}\nnonsense')
    with pytest.raises(UserError, match=r"y.jsonl:2: no image and mask.*\n.*y.jsonl:3"):
        items(tmp_path / "y.jsonl", "inpainting")


def test_places_and_results(tmp_path: Path) -> None:
    picture(tmp_path / "p" / "val_256" / "Places365_val_00000001.jpg")
    (tmp_path / "p" / "places365_val.txt").write_text("Places365_val_00000001.jpg 1\nPlaces365_val_00000002.jpg 0\n")
    (tmp_path / "p" / "categories_places365.txt").write_text("/a/airfield 0\n/a/apartment_building/outdoor 1\n")
    first, second = items(tmp_path / "p", "inpainting")
    assert (first.group, first.label, second.group) == ("apartment_building/outdoor", 1, "airfield")
    assert len(preview(first)) == 1 and preview(second) == []
    for method in ("lama", "mat"):
        for name in ("1", "2"):
            picture(tmp_path / "r" / "results" / method / f"{name}.png")
    found = items(tmp_path / "r", "inpainting")
    assert [(item.group, item.path.stem) for item in found] == [("lama", "1"), ("lama", "2"), ("mat", "1"), ("mat", "2")]
    assert list(precomputed(tmp_path / "r" / "results")) == ["lama", "mat"]
    picture(tmp_path / "r" / "results" / "mat" / "3.png")
    assert not precomputed(tmp_path / "r" / "results"), "a method without that picture cannot be compared"


def test_masks_of_all_kinds(tmp_path: Path) -> None:
    left = np.zeros((6, 8), bool)
    left[:, :4] = True
    grey = np.where(left, 250, 4).astype(np.uint8)  # as a JPEG leaves it
    forms = {"grey": Image.fromarray(grey), "label": Image.fromarray(left.astype(np.uint8)), "bits": Image.fromarray(left)}
    forms["colour"] = Image.fromarray(np.stack([grey] * 3, -1))
    indexed = Image.fromarray(left.astype(np.uint8), mode="P")
    indexed.putpalette([0, 0, 0, 90, 0, 0])
    forms["palette"] = indexed
    for name, form in forms.items():
        form.save(tmp_path / f"{name}.png")
        assert np.array_equal(read_hole(tmp_path / f"{name}.png"), left), name
    assert np.array_equal(read_hole(tmp_path / "grey.png", invert=True), ~left)
    twice = read_hole(tmp_path / "grey.png", size=(16, 12))
    assert np.array_equal(twice, left.repeat(2, 0).repeat(2, 1))
    (tmp_path / "broken.png").write_bytes((tmp_path / "grey.png").read_bytes()[:30])
    with pytest.raises(OSError, match=r"broken.png|truncated|cannot identify"):
        read_hole(tmp_path / "broken.png")


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingPath, match="is not there"):
        items(tmp_path / "nowhere", "inpainting")
    with pytest.raises(MissingPath, match="there is no picture"):
        items(tmp_path, "inpainting")
    (tmp_path / "places365_val.txt").write_text("x.jpg\n")
    with pytest.raises(UserError, match=r"places365_val\.txt:1"):
        items(tmp_path, "inpainting")
    with pytest.raises(UserError, match="pictures=0"):
        make("inpainting", tmp_path / "x", progress=False, pictures=0)
