"""A sweep of few-shot methods: resumable cells, the table beside published numbers, and its arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from genlab.errors import UserError
from genlab.files import read_csv, read_json
from genlab.verbs.sweep import NNR, base_to_new_table, differences, few_shot_table, labelled, main
from tests.tiny_clip import tiny_clip


def row(method: str, dataset: str, shots: int, seed: int, acc: float, **more: Any) -> dict[str, Any]:
    return {"method": method, "dataset": dataset, "shots": shots, "seed": seed, "acc": acc, "flags": "", **more}


def test_the_table_is_averaged_over_seeds_then_datasets() -> None:
    rows = [
        row("coop", dataset, 4, seed, acc)
        for dataset, accs in {"dtd": (0.5, 0.7), "eurosat": (0.1, 0.2)}.items()
        for seed, acc in enumerate(accs)
    ]
    rows += [row("cpr", "dtd", 4, seed, 0.6, acc_nnr=0.8, flags="chosen by test pictures") for seed in (0, 1)]
    published = {"shots": [1, 4], "accuracy": {"dtd": {"CoOp": [44.10, 53.53]}}}
    table = {(line["dataset"], line["method"]): line for line in few_shot_table(labelled(rows, ["acc"]), published)}
    assert table["dtd", "CoOp"]["4 shots"] == "60.00 ± 14.14" and table["dtd", "CoOp"]["4, published"] == 53.53
    assert table["average", "CoOp"]["4 shots"] == "37.50 ± 10.61", "deviation of the seeds' averages over datasets"
    assert table["dtd", f"{NNR} *"]["4 shots"] == "80.00 ± 0.00"
    compared = differences(labelled(rows, ["acc"]), "acc", "CoOp")
    assert {line["difference"]: line["mean"] for line in compared} == {"CoOp - CPR *": 0.0, f"CoOp - {NNR} *": -20.0}
    assert compared[0]["pairs"] == 2 and compared[0]["low"] == pytest.approx(-127.06, abs=0.01)


def test_harmonic_means() -> None:
    metrics = [{"base/acc": 0.8, "new/acc": 0.4, "harmonic_mean": 0.5333}, {"base/acc": 0.6, "new/acc": 0.8, "harmonic_mean": 0.6857}]
    rows = [row("coop", dataset, 16, 1, 0.0, **each) for dataset, each in zip(("dtd", "eurosat"), metrics)]
    table = base_to_new_table(labelled(rows, ["base/acc", "new/acc", "harmonic_mean"]), None)
    assert [line["H"] for line in table] == ["53.33", "68.57", "64.62"] and table[2]["mean of H"] == 60.95


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "cprr", "--datasets", "dtd"], "there is no 'cprr'; did you mean 'cpr'"),
        (["--methods", "cpr", "--datasets", "dtd", "--shots", "x"], "--shots: 'x' is no number"),
        (["--methods", "tip_adapter,cpr", "--datasets", "dtd", "--protocol", "base_to_new"], "tip_adapter cannot move to new classes"),
        (["--methods", "cpr", "--datasets", "dtd", "--modell.lr=1"], "modell"),
    ],
)
def test_mistakes(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        main([*words, "--out", str(tmp_path)])


@pytest.mark.slow
@pytest.mark.system
def test_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from datamodules.tinyworld import make

    clip = tiny_clip(tmp_path / "clip", 32)
    make("dtd", tmp_path / "dtd", progress=False, size=32, train=3, val=2, test=2)
    words = ["--experiments", "tiny", "--datasets", "dtd", "--shots", "1,2", "--out", str(tmp_path / "sweep"), f"--model.backbone={clip}"]
    words += [f"--data.root={tmp_path}", "--data.image_size=32", "--data.views=2", "--trainer.max_epochs=1"]
    assert main(["--methods", "zero_shot,cpr", "--seeds", "1", *words]) == 0
    logs = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep" / "logs").iterdir()}
    assert len(logs) == 4
    assert main(["--methods", "zero_shot,cpr", "--seeds", "1,2", *words]) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in logs.items()), "cells that are done are left alone"
    rows = read_csv(tmp_path / "sweep" / "results.csv")
    assert len(rows) == 8 and {line["method"] for line in rows} == {"zero_shot", "cpr"}
    content = read_json(tmp_path / "sweep" / "results.json")
    assert {line["method"] for line in content["table"]} == {"CLIP", "CPR", NNR} and content["table"][0].keys() >= {"1 shots", "2 shots"}
    printed = capsys.readouterr().out
    assert "CPR + NNR" in printed and "published" in printed
    for name in ("report.html", "shots.png", "reliability.png"):
        assert (tmp_path / "sweep" / name).stat().st_size > 1000
