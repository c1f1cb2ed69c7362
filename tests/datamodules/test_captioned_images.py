"""Captioned pictures: the imagefolder form, groups, augmentation, and what is said of broken folders."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.captioned_images import CaptionedImages, FlipAndShift
from datamodules.captioned_index import items, preview
from datamodules.sampling import GroupSampler
from datamodules.tinyworld import make
from datamodules.tinyworld.captions import captioned_scene
from datamodules.tinyworld.scene import render
from genlab.errors import UserError


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("captions", tmp_path_factory.mktemp("captions") / "captions", progress=False, pictures=64, held_out=16)


def folder(root: Path, lines: list[object]) -> Path:
    (root / "train").mkdir(parents=True)
    Image.new("RGB", (40, 20), "red").save(root / "train" / "a b,c.jpg")
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (root / "train" / "metadata.jsonl").write_text(text)
    return root


def test_pictures_are_what_their_lines_say(captions: Path) -> None:
    data = CaptionedImages(str(captions), labels=["shape", "colour", "background"], eval_batch_size=16)
    data.setup("test")
    (batch,) = list(data.test_dataloader())
    for name, index, text, pixels in zip(batch["id"], batch["index"], batch["caption"], batch["image"]):
        scene, caption = captioned_scene("captions", 0, "test", int(index), "A")
        assert text == caption and name.endswith(f"{int(index):06d}.png")
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), render(scene, 64))
        row = batch["id"].index(name)
        thing = scene.objects[0]
        for column, value in (("shape", thing.shape), ("colour", thing.colour), ("background", scene.background)):
            label = int(batch["labels"][column][row])
            assert label == -1 if value not in data.classes[column] else data.classes[column][label] == value
    assert data.on_after_batch_transfer(batch, 0)["image"].max() <= 1


def test_a_group_differs_in_one_thing() -> None:
    """Eight shapes; or colours and backgrounds, or sizes and textures, every combination of 2 and 4."""
    kinds: Counter[str] = Counter()
    for group in range(60):
        scenes = [captioned_scene("captions", 0, "train", number, "A")[0] for number in range(8 * group, 8 * group + 8)]
        first = [scene.objects[0] for scene in scenes]
        assert len({len(scene.objects) for scene in scenes}) == 1
        assert len({(o.shape, o.colour, o.size, o.texture) for scene in scenes for o in scene.objects[1:]}) <= 1
        columns = {name: [getattr(each, name) for each in first] for name in ("shape", "colour", "size", "texture")}
        columns["background"] = [scene.background for scene in scenes]
        counts = {name: len(set(values)) for name, values in columns.items() if len(set(values)) > 1}
        assert counts in ({"shape": 8}, {"colour": 2, "background": 4}, {"size": 2, "texture": 4}), counts
        assert len(set(zip(*columns.values()))) == 8
        kinds[next(iter(counts))] += 1
    assert kinds["shape"] > kinds["colour"] > 5 and kinds["size"] > 2


def test_small_objects_are_as_many_as_asked_for() -> None:
    sizes = [captioned_scene("captions", 0, "train", 8 * group, "A", 60)[0].objects[-1].size for group in range(200)]
    assert 100 < sizes.count("small") < 140
    assert "small" not in {captioned_scene("captions", 0, "train", number, "A", 0)[0].objects[0].size for number in range(200)}


def test_batches_hold_whole_groups_and_the_draws_do_not_depend_on_workers(captions: Path) -> None:
    seen = []
    for workers, in_memory in ((0, True), (2, False)):
        options = {"keep_groups": True, "flip": 0.5, "shift": 3, "batch_size": 16, "num_workers": workers, "in_memory": in_memory}
        data = CaptionedImages(str(captions), **options)  # type: ignore[arg-type]
        data.setup("fit")
        batches = list(data.train_dataloader())
        assert all(sorted(np.bincount(batch["group"])[np.unique(batch["group"])].tolist()) == [8, 8] for batch in batches)
        seen.append(np.concatenate([batch["image"].numpy() for batch in batches]))
    assert np.array_equal(*seen)


def test_group_order_is_dealt_out_over_ranks() -> None:
    groups = np.repeat(np.arange(10), 4)
    whole = [draw.index for draw in GroupSampler(groups, 3)]
    parts = [[draw.index for draw in GroupSampler(groups, 3, rank, 2)] for rank in (0, 1)]
    assert sorted(whole) == list(range(40)) and [i for pair in zip(*parts) for i in pair] == whole
    other = GroupSampler(groups, 3)
    other.set_epoch(1)
    assert [draw.index for draw in other] != whole
    mixed = GroupSampler(groups, 3, mixed_epochs=1)
    pairs = [draw.index // 4 for draw in mixed]
    assert len(set(pairs[:4])) > 1 and sorted(draw.index for draw in mixed) == list(range(40))
    mixed.set_epoch(1)
    assert [draw.index for draw in mixed] == [draw.index for draw in other]


def test_shift_repeats_the_border() -> None:
    pixels = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)

    class Fixed(np.random.Generator):
        def integers(self, *_: object, **__: object) -> np.ndarray:  # type: ignore[override]
            return np.array([1, -1])

    moved = FlipAndShift(0.0, 1)(pixels, Fixed(np.random.PCG64(0)))
    assert np.array_equal(moved[:, 1:, :3], pixels[:, :3, 1:]) and np.array_equal(moved[:, 0, :3], pixels[:, 0, 1:])


def test_own_pictures_are_cut_to_squares(tmp_path: Path) -> None:
    root = folder(tmp_path, [{"file_name": "a b,c.jpg", "text": "a red thing", "kind": None}])
    data = CaptionedImages(str(root), image_size=16, batch_size=1)
    data.samples = {"train": data._read("train")}
    assert data.read_file(data.samples["train"][0].path).shape == (3, 16, 16)
    (item,) = items(root, "captions")
    assert preview(item)[0].size == (40, 20)


@pytest.mark.parametrize(
    ("lines", "options", "said"),
    [
        (['{"file_name": "a b,c.jpg"}', "nonsense"], {}, "metadata.jsonl:2"),
        ([{"file_name": "gone.jpg", "text": "x"}], {}, "metadata.jsonl:1: gone.jpg"),
        ([], {}, "is empty"),
        ([{"file_name": "a b,c.jpg", "text": "x", "shape": "star"}], {"labels": ["shap"]}, "did you mean 'shape'"),
        ([{"file_name": "a b,c.jpg", "text": "x", "shape": "star"}], {"select": {"shape": ["sta"]}}, "did you mean 'star'"),
        ([{"file_name": "a b,c.jpg", "text": "x"}], {"batch_size": 2}, "more than the 1 image"),
        ([{"file_name": "a b,c.jpg", "text": "x"}], {"flip": 1.5}, "flip is a probability"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, lines: list[object], options: dict[str, object], said: str) -> None:
    root = folder(tmp_path, lines)
    (root / "validation").mkdir()
    (root / "validation" / "metadata.jsonl").write_text(json.dumps({"file_name": "x.png", "text": "x"}))
    Image.new("RGB", (4, 4)).save(root / "validation" / "x.png")
    with pytest.raises(UserError, match=said):
        data = CaptionedImages(str(root), **({"batch_size": 1} | options))  # type: ignore[arg-type]
        data.setup("fit")
        data.train_dataloader()


def test_evaluation_may_take_other_captions(captions: Path) -> None:
    data = CaptionedImages(str(captions), eval_caption="caption")
    data.setup("fit")
    for split, column in (("train", "text"), ("validation", "caption")):
        lines = [json.loads(line) for line in (captions / split / "metadata.jsonl").read_text().splitlines()]
        assert data.datasets[{"validation": "val"}.get(split, split)].captions.tolist() == [line[column] for line in lines]
        assert any(line["text"] != line["caption"] for line in lines)
    with pytest.raises(UserError, match=r"eval_caption: the line of .* has no column 'captions'; did you mean 'caption'"):
        CaptionedImages(str(captions), eval_caption="captions").setup("test")


def test_a_split_that_is_not_there_is_named(captions: Path, tmp_path: Path) -> None:
    root = folder(tmp_path, [{"file_name": "a b,c.jpg", "text": "x"}])
    with pytest.raises(UserError, match=r"has no test/metadata.jsonl; its splits: train/"):
        CaptionedImages(str(root)).setup("test")
