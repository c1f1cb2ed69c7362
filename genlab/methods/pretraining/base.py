"""What pretraining methods have in common: validation and test measure the same, on other samples."""

from __future__ import annotations

from typing import Any

from genlab.batches import Evaluated
from genlab.training.base import Method


class Pretraining(Method):
    """A method that is evaluated in one way, whatever the stage.

    Subclasses define :meth:`start_evaluation`, :meth:`evaluate` and :meth:`finish_evaluation`.
    """

    def start_evaluation(self) -> None:
        """Makes fresh metrics."""
        raise NotImplementedError(f"{type(self).__name__} must define start_evaluation.")

    def evaluate(self, batch: Any, pictures: bool) -> Evaluated:
        """Measures a batch; returns its rows, and strips if ``pictures`` are asked for, which is in the first batch."""
        raise NotImplementedError(f"{type(self).__name__} must define evaluate.")

    def finish_evaluation(self, stage: str) -> None:
        """Logs what was measured as ``<stage>/<metric>``; ``stage`` is ``val`` or ``test``."""
        raise NotImplementedError(f"{type(self).__name__} must define finish_evaluation.")

    def on_validation_start(self) -> None:
        self.start_evaluation()

    def on_test_start(self) -> None:
        self.start_evaluation()

    def validation_step(self, batch: Any, batch_idx: int) -> Evaluated:
        return self.evaluate(batch, pictures=batch_idx == 0)

    def test_step(self, batch: Any, batch_idx: int) -> Evaluated:
        return self.evaluate(batch, pictures=batch_idx == 0)

    def on_validation_epoch_end(self) -> None:
        self.finish_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self.finish_evaluation("test")
