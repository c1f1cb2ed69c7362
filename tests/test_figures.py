from __future__ import annotations

import csv
import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genlab import detection_figures, figures, sheets
from genlab.training.randomness import keyed_rng

HOSTILE = ["$x_{$ \\frac", "_hidden", "<img src=x onerror=alert(1)>" * 9]


def predictions() -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = keyed_rng("figures", 0)
    names = [""] * 60 + [name for name in HOSTILE for _ in range(20)]
    return rng.random(120), np.array([0] * 60 + [1] * 60), names


def log_rows() -> list[dict[str, str]]:
    """What a CSV logger leaves: a row per event, empty cells where it logged nothing."""
    lines = ["epoch,step,train/loss_step,train/loss_epoch,val/ap,val/Sora/ap,lr-AdamW"]
    lines += [f"0,{step},{1 / (step + 1)},,,,{1e-5}" for step in range(80)] + ["0,79,,0.3,,,", "0,79,,,0.8,0.9,", "1,159,nan,,0.9,0.9,"]
    return list(csv.DictReader(io.StringIO("\n".join(lines))))


def pictures(path: Path | None = None) -> list[Image.Image]:
    scores, labels, names = predictions()
    table = [{"degradation": name, "recall": 0.9, "ap": float("nan")} for name in HOSTILE]
    clip = np.zeros((4, 24, 32, 3), np.uint8)
    return [
        detection_figures.score_histogram(scores, labels, names, path=path),
        detection_figures.roc_pr(scores, labels, names, path=path),
        figures.curves(log_rows(), path=path),
        figures.bars(table, path=path),
        sheets.frame_strip(clip, np.ones((4, 2, 2)), HOSTILE[0], path=path),
        sheets.contact_sheet(list(clip), [*HOSTILE, "a\nb"], path=path),
        figures.accuracy_over_shots(shot_rows(), path=path),
        figures.reliability({name: ([0.05, 0.5, 1.0], [False, True, True]) for name in HOSTILE}, path=path),
    ]


def shot_rows() -> list[dict[str, object]]:
    """Four datasets, three methods, of which the last one was not run with 16 shots."""
    rows = [
        {"dataset": dataset, "method": method, "shots": shots, "seed": seed, "acc": 40.0 + 10 * number + shots + seed}
        for dataset in ("dtd", *HOSTILE)
        for number, method in enumerate(HOSTILE)
        for shots in (1, 4, 16)
        for seed in (1, 2)
    ]
    return [row for row in rows if (row["method"], row["shots"]) != (HOSTILE[-1], 16)]


def test_pictures_are_the_same_each_time_with_any_names():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layout that does not fit, a name read as a formula
        once, again = pictures(), pictures()
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(once, again))


def test_nothing_is_clipped():
    """The outermost pixels of charts and sheets stay blank: titles, labels and legends fit."""
    made = pictures()
    for picture in [*made[:4], *made[5:]]:
        pixels = np.asarray(picture)
        assert all((edge == 255).all() for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))


def test_written_file_is_the_returned_picture(tmp_path):
    path = tmp_path / "media" / "x.png"
    for picture in pictures(path)[-1:]:
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(picture))
    assert list(path.parent.iterdir()) == [path]


def test_a_test_set_of_one_class_is_drawn():
    for label in (0, 1):
        scores, labels, names = np.linspace(0, 1, 9), np.full(9, label), ["Sora" if label else ""] * 9
        detection_figures.score_histogram(scores, labels, names)
        detection_figures.roc_pr(scores, labels, names)


def test_strip_shows_the_frames_and_colours_the_cell_that_spoke():
    frames = np.full((2, 40, 60, 3), 128, np.uint8)
    heat = np.zeros((2, 2, 2))
    heat[0, 0, 0], heat[1, 1, 1] = 4, -2
    strip = np.asarray(sheets.frame_strip(frames, heat, height=40)).astype(int)
    assert (strip[:40, :60] == 128).all()
    second = strip[43:83]
    red, none, blue = second[5, 5], second[35, 5], second[35, 63 + 55]
    assert red[0] > red[2] + 80
    assert none[0] == none[1] == none[2]
    assert blue[2] > blue[0] + 40
    assert abs(red - none).max() > abs(blue - none).max()  # one scale over the whole clip
    still = np.asarray(sheets.frame_strip(frames, np.zeros((2, 2, 2)), height=40)).astype(int)[43:83, :123]
    assert (still.max(-1) == still.min(-1)).all()


def test_stack_keeps_every_picture_whole():
    red, blue = Image.new("RGB", (30, 10), "red"), Image.new("RGB", (50, 20), "blue")
    sheet = sheets.stack([red, blue], gap=5)
    assert sheet.size == (50, 35)
    assert [sheet.getpixel(at) for at in ((29, 9), (30, 0), (0, 12), (49, 34))] == [(255, 0, 0), (255,) * 3, (255,) * 3, (0, 0, 255)]


def test_wrong_shapes_are_named():
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"float64 \(2, 8, 8, 3\)"):
        sheets.frame_strip(frames / 255)
    with pytest.raises(ValueError, match="for 2 frames"):
        sheets.frame_strip(frames, np.zeros((3, 2, 2)))
    with pytest.raises(ValueError, match="2 images and 1 captions"):
        sheets.contact_sheet(list(frames), ["one"])
    with pytest.raises(ValueError, match=r"metrics\.csv"):
        figures.curves([{"step": "1", "epoch": "0", "other": "2"}])
    with pytest.raises(ValueError, match="3 scores, 2 labels"):
        detection_figures.score_histogram([0, 1, 0], [0, 1], ["", "Sora", ""])
    with pytest.raises(ValueError, match="need rows, and a numeric column"):
        figures.bars([{"name": "a", "value": "b"}])


def test_import_is_cheap():
    code = (
        "import sys, genlab.figures, genlab.reports, genlab.store; print(*({'matplotlib', 'torch', 'jinja2', 'rich'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert result.stdout.strip() == ""


def test_a_run_that_logged_nothing_to_draw_has_no_panels() -> None:
    """Reports of such runs come without curves; asking for them all the same is a mistake."""
    rows = [{"epoch": "0", "step": "3", "train/unreadable": "0.0"}]
    for few in ([], rows):
        assert figures.curve_groups(few)[1] == {}
    with pytest.raises(ValueError, match="is this a run's"):
        figures.curves(rows)
    assert figures.curve_groups([{"step": "3", "train/loss": "0.5"}])[1] == {"Losses": ["train/loss"]}
    learned = {"step": "3", "train/reward": "0.5", "train/reward_boxes": "0.1", "train/loss": "0.5"}
    assert figures.curve_groups([learned])[1]["Rewards"] == ["train/reward", "train/reward_boxes"]
