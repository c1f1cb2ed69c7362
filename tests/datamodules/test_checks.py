"""Broken copies of a small GenVideo, and what the checks say of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from datamodules import checks
from datamodules.checks import CheckReport, Facts, Item, check_all, told_apart
from datamodules.genvideo_checks import full_check, quick_check, suspicious_name
from datamodules.genvideo_index import Clips, read_list, scan
from datamodules.tinyworld import make
from datamodules.tinyworld.genvideo import write_frames_layout
from tests.datamodules.video_files import coloured_frames, write_video

LABELS = {0: "real", 1: "fake"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("genvideo", tmp_path_factory.mktemp("whole") / "set", train_clips=2, test_clips=2, size=32, progress=False)


@pytest.fixture
def copy(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(whole, tmp_path / "set")


def index_of(root: Path) -> dict[str, Clips]:
    clips, _ = scan(root)
    return {split: clips.where(clips.split == split) for split in ("train", "test")}


def check(root: Path) -> CheckReport:
    return full_check(index_of(root), root, workers=0, progress=False)


def problems(report: CheckReport) -> dict[str, str]:
    return {row["path"]: row["problem"] for row in report.findings}


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def index_first(path: Path) -> None:
    """Moves the index of an MP4 to its front, so that it opens even when its end is missing."""
    source = path.rename(path.with_name("source.mov"))
    with av.open(str(source)) as before, av.open(str(path), "w", options={"movflags": "faststart"}) as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                after.mux(packet)
    source.unlink()


def test_a_whole_set_has_no_findings_and_every_clip_is_counted(copy: Path) -> None:
    report = check(copy)
    assert (report.errors, report.warnings, report.findings) == ([], [], [])
    index = index_of(copy)
    assert sum(row["clips"] for row in report.counts) == len(index["train"]) + len(index["test"])
    assert [row["generator"] for row in report.counts if row["label"] == "real"] == ["real", "real"]
    fps = {(row["split"], row["label"]): row["typical"] for row in report.distributions if row["measure"] == "fps"}
    assert fps == {(split, label): "8" for split in ("train", "test") for label in ("real", "fake")}


def test_broken_files_are_named_by_what_is_wrong_with_them(copy: Path) -> None:
    real, gif, mp4 = copy / "Real", copy / "train_checkerboard", copy / "train_flicker"
    (real / "clip_00000.mp4").write_bytes(b"")
    (real / "clip_00001.mp4").write_bytes(b"no video at all" * 100)
    cut(real / "clip_00002.mp4", 0.6)  # its index is at the end
    cut(gif / "clip_00000.gif", 0.6)
    index_first(mp4 / "clip_00000.mp4")
    cut(mp4 / "clip_00000.mp4", 0.7)
    write_video(mp4 / "clip_00001.mp4", coloured_frames(5), fps=8)
    report = check(copy)
    assert problems(report) == {
        "Real/clip_00000.mp4": "empty",
        "Real/clip_00001.mp4": "unreadable",
        "Real/clip_00002.mp4": "unreadable",
        "train_checkerboard/clip_00000.gif": "truncated",
        "train_flicker/clip_00000.mp4": "truncated",
        "train_flicker/clip_00001.mp4": "short",
    }
    assert len(report.errors) == 3 and len(report.warnings) == 1
    assert "train_flicker/clip_00001.mp4 (5 of 8 frames)" in report.warnings[0]
    row = next(row for row in report.counts if (row["split"], row["label"]) == ("train", "real"))
    assert (row["clips"], row["empty"], row["unreadable"], row["truncated"]) == (12, 1, 2, 0)


def test_an_index_at_the_front_alone_is_no_flaw(copy: Path) -> None:
    index_first(copy / "train_flicker" / "clip_00000.mp4")
    assert check(copy).findings == []


@pytest.mark.parametrize(
    ("source", "target", "found"),
    [
        ("Real/clip_00000.mp4", "GenVideo-Val/Real/other.mp4", {"GenVideo-Val/Real/other.mp4": "overlap"}),
        ("Real/clip_00000.mp4", "train_flicker/x.mp4", {"Real/clip_00000.mp4": "conflict", "train_flicker/x.mp4": "conflict"}),
        ("train_flicker/clip_00000.mp4", "train_boiling/x.mp4", {"train_flicker/clip_00000.mp4": "duplicate"}),
    ],
    ids=["train in test", "two labels", "twice in training"],
)
def test_copies(copy: Path, source: str, target: str, found: dict[str, str]) -> None:
    shutil.copy(copy / source, copy / target)
    report = check(copy)
    assert problems(report) == found
    assert bool(report.errors) == ("duplicate" not in found.values())
    assert all(path in "".join(report.errors + report.warnings) for path in (source, target))


def test_extracted_frames_and_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "frames"
    train, _, test = write_frames_layout(root, clips=2, size=32, flaws=True)
    with train.open("a") as file:
        file.write('real/youku/gone,real/youku/gone/1.jpg,,0,2,"[1, 2]"\n')
    index = {"train": read_list(train, root, "train"), "test": read_list(test, root, "test")}
    report = full_check(index, root, workers=0, progress=False)
    kinds = sorted(row["problem"] for row in report.findings)
    assert kinds == ["missing", "short", "short", "truncated", "truncated"]
    assert "real/youku/gone" in report.errors[0]
    assert any("1 of 8 frames missing or broken: 3" in row["detail"] for row in report.findings)

    quick = quick_check(index, root)
    assert quick.errors == [] and "real/youku/gone" in quick.warnings[0]


def test_names_that_speak_against_the_label() -> None:
    def item(name: str, label: int) -> Item:
        return Item(name, Path(name), label, "g", "train")

    assert "Pika" in suspicious_name(item("Real/pika_0012.mp4", 0))
    assert "OpenSora" in suspicious_name(item("Real/opensora/0012.mp4", 0))
    assert "youku" in suspicious_name(item("train_SVD/youku_12.mp4", 1))
    for innocent in ("Real/pikachu.mp4", "Real/wild_horses.mp4", "Real/how to make latte.mp4", "real/youku/sd_12.mp4"):
        assert suspicious_name(item(innocent, 0)) == ""
    for innocent in ("train_pika/realistic dog.mp4", "train_pika/real madrid.mp4", "fake/pika/clip_1.mp4"):
        assert suspicious_name(item(innocent, 1)) == ""


def test_quick_check_warns_of_one_unreadable_clip_and_refuses_an_unreadable_generator(copy: Path) -> None:
    (copy / "train_boiling" / "clip_00000.mp4").write_bytes(b"junk" * 50)
    report = quick_check(index_of(copy), copy)
    assert report.errors == [] and "train_boiling/clip_00000.mp4" in report.warnings[0]
    (copy / "train_boiling" / "clip_00001.mp4").write_bytes(b"junk" * 51)
    report = quick_check(index_of(copy), copy)
    assert len(report.errors) == 1 and report.errors[0].startswith("train, boiling: of 2 clips 2 were tried and none can be read")


def test_quick_check_is_remembered_while_the_index_stays(copy: Path) -> None:
    index = index_of(copy)
    first = quick_check(index, copy)
    assert sum(row["read"] for row in first.counts) == len(index["train"]) + len(index["test"])
    shutil.rmtree(copy / "Real")
    again = quick_check(index, copy)
    assert again == first and list(again.counts[0]) == list(first.counts[0])
    assert quick_check(index_of(copy), copy) != first


def test_the_sample_is_spread_over_the_groups(copy: Path) -> None:
    report = quick_check(index_of(copy), copy, sample=28)  # 14 groups of 2 to 8 clips
    assert {row["read"] for row in report.counts} == {2}


def pictures(folder: Path, count: int) -> list[Item]:
    for number in range(count):
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(folder / f"{number}.png")
    return [Item(f"{number}.png", folder / f"{number}.png", number % 2, "g", "train") for number in range(count)]


def read_picture(item: Item, whole: bool) -> Facts:
    with Image.open(item.path) as image:
        return Facts(measures={"size": f"{image.width}x{image.height}", "brightness": float(np.asarray(image).mean())})


def read_or_crash(item: Item, whole: bool) -> Facts:
    if item.id == "5.png":
        os._exit(9)  # as a decoder with a fault in its memory
    return read_picture(item, whole)


def test_a_stopped_check_goes_on_and_a_changed_file_is_read_again(tmp_path: Path) -> None:
    items, store = pictures(tmp_path, 6), tmp_path / "store.sqlite"
    seen: list[str] = []

    def reader(stop_at: str | None) -> Callable[[Item, bool], Facts]:
        def read(item: Item, whole: bool) -> Facts:
            if item.id == stop_at:
                raise KeyboardInterrupt
            seen.append(item.id)
            return read_picture(item, whole)

        return read

    with pytest.raises(KeyboardInterrupt):
        check_all(items, reader("3.png"), LABELS, store, workers=0, progress=False)
    check_all(items, reader(None), LABELS, store, workers=0, progress=False)
    assert seen == [item.id for item in items]
    Image.new("RGB", (5, 5)).save(tmp_path / "2.png")
    report = check_all(items, reader(None), LABELS, store, workers=0, progress=False)
    assert seen[6:] == ["2.png"] and report.findings == []


def test_a_file_that_kills_its_process_is_one_unreadable_file(tmp_path: Path) -> None:
    items = pictures(tmp_path, 40)
    report = check_all(items, read_or_crash, LABELS, tmp_path / "store.sqlite", workers=2, progress=False)
    assert [(row["path"], row["problem"]) for row in report.findings] == [("5.png", "unreadable")]
    assert {row["clips"] for row in report.distributions} == {20, 19}


def test_what_gives_the_class_away() -> None:
    assert told_apart([8.0] * 10, [30.0] * 10) == 1
    assert told_apart([8.0] * 10, [8.0] * 30) == 0.5
    assert told_apart([8.0] * 10, [8.0] * 5 + [24.0] * 5) == 0.75  # right for all of the first, half of the second
    assert told_apart(["64x64"] * 4, ["64x64", "32x32"] * 2) == 0.75
    assert told_apart(list(np.linspace(0, 1, 800)), list(np.linspace(0, 1, 800))) == 0.5


def read_pace(item: Item, whole: bool) -> Facts:
    return Facts(measures={"fps": 30.0 if item.label == 0 else 8.0, "seconds": 2.0})


def test_a_shortcut_is_a_warning(tmp_path: Path) -> None:
    items = pictures(tmp_path, 2 * checks.ENOUGH)
    report = check_all(items, read_pace, LABELS, tmp_path / "store.sqlite", workers=0, progress=False)
    assert len(report.warnings) == 1 and report.errors == []
    assert report.warnings[0].startswith("train: the fps alone tells the class of 100% of the clips (real 30, fake 8)")
