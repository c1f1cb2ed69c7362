"""What a video backbone gives to a detection head: a grid of tokens per frame, and one vector for the whole clip.

A backbone is named in the YAML by its settings, a small frozen dataclass (``class_path: genlab.models.xclip.XCLIP``); the network
is built from it only in ``configure_model``. Your own: subclass both classes here, nothing to register.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

GlobalFeature = Literal["cls", "mean"]
LinearInit = Literal["uniform", "normal"]


class VideoBackbone(nn.Module):
    """(B, T, 3, H, W), normalised -> tokens (B, T', G, G, C) and a global vector (B, C).

    Attributes:
        width: C.
        grid: G, tokens per side of a frame.
        num_frames: T that the network requires, or ``None`` where any number of frames will do.
        token_frames: T' for an input of ``num_frames`` frames; frame-wise networks have T' = T.
        feature_norms: Whether the DeMamba head normalises this backbone's features (the official code does so for X-CLIP only).
        linear_init: How the linear layer of the baseline, ``head: pool``, begins: Glorot's uniform or normal distribution.
    """

    width: int
    grid: int
    num_frames: int | None = None
    feature_norms: bool = False
    linear_init: LinearInit = "uniform"

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} must define forward.")

    def token_frames(self, num_frames: int) -> int:
        """T' for a clip of ``num_frames`` frames."""
        return num_frames


class Backbone:
    """Settings of a backbone, for frozen dataclasses to derive from. Cheap to construct; ``build`` makes the network."""

    def build(self) -> VideoBackbone:
        raise NotImplementedError(f"{type(self).__name__} must define build.")


@dataclass(frozen=True)
class TinyPatch(Backbone):
    """Frame-wise patch embedding for tests and the tiny world: convolution, GELU, 1 x 1 convolution; nothing sees across frames.

    Args:
        width: C.
        image_size: Pixels per side.
        patch_size: Pixels per side of a token.
    """

    width: int = 32
    image_size: int = 48
    patch_size: int = 8

    def build(self) -> VideoBackbone:
        return TinyPatchTokens(self)


class TinyPatchTokens(VideoBackbone):
    """The network of :class:`TinyPatch`; its global vector is the mean of all tokens."""

    def __init__(self, settings: TinyPatch) -> None:
        super().__init__()
        self.width, self.grid = settings.width, settings.image_size // settings.patch_size
        self.layers = nn.Sequential(
            nn.Conv2d(3, settings.width, settings.patch_size, settings.patch_size), nn.GELU(), nn.Conv2d(settings.width, settings.width, 1)
        )

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.layers(video.flatten(0, 1)).permute(0, 2, 3, 1).unflatten(0, video.shape[:2])
        return tokens, tokens.mean((1, 2, 3))


def frame_tokens(tokens: Tensor, video: Tensor) -> Tensor:
    """(B*T, G*G, C) in raster order -> (B, T, G, G, C)."""
    grid = round(tokens.shape[1] ** 0.5)
    return tokens.unflatten(1, (grid, grid)).unflatten(0, video.shape[:2])


def clip_mean(features: Tensor, video: Tensor) -> Tensor:
    """(B*T, C) -> (B, C), mean over the frames of each clip."""
    return torch.mean(features.unflatten(0, video.shape[:2]), 1)
