"""Networks that say how alike pictures, or pictures and words, are: CLIP and DINO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import MissingPath, UserError
from genlab.models.clip_loading import load_clip
from genlab.weights import load_pretrained, resolve

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def prepared(pictures: Tensor, side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Resized to ``side`` bicubically and normalised. (B, 3, H, W) in [0, 1] -> (B, 3, side, side)."""
    if pictures.shape[-2:] != (side, side):
        pictures = F.interpolate(pictures, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    centre, deviation = (torch.tensor(each, device=pictures.device)[:, None, None] for each in (mean, std))
    return (pictures - centre) / deviation


class ClipScorer(nn.Module):
    """Unit vectors of pictures and of prompts in one space.

    Args:
        name: See :func:`genlab.models.clip_loading.load_clip`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.clip = load_clip(name).requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, D)."""
        return F.normalize(self.clip.encode_image(prepared(pictures, self.clip.image_size, CLIP_MEAN, CLIP_STD)), dim=1)

    @torch.no_grad()
    def text(self, prompts: Sequence[str]) -> Tensor:
        """-> (B, D)."""
        device = next(self.parameters()).device
        return F.normalize(self.clip.encode_text(self.clip.tokenize(list(prompts)).to(device)), dim=1)


class DinoFeatures(nn.Module):
    """Unit vectors of pictures by the class token of a self-supervised ViT (DINO, arXiv 2104.14294, as DreamBooth's DINO score; or DINOv2).

    Args:
        name: Hub id or folder, such as ``facebook/dino-vits16``.

    Raises:
        MissingPath: It is not on this machine.
        UserError: It is no ViT or DINOv2.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        from transformers import AutoConfig, Dinov2Model, ViTModel

        try:
            kind = AutoConfig.from_pretrained(resolve(name), local_files_only=True).model_type
        except (OSError, ValueError) as error:
            raise MissingPath(
                f"model.measures.dino: {name} is not on this machine; see GENLAB_WEIGHTS. ({str(error).splitlines()[0]})"
            ) from error
        if kind == "vit":
            self.network = load_pretrained(ViTModel, name, add_pooling_layer=False)
        elif kind == "dinov2":
            self.network = load_pretrained(Dinov2Model, name)
        else:
            raise UserError(f"model.measures.dino: {name} is a {kind}; use a ViT such as facebook/dino-vits16, or a DINOv2.")
        self.network.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, D)."""
        side = int(cast(Any, self.network).config.image_size)
        return F.normalize(self.network(prepared(pictures, side, IMAGENET_MEAN, IMAGENET_STD)).last_hidden_state[:, 0], dim=1)
