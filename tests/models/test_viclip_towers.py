"""ViCLIP with its tokenizer: what contrastive training builds, exports and reads again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from genlab.methods.pretraining.tokenizer import learn_tokenizer
from genlab.models.viclip import load_viclip
from genlab.models.viclip_towers import ViCLIPSettings
from genlab.weights import resolve

TEXTS = ["a red star sliding to the left", "a blue ring spinning clockwise.", "rising"]


@torch.no_grad()
def test_exported_towers_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = ViCLIPSettings(vision_layers=1, text_layers=1)
    towers = settings.build(learn_tokenizer(TEXTS, max_length=12))
    towers.export(tmp_path)
    again = settings.load(str(tmp_path))
    clips, tokens = torch.rand(2, 8, 3, 32, 32), towers.tokenize(TEXTS)
    assert torch.equal(again.tokenize(TEXTS), tokens) and again.tokenize(["a star " * 30]).shape == (1, 12)
    for name, inputs in (("encode", clips), ("encode_text", tokens)):
        one, other = (F.normalize(getattr(each, name)(inputs), dim=-1) for each in (towers, again))
        assert torch.allclose(one, other, atol=0.01), name  # half precision
    assert towers.scale() == pytest.approx(1 / 0.07) and towers.kind == "video"
    assert towers.text_states(tokens).shape == (3, tokens.shape[1], 64)


def test_pixels_are_normalised_as_the_official_model_wants_them() -> None:
    towers = ViCLIPSettings(vision_layers=1, text_layers=1, frame_differences=False, tubelet=1).build(learn_tokenizer(TEXTS))
    seen: list[torch.Tensor] = []
    towers.get_submodule("model.vision_encoder.conv1").register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    towers.encode(torch.ones(1, 8, 3, 32, 32))
    assert torch.allclose(seen[0][0, :, 0, 0, 0], torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]))


@pytest.mark.slow
def test_the_shipped_model_leaves_adaptation_something_to_do(tmp_path: Path) -> None:
    """It knows most actions in a style it has never seen, not all, and needs the order of frames for them (chance: 0.06)."""
    from transformers import CLIPTokenizer

    from benchmarks.viclip_zero_shot import zero_shot
    from datamodules.tinyworld import make

    root = make("kinetics400", tmp_path / "kinetics400", progress=False, train_clips=1, val_clips=10)
    tokenizer = CLIPTokenizer.from_pretrained(resolve("tiny:viclip"), local_files_only=True)
    row = zero_shot(load_viclip("tiny:viclip"), tokenizer, "kinetics400", root)
    assert row["clips"] == 160 and 0.35 < float(str(row["zero-shot"])) < 0.75 and float(str(row["frames shuffled"])) < 0.25, row
