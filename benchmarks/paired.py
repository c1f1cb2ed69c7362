"""What claims over seeds share: commands with a log, and differences of two ways paired by seed."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from scipy.stats import t


def genlab(*args: str, log: Path) -> None:
    """One command, its output appended to ``log``."""
    with log.open("a") as file:
        print("$ genlab", *args, file=file, flush=True)
        subprocess.run([sys.executable, "-m", "genlab", *args], stdout=file, stderr=subprocess.STDOUT, check=True)


def difference(after: Sequence[float], before: Sequence[float], digits: int = 3) -> str:
    """Mean of the paired differences, and its 95 % interval by Student's t."""
    pairs = [a - b for a, b in zip(after, before, strict=True)]
    half = float(t.ppf(0.975, len(pairs) - 1)) * statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else float("nan")
    mean = statistics.mean(pairs)
    return f"{mean:+.{digits}f} ({mean - half:+.{digits}f} to {mean + half:+.{digits}f})"
