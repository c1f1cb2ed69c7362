"""GenVideo as people have it: folder trees, extracted frames, the official lists, and all that can be wrong with them."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch

from datamodules.genvideo import GenVideo, user_clips
from datamodules.genvideo_index import cached_scan, classify, read_list, scan
from datamodules.sampling import Draw
from datamodules.tinyworld.genvideo import write_frames_layout
from datamodules.transforms import IMAGENET_MEAN, IMAGENET_STD
from genlab.errors import MissingPath, UserError
from tests.datamodules.video_files import coloured_frames, write_video

HEADER = "content_path,image_path,type_id,label,frame_len,frame_seq\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("GenVideo-Val/Real/video1.mp4", (0, "real", "test")),
        ("GenVideo-Val/Fake/Show_1/a.mp4", (1, "Show_1", "test")),
        ("GenVideo-Val/Fake/Crafter/x/a.mp4", (1, "Crafter", "test")),
        ("Real/a.mp4", (0, "real", "train")),
        ("Real_part_01/a.mp4", (0, "real", "train")),
        ("real/youku/a", (0, "real", "train")),
        ("k400/kinetics-400/a.mp4", (0, "real", "train")),
        ("train_pika/a.mp4", (1, "Pika", "train")),
        ("train_VideoCrafter/a.mp4", (1, "VideoCrafter2", "train")),
        ("GenVideo-Val/Fake/VideoCrafter/a.mp4", (1, "Crafter", "test")),
        ("I2VGEN_XL/a.gif", (1, "I2VGen-XL", "train")),
        ("fake/SEINE/clip 7", (1, "SEINE", "train")),
        ("test/fake/EvalCrafter_T2V_Dataset/show_1/a", (1, "Show_1", "test")),
        ("test/fake/Lavies/a", (1, "Lavie", "test")),
        ("train_mine/a.mp4", (1, "mine", "train")),
        ("GenVideo/fake/OpenSora/a", (1, "OpenSora", "train")),
        ("misc/a.mp4", None),
        ("fake/a.mp4", None),
        ("realistic/a.mp4", None),
    ],
)
def test_folders_tell_the_class(path: str, expected: tuple[int, str, str] | None) -> None:
    assert classify(PurePosixPath(path)) == expected


def test_the_tiny_tree_is_read_whole(tiny_genvideo: Path) -> None:
    clips, unclear = scan(tiny_genvideo)
    assert not unclear and not [name for name in clips.id if Path(name).name.startswith("._")]
    train, test = (clips.where(clips.split == split) for split in ("train", "test"))
    assert len(train.generators) >= 4 and len(test.generators) >= 6 and not set(train.generators) & set(test.generators)
    assert (train.label == 0).sum() == (train.label == 1).sum() > 0
    assert any(name.endswith(".gif") for name in train.id)
    again, _ = cached_scan(tiny_genvideo)
    cached, _ = cached_scan(tiny_genvideo)
    assert clips.fingerprint == again.fingerprint == cached.fingerprint and cached.id.tolist() == clips.id.tolist()


def test_the_cached_list_notices_new_clips(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in ("Real/a.mp4", "train_x/b.mp4"):
        write_video(root / name, coloured_frames(8))
    assert len(cached_scan(root)[0]) == 2
    write_video(root / "Real/c.mp4", coloured_frames(8))
    assert len(cached_scan(root)[0]) == 3


def test_unclear_folders_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(20):
        write_video(tmp_path / f"set/Real/{i}.mp4", coloured_frames(8))
        write_video(tmp_path / f"set/train_x/{i}.mp4", coloured_frames(8))
    write_video(tmp_path / "set/misc/a.mp4", coloured_frames(8))
    data = GenVideo(str(tmp_path / "set"), val_fraction=0.5, num_workers=0)
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
    assert "misc/ (1 clips)" in caplog.text
    assert not [name for clips in data.splits.values() for name in clips.id if "misc" in name]


def test_frames_and_the_official_csv_agree_with_the_tree(tmp_path: Path) -> None:
    root = tmp_path / "frames"
    write_frames_layout(root, clips=3)
    tree, _ = scan(root)
    lists = sorted(root.rglob("*.csv"))
    listed = [read_list(path, root, "test" if "val" in path.name or "test" in path.name else "train") for path in lists]
    assert sum(map(len, listed)) > 0 and (tree.first >= 0).all()
    labels = dict(zip(tree.id.tolist(), tree.label.tolist()))
    for clips in listed:
        for name, label, first in zip(clips.id.tolist(), clips.label.tolist(), clips.first.tolist()):
            assert labels[name] == label and first == 1


def test_all_problems_of_a_list_are_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    rows = [
        '../../etc/x,i,t,1,8,"[1, 2]"',
        'fake/pika/a,i,t,fake,8,"[1, 2]"',
        "fake/pika/b,i,t,1,8,\"__import__('os')\"",
        "real/youku/c,i,t,0,,",
    ]
    path.write_text(HEADER + "\n".join(rows) + "\n")
    with pytest.raises(UserError) as error:
        read_list(path, tmp_path, "train")
    text = str(error.value)
    assert f"{path}:2: content_path '../../etc/x' leads out of" in text
    assert f"{path}:3: label is 'fake'; use 1 for fake and 0 for real." in text
    assert f"{path}:4: frame_seq" in text and f"{path}:5: neither frame_seq nor frame_len" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [(HEADER, "the list is empty"), ("", "the header lacks content_path, label"), ("a,b\n1,2\n", "the header lacks content_path, label")],
)
def test_an_empty_list_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "test.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_list(path, tmp_path, "test")
    with pytest.raises(MissingPath, match="is not a file"):
        read_list(tmp_path / "no.csv", tmp_path, "test")


def test_missing_and_empty_roots_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingPath, match=r"nowhere is not a folder\. Set it with --data\.root"):
        GenVideo(str(tmp_path / "nowhere")).setup("fit")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no clips of a known layout"):
        GenVideo(str(tmp_path / "empty")).setup("fit")


def test_generators_can_be_held_out_and_chosen(tiny_genvideo: Path) -> None:
    names = scan(tiny_genvideo)[0]
    known = names.where(names.split == "train").generators
    data = GenVideo(str(tiny_genvideo), train_generators=[known[0]], val_generators=[known[1]], val_fraction=0.3, num_workers=0)
    data.setup("fit")
    assert data.generators["train"] == [known[0]] and data.generators["val"] == [known[1]]
    assert not set(data.splits["train"].id) & set(data.splits["val"].id)
    with pytest.raises(UserError, match=f"no training clips of Nobody; there are {', '.join(known)}"):
        GenVideo(str(tiny_genvideo), val_generators=["Nobody"]).setup("fit")
    with pytest.raises(UserError, match="no test clips of Nobody"):
        GenVideo(str(tiny_genvideo), test_generators=["Nobody"]).setup("test")


def test_training_draws_depend_on_epoch_and_occurrence_only(tiny_genvideo: Path) -> None:
    def dataset(seed: int = 1):
        data = GenVideo(str(tiny_genvideo), image_size=32, num_workers=0, seed=seed, num_frames=4)
        data.setup("fit")
        return data.dataset("train")

    one, two = dataset(), dataset()
    assert torch.equal(one[Draw(3, 1)]["video"], two[Draw(3, 1)]["video"])
    others = [one[Draw(3, 2)], one[Draw(3, 1, occurrence=1)], dataset(seed=2)[Draw(3, 1)]]
    assert all(not torch.equal(one[Draw(3, 1)]["video"], other["video"]) for other in others)


def test_unreadable_clips_are_replaced_in_training_and_kept_in_evaluation(tiny_genvideo: Path, tmp_path: Path) -> None:
    root = tmp_path / "broken"
    shutil.copytree(tiny_genvideo, root)
    for clip in [*sorted((root / "Real").glob("clip*.mp4"))[:3], *sorted((root / "GenVideo-Val/Real").glob("clip*.mp4"))[:2]]:
        clip.write_bytes(b"not a video")
    data = GenVideo(str(root), image_size=32, num_workers=0, val_fraction=0.2)
    data.setup("fit")
    data.setup("test")
    train = data.dataset("train")
    broken = [i for i, name in enumerate(train.clips.id) if (root / name).stat().st_size == 11]
    assert broken
    for i in broken:
        sample = train[Draw(i, 0)]
        assert sample["substituted"] and sample["readable"] and sample["label"] == 0 and sample["id"] != train.clips.id[i]
        assert train[Draw(i, 5)]["id"] == sample["id"], "the same substitute every time"
    test = data.dataset("test")
    rows = [test[Draw(i, 0)] for i in range(len(test))]
    assert sum(not row["readable"] for row in rows) == 2
    assert all(row["video"].sum() == 0 and row["num_frames"] == 0 for row in rows if not row["readable"])


def test_short_clips_end_in_zero_frames_after_normalisation(tmp_path: Path) -> None:
    for split in ("Real", "train_x"):
        for i in range(20):
            write_video(tmp_path / f"set/{split}/{i}.mp4", coloured_frames(5), fps=2)
    data = GenVideo(str(tmp_path / "set"), image_size=32, num_workers=0, val_fraction=0.4, eval_batch_size=4, eval_edge_crop=0, fps=2)
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert batch["num_frames"].tolist() == [5] * 4
    assert (batch["video"][:, 5:] == 0).all() and (batch["video"][:, :5] != 0).any()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(batch["video"][:, :5], (batch["pixels"][:, :5] / 255 - mean) / std)


def test_users_files_and_folders(tmp_path: Path) -> None:
    write_video(tmp_path / 'it\'s "odd" ü.mp4', coloured_frames(8))
    write_video(tmp_path / "folder/deep/b.mp4", coloured_frames(8))
    (tmp_path / "folder/._b.mp4").write_bytes(b"junk")
    clips = user_clips([str(tmp_path / 'it\'s "odd" ü.mp4'), str(tmp_path / "folder")])
    assert sorted(Path(name).name for name in clips.id) == ["b.mp4", 'it\'s "odd" ü.mp4']
    with pytest.raises(MissingPath, match=r"gone\.mp4: no such file"):
        user_clips([str(tmp_path / "gone.mp4")])
    with pytest.raises(UserError, match="there are no videos"):
        (tmp_path / "empty").mkdir()
        user_clips([str(tmp_path / "empty")])


def test_windows_cover_long_videos(tmp_path: Path) -> None:
    write_video(tmp_path / "long.mp4", coloured_frames(50), fps=5)  # 10 s: 20 extracted frames
    write_video(tmp_path / "short.mp4", coloured_frames(5), fps=5)
    found = {}
    for clips in (1, 3, "all"):
        data = GenVideo("unused", image_size=16, num_workers=0, num_frames=8, predict_clips=clips, eval_batch_size=2)
        data.hparams.predict_paths = [str(tmp_path)]
        data.setup("predict")
        found[clips] = next(iter(data.predict_dataloader()))
    assert found[1]["windows"].tolist() == [1, 1] and found[3]["windows"].tolist() == [3, 3]
    batch = found["all"]
    assert dict(zip((Path(name).name for name in batch["id"]), batch["windows"].tolist())) == {"long.mp4": 3, "short.mp4": 1}
    assert len(batch["video"]) == len(batch["start"]) == len(batch["num_frames"]) == 4
    first = 0 if batch["id"][0].endswith("long.mp4") else 1
    assert batch["start"][first : first + 3].tolist() == pytest.approx([0, 4, 6], abs=0.11), "the last window ends with the video"


def test_degradations_are_sets_of_the_test(tiny_genvideo: Path) -> None:
    data = GenVideo(str(tiny_genvideo), image_size=32, num_workers=0, degradations=["jpeg", "flip"], eval_batch_size=8)
    data.setup("test")
    clean, jpeg, flip = (next(iter(loader)) for loader in data.test_dataloader())
    assert data.test_sets == ["clean", "jpeg", "flip"] and clean["id"] == jpeg["id"] == flip["id"]
    assert not torch.equal(clean["video"], jpeg["video"])
    again = next(iter(data.test_dataloader()[1]))
    assert torch.equal(again["video"], jpeg["video"]), "drawn by video and degradation alone"
    for a, b in zip(clean["video"], flip["video"]):
        assert torch.equal(a.flip(-1), b) or torch.equal(a.flip(-2), b)
    data = GenVideo(str(tiny_genvideo), degradations=["all"])
    assert len(data.test_sets or []) == 9


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_give_the_same_batches(tiny_genvideo: Path, workers: int) -> None:
    data = GenVideo(str(tiny_genvideo), image_size=32, num_workers=workers, batch_size=8, num_frames=4)
    data.setup("fit")
    first = next(iter(data.train_dataloader()))
    expected = data.dataset("train")
    order = list(data.train_dataloader().sampler)[:8]
    assert np.array_equal(first["video"].numpy(), torch.cat([expected[draw]["video"] for draw in order]).numpy())
