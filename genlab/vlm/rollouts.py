"""Completions drawn from a policy, the same ones whoever draws them: each row's randomness is its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genlab.training.randomness import Key, keyed_torch_generator


class Rollout(NamedTuple):
    """Completions of prompts, G of each, one prompt's after the other: N rows, C tokens."""

    inputs: dict[str, Tensor]
    """Of prompts and completions."""
    completions: Tensor
    """(N, C) ids, padded behind their end."""
    mask: Tensor
    """(N, C), 1 up to and including the first end token."""
    advantages: Tensor
    """(N,)."""
    reference: Tensor | None
    """(N, C) log-probabilities of the network that is not to be left."""
    old: Tensor | None
    """(N, C) log-probabilities of the policy that drew; None until its first pass."""


def keyed_gumbel(keys: Sequence[tuple[Key, ...]], temperature: float, forbidden: Sequence[int], device: torch.device) -> Any:
    """A logits processor with which greedy decoding samples: the largest of logits / T + Gumbel noise is a draw from softmax(logits / T).

    Args:
        keys: Of each row; its noise depends on its key and on the place of the token, not on the rest of the batch.
        temperature: T; 1 draws from the policy itself.
        forbidden: Tokens that are never drawn.
    """
    from transformers import LogitsProcessor

    class KeyedGumbel(LogitsProcessor):
        def __init__(self) -> None:
            self.generators = [keyed_torch_generator(*key, device=device.type) for key in keys]

        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            scores = scores.float() / temperature
            scores[:, list(forbidden)] = -torch.inf
            noise = torch.stack([torch.empty(scores.shape[1], device=device).exponential_(generator=g) for g in self.generators])
            return scores - noise.log()

    return KeyedGumbel()


def draw_completions(
    model: Any,
    inputs: dict[str, Tensor],
    keys: Sequence[tuple[Key, ...]],
    length: int,
    temperature: float,
    forbidden: Sequence[int],
    ends: Sequence[int],
    pad: int,
) -> Tensor:
    """Completions (N, C) with C at most ``length``; behind an end token comes padding."""
    from transformers import LogitsProcessorList

    noise = keyed_gumbel(keys, temperature, forbidden, inputs["input_ids"].device)
    said = model.generate(
        **inputs, max_new_tokens=length, do_sample=False, logits_processor=LogitsProcessorList([noise]), eos_token_id=list(ends),
        pad_token_id=pad, repetition_penalty=1.0,
    )  # fmt: skip
    return said[:, inputs["input_ids"].shape[1] :].clone()
