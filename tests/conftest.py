"""Datasets and runs that several tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # transformers imports DeepSpeed where it is installed, and that looks for GPUs


@pytest.fixture(scope="session")
def tiny_genvideo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small GenVideo in its real layout: 6 training generators x 12 clips, 6 test generators x 4, and reals."""
    from datamodules.tinyworld import make

    return make("genvideo", tmp_path_factory.mktemp("genvideo") / "GenVideo", progress=False, train_clips=12, test_clips=4)
