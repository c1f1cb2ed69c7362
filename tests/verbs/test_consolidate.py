"""``genlab convert consolidate``: one file out of FSDP's shards. DeepSpeed's come from real processes, tests/system/test_deepspeed.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed.checkpoint as shards

from genlab.cli import main as door
from genlab.errors import USER_ERROR
from genlab.methods.demamba import DeMamba
from genlab.models.mamba import MambaOptions
from genlab.models.tiny_conv import TinyConv


def small(**options: Any) -> DeMamba:
    torch.manual_seed(1)
    model = DeMamba(TinyConv(width=16), zone_size=1, mamba=MambaOptions(d_state=4), **options)
    model.configure_model()
    return model


def write_shards(model: DeMamba, folder: Path) -> None:
    """What FSDPStrategy.save_checkpoint writes, frozen weights included, of one rank."""
    trainer = L.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    trainer.strategy.connect(model)
    held = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    shards.save({"model": model.state_dict()}, checkpoint_id=folder, no_dist=True)
    torch.save({key: value for key, value in held.items() if key != "state_dict"}, folder / "meta.pt")


@pytest.mark.parametrize("train_backbone", [True, False])
def test_one_file_of_fsdps_shards_loads_and_is_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str], train_backbone: bool) -> None:
    model, folder = small(train_backbone=train_backbone), tmp_path / "last.ckpt"
    write_shards(model, folder)
    assert door(["convert", "consolidate", str(folder)]) == 0
    said, one = capsys.readouterr().out, tmp_path / "last-consolidated.ckpt"
    again = DeMamba.load_from_checkpoint(one, weights_only=True)
    trained = {key: value for key, value in model.state_dict().items() if train_backbone or not key.startswith("backbone.")}
    held = torch.load(one, weights_only=True)["state_dict"]
    assert held.keys() == trained.keys() and f"{len(trained)} tensors" in said, "frozen weights are left out"
    for key, value in trained.items():
        assert torch.equal(again.state_dict()[key], value), key


def test_what_is_not_whole_is_refused_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "last.ckpt"
    write_shards(small(), folder)
    next(folder.glob("*.distcp")).unlink()
    assert door(["convert", "consolidate", str(folder)]) == USER_ERROR
    assert "are not whole" in capsys.readouterr().err
    (tmp_path / "file.ckpt").write_bytes(b"")
    assert door(["convert", "consolidate", str(tmp_path / "file.ckpt")]) == USER_ERROR
    assert "is one file already" in capsys.readouterr().err
    assert door(["convert", "consolidate", str(tmp_path)]) == USER_ERROR
    assert "is no sharded checkpoint" in capsys.readouterr().err
    assert not list(tmp_path.glob("*consolidated*"))
