"""The page at the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from callbacks.environment import write_report
from genlab.results import RunFolder


def test_an_answer_without_a_score_is_not_plotted(tmp_path: Path) -> None:
    """A model that refuses to judge a picture has answered, but its score is unknown."""
    results: dict[str, Any] = {
        "counts": {"n_expected": 3, "n_scored": 3},
        "steps": 0,
        "wall_seconds": 1.0,
        "peak_memory_bytes": 1,
        "seed": 0,
    }
    results |= {"trainable_parameters": 0, "git": "", "versions": {}, "data_fingerprint": {}, "protocol": {}, "stage": "test"}
    rows = [{"id": str(i), "label": i % 2, "score": score, "status": "ok"} for i, score in enumerate((0.1, 0.9, ""))]
    write_report(RunFolder(tmp_path), "Title", results, {}, rows, None)
    assert (tmp_path / "media" / "scores.png").is_file() and (tmp_path / "report.html").is_file()
