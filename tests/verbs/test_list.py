"""``genlab list``: complete, true to the files, and quick."""

from __future__ import annotations

import subprocess
import sys

import pytest

from datamodules.tinyworld import DATASETS
from genlab.config.experiments import shipped_experiments, shipped_root
from genlab.verbs.list import METHODS, NOT_YET, experiments, main, methods


def test_the_ten_methods_with_what_their_files_say(capsys: pytest.CaptureFixture[str]) -> None:
    found = dict(methods())
    assert list(found) == list(METHODS) and len(found) == 10
    for name, line in found.items():
        file, folder = (shipped_root() / "genlab" / "methods" / path for path in (f"{name}.py", f"{name}/__init__.py"))
        source = next((path.read_text() for path in (file, folder) if path.is_file()), None)
        assert line == NOT_YET if source is None else line and source.startswith(f'"""{line}')
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*METHODS, *DATASETS, *shipped_experiments(), "judge"))


def test_every_shipped_experiment_says_what_it_is() -> None:
    assert [name for name, line in experiments() if not line] == []


def test_nothing_heavy_is_imported() -> None:
    program = "import sys; from genlab.verbs.list import main; main([]); print(sorted({'torch', 'lightning', 'av'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], cwd=shipped_root(), capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
