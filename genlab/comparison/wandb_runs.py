"""Runs of a W&B project, and how they are laid over run folders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from genlab.comparison.records import Record, flattened
from genlab.errors import UserError


def read_project(project: str) -> list[Record]:
    """Runs of ``entity/project`` through W&B's API.

    Raises:
        UserError: Not so named, not reachable, or no such project.
    """
    if project.count("/") != 1 or not all(project.split("/")):
        raise UserError(f"--wandb: {project!r} is not of the form entity/project.")
    import wandb

    try:
        return [_record(run, project) for run in wandb.Api().runs(project)]
    except (wandb.errors.Error, ValueError, OSError) as error:
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"--wandb {project}: {told[0]} Log in with `wandb login`, or set WANDB_API_KEY and WANDB_BASE_URL.") from None


def _record(run: Any, project: str) -> Record:
    metrics = {
        str(name): float(value)
        for name, value in dict(run.summary).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and "/" in name
    }
    config = flattened({key: value for key, value in dict(run.config).items() if not str(key).startswith("_")})
    seed = config.get("seed_everything")
    return Record(
        run=f"wandb:{project}/{run.name}",
        experiment=str(run.group or ""),
        seed=seed if isinstance(seed, int) else None,
        metrics=metrics,
        config=config,
        facts={"state": run.state, "steps": dict(run.summary).get("_step"), "seconds": dict(run.summary).get("_runtime")},
        wandb=run.id,
    )


def merged(local: Sequence[Record], remote: Sequence[Record]) -> list[Record]:
    """Run folders with what W&B knows besides of the run with the same id; then the runs that are only there."""
    by_id = {record.wandb: record for record in remote}
    found: list[Record] = []
    for record in local:
        there = by_id.get(record.wandb) if record.wandb else None
        found.append(record if there is None else replace(record, metrics={**there.metrics, **record.metrics}))
    known = {record.wandb for record in local if record.wandb}
    return [*found, *(record for record in remote if record.wandb not in known)]
