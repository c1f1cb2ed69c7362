"""Prompts of a frozen text tower: embedded once and kept, so that neither tower nor tokenizer is needed in training steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genlab.diffusion.components import encode_text
from genlab.errors import UserError

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


def render(template: str, **words: str) -> str:
    """``a {V} {N}`` with its words put in.

    Raises:
        UserError: The template names a word that there is none for.
    """
    try:
        return template.format(**words)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"prompt {template!r}: use {', '.join('{' + name + '}' for name in words)} for words ({error}).") from error


class PromptCache:
    """Last hidden states (L, D) of prompts by a frozen tower.

    Args:
        tokenizer: Its.
        text_encoder: The tower; not trained.
    """

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self._kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, prompts: list[str], device: torch.device) -> Tensor:
        """(B, L, D) of prompts, which may repeat. One by one: in another company the last bits differ, and a resumed run has another."""
        for each in dict.fromkeys(prompts):
            if each not in self._kept:
                self._kept[each] = encode_text(self.tokenizer, self.text_encoder, [each])[0]
        return torch.stack([self._kept[each] for each in prompts]).to(device)
