"""Networks that generated pictures are measured by: found where they are said to be, and refused where they are not what they should be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from genlab.errors import MissingPath, UserError
from genlab.models.fid_inception import FIDInception
from genlab.models.scoring_towers import DinoFeatures
from genlab.training.generation_quality import Measures, Quality


def tiny_dino(folder: Path) -> str:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=16)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return str(folder)


def test_each_network_has_its_own_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    real, made = torch.rand(4, 3, 64, 64), torch.rand(6, 3, 64, 64)
    quality = Quality(Measures(clip="tiny:clip", dino=tiny_dino(tmp_path / "dino"), lite0=False), real)
    quality.update(made[:4], torch.arange(4), ["a star"] * 4)
    quality.update(made[4:], torch.arange(4, 6), ["a red star"] * 2)
    found = {name: float(value) for name, value in quality.compute().items()}
    assert set(found) == {"clip_i", "clip_t", "dino_i"} and all(-1 <= value <= 1 for value in found.values())
    copies = Quality(Measures(clip="tiny:clip", dino=str(tmp_path / "dino"), lite0=False), real[:1])
    copies.update(real[:1], torch.arange(1), ["a star"])
    again = copies.compute()
    assert float(again["clip_i"]) == pytest.approx(1, abs=1e-5) and float(again["dino_i"]) == pytest.approx(1, abs=1e-5)


def test_what_is_not_there_is_said_before_a_picture_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("GENLAB_DOWNLOAD", raising=False)
    real = torch.rand(2, 3, 16, 16)
    for measures, said in (
        (Measures(inception="someone/inception"), r"model\.measures\.inception: someone/inception is not there"),
        (Measures(lpips="vgg"), r"model\.measures\.lpips: torchvision's vgg16-397923af\.pth is not on this machine"),
        (Measures(dino="facebook/dino-vits16"), r"model\.measures\.dino: facebook/dino-vits16 is not on this machine"),
        (Measures(clip="openai/clip-vit-base-patch32"), "openai/clip-vit-base-patch32"),
    ):
        with pytest.raises(MissingPath, match=said):
            Quality(measures, real)
    from transformers import CLIPVisionConfig

    CLIPVisionConfig().save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="use a ViT"):
        DinoFeatures(str(tmp_path / "other"))


def test_lpips_within_clusters_takes_its_network_from_a_file(tmp_path: Path) -> None:
    """Copies are at distance 0 of each other and of a real picture; others are not."""
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "net.pth")
    measures = Measures(lpips="squeeze", lpips_weights=str(tmp_path / "net.pth"), lite0=False)
    real, other = torch.rand(2, 3, 64, 64), torch.rand(4, 3, 64, 64)
    found = []
    for made in (real[:1].repeat(4, 1, 1, 1), other):
        quality = Quality(measures, real)
        quality.update(made, torch.arange(4), [""] * 4)
        found.append({name: float(value) for name, value in quality.compute().items()})
    assert set(found[0]) == {"lpips_squeeze_intra", "lpips_squeeze_intra_small_as_zero", "lpips_squeeze_nearest"}
    assert max(found[0].values()) < 1e-4 < min(found[1].values()), found


@pytest.mark.slow
def test_inception_of_fid_reads_its_file_and_no_other(tmp_path: Path) -> None:
    """Its averages leave padding out, so that a constant stays one."""
    from genlab.models.fid_inception import _average

    assert torch.equal(_average(torch.ones(1, 2, 5, 5)), torch.ones(1, 2, 5, 5))
    torch.manual_seed(0)
    network = FIDInception()
    state = {name: value for name, value in network.network.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert len(state) == 94 * 5 and "Mixed_7c.branch_pool.conv.weight" in state
    held = {name: value.contiguous() for name, value in state.items()}
    save_file(held | {"fc.weight": torch.zeros(1008, 2048)}, tmp_path / "fid.safetensors")
    few, many = torch.rand(2, 3, 16, 16), torch.rand(3, 3, 16, 16)
    quality = Quality(Measures(inception=str(tmp_path / "fid.safetensors"), lite0=False), few, many)
    quality.update(torch.rand(2, 3, 16, 16), torch.arange(2), ["", ""])
    assert quality.few["inception"].features_of_made[0].shape == (2, 2048)  # type: ignore[union-attr,index]
    save_file({"Mixed_5b.branch1x1.conv.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="is not the network of FID"):
        Quality(Measures(inception=str(tmp_path / "other.safetensors")), torch.rand(2, 3, 16, 16))
