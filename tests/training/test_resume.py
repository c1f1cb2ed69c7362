"""Resuming from every single step, in one process; ``tests/system/test_resume.py`` kills real ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from callbacks.preemption import LastCheckpoint
from datamodules.genvideo import GenVideo
from genlab.methods.demamba import DeMamba
from genlab.models.backbones import TinyPatch
from genlab.models.mamba import MambaOptions
from genlab.training.resume import ExactResume, differences

pytestmark = pytest.mark.slow


class KeepAll(LastCheckpoint):
    """Keeps a copy of every ``last.ckpt``."""

    def save(self, trainer: L.Trainer) -> None:
        super().save(trainer)
        shutil.copy(self.path, self.path.with_name(f"{trainer.global_step:03d}.ckpt"))


def fit(root: Path, folder: Path, checkpoint: Path | None = None, **options: Any) -> tuple[L.Trainer, DeMamba]:
    L.seed_everything(1)
    model = DeMamba(backbone=TinyPatch(8, 48, 8), mamba=MambaOptions(d_state=2, drop_path=0.5), lr=3e-3)
    data = GenVideo(str(root), image_size=48, batch_size=8, eval_batch_size=32, num_workers=0, val_fraction=0.2, seed=1)
    folder.mkdir(exist_ok=True)
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
        max_epochs=2,
        num_sanity_val_steps=0,
        callbacks=[KeepAll(folder / "last.ckpt", 15, 1), ExactResume()],
        **options,
    )
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return trainer, model


@pytest.mark.parametrize(
    "options", [{}, {"val_check_interval": 3}, {"accumulate_grad_batches": 2}], ids=["epochs", "mid_epoch", "accumulate"]
)
def test_every_step_can_be_resumed(tiny_genvideo: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    whole, model = fit(tiny_genvideo, tmp_path / "whole", **options)
    saved = sorted((tmp_path / "whole").glob("0*.ckpt"))
    assert len(saved) > whole.global_step / 2
    again: list[Path] = []
    for checkpoint in saved[:-1]:
        resumed, other = fit(tiny_genvideo, tmp_path / "parts", checkpoint, **options)
        assert resumed.global_step == whole.global_step, checkpoint
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values())), checkpoint
        assert resumed.callback_metrics["val/overall_ap"] == whole.callback_metrics["val/overall_ap"], "the last validation ran again"
        again += [tmp_path / "parts" / f"{int(checkpoint.stem) + 1:03d}.ckpt"]
    second = next(path for path in again if path.is_file())  # a resumed run is resumed
    shutil.copy(second, tmp_path / "second.ckpt")
    resumed, other = fit(tiny_genvideo, tmp_path / "parts", tmp_path / "second.ckpt", **options)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))


def test_differences_name_the_key() -> None:
    saved = {"lr": 1e-3, "mamba": {"d_state": 4}, "_instantiator": "x", "gone": 1}
    now = {"lr": 2e-3, "mamba": MambaOptions(d_state=8)}
    found = differences(saved, now)
    assert "lr was 0.001, is 0.002" in found and "gone was 1, is 'not set'" in found and not any("_instantiator" in line for line in found)
