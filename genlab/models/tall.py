"""TALL as a backbone (Xu et al., arXiv 2307.07494): the frames of a clip as one thumbnail, read by an image network, Swin-B.

Windows that slide over the thumbnail see neighbouring frames at once; that is all there is of time in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from genlab.errors import UserError
from genlab.models.backbones import Backbone, VideoBackbone
from genlab.weights import load_pretrained

if TYPE_CHECKING:
    from transformers import SwinModel


@dataclass(frozen=True)
class TALL(Backbone):
    """Thumbnail of ``rows`` x ``columns`` frames, in reading order, resized to what the network reads.

    The official code has one row, so that each frame is squashed to 224 x 28 pixels, and names no weights; 2 x 4 keeps frames readable.
    Its windows of 14 tokens, 0.17 M more parameters, are Swin's usual 7 here, as pretrained.

    Args:
        weights: Hub id or folder of a Swin model.
        rows: Frames above each other.
        columns: Frames side by side; places without a frame stay grey, so that 3 x 3 takes 8 frames.
        drop_path: Probability at the last layer to skip it in training, rising to it linearly. Paper: 0.1.
    """

    weights: str = "microsoft/swin-base-patch4-window7-224-in22k"
    rows: int = 2
    columns: int = 4
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise UserError(f"TALL: a thumbnail of {self.rows} x {self.columns} frames holds none; use at least 1 x 1.")

    def build(self) -> VideoBackbone:
        from transformers import SwinModel

        return TALLTokens(load_pretrained(SwinModel, self.weights, drop_path_rate=self.drop_path), self.rows, self.columns)


class TALLTokens(VideoBackbone):
    """Tokens of the whole thumbnail after the last layer norm, as one token frame, and their mean (see :class:`TALL`)."""

    def __init__(self, encoder: SwinModel, rows: int = 2, columns: int = 4) -> None:
        super().__init__()
        config: Any = encoder.config  # its sizes are typed as int or pair
        self.encoder, self.rows, self.columns, self.image_size = encoder, rows, columns, config.image_size
        self.width = config.hidden_size
        self.grid = config.image_size // config.patch_size // 2 ** (len(config.depths) - 1)

    def token_frames(self, num_frames: int) -> int:
        """1: the thumbnail."""
        return 1

    def thumbnail(self, video: Tensor) -> Tensor:
        """(B, T, 3, H, W) -> (B, 3, S, S)."""
        frames, places = video.shape[1], self.rows * self.columns
        if frames > places:
            raise UserError(
                f"TALL: {frames} frames do not fit into {self.rows} x {self.columns} places. Set rows and columns of the backbone, or "
                f"data.num_frames to {places}."
            )
        video = F.pad(video, (0, 0, 0, 0, 0, 0, 0, places - frames))
        rows = video.unflatten(1, (self.rows, self.columns)).permute(0, 3, 1, 4, 2, 5)  # (B, 3, rows, H, columns, W)
        return F.interpolate(rows.flatten(4, 5).flatten(2, 3), (self.image_size, self.image_size), mode="bilinear", antialias=False)

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.encoder(pixel_values=self.thumbnail(video)).last_hidden_state
        tokens = tokens.unflatten(1, (1, self.grid, self.grid))
        return tokens, tokens.mean((1, 2, 3))
