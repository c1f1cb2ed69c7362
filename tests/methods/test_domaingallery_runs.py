"""DomainGallery through the command line: both stages, its files, pictures of other categories, a run that was stopped, and bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from genlab.cli import main
from genlab.diffusion.lora import lora_state
from genlab.files import read_csv
from genlab.methods.domaingallery import DomainGallery
from genlab.weights import resolve

pytestmark = pytest.mark.slow
QUICK = [
    "-c", "tiny/domaingallery", "--data.domain=null", "--data.batch_size=3", "--data.pictures=1", "--data.test_pictures=3",
    "--model.source_images=4", "--model.sampling_steps=2", "--model.erasure_steps=2", "--trainer.val_check_interval=4",
    "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false",
]  # fmt: skip


def draw(path: Path, number: int) -> None:
    picture = Image.new("RGB", (72, 64), (200, 180, 40 * number))
    ImageDraw.Draw(picture).rectangle((10 + 4 * number, 20, 40, 50), (20, 40, 60))
    picture.save(path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("domain")
    for i in range(7):  # of which two and a half batches are an epoch
        draw(folder / f"{i}.png", i)
    return folder


@pytest.fixture(scope="module")
def runs(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``whole`` of four steps, and ``parts`` of two that went on to four, which ends the first part with an epoch."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("GENLAB_CACHE", str(folder / "cache"))  # cold for the first run, warm for the others
        common = [*QUICK, f"--data.root={pictures}"]
        assert main(["fit", *common, "--run.name=whole", "--trainer.max_steps=4"]) == 0
        assert main(["fit", *common, "--run.name=parts", "--trainer.max_steps=2"]) == 0
        assert main(["fit", *common, "--run.name=parts", "--trainer.max_steps=4", "--ckpt_path=last"]) == 0
    return folder / "runs/tiny/domaingallery"


def test_a_resumed_run_is_the_unbroken_one(runs: Path) -> None:
    """Whatever was cached, and whatever company pictures and prompts were encoded in."""
    found = [load_file(runs / name / "lora/pytorch_lora_weights.safetensors") for name in ("whole", "parts")]
    assert found[0].keys() == found[1].keys() and all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert any(value.abs().max() > 0 for key, value in found[0].items() if "lora.up" in key or "lora_B" in key)


def test_a_second_stage_begins_with_the_file_of_a_first_one(
    runs: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = runs / "whole/lora/pytorch_lora_weights.safetensors"
    fresh, begun = (DomainGallery("tiny:sd", "picture", rank=16, init_lora=name) for name in (None, str(file)))
    for method in (fresh, begun):
        method.configure_model()
    held = load_file(file)
    for name, value in lora_state(begun.network).items():
        assert torch.equal(value, held[f"unet.{name}"] if f"unet.{name}" in held else held[spelled(name)]), name
    plain, same = ({n: v for n, v in m.unet.state_dict().items() if "lora_" not in n} for m in (fresh, begun))
    assert all(torch.equal(value, same[name]) for name, value in plain.items())
    assert [n for n, p in begun.named_parameters() if p.requires_grad] == [n for n, p in fresh.named_parameters() if p.requires_grad]
    monkeypatch.chdir(tmp_path)
    for option, said in (
        (f"--model.init_lora={tmp_path / 'none.safetensors'}", "is not there"),
        (f"--model.init_lora={runs / 'whole/lora/kohya_lora.safetensors'}", "diffusers' format is read"),
        ("--model.identifier=photo", "was trained with identifier 'picture', here 'photo'"),
        ("--model.rank=8", "do not fit"),
    ):
        given = [*QUICK, f"--data.root={pictures}", f"--model.init_lora={file}", option, "--trainer.max_steps=1"]
        assert main(["fit", *given]) == 2, option
        assert said in capsys.readouterr().err, option


def spelled(name: str) -> str:
    """As diffusers writes it."""
    return f"unet.{name.replace('.lora_A.', '.lora.down.').replace('.lora_B.', '.lora.up.')}"


def test_what_a_run_leaves(runs: Path) -> None:
    card = (runs / "whole/lora/README.md").read_text()
    assert "a picture star" in card and "load_lora_weights" in card and (runs / "whole/lora/kohya_lora.safetensors").is_file()
    logged = read_csv(runs / "whole/metrics.csv")
    terms = {name for row in logged for name, value in row.items() if name.startswith("train/loss_") and value}
    assert any(row.get("val/leak") for row in logged) and any(row.get("val/bound") for row in logged)
    assert terms == {f"train/loss_{term}" for term in ("prior", "disen", "erase", "target", "sim")}
    assert (runs / "whole/checkpoints/last.ckpt").stat().st_size < 3_000_000, "the LoRA alone, and its optimizer"
    assert (runs / "whole/media/val_step000004.png").is_file()


def test_measured_and_drawn_in_every_mode(
    runs: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs.parents[2])
    common = [*QUICK, f"--data.root={pictures}", "--run.name=whole", "--ckpt_path=last"]
    more = ["--model.measures.clip=tiny:clip", f"--data.reference={pictures}", "--model.target_prompt=a {N} {V}"]
    assert main(["test", *common, *more]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("lite0_kid_x1000", "lite0_fid", "lite0_intra", "clip_t", "clip_i"))
    rows = read_csv(next(runs.glob("whole/test-*")) / "predictions.csv")
    assert {row["prompt"] for row in rows} == {"a star picture"}, "the method's own prompt, not a fixed one"

    prompts = '--data.prompts=["{target}", "a {V} heart", "a {V} heart on a wall", "{source}"]'
    assert main(["predict", *common, prompts, "--model.enhancement=all"]) == 0
    folder = next(runs.glob("whole/predict-*"))
    drawn = {path.stem: np.asarray(Image.open(path)) for path in (folder / "pictures").iterdir()}
    assert set(drawn) == {"00-0000", "03-0000"} | {f"0{i}-0000-{mode}" for i in (1, 2) for mode in ("off", "v-uncond", "vn-n")}
    assert not np.array_equal(drawn["01-0000-off"], drawn["01-0000-v-uncond"])
    assert not np.array_equal(drawn["01-0000-vn-n"], drawn["01-0000-v-uncond"])
    assert (folder / "media/grid.png").is_file()
    assert {row["prompt"] for row in read_csv(folder / "predictions.csv")} == {
        "a picture star", "a picture heart", "a picture heart on a wall", "a star",
    }  # fmt: skip


def test_a_subject_beside_the_domain(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    draw(tmp_path / "mine/0.png", 3)
    common = [*QUICK, f"--data.root={pictures}", "--model.erasure_steps=1", "--model.subject_identifier=photo", "--model.sim_weight=0"]
    subject = [f"--data.subject={tmp_path / 'mine'}", "--data.subject_category=circle"]
    assert main(["fit", *common, *subject, "--trainer.max_steps=2"]) == 0
    assert "estimate, of one picture measured" in capsys.readouterr().err
    run = tmp_path / "runs/tiny/domaingallery/seed1"
    last = read_csv(run / "metrics.csv")
    assert any(row.get("train/loss_subject") and row.get("train/loss_subject_prior") for row in last)
    drawn = ["--ckpt_path=last", '--data.prompts=["a {V} {S} {M}"]']
    assert main(["predict", *common, *subject, *drawn]) == 0
    assert read_csv(next(run.glob("predict-*")) / "predictions.csv")[0]["prompt"] == "a picture photo circle"
    assert main(["predict", *common, *drawn]) == 2
    assert "use {V}, {N}" in capsys.readouterr().err, "without a subject there is nothing that S stands for"


def test_bad_pictures_and_settings(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message each, exit code 2, and no run folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "bad"
    shutil.copytree(pictures, folder)
    few = tmp_path / "few"
    few.mkdir()
    for i in range(2):
        draw(few / f"{i}.png", i)
    still = Image.new("RGB", (64, 64))
    still.save(folder / "moves.gif", save_all=True, append_images=[Image.new("RGB", (64, 64), "white")])
    Image.new("CMYK", (64, 64)).save(folder / "inks.jpg")
    (folder / "torn.png").write_bytes((folder / "0.png").read_bytes()[:60])
    cases = {
        f"--data.root={folder}": ["moves.gif (animated", "inks.jpg (CMYK", "torn.png (unreadable"],
        f"--data.root={few}": ["2 pictures; a domain is what several share. Give 3 or more"],
        "--data.batch_size=2": ["needs 3 or more"],
        "--model.source_images=2": ["needs 3 or more"],
        "--data.category=null": ["name what the pictures show"],
        "--model.eight_bit_adam=true": ["bitsandbytes, which is not installed"],
        "--data.subject=/nowhere": ["data.subject and data.subject_category go together"],
        "--model.target_prompt=a {X}": ["use {V}, {N}"],
    }
    for option, said in cases.items():
        assert main(["fit", *QUICK, f"--data.root={pictures}", option, "--trainer.max_steps=1"]) == 2, option
        message = capsys.readouterr().err
        assert all(each in message for each in said), message
        assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("run.json")), option


def test_pipelines_that_are_not_what_they_should_be(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = Path(resolve("tiny:sd"))

    def copy(name: str) -> Path:
        return Path(shutil.copytree(whole, tmp_path / name))

    shutil.rmtree(copy("parts_missing") / "vae")
    for name, part, change in (
        ("other_prediction", "scheduler/scheduler_config.json", {"prediction_type": "sample"}),
        ("larger", "unet/config.json", {"in_channels": 9}),
    ):
        file = copy(name) / part
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    (copy("sdxl") / "text_encoder_2").mkdir()
    (tmp_path / "one.safetensors").touch()
    for name, said in {
        "parts_missing": "no whole Stable Diffusion: vae/ missing",
        "other_prediction": "the scheduler's prediction_type is 'sample'; epsilon and v_prediction are understood",
        "sdxl": "is an SDXL",
        "larger": "takes 9 channels, its latents have 16",
        "one.safetensors": "A folder in diffusers' format is read",
    }.items():
        options = [f"--data.root={pictures}", f"--model.backbone={tmp_path / name}", "--trainer.max_steps=1"]
        assert main(["fit", *QUICK, *options]) == 2, name
        assert said in capsys.readouterr().err, name
        assert not list((tmp_path / "runs").rglob("run.json")), name
