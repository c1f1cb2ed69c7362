"""ViCLIP as two towers for contrastive training: with a tokenizer, and at a size of one's own."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genlab.models.towers import Towers, TowerSettings
from genlab.models.viclip import IMAGENET_MEAN, IMAGENET_STD, ViCLIP, ViCLIPConfig, load_viclip
from genlab.weights import resolve

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


@dataclass(frozen=True)
class ViCLIPSettings(TowerSettings):
    """Sizes of a ViCLIP built afresh; the tokenizer gives its vocabulary and the length of its texts. The defaults are the tiny one's.

    Args:
        image_size: Pixels per side.
        patch_size: Pixels per side of a token.
        num_frames: Frames of a clip.
        vision_width: Of the video tower.
        vision_layers: Of the video tower.
        vision_heads: Of the video tower.
        text_width: Of the text tower.
        text_layers: Of the text tower.
        text_heads: Of the text tower.
        embed_dim: E, of the common space.
        tubelet: Frames of one token; 1 for the official architecture.
        frame_differences: Differences to the previous frame as three more input channels; not in the official architecture.
        temp: Temperature to begin with.
    """

    image_size: int = 32
    patch_size: int = 8
    num_frames: int = 8
    vision_width: int = 96
    vision_layers: int = 4
    vision_heads: int = 4
    text_width: int = 64
    text_layers: int = 4
    text_heads: int = 4
    embed_dim: int = 64
    tubelet: int = 2
    frame_differences: bool = True
    temp: float = 0.07

    def build(self, tokenizer: CLIPTokenizer) -> Towers:
        sizes = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "temp"}
        config = ViCLIPConfig(**sizes, context_length=tokenizer.model_max_length, vocab_size=len(tokenizer))
        return ViCLIPTowers(ViCLIP(config, self.temp), tokenizer)

    def load(self, weights: str) -> Towers:
        from transformers import CLIPTokenizer

        return ViCLIPTowers(load_viclip(weights), CLIPTokenizer.from_pretrained(resolve(weights), local_files_only=True))


class ViCLIPTowers(Towers):
    """The network of :class:`ViCLIPSettings`."""

    kind = "video"
    mean: Tensor
    std: Tensor

    def __init__(self, model: ViCLIP, tokenizer: CLIPTokenizer) -> None:
        super().__init__(tokenizer)
        self.model = model
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def encode(self, pixels: Tensor) -> Tensor:
        return self.model.encode_video((pixels - self.mean) / self.std)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.model.encode_text(tokens)

    def text_states(self, tokens: Tensor) -> Tensor:
        return self.model.text_encoder.states(tokens)

    def scale(self) -> Tensor:
        return 1 / self.model.temp

    def export(self, folder: Path) -> None:
        """A folder that ``ViCLIP.from_pretrained`` and ``CLIPTokenizer.from_pretrained`` read, in fp16."""
        copy.deepcopy(self.model).cpu().half().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
