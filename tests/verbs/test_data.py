"""``genlab data`` as a user calls it, on a small GenVideo and on broken copies."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.tinyworld.genvideo import write_frames_layout
from genlab.errors import MissingPath, UserError
from genlab.verbs.data import main

SMALL = ["--train_clips", "2", "--test_clips=2", "--size", "32"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "set"
    assert main(["make", "genvideo", "--root", str(root), *SMALL]) == 0
    return root


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in root.rglob("*")}


def test_make_takes_the_options_of_the_writer(whole: Path, tmp_path: Path) -> None:
    assert len(list((whole / "train_flicker").iterdir())) == 2
    main(["make", "genvideo", "--root", str(tmp_path / "other"), "--seed", "1", "--train_clips", "1", "--test_clips", "1", "--size", "32"])
    first = Path("train_flicker/clip_00000.mp4")
    assert (tmp_path / "other" / first).read_bytes() != (whole / first).read_bytes()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["make", "genvid", "--root", "x"], "did you mean 'genvideo'"),
        (["make", "genvideo", "--root", "x", "--trian_clips", "3"], "did you mean '--train_clips'"),
        (["chekc", "genvideo"], "did you mean 'check'"),
        (["check", "captions", "--root", "x"], "not for captions yet"),
        (["check", "genvideo", "--root", "x", "--out", "x.txt"], ".json or .csv"),
        (["check", "genvideo", "--root", "x", "--workers", "-1"], "--workers -1"),
        (["show", "genvideo", "--root", "x", "--per", "0"], "--per 0"),
    ],
)
def test_mistakes_are_told_before_anything_is_done(args: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(args)
    assert list(Path().iterdir()) == []


def test_a_root_that_is_not_there() -> None:
    with pytest.raises(MissingPath, match="is not a folder"):
        main(["check", "genvideo", "--root", "nowhere"])


def test_check_of_a_whole_set(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(whole)
    assert main(["check", "genvideo", "--root", str(whole), "--workers", "0", "--out", "report.json"]) == 0
    assert main(["check", "genvideo", "--root", str(whole), "--level", "quick"]) == 0
    assert snapshot(whole) == before
    printed = capsys.readouterr().out
    assert "full check: 0 errors, 0 warnings" in printed and "quick check: 0 errors" in printed and "checkerboard" in printed
    report = json.loads(Path("report.json").read_text())
    assert report["errors"] == [] and len(report["counts"]) == 14


def test_check_of_a_broken_set_fails_and_names_the_files(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shutil.copytree(whole, tmp_path / "set")
    (root / "Real" / "clip_00000.mp4").write_bytes(b"")
    shutil.copy(root / "Real" / "clip_00001.mp4", root / "GenVideo-Val" / "Fake" / "wobble" / "clip_00009.mp4")
    assert main(["check", "genvideo", "--root", str(root), "--workers", "0", "--out", "findings.csv"]) == 1
    printed = capsys.readouterr().out
    assert "error: 1 clip with nothing in them: Real/clip_00000.mp4" in printed
    assert "labelled fake, the same as Real/clip_00001.mp4, labelled real" in printed
    with Path("findings.csv").open(newline="") as file:
        rows = [(row["problem"], row["path"]) for row in csv.DictReader(file)]
    copy = "GenVideo-Val/Fake/wobble/clip_00009.mp4"
    assert rows == [("empty", "Real/clip_00000.mp4"), ("conflict", copy), ("conflict", "Real/clip_00001.mp4"), ("overlap", copy)]


def test_check_of_lists_with_a_missing_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "frames"
    train, _, test = write_frames_layout(root, clips=1, size=32)
    with train.open("a") as file:
        file.write('fake/pika/gone,fake/pika/gone/1.jpg,,1,1,"[1]"\n')
    lists = ["--train_list", str(train), "--test_list", str(test)]
    assert main(["check", "genvideo", "--root", str(root), "--workers", "0", *lists]) == 1
    assert "not there though listed: fake/pika/gone" in capsys.readouterr().out


def test_nothing_is_written_into_the_dataset(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(whole)
    with pytest.raises(UserError, match="lies in the dataset"):
        main(["check", "genvideo", "--root", str(whole), "--out", str(whole / "findings.csv")])
    monkeypatch.chdir(whole)
    with pytest.raises(UserError, match="lies in the dataset"):
        main(["show", "genvideo", "--root", str(whole)])
    assert snapshot(whole) == before


def test_show_makes_a_sheet_with_a_row_per_generator_and_split(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shutil.copytree(whole, tmp_path / "set")
    (root / "train_flicker" / "clip_00000.mp4").write_bytes(b"junk")
    assert main(["show", "genvideo", "--root", str(root), "--per", "3"]) == 0
    out = Path("genvideo-sheet.png").resolve()
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as sheet:
        width, height = sheet.size
        assert np.asarray(sheet).std() > 20
    assert 1 < (height / 14) / (width / 6) < 1.4  # 14 rows of 3 clips with 2 square frames each, and captions


def test_show_reads_extracted_frames(tmp_path: Path) -> None:
    root = tmp_path / "frames"
    write_frames_layout(root, clips=1, size=32, flaws=True)
    assert main(["show", "genvideo", "--root", str(root), "--out", "frames.jpg", "--per", "1"]) == 0
    with Image.open("frames.jpg") as sheet:
        assert sheet.format == "JPEG"


@pytest.mark.slow
@pytest.mark.system
def test_a_check_that_is_terminated_says_so_and_goes_on(whole: Path) -> None:
    command = [sys.executable, "-m", "genlab", "data", "check", "genvideo", "--root", str(whole), "--workers", "0"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as check:
        assert check.stderr is not None
        seen = ""
        while not re.search(r" 0/\d+", seen) and (letter := check.stderr.read(1)):
            seen += letter
        check.send_signal(signal.SIGTERM)
        out, _ = check.communicate()
    assert (check.returncode, "the same command goes on" in out) == (75, True)
    assert subprocess.run(command, env=env, capture_output=True).returncode == 0
