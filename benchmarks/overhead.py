"""What GenLab adds to a training step, and how long training stands still while a checkpoint is written.

    python benchmarks/overhead.py            # two or three minutes on 2 cores

One fit through the command line's own door, with all callbacks, records and loggers. Its loader hands out a batch, and before the next
one takes a step of a hand-written loop on a copy of the network with the same batch: the two ways take turns step by step, in one process.
A step of GenLab is all that happens between two batches asked for. Every ``--every`` steps ``last.ckpt`` is written; these steps are
counted apart. Times are the clock's, and the processor time of this process beside them, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F

REACH = 1.03


class TurnsLoader:
    """Hands out random clips; between two of them, a step by hand.

    Args:
        data: Has the Trainer, and gets the times.
        warm_up: Steps that do not count.
    """

    def __init__(self, data: Turns, warm_up: int = 10) -> None:
        self.data, self.warm_up = data, warm_up

    def __len__(self) -> int:
        return self.data.steps + self.warm_up

    def __iter__(self) -> Iterator[dict[str, Any]]:
        module = self.data.trainer.lightning_module
        network = copy.deepcopy(module.backbone), copy.deepcopy(module.head)
        for part in network:
            part.train()
        optimizer = torch.optim.AdamW([p for part in network for p in part.parameters()], lr=1e-4, weight_decay=0.05)
        generator = torch.Generator().manual_seed(0)
        video = torch.randn(self.data.batch_size, 8, 3, 64, 64, generator=generator)
        label = torch.arange(self.data.batch_size) % 2
        batch = {"video": video, "label": label, "substituted": torch.zeros(len(label), dtype=torch.bool)}
        for step in range(len(self)):
            began = now()
            backbone, head = network
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(head(*backbone(video)), label.float())
            loss.backward()
            optimizer.step()
            middle = now()
            yield batch
            ended = now()
            if step >= self.warm_up:
                TIMES.append((middle - began, ended - middle, module.global_step))


def now() -> np.ndarray:
    """Seconds of the clock, and of processor time."""
    return np.array([time.perf_counter(), time.process_time()])


class Turns(L.LightningDataModule):
    """Data of :class:`TurnsLoader`.

    Args:
        steps: That are counted.
        batch_size: Clips of 8 frames of 64 x 64.
    """

    def __init__(self, steps: int = 200, batch_size: int = 32) -> None:
        super().__init__()
        self.steps, self.batch_size = steps, batch_size

    def train_dataloader(self) -> TurnsLoader:
        return TurnsLoader(self)


TIMES: list[tuple[np.ndarray, np.ndarray, int]] = []
"""Seconds by hand, seconds through GenLab (each by the clock and of the processor), optimizer steps done."""


def interval(ratios: np.ndarray) -> tuple[float, float]:
    """95 % of the median, by resampling."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    return float(np.quantile(medians, 0.025)), float(np.quantile(medians, 0.975))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=10, help="steps between two checkpoints")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=32, help="channels of the network; more make checkpoints larger")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    from benchmarks import overhead  # the module that the configuration names, not this script
    from genlab.cli import main as genlab

    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        Path("overhead.yaml").write_text(
            f"model: {{class_path: genlab.methods.demamba.DeMamba, init_args: {{zone_size: 1, mamba: {{d_state: 4}}, lr: 1.0e-4, "
            f"backbone: {{class_path: genlab.models.tiny_conv.TinyConv, init_args: {{width: {given.width}}}}}}}}}\n"
            f"data: {{class_path: benchmarks.overhead.Turns, init_args: {{steps: {given.steps}, batch_size: {given.batch}}}}}\n"
            "trainer: {accelerator: cpu, max_epochs: 1, limit_val_batches: 0, enable_progress_bar: true}\n"
            f"run: {{checkpoint_steps: {given.every}}}\n"
        )
        code = genlab(["fit", "-c", "overhead.yaml"])
        size = sum(path.stat().st_size for path in Path("runs").rglob("last.ckpt"))
        if code:
            sys.exit(code)
    hand, through, done = (np.array(column) for column in zip(*overhead.TIMES))
    saving = done % given.every == 0
    step, met = float(np.median(hand[:, 0])), True
    print(f"{len(hand)} steps of each way, {step * 1000:.0f} ms by hand" + (" (less than the 100 ms of the claim)" if step < 0.1 else ""))
    for number, what in enumerate(("the clock", "processor time")):
        by_hand, by_us = hand[:, number], through[:, number]
        ratios = (by_us / by_hand)[~saving]
        low, high = interval(ratios)
        print(f"through GenLab, by {what}: {np.median(ratios):.4f} x by hand (95 %: {low:.4f} to {high:.4f}); wanted: at most {REACH}")
        usual = np.median(by_us[~saving])
        stall, worst = np.median(by_us[saving]) - usual, by_us[saving].max() - usual
        parts = f"{stall * 1000:.0f} ms, {stall / np.median(by_hand):.2f} of a step (worst {worst / np.median(by_hand):.2f})"
        print(f"  writing a checkpoint of {size / 1e6:.1f} MB: {parts}; wanted: less than one")
        met = met and np.median(ratios) <= REACH and stall < np.median(by_hand)
    print("met" if met else "missed")


if __name__ == "__main__":
    main()
