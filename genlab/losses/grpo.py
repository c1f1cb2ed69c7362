"""Group-relative policy optimisation (Shao et al., arXiv 2402.03300) on tokens, as the released code of arXiv 2504.14245 has it.

B prompts with G completions each are N rows, a prompt's one after the other; C tokens of a completion.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Aggregation = Literal["seq_mean", "token_mean"]


def group_advantages(rewards: Tensor, group: int, scale: bool = True, eps: float = 1e-4) -> Tensor:
    """A_i = (r_i - mean) / (std + eps) within each group of G: (N,) -> (N,). The deviation is the unbiased one.

    Args:
        scale: Divide by it.
    """
    rows = rewards.view(-1, group)
    centred = rows - rows.mean(1, keepdim=True)
    return (centred / (rows.std(1, keepdim=True) + eps) if scale else centred).flatten()


def completion_mask(tokens: Tensor, *ends: int) -> Tensor:
    """1 up to and including the first end token of a completion, whichever: (N, C) ids -> (N, C) float."""
    ended = torch.isin(tokens, torch.tensor(ends, device=tokens.device)).int()
    return (ended.cumsum(1) - ended < 1).float()


def token_logprobs(logits: Tensor, tokens: Tensor, count: int) -> Tensor:
    """Log-probabilities of the last ``count`` tokens: (N, L, V), (N, L) -> (N, count); logits at t predict token t + 1."""
    return logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)[:, -count:]


class GRPO(NamedTuple):
    """The loss, and what is logged of it."""

    loss: Tensor
    kl: Tensor
    """Mean over rows of the masked mean of each token's estimate."""
    clip_ratio: Tensor
    """Share of masked tokens where the clipped term is the one that counts."""
    clip_ratio_official: Tensor
    """What the released code logs under that name: the share where it would be, were the sign of the loss the other way round."""


def kl_estimate(logps: Tensor, reference: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = reference - logps, not negative, of each token."""
    change = reference - logps
    return change.exp() - change - 1


def grpo_loss(
    logps: Tensor,
    old: Tensor,
    reference: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    epsilon: float = 0.2,
    beta: float = 0.04,
    aggregation: Aggregation = "seq_mean",
) -> GRPO:
    """-min(rho A, clip(rho) A) + beta KL, rho = exp(logps - old), over the masked tokens.

    Args:
        logps: (N, C) of the policy.
        old: Of the policy that drew the completions; ``logps.detach()`` where it is the same one.
        reference: Of the network that is not to be left; ``None`` with ``beta`` 0.
        advantages: (N,).
        mask: (N, C).
        epsilon: Of the clip.
        beta: Weight of the divergence.
        aggregation: ``seq_mean`` averages each row, then the rows (released code); ``token_mean`` averages over all tokens.
    """
    ratio, gain = (logps - old).exp(), advantages[:, None]
    plain, clipped = ratio * gain, ratio.clamp(1 - epsilon, 1 + epsilon) * gain
    kl = kl_estimate(logps, reference) if reference is not None else torch.zeros_like(logps)
    each = -torch.minimum(plain, clipped) + beta * kl
    lengths = mask.sum(1).clamp_min(1)
    loss = ((each * mask).sum(1) / lengths).mean() if aggregation == "seq_mean" else (each * mask).sum() / mask.sum().clamp_min(1)
    counted, official = (((a < b).float() * mask).sum() / mask.sum().clamp_min(1) for a, b in ((clipped, plain), (plain, clipped)))
    return GRPO(loss, ((kl * mask).sum(1) / lengths).mean().detach(), counted.detach(), official.detach())
