"""Frozen encoders of pictures, and of texts beside them, for losses on pictures that are being made and for scores of made ones.

Settings are small frozen dataclasses, named in the YAML by their class path; the network is built from them only where it is needed.
Your own: subclass :class:`EncoderSettings` and :class:`PictureEncoder`, nothing to register.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.picture_features import MEAN as IMAGENET_MEAN
from genlab.models.picture_features import STD as IMAGENET_STD
from genlab.weights import load_pretrained, resolve

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer, ViTModel

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class PictureEncoder(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] -> features (B, D), not normalised. Frozen, in eval mode; gradients go to the pictures.

    Args:
        name: What metrics are called after, such as ``dino``.
        size: Pixels per side that the network sees.
        resize: Shorter side that pictures are brought to before the middle is cut out, where they are scored.
        mean: Of the three channels.
        std: Likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, size: int, resize: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.name, self.size, self.resize = name, size, resize
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, size, size), normalised -> (B, D)."""
        raise NotImplementedError(f"{type(self).__name__} must define encode.")

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (n, D), in the space of the pictures."""
        raise UserError(f"encoder {self.name}: it knows no texts; choose genlab.models.picture_encoders.ClipEncoder.")

    def forward(self, pictures: Tensor) -> Tensor:
        """As losses see them: the whole picture, squeezed to a square, differentiable."""
        return self.encode(self._normalised(_resized(pictures, (self.size, self.size))))

    @torch.no_grad()
    def scored(self, pictures: Tensor) -> Tensor:
        """As scores see them: the shorter side resized, then the middle."""
        height, width = pictures.shape[-2:]
        factor = self.resize / min(height, width)
        resized = _resized(pictures, (round(height * factor), round(width * factor)))
        top, left = (resized.shape[-2] - self.size) // 2, (resized.shape[-1] - self.size) // 2
        return self.encode(self._normalised(resized[..., top : top + self.size, left : left + self.size].clamp(0, 1)))

    def _normalised(self, pictures: Tensor) -> Tensor:
        return (pictures - self.mean) / self.std


def _resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(pictures.shape[-2:]) == size:
        return pictures
    return F.interpolate(pictures, size, mode="bicubic", antialias=True, align_corners=False)


class EncoderSettings:
    """For frozen dataclasses to derive from. Cheap to construct; ``build`` makes the network."""

    def build(self) -> PictureEncoder:
        raise NotImplementedError(f"{type(self).__name__} must define build.")


@dataclass(frozen=True)
class ClipEncoder(EncoderSettings):
    """CLIP: projected embeddings of pictures and texts (Radford et al. 2021).

    Args:
        weights: Hub id or folder of a ``CLIPModel``, or ``tiny:clip``.
    """

    weights: str = "openai/clip-vit-base-patch32"

    def build(self) -> PictureEncoder:
        from transformers import CLIPModel, CLIPTokenizer

        model = load_pretrained(CLIPModel, self.weights)
        return ClipPictures(model, CLIPTokenizer.from_pretrained(resolve(self.weights), local_files_only=True))


class ClipPictures(PictureEncoder):
    """The network of :class:`ClipEncoder`."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer | None) -> None:
        size = int(cast(Any, model.config.vision_config).image_size)
        super().__init__("clip", size, size, CLIP_MEAN, CLIP_STD)
        self.model, self.tokenizer = model.requires_grad_(False).eval(), tokenizer
        self.length = int(cast(Any, model.config.text_config).max_position_embeddings)

    def encode(self, pixels: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    @torch.no_grad()
    def encode_ids(self, ids: Tensor) -> Tensor:
        """Token ids (n, L) -> (n, D)."""
        return self.model.get_text_features(input_ids=ids).pooler_output

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        assert self.tokenizer is not None, "built without a tokenizer"
        tokens = self.tokenizer(list(texts), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt")
        return self.encode_ids(tokens.input_ids.to(self.mean.device))


@dataclass(frozen=True)
class DinoEncoder(EncoderSettings):
    """DINO: the class token of a self-supervised ViT after its last norm (Caron et al., arXiv 2104.14294).

    Args:
        weights: Hub id or folder of a ``ViTModel``.
    """

    weights: str = "facebook/dino-vits16"

    def build(self) -> PictureEncoder:
        from transformers import ViTModel

        return DinoPictures(load_pretrained(ViTModel, self.weights, add_pooling_layer=False))


class DinoPictures(PictureEncoder):
    """The network of :class:`DinoEncoder`."""

    def __init__(self, model: ViTModel) -> None:
        size = int(cast(Any, model.config).image_size)
        super().__init__("dino", size, size * 256 // 224, IMAGENET_MEAN, IMAGENET_STD)
        self.model = model.requires_grad_(False).eval()

    def encode(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).last_hidden_state[:, 0]


@dataclass(frozen=True)
class LiteEncoder(EncoderSettings):
    """EfficientNet-Lite0 on ImageNet, which an installed package brings along; never to be compared with figures of others.

    Args:
        size: Pixels per side that pictures are brought to.
    """

    size: int = 128

    def build(self) -> PictureEncoder:
        return LitePictures(self.size)


class LitePictures(PictureEncoder):
    """The network of :class:`LiteEncoder`."""

    def __init__(self, size: int = 128) -> None:
        from genlab.models.efficientnet_lite0 import load_efficientnet_lite0

        super().__init__("lite0", size, size, IMAGENET_MEAN, IMAGENET_STD)
        self.model = load_efficientnet_lite0(0).requires_grad_(False).eval()

    def encode(self, pixels: Tensor) -> Tensor:
        return self.model(pixels)
