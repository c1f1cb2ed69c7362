"""One picture of a subject, and scenes: pairs with the right scene, drawn evenly; words from the list beside it; what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from datamodules.sampling import Draw
from datamodules.subject_scenes import GREY, SHARED_SCENES, SceneDataset, SubjectScenes
from datamodules.tinyworld.subjects import SCENES, prompts_and_classes, subjects
from genlab.errors import UserError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects as the DreamBooth dataset has them, and pictures of their class in two scenes whose brightness names the scene."""
    root = tmp_path_factory.mktemp("dreambooth")
    chosen = subjects("dreambooth", 0, 2)
    for number, subject in enumerate(chosen):
        for i in range(3):
            save(root / "dataset" / subject.name / f"{i:02d}.jpg", (72, 64), (60 * number, 80 * i, 40))
    (root / "dataset" / "prompts_and_classes.txt").write_text(prompts_and_classes(chosen))
    for scene, count in ((0, 1), (1, 5)):
        for i in range(count):
            save(root / "source" / f"{scene:02d}" / f"{i}.png", (64, 64), (200 * scene,) * 3)
    return root


def save(path: Path, size: tuple[int, int], colour: tuple[int, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_every_picture_of_the_class_comes_with_its_scene_and_scenes_come_evenly(dataset: Path) -> None:
    source = [sorted((dataset / "source" / name).iterdir()) for name in ("00", "01")]
    pairs = SceneDataset([dataset / "dataset/circle/00.jpg"], source, 100, 8, "center", 0)
    counts = [0, 0]
    for epoch in range(20):
        for index in range(100):
            sample = pairs[Draw(index, epoch)]
            assert (sample["source"].float().mean() > 100) == bool(sample["scene"])
            counts[sample["scene"]] += 1
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 10.8, "chi-square, 1 degree, 0.1 %"


def test_class_and_scenes_come_from_the_list_and_other_pictures_are_held_back(dataset: Path) -> None:
    data = SubjectScenes(str(dataset / "dataset/circle"), instance_index=1, image_size=32, num_workers=0, other_scenes=["on the moon"])
    data.setup("fit")
    assert data.category == "circle" and set(SCENES) <= set(data.scenes) and not any(scene.startswith("red") for scene in data.scenes)
    assert [path.name for path in data.target] == ["01.jpg"] and [path.name for path in data.others] == ["00.jpg", "02.jpg"]
    assert data.real_pictures().shape == (1, 3, 32, 32) and data.held_back().shape == (2, 3, 32, 32)
    batches = list(data.test_dataloader())
    drawn = {(prompt, int(scene)) for batch in batches for prompt, scene in zip(batch["prompt"], batch["scene"])}
    assert (f"{{target}} {data.scenes[2]}", 2) in drawn and ("{target} on the moon", len(data.scenes)) in drawn
    assert sum(len(batch["prompt"]) for batch in batches) == 4 * (len(data.scenes) + 1)
    alone = SubjectScenes(str(dataset / "dataset/circle/00.jpg"), class_name="dog", num_workers=0)
    alone.setup("fit")
    assert tuple(alone.scenes) == SHARED_SCENES and not len(alone.held_back())


def test_behind_a_mask_it_is_grey(dataset: Path, tmp_path: Path) -> None:
    mask = Image.new("L", (72, 64))
    mask.paste(255, (0, 0, 36, 64))
    mask.save(tmp_path / "mask.png")
    data = SubjectScenes(str(dataset / "dataset/circle/02.jpg"), class_name="dog", mask=str(tmp_path / "mask.png"), image_size=64)
    data.setup("fit")
    matched, real = data.matched_pictures()[0], data.real_pictures()[0]
    assert (matched[:, :, 40:] == GREY).all() and (matched[:, :, :24] == real[:, :, :24]).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"instance": "nowhere.jpg", "class_name": "dog"}, "nowhere.jpg is not there"),
        ({"instance": "{root}/dataset/circle/00.jpg"}, "data.class_name: name what the picture shows"),
        ({"instance": "{root}/dataset/circle", "instance_index": 3}, "has 3 pictures"),
        ({"instance": "{root}/dataset/circle", "scenes": ["at sea", "at sea"]}, "is there twice"),
        ({"instance": "{root}/dataset/circle", "scenes": ["{subject}"]}, "says nothing"),
        ({"instance": "{root}/broken", "class_name": "dog"}, "broken.png cannot be read"),
        ({"instance": "tiny:dreambooth/dragon"}, "names no subject; there are circle"),
        ({"instance": "{root}/dataset/circle", "source": "{root}/source", "scenes": ["a", "b", "c"]}, "02 is not a folder"),
    ],
)
def test_what_is_wrong_is_said(dataset: Path, options: dict[str, object], said: str) -> None:
    (dataset / "broken").mkdir(exist_ok=True)
    (dataset / "broken/broken.png").write_bytes(b"no picture")
    filled = {key: value.format(root=dataset) if key in ("instance", "source") else value for key, value in options.items()}  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=said):
        SubjectScenes(**filled).setup("fit")
