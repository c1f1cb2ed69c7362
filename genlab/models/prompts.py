"""Texts of classes for CLIP: embeddings of written ones, and prompts with a learned context (CoOp, Zhou et al., IJCV 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.clip import ClipBackbone

Position = Literal["end", "middle", "front"]


def class_texts(names: Sequence[str], templates: Sequence[str], sentences: Sequence[Sequence[str]] | None = None) -> list[list[str]]:
    """Per class, the templates with its name, then the sentences that describe it."""
    described = sentences or [[] for _ in names]
    return [[*(template.format(name) for template in templates), *more] for name, more in zip(names, described)]


@torch.no_grad()
def text_prototypes(backbone: ClipBackbone, texts: Sequence[Sequence[str]], at_once: int = 256) -> Tensor:
    """Per class, the mean of the unit features of its texts, normalised again: (C, D)."""
    flat = [text for some in texts for text in some]
    tokens = list(_tokens(backbone, flat, at_once))
    return mean_of_texts(torch.cat(tokens), [len(some) for some in texts])


def _tokens(backbone: ClipBackbone, texts: Sequence[str], at_once: int) -> Iterator[Tensor]:
    device = next(backbone.parameters()).device
    for first in range(0, len(texts), at_once):
        yield backbone.encode_text(backbone.tokenize(texts[first : first + at_once]).to(device))


def mean_of_texts(features: Tensor, counts: Sequence[int]) -> Tensor:
    """(M, D) features, class by class, ``counts[c]`` of class c -> (C, D) unit means of unit features."""
    return F.normalize(torch.stack([each.mean(0) for each in F.normalize(features, dim=-1).split(list(counts))]), dim=-1)


@dataclass(frozen=True)
class NameTokens:
    """Class names as a prompt has them behind its context: the name, a full stop and the end token.

    Args:
        start: (1, W) embedding of the start token.
        embeds: (C, S, W) embeddings of name, full stop and end token, filled up.
        lengths: (C,) tokens of each name, without the full stop.
        end: (C,) where in ``embeds`` the end token is.
    """

    start: Tensor
    embeds: Tensor
    lengths: Tensor
    end: Tensor

    def to(self, device: torch.device | str) -> NameTokens:
        return replace(self, **{name: getattr(self, name).to(device) for name in ("start", "embeds", "lengths", "end")})


@torch.no_grad()
def name_tokens(backbone: ClipBackbone, names: Sequence[str]) -> NameTokens:
    """Tokens of class names for learned prompts."""
    device = next(backbone.parameters()).device
    ids = backbone.tokenize([f"{name}." for name in names], truncate=False).to(device)
    end = (ids == backbone.words.end).int().argmax(1)
    stop = len(backbone.words("."))
    embeds = backbone.embed_tokens(ids)
    return NameTokens(embeds[0, :1], embeds[:, 1:], end - 1 - stop, end - 1)


class ContextPrompts(nn.Module):
    """Prompts ``[start] [context] name . [end]`` whose context is learned.

    Args:
        text_width: W.
        n_ctx: Tokens of the context.
        classes: Its own context for each of this many classes; ``None`` shares one.
        position: Of the context: before the name, behind it (``front``: the name stands in front), or half and half around it.
    """

    def __init__(self, text_width: int, n_ctx: int = 16, classes: int | None = None, position: Position = "end") -> None:
        super().__init__()
        self.position = position
        self.ctx = nn.Parameter(torch.empty(*([] if classes is None else [classes]), n_ctx, text_width))
        nn.init.normal_(self.ctx, std=0.02)

    @torch.no_grad()
    def start_from(self, backbone: ClipBackbone, words: str) -> None:
        """Sets the context to the embeddings of these words.

        Raises:
            UserError: They have another number of tokens than the context.
        """
        ids = backbone.words(words)
        if len(ids) != self.ctx.shape[-2]:
            raise UserError(f"model.ctx_init: {words!r} has {len(ids)} tokens; set model.n_ctx to that, it is {self.ctx.shape[-2]}.")
        device = next(backbone.parameters()).device
        self.ctx.copy_(backbone.embed_tokens(torch.tensor(ids, device=device)[None])[0].to(self.ctx).expand_as(self.ctx))

    def forward(self, backbone: ClipBackbone, names: NameTokens, shift: Tensor | None = None) -> Tensor:
        """Unit features of the prompts of all classes.

        Args:
            shift: (B, W) added to every vector of the context, one for each picture (CoCoOp); only for a shared context at the end.

        Returns:
            (C, D), with ``shift`` (B, C, D).
        """
        ctx = self.ctx
        if self.position == "end" and ctx.ndim == 2:  # the same for all classes: computed once
            moved = ctx[None] if shift is None else ctx + shift[:, None]
            prefix = torch.cat([names.start.expand(len(moved), -1, -1), moved], 1)
            features = F.normalize(backbone.encode_prompts(names.embeds, names.end, prefix), dim=-1)
            return features if shift is not None else features[0]
        if shift is not None:
            raise UserError("model.position: contexts that depend on the picture are shared and stand at the end.")
        rows = []
        own = ctx if ctx.ndim == 3 else ctx.expand(len(names.end), -1, -1)
        if len(own) != len(names.end):
            raise UserError(
                f"model.class_specific: {len(own)} contexts were learned, there are {len(names.end)} classes; they cannot move to others."
            )
        half = 0 if self.position == "front" else ctx.shape[-2] // 2 if self.position == "middle" else ctx.shape[-2]
        for each, embeds, length in zip(own, names.embeds, names.lengths.tolist()):
            rows.append(torch.cat([each[:half], embeds[:length], each[half:], embeds[length:]]))
        return F.normalize(backbone.encode_prompts(torch.stack(rows), names.end + ctx.shape[-2], names.start[None])[0], dim=-1)
