"""Finds the reference numbers that the tests marked ``golden`` compare with.

They lie in ``tests/golden/<method>/``; ``GENLAB_GOLDEN`` names another folder of the same form.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(os.environ.get("GENLAB_GOLDEN", Path(__file__).parent / "golden"))


def golden_files(method: str, name: str) -> list[Any]:
    """Parameters for ``pytest.mark.parametrize``: every ``<name>*.json`` of the method, or one that fails because there is none."""
    found = sorted((ROOT / method).glob(f"{name}*.json"))
    return [pytest.param(path, id=f"{method}-{path.stem}") for path in found or [ROOT / method / f"{name}-not-found.json"]]


def load_golden(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The JSON and, where there is one, the tensors beside it. Fails where the file is missing."""
    if not path.is_file():
        pytest.fail(f"no golden file matches {path.parent / path.stem.removesuffix('-not-found')}*.json")
    tensors = path.with_suffix(".safetensors")
    return json.loads(path.read_text()), load_file(tensors) if tensors.is_file() else {}


def assert_close(found: torch.Tensor, expected: torch.Tensor, tol: dict[str, Any], what: str) -> None:
    """Applies a golden file's ``tol``: ``scaled`` means max|x - ref| <= atol * (1 + max|ref|), else element by element."""
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    found, expected = found.double(), expected.double()
    assert torch.isfinite(found).all(), f"{what}: not finite"
    if expected.numel() == 0:
        return
    error = (found - expected).abs()
    allowed = tol["atol"] * (1 + expected.abs().max()) if tol.get("scaled") else tol["atol"] + tol["rtol"] * expected.abs()
    assert (error <= allowed).all(), f"{what}: off by {error.max():.3e}"
