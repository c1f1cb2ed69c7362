"""Partial tuning of DeMamba on X-CLIP-B/16 (random weights) with and without stored features: seconds of training, losses, size on disk.

    python benchmarks/token_cache.py          # a few minutes on 2 cores

The tiny world's clips at the paper's 224 x 224, the paper's augmentation, two epochs. ``--model.cached_views 2`` computes the frozen
backbone's tokens of both before the first step; whoever trains a second head, or tries another learning rate, finds them there.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import lightning as L
import torch

from benchmarks.demamba_predict import RandomXCLIP
from datamodules.genvideo import GenVideo
from datamodules.tinyworld import make
from genlab.methods.demamba import DeMamba

EPOCHS = 2


class Steps(L.Callback):
    """Losses, and when the first step began and the last one ended."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.began = self.ended = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began = self.began or time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))
        self.ended = time.perf_counter()


def fit(root: Path, views: int | None, batches: int) -> tuple[Steps, float]:
    """Training, and the seconds before its first step."""
    torch.manual_seed(0)
    model = DeMamba(RandomXCLIP(), train_backbone=False, cached_views=views, lr=1e-4)
    data = GenVideo(str(root), batch_size=4, eval_batch_size=4, num_workers=0, val_fraction=0.2)
    steps = Steps()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=EPOCHS, limit_train_batches=batches, limit_val_batches=0, callbacks=[steps],
        use_distributed_sampler=False, **quiet,
    )  # fmt: skip
    start = time.perf_counter()
    trainer.fit(model, data)
    return steps, steps.began - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=4, help="of 4 clips, in an epoch")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        os.environ["GENLAB_CACHE"] = name
        root = make("genvideo", Path(name) / "set", progress=False, train_clips=12, test_clips=1)
        runs = {
            "backbone in every step": fit(root, None, given.batches),
            "stored, first fit": fit(root, EPOCHS, given.batches),
            "stored, second fit": fit(root, EPOCHS, given.batches),
        }
        files = list((Path(name) / "features").rglob("*.safetensors"))
        size = sum(path.stat().st_size for path in files)
    clips = EPOCHS * given.batches * 4
    plain = runs["backbone in every step"][0]
    print(f"{EPOCHS} epochs of {clips // EPOCHS} clips, {given.threads} threads; {size / clips / 1e6:.2f} MB a clip on disk")
    for way, (steps, before) in runs.items():
        per_clip = (steps.ended - steps.began) / clips
        faster = (plain.ended - plain.began) / (steps.ended - steps.began)
        apart = max(abs(a - b) for a, b in zip(steps.losses, plain.losses))
        print(
            f"  {way:<24}{before:8.1f} s before, then {per_clip:7.3f} s a clip {faster:7.1f} x   largest difference of a loss {apart:.1e}"
        )


if __name__ == "__main__":
    main()
