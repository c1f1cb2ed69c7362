"""``genlab data prepare`` as a user calls it: downloads to a dataset, a dataset to frames and lists, and what is said on the way."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from datamodules.genvideo import GenVideo
from genlab.errors import MissingPath, UserError
from genlab.verbs.data import main
from tests.datamodules.video_files import coloured_frames, write_video


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    """A split archive with two classes of each split, as it comes from the net."""
    videos = tmp_path / "videos"
    names = ["Real/youku/a.mp4", "Real/b.mp4", "train_pika/a.mp4", "train_pika/b.gif"]
    names += ["GenVideo-Val/Real/a.mp4", "GenVideo-Val/Fake/Sora/a.mp4"]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.write(write_video(videos / name, coloured_frames(24), fps=8), name)
        file.writestr("__MACOSX/train_pika/._a.mp4", b"junk")
    folder, half = tmp_path / "downloads", len(buffer.getvalue()) // 2 + 1
    folder.mkdir()
    for part, start in (("aa", 0), ("ab", half)):
        (folder / f"GenVideo.split.{part}").write_bytes(buffer.getvalue()[start : start + half])
    return folder


def prepare(*arguments: object) -> int:
    return main(["prepare", "genvideo", "--workers", "0", *map(str, arguments)])


def test_from_downloads_to_frames_in_one_command(downloads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, frames = tmp_path / "set", tmp_path / "frames"
    assert prepare("--root", root, "--archives", downloads, "--frames", frames) == 0
    printed = capsys.readouterr().out
    assert "GenVideo" in printed and "Pika" in printed and f"--data.train_list {frames}/train.csv" in printed
    data = GenVideo(str(frames), train_list=str(frames / "train.csv"), test_list=str(frames / "val_ood.csv"))
    data.setup("check")
    assert {name: len(clips) for name, clips in data.index.items()} == {"train": 4, "test": 2}
    assert not data.check("quick").errors
    assert prepare("--root", root, "--archives", downloads, "--frames", frames) == 0  # nothing left to do


def test_clips_that_cannot_be_read_are_named_with_exit_code_3(downloads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, frames = tmp_path / "set", tmp_path / "frames"
    assert prepare("--root", root, "--archives", downloads) == 0
    (root / "train_pika/a.mp4").write_bytes(b"")
    assert prepare("--root", root, "--frames", frames) == 3
    assert "not to be had: train_pika/a.mp4: the file is empty" in capsys.readouterr().out
    assert "train_pika/a" not in (frames / "train.csv").read_text()


def test_refused_members_are_named_with_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "downloads").mkdir()
    with zipfile.ZipFile(tmp_path / "downloads/Real.zip", "w") as file:
        file.writestr("../x.mp4", b"x")
    assert prepare("--root", tmp_path / "set", "--archives", tmp_path / "downloads") == 3
    assert "Real: ../x.mp4: leads out of the folder" in capsys.readouterr().out and not (tmp_path / "x.mp4").exists()


def test_mistakes_are_told_before_anything_is_done(downloads: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to do"):
        prepare("--root", tmp_path / "set")
    with pytest.raises(UserError, match="--workers -1"):
        main(["prepare", "genvideo", "--root", "x", "--archives", "y", "--workers", "-1"])
    with pytest.raises(UserError, match="not for dtd yet"):
        main(["prepare", "dtd", "--root", "x"])
    with pytest.raises(MissingPath, match="nowhere is not a folder"):
        prepare("--root", tmp_path / "set", "--archives", tmp_path / "nowhere")
    with pytest.raises(MissingPath, match="is not a folder"):
        prepare("--root", tmp_path / "nowhere", "--frames", tmp_path / "frames")
    (downloads / "GenVideo.split.aa").unlink()
    with pytest.raises(UserError, match=r"parts before GenVideo\.split\.ab are missing"):
        prepare("--root", tmp_path / "set", "--archives", downloads)
    assert not (tmp_path / "set").exists() and not (tmp_path / "frames").exists()
