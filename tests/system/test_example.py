"""The example of docs/adding_a_method.md is what it says: complete, short, and running."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genlab.files import read_csv
from tests.system.programs import SMALL, run

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples"


def test_the_example_is_short() -> None:
    assert len((EXAMPLES / "frame_probe.py").read_text().splitlines()) < 120


@pytest.mark.system
@pytest.mark.slow
def test_the_example_trains_evaluates_and_reports(tiny_genvideo: Path, tmp_path: Path) -> None:
    arguments = ["-c", str(EXAMPLES / "frame_probe.yaml"), f"--data.root={tiny_genvideo}", *SMALL]
    run("fit", *arguments, "--trainer.max_epochs=2", cwd=tmp_path, PYTHONPATH=str(EXAMPLES))
    run("test", *arguments, cwd=tmp_path, PYTHONPATH=str(EXAMPLES))
    folder = tmp_path / "runs/frame_probe/seed1"
    assert (folder / "report.html").is_file() and (folder / "test-genvideo/media/scores.png").is_file()
    metrics = json.loads((folder / "test-genvideo/results.json").read_text())["metrics"]
    assert 0 <= metrics["test/ap"] <= 1
    assert len(read_csv(folder / "test-genvideo/predictions.csv")) > 0
