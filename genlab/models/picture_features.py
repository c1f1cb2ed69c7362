"""Features and distances of pictures for metrics of generation, by a network that needs no download: EfficientNet-Lite0 on ImageNet.

Never to be compared with figures of Inception or VGG; metrics carry its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.models.efficientnet_lite0 import load_efficientnet_lite0

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 128  # pixels that smaller pictures are enlarged to: the network halves them five times


class LitePictureFeatures(nn.Module):
    """(B, 3, H, W) in [0, 1] -> pooled features (B, 1280); and a distance of two pictures by the features of all stages.

    The distance is LPIPS's (Zhang et al., arXiv 1801.03924, Eq. 1) without its learned weights: unit vectors over channels, squared
    differences, averaged over space, summed over stages.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = load_efficientnet_lite0(0).requires_grad_(False).eval()

    def prepared(self, pictures: Tensor) -> Tensor:
        mean, std = (torch.tensor(each, device=pictures.device)[:, None, None] for each in (MEAN, STD))
        if pictures.shape[-1] < SIDE:
            pictures = F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", align_corners=False)
        return (pictures - mean) / std

    def forward(self, pictures: Tensor) -> Tensor:
        return self.network(self.prepared(pictures))

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """What distances are taken between: unit vectors (B, C, h, w) of every stage. (B, 3, H, W) -> one a stage."""
        net = cast(Any, self.network)
        found, x = [], net.bn1(net.conv_stem(self.prepared(pictures)))
        for stage in net.blocks:
            x = stage(x)
            found.append(F.normalize(x, dim=1))
        return found

    def apart(self, one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
        """Distance of pictures by their maps: (B, C, h, w) and as many, or one for all -> (B,)."""
        return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in zip(one, other, strict=True)]).sum(0)

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """(B, 3, H, W) twice -> (B,)."""
        return self.apart(self.maps(one), self.maps(other))
