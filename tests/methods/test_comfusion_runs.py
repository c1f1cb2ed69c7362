"""ComFusion through the command line: its files, a run that was stopped, evaluations, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from genlab.cli import main
from genlab.files import read_csv

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("subject") / "star.png"
    drawn = Image.new("RGB", (72, 64), (200, 180, 40))
    ImageDraw.Draw(drawn).rectangle((14, 20, 40, 50), (20, 40, 60))
    drawn.save(path)
    return path


def test_the_whole_way(picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    common = [
        "-c", "tiny/comfusion", f"--data.instance={picture}", "--data.class_name=star", '--data.scenes=["on paper", "in a studio"]',
        "--data.batch_size=2", "--data.pictures=2", "--model.images_per_scene=2", "--model.sampling_steps=2", "--model.fusion_steps=2",
        "--trainer.val_check_interval=4", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    assert main(["fit", *common, "--run.name=whole", "--trainer.max_steps=6"]) == 0
    assert main(["fit", *common, "--run.name=parts", "--trainer.max_steps=4"]) == 0
    assert main(["fit", *common, "--run.name=parts", "--trainer.max_steps=6", "--ckpt_path=last"]) == 0
    whole, parts = (tmp_path / "runs/tiny/comfusion" / name for name in ("whole", "parts"))
    states = [torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for folder in (whole, parts)]
    assert states[0].keys() == states[1].keys() and all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert states[0] and all(".attn2.to_k." in key or ".attn2.to_v." in key or "lora_" in key for key in states[0])
    logged = read_csv(whole / "metrics.csv")
    terms = {name for row in logged for name, value in row.items() if name.startswith("train/loss_") and value}
    assert terms == {f"train/loss_{term}" for term in ("instance", "class_scene", "visual", "textual")}
    assert any(row.get("val/clip_t/on paper") for row in logged) and any(row.get("val/lite0_i") for row in logged)
    best = json.loads((parts / "best_step.json").read_text())
    assert best["best_step"] == 4 and [each["step"] for each in best["points"]] == [4]
    assert (whole / "media/scenes_step000004.png").is_file() and (whole / "media/fidelity_over_scene.png").is_file()
    said = json.loads((whole / "comfusion.json").read_text())
    assert said["scenes"] == ["on paper", "in a studio"] and said["identifier"] == "picture"
    prompts = {json.loads(path.read_text())["prompt"] for path in (tmp_path / "cache/prior_images").glob("*/about.json")}
    assert prompts == {"a star on paper", "a star in a studio"}
    assert main(["test", *common, "--run.name=whole", "--ckpt_path=last", '--data.other_scenes=["on a checked floor"]']) == 0
    (tested,) = whole.glob("test-*/results.json")
    metrics = json.loads(tested.read_text())["metrics"]
    assert {"test/clip_t", "test/clip_i", "test/lite0_i", "test/lite0_diversity", "test/other_scenes_clip_t"} <= metrics.keys()
    assert main(["predict", *common, "--run.name=whole", "--ckpt_path=last", '--data.prompts=["{target} on a dotted wall"]']) == 0
    rows = read_csv(next(whole.glob("predict*/predictions.csv")))
    assert {row["prompt"] for row in rows} == {"a picture star on a dotted wall"} and len(rows) == 2
    capsys.readouterr()
    assert main(["fit", *common, "--run.name=none", "--data.class_name=null"]) == 2
    assert "data.class_name: name what the picture shows" in capsys.readouterr().err
    assert main(["fit", *common, "--run.name=none", "--model.fusion_t_range=[9, 3]"]) == 2
    assert "is no range of timesteps" in capsys.readouterr().err
    assert not (tmp_path / "runs/tiny/comfusion/none").exists()


def test_without_scenes_and_fusion_it_is_dreambooth(picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No encoder is loaded, nothing decoded; the losses are DreamBooth's."""
    monkeypatch.chdir(tmp_path)
    common = [
        f"--data.instance={picture}", "--data.class_name=star", "--data.scenes=[]", "--data.batch_size=2", "--model.sampling_steps=2",
        "--trainer.limit_val_batches=0", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false", "--trainer.max_steps=2",
    ]  # fmt: skip
    off = ["--model.visual_weight=0", "--model.textual_weight=0", "--model.images_per_scene=2", "--model.trained=lora", "--model.lr=1e-3"]
    nowhere = [f'--model.{name}={{"class_path": "genlab.models.picture_encoders.ClipEncoder", "init_args": {{"weights": "/no"}}}}'
               for name in ("visual", "textual")]  # fmt: skip
    assert main(["fit", "-c", "tiny/comfusion", *common, *off, *nowhere]) == 0
    assert main(["fit", "-c", "tiny/dreambooth_subject", *common, "--model.class_images=2", "--model.lr=1e-3"]) == 0
    runs = [tmp_path / f"runs/tiny/{name}/seed1" for name in ("comfusion", "dreambooth_subject")]
    mine, theirs = (read_csv(run / "metrics.csv") for run in runs)
    for name, other in (("loss", "loss"), ("loss_instance", "loss_instance"), ("loss_class_scene", "loss_prior")):
        pairs = ((mine, f"train/{name}"), (theirs, f"train/{other}"))
        found, expected = ([float(row[key]) for row in rows if row.get(key)] for rows, key in pairs)
        assert found == pytest.approx(expected, rel=1e-5) and len(found) == 2
    loras = [load_file(run / "lora/pytorch_lora_weights.safetensors") for run in runs]
    assert all(torch.allclose(loras[0][key], loras[1][key], atol=1e-6) for key in loras[0])
