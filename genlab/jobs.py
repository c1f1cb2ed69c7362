"""What becomes of a SLURM job whose processes have ended: ``python -m genlab.jobs EXIT_CODE ARGUMENTS OF FIT``, the job script's last word.

A run that was stopped by a signal, or that crashed, goes back into the queue and continues from its last checkpoint. One that is finished,
or that only its user can mend, does not; nor one that keeps ending without ever getting to a new checkpoint.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genlab.errors import CONTINUE_ME, FINISHED, INTERRUPTED, UNREADABLE, USER_ERROR
from genlab.results import RunFolder, slurm_job

SIGNALLED = (CONTINUE_ME, 128 + signal.SIGUSR1, 128 + signal.SIGTERM)  # the latter two while Python was still starting
MAX_CRASHES = 3
MAX_STOPS = 20  # a cluster may well preempt a job while it starts; but one that never gets further is stuck


@dataclass(frozen=True)
class Verdict:
    """What to do with a job that ended.

    Args:
        again: Put it back into the queue.
        why: For the job's log.
        futile: How many times in a row it has ended without a new checkpoint in between, this time included.
    """

    again: bool
    why: str
    futile: int = 0


def judge(code: int, before: Mapping[str, Any], checkpoint: int | None) -> Verdict:
    """Whether a job that ended with this exit code continues.

    Args:
        code: Exit code of the first process, or of the worst of the others where the first one says 0 or nothing.
        before: ``{"futile": count, "checkpoint": time}`` as it was noted at the last such end; empty at the first.
        checkpoint: When the last checkpoint was written, in nanoseconds; ``None`` where there is none.
    """
    if code == FINISHED:
        return Verdict(False, "finished")
    if code in (USER_ERROR, UNREADABLE, INTERRUPTED):
        reasons = {USER_ERROR: "needs to be mended by hand", UNREADABLE: "finished, but samples could not be read"}
        return Verdict(False, f"{reasons.get(code, 'interrupted')} (exit code {code}): not queued again")
    futile = int(before.get("futile", 0)) + 1 if before and before.get("checkpoint") == checkpoint else 1
    stopped = code in SIGNALLED
    limit = MAX_STOPS if stopped else MAX_CRASHES
    what = "stopped by a signal" if stopped else f"crashed (exit code {code})"
    if futile >= limit:
        return Verdict(False, f"{what}, {futile} times in a row without a new checkpoint: given up; look for the cause above", futile)
    count = "" if stopped and checkpoint is not None and futile == 1 else f", {futile} of {limit} times without a new checkpoint"
    return Verdict(True, f"{what}{count}: queued again", futile)


def job_state(job: str) -> str:
    """``RUNNING`` ...; ``UNKNOWN`` where the scheduler does not answer."""
    shown = subprocess.run(["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True)
    found = re.search(r"\bJobState=(\w+)", shown.stdout)
    return found[1] if found else "UNKNOWN"


def note_end(run: RunFolder, code: int) -> Verdict:
    """Judges the end of a run's job, and remembers in ``run.json`` what the next end is judged by."""
    record, last = run.record, run.last_checkpoint
    verdict = judge(code, record.get("ended_early") or {}, last.stat().st_mtime_ns if last.exists() else None)
    if verdict.futile:
        dead = {"state": "preempted" if verdict.again and code in SIGNALLED else "failed"} if record.get("state") == "running" else {}
        written = last.stat().st_mtime_ns if last.exists() else None
        run.update(ended_early={"code": code, "futile": verdict.futile, "checkpoint": written}, **dead)
    return verdict


def main(argv: Sequence[str]) -> int:
    """Says what becomes of the job, and puts it back into the queue if that is it."""
    from genlab.cli import prepare, take_apart

    code, arguments = int(argv[0]), list(argv[1:])
    if code in (FINISHED, USER_ERROR, UNREADABLE, INTERRUPTED):
        print(f"genlab: {judge(code, {}, None).why}", flush=True)
        return 0
    verdict = note_end(prepare(take_apart(arguments)).run, code)
    job = slurm_job(os.environ)
    state = job_state(job) if job else "no job"
    if verdict.again and state != "RUNNING":  # cancelled by its user, or on its way back into the queue by SLURM's own doing
        print(f"genlab: ended with exit code {code}; the job is {state}, and left to SLURM. Submitted again it continues.", flush=True)
        return 0
    print(f"genlab: {verdict.why}", flush=True)
    if verdict.again:
        asked = subprocess.run(["scontrol", "requeue", str(job)], capture_output=True, text=True)
        if asked.returncode:
            print(f"genlab: SLURM does not take the job back: {asked.stderr.strip()}. Submit it again to continue.", flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
