"""``metrics.csv``: what was logged, step by step, kept over resumes."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from genlab.files import read_csv, write_csv

log = logging.getLogger(__name__)


class MetricsCSV(Logger):
    """Appends a row per logged step to ``metrics.csv``; columns are ``epoch``, ``step`` and the logged names.

    Lightning's CSVLogger deletes the file when a run continues. This one keeps it, and cuts off the rows after the checkpoint that the
    run continues from (:meth:`rewind`).

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self.rows: list[dict[str, Any]] | None = None
        self.columns: list[str] = []
        self._written = 0

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @property
    def log_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """``config.yaml`` has them."""

    def _load(self) -> list[dict[str, Any]]:
        if self.rows is None:
            self.rows = read_csv(self.path) if self.path.is_file() else []
            if self.rows and not self.path.read_bytes().endswith(b"\n"):
                self.rows.pop()  # torn by a kill while it was appended; its step comes again
                write_csv(self.path, self.rows)
            self.columns = list(dict.fromkeys(["epoch", "step", *(key for row in self.rows for key in row)]))
            self._written = len(self.rows)
        return self.rows

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drops what was logged at or after ``step``: the run continues from a checkpoint taken there."""
        rows = self._load()
        kept = [row for row in rows if int(row["step"]) < step]
        if len(kept) < len(rows):
            self.rows = kept
            write_csv(self.path, kept, self.columns)
            self._written = len(kept)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        rows = self._load()
        row = {"epoch": metrics.get("epoch", ""), "step": step, **{k: float(v) for k, v in metrics.items() if k != "epoch"}}
        same = [r for r in rows[-2:] if str(r["step"]) == str(step) and {k for k, v in r.items() if v != ""} == set(row)]
        if same:  # a validation that a resumed run repeats
            rows.remove(same[0])
            self._written = 0
        rows.append(row)
        if new := [key for key in row if key not in self.columns]:
            self.columns += new
            self._written = 0

    @rank_zero_only
    def save(self) -> None:
        rows = self._load()
        if self._written == len(rows):
            return
        if self._written == 0 or not self.path.is_file():
            write_csv(self.path, rows, self.columns)
        else:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerows(rows[self._written :])
        self._written = len(rows)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()
