"""Runs side by side: real fits of two methods over two seeds, compared through the command line."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from genlab.cli import main
from genlab.comparison.records import read_runs
from genlab.comparison.statistics import estimate, grouped, over_samples, over_seeds
from genlab.files import read_csv, read_json, write_json

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
HOSTILE = "<script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def runs(tiny_genvideo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two heads, two seeds, trained for two steps and tested; one run has a hostile name."""
    folder = tmp_path_factory.mktemp("compared")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    for head in ("demamba", "pool"):
        for seed in (1, 2):
            name = f"{head}{seed}" if (head, seed) != ("pool", 2) else "pool2" + HOSTILE.replace("/", "")
            common = [
                "-c", "tiny/demamba", f"--data.root={tiny_genvideo}", "--data.num_workers=0", f"--seed_everything={seed}",
                f"--model.head={head}", f"--run.name={name}", "--trainer.enable_progress_bar=false",
            ]  # fmt: skip
            short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.log_every_n_steps=1"]
            assert main(["fit", *common, *short]) == 0
            assert main(["test", *common, "--ckpt_path=last"]) == 0
    patch.undo()
    return folder / "runs"


@pytest.mark.slow
def test_groups_intervals_and_paired_tests(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    records = read_runs([runs])
    assert [record.seed for record in records] == [1, 2, 1, 2] and {record.evaluation for record in records} == {"test-genvideo"}
    groups = grouped(records, ["seed"])
    assert [len(group.records) for group in groups] == [2, 2] and "model.head" in groups[0].name
    files = {kind: tmp_path / f"table.{kind}" for kind in ("html", "csv", "markdown", "latex")}
    monkeypatch.chdir(runs.parent)
    baseline = next(group.name for group in groups if "pool" in group.name)
    options = [f"--{kind}={path}" for kind, path in files.items()]
    assert main(["compare", "runs", "--metric", "test/ap", "--baseline", baseline, *options]) == 0
    printed = capsys.readouterr().out
    assert "paired over seeds" in printed and "paired over samples" in printed and "warning: protocol" not in printed
    rows = read_csv(files["csv"])
    values = [float(read_json(record.folder / "results.json")["metrics"]["test/ap"]) for record in records if record.folder]
    assert [float(row["test/ap"]) for row in rows] == pytest.approx(values)
    mean = f"{sum(values[:2]) / 2:.4g} ± "
    assert mean in files["markdown"].read_text() and r"$\pm$" in files["latex"].read_text() and r"\toprule" in files["latex"].read_text()
    found = over_seeds(groups[0], groups[1], "test/ap")
    assert found is not None and found["seeds"] == 2 and found["low"] < found["difference"] < found["high"]
    own = read_csv(records[0].folder / "predictions.csv") if records[0].folder else []
    assert [row["difference"] for row in over_samples(own, own, 100)] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.system
def test_the_page_in_a_browser(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hostile names stay text, nothing is loaded, nothing complains; 500 runs stay usable."""
    assert BROWSER, "Debian: apt install chromium"
    many = tmp_path / "runs"
    one = next(path for path in sorted((runs / "tiny/demamba").iterdir()) if (path / "run.json").is_file())
    for number in range(500):
        shutil.copytree(one, many / f"r{number:03d}", ignore=shutil.ignore_patterns("checkpoints", "media", "*.html", "tensorboard"))
    for folder in (runs, many):
        page = tmp_path / f"{folder.parent.name}.html"
        assert main(["compare", str(folder), "--html", str(page)]) == 0
        profile = f"--user-data-dir={tmp_path / 'browser'}"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom", "--no-first-run", profile]
        offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking"]
        ran = subprocess.run([BROWSER, *flags, *offline, page.as_uri()], capture_output=True, text=True, timeout=120)
        assert "<title>Comparison</title>" in ran.stdout and "CONSOLE" not in ran.stderr, ran.stderr
        assert page.stat().st_size < 20_000_000 and 'src="http' not in ran.stdout
    capsys.readouterr()


@pytest.mark.slow
def test_other_protocols_are_said(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(runs, tmp_path / "runs"))
    results = sorted(copy.rglob("test-genvideo/results.json"))[0]
    content = read_json(results)
    content["protocol"]["fps"], content["data_fingerprint"]["test"], content["counts"]["n_scored"] = 4.0, "other", 1
    write_json(results, content)
    assert main(["compare", str(copy)]) == 0
    printed = capsys.readouterr().out
    assert "warning: protocol fps differs: 4.0" in printed and "warning: test data differs" in printed and "only 1 of" in printed
    results.write_text("{")
    assert main(["compare", str(copy)]) == 2 and "Mend or move this run" in capsys.readouterr().err


@pytest.mark.slow
def test_what_the_user_can_mend(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([str(tmp_path / "gone")], "is no folder"),
        ([str(tmp_path)], "has left a results.json"),
        ([str(runs), "--metric", "test/app"], "did you mean 'test/ap'?"),
        ([str(runs), "--baseline", "nothing"], "is no run, group or experiment"),
        ([str(runs), "--baseline", "tiny/demamba"], "has several groups"),
        ([str(runs), "--wandb", "project"], "is not of the form entity/project"),
        ([str(runs), "--markdown", str(tmp_path)], "is there and no plain file"),
        ([str(runs), "--latex", "/dev/stdout"], "is there and no plain file"),
    ):
        assert main(["compare", *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_wandb_is_merged_by_id(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A stand-in for the API, since there is no network: one run that a folder knows, one that is only there."""
    import wandb

    folder = sorted((runs / "tiny/demamba").iterdir())[0]
    record = read_json(folder / "run.json")
    write_json(folder / "run.json", record | {"wandb": {"id": "abc"}})
    there: list[Any] = [
        SimpleNamespace(id="abc", name="a", group=None, state="finished", summary={"test/extra": 0.5, "test/ap": 0.0}, config={}),
        SimpleNamespace(id="xyz", name="far", group="g", state="finished", summary={"test/ap": 0.75}, config={"seed_everything": 3}),
    ]
    monkeypatch.setattr(wandb, "Api", lambda: SimpleNamespace(runs=lambda project: there))
    assert main(["compare", str(runs), "--wandb", "me/it", "--metric", "test/ap", "test/extra"]) == 0
    printed = capsys.readouterr().out
    assert "wandb:me/it/far" in printed and "0.7500" in printed and "0.5000" in printed and printed.count("wandb:") == 1
    write_json(folder / "run.json", record)


def test_student_and_mcnemar() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.deviation) == (2.0, 1.0) and found.high == pytest.approx(2 + 4.302653 / 3**0.5, rel=1e-6)
    right = [{"id": str(i), "label": "cat", "score": "", "status": "ok", "called": "cat" if i < 9 else "dog"} for i in range(10)]
    other = [{**row, "called": "cat" if i < 3 else "dog"} for i, row in enumerate(right)]
    (row,) = over_samples(right, other)
    assert row["difference"] == pytest.approx(0.6) and row["p"] == pytest.approx(2 * 0.5**6) and row["samples"] == 10
    scores = [{"id": str(i), "label": str(i % 2), "score": str(i % 2), "status": "ok"} for i in range(40)]
    worse = [{**row, "score": str((i * 7 % 40) / 40)} for i, row in enumerate(scores)]
    ap, auroc = over_samples(scores, worse)
    assert ap["measure"] == "AP" and ap["difference"] > 0 and ap["low"] > 0 and auroc["p"] <= 0.05
