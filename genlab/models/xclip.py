"""X-CLIP vision tower as a video backbone (Ni et al. 2022; the main backbone of DeMamba)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from genlab.errors import UserError
from genlab.models.backbones import Backbone, GlobalFeature, VideoBackbone, clip_mean, frame_tokens
from genlab.weights import load_pretrained

if TYPE_CHECKING:
    from transformers import XCLIPVisionModel


@dataclass(frozen=True)
class XCLIP(Backbone):
    """X-CLIP ViT: CLIP's frames plus a message token per frame that attends over the clip's frames.

    Args:
        weights: Hub id or folder of an X-CLIP model; the authors name ``microsoft/xclip-base-patch16`` (8 frames, 224 px). For 16
            frames use ``microsoft/xclip-base-patch16-16-frames``.
        global_feature: ``cls``: mean over frames of the post-normalised class token (official code); ``mean``: average of all
            tokens (paper, Sec. 4.2).
        num_frames: Frames of a clip, to override the number that the weights name; the weights do not depend on it.
    """

    weights: str = "microsoft/xclip-base-patch16"
    global_feature: GlobalFeature = "cls"
    num_frames: int | None = None

    def build(self) -> VideoBackbone:
        from transformers import XCLIPModel

        # The checkpoints hold the whole model. The vision class alone does not find its weights in them.
        model = load_pretrained(XCLIPModel, self.weights)
        return XCLIPTokens(model.vision_model, self.global_feature, self.num_frames)


class XCLIPTokens(VideoBackbone):
    """Patch tokens before the last layer norm, and a global vector (see :class:`XCLIP`)."""

    feature_norms = True

    def __init__(self, encoder: XCLIPVisionModel, global_feature: GlobalFeature = "cls", num_frames: int | None = None) -> None:
        super().__init__()
        self.encoder, self.global_feature = encoder, global_feature
        if num_frames is not None:
            encoder.config.num_frames = num_frames
            for layer in encoder.encoder.layers:
                setattr(layer, "num_frames", num_frames)  # noqa: B010 - a plain attribute that nn.Module types as a tensor
        if global_feature == "mean":  # then nothing reads it, and DDP stops at parameters that no loss reaches
            encoder.post_layernorm.requires_grad_(False)
        config: Any = encoder.config  # its sizes are typed as int or pair
        self.width, self.num_frames, self.grid = config.hidden_size, config.num_frames, config.image_size // config.patch_size

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        if video.shape[1] != self.num_frames:
            raise UserError(
                f"X-CLIP attends over exactly {self.num_frames} frames, the clips have {video.shape[1]}. Set data.num_frames to "
                f"{self.num_frames}, or the backbone's num_frames to {video.shape[1]}."
            )
        out = self.encoder(pixel_values=video.flatten(0, 1))  # frames of one clip lie together on the first axis
        tokens = frame_tokens(out.last_hidden_state[:, 1:], video)
        return tokens, tokens.mean((1, 2, 3)) if self.global_feature == "mean" else clip_mean(out.pooler_output, video)
