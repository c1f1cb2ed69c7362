"""Two towers with a common space of embeddings, one for pictures or clips, one for texts: what contrastive training needs of a network.

A network is named in the YAML by its settings, a small frozen dataclass (``class_path: genlab.models.towers.CLIPSettings``), and built
only in ``configure_model``. Your own: subclass :class:`TowerSettings` and :class:`Towers`, nothing to register.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from genlab.weights import load_pretrained, resolve

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Towers(nn.Module):
    """Pictures (B, 3, H, W) or clips (B, T, 3, H, W) in [0, 1], and token ids (C, L) -> embeddings (B, E) and (C, E), not normalised.

    Args:
        tokenizer: Of the text tower; pads behind the end token.

    Attributes:
        kind: The key of the batch that has the pixels.
    """

    kind: Literal["image", "video"] = "image"

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def tokenize(self, texts: list[str]) -> Tensor:
        """(C, L) int64 with L as long as the longest needs."""
        return self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")["input_ids"]

    def encode(self, pixels: Tensor) -> Tensor:
        """Values in [0, 1], not yet normalised."""
        raise NotImplementedError(f"{type(self).__name__} must define encode.")

    def encode_text(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define encode_text.")

    def text_states(self, tokens: Tensor) -> Tensor:
        """(C, L) -> (C, L, D): the text tower's last hidden states after its last norm, what a diffusion model is conditioned on."""
        raise NotImplementedError(f"{type(self).__name__} must define text_states.")

    def scale(self) -> Tensor:
        """What cosines are multiplied by, 1 / temperature."""
        raise NotImplementedError(f"{type(self).__name__} must define scale.")

    def export(self, folder: Path) -> None:
        """Writes what ``load`` of the settings reads, in fp16."""
        raise NotImplementedError(f"{type(self).__name__} must define export.")


class TowerSettings:
    """Settings of two towers, for frozen dataclasses to derive from. Cheap to construct."""

    def build(self, tokenizer: CLIPTokenizer) -> Towers:
        """A network with random weights for the tokenizer's vocabulary and length."""
        raise NotImplementedError(f"{type(self).__name__} must define build.")

    def load(self, weights: str) -> Towers:
        """The network in a folder, under a hub id or of ``tiny:NAME``; sizes come from there."""
        raise NotImplementedError(f"{type(self).__name__} must define load.")


@dataclass(frozen=True)
class CLIPSettings(TowerSettings):
    """CLIP, as transformers' ``CLIPModel``. The sizes are those of a network built afresh; the defaults suit pictures of 64 pixels.

    Args:
        image_size: Pixels per side.
        patch_size: Pixels per side of a token.
        width: Of the image tower.
        layers: Of the image tower.
        mlp: Width within its MLPs.
        text_width: Of the text tower.
        text_layers: Of the text tower.
        text_mlp: Width within its MLPs.
        head_width: Channels of an attention head, in both towers.
        embed_dim: E, of the common space.
    """

    image_size: int = 64
    patch_size: int = 8
    width: int = 128
    layers: int = 4
    mlp: int = 384
    text_width: int = 128
    text_layers: int = 2
    text_mlp: int = 512
    head_width: int = 32
    embed_dim: int = 128

    def build(self, tokenizer: CLIPTokenizer) -> Towers:
        from transformers import CLIPConfig, CLIPModel

        vision = {"hidden_size": self.width, "num_hidden_layers": self.layers, "intermediate_size": self.mlp}
        vision |= {"num_attention_heads": self.width // self.head_width, "image_size": self.image_size, "patch_size": self.patch_size}
        text = {"hidden_size": self.text_width, "num_hidden_layers": self.text_layers, "intermediate_size": self.text_mlp}
        text |= {"num_attention_heads": self.text_width // self.head_width, "max_position_embeddings": tokenizer.model_max_length}
        text |= {"vocab_size": len(tokenizer), "projection_dim": self.embed_dim}  # the last one: a text tower may be loaded on its own
        # The ids say where a text ends; left out, they would be those of the published vocabulary.
        text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        config = CLIPConfig(text_config=text, vision_config=vision | {"projection_dim": self.embed_dim}, projection_dim=self.embed_dim)
        return CLIPTowers(CLIPModel(config), tokenizer)

    def load(self, weights: str) -> Towers:
        from transformers import CLIPModel, CLIPTokenizer

        model = load_pretrained(CLIPModel, weights)
        return CLIPTowers(model, CLIPTokenizer.from_pretrained(resolve(weights), local_files_only=True))


class CLIPTowers(Towers):
    """The network of :class:`CLIPSettings`."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
        super().__init__(tokenizer)
        self.image_size = int(cast(Any, model.config.vision_config).image_size)
        # Written-out attention: in bfloat16 on a CPU the backward pass of torch's fused one is several times slower.
        model.set_attn_implementation("sdpa" if torch.cuda.is_available() else "eager")
        self.model = model
        self.register_buffer("mean", torch.tensor(CLIP_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD)[:, None, None], persistent=False)

    mean: Tensor
    std: Tensor

    def encode(self, pixels: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values=(pixels - self.mean) / self.std).pooler_output

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.model.get_text_features(input_ids=tokens).pooler_output

    def text_states(self, tokens: Tensor) -> Tensor:
        return self.model.text_model(input_ids=tokens).last_hidden_state

    def scale(self) -> Tensor:
        return self.model.logit_scale.exp()

    def export(self, folder: Path) -> None:
        """A folder that ``from_pretrained`` of CLIPModel, CLIPTextModel, CLIPTokenizer and CLIPImageProcessor reads, in fp16."""
        from transformers import CLIPImageProcessor

        copy.deepcopy(self.model).cpu().half().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        side = self.image_size
        CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(folder)
