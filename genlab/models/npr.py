"""NPR as a frame-wise backbone (Tan et al., arXiv 2312.10461): how pixels differ from their neighbours, read by half a ResNet-50.

It is trained from scratch. With ``head: pool`` the frames' logits are averaged: a linear layer on the mean over frames is the mean over
frames of the linear layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.backbones import Backbone, VideoBackbone
from genlab.models.tiny_conv import neighbour_residual

STRIDE, WIDTH = 8, 512  # of the last stage
GAIN = 2 / 3  # on the residual, as in the official code of NPR


@dataclass(frozen=True)
class NPR(Backbone):
    """Residual of neighbouring pixels, then ResNet-50's first two stages behind a 3 x 3 stem.

    Args:
        image_size: Pixels per side, even.
    """

    image_size: int = 224

    def build(self) -> VideoBackbone:
        return NPRTokens(self.image_size)


class NPRTokens(VideoBackbone):
    """The network of :class:`NPR`; its global vector is the mean of all tokens."""

    width = WIDTH

    def __init__(self, image_size: int = 224) -> None:
        super().__init__()
        self.grid = -(-image_size // STRIDE)
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        self.layer1, self.layer2 = _stage(64, 64, blocks=3, stride=1), _stage(256, 128, blocks=4, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        height, width = video.shape[-2:]
        if height % 2 or width % 2:
            raise UserError(
                f"data.image_size: NPR compares pixels in blocks of 2 x 2, the frames have {height} x {width}; use an even size."
            )
        residual = GAIN * neighbour_residual(video.flatten(0, 1))
        maps = self.layer2(self.layer1(self.stem(residual)))  # (B*T, 512, G, G)
        tokens = maps.permute(0, 2, 3, 1).unflatten(0, video.shape[:2])
        return tokens, tokens.mean((1, 2, 3))


def _stage(channels: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    """Bottleneck blocks (He et al. 2016) from ``channels`` to four times ``planes``, the first one with ``stride``."""
    from torchvision.models.resnet import Bottleneck  # a second to import

    wide = planes * Bottleneck.expansion
    shortcut = nn.Sequential(nn.Conv2d(channels, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))
    return nn.Sequential(Bottleneck(channels, planes, stride, shortcut), *(Bottleneck(wide, planes) for _ in range(blocks - 1)))
