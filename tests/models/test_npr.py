"""NPR: its residual by hand, its size, and what it sees."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from genlab.errors import UserError
from genlab.methods.demamba import DeMamba, PoolHead
from genlab.models.npr import NPR, NPRTokens


def build(image_size: int = 32, num_frames: int = 3) -> DeMamba:
    torch.manual_seed(0)
    model = DeMamba(NPR(image_size), head="pool", num_frames=num_frames)
    model.configure_model()
    return model


def test_size_is_the_papers() -> None:
    """Paper, Table 10: 1.44 M."""
    with torch.device("meta"):
        backbone = NPR().build()
        parts = (backbone, PoolHead(backbone.width, backbone.feature_norms))
        assert sum(p.numel() for m in parts for p in m.parameters()) == 1_437_761
        tokens, vector = backbone(torch.zeros(1, 8, 3, 224, 224))
    assert tokens.shape == (1, 8, 28, 28, 512) and vector.shape == (1, 512) and backbone.grid == 28


def test_it_reads_two_thirds_of_the_neighbours_difference() -> None:
    backbone = NPRTokens(4).eval()
    seen: list[torch.Tensor] = []
    backbone.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    frame = torch.arange(16.0).view(1, 1, 1, 4, 4).expand(-1, -1, 3, -1, -1)
    with torch.no_grad():
        backbone(frame)
    expected = torch.tensor([[0.0, 1, 0, 1], [4, 5, 4, 5], [0, 1, 0, 1], [4, 5, 4, 5]]) * 2 / 3  # minus the upper left of each 2 x 2
    torch.testing.assert_close(seen[0], expected.expand(1, 3, -1, -1))


@torch.no_grad()
def test_logits_are_the_mean_over_frames_and_blind_to_smooth_content() -> None:
    model = build().eval()
    video = torch.randn(2, 3, 3, 32, 32)
    single = torch.stack([model.head(*model.backbone(video[:, t : t + 1])) for t in range(3)]).mean(0)
    torch.testing.assert_close(model(video), single)
    blocks = F.interpolate(torch.randn(2 * 3, 3, 16, 16), scale_factor=2, mode="nearest").unflatten(0, (2, 3))
    torch.testing.assert_close(model(video + blocks), model(video))


def test_every_parameter_learns() -> None:
    model = build().train()
    model(torch.randn(2, 3, 3, 32, 32)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_learns_a_checkerboard_from_scratch() -> None:
    """Half of the clips carry one, at a twentieth of the content's contrast."""
    model = build(num_frames=1).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    board = ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1) * 0.05
    label = torch.arange(32) % 2

    def clips(seed: int) -> torch.Tensor:
        smooth = torch.randn(32, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        frames = F.interpolate(smooth, size=32, mode="bilinear") + label.view(-1, 1, 1, 1) * board
        return frames[:, None]

    for step in range(20):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(clips(step)), label.float()).backward()
        optimizer.step()
    with torch.no_grad():  # in training mode: twenty steps are too few for the running statistics
        assert ((model(clips(100)) > 0) == label.bool()).double().mean() >= 0.95


@pytest.mark.parametrize(("height", "width"), [(33, 32), (32, 31)])
def test_odd_sizes_are_refused(height: int, width: int) -> None:
    with pytest.raises(UserError, match=rf"{height} x {width}; use an even size"):
        build()(torch.zeros(1, 3, 3, height, width))
