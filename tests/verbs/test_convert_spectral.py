"""Spectral face anti-spoofing out of and into other formats: the official script's checkpoints, and one file for torch alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from genlab.errors import UserError
from genlab.methods.spectral_fas import SpectralFAS
from genlab.models.spectral_backbones import SpectralBackbone
from genlab.verbs.convert import main as convert
from genlab.verbs.convert_spectral import from_official, to_official


def checkpoint(model: SpectralFAS, path: Path) -> Path:
    import lightning

    content: dict[str, Any] = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "hparams_name": "kwargs"}
    content |= {"pytorch-lightning_version": lightning.__version__, "epoch": 0, "global_step": 0}
    model.on_save_checkpoint(content)
    torch.save(content, path)
    return path


def tiny(threshold: float = 0.4) -> SpectralFAS:
    torch.manual_seed(0)
    backbone = SpectralBackbone("tiny", None, None)
    model = SpectralFAS(7, backbone, maps=2, middle=8, embedding=8, memory=16)
    model.configure_model()
    model.channel_mean.copy_(torch.rand(7))
    model.channel_std.copy_(torch.rand(7) + 0.5)
    model.validation_threshold.fill_(threshold)
    return model.eval()


def test_one_file_for_torch_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Normalisation and threshold are inside; any number of pictures."""
    model = tiny()
    file, out = checkpoint(model, tmp_path / "last.ckpt"), tmp_path / "faces.pt"
    assert convert(["torchscript", str(file), "--out", str(out), "--image_size", "32"]) == 0
    assert "threshold 0.400" in capsys.readouterr().out
    loaded, pictures = torch.jit.load(str(out)), torch.rand(5, 7, 32, 32)
    scores, live = loaded(pictures)
    expected = model((pictures - model.channel_mean[:, None, None]) / model.channel_std[:, None, None]).logits.sigmoid()
    assert torch.allclose(scores, expected, atol=1e-4) and torch.equal(live, expected >= 0.4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces.pt", "last.ckpt"]
    with pytest.raises(UserError, match="exists already"):
        convert(["torchscript", str(file), "--out", str(out)])


def test_a_checkpoint_without_threshold_needs_one_named(tmp_path: Path) -> None:
    file = checkpoint(tiny(float("nan")), tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="before any validation"):
        convert(["torchscript", str(file), "--out", str(tmp_path / "a.pt"), "--image_size", "32"])
    assert not (tmp_path / "a.pt").exists()
    assert convert(["torchscript", str(file), "--out", str(tmp_path / "a.pt"), "--image_size", "32", "--threshold", "0.7"]) == 0
    scores, live = torch.jit.load(str(tmp_path / "a.pt"))(3 * torch.randn(64, 7, 32, 32))
    assert torch.equal(live, scores >= 0.7) and scores.max() > 0.4
    torch.save({"state_dict": {}, "method": "another"}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="checkpoint of another, not of spectral_fas"):
        convert(["torchscript", str(tmp_path / "other.ckpt"), "--out", str(tmp_path / "b.pt")])


@pytest.mark.slow
def test_the_official_scripts_checkpoint_and_back(tmp_path: Path) -> None:
    """Whole, with the classifier of the backbone that is never used; evaluated by the averaged weights that it holds."""
    torch.manual_seed(0)
    model = SpectralFAS(backbone=SpectralBackbone(weights=None), threshold=0.23)
    model.configure_model()
    official = to_official(model.detector.state_dict())
    assert "net._conv_stem.conv.weight" in official and "net._blocks.25._project_conv.weight" in official
    assert {key.split(".")[0] for key in official} == {
        "swl", "net", "attentions", "texture_enhance", "projection_local", "project_final", "ensemble_classifier_fc", "head_mlp",
    }  # fmt: skip
    torch.save(
        {"epoch": 30, "model_state_dict": official | {"net._fc.weight": torch.zeros(1, 1536), "net._fc.bias": torch.zeros(1)}},
        tmp_path / "theirs.pth",
    )
    assert convert(["spectral_fas", str(tmp_path / "theirs.pth"), "--out", str(tmp_path / "ours.ckpt")]) == 0
    loaded = SpectralFAS.load_from_checkpoint(tmp_path / "ours.ckpt", map_location="cpu", threshold=0.23).eval()
    x = torch.rand(1, 33, 64, 64)
    model.detector.eval()
    mean, std = loaded.channel_mean[:, None, None], loaded.channel_std[:, None, None]
    assert torch.allclose(loaded.deployed()(x)[0], model.detector((x - mean) / std).logits.sigmoid(), atol=1e-6) and mean[0] == 0.35215
    assert convert(["spectral_fas", str(tmp_path / "ours.ckpt"), "--out", str(tmp_path / "back.pth"), "--to", "official"]) == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model_state_dict"]
    assert back.keys() == official.keys() and all(torch.equal(back[key], official[key]) for key in official)
    assert from_official(official).keys() == model.detector.state_dict().keys()


def test_what_is_no_official_checkpoint(tmp_path: Path) -> None:
    torch.save({"model_state_dict": {"net._blocks.0.what": torch.zeros(1)}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="is no part of EfficientNet-B3"):
        convert(["spectral_fas", str(tmp_path / "x.pth"), "--out", str(tmp_path / "y.ckpt")])
    torch.save({"epoch": 1}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="no entry model_state_dict"):
        convert(["spectral_fas", str(tmp_path / "x.pth"), "--out", str(tmp_path / "y.ckpt")])
