"""Textual Inversion through the command line: the new word alone is trained, saved, resumed and read by diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from genlab.cli import main
from genlab.files import read_csv
from genlab.methods.baselines.textual_inversion import EMBEDDINGS, TextualInversion
from genlab.weights import resolve

pytestmark = pytest.mark.slow


def test_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        picture = Image.new("RGB", (64, 64), (200, 180, 40 * i))
        ImageDraw.Draw(picture).ellipse((10 + 4 * i, 20, 40, 50), (20, 40, 60))
        picture.save(tmp_path / "pictures" / f"{i}.png")
    common = [
        "-c", "tiny/textual_inversion", f"--data.root={tmp_path / 'pictures'}", "--data.domain=null", "--data.batch_size=2",
        "--data.pictures=1", "--data.test_pictures=2", "--model.sampling_steps=2", "--model.vectors=2", "--trainer.val_check_interval=4",
        "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    assert main(["fit", *common, "--run.name=whole", "--trainer.max_steps=4"]) == 0
    assert main(["fit", *common, "--run.name=parts", "--trainer.max_steps=2"]) == 0
    assert main(["fit", *common, "--run.name=parts", "--trainer.max_steps=4", "--ckpt_path=last"]) == 0
    whole, parts = (tmp_path / "runs/tiny/textual_inversion" / name for name in ("whole", "parts"))
    learned = load_file(whole / "embeddings" / EMBEDDINGS)
    assert learned["<domain>"].shape == (2, 128) and torch.equal(
        learned["<domain>"], load_file(parts / "embeddings" / EMBEDDINGS)["<domain>"]
    )
    state = torch.load(whole / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert list(state) == ["words.embeds"], "all networks stay as they are"
    assert not torch.equal(state["words.embeds"][0], state["words.embeds"][1]), "both vectors begin alike and learn"

    assert main(["test", *common, "--run.name=whole", "--ckpt_path=last"]) == 0
    assert "lite0_kid_x1000" in capsys.readouterr().out
    assert main(["predict", *common, "--run.name=whole", "--ckpt_path=last", '--data.prompts=["a {V} on a wall"]']) == 0
    folder = next(whole.glob("predict-*"))
    assert read_csv(folder / "predictions.csv")[0]["prompt"] == "a <domain> on a wall"

    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(resolve("tiny:sd"), torch_dtype=torch.float32)
    pipe.load_textual_inversion(str(whole / "embeddings" / EMBEDDINGS))
    method = TextualInversion.load_from_checkpoint(whole / "checkpoints/last.ckpt")
    method.configure_model()
    method.load_state_dict(state, strict=False)
    mine = method.states(["a <domain> on a wall", "a star"])
    theirs = pipe.encode_prompt("a <domain> on a wall", torch.device("cpu"), 1, False)[0]
    assert torch.allclose(mine[0], theirs[0], atol=1e-4)
    assert not torch.allclose(mine[0], mine[1], atol=1e-2)

    capsys.readouterr()
    assert main(["fit", *common, "--run.name=bad", "--model.identifier=star"]) == 2
    assert "is a token of the text tower already" in capsys.readouterr().err
    assert main(["fit", *common, "--run.name=bad", "--model.templates=[a star]"]) == 2
    assert "one vector or more" in capsys.readouterr().err
    assert not (tmp_path / "runs/tiny/textual_inversion/bad").exists()
