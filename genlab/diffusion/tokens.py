"""New words of a frozen text tower: vectors that stand where placeholder tokens do (Textual Inversion, Gal et al., arXiv 2208.01618).

The tower's own table of embeddings is never touched: the vectors are put in by a hook, so nothing has to be restored after a step.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.files import write_bytes

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


class PlaceholderTokens(nn.Module):
    """Trainable vectors for one new word.

    Args:
        tokenizer: Gets the new tokens: ``token`` and, for more vectors, ``token_1`` ...
        text_encoder: The tower; a hook on its embedding stays as long as it lives.
        token: How prompts write it, such as ``<subject>``; not a word that is there already.
        vectors: How many it stands for.
        initializer: Word whose first token's embedding they start from.

    Raises:
        UserError: The token exists already, or the initializer is no word.
    """

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, token: str, vectors: int = 1, initializer: str = "a") -> None:
        super().__init__()
        self.token, self.vectors = token, vectors
        self.words = [token, *(f"{token}_{i}" for i in range(1, vectors))]
        known = tokenizer.get_vocab()
        if there := [word for word in self.words if word in known or f"{word.lower()}</w>" in known]:  # so byte pairs end a word
            raise UserError(
                f"token: {', '.join(there)} is a token of the text tower already; choose another, such as <{token.strip('<>')}-1>."
            )
        start = tokenizer(initializer, add_special_tokens=False)["input_ids"]
        if not start:
            raise UserError(f"token: {initializer!r} has no token to start from; name a word.")
        tokenizer.add_tokens(self.words)
        self.ids = [int(cast(Any, tokenizer).convert_tokens_to_ids(word)) for word in self.words]
        embedding = cast(nn.Embedding, cast(Any, text_encoder).get_input_embeddings())
        self.known = len(embedding.weight)
        self.embeds = nn.Parameter(embedding.weight[start[0]].detach().clone().float().repeat(vectors, 1))
        self._seen: Tensor | None = None
        embedding.register_forward_pre_hook(self._remember)
        embedding.register_forward_hook(self._put_in)

    def _remember(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """New ids lie behind the table's end: any row does, it is replaced. Those of other words are left to them."""
        self._seen = args[0]
        own = torch.isin(args[0], torch.tensor(self.ids, device=args[0].device))
        return (args[0].masked_fill(own, 0), *args[1:])

    def _put_in(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert self._seen is not None
        for row, number in enumerate(self.ids):
            output = torch.where((self._seen == number)[..., None], self.embeds[row].to(output), output)
        return output

    def spelled(self, prompt: str) -> str:
        """The prompt with all of the word's tokens where the word stands."""
        return prompt.replace(self.token, " ".join(self.words))

    def export(self, path: Path) -> Path:
        """Writes what ``pipe.load_textual_inversion(path)`` reads: the word and its vectors (n, D)."""
        return write_bytes(path, save({self.token: self.embeds.detach().cpu().contiguous()}))
