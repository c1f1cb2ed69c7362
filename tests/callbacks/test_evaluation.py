"""An evaluation that was killed and started again gives what one that was never stopped does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from callbacks.evaluation import EvaluationState
from callbacks.media import Media
from callbacks.predictions import Predictions
from callbacks.preemption import CONTINUE_ME, LastCheckpoint
from datamodules.genvideo import GenVideo
from genlab.files import read_csv
from genlab.methods.demamba import DeMamba
from genlab.models.backbones import TinyPatch
from genlab.models.mamba import MambaOptions


class Stop(L.Callback):
    """Ends the process, as it were, after so many steps: in the middle of the next one, or by a signal between two."""

    def __init__(self, after: int, signalled: bool) -> None:
        self.after, self.signalled, self.seen = after, signalled, 0

    def _step(self) -> None:
        self.seen += 1
        if self.seen > self.after and not self.signalled:
            raise RuntimeError("killed")

    def _end(self, trainer: L.Trainer) -> None:
        if self.signalled and self.seen == self.after:
            next(c for c in trainer.callbacks if isinstance(c, LastCheckpoint)).signalled = True  # type: ignore[attr-defined]

    def on_test_batch_start(self, *_: Any) -> None:
        self._step()

    def on_predict_batch_start(self, *_: Any) -> None:
        self._step()

    def on_test_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._end(trainer)

    def on_predict_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._end(trainer)


def evaluate(verb: str, folder: Path, root: Path, seed: int = 0, stop: Stop | None = None, **config: Any) -> tuple[dict[str, float], int]:
    """Metrics, and the number of batches run; the files lie in the folder."""
    torch.manual_seed(seed)
    model = DeMamba(TinyPatch(16, 48, 8), mamba=MambaOptions(d_state=4))
    options = {"image_size": 48, "num_workers": 0, "eval_batch_size": 8}
    options |= {"degradations": ["flip"]} if verb == "test" else {"predict_paths": [str(root / "GenVideo-Val/Real")], "eval_batch_size": 1}
    predictions, media, count = Predictions(folder), Media(folder / "media"), Stop(10**6, False)
    every_seconds = 1e6 if stop is not None and stop.signalled else 0.0
    state = EvaluationState(folder, {"seed": seed, **config}, None, predictions, media, every_seconds)
    callbacks = [predictions, media, state, LastCheckpoint(folder / "last.ckpt"), stop or count]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", callbacks=callbacks, use_distributed_sampler=False, inference_mode=False, **quiet)
    data = GenVideo(str(root), **options)  # type: ignore[arg-type]
    trainer.test(model, data, verbose=False) if verb == "test" else trainer.predict(model, data, return_predictions=False)
    return {key: float(value) for key, value in trainer.callback_metrics.items()}, count.seen


def left(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


@pytest.mark.parametrize(("verb", "signalled"), [("test", False), ("test", True), ("predict", False)])
def test_killed_and_started_again(tiny_genvideo: Path, tmp_path: Path, verb: str, signalled: bool) -> None:
    """Killed in every part of the evaluation, once more each time; the same metrics, rows and pictures, nothing done twice."""
    metrics, total = evaluate(verb, tmp_path / "whole", tiny_genvideo)
    steps, done = (3, 1, 2), 0
    assert total > sum(steps)
    for after in steps:
        with pytest.raises((RuntimeError, SystemExit)) as stopped:
            evaluate(verb, tmp_path / "parts", tiny_genvideo, stop=Stop(after, signalled))
        assert not signalled or stopped.value.code == CONTINUE_ME  # type: ignore[union-attr]
        assert not (tmp_path / "parts/predictions.csv").exists()
        done += after
    found, rest = evaluate(verb, tmp_path / "parts", tiny_genvideo)
    assert rest == total - done
    assert (tmp_path / "parts/predictions.csv").read_bytes() == (tmp_path / "whole/predictions.csv").read_bytes()
    assert found == metrics and left(tmp_path / "parts") == left(tmp_path / "whole")
    assert (len(metrics) > 40) == (verb == "test")


def test_another_evaluation_starts_afresh(tiny_genvideo: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        evaluate("test", tmp_path, tiny_genvideo, stop=Stop(2, False))
    other, total = evaluate("test", tmp_path, tiny_genvideo, threshold=0.3)
    assert other == evaluate("test", tmp_path / "whole", tiny_genvideo)[0] and total == 8
    assert len(read_csv(tmp_path / "predictions.csv")) == 64
