"""A video and a text tower that can be walked block by block, so that something may be put between, beside or into the blocks.

``viclip`` reads the whole clip at once; ``clip`` reads each frame by itself and averages their embeddings (ViFi-CLIP, arXiv 2212.03640).
Blocks count from 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.clip import Words
from genlab.models.clip_loading import OpenClipWords, TransformersWords
from genlab.models.towers import CLIP_MEAN, CLIP_STD
from genlab.models.viclip import IMAGENET_MEAN, IMAGENET_STD, MIN_TEMP, ViCLIP, load_viclip
from genlab.weights import load_pretrained, resolve

Kind = Literal["viclip", "clip"]
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
ROWS_AT_ONCE = 256  # texts in one pass


class Parts(NamedTuple):
    """A pre-norm block: x + attend(norm1(x)), then x + mlp(norm2(x))."""

    norm1: Callable[[Tensor], Tensor]
    attend: Callable[[Tensor], Tensor]
    norm2: Callable[[Tensor], Tensor]
    mlp: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VideoText(nn.Module):
    """Both towers; embeddings are not normalised.

    Attributes:
        mean, std: What pixels in [0, 1] are normalised by, RGB.
        image_size: Pixels per side.
        num_frames: Frames that it was made for.
        context_length: Most tokens of a text.
        vision_width, text_width: D of the towers.
        vision_layers, text_layers: Their blocks.
        grid: G, patches per side of a frame.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    num_frames: int
    context_length: int
    vision_width: int
    text_width: int
    vision_layers: int
    text_layers: int
    grid: int

    def __init__(self, words: Words | None) -> None:
        super().__init__()
        self._words = words

    @property
    def words(self) -> Words:
        if self._words is None:
            raise UserError(
                "model.backbone: its folder holds no tokenizer. Put CLIP's tokenizer.json (or vocab.json and merges.txt) there, or install "
                "open_clip_torch, which brings OpenAI's vocabulary along."
            )
        return self._words

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, int]:
        """Ids (C, L), zero behind the end token, L as long as the longest needs; and how many texts had to be cut."""
        words, rows, cut = self.words, list[list[int]](), 0
        for text in texts:
            ids = words(text)
            cut += len(ids) > self.context_length - 2
            rows.append([words.start, *ids[: self.context_length - 2], words.end])
        out = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for row, ids in zip(out, rows):
            row[: len(ids)] = torch.tensor(ids)
        return out, cut

    # The towers

    def embed_video(self, video: Tensor) -> Tensor:
        """(B, T, 3, H, W), normalised -> tokens before the first block."""
        raise NotImplementedError

    def video_block(self, k: int) -> Parts:
        raise NotImplementedError

    def project_video(self, tokens: Tensor, clips: int) -> Tensor:
        """Tokens after the last block -> (B, E)."""
        raise NotImplementedError

    def by_patch(self, tokens: Tensor, clips: int) -> tuple[Tensor, int]:
        """Tokens -> (B, first + G*G * T', D), as adapters see them: class tokens, then patches with time running fastest; and ``first``."""
        return tokens, 1

    def by_frame(self, tokens: Tensor) -> Tensor:
        """The way back of :meth:`by_patch`."""
        return tokens

    def embed_text(self, tokens: Tensor) -> Tensor:
        """(C, L) -> (C, L, D) before the first block."""
        raise NotImplementedError

    def text_block(self, k: int) -> Parts:
        raise NotImplementedError

    def project_text(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """After the last block -> (C, E), read off at the first end token."""
        raise NotImplementedError

    def scale(self) -> Tensor:
        """What cosines are multiplied by, 1 / temperature."""
        raise NotImplementedError

    def encode_video(self, video: Tensor) -> Tensor:
        """(B, T, 3, H, W), normalised -> (B, E)."""
        x = self.embed_video(video)
        for k in range(1, self.vision_layers + 1):
            x = self.video_block(k)(x)
        return self.project_video(x, len(video))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(C, L) -> (C, E)."""
        x = self.embed_text(tokens)
        for k in range(1, self.text_layers + 1):
            x = self.text_block(k)(x)
        return self.project_text(x, tokens)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8, or floats in [0, 1], (..., 3, H, W) -> normalised."""
        x = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        mean, std = (torch.tensor(each, device=x.device)[:, None, None] for each in (self.mean, self.std))
        return (x - mean) / std


def cosine_logits(video: Tensor, texts: Tensor, scale: Tensor | float) -> Tensor:
    """scale * cosine, (B, E) and (C, E) -> (B, C) float32."""
    return scale * (F.normalize(video.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T)


class ViCLIPVideoText(VideoText):
    """ViCLIP: attention over all patches of all frames together."""

    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, model: ViCLIP, words: Words | None = None) -> None:
        super().__init__(words)
        self.model, c = model, model.config
        self.image_size, self.num_frames, self.context_length, self.grid = c.image_size, c.num_frames, c.context_length, c.grid
        self.vision_width, self.text_width = c.vision_width, c.text_width
        self.vision_layers, self.text_layers = c.vision_layers, c.text_layers

    def embed_video(self, video: Tensor) -> Tensor:
        return self.model.vision_encoder.embed(video)

    def video_block(self, k: int) -> Parts:
        block = self.model.vision_encoder.blocks[k - 1]
        return Parts(block.ln_1, block.attn, block.ln_2, block.mlp)

    def project_video(self, tokens: Tensor, clips: int) -> Tensor:
        return self.model.vision_encoder.project(tokens)

    def embed_text(self, tokens: Tensor) -> Tensor:
        return self.model.text_encoder.embed(tokens)

    def text_block(self, k: int) -> Parts:
        block = self.model.text_encoder.blocks[k - 1]
        return Parts(block.ln_1, block.attn, block.ln_2, block.mlp)

    def project_text(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return self.model.text_encoder.project(hidden, tokens)

    def scale(self) -> Tensor:
        return 1 / self.model.temp.clamp(min=MIN_TEMP)


class CLIPVideoText(VideoText):
    """CLIP frame by frame: each has a class token of its own, and the mean of the frames' embeddings is taken before normalisation."""

    mean, std = CLIP_MEAN, CLIP_STD

    def __init__(self, model: Any, words: Words | None = None) -> None:
        super().__init__(words)
        self.model = model
        text, vision = cast(Any, model.config.text_config), cast(Any, model.config.vision_config)
        self.image_size, self.grid = int(vision.image_size), int(vision.image_size) // int(vision.patch_size)
        self.num_frames, self.context_length = 8, int(text.max_position_embeddings)
        self.vision_width, self.text_width = int(vision.hidden_size), int(text.hidden_size)
        self.vision_layers, self.text_layers = int(vision.num_hidden_layers), int(text.num_hidden_layers)
        self.vision_heads, self.text_heads = int(vision.num_attention_heads), int(text.num_attention_heads)

    def embed_video(self, video: Tensor) -> Tensor:
        tower = self.model.vision_model
        return tower.pre_layrnorm(tower.embeddings(video.flatten(0, 1)))

    def video_block(self, k: int) -> Parts:
        return _clip_parts(self.model.vision_model.encoder.layers[k - 1], self.vision_heads, causal=False)

    def project_video(self, tokens: Tensor, clips: int) -> Tensor:
        frames = self.model.visual_projection(self.model.vision_model.post_layernorm(tokens[:, 0]))
        return frames.unflatten(0, (clips, -1)).mean(1)

    def by_patch(self, tokens: Tensor, clips: int) -> tuple[Tensor, int]:
        frames = tokens.unflatten(0, (clips, -1))  # (B, T, 1 + G*G, D)
        return torch.cat([frames[:, :, 0], frames[:, :, 1:].transpose(1, 2).flatten(1, 2)], 1), frames.shape[1]

    def by_frame(self, tokens: Tensor) -> Tensor:
        steps = tokens.shape[1] // (1 + self.grid**2)
        patches = tokens[:, steps:].unflatten(1, (-1, steps)).transpose(1, 2)
        return torch.cat([tokens[:, :steps, None], patches], 2).flatten(0, 1)

    def embed_text(self, tokens: Tensor) -> Tensor:
        embeddings = self.model.text_model.embeddings
        return embeddings.token_embedding(tokens) + embeddings.position_embedding.weight[: tokens.shape[1]]

    def text_block(self, k: int) -> Parts:
        return _clip_parts(self.model.text_model.encoder.layers[k - 1], self.text_heads, causal=True)

    def project_text(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        ends = (tokens == self.words.end).int().argmax(1)
        return self.model.text_projection(self.model.text_model.final_layer_norm(hidden[torch.arange(len(hidden)), ends]))

    def scale(self) -> Tensor:
        return self.model.logit_scale.exp()


def _clip_parts(layer: Any, heads: int, causal: bool) -> Parts:
    attention = layer.self_attn

    def attend(x: Tensor) -> Tensor:
        q, k, v = (proj(x).unflatten(2, (heads, -1)).transpose(1, 2) for proj in (attention.q_proj, attention.k_proj, attention.v_proj))
        return attention.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2))

    return Parts(layer.layer_norm1, attend, layer.layer_norm2, layer.mlp)


def _words(source: str) -> Words | None:
    """The tokenizer of a folder; without one OpenAI's vocabulary, which all published models of both kinds use."""
    folder = Path(source)
    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        from transformers import CLIPTokenizer

        return TransformersWords(CLIPTokenizer.from_pretrained(source, local_files_only=True))
    try:
        return OpenClipWords()
    except ImportError:
        return None


def load_video_text(weights: str, kind: Kind = "viclip") -> VideoText:
    """The network in a folder, under a hub id or of ``tiny:NAME``, in float32.

    Args:
        weights: ``OpenGVLab/ViCLIP-B-16-hf``, ``openai/clip-vit-base-patch16``, ``tiny:viclip`` ...
        kind: Which network that is.
    """
    if kind == "viclip":
        return ViCLIPVideoText(load_viclip(weights), _words(resolve(weights)))
    from transformers import CLIPModel

    return CLIPVideoText(load_pretrained(CLIPModel, weights), _words(resolve(weights)))


@torch.no_grad()
def embed_texts(network: VideoText, texts: Sequence[str], device: torch.device) -> tuple[Tensor, int]:
    """(M, E) of texts, in chunks, by the network as it is; and how many of them were cut."""
    parts, cut = list[Tensor](), 0
    for first in range(0, len(texts), ROWS_AT_ONCE):
        tokens, more = network.tokenize(texts[first : first + ROWS_AT_ONCE])
        parts.append(network.encode_text(tokens.to(device)))
        cut += more
    return torch.cat(parts), cut
