"""What becomes of a job that ended, by exit code and by what was reached."""

from __future__ import annotations

import pytest

from genlab.files import write_json
from genlab.jobs import MAX_CRASHES, MAX_STOPS, judge, main, note_end
from genlab.results import RunFolder, slurm_job


@pytest.mark.parametrize(
    ("code", "again"), [(0, False), (2, False), (3, False), (130, False), (75, True), (138, True), (1, True), (137, True)]
)
def test_stopped_and_crashed_go_on_and_nothing_else(code: int, again: bool) -> None:
    assert judge(code, {}, None).again is again


@pytest.mark.parametrize(("code", "limit"), [(1, MAX_CRASHES), (75, MAX_STOPS)])
def test_a_loop_without_progress_ends_and_progress_starts_the_count_anew(tmp_path, code: int, limit: int) -> None:
    run = RunFolder(tmp_path)
    write_json(tmp_path / "run.json", {"state": "running", "step": 7})
    verdicts = [note_end(run, code) for _ in range(limit)]
    assert [v.again for v in verdicts] == [True] * (limit - 1) + [False]
    assert run.record["state"] == ("failed" if code == 1 or limit == 1 else "preempted") and run.record["step"] == 7
    assert "given up" in verdicts[-1].why
    run.checkpoints.mkdir()
    run.last_checkpoint.write_bytes(b"new")
    assert note_end(run, code).again and run.record["ended_early"]["futile"] == 1


def test_nothing_is_asked_of_slurm_for_what_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    for code, word in ((0, "finished"), (2, "mended"), (3, "could not be read")):
        assert main([str(code), "-c", "no/such/file"]) == 0
        assert word in capsys.readouterr().out


def test_a_task_of_an_array_is_named_alone() -> None:
    assert slurm_job({"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3"}) == "9_3"
    assert slurm_job({"SLURM_JOB_ID": "12"}) == "12" and slurm_job({}) is None
