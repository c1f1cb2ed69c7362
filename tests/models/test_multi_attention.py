"""Building blocks of the multi-attention detector: golden values, sizes of the paper's network, and what reaches what."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from genlab.errors import MissingPath, UserError
from genlab.models.efficientnet_lite0 import REPEATS, efficientnet_lite0_weights, load_efficientnet_lite0
from genlab.models.multi_attention import (
    AttentionMaps,
    CentralDifferenceConv,
    MultiAttentionDetector,
    SpectralWeights,
    TextureEnhancement,
    attention_pooling,
    global_pooling,
)
from genlab.models.official_efficientnet import from_timm, to_timm
from genlab.models.spectral_backbones import SpectralBackbone, TinyBackbone
from tests.golden_files import assert_close, golden_files, load_golden


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("spectral_fas", "modules"))
def test_modules_golden(path: Path) -> None:
    meta, golden = load_golden(path)
    sizes, tol = meta["config"], meta["tol"]

    def loaded(block: nn.Module, name: str) -> nn.Module:
        start = f"{name}.P."
        block.load_state_dict({key.removeprefix(start): value for key, value in golden.items() if key.startswith(start)})
        return block.eval()

    weights = loaded(SpectralWeights(sizes["Cin"]), "swl")
    assert_close(weights.weights(golden["swl.x"]), golden["swl.weights"], tol, "swl.weights")
    assert_close(weights(golden["swl.x"]), golden["swl.out"], tol, "swl.out")
    stem = loaded(CentralDifferenceConv(sizes["Cin"], sizes["stem"]), "cdc")
    assert_close(stem(golden["swl.x"]), golden["cdc.out"], tol, "cdc.out")
    attention = loaded(AttentionMaps(sizes["Cf"], sizes["M"]), "attention_map")(golden["attention_map.x"])
    assert_close(attention, golden["attention_map.out"], tol, "attention_map")
    textures, coarse = loaded(TextureEnhancement(sizes["N"], sizes["M"]), "texture")(golden["texture.x"], attention)
    assert_close(coarse, golden["texture.down"], tol, "texture.down")
    assert_close(textures, golden["texture.out"], tol, "texture.out")
    local, whole = attention_pooling(textures, attention), global_pooling(golden["attention_map.x"], attention)
    assert_close(local, golden["bap.norm2"], tol, "bap.norm2")
    assert_close(whole, golden["bap.final_norm1"], tol, "bap.final_norm1")

    class Given(nn.Module):
        early_width, final_width = sizes["N"], sizes["Cf"]

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return golden["texture.x"], golden["attention_map.x"]

    detector = MultiAttentionDetector(Given(), sizes["Cin"], sizes["M"], sizes["mid"], sizes["emb"]).eval()
    state = {key.removeprefix("head.P."): value for key, value in golden.items() if key.startswith("head.P.")}
    for block, name in (("swl", "swl"), ("attentions", "attention_map"), ("texture_enhance", "texture")):
        state |= {key.replace(f"{name}.P.", f"{block}.", 1): value for key, value in golden.items() if key.startswith(f"{name}.P.")}
    missing, extra = detector.load_state_dict(state, strict=False)
    assert not extra and all(key.endswith("num_batches_tracked") for key in missing), "official names"
    out = detector(golden["swl.x"])
    assert_close(out.logits[:, None], golden["head.logit"], tol, "head.logit")
    assert_close(out.embedding, golden["head.embedding"], tol, "head.embedding")


def test_central_differences() -> None:
    """Theta 0 is a plain convolution; on a constant picture only 1 - theta of the weights' sum is left."""
    torch.manual_seed(0)
    x, plain = torch.randn(1, 5, 9, 9), CentralDifferenceConv(5, 3, theta=0)
    assert torch.equal(plain(x), plain.conv(x))
    layer = CentralDifferenceConv(5, 3, theta=0.7)
    out = layer(torch.full((1, 5, 9, 9), 2.0))[0, :, 1:-1, 1:-1]
    assert torch.allclose(out, (0.3 * 2 * layer.conv.weight.sum((1, 2, 3)))[:, None, None].expand_as(out), atol=1e-5)


def test_spectral_weights_lie_between_once_and_twice() -> None:
    x = torch.randn(2, 33, 6, 6)
    out = SpectralWeights(33)(x)
    assert (out.abs() >= x.abs()).all() and (out.abs() <= 2 * x.abs()).all()


def test_border_masks() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 6, 8, 8)
    layer = AttentionMaps(6, 2, "none").eval()
    free = layer(x)
    layer.border = "official"
    assert ((layer(x) == 0) == (torch.arange(8)[:, None] * torch.arange(8) == 0)).all(), "the first row and column"
    layer.border = "symmetric"
    inner = torch.zeros(8, 8, dtype=torch.bool)
    inner[1:-1, 1:-1] = True
    assert torch.equal(layer(x)[..., inner], free[..., inner]) and (layer(x)[..., ~inner] == 0).all()


def test_attention_learns_from_pooling_and_not_from_the_textures() -> None:
    torch.manual_seed(0)
    block = TextureEnhancement(4, 2)
    attention = torch.rand(2, 2, 4, 4, requires_grad=True)
    textures, _ = block(torch.randn(2, 4, 8, 8), attention)
    assert torch.autograd.grad(textures.sum(), attention, allow_unused=True, retain_graph=True)[0] is None
    pooled = attention_pooling(textures, attention)
    (gradient,) = torch.autograd.grad((pooled * torch.randn_like(pooled)).sum(), attention)
    assert gradient.abs().sum() > 0


@pytest.mark.slow
def test_the_papers_network() -> None:
    """35,787,297 parameters; all of them get a gradient."""
    torch.manual_seed(0)
    network = MultiAttentionDetector(SpectralBackbone(weights=None, drop_path=0.0).build(33), 33)
    assert sum(p.numel() for p in network.parameters()) == 35_787_297
    out = network(torch.randn(3, 33, 64, 64))
    assert out.logits.shape == (3,) and out.embedding.shape == (3, 1024)
    assert torch.allclose(out.embedding.norm(dim=1), torch.ones(3), atol=1e-5)
    (out.logits.square().sum() + (out.embedding * torch.randn(3, 1024)).sum()).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_real_weights_of_lite0_fit_timms_network_and_go_back() -> None:
    state = efficientnet_lite0_weights()
    network = load_efficientnet_lite0()
    assert set(state) == set(network.state_dict()), "nothing missing, nothing over"
    again = to_timm(from_timm(state, REPEATS), REPEATS)
    assert list(again) == list(state) and all(torch.equal(again[key], state[key]) for key in state)
    assert load_efficientnet_lite0(0)(torch.zeros(1, 3, 64, 64)).shape == (1, 1280)


def test_all_but_the_stem_starts_from_pretrained_weights(tmp_path: Path) -> None:
    backbone = SpectralBackbone("efficientnet_lite0", "package", None).build(33)
    state = {key.removeprefix("network."): value for key, value in backbone.state_dict().items()}
    given = efficientnet_lite0_weights()
    same = [key for key in given if key in state and torch.equal(state[key], given[key])]
    assert set(given) - set(same) == {"conv_stem.weight", "classifier.weight", "classifier.bias"}
    early, final = backbone.eval()(torch.randn(1, 33, 64, 64))
    assert early.shape == (1, 40, 8, 8) and final.shape == (1, 1280, 2, 2)
    with pytest.raises(UserError, match="has the weights of efficientnet_lite0"):
        SpectralBackbone("efficientnet_b0", "package").build(33)
    with pytest.raises(MissingPath, match="GENLAB_DOWNLOAD"):
        SpectralBackbone("efficientnet_b0", "timm/efficientnet_b0.ra_in1k").build(33)
    with pytest.raises(UserError, match="timm has no network"):
        SpectralBackbone("efficientnet_bee0", None).build(33)


def test_other_networks_give_their_map_of_stride_8() -> None:
    early, final = SpectralBackbone("resnet18", None, None).build(30)(torch.randn(1, 30, 64, 64))
    assert early.shape == (1, 128, 8, 8) and final.shape == (1, 512, 2, 2)
    early, final = TinyBackbone(4)(torch.randn(1, 4, 32, 32))
    assert early.shape == (1, 32, 8, 8) and final.shape == (1, 48, 4, 4)
