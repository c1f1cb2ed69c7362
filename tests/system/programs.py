"""Starting GenLab as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SMALL = (
    "--data.num_workers=0",
    "--data.batch_size=8",
    "--data.eval_batch_size=8",
    "--data.val_fraction=0.2",
    "--trainer.enable_progress_bar=false",
)


def environment(**more: str) -> dict[str, str]:
    """One thread a process, no network, no login."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", **more}


def start(*arguments: str, cwd: Path, **env: str) -> subprocess.Popen[str]:
    """``python -m genlab`` in its own process, output captured."""
    command = [sys.executable, "-m", "genlab", *arguments]
    return subprocess.Popen(command, cwd=cwd, env=environment(**env), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def run(*arguments: str, cwd: Path, expect: int = 0, timeout: float = 900, **env: str) -> str:
    """Runs to the end and returns the output; fails when the exit code is another."""
    process = start(*arguments, cwd=cwd, **env)
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == expect, f"genlab {' '.join(arguments)}: exit code {process.returncode}, expected {expect}\n{output}"
    return output


def tiny_fit(root: Path, *more: str) -> list[str]:
    """Arguments of a small DeMamba fit on the tiny GenVideo in ``root``."""
    return ["fit", "-c", "tiny/demamba", f"--data.root={root}", *SMALL, *more]
