"""DeepSpeed on two CPU processes: training, resuming, one file out of the shards, and the same numbers throughout."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from genlab.errors import CONTINUE_ME, USER_ERROR
from genlab.files import read_csv
from tests.system.forked import run_forked
from tests.system.programs import tiny_fit

MISSING = [
    *(name for name in ("deepspeed", "ninja") if importlib.util.find_spec(name) is None),
    *(name for name in ("g++",) if shutil.which(name) is None),
]
pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"DeepSpeed compiles a little C++ at its first start, and here is no {', '.join(MISSING)}"),
]


def zero(stage: int) -> list[str]:
    strategy = {
        "class_path": "tests.system.cpu_deepspeed.CPUDeepSpeed",
        "init_args": {"stage": stage, "exclude_frozen_parameters": True},
    }
    return on_two(json.dumps(strategy))


def on_two(strategy: str) -> list[str]:
    """With batch norms over both: without, each process would evaluate by statistics of its own under DeepSpeed."""
    return ["--trainer.devices=2", f"--trainer.strategy={strategy}", "--trainer.plugins=[{class_path: tests.system.parity.SyncOnCPU}]"]


def scores(folder: Path) -> dict[str, float]:
    return {row["id"]: float(row["score"]) for row in read_csv(folder / "predictions.csv")}


def metrics(folder: Path) -> dict[str, float]:
    found = json.loads((folder / "results.json").read_text())["metrics"]
    return {name: value for name, value in found.items() if name.startswith("val/")}


def test_zero_2_trains_resumes_and_becomes_one_file(tiny_genvideo: Path, tmp_path: Path) -> None:
    fit = tiny_fit(tiny_genvideo, "--data.batch_size=4", "--trainer.limit_train_batches=6", "--trainer.max_epochs=2")
    runs = tmp_path / "runs/tiny/demamba"
    whole, parts, last = runs / "whole", runs / "parts", runs / "whole/checkpoints/last.ckpt"
    run_forked(*fit, *zero(2), "--run.name=whole", processes=2, cwd=tmp_path)
    begin = ("--run.name=parts", "--run.checkpoint_steps=1")
    stop_at = parts / "checkpoints/last.ckpt"
    stopped = run_forked(*fit, *zero(2), *begin, processes=2, cwd=tmp_path, expect=CONTINUE_ME, stop_at=stop_at)
    assert "stopped by a signal at step" in stopped
    run_forked(*fit, *zero(2), "--run.name=parts", "--ckpt_path=last", processes=2, cwd=tmp_path)
    assert scores(whole) == scores(parts) and metrics(whole) == metrics(parts), "resumed is unbroken, to the last digit"
    for run in (whole, parts):
        states = [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
        link = run / "checkpoints/last.ckpt"
        assert link.is_symlink() and states == [link.resolve().name], "one state, and a link to it"

    # The same recipe under ddp: what is spread over the ranks changes no sum, only its order.
    run_forked(*fit, *on_two("ddp"), "--run.name=ddp", processes=2, cwd=tmp_path)
    assert scores(whole) == pytest.approx(scores(runs / "ddp"), abs=1e-4)

    validate = ["validate", *fit[1:], "--run.name=whole"]
    refused = run_forked(*validate, f"--ckpt_path={last}", processes=1, cwd=tmp_path, expect=USER_ERROR)
    assert "convert consolidate" in refused
    assert "none missing" in run_forked("convert", "consolidate", str(whole), processes=1, cwd=tmp_path)
    one = last.with_name("last-consolidated.ckpt")
    run_forked(*validate, f"--ckpt_path={one}", processes=1, cwd=tmp_path)
    assert metrics(whole / "validate-genvideo") == pytest.approx(metrics(whole), abs=1e-6)
    assert scores(whole / "validate-genvideo") == pytest.approx(scores(whole), abs=1e-6)
    again = run_forked("convert", "consolidate", str(whole), processes=1, cwd=tmp_path, expect=USER_ERROR)
    assert "exists already" in again

    best = last.with_name(json.loads((whole / "run.json").read_text())["best"])
    next((best / "checkpoint").glob("*optim_states.pt")).unlink()
    broken = run_forked("convert", "consolidate", str(whole), "--checkpoint=best", processes=1, cwd=tmp_path, expect=USER_ERROR)
    assert "not whole" in broken and not any(last.parent.glob("best*-consolidated.ckpt"))


def test_zero_3_spreads_a_network_that_was_built_whole(tiny_genvideo: Path, tmp_path: Path) -> None:
    """And refuses ranks with different numbers of batches: one would wait for ever for the other to gather the parameters."""
    fit = tiny_fit(tiny_genvideo, "--data.batch_size=4", "--trainer.limit_train_batches=2", "--trainer.max_epochs=1")
    run_forked(*fit, *zero(3), processes=2, cwd=tmp_path)
    run_forked(*fit, *on_two("ddp"), "--run.name=ddp", processes=2, cwd=tmp_path)
    (run,) = (tmp_path / "runs/tiny/demamba").glob("seed*")
    assert scores(run) == pytest.approx(scores(run.with_name("ddp")), abs=1e-4)
    assert "none missing" in run_forked("convert", "consolidate", str(run), processes=1, cwd=tmp_path)
    uneven = ("--data.val_fraction=0.1", "--data.eval_batch_size=1", "--run.name=uneven")
    output = run_forked(*fit, *zero(3), *uneven, processes=2, cwd=tmp_path, expect=USER_ERROR)
    assert "all need equally many" in output
    alone = run_forked(*fit, *zero(3)[:-1], "--run.name=alone", processes=2, cwd=tmp_path, expect=USER_ERROR)
    assert "3 batch norms (backbone.detail.1, backbone.detail.4) would keep statistics of their own" in alone
    assert not run.with_name("alone").exists() and not run.with_name("uneven").exists(), "nothing is left behind"
