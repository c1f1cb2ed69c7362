"""The run folder: who owns it, and files that are whole or absent."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genlab.errors import UserError
from genlab.files import fingerprint, read_csv, write_bytes, write_csv, write_json
from genlab.results import RunFolder, config_hash, living_owner, metric_tables


def test_a_living_process_keeps_its_run_folder(tmp_path: Path) -> None:
    code = f"import pathlib, genlab.results as r; r.RunFolder(pathlib.Path({str(tmp_path)!r})).start('x'); print('on', flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "on\n"
    with pytest.raises(UserError, match=f"process {other.pid} on"):
        RunFolder(tmp_path).start("y")
    other.kill()
    other.wait()
    RunFolder(tmp_path).start("y")  # its owner was killed: free at once, and counted as a start after an accident
    record = RunFolder(tmp_path).record
    assert record["pid"] == os.getpid() and record["requeues"] == 1 and record["state"] == "running"
    RunFolder(tmp_path).finish("finished")
    assert living_owner(RunFolder(tmp_path).record) is None


def test_a_process_number_that_was_used_again_owns_nothing() -> None:
    record = {"state": "running", "host": socket.gethostname(), "pid": 1, "pid_started": "not this one's", "seen": time.time()}
    assert living_owner(record) is None


def test_another_host_is_alive_while_it_gives_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"state": "running", "host": "elsewhere", "pid": 1, "seen": time.time(), "job": "77"}
    assert "elsewhere" in (living_owner(record) or "")
    assert living_owner({**record, "seen": time.time() - 3600}) is None
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert living_owner(record) is None, "the same job, requeued to another node"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_bytes(path, "text, not bytes")  # type: ignore[arg-type]
    assert json.loads(path.read_text()) == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"nan": float("nan"), "inf": [float("inf")], "path": Path("x"), "n": 3})
    assert json.loads((tmp_path / "a.json").read_text()) == {"nan": None, "inf": [None], "path": "x", "n": 3}


def test_csv_keeps_hostile_cells(tmp_path: Path) -> None:
    rows = [{"id": 'a,"b"\nc', "score": 0.1}, {"id": "é", "more": "x"}]
    write_csv(tmp_path / "p.csv", rows, ("id", "label"))
    assert read_csv(tmp_path / "p.csv") == [
        {"id": 'a,"b"\nc', "label": "", "score": "0.1", "more": ""},
        {"id": "é", "label": "", "score": "", "more": "x"},
    ]


def test_fingerprints_name_content_not_order() -> None:
    assert fingerprint([("a", 1), ("b", 2)]) == fingerprint([("b", 2), ("a", 1)]) != fingerprint([("a", 1), ("b", 3)])
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1}) != config_hash({"a": 1, "b": 3})


def test_metrics_become_tables() -> None:
    logged = {"test/Sora/ap": 0.5, "test/Gen2/ap": 1.0, "test/Sora/n": 56.0, "test/ap": 0.75, "test/real_acc": 0.9, "val/ap": 0.1}
    tables = metric_tables(logged, "test")
    assert tables["sets"] == [
        {"set": "Gen2", "ap": 1.0},
        {"set": "Sora", "ap": 0.5, "n": 56},
        {"set": "mean over sets", "ap": 0.75, "n": None},
    ]
    assert tables["whole"] == [{"metric": "real_acc", "value": 0.9}]
    assert metric_tables({"train/loss": 1.0}, "test") == {}
