"""Real and generated pictures: flaws where the boxes say, no shortcut, and every layout in which such sets lie on disks."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.defake_index import DefakeItem, Region, items, note, preview, read_grounding, two_folders
from datamodules.images import open_picture
from datamodules.tinyworld import make
from datamodules.tinyworld.defake import defake_picture
from datamodules.tinyworld.image_generators import GENERATORS, GLOBAL, LOCAL, generate_picture, photograph, still_clip
from datamodules.tinyworld.silhouettes import bounds
from genlab.errors import MissingPath, UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("defake", tmp_path_factory.mktemp("defake") / "defake", progress=False, train=2, test=1)


@pytest.mark.parametrize("name", GENERATORS)
def test_every_flaw_is_where_its_box_says_and_nowhere_else(name: str) -> None:
    for number in range(6):
        clip = still_clip(f"test/{name}/{number}")
        fake, real = generate_picture(name, clip), photograph(clip)
        (flaw,) = fake.flaws
        changed = (fake.pixels != real.pixels).any(-1)
        if name in LOCAL:
            assert bounds(changed) == flaw.box and min(flaw.box[2] - flaw.box[0], flaw.box[3] - flaw.box[1]) >= 6
            assert any(flaw.thing == f"the {thing.colour} {thing.shape}" for thing in clip.scene.objects)
            left, top, right, bottom = flaw.box
            strength = np.abs(fake.pixels.astype(int) - real.pixels)[top:bottom, left:right].max()
            assert strength > 20, "to be seen"
        else:
            assert name in GLOBAL and flaw.box == (0, 0, 64, 64) and changed.mean() > 0.8
        assert not real.flaws


def test_same_seed_same_files_and_the_index_reads_back_what_was_made(root: Path, tmp_path: Path) -> None:
    again = make("defake", tmp_path / "again", progress=False, train=2, test=1)
    files = [path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file()]
    assert all((again / name).read_bytes() == (root / name).read_bytes() for name in files)
    found = items(root, "defake")
    assert len(found) == 2 * 3 * len(GENERATORS) and len({item.id for item in found}) == len(found)
    for item in found:
        first = 0 if item.split == "train" else (2 if item.label else 2 * len(GENERATORS))
        made = defake_picture(0, item.split, item.group, int(item.path.stem) - first)
        assert np.array_equal(np.asarray(open_picture(item.path)), made.pixels) and item.label == int(bool(made.flaws))
        assert isinstance(item, DefakeItem)
        assert item.regions == tuple(Region(flaw.thing, flaw.box) for flaw in made.flaws)
        assert item.target.endswith("<verdict>generated</verdict>" if item.label else "<verdict>real</verdict>")


def test_format_size_and_scenes_do_not_tell_the_classes_apart(root: Path) -> None:
    files = list(root.rglob("*.png"))
    assert len({path.stat().st_size for path in files}) == 1
    assert {(picture.format, picture.mode, picture.size, len(picture.info)) for picture in map(Image.open, files)} == {
        ("PNG", "RGB", (64, 64), 0)
    }
    scenes = {kind: [still_clip(f"defake/0/train/{kind}/{i}").scene for i in range(300)] for kind in ("real", "melting")}
    for of in (
        lambda scene: len(scene.objects) == 2,
        lambda scene: scene.background == "sea",
        lambda scene: scene.objects[0].size == "large",
    ):
        shares = [np.mean([of(scene) for scene in each]) for each in scenes.values()]
        assert abs(shares[0] - shares[1]) < 0.13  # about three standard deviations


def test_boxes_are_drawn(root: Path) -> None:
    item = next(item for item in items(root, "defake") if item.group == "two_colours")
    assert isinstance(item, DefakeItem)
    (shown,) = preview(item)
    assert shown.size == (256, 256) and item.regions[0].ref in note(item)
    red = (np.asarray(shown) == (255, 40, 40)).all(-1)
    assert bounds(red) == tuple(4 * value for value in item.regions[0].box)
    plain = next(item for item in items(root, "defake") if not item.label)
    assert not (np.asarray(preview(plain)[0]) == (255, 40, 40)).all(-1).any()


# Layouts.


def picture(path: Path, kind: str = "PNG", mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (8, 8), 100).save(path, kind)
    return path


def rows(found: list) -> list[tuple[str, int, str, str]]:  # type: ignore[type-arg]
    return [(item.id, item.label, item.group, item.split) for item in found]


def test_folders_flat_and_nested_by_content(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(tmp_path / "real" / "2020" / "b, c d.png", "WEBP")
    picture(tmp_path / "real" / "a.jpg", "JPEG", "L")
    picture(tmp_path / "fake" / "sdxl" / "x.bmp", "TIFF")
    picture(tmp_path / "fake" / "y.bin", "BMP")
    picture(tmp_path / "fake" / "sdxl" / "z.gif", "GIF")
    (tmp_path / "fake" / "page.jpg").write_text("<html>not found</html>")
    broken = picture(tmp_path / "fake" / "broken.png")
    broken.write_bytes(broken.read_bytes()[:40])
    found = items(tmp_path, "defake")
    assert rows(found) == [
        ("fake/broken.png", 1, "fake", "all"), ("fake/sdxl/x.bmp", 1, "sdxl", "all"), ("fake/sdxl/z.gif", 1, "sdxl", "all"),
        ("fake/y.bin", 1, "fake", "all"), ("real/2020/b, c d.png", 0, "real", "all"), ("real/a.jpg", 0, "real", "all"),
    ]  # fmt: skip
    assert "1 files are no pictures and are left out: page.jpg" in caplog.text
    assert [len(preview(item)) for item in found] == [0, 1, 1, 1, 1, 1]
    assert sorted(rows(two_folders(tmp_path / "real", tmp_path / "fake"))) == rows(found)


def test_batches_of_whydfake(tmp_path: Path) -> None:
    for name in ("batch_a", "batch_b", "real_batch", "real_batch_a"):
        picture(tmp_path / "images" / name / "0.png")
    (tmp_path / "annotations.jsonl").write_text('{"file": "batch_a/0.png"}\n')
    assert [(item.group, item.label) for item in items(tmp_path, "defake")] == [
        ("batch_a", 1), ("batch_b", 1), ("real_batch", 0), ("real_batch_a", 0),
    ]  # fmt: skip


def test_tables_of_ours_and_of_official_code(tmp_path: Path) -> None:
    for name in ("a.png", "b, c.png"):
        picture(tmp_path / name)
    ours, official = tmp_path / "list.csv", tmp_path / "replies" / "x.csv"
    ours.write_text('\ufeffpath,label,generator,split\na.png,1,sdxl,train\n"b, c.png",real,,test\n', encoding="utf-8")
    assert rows(items(tmp_path, "defake")) == [("a.png", 1, "sdxl", "train"), ("b, c.png", 0, "real", "test")]
    official.parent.mkdir()
    with official.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "pred", "response"), ("a.png", 0, 1, "Sharp.\nreal"), ("b.png", 1, -1, "")])
    assert [(item.id, item.label) for item in items(official, "defake")] == [("a.png", 1), ("b.png", 0)]


def line(target: str = "<think>x</think><verdict>real</verdict>", **more: object) -> dict[str, object]:
    return {
        "messages": [{"role": "user", "content": "<image>Judge."}, {"role": "assistant", "content": target}],
        "images": ["a.png"],
    } | more


def test_grounding_alone_with_relative_boxes(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    objects = {"ref": ["hand"], "bbox": [[0.25, 0, 0.5, 1]], "bbox_type": "norm1"}
    (tmp_path / "grounding_test.jsonl").write_text(json.dumps(line("<ref-object><bbox> is odd.", objects=objects)))
    (item,) = items(tmp_path, "defake")
    assert isinstance(item, DefakeItem) and (item.label, item.split) == (1, "test") and item.regions[0].pixels(8, 16) == (2, 0, 4, 16)
    assert rows(items(tmp_path / "grounding_test.jsonl", "defake")) == rows([item])


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (line("<ref-object><bbox> is odd."), "1 <ref-object> and 1 <bbox>, objects has 0 ref and 0 bbox"),
        (line("<ref-object><bbox>", objects={"ref": ["x"], "bbox": [[5, 0, 2, 3]]}), r"bbox \[5, 0, 2, 3\] is empty"),
        (line("<ref-object><bbox>", objects={"ref": ["x"], "bbox": [[5, 0]]}), "is not .left, top, right, bottom"),
        (line("<ref-object><bbox>", objects={"ref": ["x"], "bbox": [[0, 0, 1, 1]], "bbox_type": "norm1000"}), "bbox_type is 'norm1000'"),
        (line(images=["a.png", "b.png"]), "images has 2 entries"),
        (line(messages=[{"role": "assistant", "content": "x"}]), "<image> stands once"),
        (line(messages=[{"role": "user", "content": "<image>"}]), "the last message is not the assistant's"),
        ({"images": ["a.png"]}, "there is no 'messages'"),
        ("nonsense", "Expecting value"),
    ],
)
def test_broken_grounding_is_named(tmp_path: Path, record: object, said: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join([json.dumps(line()), record if isinstance(record, str) else json.dumps(record)]))
    with pytest.raises(UserError, match=rf"x.jsonl:2: .*{said}"):
        read_grounding(path)


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingPath, match="is not there"):
        items(tmp_path / "nowhere", "defake")
    with pytest.raises(UserError, match="holds no set of real and generated pictures"):
        items(tmp_path, "defake")
    picture(tmp_path / "fake" / "x.png")
    with pytest.raises(MissingPath, match="the real pictures lie in"):
        items(tmp_path, "defake")
    (tmp_path / "list.csv").write_text("path,label\na.png,1\nb.png,maybe\n")
    with pytest.raises(UserError, match=r"list.csv:3: .*label 'maybe'"):
        items(tmp_path, "defake")
    with pytest.raises(UserError, match="train=0"):
        make("defake", tmp_path / "x", progress=False, train=0)
