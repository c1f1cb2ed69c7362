"""Stored features of a frozen backbone: the same training, computed once, continued after a stop, refused where it would be wrong."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.genvideo import GenVideo
from datamodules.transforms import TrainAugmentation
from genlab.batches import VideoBatch
from genlab.errors import UserError
from genlab.methods.demamba import DeMamba
from genlab.models.backbones import TinyPatch
from genlab.models.mamba import MambaOptions

EPOCHS = 3


class Losses(L.Callback):
    """Every step's loss, whether the backbone ran in it, and how many samples were substitutes."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.substituted = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(float(outputs["loss"]))
        self.substituted += int(batch["substituted"].sum())
        assert ("video" in batch) == (pl_module.hparams.cached_views is None)


@pytest.fixture
def root(tiny_genvideo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny set with a clip in it that cannot be read, and a cache of its own."""
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    shutil.copytree(tiny_genvideo, tmp_path / "set")
    for path in sorted((tmp_path / "set").glob("Real*/**/*.mp4"))[:2]:
        path.write_bytes(b"no video")
    return tmp_path / "set"


def data_of(root: Path, **options: Any) -> GenVideo:
    settings = {"image_size": 48, "num_workers": 0, "batch_size": 8, "eval_batch_size": 8, "val_fraction": 0.2, "eval_clips": 2}
    return GenVideo(str(root), **(settings | options))


def model_of(views: int | None, **options: Any) -> DeMamba:
    torch.manual_seed(0)
    settings = {"num_frames": 8, "mamba": MambaOptions(d_state=4), "lr": 3e-3, "train_backbone": False, "cached_views": views}
    return DeMamba(TinyPatch(16, 48, 8), **(settings | options))  # type: ignore[arg-type]


def fit(model: DeMamba, data: L.LightningDataModule, **options: Any) -> tuple[Losses, float]:
    losses = Losses()
    settings = {"max_epochs": EPOCHS, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        accelerator="cpu", callbacks=[losses], use_distributed_sampler=False, enable_model_summary=False, **(settings | options)
    )
    trainer.fit(model, data)
    return losses, float(trainer.callback_metrics["val/ap"])


def stored(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (root.parent / "cache" / "features").rglob("*.safetensors")}


def test_with_as_many_views_as_epochs_training_is_the_same(root: Path) -> None:
    plain, ap = fit(model_of(None), data_of(root))
    cached, cached_ap = fit(model_of(EPOCHS), data_of(root))
    assert len(plain.values) == len(cached.values) > 2 * EPOCHS and plain.substituted == cached.substituted > 0
    torch.testing.assert_close(torch.tensor(cached.values), torch.tensor(plain.values), atol=1e-4, rtol=0)
    assert cached_ap == pytest.approx(ap, abs=0.01) and len(set(plain.values)) > 2 * EPOCHS
    before = stored(root)
    again, _ = fit(model_of(EPOCHS), data_of(root))
    assert again.values == cached.values and stored(root) == before, "nothing was computed the second time"


def test_fewer_views_come_again_and_other_settings_are_other_features(root: Path) -> None:
    data = data_of(root, balance="none")
    fit(model_of(1), data, max_epochs=2)
    dataset, pixels = data.dataset("train"), data.clip_dataset("train")
    first, again = (next(iter(data.train_dataloader())) for _ in range(2))
    assert torch.equal(first["tokens"], again["tokens"])
    draws = {view: data.feature_draws("train", view) for view in (1, 2)}
    whole = len(pixels) // 8 * 8  # incomplete batches are left out
    assert whole < len(draws[1]) <= len(pixels) and len(draws[2]) == 2 * whole
    readable = next(draw for draw in draws[1] if bool(pixels[draw]["readable"]))
    assert dataset[readable]["id"] == pixels[readable]["id"] and dataset[readable]["tokens"].dtype == torch.float16
    folders = {path.parent for path in stored(root)}
    assert len(folders) == 2  # one of train, one of val
    fit(model_of(1), data_of(root, balance="none", augment=TrainAugmentation(flip=1.0)), max_epochs=1)
    assert len({path.parent for path in stored(root)}) == 3, "training clips are others, validation clips the same"
    torch.manual_seed(1)
    other = model_of(1)
    other.configure_model()
    with torch.no_grad():
        next(other.backbone.parameters()).add_(1)
    fit(other, data_of(root, balance="none"), max_epochs=1)
    assert len({path.parent for path in stored(root)}) == 5, "another network, other features"


class Stopped(GenVideo):
    """Breaks off while features are computed, as a killed process does."""

    def feature_loader(self, split: str, draws: Any) -> DataLoader[Any]:
        loader = super().feature_loader(split, draws)
        loader.collate_fn = _break_off(loader.collate_fn)
        return loader


def _break_off(collate: Any) -> Any:
    seen: list[int] = []

    def collated(samples: Any) -> VideoBatch:
        seen.append(1)
        if len(seen) > 2:
            raise KeyboardInterrupt
        return collate(samples)

    return collated


def test_a_stopped_computation_goes_on(root: Path) -> None:
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        stopped = Stopped(**dict(data_of(root).hparams))
        fit(model_of(1), stopped, max_epochs=1)
    before = stored(root)
    assert len(before) == 2
    losses, _ = fit(model_of(1), data_of(root), max_epochs=1)
    assert all(stored(root)[path] == time for path, time in before.items()), "what was there is kept"
    plain, _ = fit(model_of(None), data_of(root), max_epochs=1)
    torch.testing.assert_close(torch.tensor(losses.values), torch.tensor(plain.values), atol=1e-4, rtol=0)


class Bare(L.LightningDataModule):
    """A datamodule without features."""

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.zeros(2, 1))  # type: ignore[arg-type]


def test_what_cannot_be_cached_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"the backbone is trained.*model\.train_backbone to false"):
        model_of(2, train_backbone=True)
    with pytest.raises(UserError, match="cached_views: 0 is too small"):
        model_of(0)
    with pytest.raises(UserError, match="cannot read features in place of its clips"):
        fit(model_of(1), Bare())
    model = model_of(1)
    model.configure_model()
    with torch.no_grad():
        next(model.backbone.parameters()).mul_(1e6)
    with pytest.raises(UserError, match=r"tokens are not finite in torch\.float16"):
        fit(model, data_of(root), max_epochs=1)
