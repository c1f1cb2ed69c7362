"""The action benchmarks: tiny ones in the layouts of the real ones, and every form of their lists."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from datamodules.action_index import (
    DATASETS,
    Files,
    Listed,
    items,
    preview,
    published,
    read_hmdb51,
    read_kinetics,
    read_labels,
    read_ssv2,
    read_ucf101,
    read_video_list,
)  # fmt: skip
from datamodules.tinyworld import make
from datamodules.tinyworld.acting import ACTIONS
from datamodules.tinyworld.action_texts import SPATIAL, TEMPORAL, spoken
from datamodules.tinyworld.actions import HMDB, KINETICS, SSV2, UCF, action_clip, action_frames
from datamodules.tinyworld.encoding import encode_video
from datamodules.video import open_video
from genlab.errors import UserError

SMALL = {
    "kinetics400": {"train_clips": 2, "val_clips": 1, "size": 32},
    "ucf101": {"groups": 4, "clips": 1, "size": 32},
    "hmdb51": {"clips": 4, "size": 32},
    "ssv2": {"train_clips": 1, "val_clips": 1, "test_clips": 1, "size": 32},
}
CLASSES = {"kinetics400": KINETICS, "ucf101": UCF, "hmdb51": HMDB, "ssv2": SSV2}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all four, in miniature."""
    folder = tmp_path_factory.mktemp("actions")
    for dataset, options in SMALL.items():
        make(dataset, folder / dataset, progress=False, **options)
    return folder


def test_classes_are_known_actions_with_descriptions() -> None:
    for names in CLASSES.values():
        assert names.keys() <= ACTIONS.keys() and len(set(names.values())) == len(names)
    assert SPATIAL.keys() == TEMPORAL.keys() == ACTIONS.keys()
    assert spoken("MovingLeftAndRight") == spoken("moving_left_and_right") == "moving left and right"


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".webm"])
def test_files_hold_the_frames_and_are_the_same_each_time(suffix: str, tmp_path: Path) -> None:
    frames = action_frames(action_clip("ucf101", 0, "spin_cw", 3))
    content = encode_video(frames, 12, suffix)
    (tmp_path / f"x{suffix}").write_bytes(content)
    with open_video(tmp_path / f"x{suffix}") as video:
        found = video.frames(range(len(video)))
        assert video.info.fps == pytest.approx(12)
    assert found.shape == frames.shape and frames.shape[1:3] == (48, 64)
    assert np.abs(found.astype(int) - frames).mean() < 6 and encode_video(frames, 12, suffix) == content


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_clip_of_a_tiny_dataset_is_found_and_shows_its_action(root: Path, dataset: str) -> None:
    """Annotations, lists and files agree on the class of every clip; one clip is compared with its description frame by frame."""
    found = items(root / dataset, dataset)
    there = [item for item in found if item.path.is_file()]
    assert {item.path for item in there} == {path for path in (root / dataset).rglob("*") if path.suffix in (".mp4", ".avi", ".webm")}
    gone = 2 if dataset == "kinetics400" else 0  # videos that are annotated and no longer on YouTube
    assert len(found) - len(there) == gone and all(preview(item) == [] for item in found if item not in there)
    labels = read_labels(next((root / dataset / "labels").glob("*[!el]_labels.csv")))
    by_name = {item.path.name: labels[item.label] for item in there if item.label >= 0}
    assert len(labels) == len(CLASSES[dataset])
    for path in (root / dataset / "datasets_splits").rglob("*.txt"):
        which = next((part for part in ("base", "novel") if path.name.startswith(f"{part}_") or f"_{part}_" in path.name), None)
        names = labels if which is None else read_labels(next((root / dataset / "labels").glob(f"*_{which}_labels.csv")))
        for clip in read_video_list(path, names):
            assert by_name[Path(clip.file).name] == names[clip.label], path
    assert all(len(preview(item)) == 4 for item in there[:2])


def test_what_is_filmed_is_what_the_label_says(root: Path) -> None:
    """In ucf101, whose files count up as the writer's clips do."""
    names = {name: action for action, name in UCF.items()}
    for item in items(root / "ucf101", "ucf101")[::7]:
        number = int(item.path.stem.split("_g")[1][:2]) - 1
        frames = action_frames(action_clip("ucf101", 0, names[item.group], number, scene=number), 32)
        with open_video(item.path) as video:
            assert np.abs(video.frames(range(len(video))).astype(int) - frames).mean() < 8


def test_splits_follow_the_protocols(root: Path) -> None:
    """UCF101: groups never in both; HMDB51: 30 % tested; base and novel classes apart; three different base-to-novel draws."""
    for split in (1, 2, 3):
        ucf = read_ucf101(root / "ucf101/ucfTrainTestlist", split)
        groups = [{clip.file.split("_g")[1][:2] for clip in ucf.splits[part]} for part in ("train", "test")]
        assert not groups[0] & groups[1] and len(ucf.splits["test"]) == 12
        hmdb = read_hmdb51(root / "hmdb51/testTrainMulti_7030_splits", split)
        assert Counter(clip.label for clip in hmdb.splits["test"]) == dict.fromkeys(range(10), 1)
        assert len(hmdb.splits["train"]) == 20 and len(hmdb.splits["unused"]) == 10
    labels = root / "ssv2/labels"
    base, novel, names = (read_labels(labels / f"{name}_labels.csv") for name in ("ssv2_174_base", "ssv2_174_novel", "ssv2"))
    assert sorted([*base, *novel]) == sorted(names) and len(base) == len(novel) == 6
    assert any("," in name for name in names)  # quoted in the CSV
    hmdb_names = read_labels(root / "hmdb51/labels/hmdb_51_labels.csv")
    assert read_labels(root / "hmdb51/labels/hmdb_51_base_labels.csv") == hmdb_names[5:]


def test_few_shot_and_base_to_novel_draws_differ(tmp_path: Path) -> None:
    """At full size, lists alone: K per class, and three draws of 16 out of the training clips."""
    from datamodules.tinyworld import actions

    jobs: dict[Path, bytes] = {}
    protocol = actions._protocol("ucf101", UCF, "ucf", "ucf_101", "ucf_101", "ucf_101", 0)
    train = [(f"{name}{i}.avi", name) for name in protocol.names for i in range(24)]
    for path, content in actions._lists(protocol, tmp_path, train, {"val1": train}, {}, few_shot=True):
        jobs[path.relative_to(tmp_path)] = content()
    for shots in (2, 4, 8, 16):
        lines = jobs[Path(f"datasets_splits/ucf_splits/train1_few_shot_{shots}.txt")].decode().splitlines()
        assert Counter(line.split()[1] for line in lines) == {str(i): shots for i in range(12)} and len(set(lines)) == len(lines)
    draws = {jobs[Path(f"datasets_splits/base2novel_splits/ucf_splits/fs_base_s{i}_train.txt")] for i in (1, 2, 3)}
    assert len(draws) == 3 and all(len(draw.splitlines()) == 6 * 16 for draw in draws)


def test_descriptions_have_the_official_forms(root: Path) -> None:
    folder = root / "kinetics400/description"
    names = read_labels(root / "kinetics400/labels/kinetics_400_labels.csv")
    base = read_labels(root / "kinetics400/labels/kinetics_400_base_labels.csv")
    full = json.loads((folder / "2_t_description_k400.json").read_text())
    part = json.loads((folder / "2_t_description_k400_base.json").read_text())
    assert list(full) == [str(i) for i in range(16)]
    assert all(part[str(i)] == full[str(names.index(name))] for i, name in enumerate(base))
    assert all(name in full[str(i)][0] and full[str(i)][0].endswith(", which is a sub-step.") for i, name in enumerate(names))
    counts = Counter(len(each) for each in json.loads((folder / "8_s_description_k400.json").read_text()).values())
    assert counts == {8: 15, 1: 1}  # as in the real file, one class has a single sentence
    for path in root.rglob("description/*.json"):
        sentences = [sentence for each in json.loads(path.read_text()).values() for sentence in each]
        assert all(sentence.strip() for sentence in sentences)


def test_the_same_clips_in_other_layouts(root: Path, tmp_path: Path) -> None:
    """Lists without owners' annotations; folders of classes alone; files flat, elsewhere, re-encoded; a tar archive."""
    source = root / "ucf101"
    lists = tmp_path / "lists"
    shutil.copytree(source, lists, ignore=shutil.ignore_patterns("ucfTrainTestlist"))
    assert {item.split for item in items(lists, "ucf101")} == {"train", "val"}
    assert {(item.path.name, item.group) for item in items(lists, "ucf101")} == {
        (item.path.name, item.group) for item in items(source, "ucf101")
    }
    shutil.rmtree(lists / "datasets_splits")
    assert {(item.split, item.group) for item in items(lists, "ucf101")} == {("all", name) for name in UCF.values()}
    flat = tmp_path / "flat"
    (flat / "videos").mkdir(parents=True)
    shutil.copytree(source / "ucfTrainTestlist", flat / "ucfTrainTestlist")
    for path in source.rglob("*.avi"):
        shutil.copy(path, flat / "videos" / path.with_suffix(".mp4").name)
    assert all(item.path.parent.name == "videos" and item.path.is_file() for item in items(flat, "ucf101"))
    with tarfile.open(tmp_path / "clips.tar", "w") as tar:
        tar.add(source / "Growing", "./Growing")
    found = items(tmp_path / "clips.tar", "ucf101")
    assert len(found) == 4 and all(np.array_equal(a, b) for a, b in zip(preview(found[0]), preview_of(source, found[0].path.name)))


def preview_of(folder: Path, name: str) -> list[np.ndarray]:
    return preview(next(item for item in items(folder, "ucf101") if item.path.name == name))


def test_lists_in_every_form(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\ufefftrain/a b! [x] & #1 (2).avi 0\r\n\r\nb.avi\t1\r\n  sub\\c.mp4   12  \n".encode())
    assert read_video_list(path) == [Listed("train/a b! [x] & #1 (2).avi", 0), Listed("b.avi", 1), Listed("sub/c.mp4", 12)]
    table = tmp_path / "labels.csv"
    table.write_bytes('\ufeffid,name\r\n1,"Moving a, b"\r\n0,x y\r\n'.encode())
    assert read_labels(table) == ["x y", "Moving a, b"]
    with pytest.raises(UserError, match=r"label 12, but the label file has 2 classes"):
        read_video_list(path, read_labels(table))


def test_files_of_one_name_are_told_apart_by_their_folder(tmp_path: Path) -> None:
    for name in ("train/x.mp4", "val/x.mp4", "deep/er/y [1].webm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    files = Files(tmp_path)
    assert files.find("val/x.mp4") == "val/x.mp4" and files.find("other/val/x.mp4") == "val/x.mp4"
    assert files.find("x.mp4") is None and files.find("gone.mp4") is None
    assert files.find("y [1].webm") == "deep/er/y [1].webm" and files.find("a/y [1].avi") == "deep/er/y [1].webm"


def test_annotations_in_their_other_forms(tmp_path: Path) -> None:
    """Kinetics without is_cc and with "validate"; Something-Something under its long names."""
    table = tmp_path / "k.csv"
    table.write_text('label,youtube_id,time_start,time_end,split\n"b, c",-x_1,3,13,validate\na,y,0.0,10.0,train\n,z,1,11,test\n')
    kinetics = read_kinetics([table])
    assert kinetics.names == ["a", "b, c"]
    assert kinetics.splits["val"] == [Listed("val/-x_1_000003_000013.mp4", 1)] and kinetics.splits["test"][0].label == -1
    for name, content in {
        "labels": {"Moving something up": "1", "Doing nothing": "0"},
        "train": [{"id": "7", "label": "moving a cup up", "template": "Moving [something] up", "placeholders": ["a cup"]}],
        "validation": [],
        "test": [{"id": "9"}],
    }.items():
        (tmp_path / f"something-something-v2-{name}.json").write_text(json.dumps(content))
    ssv2 = read_ssv2(tmp_path)
    assert ssv2.names == ["Doing nothing", "Moving something up"] and ssv2.splits["train"] == [Listed("7.webm", 1)]
    assert ssv2.splits["test"] == [Listed("9.webm", -1)] and published(tmp_path, "ssv2") == ssv2


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("list.txt", "a.avi 0\nb.avi\n", r"list\.txt:2: no label"),
        ("list.txt", "\n", "is empty"),
        ("labels.csv", "label,name\n0,x\n", r"labels\.csv:1: columns are label, name"),
        ("labels.csv", "id,name\n0,x\n2,y\n", "missing: 1"),
        ("labels.csv", "id,name\n0,x\n0,y\n", r"labels\.csv:3: id 0 is there twice"),
        ("labels.csv", "id,name\n0,\n", r"labels\.csv:2: id '0', name ''"),
    ],
)
def test_broken_lists_are_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said):
        (read_labels if name == "labels.csv" else read_video_list)(tmp_path / name)


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no annotations of ucf101. Expected ucfTrainTestlist/classInd.txt"):
        items(tmp_path, "ucf101")
    with pytest.raises(UserError, match="is not there"):
        items(tmp_path / "no", "ucf101")
    (tmp_path / "classInd.txt").write_text("1 A\n")
    (tmp_path / "trainlist01.txt").write_text("B/v_B_g01_c01.avi 1\n")
    (tmp_path / "testlist01.txt").write_text("A/v_A_g01_c01.avi\n")
    with pytest.raises(UserError, match=r"trainlist01\.txt:1: class 'B' is not in classInd\.txt"):
        items(tmp_path, "ucf101")
    (tmp_path / "x.tar").write_bytes(b"no archive")
    with pytest.raises(UserError, match="neither a folder nor an uncompressed tar"):
        Files(tmp_path / "x.tar")
    with pytest.raises(UserError, match=r"ucf101: size 50 is wrong; use a multiple of 16"):
        make("ucf101", tmp_path / "new", size=50)
