"""Multi-attention detector (Zhao et al., arXiv 2103.02406) as spectral face anti-spoofing uses it (arXiv 2405.18853).

Attention maps from the last features of a backbone gather what a dense texture block finds in early ones.

Parameters have the official code's names. B pictures, C channels, M attention maps, N channels of the early features, F of the last ones.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BorderMask = Literal["official", "symmetric", "none"]


class SpectralWeights(nn.Module):
    """Weights each channel by what is in the picture: x (1 + w), w = sigmoid(f(mean) + f(maximum)), f a bottleneck.

    Args:
        channels: C.
        reduction: C over the bottleneck's width.
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        middle = max(channels // reduction, 1)
        self.channel_attention = nn.Sequential(
            nn.Conv2d(channels, middle, 1, bias=False), nn.ReLU(), nn.Conv2d(middle, channels, 1, bias=False)
        )
        for layer in self.channel_attention:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)

    def weights(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 1, 1) in (0, 1)."""
        means, maxima = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
        return (self.channel_attention(means) + self.channel_attention(maxima)).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.weights(x))


class CentralDifferenceConv(nn.Module):
    """A 3 x 3 convolution that sees theta of its values as differences from the middle (Yu et al., arXiv 2003.04092, Eq. 4).

    Args:
        channels: In.
        width: Out.
        stride: Of both.
        theta: Share of the difference; 0 is a plain convolution.
    """

    def __init__(self, channels: int, width: int, stride: int = 2, theta: float = 0.7) -> None:
        super().__init__()
        self.theta = theta
        self.conv = nn.Conv2d(channels, width, 3, stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if not self.theta:
            return y
        return y - self.theta * F.conv2d(x, self.conv.weight.sum((2, 3), keepdim=True), stride=self.conv.stride)


class AttentionMaps(nn.Module):
    """Last features (B, F, h, w) -> maps (B, M, h, w), not negative.

    Args:
        width: F.
        maps: M.
        border: ``official`` takes a rim of 2 from a 24 x 24 mask that is resized to the maps by the nearest value: at 8 x 8 that is the
            first row and the first column. ``symmetric`` is the whole rim of one; ``none`` keeps everything.
    """

    mask: Tensor

    def __init__(self, width: int, maps: int, border: BorderMask = "official") -> None:
        super().__init__()
        self.border = border
        self.conv_extract = nn.Conv2d(width, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, maps, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(maps)
        mask = torch.zeros(1, 1, 24, 24)
        mask[..., 2:-2, 2:-2] = 1
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        maps = F.elu(self.bn2(self.conv2(F.relu(self.bn1(self.conv_extract(x)))))) + 1
        if self.border == "none":
            return maps
        if self.border == "official":
            return maps * F.interpolate(self.mask, maps.shape[-2:], mode="nearest")
        return F.pad(maps[..., 1:-1, 1:-1], (1, 1, 1, 1))


class TextureEnhancement(nn.Module):
    """What is fine in early features (B, N, H, W), once for each attention map, through a dense block: (B, M, N, H, W).

    Args:
        width: N.
        maps: M.
    """

    def __init__(self, width: int, maps: int) -> None:
        super().__init__()
        self.width, self.maps = width, maps
        out = width * maps
        self.conv_extract = nn.Conv2d(width, width, 3, padding=1)
        self.conv0 = nn.Conv2d(out, out, 5, padding=2, groups=maps)
        self.conv1 = nn.Conv2d(out, out, 3, padding=1, groups=maps)
        self.conv2 = nn.Conv2d(2 * out, out, 3, padding=1, groups=maps)
        self.conv3 = nn.Conv2d(3 * out, out, 3, padding=1, groups=maps)
        self.conv_last = nn.Conv2d(4 * out, out, 1, groups=maps)
        self.bn1, self.bn2, self.bn3, self.bn4 = (nn.BatchNorm2d(times * out) for times in (1, 2, 3, 4))
        self.bn_last = nn.BatchNorm2d(out)

    def coarse(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Extracted features (B, N, H, W), and their means at the maps' size (B, N, h, w)."""
        extracted = self.conv_extract(x)
        return extracted, F.adaptive_avg_pool2d(extracted, size)

    def forward(self, x: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        """Early features and maps -> textures (B, M, N, H, W), and the means ``coarse`` gives."""
        high, wide = x.shape[-2:]
        extracted, coarse = self.coarse(x, (attention.shape[-2], attention.shape[-1]))
        fine = extracted - F.interpolate(coarse, (high, wide), mode="nearest")
        shown = F.interpolate(attention.detach(), (high, wide), mode="bilinear", align_corners=True).tanh()
        c0 = self.conv0((fine[:, None] * shown[:, :, None]).flatten(1, 2))
        c1 = self.conv1(F.relu(self.bn1(c0)))
        s1 = self._beside(c0, c1)
        c2 = self.conv2(F.relu(self.bn2(s1)))
        s2 = self._beside(s1, c2)
        c3 = self.conv3(F.relu(self.bn3(s2)))
        s3 = self._beside(s2, c3)
        out = F.relu(self.bn_last(self.conv_last(F.relu(self.bn4(s3)))))
        return out.unflatten(1, (self.maps, self.width)), coarse

    def _beside(self, one: Tensor, other: Tensor) -> Tensor:
        """Concatenated within each map's group of channels."""
        groups = [each.unflatten(1, (self.maps, -1)) for each in (one, other)]
        return torch.cat(groups, 2).flatten(1, 2)


def attention_pooling(textures: Tensor, attention: Tensor) -> Tensor:
    """V_bmn = sum over space of A_bm T_bmn, unit length over n: (B, M, N, H, W), (B, M, h, w) -> (B, M, N)."""
    maps = attention
    if attention.shape[-2:] != textures.shape[-2:]:
        maps = F.interpolate(attention, textures.shape[-2:], mode="bilinear", align_corners=True)
    return F.normalize(torch.einsum("bmhw,bmnhw->bmn", maps, textures), dim=-1)


def global_pooling(final: Tensor, attention: Tensor) -> Tensor:
    """Mean of the last features where the maps look: (B, F, h, w), (B, M, h, w) -> (B, F)."""
    weight = attention.sum(1, keepdim=True) + 1e-8
    return (weight * final).sum((2, 3)) / weight.sum((2, 3))


class Detected(NamedTuple):
    """Of B pictures: logits (B,), greater than 0 is live; unit embeddings (B, E); maps (B, M, h, w); coarse texture (B, N, h, w)."""

    logits: Tensor
    embedding: Tensor
    attention: Tensor
    coarse: Tensor


class MultiAttentionDetector(nn.Module):
    """Spectral weights, a backbone with two outputs, attention, texture, and two heads.

    Args:
        backbone: Module from (B, C, H, W) to early (B, N, H/8, W/8) and last features (B, F, h, w), with ``early_width``, ``final_width``.
        channels: C.
        maps: M. Official code: 8.
        middle: Width of local and global vectors. Official code: 256.
        embedding: E. Official code: 1024.
        border: See :class:`AttentionMaps`.
        dropout: Probability that all a map has found is left out of a training step.
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: int,
        maps: int = 8,
        middle: int = 256,
        embedding: int = 1024,
        border: BorderMask = "official",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        early, final = int(backbone.early_width), int(backbone.final_width)  # type: ignore[arg-type]
        self.dropout = dropout
        self.swl = SpectralWeights(channels)
        self.net = backbone
        self.attentions = AttentionMaps(final, maps, border)
        self.texture_enhance = TextureEnhancement(early, maps)
        self.projection_local = nn.Sequential(
            nn.Linear(maps * early, middle), nn.BatchNorm1d(middle), nn.Mish(), nn.Linear(middle, middle), nn.BatchNorm1d(middle), nn.Mish()
        )
        self.project_final = nn.Sequential(nn.Linear(final, middle), nn.BatchNorm1d(middle), nn.Mish())
        self.ensemble_classifier_fc = nn.Sequential(nn.Linear(2 * middle, middle), nn.BatchNorm1d(middle), nn.Mish(), nn.Linear(middle, 1))
        self.head_mlp = nn.Sequential(
            nn.Linear(2 * middle, embedding), nn.BatchNorm1d(embedding), nn.ReLU(), nn.Linear(embedding, embedding)
        )

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Detected:
        """(B, C, H, W), normalised.

        Args:
            keep: (B, M) bool: maps whose findings count; drawn here where it is left out in training, since two passes may share it.
        """
        early, final = self.net(self.swl(x))
        attention = self.attentions(final)
        textures, coarse = self.texture_enhance(early, attention)
        found = attention_pooling(textures, attention)
        if self.training and self.dropout:
            keep = torch.rand(found.shape[:2], device=found.device) >= self.dropout if keep is None else keep
            found = found * keep[:, :, None].to(found) / (1 - self.dropout)
        fused = torch.cat([self.projection_local(found.flatten(1)), self.project_final(global_pooling(final, attention))], 1)
        logits = self.ensemble_classifier_fc(fused).squeeze(1)
        return Detected(logits, F.normalize(self.head_mlp(fused), dim=-1), attention, coarse)


class DeployedDetector(nn.Module):
    """A trained detector with its normalisation and its threshold inside.

    Args:
        network: Pictures -> :class:`Detected`.
        mean: (C,) of the channels.
        std: Likewise.
        threshold: From which P(live) on a face is called live.
    """

    mean: Tensor
    std: Tensor
    threshold: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor, threshold: float) -> None:
        super().__init__()
        self.network = network
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, value.detach().clone()[:, None, None])
        self.register_buffer("threshold", torch.tensor(threshold))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, S, S) as stored -> P(live) (B,), and whether it is called live (B,) bool."""
        scores = self.network((pictures - self.mean) / self.std).logits.sigmoid()
        return scores, scores >= self.threshold
