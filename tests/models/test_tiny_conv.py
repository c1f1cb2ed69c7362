"""The tiny convolutional backbone: shapes, what it sees, and that clips and frames do not mix."""

from __future__ import annotations

import pytest
import torch

from genlab.errors import UserError
from genlab.models.tiny_conv import TinyConv, neighbour_residual
from genlab.training.randomness import keyed_torch_generator


def clips(count: int, size: int = 64, frames: int = 3) -> torch.Tensor:
    return torch.randn(count, frames, 3, size, size, generator=keyed_torch_generator("tiny conv", count, size, frames))


@pytest.mark.parametrize(("size", "patch", "grid"), [(64, 32, 2), (64, 16, 4), (48, 8, 6), (24, 12, 2)])
def test_tokens_and_global_vector_have_the_promised_shapes(size: int, patch: int, grid: int) -> None:
    network = TinyConv(width=8, stem=4, image_size=size, patch_size=patch).build().eval()
    tokens, vector = network(clips(2, size))
    assert tokens.shape == (2, 3, grid, grid, 8) and network.grid == grid and network.width == 8
    torch.testing.assert_close(vector, tokens.mean((1, 2, 3)))


def test_clips_do_not_mix() -> None:
    network, video = TinyConv(width=8, stem=4).build().eval(), clips(2)
    changed = video.clone()
    changed[1, 2] += 1
    difference = (network(changed)[0] - network(video)[0]).abs().amax((1, 2, 3, 4))
    assert difference[0] == 0 and difference[1] > 1e-3


def test_fine_detail_and_changes_reach_the_tokens_but_steady_colours_do_not() -> None:
    network, video = TinyConv(width=8, stem=4).build().eval(), torch.zeros(1, 2, 3, 64, 64)
    grid, brighter_once = video.clone(), video.clone()
    grid[..., ::2, 1::2], grid[..., 1::2, ::2] = 0.1, -0.1  # of mean zero in every cell
    brighter_once[:, 1] = 0.1
    tokens = network(video)[0]
    assert (network(grid)[0] - tokens).abs().max() > 1e-3 and (network(brighter_once)[0] - tokens).abs().max() > 1e-3
    torch.testing.assert_close(network(video + 0.1)[0], tokens)


def test_global_vector_is_blind_to_changes_of_coarse_colours() -> None:
    network, video = TinyConv(width=8, stem=4).build().eval(), torch.zeros(1, 4, 3, 64, 64)
    flickering = video + torch.tensor([0.3, -0.3, 0.2, 0.0])[:, None, None, None]
    torch.testing.assert_close(network(flickering)[1], network(video)[1])


def test_residual_is_what_nearest_neighbour_resampling_loses() -> None:
    frames = torch.arange(16.0).view(1, 1, 4, 4)
    expected = torch.tensor([0.0, 1.0, 4.0, 5.0]).view(2, 2).repeat(2, 2).view(1, 1, 4, 4)
    torch.testing.assert_close(neighbour_residual(frames), expected)


@pytest.mark.parametrize(("settings", "words"), [({"patch_size": 6}, "multiple of 4"), ({"image_size": 72}, "no multiple of the patch")])
def test_sizes_that_do_not_fit_are_refused(settings: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        TinyConv(**settings)
