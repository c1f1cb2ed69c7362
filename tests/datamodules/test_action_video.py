"""Action sets: the four protocols on lists, annotations and class folders; descriptions; missing clips; and what is wrong with them."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.action_descriptions import read_descriptions
from datamodules.action_index import Listed
from datamodules.action_protocols import NAMES, draw
from datamodules.action_video import ActionVideo
from datamodules.sampling import Draw
from datamodules.tinyworld import make
from genlab.errors import MissingPath, UserError
from genlab.training.video_text import ActionSource

SMALL = {
    "kinetics400": {"train_clips": 2, "val_clips": 1, "size": 32},
    "ucf101": {"groups": 4, "clips": 1, "size": 32},
    "hmdb51": {"clips": 4, "size": 32},
    "ssv2": {"train_clips": 1, "val_clips": 1, "test_clips": 1, "size": 32},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all four, in miniature."""
    folder = tmp_path_factory.mktemp("actions")
    for dataset, options in SMALL.items():
        make(dataset, folder / dataset, progress=False, **options)
    return folder


def actions(root: Path, dataset: str = "ucf101", stage: str = "fit", **options: Any) -> ActionVideo:
    data = ActionVideo(str(root), dataset, image_size=16, num_frames=4, num_workers=0, batch_size=1, **options)  # type: ignore[arg-type]
    data.setup(stage)
    return data


@pytest.mark.parametrize("dataset", SMALL)
def test_base_to_novel_counts_its_halves_anew(root: Path, dataset: str) -> None:
    data = actions(root, dataset)
    assert isinstance(data, ActionSource) and data.eval_sets("test") == ["base", "novel"]
    base, novel = data.class_names("base"), data.class_names("novel")
    assert data.class_names("train") == base and not set(base) & set(novel)
    for name, names in (("train", base), ("base", base), ("novel", novel)):
        assert sorted(set(data.clips[name].labels.tolist())) == list(range(len(names))), name
    for name, kinds in (("train", 2), ("novel", 2)):
        spatial, temporal = data.descriptions(name)
        assert len(spatial) == len(temporal) == len(data.class_names(name)) and all(len(each) == kinds for each in spatial)
    assert not data.protocol["leaks"]


@pytest.mark.parametrize("number", [2, 4, 8])
def test_descriptions_of_a_half_are_those_of_the_whole_by_name(root: Path, number: int, caplog: pytest.LogCaptureFixture) -> None:
    data = actions(root, "kinetics400", description_number=number)
    folder = root / "kinetics400" / "description"
    ending = NAMES["kinetics400"].described
    for name in ("train", "novel"):
        with caplog.at_level(logging.WARNING):
            found = data.descriptions(name)
        for kind, sentences in zip("st", found):
            whole = json.loads((folder / f"{number}_{kind}_description_{ending}.json").read_text())
            every = data.sets[name].of
            assert sentences == [whole[str(every.index(each))] for each in data.class_names(name)]
    if number == 8:
        assert "other than 8 sentences" in caplog.text  # one class has a single sentence that holds all


def test_few_shot_takes_the_published_draw_and_else_makes_one(root: Path, tmp_path: Path) -> None:
    published = actions(root, protocol="few_shot", shots=2)
    assert np.bincount(published.clips["train"].labels).tolist() == [2] * len(published.class_names("train"))
    assert not published.sets["train"].drawn
    shutil.copytree(root / "ucf101", tmp_path / "ucf101", ignore=shutil.ignore_patterns("datasets_splits"))
    own = [actions(tmp_path, protocol="few_shot", shots=2, split=seed) for seed in (1, 1, 2)]
    ids = [data.clips["train"].ids.tolist() for data in own]
    assert ids[0] == ids[1] != ids[2] and own[0].sets["train"].drawn
    tested = set(own[0].clips["test"].ids.tolist())
    assert not tested & set(ids[0]) and own[0].protocol["clips"] == "drawn here"


def test_a_draw_of_a_class_does_not_depend_on_the_others() -> None:
    clips = [Listed(f"{name}{i}", label) for label, name in enumerate("abc") for i in range(9)]
    whole = draw(clips, list("abc"), 3, 1)
    assert [each.file for each in whole if each.label == 2] == [each.file for each in draw(clips, ["x", "y", "c"], 3, 1) if each.label == 2]


def test_class_folders_of_ones_own(root: Path, tmp_path: Path) -> None:
    files = sorted((root / "ucf101").glob("*/*.avi"))
    for i, file in enumerate(files[:24]):
        target = tmp_path / "mine" / file.parent.name / f"{i}.avi"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    data = actions(tmp_path / "mine", "custom", protocol="base_to_novel", shots=2)
    assert len(data.class_names("base")) == 3 and len(data.class_names("novel")) == 3
    assert np.bincount(data.clips["train"].labels).tolist() == [2, 2, 2]
    trained, tested = (set(data.clips[name].ids.tolist()) for name in ("train", "base"))
    assert tested and not trained & tested and not data.protocol["leaks"]
    with pytest.raises(MissingPath, match="need two files"):
        data.descriptions("train")
    with pytest.raises(UserError, match="none is left to test on"):
        actions(tmp_path / "mine", "custom", protocol="supervised")


def test_zero_shot_tests_on_all_splits_of_other_datasets(root: Path) -> None:
    data = actions(root, "kinetics400", protocol="zero_shot", targets=["ucf101", "hmdb51"])
    assert set(data.sets) == {"train", "val"}
    data.setup("test")
    assert data.eval_sets("test") == [f"{name}/{i}" for name in ("ucf101", "hmdb51") for i in (1, 2, 3)]
    assert len(data.test_dataloader()) == 6 and data.class_names("ucf101/1") != data.class_names("hmdb51/1")


def test_supervised_by_the_owners_annotations_alone(root: Path, tmp_path: Path) -> None:
    for dataset in SMALL:
        ignore = shutil.ignore_patterns("datasets_splits", "labels" if dataset != "ssv2" else "*_labels.csv")
        shutil.copytree(root / dataset, tmp_path / dataset, ignore=ignore)
        mine, listed = actions(tmp_path, dataset, protocol="supervised"), actions(root, dataset, protocol="supervised")
        assert mine.class_names("train") == listed.class_names("train"), dataset
        assert set(mine.clips["test"].ids.tolist()) == set(listed.clips["test"].ids.tolist()), dataset


def test_missing_clips_are_said_and_do_not_stop_anything(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(root / "kinetics400", tmp_path / "kinetics400")
    gone = sorted((tmp_path / "kinetics400" / "val").iterdir())[0]
    gone.unlink()
    with caplog.at_level(logging.WARNING):
        data = actions(tmp_path, "kinetics400", protocol="supervised")
    assert gone.name in caplog.text and data.protocol["missing_test"] == 1
    shutil.rmtree(tmp_path / "kinetics400" / "train")
    with pytest.raises(UserError, match=r"clips listed for 'train' none is in"):
        actions(tmp_path, "kinetics400", protocol="supervised")


def test_views_and_samples(root: Path) -> None:
    data = actions(root, eval_clips=2, eval_crops=3)
    test = data.dataset("base")[Draw(0, 0)]
    assert test["video"].shape == (6, 4, 3, 16, 16) and test["readable"]
    assert torch.equal(test["video"], data.dataset("base")[Draw(0, 5)]["video"])
    train = data.dataset("train")
    one, again, other = (train[Draw(0, epoch)]["video"] for epoch in (0, 0, 1))
    assert one.shape == (1, 4, 3, 16, 16) and torch.equal(one, again) and not torch.equal(one, other)
    assert data.dataset("val")[Draw(0, 0)]["video"].shape[0] == 1
    assert actions(root, "ssv2").dataset("train").settings.flip == 0 and data.dataset("train").settings.flip == 0.5
    assert [len(each) for each in (data.test_dataloader()[0].dataset, data.test_dataloader()[1].dataset)] == [  # type: ignore[arg-type]
        len(data.clips["base"]), len(data.clips["novel"])
    ]  # fmt: skip


def test_unreadable_clips(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "ucf101", tmp_path / "ucf101")
    data = actions(tmp_path, protocol="supervised")
    train, test = data.dataset("train"), data.dataset("test")
    (data.root / str(data.clips["train"].ids[0])).write_bytes(b"no video")
    (data.root / str(data.clips["test"].ids[0])).write_bytes(b"")
    found = train[Draw(0, 0)]
    assert found["substituted"] and found["readable"] and found["video"].any() and found["label"] == data.clips["train"].labels[0]
    found = test[Draw(0, 0)]
    assert not found["readable"] and not found["video"].any()


def test_what_is_wrong_with_descriptions(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"0": ["a"], "1": [], "2": [""]}))
    with pytest.raises(UserError) as error:
        read_descriptions(path, ["x", "y", "z", "w"])
    assert "class 1, 'y'" in str(error.value) and "class 2, 'z'" in str(error.value) and "class 3, 'w', is missing" in str(error.value)
    path.write_text(json.dumps({"z": ["of z"], "x": ["of x", "more"]}))
    assert read_descriptions(path, ["x", "z"]) == [["of x", "more"], ["of z"]]
    path.write_text(json.dumps({"0": ["a"], "1": ["b"]}))
    with pytest.raises(UserError, match="2 classes, but there are 1"):
        read_descriptions(path, ["x"])


def test_what_is_wrong_with_lists(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'ucf101'"):
        ActionVideo(str(root), "ucf10")  # type: ignore[arg-type]
    with pytest.raises(MissingPath, match="neither lists"):
        actions(tmp_path, "hmdb51")
    shutil.copytree(root / "hmdb51", tmp_path / "hmdb51")
    labels = tmp_path / "hmdb51" / "labels"
    shutil.copy(labels / "hmdb_51_novel_labels.csv", labels / "hmdb_51_labels.csv")  # a list of more classes than the labels have
    with pytest.raises(UserError, match="label file has"):
        actions(tmp_path, "hmdb51", protocol="few_shot", shots=2)


def test_predicting_takes_any_list_of_class_names(root: Path, tmp_path: Path) -> None:
    clip = next((root / "ucf101").glob("*/*.avi"))
    names = tmp_path / "names.txt"
    names.write_text("going up\ngoing down\n")
    data = actions(root, stage="predict", class_names=[str(names)], predict_paths=[str(clip)])
    assert data.class_names("predict") == ["going up", "going down"] and len(data.dataset("predict")) == 1
    with pytest.raises(UserError, match="two or more"):
        actions(root, stage="predict", class_names=["one"], predict_paths=[str(clip)])


def test_new_classes_of_kinetics600_in_three_sets(root: Path, tmp_path: Path) -> None:
    """Each set has labels of its own: ``ZS_split<i>_K600.csv`` with ``k600_splits/val<i>.txt``."""
    shutil.copytree(root / "kinetics400", tmp_path / "kinetics400")
    clips = sorted((root / "kinetics400" / "val").iterdir())
    new = tmp_path / "kinetics600"
    for folder in ("val", "labels", "datasets_splits/k600_splits"):
        (new / folder).mkdir(parents=True)
    for number in (1, 2, 3):
        some = clips[number : number + 3]
        for clip in some:
            shutil.copy(clip, new / "val" / clip.name)
        (new / f"labels/ZS_split{number}_K600.csv").write_text("id,name\n" + "".join(f'{i},"class {number}, {i}"\n' for i in range(3)))
        (new / "labels/kinetics_600_labels.csv").write_text("id,name\n0,other\n")
        lines = "".join(f"val/{clip.name} {i}\n" for i, clip in enumerate(some))
        (new / f"datasets_splits/k600_splits/val{number}.txt").write_text(lines)
    data = actions(tmp_path, "kinetics400", protocol="zero_shot", targets=["kinetics600"])
    data.setup("test")
    assert data.eval_sets("test") == ["kinetics600/1", "kinetics600/2", "kinetics600/3"]
    assert data.class_names("kinetics600/2") == ["class 2, 0", "class 2, 1", "class 2, 2"] and len(data.clips["kinetics600/3"]) == 3
