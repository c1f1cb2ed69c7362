"""``genlab status [RUN...]``: how runs are doing. Reads ``run.json``, ``config.yaml`` and, where there is a SLURM, its queue."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from genlab.errors import MissingPath
from genlab.files import read_json
from genlab.results import RunFolder, living_owner

HELP = "State, step, latest metric, job, requeues and age of the last checkpoint. Without RUN: all runs below the folder runs."


def main(args: list[str]) -> int:
    """Prints a table.

    Raises:
        MissingPath: A folder that is not there, or that holds no run.
    """
    parser = argparse.ArgumentParser("python -m genlab status", description=HELP, allow_abbrev=False)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="a run folder, or a folder of runs (default: runs)")
    given = parser.parse_args(args)
    rows: dict[Path, dict[str, Any]] = {}
    queue = queued_jobs()
    for folder in given.runs or [Path("runs")]:
        if not folder.is_dir():
            raise MissingPath(f"status: {folder} is no folder. Name a run folder, or a folder of runs such as runs/demamba.")
        found = {path: row(RunFolder(path), job, queue) for path, job in runs_below(folder)}
        if not found and given.runs:
            raise MissingPath(f"status: there is no run in {folder}: no run.json, and no job waits to write one.")
        rows |= found

    from genlab.reports import console_table

    print(console_table([rows[path] for path in sorted(rows)]) if rows else "There are no runs yet.")
    return 0


def runs_below(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Run folders at or below ``folder``, and the job that a run was submitted with.

    Evaluations lie in their run's folder, and are not runs. A run whose job has not started yet is known from the job folder alone.
    """
    below = [path.parent for path in folder.rglob("run.json")]
    inner = {path for path in below if any(parent in below for parent in path.parents)}
    known = {path: None for path in below if path not in inner}
    jobs: dict[Path, str | None] = {}
    for file in sorted([*folder.rglob("job.json"), *folder.parent.glob("jobs/*/job.json")]):
        record = read_json(file)
        several = len(record["runs"]) > 1
        for number, run in enumerate(map(Path, record["runs"])):
            if run.is_relative_to(folder.resolve()):
                jobs[folder / run.relative_to(folder.resolve())] = f"{record['job']}_{number}" if several else record["job"]
    yield from {**known, **jobs}.items()


def row(run: RunFolder, submitted: str | None, queue: Mapping[str, str] | None) -> dict[str, Any]:
    """One line of the table.

    Args:
        run: The run folder.
        submitted: The job it was last submitted with.
        queue: Jobs of SLURM by id, with their state; ``None`` where there is none to ask.
    """
    record = run.record
    job = record.get("job_name") or submitted
    if submitted and record and _older(record, submitted):
        job = submitted
    name, value = _metric(run, record)
    age = time.time() - run.last_checkpoint.stat().st_mtime if run.last_checkpoint.exists() else None
    return {
        "run": str(run.path),
        "state": state(record, job, queue),
        "step": record.get("step"),
        "metric": f"{name} {value:.4f}" if name else None,
        "job": job,
        "requeues": record.get("requeues", 0),
        "checkpoint": f"{_duration(age)} ago" if age is not None else None,
    }


def state(record: Mapping[str, Any], job: str | None, queue: Mapping[str, str] | None) -> str:
    """In a word: what the run says of itself, corrected by who is alive and what the scheduler knows."""
    said = str(record.get("state", "")) or "submitted"
    scheduler = queue.get(job, "") if queue is not None and job else ""
    if said == "running":
        alive = living_owner(record) is not None or scheduler == "RUNNING"
        return "running" if alive else "waiting to continue" if scheduler == "PENDING" else "died"
    if scheduler == "PENDING":
        return "waiting" if said == "submitted" else f"{said}, waiting to continue" if said != "finished" else said
    if said == "submitted" and queue is not None:
        return "starting" if scheduler else "ended without a run"
    if said == "preempted" and queue is not None and job and not scheduler:
        return "preempted, not in the queue"
    return said


def queued_jobs() -> dict[str, str] | None:
    """This user's jobs that have not ended, by the names that scontrol takes, with their state; ``None`` without a SLURM that answers."""
    if shutil.which("squeue") is None:
        return None
    asked = subprocess.run(["squeue", "--me", "--array", "--noheader", "--format=%i %T"], capture_output=True, text=True)
    if asked.returncode:
        return None
    return dict(line.split(maxsplit=1) for line in asked.stdout.splitlines() if " " in line.strip())


def _older(record: Mapping[str, Any], submitted: str) -> bool:
    """Whether the record is of a job before the submitted one; ids count up."""
    numbers = [int(str(job).split("_")[0]) for job in (record.get("job_name") or 0, submitted)]
    return numbers[0] < numbers[1]


def _metric(run: RunFolder, record: Mapping[str, Any]) -> tuple[str, float]:
    """Name and latest value of the metric that the best checkpoint goes by, else of the first one."""
    import yaml

    metrics: dict[str, float] = record.get("last_metrics") or {}
    file = run.path / "config.yaml"
    trainer = ((yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None) or {}).get("trainer") or {}
    monitored = [(entry.get("init_args") or {}).get("monitor") for entry in _listed(trainer.get("callbacks")) if isinstance(entry, dict)]
    name = next((name for name in [*monitored, *sorted(metrics)] if name in metrics and metrics[name] is not None), "")
    return name, float(metrics[name]) if name else 0.0


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``, ``2.1 d``."""
    for limit, unit, text in ((120, 1, "{:.0f} s"), (7200, 60, "{:.0f} min"), (172_800, 3600, "{:.1f} h")):
        if seconds < limit:
            return text.format(seconds / unit)
    return f"{seconds / 86_400:.1f} d"
