"""Text weights written for the official code are read back as what CPR computes itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datamodules.fewshot_images import FewShotImages
from datamodules.tinyworld import make
from genlab.errors import UserError
from genlab.models.clip_loading import load_clip
from genlab.models.official_few_shot import read_official, read_text_weights
from genlab.models.prompts import class_texts, text_prototypes
from genlab.verbs.data import main
from tests.tiny_clip import tiny_clip


def test_written_and_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, clip = make("dtd", tmp_path / "dtd", progress=False, size=32, train=2, val=1, test=1), str(tiny_clip(tmp_path / "clip", 32))
    words = ["prepare", "text_weights", "--dataset", "dtd", "--root", str(root), "--backbone", clip, "--out", str(tmp_path / "t.pt")]
    assert main(words) == 0
    assert "--model.text_weights" in capsys.readouterr().out
    held, backbone = read_official(tmp_path / "t.pt"), load_clip(clip)
    data = FewShotImages(root=str(root), dataset="dtd", image_size=32)
    data.setup("fit")
    known = data.classes("train")
    assert held.dtype == torch.float16 and held.shape == (backbone.width, len(known.names))
    own = text_prototypes(backbone, class_texts(known.names, known.templates, data.descriptions("train")))
    assert torch.allclose(read_text_weights(tmp_path / "t.pt", backbone.width, len(known.names)), own, atol=2e-3)
    with pytest.raises(UserError, match="exists already"):
        main(words)
