"""A small backbone that sees the fine detail which generators get wrong, for the tiny world and as a start for one's own.

Fine detail is what nearest-neighbour down- and upsampling loses of a frame, the idea of NPR (Tan et al., arXiv 2312.10461): generators
that upsample leave traces between neighbouring pixels, which a network finds sooner in this residual than in the colours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.backbones import Backbone, VideoBackbone

CELL = 4  # pixels per side of a coarse cell, and the stride of the convolutions
RESIDUAL_GAIN = 3.0  # residuals of normalised pixels have a deviation of about 1/6


@dataclass(frozen=True)
class TinyConv(Backbone):
    """A token is a linear map of its patch's fine detail, convolved, and of its coarse colours less their mean over the clip.

    What a place looks like in the clip as a whole says nothing about who made the clip, but is easily learnt by heart; without that mean,
    what is left of the colours is how they change. Nothing else sees across frames. The mean over all tokens is that of the detail alone.

    Args:
        width: C, channels of a token.
        stem: Channels of the first convolution; the second one has twice as many.
        image_size: Pixels per side.
        patch_size: Pixels per side of a token, a multiple of 4.
    """

    width: int = 32
    stem: int = 16
    image_size: int = 64
    patch_size: int = 32

    def __post_init__(self) -> None:
        if self.patch_size < CELL or self.patch_size % CELL:
            raise UserError(f"TinyConv.patch_size is {self.patch_size}; use a multiple of {CELL}.")
        if self.image_size % self.patch_size:
            raise UserError(f"TinyConv.image_size: {self.image_size} is no multiple of the patch_size {self.patch_size}.")

    def build(self) -> VideoBackbone:
        return TinyConvTokens(self)


class TinyConvTokens(VideoBackbone):
    """The network of :class:`TinyConv`; its global vector is the mean of all tokens."""

    def __init__(self, settings: TinyConv) -> None:
        super().__init__()
        self.width, self.grid = settings.width, settings.image_size // settings.patch_size
        self.cells, stem = settings.patch_size // CELL, settings.stem
        # Batch norms, since they keep what norms over a frame take away: how much detail this frame has, compared with others.
        self.detail = nn.Sequential(
            nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.GELU(),
            nn.Conv2d(stem, 2 * stem, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * stem), nn.GELU(), nn.AvgPool2d(self.cells),
        ).to(memory_format=torch.channels_last)  # twice as fast on a CPU  # fmt: skip
        features = 3 * self.cells**2 + 2 * stem
        self.norm, self.tokens = nn.BatchNorm2d(features), nn.Conv2d(features, settings.width, 1)

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        frames = video.flatten(0, 1)
        coarse = F.pixel_unshuffle(F.avg_pool2d(frames, CELL), self.cells).unflatten(0, video.shape[:2])  # (B, T, 3 * cells^2, G, G)
        change = (coarse - coarse.mean(1, keepdim=True)).flatten(0, 1)
        residual = RESIDUAL_GAIN * neighbour_residual(frames)
        detail = self.detail(residual.contiguous(memory_format=torch.channels_last))  # (B*T, 2 * stem, G, G)
        tokens = self.tokens(self.norm(torch.cat([change, detail], dim=1)))
        tokens = tokens.permute(0, 2, 3, 1).unflatten(0, video.shape[:2])
        return tokens, tokens.mean((1, 2, 3))


def neighbour_residual(frames: Tensor) -> Tensor:
    """x - up2(down2(x)), both by nearest neighbour: each pixel less the upper left one of its 2 x 2 block (arXiv 2312.10461, Sec. 3.2).

    Args:
        frames: (N, C, H, W), H and W even.
    """
    return frames - F.interpolate(frames[..., ::2, ::2], scale_factor=2, mode="nearest")
