"""A small convolutional backbone that sees the fine detail which generators get wrong, for the tiny world and for detectors from scratch.

Beside the colours it is shown what nearest-neighbour down- and upsampling loses of them, the idea of NPR (Tan et al.,
arXiv 2312.10461): generators that upsample leave traces between neighbouring pixels, which a network finds sooner in this residual.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.backbones import Backbone, VideoBackbone

COLOUR_GAIN, RESIDUAL_GAIN = 0.5, 3.0  # of normalised pixels: both inputs get a deviation of about one half


@dataclass(frozen=True)
class TinyConv(Backbone):
    """Frame-wise convolutions of stride 2 down to one token per patch; nothing sees across frames.

    Args:
        width: C, channels of a token.
        stem: Channels of the first layer.
        image_size: Pixels per side.
        patch_size: Pixels per side of a token, a power of two.
    """

    width: int = 32
    stem: int = 16
    image_size: int = 64
    patch_size: int = 16

    def __post_init__(self) -> None:
        if self.patch_size < 4 or self.patch_size & (self.patch_size - 1):
            raise UserError(f"TinyConv.patch_size is {self.patch_size}; use a power of two from 4 on: the layers halve the picture.")
        if self.image_size % self.patch_size:
            raise UserError(f"TinyConv.image_size: {self.image_size} is no multiple of the patch_size {self.patch_size}.")

    def build(self) -> VideoBackbone:
        return TinyConvTokens(self)


class TinyConvTokens(VideoBackbone):
    """The network of :class:`TinyConv`; its global vector is the mean of all tokens."""

    def __init__(self, settings: TinyConv) -> None:
        super().__init__()
        self.width, self.grid = settings.width, settings.image_size // settings.patch_size
        stages = settings.patch_size.bit_length() - 1
        channels = [6, settings.stem, *[settings.width] * (stages - 1)]
        layers: list[nn.Module] = []
        for before, after in zip(channels, channels[1:]):
            # Batch norm, since it keeps what norms over a picture take away: how bright this picture is, compared with others.
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(self.width, self.width, 1)).to(memory_format=torch.channels_last)  # faster on a CPU

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        frames = video.flatten(0, 1)
        shown = torch.cat([COLOUR_GAIN * frames, RESIDUAL_GAIN * neighbour_residual(frames)], dim=1)
        tokens = self.layers(shown.contiguous(memory_format=torch.channels_last))
        tokens = tokens.permute(0, 2, 3, 1).unflatten(0, video.shape[:2])
        return tokens, tokens.mean((1, 2, 3))


def neighbour_residual(frames: Tensor) -> Tensor:
    """x - up2(down2(x)), both by nearest neighbour: each pixel less the upper left one of its 2 x 2 block (arXiv 2312.10461, Sec. 3.2).

    Args:
        frames: (N, C, H, W), H and W even.
    """
    return frames - F.interpolate(frames[..., ::2, ::2], scale_factor=2, mode="nearest")
