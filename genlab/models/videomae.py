"""VideoMAE encoder as a video backbone (Tong et al. 2022): tubelets of two frames, attention over all of space and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.backbones import Backbone, VideoBackbone
from genlab.weights import load_pretrained

if TYPE_CHECKING:
    from transformers import VideoMAEModel


@dataclass(frozen=True)
class VideoMAE(Backbone):
    """VideoMAE ViT: T' = T / 2 token frames for a clip of T.

    Args:
        weights: Hub id or folder of a VideoMAE model, such as ``MCG-NJU/videomae-base`` or ``MCG-NJU/videomae-base-finetuned-kinetics``;
            the paper does not say which it starts from.
        global_feature: ``mean``: average of all tokens, for the head to normalise; ``batch_norm``: that average after a layer norm and a
            batch norm, the baseline of the official code (for ``head: pool``, which then is one linear layer).
        num_frames: Frames of a clip, to override the number that the weights name (16); positions are computed, not learned.
    """

    weights: str = "MCG-NJU/videomae-base"
    global_feature: Literal["mean", "batch_norm"] = "mean"
    num_frames: int | None = None

    def build(self) -> VideoBackbone:
        from transformers import VideoMAEModel

        frames = {} if self.num_frames is None else {"num_frames": self.num_frames}
        # Mean pooling: no norm on the tokens. The one of the pretrained files belongs before the decoder that restores pixels.
        return VideoMAETokens(load_pretrained(VideoMAEModel, self.weights, use_mean_pooling=True, **frames), self.global_feature)


class VideoMAETokens(VideoBackbone):
    """Tokens of the last layer, without a norm, and a global vector (see :class:`VideoMAE`)."""

    def __init__(self, encoder: VideoMAEModel, global_feature: Literal["mean", "batch_norm"] = "mean") -> None:
        super().__init__()
        config: Any = encoder.config  # its sizes are typed as int or pair
        self.encoder, self.tubelet = encoder, config.tubelet_size
        self.width, self.num_frames, self.grid = config.hidden_size, config.num_frames, config.image_size // config.patch_size
        self.image_size = self.grid * config.patch_size
        self.feature_norms = global_feature == "mean"
        self.norms: nn.Sequential | None = None
        if global_feature == "batch_norm":
            self.norms = nn.Sequential(nn.LayerNorm(self.width), nn.BatchNorm1d(self.width))
            self.linear_init = "normal"  # as in the official baseline
        if config.num_frames % self.tubelet:
            raise UserError(f"VideoMAE.num_frames is {config.num_frames}; use a multiple of {self.tubelet}, the frames of one token.")

    def token_frames(self, num_frames: int) -> int:
        """T' = T / 2."""
        return num_frames // self.tubelet

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        if video.shape[1] != self.num_frames:
            raise UserError(
                f"VideoMAE reads exactly {self.num_frames} frames, the clips have {video.shape[1]}. Set data.num_frames to "
                f"{self.num_frames}, or the backbone's num_frames to {video.shape[1]}."
            )
        if video.shape[3:] != (self.image_size, self.image_size):
            raise UserError(
                f"VideoMAE reads frames of {self.image_size} x {self.image_size} pixels, the clips have {video.shape[3]} x "
                f"{video.shape[4]}. Set data.image_size to {self.image_size}."
            )
        tokens = self.encoder(pixel_values=video).last_hidden_state
        tokens = tokens.unflatten(1, (self.token_frames(video.shape[1]), self.grid, self.grid))
        return tokens, self._global_vector(tokens.mean((1, 2, 3)))

    def _global_vector(self, mean: Tensor) -> Tensor:
        if self.norms is None:
            return mean
        if self.norms.training and len(mean) == 1:
            raise UserError("data.batch_size: VideoMAE's batch norm cannot be trained on one clip at a time; use 2 or more.")
        return self.norms(mean)
