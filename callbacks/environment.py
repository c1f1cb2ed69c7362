"""What a run leaves behind when it ends: ``results.json``, the table in the terminal, the plots and the report."""

from __future__ import annotations

import logging
import resource
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.predictions import Predictions
from genlab import detection_figures, figures
from genlab.batches import Shown
from genlab.files import read_csv, write_bytes, write_json
from genlab.reports import Report, console_table
from genlab.results import HEARTBEAT_SECONDS, RunFolder, config_hash, git_state, metric_tables, versions

log = logging.getLogger(__name__)


class RunRecord(Callback):
    """Keeps ``run.json`` alive while the run lasts, and writes its results when it ends well.

    Args:
        folder: Where this verb writes.
        config: The whole configuration, for its hash.
        experiment: Name of the experiment.
        predictions: Has the rows of the latest evaluation.
        checkpoint: The checkpoint that an evaluation uses.
    """

    def __init__(
        self, folder: RunFolder, config: Mapping[str, Any], experiment: str, predictions: Predictions, checkpoint: str | None = None
    ) -> None:
        self.folder, self.config, self.experiment, self.checkpoint = folder, config, experiment, checkpoint
        self.predictions = predictions
        self.started = False
        self._since = time.monotonic()
        self._beat = time.monotonic()

    def _start(self, trainer: Trainer) -> None:
        """Takes the folder: configuration, data and weights are known to be good by now."""
        if trainer.is_global_zero and not self.started:
            log.info("run folder: %s", self.folder.path)
            self.folder.start(command=shlex.join(["genlab", *sys.argv[1:]]))
            write_bytes(self.folder.path / "config.yaml", yaml.safe_dump(dict(self.config), sort_keys=False).encode())
        self.started = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer)

    def _alive(self, trainer: Trainer, **entries: Any) -> None:
        if trainer.is_global_zero and (entries or time.monotonic() - self._beat > HEARTBEAT_SECONDS):
            self.folder.update(step=trainer.global_step, epoch=trainer.current_epoch, **entries)
            self._beat = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._alive(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._alive(trainer)

    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._alive(trainer)

    def on_predict_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._alive(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._alive(trainer, last_metrics={k: float(v) for k, v in trainer.callback_metrics.items() if k.count("/") == 1})

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning calls this at a good end only."""
        peak = torch.tensor(peak_memory_bytes(), dtype=torch.float64)
        if trainer.world_size > 1 and torch.distributed.is_initialized():
            peak = trainer.strategy.reduce(peak.to(trainer.strategy.root_device), reduce_op="max").cpu()
        if trainer.is_global_zero:
            self._write(trainer, pl_module, str(getattr(stage, "value", stage)), int(peak))
        trainer.strategy.barrier("results")  # a launcher may take a process that is long in ending for one that hangs

    def _write(self, trainer: Trainer, pl_module: LightningModule, stage: str, peak: int) -> None:
        data, predictions = getattr(trainer, "datamodule", None), self.predictions
        best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.best_model_path), None)
        results: dict[str, Any] = {
            "experiment": self.experiment,
            "stage": stage,
            "config_hash": config_hash(self.config),
            "git": git_state(),
            "versions": versions(),
            "seed": self.config.get("seed_everything"),
            "data_fingerprint": getattr(data, "fingerprint", None),
            "protocol": getattr(data, "protocol", {}) | getattr(pl_module, "protocol", {}),
            "metrics": {k: float(v) for k, v in trainer.callback_metrics.items()},
            "counts": predictions.counts,
            "steps": trainer.global_step,
            "epochs": trainer.current_epoch,
            "wall_seconds": time.monotonic() - self._since,
            "peak_memory_bytes": peak,
            "trainable_parameters": sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
            "checkpoint": self.checkpoint,
        }
        if stage == "fit" and best is not None:
            path = Path(best.best_model_path)
            score = float(best.best_model_score) if best.best_model_score is not None else None
            results["best"] = {"checkpoint": path.name, "monitor": best.monitor, "score": score}
            self.folder.update(best=path.name)
        write_json(self.folder.path / "results.json", results)
        rows = predictions.rows
        found = {part: metric_tables(trainer.callback_metrics, part) for part in ("val", "test")}
        tables = {f"{part}, {name}" if name == "whole" else part: table for part, each in found.items() for name, table in each.items()}
        title = f"{self.experiment}: {stage}" + (" (tiny world)" if results["protocol"].get("tiny_world") else "")
        for name, table in tables.items():
            print("\n" + console_table(table, f"{title}, {name}"))
        said = getattr(pl_module, "predict_text", lambda _: None)(rows) if stage == "predict" else None
        beside = sys.stdout if said is None else sys.stderr
        if said is not None:
            print(said)
        elif stage == "predict":
            print(console_table([{k: row[k] for k in row if k != "label"} for row in rows[:50]], title))
        if stage != "fit":
            for name, content in getattr(pl_module, "run_files", lambda _: {})(rows).items():
                write_bytes(self.folder.path / name, content)
        unread = results["counts"].get("n_expected", 0) - results["counts"].get("n_scored", 0)
        if unread:
            why = "could not be read" if all(row["status"] in ("ok", "unreadable") for row in rows) else "have no score"
            where = "they are in predictions.csv without a score."
            print(f"{unread} of {results['counts']['n_expected']} samples {why}; {where}", file=beside)
        own, shown = getattr(pl_module, "add_to_report", None), getattr(pl_module, "shown", None)
        write_report(self.folder, title, results, tables, rows, own, shown)
        print(f"{self.folder.path}/report.html", file=beside)


def peak_memory_bytes() -> int:
    """Largest memory of this process so far: on the GPU where there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_report(
    folder: RunFolder,
    title: str,
    results: Mapping[str, Any],
    tables: Mapping[str, list[dict[str, Any]]],
    rows: list[dict[str, Any]],
    own: Callable[[Report], None] | None = None,
    shown: Shown | None = None,
) -> None:
    """``report.html``: tables, plots, pictures and settings of one run, in one file.

    Args:
        own: Adds the sections of a method that has better ones than the table of metrics and the list of predictions.
        shown: The classes in plots of the scores.
    """
    report = Report(title)
    facts = {
        "metrics over": "{n_scored} of {n_expected} samples".format_map(results["counts"]) if results["counts"] else "",
        "steps": results["steps"],
        "wall time": f"{results['wall_seconds']:.0f} s",
        "peak memory": f"{results['peak_memory_bytes'] / 2**20:.0f} MiB",
        "trainable parameters": f"{results['trainable_parameters']:,}",
        "seed": results["seed"],
        "git": results["git"],
        "checkpoint": results.get("checkpoint") or results.get("best", {}).get("checkpoint", ""),
        "data": ", ".join(f"{split} {name}" for split, name in (results["data_fingerprint"] or {}).items()),
    }
    if results["protocol"].get("tiny_world"):
        report.text("Measured on the procedural tiny world: these numbers say that the method works here, not how it does on real data.")
    report.keyvalues({key: str(value) for key, value in facts.items() if value not in ("", None, {})})
    if own is not None:
        own(report)
    for name, table in tables.items() if own is None else ():
        report.table(table, caption=name)
    first = next((row.get("set") for row in rows), None)  # of several sets the first, the clean one, is plotted
    known = [row for row in rows if row["status"] == "ok" and row["score"] not in ("", None)]  # a refusal is an answer without a score
    scored = [row for row in known if str(row["label"]) in ("0", "1") and row.get("set") == first]
    if len({row["label"] for row in scored}) == 2:
        shown = shown or Shown()
        kinds, threshold = [str(row.get(shown.kinds, "")) for row in scored], float(scored[0].get("threshold", 0.5))
        scores, labels = np.array([float(row["score"]) for row in scored]), np.array([int(row["label"]) for row in scored])
        if shown.flipped:
            scores, labels, threshold = 1 - scores, 1 - labels, 1 - threshold
        report.picture(
            detection_figures.score_histogram(scores, labels, kinds, threshold, folder.media / "scores.png", (shown.kept, shown.found)),
            "Scores per set",
        )
        report.picture(detection_figures.roc_pr(scores, labels, kinds, path=folder.media / "roc_pr.png"), "ROC and precision-recall")
    logged = read_csv(folder.path / "metrics.csv") if results["stage"] == "fit" and (folder.path / "metrics.csv").is_file() else []
    if figures.curve_groups(logged)[1]:  # a short run may have logged nothing
        report.picture(figures.curves(logged, path=folder.media / "curves.png"), "Training")
    made = ("scores.png", "roc_pr.png", "curves.png")
    pictures = sorted(p for p in folder.media.glob("*.png") if p.name not in made) if folder.media.is_dir() else []
    for picture in pictures[-2:] if results["stage"] == "fit" else pictures[:50]:
        report.picture(picture, picture.stem)
    if rows and not scored and own is None:
        report.table([{key: row[key] for key in row if key != "label"} for row in rows[:500]], caption="predictions.csv")
    if (folder.path / "config.yaml").is_file():
        report.details("Configuration", (folder.path / "config.yaml").read_text())
    report.details("Protocol", "\n".join(f"{key}: {value}" for key, value in results["protocol"].items()))
    report.details("Versions", "\n".join(f"{key}: {value}" for key, value in results["versions"].items()))
    report.write(folder.path / "report.html")
