"""Frames kept as JPEGs: the same clips as decoding gives, built once, mended when damaged, readable by other tools."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.clip_dataset import ClipDataset, ClipSettings
from datamodules.degradations import STAGES, Degradation, apply
from datamodules.frame_cache import FrameCache, FrameCacheFormat, FrameCacheSettings, _key
from datamodules.genvideo import GenVideo
from datamodules.genvideo_index import Clips, scan
from datamodules.sampling import Draw
from datamodules.transforms import TrainAugmentation, edge_crop, resize
from datamodules.video import UnreadableVideo, extracted_indices, open_video, sample_window
from genlab.errors import UserError
from genlab.training.randomness import keyed_rng
from tests.datamodules.video_files import coloured_frames, write_video

FORMATS: tuple[FrameCacheFormat, ...] = ("jpeg", "webdataset")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def clips(tmp_path: Path) -> Clips:
    """Three readable videos, one of them a gif with an odd name, and a broken one."""
    root = tmp_path / "set"
    write_video(root / "Real/a.mp4", coloured_frames(40), fps=8)
    write_video(root / "train_pika/wörk 'of' art.v2.gif", coloured_frames(16), fps=8)
    write_video(root / "train_pika/b.mp4", coloured_frames(24, 96, 128), fps=8)
    (root / "train_pika/broken.mp4").write_bytes(b"no video")
    return scan(root)[0]


def cache_of(clips: Clips, format: FrameCacheFormat, **options: object) -> FrameCache:
    return FrameCache(clips.root, FrameCacheSettings(format), **options)  # type: ignore[arg-type]


def stored(cache: FrameCache) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in cache.folder.rglob("*.tar")}


@pytest.mark.parametrize("format", FORMATS)
def test_stores_every_extracted_frame_and_names_what_is_unreadable(clips: Clips, format: FrameCacheFormat) -> None:
    cache = cache_of(clips, format)
    report = cache.build(clips, workers=0, progress=False)
    assert (report.built, report.stored, list(report.unreadable)) == (4, 3, ["train_pika/broken.mp4"])
    for name in clips.id.tolist():
        if "broken" in name:
            with pytest.raises(UnreadableVideo, match="broken"):
                cache.count(name)
            continue
        with open_video(clips.root / name) as video:
            expected = video.frames(extracted_indices(video.timestamps, video.duration))
        assert cache.count(name) == len(expected)
        found = cache.frames(name, [3, 1, 2])
        assert np.abs(found.astype(int) - expected[[3, 1, 2]].astype(int)).mean() < 6  # sharp edges of saturated colours lose most
        with pytest.raises(IndexError, match="asked"):
            cache.frames(name, [len(expected)])


@pytest.mark.parametrize("format", FORMATS)
def test_a_second_build_does_nothing_and_a_changed_video_alone_is_redone(clips: Clips, format: FrameCacheFormat) -> None:
    cache_of(clips, format).build(clips, workers=0, progress=False)
    before = stored(cache_of(clips, format))
    again = cache_of(clips, format)
    assert again.build(clips, workers=0, progress=False).built == 0 and stored(again) == before
    write_video(clips.root / "Real/a.mp4", coloured_frames(40)[:, :, ::-1], fps=8)
    write_video(clips.root / "train_pika/broken.mp4", coloured_frames(16), fps=8)
    changed = cache_of(clips, format)
    report = changed.build(clips, workers=0, progress=False)
    assert (report.built, report.stored, report.unreadable) == (2, 4, {})
    assert changed.frames("Real/a.mp4", [0])[0, 0, -1, 1] > 200  # the green quarter is on the right now


@pytest.mark.parametrize("format", FORMATS)
def test_damage_is_named_read_around_and_mended(clips: Clips, format: FrameCacheFormat, caplog: pytest.LogCaptureFixture) -> None:
    cache = cache_of(clips, format)
    cache.build(clips, workers=0, progress=False)
    whole = {name: cache.frames(name, [0, 1, 2]) for name in ("Real/a.mp4", "train_pika/b.mp4")}
    for path in cache.folder.rglob("*.tar"):
        content = bytearray(path.read_bytes())
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                if member.name.endswith(".2.jpg"):
                    content[member.offset_data + member.size // 2] ^= 0xFF
        path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        for name, frames in whole.items():
            assert np.array_equal(cache.frames(name, [0, 1, 2]), frames)
            assert any("damaged" in line and name in line for line in caplog.messages)
    mended = cache_of(clips, format)
    assert mended.build(clips, workers=0, progress=False).built == 2
    caplog.clear()
    assert all(np.array_equal(mended.frames(name, [0, 1, 2]), frames) for name, frames in whole.items()) and not caplog.messages


@pytest.mark.parametrize("format", FORMATS)
def test_lost_and_cut_files_are_made_anew(clips: Clips, format: FrameCacheFormat) -> None:
    cache = cache_of(clips, format)
    cache.build(clips, workers=0, progress=False)
    whole = {name: cache.frames(name, [0, 5]) for name in clips.id.tolist() if "broken" not in name}
    for path in sorted(cache.folder.rglob("*.tar"))[:1]:
        os.truncate(path, 700)
    again = cache_of(clips, format)
    assert again.build(clips, workers=0, progress=False).built == (1 if format == "jpeg" else 3)
    assert all(np.array_equal(again.frames(name, [0, 5]), frames) for name, frames in whole.items())


def test_shards_are_what_other_tools_expect(clips: Clips) -> None:
    cache = cache_of(clips, "webdataset", shard_bytes=30_000)
    cache.build(clips, workers=0, progress=False)
    write_video(clips.root / "Real/a.mp4", coloured_frames(40)[::-1], fps=8)
    cache_of(clips, "webdataset", shard_bytes=30_000).build(clips, workers=0, progress=False)
    shards = sorted((cache.folder / "shards").iterdir())
    assert [s.name for s in shards] == [f"frames-{i:06d}.tar" for i in range(len(shards))] and len(shards) >= 2
    samples: dict[str, dict[str, bytes]] = {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                if key:  # WebDataset passes over names that begin with a dot
                    file = tar.extractfile(member)
                    assert file is not None and extension not in samples.get(key, {}), "a clip is there twice"
                    samples.setdefault(key, {})[extension] = file.read()
    about = {(record := json.loads(sample["json"]))["id"]: (record, sample) for sample in samples.values()}
    assert len(about) == 3
    record, sample = about["train_pika/b.mp4"]
    assert (record["label"], record["generator"], record["fps"], len(record["source_frames"])) == (1, "Pika", 3, 9)
    assert sorted(sample) == sorted(["json", *(f"{k}.jpg" for k in range(1, 10))])
    assert Image.open(io.BytesIO(sample["9.jpg"])).size == (128, 96)


def test_smaller_frames_and_folders_of_other_settings(clips: Clips, tmp_path: Path) -> None:
    small = FrameCache(clips.root, FrameCacheSettings(size=48), tmp_path / "small")
    small.build(clips, workers=0, progress=False)
    assert small.frames("train_pika/b.mp4", [0]).shape == (1, 48, 64, 3)
    assert small.frames("Real/a.mp4", [0]).shape == (1, 48, 64, 3)
    with pytest.raises(UserError, match="other settings \\(size 48, not None\\)"):
        FrameCache(clips.root, FrameCacheSettings(), tmp_path / "small")
    with pytest.raises(UserError, match="frame_cache_size"):
        FrameCacheSettings(size=2)
    with pytest.raises(UserError, match="no frames yet"):
        FrameCache(clips.root, FrameCacheSettings(fps=4.0)).count("Real/a.mp4")


def test_samples_are_the_same_clips_as_decoded_ones(tiny_genvideo: Path) -> None:
    """Same windows, same crops, same augmentation draws, in every format and after pickling; pixels within JPEG's loss."""
    decoded = GenVideo(str(tiny_genvideo), num_workers=0, val_fraction=0.2)
    decoded.setup("fit")
    for format in FORMATS:
        data = GenVideo(str(tiny_genvideo), num_workers=0, val_fraction=0.2, frame_cache=format)
        data.prepare_data()
        data.setup("fit")
        for split in ("train", "val"):
            cached = pickle.loads(pickle.dumps(data.dataset(split)))
            plain = decoded.dataset(split)
            plain.augmentation = cached.augmentation = TrainAugmentation(jpeg=0, noise=0) if split == "train" else None
            for index in range(0, len(plain), 5):
                one, other = plain[Draw(index, 3, 0)], cached[Draw(index, 3, 0)]
                assert all(one[k] == other[k] for k in ("id", "label", "windows", "num_frames", "readable", "substituted"))
                assert (one["video"].float() - other["video"].float()).abs().mean() < 3
        assert data.protocol["frames"] == "jpeg 95, full size" and decoded.protocol["frames"] == "decoded"
        assert not list((data.open_frame_cache() or pytest.fail()).folder.glob("damaged/*"))


@pytest.mark.parametrize("degradation", [None, "text", "crop"])
def test_frame_by_frame_is_the_same_as_all_at_once(clips: Clips, degradation: Degradation | None) -> None:
    """A cached clip is made small frame by frame; PIL's pixels of the stored pictures, worked on together, are the reference."""
    cache = cache_of(clips, "jpeg")
    cache.build(clips, workers=0, progress=False)
    index = clips.id.tolist().index("Real/a.mp4")
    settings, crop = ClipSettings(8, 40, degradation=degradation), np.full(len(clips), 0.1)
    sample = ClipDataset(clips, settings, crop, cache=cache)[Draw(index, 0, 0)]
    with tarfile.open(next(cache.folder.rglob(f"{_key('Real/a.mp4')}.tar"))) as tar:
        window = sample_window(cache.count("Real/a.mp4"), 8)
        files = [tar.extractfile(f"{_key('Real/a.mp4')}.{k + 1}.jpg") for k in window.tolist()]
        whole = torch.from_numpy(np.stack([np.asarray(Image.open(io.BytesIO(file.read()))) for file in files if file])).permute(0, 3, 1, 2)

    def degraded(video: torch.Tensor, stage: str) -> torch.Tensor:
        if degradation is None or STAGES[degradation] != stage:
            return video
        return apply(degradation, video, keyed_rng("degradation", degradation, "Real/a.mp4"))

    assert torch.equal(sample["video"][0], degraded(resize(edge_crop(degraded(whole, "source"), 0.1), 40), "clip"))


def test_training_goes_on_without_a_clip_that_was_unreadable(clips: Clips) -> None:
    cache = cache_of(clips, "jpeg")
    cache.build(clips, workers=0, progress=False)
    crop, bad = np.zeros(len(clips)), clips.id.tolist().index("train_pika/broken.mp4")
    train = ClipDataset(clips, ClipSettings(8, 32), crop, training=True, cache=cache)[Draw(bad, 0, 0)]
    assert train["substituted"] and train["label"] == 1
    assert not ClipDataset(clips, ClipSettings(8, 32), crop, cache=cache)[Draw(bad, 0, 0)]["readable"]


BUILD = """
import sys
from pathlib import Path
from datamodules.clip_dataset import ClipDataset, ClipSettings
from datamodules.frame_cache import FrameCache, FrameCacheSettings
from datamodules.genvideo_index import scan
if __name__ == "__main__":
    clips = scan(Path(sys.argv[1]))[0]
    print(FrameCache(clips.root, FrameCacheSettings(sys.argv[2])).build(clips, workers=2).built)
"""


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_killed_in_the_middle_it_goes_on(tmp_path: Path, format: FrameCacheFormat) -> None:
    root = tmp_path / "set"
    first = write_video(root / "Real/000.mp4", coloured_frames(100, 240, 320), fps=10)
    for i in range(1, 80):
        shutil.copy(first, root / f"Real/{i:03d}.mp4")
    (tmp_path / "build.py").write_text(BUILD)
    command = [sys.executable, str(tmp_path / "build.py"), str(root), format]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    clips = scan(root)[0]
    cache = cache_of(clips, format)
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as build:
        seen = ""
        while not re.search(r" [1-9]\d*/80", seen) and build.stderr is not None and (letter := build.stderr.read(1)):
            seen += letter
        build.kill()
    names = {p: p.stat().st_mtime_ns for p in (cache.folder / "clips").rglob("*.tar")}
    done = int(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert 0 < done < 80
    assert sum(p.stat().st_mtime_ns == t for p, t in names.items()) >= (80 - done if format == "jpeg" else 0)
    frames = cache.frames("Real/000.mp4", range(8))
    assert all(np.array_equal(cache.frames(name, range(8)), frames) for name in clips.id.tolist())
    assert torch.from_numpy(frames).shape == (8, 240, 320, 3)
