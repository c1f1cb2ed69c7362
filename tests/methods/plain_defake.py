"""Runs of fine-tuning on the plain tiny world, as small as they can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L

from datamodules.grounding import Grounding
from datamodules.sampling import TrainLoader
from datamodules.tinyworld import make
from genlab.training.randomness import keyed_rng


def plain_world(folder: Path, train: int = 64, test: int = 8) -> Path:
    """The world; ``words_<split>.jsonl`` has verdicts alone, of as many bright as dark pictures, ``blind_<split>.jsonl`` drawn by lot."""
    root = make("plain_defake", folder / "world", progress=False, train=train, test=test)
    for split in ("train", "test"):
        lines = [json.loads(line) for line in (root / f"grounding_{split}.jsonl").read_text().splitlines()]
        dark = [line for line in lines if "/dim/" in line["images"][0]]
        lines = [*dark, *[line for line in lines if line["images"][0].startswith("real/")][: len(dark)]]
        lots = keyed_rng("lots", split).integers(2, size=len(lines))
        for line in lines:
            line["messages"][0]["content"] = "<image>Real?"
        for name, generated in (("words", ["objects" in line for line in lines]), ("blind", lots)):
            for line, each in zip(lines, generated):
                line.pop("objects", None)
                line["messages"][-1]["content"] = f"<verdict>{'generated' if each else 'real'}</verdict>"
            (root / f"{name}_{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


def words_of(root: Path, **options: Any) -> Grounding:
    defaults = {"train": "words_train.jsonl", "test": "words_test.jsonl", "val_share": 0.0, "batch_size": 16, "eval_batch_size": 16}
    return Grounding(str(root), **(defaults | options))


def trainer(folder: Path, steps: int, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    return L.Trainer(
        default_root_dir=folder, accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0, limit_val_batches=0,
        callbacks=list(callbacks), **({"gradient_clip_val": 1.0} | options),
    )  # fmt: skip


class SaveAt(L.Callback):
    """Writes a checkpoint after so many optimizer steps, with where the loader was."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            trainer.save_checkpoint(self.path)
            assert isinstance(trainer.train_dataloader, TrainLoader)


class Rewards(L.Callback):
    """Keeps the mean reward of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seen.append(float(trainer.callback_metrics["train/reward"]))
