"""MSTA through the command line: base and novel classes, words of one's own, lambda after the fact; and a run that was stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import lightning as L
import pytest
import torch

from callbacks.preemption import LastCheckpoint
from datamodules.action_video import ActionVideo
from datamodules.tinyworld import make
from genlab.cli import main
from genlab.files import read_csv
from genlab.methods.msta import MSTA
from genlab.training.resume import ExactResume

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("ucf101", tmp_path_factory.mktemp("actions") / "ucf101", progress=False, groups=4, clips=2, size=32)


def test_the_whole_way(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["-c", "tiny/msta", f"--data.root={root}", "--data.num_frames=4", "--trainer.enable_progress_bar=false"]
    assert main(["fit", *common, "--trainer.max_epochs=2", "--data.batch_size=8"]) == 0
    run = tmp_path / "runs/tiny/msta/seed1"
    checkpoint = run / "checkpoints/last.ckpt"
    assert checkpoint.stat().st_size < 2_000_000, "adapters alone, and their optimizer"
    logged = [row for row in read_csv(run / "metrics.csv") if row.get("val/cosine_temporal")]
    assert len(logged) == 2 and all(0 < float(row["val/cosine_spatial"]) <= 1 for row in logged)
    assert main(["test", *common, "--ckpt_path", "last", "--model.test_scales=[0,0.1]", "--data.eval_clips=2"]) == 0
    folder = run / "test-ucf101-base_to_novel"
    results = json.loads((folder / "results.json").read_text())
    metrics, rows = results["metrics"], read_csv(folder / "predictions.csv")
    base, novel = (
        sum(row["called"] == row["label"] for row in rows if row["set"] == name) / sum(row["set"] == name for row in rows)
        for name in ("base", "novel")
    )
    assert metrics["test/base/acc"] == pytest.approx(base) and metrics["test/novel/acc"] == pytest.approx(novel)
    assert metrics["test/harmonic_mean"] == pytest.approx(2 * base * novel / (base + novel))
    assert metrics["test/novel/acc_at_lambda_0.1"] == pytest.approx(novel), "lambda of training is 0.1"
    assert {row["label"] for row in rows if row["set"] == "base"}.isdisjoint(row["label"] for row in rows if row["set"] == "novel")
    assert results["protocol"]["eval_clips"] == 2 and len({row["id"] for row in rows}) == len(rows)
    assert {"lambda.png", "classes_novel.png", "confusions_base.png"} <= {path.name for path in (folder / "media").iterdir()}

    adapters = tmp_path / "adapters.safetensors"
    assert main(["convert", "adapters", str(checkpoint), "--out", str(adapters)]) == 0
    clip = next(root.glob("GoingRight/*.avi"))
    words = "[going to the right, going to the left, singing]"
    for name, more in (("a", ["--ckpt_path", str(checkpoint)]), ("b", [f"--model.adapters={adapters}"])):
        out = [f"--run.name={name}", f"--data.class_names={words}", str(clip)]
        assert main(["predict", *common, *more, *out]) == 0
    found = [read_csv(path) for path in sorted(tmp_path.glob("runs/**/predict*/predictions.csv"))]
    assert len(found) == 2 and found[0][0]["score"] == found[1][0]["score"] and found[0][0]["called_3"]


class KeepAll(LastCheckpoint):
    """Keeps a copy of every ``last.ckpt``."""

    def save(self, trainer: L.Trainer) -> None:
        super().save(trainer)
        shutil.copy(self.path, self.path.with_name(f"{trainer.global_step:03d}.ckpt"))


def test_resumed_is_unbroken(root: Path, tmp_path: Path) -> None:
    def fit(folder: Path, checkpoint: Path | None = None) -> dict[str, torch.Tensor]:
        L.seed_everything(1)
        folder.mkdir()
        model = MSTA("tiny:viclip", blocks=(3, 4), bottleneck=16, scale=0.1, humanize=True, lr=1e-3, warmup_epochs=1)
        data = ActionVideo(str(root), "ucf101", image_size=32, num_frames=4, batch_size=8, eval_batch_size=16, num_workers=0, seed=1)
        trainer = L.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
            inference_mode=False, max_epochs=2, num_sanity_val_steps=0, callbacks=[KeepAll(folder / "last.ckpt", 15, 1), ExactResume()],
        )  # fmt: skip
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return {key: value.clone() for key, value in model.adapters.state_dict().items()}  # type: ignore[union-attr]

    whole = fit(tmp_path / "whole")
    again = fit(tmp_path / "again", tmp_path / "whole" / "003.ckpt")  # within the first epoch
    assert whole.keys() == again.keys() and all(torch.equal(whole[key], again[key]) for key in whole)
