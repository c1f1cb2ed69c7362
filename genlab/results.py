"""The run folder: who runs there, what came out, and the files that say so.

``runs/<experiment>/<name>/`` holds ``config.yaml``, ``run.json``, ``metrics.csv``, ``results.json``, ``predictions.csv``, ``report.html``,
``checkpoints/`` and ``media/``. Everything is written beside its place and renamed, so that no reader ever sees half a file.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genlab.errors import UserError
from genlab.files import jsonable, read_json, write_json

PACKAGES = ("genlab", "torch", "lightning", "torchmetrics", "transformers", "diffusers", "omegaconf", "decord2", "av", "numpy")
HEARTBEAT_SECONDS = 30.0
SILENT_SECONDS = 180.0  # a run on another host that has been silent for this long is taken for dead


@dataclass(frozen=True)
class RunSettings:
    """Where a run keeps its files, and what it may forgive.

    Args:
        root: Folder of all runs.
        experiment: Folder below ``root``; left out, the path of the first config file below ``experiments/`` without its ending.
        name: Folder below the experiment; left out, ``seed<seed_everything>``.
        checkpoint_minutes: Longest time between two writes of ``last.ckpt``; it is also written before each validation. Evaluations write
            where they are at least twice a minute.
        checkpoint_steps: Likewise in optimizer steps; left out, the clock alone decides.
        allow_unreadable: Exit with 0 although samples could not be read (else 3). They are counted and listed either way.
    """

    root: str = "runs"
    experiment: str | None = None
    name: str | None = None
    checkpoint_minutes: float = 15.0
    checkpoint_steps: int | None = None
    allow_unreadable: bool = False


def is_first_process() -> bool:
    """Whether this process is rank zero, before any process group exists."""
    return all(os.environ.get(key, "0") == "0" for key in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"))


def slurm_job(environment: Mapping[str, str]) -> str | None:
    """What scontrol calls the job of these variables; of an array, this task alone. ``None`` outside SLURM."""
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


def config_hash(config: Mapping[str, Any]) -> str:
    """Names a configuration, whatever the order of its keys."""
    return hashlib.blake2b(json.dumps(jsonable(config), sort_keys=True).encode(), digest_size=8).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on; without importing them."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_state() -> str:
    """Commit of the GenLab checkout, with ``+changes`` where it has some; ``none`` outside a checkout."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return "none"
    try:
        commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        changes = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine
        return "unknown"
    return (commit.stdout.strip() or "no commit") + ("+changes" if changes.stdout.strip() else "")


class RunFolder:
    """One folder that a verb writes to: a run's own (``fit``), or ``<run>/<stage>-<data>`` of an evaluation."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def media(self) -> Path:
        return self.path / "media"

    @property
    def record(self) -> dict[str, Any]:
        """``run.json``; empty before the first start."""
        return read_json(self.path / "run.json")

    @property
    def has_results(self) -> bool:
        """Whether there is something to lose: a checkpoint, or logged metrics."""
        return any(self.checkpoints.glob("*.ckpt")) or (self.path / "metrics.csv").is_file()

    def update(self, **entries: Any) -> None:
        """Changes entries of ``run.json``; every change is also a sign of life."""
        write_json(self.path / "run.json", {**self.record, **entries, "seen": time.time()})

    def start(self, command: str) -> None:
        """Takes the folder for this process and says so in ``run.json``.

        Raises:
            UserError: Another process works in it.
        """
        record = self.record
        if (owner := living_owner(record)) is not None:
            raise UserError(
                f"{self.path}: another process is working in this run folder ({owner}). Wait for it, stop it, or choose another folder "
                "with --run.name NAME."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        again = record.get("state") in ("preempted", "running", "failed")
        self.update(
            state="running",
            host=socket.gethostname(),
            pid=os.getpid(),
            pid_started=_process_start(os.getpid()),
            command=command,
            job=os.environ.get("SLURM_JOB_ID"),
            job_name=slurm_job(os.environ),
            started=time.time(),
            requeues=record.get("requeues", 0) + int(again),
            git=git_state(),
            versions=versions(),
            python=sys.executable,
        )

    def finish(self, state: str, **entries: Any) -> None:
        """Ends this process's work in the folder: ``finished``, ``preempted`` (to be continued) or ``failed``."""
        self.update(state=state, ended=time.time(), **entries)


def living_owner(record: Mapping[str, Any]) -> str | None:
    """Says who works in a run folder, or ``None`` when nobody does (any more).

    On this host a process is asked for; another host's process counts as alive while its last sign of life is recent, unless
    it belonged to this same SLURM job, which was requeued and cannot run twice.
    """
    if record.get("state") != "running":
        return None
    host, pid, seen = record.get("host"), record.get("pid"), float(record.get("seen") or 0)
    if host == socket.gethostname():
        started = _process_start(int(pid)) if pid else None
        alive = pid != os.getpid() and started is not None and started == record.get("pid_started")
    else:
        same_job = record.get("job") is not None and record.get("job") == os.environ.get("SLURM_JOB_ID")
        alive = not same_job and time.time() - seen < SILENT_SECONDS
    return f"process {pid} on {host}, last seen {time.time() - seen:.0f} s ago" if alive else None


def _process_start(pid: int) -> str | None:
    """Start time of a living process as a string that a reused process number would not share; ``None`` for a dead one."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.is_file():
        fields = stat.read_text().rsplit(")", 1)[1].split()
        return None if fields[0] == "Z" else fields[19]
    if sys.platform.startswith("linux"):
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


def metric_tables(metrics: Mapping[str, Any], stage: str) -> dict[str, list[dict[str, Any]]]:
    """Logged metrics as tables: ``sets``, a row per set (``stage/<set>/<metric>``) and their mean; ``whole``, the rest."""
    sets: dict[str, dict[str, Any]] = {}
    whole: dict[str, float] = {}
    for name, value in metrics.items():
        parts = name.split("/")
        if parts[0] == stage and len(parts) == 3:
            sets.setdefault(parts[1], {"set": parts[1]})[parts[2]] = _number(parts[2], value)
        elif parts[0] == stage and len(parts) == 2:
            whole[parts[1]] = _number(parts[1], value)
    columns = list(dict.fromkeys(column for row in sets.values() for column in row if column != "set"))
    rows = [sets[name] for name in sorted(sets)]
    if rows and any(column in whole for column in columns):
        rows.append({"set": "mean over sets", **{column: whole.get(column) for column in columns}})
    tables = {"sets": rows, "whole": [{"metric": name, "value": value} for name, value in whole.items() if name not in columns]}
    return {name: table for name, table in tables.items() if table}


def _number(name: str, value: Any) -> float:
    """Counts (``n``, ``n_real``) as integers."""
    return int(value) if name == "n" or name.startswith("n_") else float(value)
