"""Nothing lost when killed: a run that was killed and continued is the run that was never stopped, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from genlab.config import shipped_root
from genlab.files import read_csv
from tests.system.programs import run, start, tiny_fit

pytestmark = [pytest.mark.system, pytest.mark.slow]


def wait_for_writes(path: Path, process: Any, writes: int) -> bool:
    """Waits until the file was written that many times more; False when the process ended before."""
    last, seen = (path.stat().st_mtime_ns if path.exists() else None), 0
    while seen < writes:
        if process.poll() is not None:
            return False
        now = path.stat().st_mtime_ns if path.exists() else None
        if now != last:
            last, seen = now, seen + 1
        time.sleep(0.002)
    return True


def assert_same(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f"{where}/{i}")
    else:
        assert a == b, where


def load(run_folder: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(run_folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_ten_times_and_resumed_is_never_killed(tiny_genvideo: Path, tmp_path: Path, workers: int) -> None:
    arguments = tiny_fit(tiny_genvideo, "--trainer.max_epochs=4", "--run.checkpoint_steps=1", f"--data.num_workers={workers}")
    run(*arguments, "--run.name=whole", cwd=tmp_path)
    whole, broken = (tmp_path / "runs/tiny/demamba" / name for name in ("whole", "broken"))
    chance, kills = random.Random(workers), 0
    while kills < 10:
        process = start(*arguments, "--run.name=broken", "--ckpt_path=last", cwd=tmp_path)
        alive = wait_for_writes(broken / "checkpoints/last.ckpt", process, chance.randint(1, 3))
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert alive, "the run must not end before it was killed ten times"
        kills += 1
    output = run(*arguments, "--run.name=broken", "--ckpt_path=last", cwd=tmp_path)
    assert "broken/checkpoints/last.ckpt" in output
    for name in ("last", "best"):
        a, b = load(whole, name), load(broken, name)
        assert a["global_step"] == b["global_step"]
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "random_states"):
            assert_same(a[part], b[part], f"{name}: {part}")
    assert (whole / "predictions.csv").read_bytes() == (broken / "predictions.csv").read_bytes()
    results = [json.loads((folder / "results.json").read_text()) for folder in (whole, broken)]
    assert results[0]["metrics"]["val/ap"] == results[1]["metrics"]["val/ap"]
    record = json.loads((broken / "run.json").read_text())
    assert record["state"] == "finished" and record["requeues"] == 10
    logged = [[(row["step"], row["val/ap"], row["train/loss"]) for row in read_csv(folder / "metrics.csv")] for folder in (whole, broken)]
    assert logged[0] == logged[1], "metrics.csv has every row once"
    speeds = [float(row["train/samples_per_second"]) for row in read_csv(broken / "metrics.csv") if row["train/samples_per_second"]]
    assert speeds and min(speeds) > 0.1, "the time between two starts does not count"


def test_a_signal_stops_in_order_and_asks_to_be_continued(tiny_genvideo: Path, tmp_path: Path) -> None:
    """With a worker that is in the midst of its work, and must not keep the process from ending."""
    endless = ("--trainer.max_epochs=200", "--run.checkpoint_steps=3", "--data.num_workers=1")
    arguments = tiny_fit(tiny_genvideo, "--run.name=a", *endless)
    folder = tmp_path / "runs/tiny/demamba/a"
    for sent in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        process = start(*arguments, "--ckpt_path=last", cwd=tmp_path)
        assert wait_for_writes(folder / "checkpoints/last.ckpt", process, 2)
        process.send_signal(sent)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 75, output
        assert "continue with --ckpt_path last" in output
        assert json.loads((folder / "run.json").read_text())["state"] == "preempted"
    assert load(folder)["global_step"] > 0


def test_what_fails_after_a_signal_was_stopped_by_it(tiny_genvideo: Path, tmp_path: Path) -> None:
    """A cluster's TERM reaches every process of a job, helpers that a run cannot do without among them."""
    arguments = tiny_fit(tiny_genvideo, "--trainer.callbacks+=tests.system.accidents.FailsAfterTerm")
    output = run(*arguments, cwd=tmp_path, expect=75, PYTHONPATH=str(shipped_root()))
    assert "stopped by a signal, before it could save: W&B's service is gone." in output
    assert json.loads((tmp_path / "runs/tiny/demamba/seed1/run.json").read_text())["state"] == "preempted"


def test_changed_settings_win_and_are_said(tiny_genvideo: Path, tmp_path: Path) -> None:
    arguments = tiny_fit(tiny_genvideo, "--run.name=a", "--model.milestones=[1]", "--model.gamma=0.1", "--model.head_lr=null")
    run(*arguments, "--trainer.max_epochs=2", "--model.lr=0.004", cwd=tmp_path)
    run(*arguments, "--trainer.max_epochs=2", cwd=tmp_path, expect=2)
    output = run(*arguments, "--trainer.max_epochs=3", "--model.lr=0.002", "--ckpt_path=last", cwd=tmp_path)
    assert "model.lr was 0.004, is 0.002" in output
    checkpoint = load(tmp_path / "runs/tiny/demamba/a")
    group = checkpoint["optimizer_states"][0]["param_groups"][0]
    assert group["lr"] == pytest.approx(0.0002), "the new rate, after the milestone that was passed"
    assert group["initial_lr"] == 0.002 and checkpoint["lr_schedulers"][0]["base_lrs"][0] == 0.002


def test_a_finished_run_is_left_alone(tiny_genvideo: Path, tmp_path: Path) -> None:
    arguments = tiny_fit(tiny_genvideo, "--trainer.limit_train_batches=2", "--ckpt_path=last")
    run(*arguments, "--trainer.max_epochs=1", cwd=tmp_path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*")}
    assert "is finished; nothing to do" in run(*arguments, "--trainer.max_epochs=1", cwd=tmp_path)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*")}
    run(*arguments, "--trainer.max_epochs=2", cwd=tmp_path)
    assert load(tmp_path / "runs/tiny/demamba/seed1")["global_step"] == 4


def test_a_second_fit_is_refused_with_both_ways_out(tiny_genvideo: Path, tmp_path: Path) -> None:
    arguments = tiny_fit(tiny_genvideo, "--trainer.max_epochs=1", "--trainer.limit_train_batches=2")
    run(*arguments, cwd=tmp_path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*")}
    output = run(*arguments, cwd=tmp_path, expect=2)
    assert "--ckpt_path last" in output and "--run.name" in output and "Traceback" not in output
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*")}
