"""InterHF: a hand that touches a face, its masks and keypoints, and the layout's forms."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from datamodules.interhf_index import (
    InteractionClip,
    Masks,
    UnreadableRegions,
    items,
    load_frames,
    load_identity,
    load_keypoints,
    load_masks,
    masks_of_keypoints,
    note,
    preview,
    read_metadata,
    read_patterns,
    with_regions,
)  # fmt: skip
from datamodules.tinyworld import _recipe, make
from datamodules.tinyworld.faces import cover, edge_distance, landmarks
from datamodules.tinyworld.hand import FINGER, TIP
from datamodules.tinyworld.interhf import MIRROR, PATTERNS, Touch, course, film, identity, touches
from datamodules.video import UnreadableVideo
from genlab.errors import UserError

SMALL = {"subjects": 3, "clips": 1, "patterns": 3, "frames": 8, "size": 32}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout with videos and with folders of frames, in miniature."""
    folder = tmp_path_factory.mktemp("interhf")
    make("interhf", folder / "videos", progress=False, **SMALL)
    make("interhf", folder / "folders", progress=False, **SMALL, frame_folders=1)
    return folder


def _iou(first: Masks, second: Masks) -> float:
    return float((first & second).sum() / max(1, (first | second).sum()))


def _grown(mask: Masks, pixels: int) -> Masks:
    return np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(2 * pixels + 1))) > 0


@pytest.mark.parametrize("pattern", [1, 2, 4, 10, 13])
def test_the_hand_touches_in_contact_frames_and_dents_the_face(pattern: int) -> None:
    """Seen in the masks alone: hand and face meet in frames with contact and in no others, and there the face gives way."""
    touch = Touch(0, f"touch{pattern}", 4, pattern, 16, 64)
    way, filmed = course(touch), film(touch)
    assert 3 <= way.touching.sum() <= 11 and not way.touching[0] and not way.touching[-1]
    for frame, (hand, face) in enumerate(filmed.masks):
        gap = way.gap[frame] * way.scale
        meets = bool((_grown(hand, 2) & face).any())
        assert meets if way.touching[frame] else not meets or gap < 4, (frame, gap)
    deepest = int(way.depth.argmax())
    still = replace(way, depth=0 * way.depth)
    u, v = way.grid(touch.size)
    rest, bent = (cover(edge_distance(touch.person, *each.unbend(u, v)), 2 * way.scale)[deepest] > 0.5 for each in (still, way))
    gone = rest & ~bent
    u, v = u[deepest], v[deepest]
    where = np.hypot(u - way.contact[deepest, 0], v - way.contact[deepest, 1])
    assert gone.any() and where[gone].max() < 0.7 and not (bent & ~rest)[where < 0.5].any()
    assert 0.5 * way.depth[deepest] < where[gone].max()
    # Under the finger the edge moved by the depth, and it is where the finger's round tip ends.
    line = np.linspace(-0.3, 0.3, 601)
    path = way.contact[deepest] + way.inward[deepest] * line[:, None]
    distance = edge_distance(
        touch.person, *(p[0, 0] for p in way_slice(way, deepest).unbend(path[None, None, :, 0], path[None, None, :, 1]))
    )
    edge = line[int((distance < 0).argmax())]
    assert edge == pytest.approx(way.depth[deepest], abs=0.01)
    assert (way.tip - way.contact)[deepest] @ way.inward[deepest] + FINGER == pytest.approx(edge, abs=0.01)


def way_slice(way: object, frame: int) -> object:
    """The course in one frame."""
    parts = ("contact", "inward", "depth", "gap", "angle", "middle", "turn")
    return replace(way, **{name: getattr(way, name)[frame : frame + 1] for name in parts})  # type: ignore[type-var]


def test_bending_there_and_back() -> None:
    way = course(Touch(0, "x", 1, 0, 8, 32))
    points = landmarks(Touch(0, "x", 1, 0, 8, 32).person).astype(np.float64)
    bent = way.bend(points)
    back = np.stack([part[:, 0] for part in way.unbend(bent[:, None, :, 0], bent[:, None, :, 1])], 2)
    np.testing.assert_allclose(back, np.broadcast_to(points, back.shape), atol=2e-3)
    assert np.abs(bent - points).max() > 0.05


def test_keypoints_lie_in_the_masks() -> None:
    for subject, pattern in ((0, 0), (1, 9), (2, 14), (3, 5)):
        touch = Touch(0, f"points{subject}", subject, pattern, 12, 64)
        filmed = film(touch)
        side = int("_right_" in PATTERNS[pattern])
        assert not filmed.hands[:, 1 - side].any()
        for frame in range(touch.frames):
            x, y, sure = filmed.hands[frame, side].T
            assert all(filmed.masks[frame, 0][int(b), int(a)] for a, b, c in zip(x, y, sure) if c), (subject, frame)
            inner = filmed.face[frame, 27:]  # nose, eyes and mouth; hair may hide brows and temples
            assert all(filmed.masks[frame, 1][int(b), int(a)] for a, b, c in inner if c), (subject, frame)
        assert filmed.hands[touch.frames // 2, side, TIP, 2] == 1 and filmed.face[..., 2].mean() > 0.9


def test_masks_are_what_is_seen() -> None:
    """Pixels of the hand have the hand's colour, and pixels outside both regions change nothing in them."""
    touch = Touch(0, "seen", 2, 1, 8, 64)
    filmed = film(touch)
    skin = np.asarray(touch.person.skin)
    for frame in range(touch.frames):
        hand, face = filmed.masks[frame]
        assert not (hand & face).any()
        if hand.sum() > 40:
            colour = np.median(filmed.frames[frame][hand], axis=0) / 255
            assert np.abs(colour / colour.sum() - skin / skin.sum()).max() < 0.06


def test_patterns_are_told_apart_by_their_paths() -> None:
    assert len(set(PATTERNS)) == 18 and all(MIRROR[MIRROR[i]] == i != MIRROR[i] for i in range(18))
    paths = {name: course(Touch(0, "one", 0, number, 32, 64)) for number, name in enumerate(PATTERNS)}
    runs = {name: int((np.diff(way.touching.astype(int)) == 1).sum()) for name, way in paths.items()}
    assert all(count == (2 if "tap" in name else 1) for name, count in runs.items())
    travel = {name: np.ptp(way.contact[way.touching], axis=0).max() for name, way in paths.items()}
    assert all((travel[name] > 0.2) == ("stroke" in name) for name in PATTERNS)
    height = {name: way.contact[way.touching, 1].mean() for name, way in paths.items()}
    assert height["temple_left_press"] < height["cheek_left_press"] < height["jaw_left_press"]
    assert all((way.contact[0, 0] > 0) == ("right" in name) for name, way in paths.items())


def test_every_file_holds_what_was_described(root: Path) -> None:
    """Videos and folders of frames, packed masks and PNGs, keypoints and identities."""
    described = {
        touch.clip: (split, touch) for split, touch in touches(0, *(SMALL[k] for k in ("subjects", "clips", "patterns", "frames", "size")))
    }
    assert Counter(split for split, _ in described.values()) == {"train": 1, "val": 1, "test": 1}
    for layout, tolerance in (("videos", 8), ("folders", 4)):
        clips = read_metadata(root / layout)
        assert {clip.clip for clip in clips} == described.keys() and with_regions(clips) == (clips, 0)
        for clip in clips:
            split, touch = described[clip.clip]
            filmed = film(touch)
            assert (clip.split, clip.pattern, clip.subject, clip.frames) == (split, touch.pattern, f"s{touch.subject:03d}", 8)
            frames = load_frames(clip, range(8))
            assert frames.shape == filmed.frames.shape and np.abs(frames.astype(int) - filmed.frames).mean() < tolerance
            assert np.array_equal(load_masks(clip), filmed.masks)
            assert all(np.array_equal(a, b) for a, b in zip(load_keypoints(clip), (filmed.hands, filmed.face)))
            np.testing.assert_allclose(load_identity(clip), identity(touch), rtol=1e-5)
            assert list(clip.contact) == np.flatnonzero(course(touch).touching).tolist()
            assert clip.video.parent.name == read_patterns(root / layout).names[clip.pattern]
        found = items(root / layout, "interhf")
        assert [len(preview(item)) for item in found] == [4, 4, 4] and note(found[0]) == f"{clips[0].clip}, {clips[0].subject}"
    assert read_patterns(root / "videos").mirror == list(MIRROR)


def test_an_identity_is_a_persons_in_every_clip() -> None:
    vectors = {(s, n): identity(Touch(0, f"{s}/{n}", s, 0, 8, 32)) for s in range(6) for n in range(2)}
    for (subject, number), vector in vectors.items():
        assert vector @ vectors[subject, 1 - number] > 0.9
        assert all(vector @ vectors[other, 0] < 0.9 for other in range(6) if other != subject)


def test_an_interrupted_call_goes_on_and_gives_the_same_files(root: Path, tmp_path: Path) -> None:
    """In place of every second file of a finished dataset there is none yet."""
    partial = tmp_path / f".again.{_recipe('interhf', 0, {**SMALL}).hash}.partial"
    shutil.copytree(root / "videos", partial)
    there = sorted(path for path in partial.rglob("*.*") if path.is_file())
    for path in there[::2]:
        path.unlink()
    make("interhf", tmp_path / "again", progress=False, **SMALL)
    first, second = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in (root / "videos", tmp_path / "again"))
    assert first == second and [path.name for path in tmp_path.iterdir()] == ["again"]
    assert film(Touch(1, "s000_00", 0, 0, 8, 32)).frames.tobytes() != film(Touch(0, "s000_00", 0, 0, 8, 32)).frames.tobytes()


def test_hulls_of_keypoints_stand_in_for_masks(root: Path, tmp_path: Path) -> None:
    """They cover most of the true regions; unsure points do not count; a clip with neither is left out and counted."""
    touch = Touch(0, "hull", 5, 4, 8, 64)
    filmed = film(touch)
    hulls = masks_of_keypoints(filmed.hands, filmed.face, 64, 64)
    middle = 4
    assert _iou(hulls[middle, 0], filmed.masks[middle, 0]) > 0.5 and _iou(hulls[middle, 1], filmed.masks[middle, 1]) > 0.6
    assert not masks_of_keypoints(filmed.hands * [1, 1, 0.2], filmed.face, 64, 64)[:, 0].any()
    square = np.array([[10, 10, 1], [30, 10, 1], [30, 30, 1], [10, 30, 1]] + [[20, 20, 1]] * 64, np.float32)[None]
    area = masks_of_keypoints(np.zeros((1, 2, 21, 3), np.float32), square, 40, 40)[0, 1].sum()
    assert area == pytest.approx(20 * 20 + 4 * 20 * 1.2 + np.pi * 1.2**2, rel=0.05)
    shutil.copytree(root / "videos", tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare/masks")
    records = [json.loads(line) for line in (tmp_path / "bare/metadata.jsonl").read_text().splitlines()]
    (tmp_path / "bare/metadata.jsonl").write_text("\n".join(json.dumps({k: v for k, v in r.items() if k != "masks"}) for r in records))
    clips = read_metadata(tmp_path / "bare")
    assert load_masks(clips[0]).shape == (8, 2, 32, 32)
    assert clips[1].keypoints is not None
    clips[1].keypoints.unlink()
    assert with_regions(clips) == ([clips[0], clips[2]], 1)
    with pytest.raises(UnreadableRegions, match="neither masks nor keypoints"):
        load_masks(clips[1])
    shown = preview(items(tmp_path / "bare", "interhf")[1])
    assert len(shown) == 4 and np.array_equal(shown[1], shown[3]), "frames without regions"


LINE = {"clip": "a", "video": "a.mp4", "pattern": 0, "subject": "p", "fps": 25, "width": 8, "height": 8, "frames": 4, "split": "train"}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{"], r"metadata\.jsonl:1: not a JSON object"),
        ([json.dumps({k: v for k, v in LINE.items() if k not in ("fps", "split")})], r"metadata\.jsonl:1: without fps, split"),
        ([json.dumps({**LINE, "pattern": 18})], r"pattern is 18; patterns count from 0 to 17"),
        ([json.dumps({**LINE, "frames": "4"})], r"frames is '4', not a number"),
        ([json.dumps(LINE)] * 2, "clip 'a' is there 2 times"),
        ([json.dumps(LINE), json.dumps({**LINE, "clip": "b", "split": "test"})], r"one split only.*: p \(test and train\)"),
        (["", " "], "is empty"),
    ],
)  # fmt: skip
def test_broken_lists_are_named(tmp_path: Path, lines: list[str], said: str) -> None:
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=said):
        items(tmp_path, "interhf")


def test_patterns_in_every_form(tmp_path: Path) -> None:
    assert read_patterns(tmp_path).names[17] == "pattern_17" and read_patterns(tmp_path).mirror is None
    path = tmp_path / "patterns.json"
    for content, names, mirror in (
        (["a", "b"], ["a", "b"], None),
        ({"names": ["a", "b", "c"], "mirror": [1, 0, 2]}, ["a", "b", "c"], [1, 0, 2]),
        ({"names": ["a", "b", "c"], "mirror": {"a": "b", "b": "a"}}, ["a", "b", "c"], [1, 0, 2]),
    ):
        path.write_text(json.dumps(content))
        assert (read_patterns(tmp_path).names, read_patterns(tmp_path).mirror) == (names, mirror)
    for wrong in ('{"names": ["a", "b"], "mirror": [1, 1]}', "[]", "{", '{"names": ["a"], "mirror": [0, 0]}'):
        path.write_text(wrong)
        with pytest.raises(UserError, match=r"patterns\.json"):
            read_patterns(tmp_path)


def test_what_is_wrong_with_a_folder_is_said(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metadata\.jsonl is not there\. It needs a line per clip, such as \{\"clip\""):
        items(tmp_path, "interhf")
    clip = InteractionClip(
        "a", tmp_path / "a.mp4", 0, "p", "train", 25, 8, 8, 4, tmp_path / "m.npz", tmp_path / "k.npz", tmp_path / "i.npy"
    )
    with pytest.raises(UnreadableVideo):
        load_frames(clip, [0])
    for path, read in ((clip.masks, load_masks), (clip.keypoints, load_keypoints), (clip.identity, load_identity)):
        assert path is not None
        path.write_bytes(b"x")
        with pytest.raises(UnreadableRegions, match=r"not an np[zy] file"):
            read(clip)  # type: ignore[operator]
    np.savez(tmp_path / "m.npz", masks=np.zeros((4, 2, 8, 2), np.uint8), shape=[4, 2, 8, 8])
    with pytest.raises(UnreadableRegions, match=r"which is not \(4, 2, 8, 8\) with the last axis packed"):
        load_masks(clip)
    np.savez(tmp_path / "k.npz", hands=np.zeros((4, 1, 21, 3)), face=np.zeros((4, 68, 3)))
    with pytest.raises(UnreadableRegions, match="should be"):
        load_keypoints(clip)
    for option, said in (
        ({"subjects": 2}, "subjects 2 is out of range; use 3 to"),
        ({"size": 40}, "size 40 is wrong; use a multiple of 16"),
    ):
        with pytest.raises(UserError, match=said):
            make("interhf", tmp_path / "new", **option)
    assert not (tmp_path / "new").exists()
