"""The wheel is whole: installed elsewhere, it finds its experiments from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.system, pytest.mark.slow]


def test_a_wheel_works_from_any_folder(tmp_path: Path, tiny_genvideo: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, cwd=tmp_path, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {path.relative_to(ROOT).as_posix() for folder in ("experiments", "slurm") for path in (ROOT / folder).rglob("*.*")}
    assert shipped <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "docs/"))]
    site = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    where = subprocess.run(
        [sys.executable, "-c", "import genlab, datamodules; print(genlab.__file__)"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert where.stdout.startswith(str(site))
    listed = subprocess.run([sys.executable, "-m", "genlab", "list"], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert listed.returncode == 0 and "tiny/demamba" in listed.stdout
    fit = ["fit", "-c", "tiny/demamba", "-c", "trainer/fast", f"--data.root={tiny_genvideo}", "--data.num_workers=0", "--data.batch_size=4"]
    ran = subprocess.run([sys.executable, "-m", "genlab", *fit], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (tmp_path / "runs/tiny/demamba/seed1/report.html").is_file()
