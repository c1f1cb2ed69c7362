"""``genlab doctor``: a sound machine passes, what is wrong is named with its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from genlab.verbs.doctor import Finding, check_decoders, check_folders, check_packages, check_wandb, main, requirements


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "HF_HOME", "HF_HUB_CACHE", "GENLAB_DATA", "GENLAB_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    for name, folder in {"HOME": "home", "GENLAB_CACHE": "home/cache", "NETRC": "home/netrc"}.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def by_check(findings: object) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}  # type: ignore[attr-defined]


@pytest.mark.slow
def test_this_machine_passes_and_nothing_is_left_behind(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "GenLab can run here." in printed
    assert all(name in printed for name in ("torch", "mamba-ssm", "deepspeed", "decord", "PyAV", "libx264", "numba", "SLURM", "W&B"))
    assert list(home.iterdir()) == []


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_fails(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "file").write_text("in the way")
    monkeypatch.setenv("GENLAB_CACHE", str(home / "file" / "cache"))
    assert main([]) == 1
    printed = capsys.readouterr().out
    assert "Needed:\n  cache: Set GENLAB_CACHE to a folder that you may write to." in printed


def test_both_decoders_decode() -> None:
    findings = by_check(check_decoders())
    assert {name: finding.status for name, finding in findings.items()} == {"libx264 in PyAV": "ok", "decord": "ok", "PyAV": "ok"}


def test_declared_ranges_are_those_of_the_packaging() -> None:
    names = [Requirement(line).name for line in requirements()]
    assert "torch" in names and "av" in names and "mamba-ssm" not in names and len(set(names)) == len(names)
    assert [finding.status for finding in check_packages()] == ["ok"]


def test_folders_of_data_and_weights(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_DATA", str(home))
    monkeypatch.setenv("GENLAB_WEIGHTS", str(home / "nowhere"))
    findings = by_check(check_folders())
    assert findings["GENLAB_DATA"].status == "ok"
    assert findings["GENLAB_WEIGHTS"].status == "warning" and "nowhere" in findings["GENLAB_WEIGHTS"].found
    monkeypatch.delenv("GENLAB_DATA")
    finding = by_check(check_folders())["GENLAB_DATA"]
    assert finding.status == "missing" and not finding.required and "export GENLAB_DATA" in finding.remedy


def test_wandb_says_whether_runs_are_sent_and_never_with_which_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> Finding:
        return by_check(check_wandb())["W&B"]

    assert found().status == "missing" and not found().required
    (home / "netrc").write_text("machine api.wandb.ai login user password not-to-be-shown\n")
    (home / "netrc").chmod(0o600)
    assert found().status == "ok" and "not-to-be-shown" not in repr(found())
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert found().status == "ok" and "offline" in found().found
