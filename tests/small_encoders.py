"""CLIP and DINO as reference files describe them: small, filled from names, given pictures that are prepared already."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from genlab.models.picture_encoders import ClipPictures, DinoPictures
from tests.filled import fill_by_name


def encoders(meta: dict[str, Any], seeds: dict[str, int]) -> tuple[ClipPictures, DinoPictures]:
    """Of a file's ``clip_config`` and ``dino_vit_config``, filled with the seeds ``clip`` and ``dino``."""
    from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

    clip = fill_by_name(CLIPModel(CLIPConfig(**meta["clip_config"])), seeds["clip"])
    dino = fill_by_name(ViTModel(ViTConfig(**meta["dino_vit_config"]), add_pooling_layer=False), seeds["dino"])
    return ClipPictures(clip, None), DinoPictures(dino)  # type: ignore[arg-type]


class Prepared:
    """An encoder for scores whose pictures have been resized and normalised.

    Args:
        encoder: Of pictures.
        clip: Of texts.
        ids: Token ids (n, L) that every text stands for.
    """

    def __init__(self, encoder: ClipPictures | DinoPictures, clip: ClipPictures, ids: Tensor) -> None:
        self.name, self.encoder, self.clip, self.ids = encoder.name, encoder, clip, ids.long()

    def scored(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D)."""
        return self.encoder.encode(pictures).detach()

    def encode_text(self, texts: Any) -> Tensor:
        """-> (n, D)."""
        return self.clip.encode_ids(self.ids)
