"""CLIP (Radford et al. 2021): its vision tower as a frame-wise video backbone, and both towers for few-shot classification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genlab.errors import UserError
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


# ---- CLIP with both towers, for few-shot classification

ROWS_AT_ONCE = 256  # texts in one pass of the text tower


class Words(Protocol):
    """A tokenizer: text -> ids without the special ones."""

    start: int
    end: int

    def __call__(self, text: str) -> list[int]: ...


class TextBlock(NamedTuple):
    """A residual block of the text tower, whatever library it comes from."""

    norm1: Callable[[Tensor], Tensor]
    qkv: Callable[[Tensor], Sequence[Tensor]]
    out: Callable[[Tensor], Tensor]
    norm2: Callable[[Tensor], Tensor]
    mlp: Callable[[Tensor], Tensor]


class TextTower(NamedTuple):
    """The text tower in parts, so that learned prompts can run through it and share what they have in common."""

    embed: Callable[[Tensor], Tensor]
    position: Tensor
    """(L, W)."""
    blocks: list[TextBlock]
    heads: int
    norm: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]


class ClipBackbone(nn.Module):
    """Both towers of a CLIP. Features are not normalised.

    Args:
        words: Its tokenizer; ``None`` where no text is tokenized.

    Attributes:
        width: D, of the common space.
        text_width: W, of token embeddings.
        context_length: Most tokens of a text.
        image_size: Pixels per side.
    """

    width: int
    text_width: int
    context_length: int
    image_size: int

    def __init__(self, words: Words | None) -> None:
        super().__init__()
        self._words = words

    @property
    def words(self) -> Words:
        if self._words is None:
            raise UserError("model.backbone: its folder holds no tokenizer (vocab.json and merges.txt, or tokenizer.json); add it.")
        return self._words

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W), normalised by CLIP's mean and deviation -> (B, D)."""
        raise NotImplementedError(f"{type(self).__name__} must define encode_image.")

    def text_tower(self) -> TextTower:
        raise NotImplementedError(f"{type(self).__name__} must define text_tower.")

    def scale(self) -> float:
        """What cosines are multiplied by, 1 / temperature: 100 in all published models, up to rounding."""
        raise NotImplementedError(f"{type(self).__name__} must define scale.")

    def tokenize(self, texts: Sequence[str], truncate: bool = True) -> Tensor:
        """Texts -> ids (n, L), as long as the longest needs, filled up with 0 behind the end token.

        Raises:
            UserError: A text is too long and is not to be truncated.
        """
        words, rows = self.words, []
        for text in texts:
            ids = words(text)
            if len(ids) > self.context_length - 2 and not truncate:
                raise UserError(f"{text!r} has {len(ids)} tokens; the text tower reads {self.context_length - 2}. Shorten it.")
            rows.append([words.start, *ids[: self.context_length - 2], words.end])
        out = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for row, ids in zip(out, rows):
            row[: len(ids)] = torch.tensor(ids)
        return out

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """(n, L) -> (n, L, W), without positions."""
        return self.text_tower().embed(ids)

    @torch.no_grad()
    def encode_text(self, ids: Tensor, end: int | None = None) -> Tensor:
        """(n, L) -> (n, D), read off at the first end token; what lies behind the last one of all is not computed.

        Args:
            end: Id of the end token; left out, the tokenizer's.
        """
        at_end = (ids == (self.words.end if end is None else end)).int().argmax(1)
        return self.encode_prompts(self.embed_tokens(ids[:, : int(at_end.max()) + 1]), at_end)[0]

    def encode_prompts(self, suffix: Tensor, end: Tensor, prefix: Tensor | None = None, rows_at_once: int = ROWS_AT_ONCE) -> Tensor:
        """Embedded prompts -> features, exactly those of the whole texts.

        Attention is causal. So nothing behind the last end token is computed, and a prefix that many prompts begin with is computed once:
        its keys and values serve all of them. Prompts go through in chunks, whose activations are computed again in the backward pass.

        Args:
            suffix: (C, S, W) embeddings without positions.
            end: (C,) where in the suffix the end token is.
            prefix: (G, P, W) what stands before every suffix, in G versions; ``None`` for nothing.
            rows_at_once: Prompts in a chunk.

        Returns:
            (G, C, D); G is 1 without a prefix.
        """
        tower = self.text_tower()
        suffix = suffix[:, : int(end.max()) + 1]
        known, versions, before = _through_prefix(tower, prefix) if prefix is not None else ([], 1, 0)
        length = before + suffix.shape[1]
        if length > len(tower.position):
            raise UserError(
                f"model.n_ctx: prompts have {length} tokens, the text tower reads {len(tower.position)}. Use fewer context tokens."
            )
        step = max(1, rows_at_once // versions)
        chunks = list(zip(suffix.split(step), end.split(step)))
        parts: list[Tensor] = []
        for some, at in chunks:
            if len(chunks) > 1 and torch.is_grad_enabled():
                parts.append(checkpoint(_through, tower, some, at, known, versions, before, use_reentrant=False))
            else:
                parts.append(_through(tower, some, at, known, versions, before))
        return torch.cat(parts, 1)


Known = list[tuple[Tensor, Tensor]]


def _through_prefix(tower: TextTower, prefix: Tensor) -> tuple[Known, int, int]:
    """Keys and values (G, heads, P, d) of each block, G and P."""
    x, known = prefix + tower.position[: prefix.shape[1]], list[tuple[Tensor, Tensor]]()
    for block in tower.blocks:
        q, k, v = (_heads(each, tower.heads) for each in block.qkv(block.norm1(x)))
        known.append((k, v))
        x = x + block.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return known, prefix.shape[0], prefix.shape[1]


def _through(tower: TextTower, suffix: Tensor, end: Tensor, known: Known, versions: int, before: int) -> Tensor:
    """Suffixes (C, S, W) behind each of the prefixes -> features (G, C, D) at the end tokens."""
    count, length = suffix.shape[:2]
    x = (suffix + tower.position[before : before + length]).expand(versions, -1, -1, -1).flatten(0, 1)  # (G * C, S, W)
    allowed = torch.ones(length, before + length, dtype=torch.bool, device=x.device).tril(before)
    for number, block in enumerate(tower.blocks):
        q, k, v = (_heads(each, tower.heads) for each in block.qkv(block.norm1(x)))
        if known:
            earlier = (each[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1) for each in known[number])
            k, v = (torch.cat([one, other], 2) for one, other in zip(earlier, (k, v)))
        x = x + block.out(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    at_end = x[torch.arange(len(x), device=x.device), end.repeat(versions)]
    return tower.project(tower.norm(at_end)).unflatten(0, (versions, count))


def _heads(x: Tensor, heads: int) -> Tensor:
    """(n, L, W) -> (n, heads, L, W / heads)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def three_projections(attention: Any) -> Callable[[Tensor], Sequence[Tensor]]:
    """Queries, keys and values of transformers' attention: (n, L, W) -> three of them."""
    return lambda x: (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x))


def one_projection(attention: Any) -> Callable[[Tensor], Sequence[Tensor]]:
    """The same of an attention that holds them as one matrix."""
    return lambda x: F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
