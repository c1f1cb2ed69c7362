"""Classifiers that are measured on sets of their own classes, one after the other: what each set needs, its metrics, and their log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import nn

from genlab.batches import Evaluated
from genlab.metrics.few_shot import classification_metrics
from genlab.training.base import Method


class Sets(Protocol):
    """The part of a datamodule that says what is measured."""

    def eval_sets(self, stage: str) -> list[str]:
        """What ``val`` or ``test`` measures, in the order of the loaders."""


class SetClassifier(Method):
    """A classifier whose datamodule has several sets, each with classes of its own.

    Subclasses define ``data``, ``set_names``, ``prepare_set``, ``evaluate`` and ``log_sets``, and may add metrics in ``set_metrics``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict()
        self._prepared: dict[str, Any] = {}

    # For subclasses

    @property
    def data(self) -> Sets:
        """The datamodule."""
        raise NotImplementedError(f"{type(self).__name__} must define data.")

    def set_names(self, name: str) -> Sequence[str]:
        """Class names of a set, by label."""
        raise NotImplementedError(f"{type(self).__name__} must define set_names.")

    def prepare_set(self, name: str) -> Any:
        """What the texts of a set's classes are turned into, once per evaluation."""
        raise NotImplementedError(f"{type(self).__name__} must define prepare_set.")

    def set_metrics(self, count: int) -> nn.ModuleDict:
        """Metrics of a set of so many classes."""
        return classification_metrics(count)

    def evaluate(self, batch: Any, stage: str, name: str, pictures: bool) -> Evaluated:
        """Updates ``measures(name)``, but in ``predict``, and returns rows; strips too where ``pictures`` are wanted."""
        raise NotImplementedError(f"{type(self).__name__} must define evaluate.")

    def log_sets(self, stage: str, values: dict[str, dict[str, float]]) -> None:
        """Logs what several sets come to together."""

    # The same for all

    def measures(self, name: str) -> dict[str, Any]:
        """The metrics of a set, by name."""
        return dict(cast(nn.ModuleDict, self.metrics[_key(name)]).items())

    def several(self, stage: str, name: str) -> str:
        """What the rows of a set are marked with: its name, where a test has several sets."""
        return name if stage == "test" and len(self.data.eval_sets("test")) > 1 else ""

    def prepared(self, name: str) -> Any:
        """`prepare_set`, once per evaluation."""
        if name not in self._prepared:
            with torch.no_grad():
                self._prepared[name] = self.prepare_set(name)
        return self._prepared[name]

    def start_sets(self, stage: str) -> None:
        """Fresh metrics for each set of a stage."""
        self._prepared = {}
        for name in self.data.eval_sets(stage):
            self.metrics[_key(name)] = self.set_metrics(len(self.set_names(name))).to(self.device)

    def on_validation_start(self) -> None:
        self.start_sets("val")

    def on_test_start(self) -> None:
        self.start_sets("test")

    def on_predict_start(self) -> None:
        self._prepared = {}

    def validation_step(self, batch: Any, batch_idx: int) -> Evaluated:
        return self.evaluate(batch, "val", self.data.eval_sets("val")[0], batch_idx == 0)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Evaluated:
        return self.evaluate(batch, "test", self.data.eval_sets("test")[dataloader_idx], batch_idx == 0)

    def predict_step(self, batch: Any, batch_idx: int) -> Evaluated:
        return self.evaluate(batch, "predict", "predict", True)

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def _finish(self, stage: str) -> None:
        sets = self.data.eval_sets(stage)
        values: dict[str, dict[str, float]] = {}
        for name in sets:
            found = self.measures(name)
            values[name] = {key: float(metric.compute()) for key, metric in found.items()}
            for metric in found.values():
                metric.reset()
        if len(sets) == 1:
            self.log_dict({f"{stage}/{key}": value for key, value in values[sets[0]].items()}, prog_bar=stage == "val")
            return
        self.log_dict({f"{stage}/{name}/{key}": value for name in sets for key, value in values[name].items()})
        self.log_sets(stage, values)


def _key(name: str) -> str:
    """A set's name as that of a submodule."""
    return name.replace(".", "_")
