"""Multi-Modal Prompt through the command line: what pictures are taken for, two tuners, a run that was stopped, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from genlab.cli import main
from genlab.diffusion.custom_diffusion import read_custom_diffusion
from genlab.files import read_csv, write_json

pytestmark = pytest.mark.slow

SENTENCE = "--data.prompt=A photo of [img] on the background of [img]"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in (("disc", (200, 40, 40)), ("wall", (40, 40, 200))):
        picture = Image.new("RGB", (72, 64), (200, 180, 140))
        ImageDraw.Draw(picture).ellipse((14, 20, 40, 50), colour)
        picture.save(folder / f"{name}.png")
    return folder


def options(pictures: Path, said: list[dict[str, str]]) -> list[str]:
    return [
        "-c", "tiny/multimodal_prompt", "--data.root=null", SENTENCE, f"--data.images=[{pictures}/disc.png, {pictures}/wall.png]",
        f"--data.concepts={json.dumps(said)}", "--data.batch_size=2", "--data.pictures=2", "--model.prior_images=2",
        "--model.sampling_steps=2", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false",
    ]  # fmt: skip


SAID = [{"foreground": "a red circle"}, {"foreground": "a blue circle", "background": "a striped wall"}]


def test_the_whole_way(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    common = options(pictures, SAID)
    runs = tmp_path / "runs/tiny/multimodal_prompt"
    assert main(["fit", *common, "--run.name=look", "--data.analyse_only=true"]) == 0
    found = json.loads((runs / "look/concepts.json").read_text())
    assert found["generation"] == "A photo of <sks> a red circle on the background of <olis> a striped wall with a blue circle"
    assert found["evaluation"] == "A photo of a red circle on the background of a striped wall with a blue circle"
    assert not list(runs.glob("look/checkpoints/*")) and not (runs / "look/words").exists()
    steps = ["--data.schedule=sequential", "--data.steps_per_concept=2", "--data.jitter=true"]
    assert main(["fit", *common, *steps, "--run.name=whole"]) == 0
    assert main(["fit", *common, *steps, "--run.name=parts", "--trainer.max_steps=2"]) == 0
    assert main(["fit", *common, *steps, "--run.name=parts", "--ckpt_path=last", "--trainer.max_steps=4"]) == 0
    states = [torch.load(runs / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for name in ("whole", "parts")]
    assert states[0].keys() == states[1].keys() and all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    words = [key for key in states[0] if key.startswith("words.")]
    assert len(words) == 2 and all("attn2.to_k" in key or "attn2.to_v" in key for key in states[0] if key not in words)
    assert not torch.equal(states[0][words[0]], states[0][words[1]]), "both words move, each its own way"
    weights = read_custom_diffusion(runs / "whole/custom_diffusion")
    assert all(torch.equal(states[0][f"unet.{name}"], value) for name, value in weights.items()) and weights
    assert {path.name for path in (runs / "whole/words").iterdir()} == {"sks.safetensors", "olis.safetensors"}
    assert main(["test", *common, "--run.name=whole", "--ckpt_path=last"]) == 0
    (tested,) = runs.glob("whole/test-*/results.json")
    metrics = json.loads(tested.read_text())["metrics"]
    assert {"test/lite0_i_1", "test/lite0_i_2", "test/clip_i_1", "test/clip_t", "test/lite0_diversity"} <= metrics.keys()
    assert main(["predict", *common, "--run.name=whole", "--ckpt_path=last", '--data.prompts=["{1} on paper"]']) == 0
    rows = read_csv(next(runs.glob("whole/predict*/predictions.csv")))
    assert {row["prompt"] for row in rows} == {"<sks> a red circle on paper"}
    capsys.readouterr()
    assert main(["fit", *options(pictures, [{}, SAID[1]]), "--run.name=none"]) == 2
    assert "image 1 (disc.png): nobody says what it shows" in capsys.readouterr().err
    assert main(["fit", *options(pictures, SAID[:1]), "--run.name=none"]) == 2
    assert "1 concepts for 2 images" in capsys.readouterr().err
    assert main(["fit", *common, "--run.name=none", "--data.images=[nowhere.png, nowhere.png]"]) == 2
    assert "nowhere.png is not there" in capsys.readouterr().err
    assert not (runs / "none").exists()


def test_one_after_the_other_and_edited_concepts(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As DreamBooth; what concepts.json says goes before what the settings say."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs/tiny/multimodal_prompt/seed1"
    common = options(pictures, SAID)
    assert main(["fit", *common, "--model.tuner=dreambooth", "--data.analyse_only=true"]) == 0
    found = json.loads((run / "concepts.json").read_text())
    found["concepts"][0]["foreground"] = "a round thing"
    write_json(run / "concepts.json", found)
    sequential = ["--data.schedule=sequential", "--data.steps_per_concept=2", "--model.tuner=dreambooth", "--model.lr=1e-4"]
    assert main(["fit", *common, *sequential]) == 0
    assert json.loads((run / "concepts.json").read_text())["generation"].startswith(
        "A photo of sks a round thing on the background of olis"
    )
    held = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert held["global_step"] == 4 and (run / "unet/config.json").is_file()
    (optimizer,) = held["optimizer_states"]
    assert {float(state["step"]) for state in optimizer["state"].values()} == {2.0}, "the second concept began with a fresh one"
