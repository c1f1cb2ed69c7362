"""Training that waits for its data says so."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from callbacks.throughput import Throughput


class Small(LightningModule):
    def __init__(self, work: int) -> None:
        super().__init__()
        self.layer, self.work = nn.Linear(4, 1), work

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        busy(self.work)
        return self.layer(batch["image"]).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Loader:
    def __init__(self, work: int) -> None:
        self.work = work

    def __len__(self) -> int:
        return 12

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for _ in range(len(self)):
            busy(self.work)
            yield {"image": torch.zeros(2, 4), "label": torch.zeros(2)}


def busy(work: int) -> None:
    """Takes time in proportion."""
    matrix = torch.rand(200, 200)
    for _ in range(work):
        matrix = torch.tanh(matrix @ matrix)


@pytest.mark.parametrize(("step", "load", "said"), [(1, 40, 1), (60, 1, 0)])
def test_waiting_for_data_is_said_once(caplog: pytest.LogCaptureFixture, step: int, load: int, said: int) -> None:
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, log_every_n_steps=3, callbacks=[Throughput()], **options)
    with caplog.at_level(logging.WARNING, "callbacks.throughput"):
        trainer.fit(Small(step), Loader(load))
    lines = [record.message for record in caplog.records if record.name == "callbacks.throughput"]
    assert len(lines) == said and all("waits for data" in line and "num_workers" in line for line in lines)
    wait = float(trainer.callback_metrics["train/data_wait"])
    assert (wait > 0.5) == bool(said)
