"""Captioned clips: groups that differ in motion alone, frames, and what is said of broken folders."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from datamodules.captioned_clips_index import items, preview
from datamodules.captioned_videos import CaptionedVideos
from datamodules.tinyworld import make
from datamodules.tinyworld.acting import ACTIONS, ROUND, SHOWING, acting_clip
from datamodules.tinyworld.captioned_clips import captioned_clip
from datamodules.tinyworld.video import MOTIONS, animate, film
from datamodules.video import even_frames, open_video
from genlab.errors import UserError


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("captioned_clips", tmp_path_factory.mktemp("clips") / "clips", progress=False, clips=32, held_out=16)


def test_clips_are_what_their_lines_say(clips: Path) -> None:
    data = CaptionedVideos(str(clips), labels=["motion", "shape"], in_memory=True, eval_batch_size=16)
    data.setup("test")
    (batch,) = list(data.test_dataloader())
    for row in range(0, 16, 5):
        clip, action, caption = captioned_clip(0, "test", int(batch["index"][row]))
        assert batch["caption"][row] == caption and ACTIONS[action].words[0] in caption
        assert data.classes["motion"][batch["labels"]["motion"][row]] == ACTIONS[action].words[0]
        error = np.abs(batch["video"][row].permute(0, 2, 3, 1).numpy().astype(int) - film(clip, 64))
        assert batch["video"].shape[1:] == (8, 3, 64, 64) and error.mean() < 6  # H.264 takes the noise away
    assert data.on_after_batch_transfer(batch, 0)["video"].max() <= 1


def test_a_group_differs_in_motion_alone() -> None:
    members = [captioned_clip(0, "train", number) for number in range(16, 32)]
    assert {action for _, action, _ in members} == set(ACTIONS)
    looks = {(c.scene.background, c.camera, *((t.shape, t.colour, t.texture, t.size) for t in c.scene.objects)) for c, _, _ in members}
    assert len(looks) == 1


def test_opposites_are_each_other_backwards() -> None:
    s = np.linspace(-1, 1, 9, dtype=np.float32)
    pairs = {(name, action.opposite) for name, action in ACTIONS.items() if action.opposite}
    assert len(pairs) == 10 and all((other, name) in pairs for name, other in pairs)
    for name, other in pairs:
        forth, back = MOTIONS[name][1](s, 0.5), MOTIONS[str(other)][1](s, 0.5)
        for key in ("x", "y", "grow", "turn"):
            assert np.allclose(np.broadcast_to(getattr(forth, key), 9)[::-1], getattr(back, key), atol=1e-5), (name, key)


def test_eight_frames_show_every_turn() -> None:
    """Round objects have a texture that shows it, and no step is a quarter of a square's symmetry or more."""
    for number in range(60):
        clip = acting_clip(f"test/{number}", "A", "spin_cw", 8)
        actor = clip.scene.objects[0]
        assert actor.shape not in ROUND or actor.texture in SHOWING
        tracks, _ = animate(clip, np.linspace(-1, 1, 8, dtype=np.float32))
        assert 5 < np.diff(tracks[0].angle).max() < 30


def test_no_wording_says_another_action_too() -> None:
    """A caption that were part of another one would be no negative to it."""
    for one, other in itertools.permutations(ACTIONS.values(), 2):
        for words, longer in itertools.product(one.words, other.words):
            rest = iter(longer.split())
            assert not all(word in rest for word in words.split()), (words, longer)


def test_batches_hold_whole_groups(clips: Path) -> None:
    data = CaptionedVideos(str(clips), image_size=32, keep_groups=True, shift=2, batch_size=16)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [len(set(batch["group"].tolist())) for batch in batches] == [1, 1]
    assert batches[0]["video"].shape == (16, 8, 3, 32, 32) and "flip" not in CaptionedVideos.__init__.__annotations__


@pytest.mark.parametrize(("count", "frames", "expected"), [(8, 8, list(range(8))), (17, 4, [2, 6, 10, 14]), (2, 4, [0, 0, 1, 1])])
def test_frames_are_spread_evenly(count: int, frames: int, expected: list[int]) -> None:
    assert even_frames(count, frames).tolist() == expected


def test_show_reads_the_layout(clips: Path) -> None:
    found = items(clips, "captioned_clips")
    assert len(found) == 64 and {item.group for item in found} == {action.words[0] for action in ACTIONS.values()}
    shown = preview(found[0])
    with open_video(found[0].path) as video:
        assert len(shown) == 4 and np.array_equal(shown[-1], video.frames([7])[0])


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "x.mp4").write_bytes(b"no video")
    (tmp_path / "train" / "metadata.jsonl").write_text(json.dumps({"file_name": "x.mp4", "text": "a star"}))
    (tmp_path / "validation").symlink_to(tmp_path / "train")
    data = CaptionedVideos(str(tmp_path), in_memory=True)
    with pytest.raises(UserError, match=r"x\.mp4: .*Bring the clip again"):
        data.setup("fit")
    assert preview(items(tmp_path, "captioned_clips")[0]) == []
    with pytest.raises(UserError, match="num_frames: 0 is too small"):
        CaptionedVideos(str(tmp_path), num_frames=0)
    with pytest.raises(UserError, match="multiples of 16"):
        make("captioned_clips", tmp_path / "new", clips=20)
