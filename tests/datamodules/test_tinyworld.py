"""The tiny world: what is described is what is painted, what is written, and what is read back."""

from __future__ import annotations

import ast
import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError
from sklearn.metrics import roc_auc_score

from datamodules.tinyworld import make, tiny_root
from datamodules.tinyworld.generators import GENERATORS, TEST, TIME_ONLY, TRAIN, generate
from datamodules.tinyworld.genvideo import REAL, clip_scene, encode_mp4, render_clip, write_frames_layout
from datamodules.tinyworld.scene import BACKGROUNDS, COLOURS, RENDERER_VERSION, SHAPES, Scene, SceneObject, caption, random_scene, render
from datamodules.tinyworld.video import MOTIONS, REVERSED, Clip, animate, film, random_clip
from genlab.errors import UserError

REPO = Path(__file__).parents[2]
SMALL = {"train_clips": 2, "test_clips": 1}


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def one_object(shape: str = "square", colour: str = "red", background: str = "paper") -> Scene:
    return Scene("A", background, (SceneObject(shape, colour, "plain", "large", 0.25, -0.25, 0.0),), 0.02, 250.0, "test")


# ---- scenes


def test_caption_says_all_there_is() -> None:
    star = SceneObject("star", "red", "striped", "small", 0, 0, 0)
    scene = Scene("A", "studio", (star, SceneObject("ring", "blue", "plain", "large", 0, 0, 0)), 0.02, 250.0, "key")
    assert caption(scene) == "a small red striped star and a large blue ring in a studio"
    doing = ("spinning clockwise", "rising")
    assert caption(scene, doing) == "a small red striped star spinning clockwise and a large blue ring rising in a studio"


@pytest.mark.parametrize("shape", SHAPES)
def test_object_is_where_and_what_the_scene_says(shape: str) -> None:
    empty = Scene("A", "paper", (), 0.02, 250.0, "test")
    for colour in COLOURS:
        with_object, without = render(one_object(shape, colour), 96).astype(float), render(empty, 96).astype(float)
        changed = np.abs(with_object - without).sum(2) > 60
        rows, columns = np.nonzero(changed)
        assert abs(columns.mean() / 48 - 1 - 0.25) < 0.15 and abs(rows.mean() / 48 - 1 + 0.25) < 0.15
        assert 0.3 < (np.ptp(columns) + np.ptp(rows)) / 2 / 96 < 0.5, "large: a radius of 0.46, which rim or corners reach"
        seen = np.median(with_object[changed], 0)
        nearest = min(COLOURS, key=lambda name: np.abs(seen / seen.max() - np.array(COLOURS[name]) / max(COLOURS[name])).sum())
        assert nearest == colour, seen


def test_shapes_can_be_told_apart() -> None:
    masks = {shape: np.abs(render(one_object(shape), 64).astype(int) - render(one_object("circle"), 64)).sum(2) > 60 for shape in SHAPES}
    assert all(masks[shape].mean() > 0.02 for shape in SHAPES if shape != "circle")


def test_edges_are_anti_aliased_the_same_picture_at_any_size() -> None:
    small, large = (render(random_scene("size", "B"), size).astype(float) for size in (64, 128))
    halved = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(small - halved).mean() < 6


def test_styles_share_objects_but_no_background() -> None:
    assert not BACKGROUNDS["A"].keys() & BACKGROUNDS["B"].keys()
    pictures = {(style, name): render(Scene(style, name, (), 0.0, 250.0, "k")) for style in ("A", "B") for name in BACKGROUNDS[style]}
    for key, picture in pictures.items():
        assert picture.std() > 1 and 40 < picture.mean() < 235, key


def test_look_belongs_to_its_version() -> None:
    """Fails when the renderer changes: raise RENDERER_VERSION, since cached data and weights name it, and put the new colours here."""
    looks = {
        (style, key): np.rint(render(random_scene(key, style)).reshape(2, 32, 2, 32, 3).mean((1, 3, 4))).astype(int).ravel().tolist()
        for style in ("A", "B")
        for key in ("one", "two")
    }
    expected = LOOKS[RENDERER_VERSION]
    assert looks.keys() == expected.keys()
    for key, look in looks.items():
        assert np.abs(np.subtract(look, expected[key])).max() <= 2, looks


LOOKS = {  # version -> mean brightness of the four quarters of four pictures
    2: {
        ("A", "one"): [154, 153, 155, 153],
        ("A", "two"): [169, 178, 175, 173],
        ("B", "one"): [195, 149, 167, 187],
        ("B", "two"): [174, 171, 151, 204],
    }
}


# ---- clips


def test_clip_survives_json() -> None:
    clip = clip_scene(3, "test", "popping", 7)
    again = Clip.from_dict(json.loads(json.dumps(asdict(clip))))
    assert again == clip
    assert np.array_equal(film(again), film(clip))


def test_clips_differ_by_every_part_of_their_name() -> None:
    names = [(0, "train", REAL, 0), (1, "train", REAL, 0), (0, "test", REAL, 0), (0, "train", "flicker", 0), (0, "train", REAL, 1)]
    assert len({json.dumps(asdict(clip_scene(*name))) for name in names}) == len(names)


def test_reversed_motions_are_the_same_frames_in_other_order() -> None:
    assert len(MOTIONS) >= 12 and len(REVERSED) >= 4
    s = np.linspace(-1, 1, 9, dtype=np.float32)
    for forward, backward in REVERSED.items():
        one, other = MOTIONS[forward][1](s, 0.5), MOTIONS[backward][1](s, 0.5)
        for part in ("x", "y", "grow", "turn"):
            assert np.allclose(np.broadcast_to(getattr(one, part), 9)[::-1], np.broadcast_to(getattr(other, part), 9), atol=1e-5)


def test_every_motion_moves_and_stays_in_view() -> None:
    s = np.linspace(-1, 1, 16, dtype=np.float32)
    for name, (words, path) in MOTIONS.items():
        pose = path(s, 0.5)
        assert words and any(np.ptp(np.broadcast_to(part, 16)) > 0.3 for part in (pose.x, pose.y, pose.grow, pose.turn)), name
        assert max(np.abs(pose.x).max(), np.abs(pose.y).max()) <= 0.65, name


def test_real_clips_have_fresh_noise_in_every_frame() -> None:
    empty = Scene("B", "wood", (), 0.05, 250.0, "wood")
    still = replace(random_clip("noise", "B"), scene=empty, motions=(), camera="still", dimming=0.0)
    frames = film(still).astype(float)
    residual = frames - frames.mean(0)
    assert 1 < residual.std() < 12
    assert abs(np.corrcoef(residual[3].ravel(), residual[4].ravel())[0, 1]) < 0.15


# ---- generators: every kind breaks what its docstring says


def gradient(frames: np.ndarray) -> float:
    return float(np.abs(np.diff(frames, axis=2)).mean())


def cell_means(frames: np.ndarray) -> np.ndarray:
    return frames.reshape(len(frames), 4, 16, 4, 16, 3).mean((2, 4, 5))


def steps(frames: np.ndarray) -> np.ndarray:
    """Mean change of every frame to the next, beyond the noise."""
    small = frames.reshape(len(frames), 16, 4, 16, 4, 3).mean((2, 4))
    return np.abs(np.diff(small, axis=0)).mean((1, 2, 3))


def grid_peak(frames: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(frames.mean((0, 3)) - frames.mean(), axis=1)).mean(0)
    return float(spectrum[16] / spectrum[[14, 15, 17, 18]].mean())


def seam_steps(frames: np.ndarray) -> float:
    """Step at the lines of a 3 x 3 or 4 x 4 tiling relative to all others, in the mean frame."""
    jumps = np.abs(np.diff(frames.mean((0, 3)), axis=1)).mean(0)
    return float(max(jumps[[21, 42]].mean(), jumps[[15, 31, 47]].mean()) / jumps.mean())


def residual_correlation(frames: np.ndarray) -> float:
    fine = frames.mean(3) - (np.roll(frames.mean(3), 1, 1) + np.roll(frames.mean(3), -1, 1)) / 2
    return float(np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairwise(fine)]))


def hue_change(frames: np.ndarray) -> float:
    casts = np.log(frames.mean((1, 2)) + 1)
    casts = casts - casts.mean(1, keepdims=True)
    return float(np.abs(casts[-1] - casts[0]).sum())


BREAKS = {  # generator -> statistic that is larger for it than for the same clip filmed by a camera
    "flicker": lambda frames: np.abs(np.diff(cell_means(frames), 2, axis=0)).mean(),
    "boiling": lambda frames: np.median(steps(frames)),
    "checkerboard": grid_peak,
    "smoothing": lambda frames: -gradient(frames),
    "morphing": lambda frames: np.abs(frames[-1] - frames[0]).mean(),
    "jumping": lambda frames: steps(frames).std() / steps(frames).mean(),
    "ghosting": lambda frames: -np.abs(np.diff(frames, axis=0)).mean(),
    "popping": lambda frames: steps(frames).max(),
    "frozen_noise": residual_correlation,
    "seams": seam_steps,
    "colour_drift": hue_change,
    "wobble": lambda frames: np.median(steps(frames)),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_breaks_its_statistic(name: str) -> None:
    worse = []
    for number in range(16):
        clip = clip_scene(5, "test", name, number)
        if name == "morphing":  # motion would hide it from so simple a statistic
            clip = replace(clip, motions=tuple(replace(motion, reach=0.0) for motion in clip.motions), camera="still", dimming=0.0)
        worse.append(BREAKS[name](generate(name, clip).astype(float)) > BREAKS[name](film(clip).astype(float)))
    assert np.mean(worse) >= 0.75, f"{np.mean(worse):.2f} of the clips"


@pytest.mark.parametrize("name", TIME_ONLY)
def test_single_frame_does_not_tell(name: str) -> None:
    """Frames of two disjoint sets of clips, real and generated: brightness, contrast, sharpness and colour are no better than chance."""

    def look(kind: str, number: int) -> list[float]:
        frame = render_clip(clip_scene(6, "test", kind, number), kind)[number % 16].astype(float)
        return [
            frame.mean(),
            frame.std(),
            gradient(frame[None]),
            (frame[..., 0] - frame[..., 2]).mean(),
            np.abs(np.diff(frame, 2, axis=1)).std(),
        ]

    count = 48
    real, fake = (np.array([look(kind, number) for number in range(count)]) for kind in (REAL, name))
    aucs = [roc_auc_score([0] * count + [1] * count, np.r_[real[:, i], fake[:, i]]) for i in range(real.shape[1])]
    assert all(0.32 < auc < 0.68 for auc in aucs), aucs  # three standard errors of 48 against 48


def test_kinds_of_the_test_are_not_in_training() -> None:
    assert len(TRAIN) >= 6 and len(TEST) >= 6 and not TRAIN.keys() & TEST.keys()
    for name, generator in GENERATORS.items():
        assert generator.__doc__ and "Breaks:" in generator.__doc__, name
        assert (name in TIME_ONLY) == ("Time only" in generator.__doc__), name


# ---- the written dataset


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("genvideo", tmp_path_factory.mktemp("tiny") / "genvideo", progress=False, **SMALL)


def test_layout_is_that_of_the_distribution(small: Path) -> None:
    counts = {str(folder.relative_to(small)): len(list(folder.glob("clip*"))) for folder in small.rglob("*") if folder.is_dir()}
    fakes = {f"GenVideo-Val/Fake/{name}": 1 for name in TEST} | {f"train_{name}": 2 for name in TRAIN}
    assert counts == {"Real": 2 * len(TRAIN), "GenVideo-Val": 0, "GenVideo-Val/Real": 2, "GenVideo-Val/Fake": 0} | fakes
    assert [path.name for path in small.rglob("._*")] == ["._clip_00000.mp4"]
    assert {path.parent.name for path in small.rglob("*.gif")} == {"train_checkerboard"}


def test_all_clips_share_the_container_and_the_codec(small: Path) -> None:
    found = set()
    for path in small.rglob("clip*.mp4"):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            profile = (stream.codec_context.name, stream.codec_context.profile, stream.pix_fmt, stream.width, stream.height)
            found.add((*profile, stream.frames, stream.average_rate, container.duration, tuple(sorted(container.metadata.items()))))
    assert len(found) == 1, found
    assert found.pop()[3:7] == (64, 64, 16, 8)
    assert {decode(path).shape for path in small.rglob("*.gif")} == {(16, 64, 64, 3)}


def test_files_show_the_clips_they_are_named_after(small: Path) -> None:
    for kind, split, folder in (
        (REAL, "train", "Real"),
        ("boiling", "train", "train_boiling"),
        ("wobble", "test", "GenVideo-Val/Fake/wobble"),
    ):
        clip = clip_scene(0, split, kind, 0)  # type: ignore[arg-type]
        difference = np.abs(decode(small / folder / "clip_00000.mp4").astype(float) - render_clip(clip, kind)).mean()
        assert difference < 8, f"{kind}: {difference:.1f} grey levels by the codec"
        assert (
            np.abs(decode(small / folder / "clip_00000.mp4").astype(float) - render_clip(clip_scene(1, split, kind, 0), kind)).mean() > 16
        )  # type: ignore[arg-type]


def test_described_objects_are_found_in_the_decoded_frames(small: Path) -> None:
    """The front object, where it is plain, solid and in view: its colour is at the place that the description gives, in every frame."""
    checked = 0
    for number in range(2 * len(TRAIN)):
        clip = clip_scene(0, "train", REAL, number)
        frames = decode(small / "Real" / f"clip_{number:05d}.mp4").astype(float)
        tracks, view = animate(clip, np.linspace(-1, 1, 16, dtype=np.float32))
        front = tracks[-1]
        if front.thing.shape in ("ring", "moon"):
            continue
        px, py = (((getattr(front, axis) - getattr(view, axis)) * view.zoom + 1) * 32 for axis in ("x", "y"))
        for t in range(16):
            if 4 < px[t] < 60 and 4 < py[t] < 60:
                patch = frames[t, int(py[t]) - 3 : int(py[t]) + 4, int(px[t]) - 3 : int(px[t]) + 4].reshape(-1, 3)
                wanted = np.array(COLOURS[front.thing.colour]) / max(COLOURS[front.thing.colour])
                seen = patch / patch.max(1, keepdims=True)
                checked += 1
                assert np.abs(seen - wanted).sum(1).min() < 0.45, (number, t, front.thing)
    assert checked > 30


def test_same_seed_same_bytes_other_seed_other_clips(small: Path, tmp_path: Path) -> None:
    assert content(make("genvideo", tmp_path / "again", progress=False, **SMALL)) == content(small)
    other = make("genvideo", tmp_path / "other", seed=1, progress=False, **SMALL)
    assert not any(np.array_equal(decode(other / path), decode(small / path)) for path in ("Real/clip_00000.mp4", "Real/clip_00001.mp4"))


def test_more_clips_do_not_change_the_first_ones(small: Path, tmp_path: Path) -> None:
    more = make("genvideo", tmp_path / "more", progress=False, train_clips=3, test_clips=1)
    assert (more / "train_flicker/clip_00001.mp4").read_bytes() == (small / "train_flicker/clip_00001.mp4").read_bytes()


def python(code: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], cwd=REPO, env={**os.environ, **environment})


WRITE = """
from pathlib import Path
from datamodules.tinyworld import make
make('genvideo', Path({!r}), progress=False, train_clips=2, test_clips=1)
"""


def test_killed_and_called_again_gives_the_same_bytes(small: Path, tmp_path: Path) -> None:
    root, deadline = tmp_path / "killed", time.monotonic() + 60
    writer = python(WRITE.format(str(root)))
    while len(list(tmp_path.rglob("clip*"))) < 5 and time.monotonic() < deadline:
        pass
    writer.send_signal(signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL and not root.exists()
    (partial,) = tmp_path.iterdir()
    written = {path: path.stat().st_mtime_ns for path in partial.rglob("clip*")}
    (partial / "Real" / ".clip_00007.mp4.1.tmp").write_bytes(b"left behind")
    make("genvideo", root, progress=False, **SMALL)
    assert content(root) == content(small)
    assert all((root / path.relative_to(partial)).stat().st_mtime_ns == when for path, when in written.items()), "written once only"
    assert [path.name for path in tmp_path.iterdir()] == ["killed"]


def test_two_processes_at_once_write_one_dataset(small: Path, tmp_path: Path) -> None:
    writers = [python(WRITE.format(str(tmp_path / "shared"))) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]
    assert content(tmp_path / "shared") == content(small)


def test_finished_dataset_is_left_as_it_is(small: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    make("genvideo", small, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before


def test_nothing_of_others_is_overwritten(small: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty and was not written by the tiny world"):
        make("genvideo", tmp_path, **SMALL)
    with pytest.raises(UserError, match="is a file"):
        make("genvideo", tmp_path / "mine.txt", **SMALL)
    with pytest.raises(UserError, match="holds another tiny dataset"):
        make("genvideo", small, seed=1, **SMALL)
    with pytest.raises(UserError, match="written to"):
        make("genvideo", tmp_path / "mine.txt" / "below", **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_wrong_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'train_clips'"):
        make("genvideo", tmp_path / "a", train_clip=3)
    with pytest.raises(UserError, match="size=63"):
        make("genvideo", tmp_path / "b", size=63)
    with pytest.raises(UserError, match=r"No tiny dataset is called 'genvidoe'; there are: genvideo"):
        tiny_root("tiny:genvidoe")
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_other_roots_are_left_alone() -> None:
    assert tiny_root("/data/GenVideo") == Path("/data/GenVideo")


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, datamodules.tinyworld; sys.exit(any(name in sys.modules for name in ('numpy', 'PIL', 'av', 'torch')))"
    assert python(code).wait() == 0


@pytest.mark.slow
def test_in_the_default_dataset_only_the_artefact_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path))
    started = time.monotonic()
    root = tiny_root("tiny:genvideo")
    seconds = time.monotonic() - started
    assert root.parent == tmp_path / "tiny" and root.name.startswith("genvideo-") and tiny_root("tiny:genvideo") == root

    def trivial(folder: Path) -> np.ndarray:
        clips = [(path.stat().st_size, decode(path)) for path in sorted(folder.glob("clip*.mp4"))]
        return np.array([(size, frames.mean(), len(frames)) for size, frames in clips])

    lines = [f"tiny:genvideo written in {seconds:.0f} s", f"{'AUC of':14s} file size  brightness"]
    for real, fakes in (
        (root / "Real", [root / f"train_{name}" for name in TRAIN if name != "checkerboard"]),
        (root / "GenVideo-Val/Real", [root / "GenVideo-Val/Fake" / name for name in TEST]),
    ):
        negatives, everything = trivial(real), []
        for folder in fakes:
            positives = trivial(folder)
            everything.append(positives)
            aucs = [
                roc_auc_score(np.r_[negatives[:, i] * 0, positives[:, i] * 0 + 1], np.r_[negatives[:, i], positives[:, i]]) for i in (0, 1)
            ]
            lines.append(f"{folder.name:14.14s} {aucs[0]:9.2f} {aucs[1]:11.2f}")
            assert abs(aucs[1] - 0.5) < 0.15, folder.name
            assert set(positives[:, 2]) == set(negatives[:, 2])
        positives = np.concatenate(everything)
        size, brightness = (
            roc_auc_score(np.r_[negatives[:, i] * 0, positives[:, i] * 0 + 1], np.r_[negatives[:, i], positives[:, i]]) for i in (0, 1)
        )
        lines.append(f"{'all':14s} {size:9.2f} {brightness:11.2f}")
        assert abs(brightness - 0.5) < 0.1
        assert abs(size - 0.5) < 0.2, "smoothed clips are smaller files, the others are not"
    with capsys.disabled():
        print("\n" + "\n".join(lines))


# ---- extracted frames and lists


def test_frames_layout_is_what_the_official_lists_say(tmp_path: Path) -> None:
    lists = write_frames_layout(tmp_path, clips=2)
    assert [path.name for path in lists] == ["train.csv", "val_id.csv", "val_ood.csv"]
    seen: set[str] = set()
    for path in lists:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["content_path", "image_path", "type_id", "label", "frame_len", "frame_seq"]
        assert {row["label"] for row in rows} == {"0", "1"} and len({row["type_id"] for row in rows}) == 2
        for row in rows:
            numbers = ast.literal_eval(row["frame_seq"])
            assert numbers == list(range(1, 9)) and row["frame_len"] == "8", "2 s: 4 frames a second"
            assert (tmp_path / row["image_path"]).is_file()
            assert sorted(int(frame.stem) for frame in (tmp_path / row["content_path"]).glob("*.jpg")) == numbers
            assert row["content_path"].startswith("fake/" if row["label"] == "1" else "real/")
            assert row["content_path"] not in seen, "no clip in two lists"
            seen.add(row["content_path"])
    first = next((tmp_path / "fake/seams").iterdir())
    frames = render_clip(clip_scene(0, "test", "seams", int(first.name[-5:])), "seams")
    assert np.abs(np.asarray(Image.open(first / "3.jpg"), float) - frames[4]).mean() < 6, "frame 3 shows second 0.5"


def test_frames_layout_with_the_flaws_of_unpacked_data(tmp_path: Path) -> None:
    write_frames_layout(tmp_path, clips=2, flaws=True)
    flicker = tmp_path / "fake/flicker"
    assert len(list((flicker / "clip_00000").glob("*.jpg"))) == 5
    with pytest.raises((OSError, UnidentifiedImageError)):
        Image.open(flicker / "clip_00001/3.jpg").load()
    assert (tmp_path / "real/youku/clip_00000/._1.jpg").is_file()


def test_encoding_is_the_same_every_time() -> None:
    frames = film(clip_scene(0, "test", REAL, 0))
    assert len({encode_mp4(frames, 8) for _ in range(10)}) == 1
