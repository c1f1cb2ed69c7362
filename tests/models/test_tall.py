"""TALL as a backbone: which frame lies where in the thumbnail, the paper's size, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from genlab.errors import UserError
from genlab.methods.demamba import DeMamba, PoolHead
from genlab.models.mamba import MambaOptions
from genlab.models.tall import TALL, TALLTokens


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import SwinConfig, SwinModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("swin")
    SwinModel(SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)).save_pretrained(folder)
    return str(folder)


def test_frames_are_read_row_by_row(weights: str) -> None:
    """Frames of constant brightness t: the thumbnail is their number at their place, and grey where there is none."""
    video = torch.arange(1.0, 6).view(1, 5, 1, 1, 1).expand(1, 5, 3, 32, 32)
    thumbnail = TALL(weights, rows=2, columns=4).build().thumbnail(video)  # type: ignore[operator]
    assert thumbnail.shape == (1, 3, 32, 32)
    centres = thumbnail[0, 0, 8::16, 4::8]
    assert torch.equal(centres, torch.tensor([[1.0, 2, 3, 4], [5, 0, 0, 0]]))


def test_resizing_keeps_the_frames_pixels(weights: str) -> None:
    backbone = TALL(weights, rows=2, columns=2).build()
    video = torch.randn(1, 4, 3, 16, 16)
    assert torch.equal(backbone.thumbnail(video)[0, :, 16:, :16], video[0, 2])  # type: ignore[operator]


@pytest.mark.parametrize("head", ["pool", "demamba"])
def test_every_parameter_learns(weights: str, head: str) -> None:
    model = DeMamba(TALL(weights), head=head, num_frames=8, mamba=MambaOptions(d_state=4))  # type: ignore[arg-type]
    model.configure_model()
    assert (model.backbone.grid, model.backbone.width, model.backbone.token_frames(8)) == (8, 16, 1)
    video = torch.randn(2, 8, 3, 32, 32)
    tokens, vector = model.eval().features(video)
    assert tokens.shape == (2, 1, 8, 8, 16)
    torch.testing.assert_close(vector, model.backbone.encoder(model.backbone.thumbnail(video)).pooler_output)
    model.train()(video).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_size_is_the_papers() -> None:
    """Paper, Table 10: 86.92 M, with larger tables of relative positions (windows of 14 x 14) in the first three stages."""
    from transformers import SwinConfig, SwinModel

    depths, heads = [2, 2, 18, 2], [4, 8, 16, 32]
    with torch.device("meta"):
        backbone = TALLTokens(SwinModel(SwinConfig(embed_dim=128, depths=depths, num_heads=heads)))
        count = sum(p.numel() for m in (backbone, PoolHead(1024, backbone.feature_norms)) for p in m.parameters())
    assert (backbone.grid, backbone.width, count) == (7, 1024, 86_744_249)
    tables = sum((27**2 - 13**2) * depth * head for depth, head in zip(depths[:3], heads[:3]))
    assert round((count + tables) / 1e6, 2) == 86.92


def test_too_many_frames_are_refused_with_the_remedy(weights: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"9 frames do not fit into 2 x 4 places.*data\.num_frames to 8"):
        TALL(weights).build()(torch.zeros(1, 9, 3, 32, 32))
    with pytest.raises(UserError, match="at least 1 x 1"):
        TALL(weights, rows=0)
