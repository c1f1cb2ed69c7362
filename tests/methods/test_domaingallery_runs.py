"""DomainGallery through the command line: both stages, its files, pictures of other categories, and a run that was stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from genlab.cli import main
from genlab.files import read_csv

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("domain")
    for i in range(4):
        picture = Image.new("RGB", (72, 64), (200, 180, 40 * i))
        ImageDraw.Draw(picture).rectangle((10 + 4 * i, 20, 40, 50), (20, 40, 60))
        picture.save(folder / f"{i}.png")
    return folder


def test_the_whole_way(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))  # cold for the first run, warm for the others
    common = [
        "-c", "tiny/domaingallery", f"--data.root={pictures}", "--data.domain=null", "--data.batch_size=3", "--data.pictures=1",
        "--data.test_pictures=3", "--model.source_images=3", "--model.sampling_steps=2", "--model.erasure_steps=2",
        "--trainer.val_check_interval=4", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    assert main(["fit", *common, "--run.name=whole", "--trainer.max_steps=4"]) == 0
    assert main(["fit", *common, "--run.name=parts", "--trainer.max_steps=2"]) == 0
    assert main(["fit", *common, "--run.name=parts", "--trainer.max_steps=4", "--ckpt_path=last"]) == 0
    whole, parts = (tmp_path / "runs/tiny/domaingallery" / name for name in ("whole", "parts"))
    found = [load_file(folder / "lora/pytorch_lora_weights.safetensors") for folder in (whole, parts)]
    assert found[0].keys() == found[1].keys() and all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert any(value.abs().max() > 0 for key, value in found[0].items() if "lora.up" in key or "lora_B" in key)
    assert "a picture star" in (whole / "lora/README.md").read_text() and (whole / "lora/kohya_lora.safetensors").is_file()
    logged = read_csv(whole / "metrics.csv")
    terms = {name for row in logged for name, value in row.items() if name.startswith("train/loss_") and value}
    assert terms == {f"train/loss_{term}" for term in ("prior", "disen", "erase", "target", "sim")}
    assert (whole / "checkpoints/last.ckpt").stat().st_size < 3_000_000, "the LoRA alone, and its optimizer"
    assert main(["test", *common, "--run.name=whole", "--ckpt_path=last"]) == 0
    assert "lite0_kid_x1000" in capsys.readouterr().out
    assert main(["predict", *common, "--run.name=whole", "--ckpt_path=last", '--data.prompts=["a {V} heart"]']) == 0
    (row,) = read_csv(next(whole.glob("predict-*/predictions.csv")))
    assert row["prompt"] == "a picture heart"
    assert main(["fit", *common, "--run.name=two", "--data.batch_size=2"]) == 2
    assert "needs 3 or more" in capsys.readouterr().err
    assert main(["fit", *common, "--run.name=none", "--data.category=null"]) == 2
