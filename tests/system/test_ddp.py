"""Several processes (gloo, CPU) against one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genlab.files import read_csv
from tests.system.programs import run, tiny_fit

pytestmark = [pytest.mark.system, pytest.mark.slow]


def test_two_processes_measure_what_one_does(tiny_genvideo: Path, tmp_path: Path) -> None:
    """Same metrics to the last digit that the order of additions leaves, and every clip counted once."""
    run(*tiny_fit(tiny_genvideo, "--trainer.max_epochs=2", "--run.name=a"), cwd=tmp_path)
    best = tmp_path / "runs/tiny/demamba/a/checkpoints/best.ckpt"
    found = {}
    for devices in (1, 2):
        arguments = ["test", *tiny_fit(tiny_genvideo)[1:], f"--ckpt_path={best}", f"--trainer.devices={devices}"]
        strategy = ["--trainer.strategy=ddp"] if devices > 1 else []
        run(*arguments, *strategy, cwd=tmp_path)
        folder = tmp_path / "runs/tiny/demamba/a/test-genvideo"
        results = json.loads((folder / "results.json").read_text())
        rows = read_csv(folder / "predictions.csv")
        assert len({row["id"] for row in rows}) == len(rows) == results["counts"]["n_expected"]
        found[devices] = (results["metrics"], {row["id"]: float(row["score"]) for row in rows})
    assert found[1][0].keys() == found[2][0].keys()
    for name, value in found[1][0].items():
        assert found[2][0][name] == pytest.approx(value, abs=1e-6), name
    assert found[1][1] == pytest.approx(found[2][1], abs=1e-6)


def test_two_processes_train_and_resume(tiny_genvideo: Path, tmp_path: Path) -> None:
    arguments = tiny_fit(tiny_genvideo, "--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=4")
    run(*arguments, "--run.name=whole", "--trainer.max_epochs=3", cwd=tmp_path)
    run(*arguments, "--run.name=parts", "--trainer.max_epochs=2", cwd=tmp_path)
    run(*arguments, "--run.name=parts", "--trainer.max_epochs=3", "--ckpt_path=last", cwd=tmp_path)
    import torch

    whole, parts = (
        torch.load(tmp_path / f"runs/tiny/demamba/{name}/checkpoints/last.ckpt", weights_only=True) for name in ("whole", "parts")
    )
    assert whole["global_step"] == parts["global_step"] > 0
    for key, value in whole["state_dict"].items():
        torch.testing.assert_close(value, parts["state_dict"][key], atol=1e-6, rtol=1e-5)


def test_every_parameter_takes_part(tiny_genvideo: Path, tmp_path: Path) -> None:
    """Plain ``ddp`` stops at a parameter without a gradient, so two steps are proof."""
    for head in ("demamba", "pool"):
        more = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.limit_train_batches=2", "--trainer.max_epochs=1"]
        run(*tiny_fit(tiny_genvideo, *more, f"--model.head={head}", f"--run.name={head}"), cwd=tmp_path)
