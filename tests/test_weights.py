"""Where weights come from: shipped tiny models, and those that take files from others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from genlab.errors import MissingPath
from genlab.weights import assemble, resolve


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tiny models, the second of which takes its text encoder and a file from the first."""
    models = tmp_path / "tiny_models"
    (models / "one").mkdir(parents=True)
    (models / "two/unet").mkdir(parents=True)
    save_file({"text_model.weight": torch.ones(2), "vision_model.weight": torch.zeros(3)}, models / "one/model.safetensors")
    (models / "one/vocab.json").write_text("{}")
    (models / "two/unet/config.json").write_text("{}")
    (models / "two/recipe.json").write_text("{}")
    parts = {
        "text_encoder/model.safetensors": {"from": "one/model.safetensors", "prefix": "text_model."},
        "tokenizer/vocab.json": {"from": "one/vocab.json"},
    }
    (models / "two/parts.json").write_text(json.dumps(parts))
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    return models


def test_parts_are_put_together_once(shipped: Path) -> None:
    whole = assemble(shipped / "two")
    assert sorted(path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()) == [
        "text_encoder/model.safetensors",
        "tokenizer/vocab.json",
        "unet/config.json",
    ]
    assert {name: value.tolist() for name, value in load_file(whole / "text_encoder/model.safetensors").items()} == {"weight": [1.0, 1.0]}
    assert assemble(shipped / "two") == whole and [path.name for path in whole.parent.iterdir()] == [whole.name]


def test_other_parts_make_another_folder(shipped: Path) -> None:
    before = assemble(shipped / "two")
    save_file({"text_model.weight": torch.zeros(2)}, shipped / "one/model.safetensors")
    after = assemble(shipped / "two")
    assert after != before and load_file(after / "text_encoder/model.safetensors")["weight"].tolist() == [0.0, 0.0]


def test_unknown_tiny_models_are_named() -> None:
    with pytest.raises(MissingPath, match="there is no tiny model 'tiny:three'"):
        resolve("tiny:three")
