"""DreamBooth's benchmark through the command line: two methods, one subject, scored from the files that they drew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from datamodules.tinyworld import tiny_root
from genlab.cli import main
from genlab.files import read_csv
from genlab.models.scoring_towers import ClipScorer
from genlab.verbs.subjects import means

COMMON = ["subjects", "--root", "tiny:dreambooth", "--subjects", "heart", "--clip", "tiny:clip", "--dino", "none", "--experiments", "tiny"]
SHORT = ["--prompts", "2", "--pictures", "2", "--trainer.max_steps=1", "--trainer.val_check_interval=1", "--model.sampling_steps=2"]


@pytest.mark.slow
def test_methods_are_scored_alike_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    command = [*COMMON, *SHORT, "--methods", "comfusion,dreambooth_subject", "--out", "out"]
    assert main(command) == 0
    assert "dreambooth_subject" in capsys.readouterr().out and (tmp_path / "out/report.html").is_file()
    rows = read_csv(tmp_path / "out/results.csv")
    assert [row["method"] for row in rows] == ["comfusion", "dreambooth_subject"] and {row["n"] for row in rows} == {"4"}
    drawn = {row["prompt"] for row in read_csv(tmp_path / rows[0]["run"] / "predictions.csv")}
    assert len(drawn) == 2 and all("picture heart" in prompt for prompt in drawn), "the identifier and the class"

    def read(path: Path) -> torch.Tensor:
        picture = ImageOps.fit(Image.open(path).convert("RGB"), (256, 256), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255

    clip, real = ClipScorer("tiny:clip"), sorted((tiny_root("tiny:dreambooth") / "dataset/heart").glob("*.jpg"))
    made = sorted((tmp_path / rows[0]["run"] / "pictures").glob("*.png"))
    one, other = (clip(torch.stack([read(path) for path in paths])) for paths in (made, real))
    assert float(rows[0]["clip_i"]) == pytest.approx(float((one @ other.T).mean()), abs=0.01) and len(made) == 4
    logs = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/logs").iterdir()}
    assert main(command) == 0
    assert logs == {path: path.stat().st_mtime_ns for path in (tmp_path / "out/logs").iterdir()}, "what is done is left alone"


def test_what_the_user_can_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENLAB_WEIGHTS", str(tmp_path))
    for more, said in (
        (["--methods", "comfusionn"], "did you mean 'comfusion'?"),
        (["--methods", "cpr"], "there is no 'cpr'"),
        (["--methods", "comfusion", "--subjects", "dogg"], "There are circle"),
        (["--methods", "comfusion", "--root", str(tmp_path)], "prompts_and_classes.txt is not there"),
        (["--methods", "comfusion", "--seeds", "a"], "'a' is no number"),
        (["--methods", "comfusion", "--pictures", "0"], "are 1 or more"),
        (["--methods", "comfusion", "--clip", "openai/clip-vit-base-patch32"], "openai/clip-vit-base-patch32 is not on this machine"),
    ):
        assert main([*COMMON, *more]) == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_means_are_over_subjects_then_over_seeds() -> None:
    rows = [{"method": "a", "subject": name, "seed": seed, "clip_i": value, "clip_t": 0.5} for name, seed, value in
            (("x", 1, 0.2), ("y", 1, 0.4), ("x", 2, 0.4), ("y", 2, 0.6))]  # fmt: skip
    (line,) = means(rows)
    assert (line["subjects"], line["seeds"]) == (2, 2) and line["dino_i"] is None
    assert line["clip_i"] == pytest.approx(0.4) and line["clip_i ±"] == pytest.approx(0.1 * 2**0.5) and line["clip_t ±"] == 0
