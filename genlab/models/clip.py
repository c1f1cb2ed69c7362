"""CLIP vision tower as a frame-wise video backbone (Radford et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from genlab.models.backbones import Backbone, GlobalFeature, VideoBackbone, clip_mean, frame_tokens
from genlab.weights import load_pretrained

if TYPE_CHECKING:
    from transformers import CLIPModel


@dataclass(frozen=True)
class CLIP(Backbone):
    """CLIP ViT, frame by frame: patch tokens after the last layer norm and the visual projection.

    Args:
        weights: Hub id or folder of a CLIP model.
        global_feature: ``mean``: average of all projected patch tokens (official CLIP variant of DeMamba); ``cls``: mean over frames
            of the projected class token (the CLIP-B baseline).
    """

    weights: str = "openai/clip-vit-base-patch16"
    global_feature: GlobalFeature = "mean"

    def build(self) -> VideoBackbone:
        from transformers import CLIPModel

        return CLIPTokens(load_pretrained(CLIPModel, self.weights), self.global_feature)


class CLIPTokens(VideoBackbone):
    """The network of :class:`CLIP`."""

    def __init__(self, model: CLIPModel, global_feature: GlobalFeature = "mean") -> None:
        super().__init__()
        self.encoder, self.projection, self.global_feature = model.vision_model, model.visual_projection, global_feature
        self.width, self.grid = self.projection.out_features, self.encoder.config.image_size // self.encoder.config.patch_size

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.encoder(pixel_values=video.flatten(0, 1)).last_hidden_state
        features = self.projection(self.encoder.post_layernorm(hidden))
        tokens = frame_tokens(features[:, 1:], video)
        return tokens, tokens.mean((1, 2, 3)) if self.global_feature == "mean" else clip_mean(features[:, 0], video)
