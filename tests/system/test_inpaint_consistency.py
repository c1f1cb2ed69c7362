"""The study through the command line: killed anywhere, on several processes, and its report in a browser."""

from __future__ import annotations

import csv
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from datamodules.tinyworld import make
from tests.methods.counting_inpainter import Counting
from tests.system.programs import run, start
from tests.test_reports import Tags, dump, needs_browser, references_nothing_outside

pytestmark = [pytest.mark.system, pytest.mark.slow]
REPOSITORY = Path(__file__).parents[2]
HOSTILE = ['<img src=x onerror="document.title=1">', "a & b|c ＝ürgh 'x'", "</td></table><script>document.title=1<script>"]


def configuration(folder: Path, root: Path, log: str, kill_at: int = 0) -> Path:
    """A study with a second inpainter that counts, and may kill."""
    counting = {"class_path": "tests.methods.counting_inpainter.Counting", "init_args": {"log": log, "kill_at": kill_at, "batch_size": 3}}
    model = {
        "f1": [{"class_path": "genlab.models.inpainters.Harmonic", "init_args": {"iterations": 20}}, counting],
        "f2": [counting],
        "distances": ["l1", "psnr"],
        "k": 4,
    }
    path = folder / "study.yaml"
    content = {
        "seed_everything": 0,
        "model": {"class_path": "genlab.methods.inpaint_consistency.InpaintConsistency", "init_args": model},
        "data": {"class_path": "datamodules.inpainting.Inpainting", "init_args": {"root": str(root), "size": 32, "batch_size": 2}},
        "trainer": {"accelerator": "cpu", "logger": False, "enable_progress_bar": False},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs/study/seed0/test-inpainting/rows.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny pictures, and a folder in which a study of them ran without a break."""
    folder = tmp_path_factory.mktemp("study")
    root = make("inpainting", folder / "pictures", progress=False, pictures=5, size=32)
    run("test", "-c", str(configuration(folder, root, str(folder / "log"))), cwd=folder, PYTHONPATH=str(REPOSITORY))
    return root, folder


def test_killed_and_continued_it_loses_nothing_and_repeats_nothing(unbroken: tuple[Path, Path], tmp_path: Path) -> None:
    root, whole = unbroken
    log = str(tmp_path / "log")
    total = len(Counting(str(whole / "log")).filled)
    assert total == 5 + 2 * 5 * 4
    for kill_at in (total // 2, total // 2 + 9):
        process = start("test", "-c", str(configuration(tmp_path, root, log, kill_at)), cwd=tmp_path, PYTHONPATH=str(REPOSITORY))
        process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL and 0 < len(Counting(log).filled) <= kill_at
    run("test", "-c", str(configuration(tmp_path, root, log)), cwd=tmp_path, PYTHONPATH=str(REPOSITORY))
    assert sorted(Counting(log).filled) == sorted(Counting(str(whole / "log")).filled)
    assert rows(tmp_path) == rows(whole)


def test_two_processes_give_the_rows_of_one(unbroken: tuple[Path, Path], tmp_path: Path) -> None:
    root, whole = unbroken
    config = configuration(tmp_path, root, str(tmp_path / "log"))
    two = ("--trainer.devices=2", "--trainer.strategy=ddp")
    run("test", "-c", str(config), *two, cwd=tmp_path, PYTHONPATH=str(REPOSITORY))
    assert rows(tmp_path) == rows(whole)
    filled = len(Counting(str(tmp_path / "log")).filled)
    run("test", "-c", str(config), cwd=tmp_path, PYTHONPATH=str(REPOSITORY))
    assert rows(tmp_path) == rows(whole) and len(Counting(str(tmp_path / "log")).filled) == filled, "one process finds what two have left"


@needs_browser
def test_the_report_opens_from_disk_sorts_and_searches_and_strange_names_stay_text(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(1)
    names = [name.replace("/", "∕") for name in HOSTILE]
    for name in names:
        Image.fromarray(rng.integers(0, 255, (36, 48, 3), dtype=np.uint8)).save(photos / f"{name}.png")
    options = ("--data.root", str(photos), "--data.size=32", "--model.k=2", "--model.sanity=false", "--trainer.enable_progress_bar=false")
    gate = ("--model.gate.limit=0.001", "--model.gate.method=telea")
    said = run("test", "-c", "tiny/inpaint_consistency", *options, *gate, cwd=tmp_path, expect=1)
    assert "gate: l1 was to be at most 0.001; telea>telea has 0." in said and "Traceback" not in said
    folder = tmp_path / "runs/tiny/inpaint_consistency/seed0/test-inpainting"
    assert {"results.json", "rows.csv", "leaderboard.md", "predictions.csv"} <= {path.name for path in folder.iterdir()}
    html = (folder / "report.html").read_text()
    dom = dump(folder / "report.html", tmp_path / "profile")
    assert references_nothing_outside(dom) and "<title>1</title>" not in dom and '<html lang="en" class="js">' in dom
    assert sum(tag == "script" for tag, _ in Tags(dom).found) == 1
    assert len(re.findall(r"<td[^>]*>&lt;img src=x onerror=(?:&#34;|\")document", html)) == 1
    click = """
      const field = document.querySelector('input.search'), table = field.closest('figure').querySelector('table');
      const buttons = [...table.querySelectorAll('thead button')];
      buttons.find(each => each.textContent === 'noise').click();
      const shown = () => [...table.tBodies[0].rows].filter(row => !row.hidden);
      const column = buttons.findIndex(each => each.textContent === 'noise');
      const sorted = shown().map(row => Number(row.cells[column].dataset.sort));
      field.value = 'A & B'; field.dispatchEvent(new Event('input'));
      const found = shown().map(row => row.cells[0].textContent);
      document.querySelector('button.enlarge').click();
      document.title = JSON.stringify([sorted, found, document.querySelectorAll('figure.large').length]);
    """
    page = tmp_path / "clicked.html"
    page.write_text(re.sub(r"<meta http-equiv[^>]*>", "", html).replace("</body>", f"<script>{click}</script></body>"))
    title = re.search(r"<title>(.*?)</title>", dump(page, tmp_path / "profile"))
    assert title is not None
    numbers, found, large = yaml.safe_load(title[1].replace("&amp;", "&"))
    assert numbers == sorted(numbers, reverse=True) and len(numbers) == 3
    assert found == [f"{names[1]}.png"] and large == 1


def test_there_is_nothing_to_fit(tmp_path: Path) -> None:
    said = run("fit", "-c", "tiny/inpaint_consistency", cwd=tmp_path, expect=2)
    assert "there is nothing to train" in said and not (tmp_path / "runs").exists()
