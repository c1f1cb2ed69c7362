"""``genlab status``: what the table says of runs in every state."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from genlab.errors import MissingPath
from genlab.files import write_json
from genlab.results import RunFolder
from genlab.verbs.status import main, row, runs_below, state


def test_a_run_in_one_line(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs/x/seed1")
    run.start("genlab fit")
    run.update(step=120, requeues=2, job_name="7_1", last_metrics={"val/acc": 0.5, "val/ap": 0.25})
    run.finish("finished")
    (run.path / "config.yaml").write_text("trainer: {callbacks: [{class_path: ModelCheckpoint, init_args: {monitor: val/ap}}]}")
    run.checkpoints.mkdir()
    run.last_checkpoint.write_bytes(b"")
    os.utime(run.last_checkpoint, (time.time() - 600,) * 2)
    expected = {"state": "finished", "step": 120, "metric": "val/ap 0.2500", "job": "7_1", "requeues": 2, "checkpoint": "10 min ago"}
    assert row(run, None, None) == {"run": str(run.path), **expected}


@pytest.mark.parametrize(
    ("record", "job", "queue", "word"),
    [
        ({"state": "running", "pid": os.getppid(), "host": "elsewhere", "seen": 1e12}, "1", None, "running"),
        ({"state": "running", "pid": 1, "host": "elsewhere", "seen": 0.0}, "1", {}, "died"),
        ({"state": "running", "pid": 1, "host": "elsewhere", "seen": 0.0}, "1", {"1": "PENDING"}, "waiting to continue"),
        ({"state": "preempted"}, "1", {"1": "PENDING"}, "preempted, waiting to continue"),
        ({"state": "preempted"}, "1", {}, "preempted, not in the queue"),
        ({"state": "preempted"}, None, None, "preempted"),
        ({"state": "finished"}, "1", {}, "finished"),
        ({}, "1", {"1": "PENDING"}, "waiting"),
        ({}, "1", {"1": "RUNNING"}, "starting"),
        ({}, "1", {}, "ended without a run"),
        ({}, "1", None, "submitted"),
    ],
)
def test_the_word_for_it(record: dict, job: str | None, queue: dict[str, str] | None, word: str) -> None:
    assert state(record, job, queue) == word


def test_runs_are_found_once_also_those_that_have_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a/seed1", "runs/a/seed1/test-data", "runs/b/c/seed1"):
        RunFolder(Path(name)).start("genlab fit")
        RunFolder(Path(name)).finish("finished")
    later = [str(Path(f"runs/a/seed{n}").resolve()) for n in (1, 2)]
    write_json(Path("runs/a/jobs/20260101/job.json"), {"job": "5", "runs": later})
    assert dict(runs_below(Path("runs"))) == {
        Path("runs/a/seed1"): "5_0", Path("runs/a/seed2"): "5_1", Path("runs/b/c/seed1"): None,
    }  # fmt: skip
    assert dict(runs_below(Path("runs/a/seed2"))) == {} or not Path("runs/a/seed2").exists()
    assert main([]) == 0 and main(["runs/a"]) == 0
    assert capsys.readouterr().out.count("runs/a/seed1") == 2
    for wrong in ("nowhere", "runs/a/jobs"):
        with pytest.raises(MissingPath, match="status: "):
            main([wrong])
