"""The fusion stream: a coarse picture by a few denoising steps, and how near it is to a look and to a meaning.

That there is such a stream is the paper's (arXiv 2402.11849); the form that it has here is ours.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from genlab.diffusion.components import decoded
from genlab.diffusion.denoising import Denoising, denoised


class Fusion(NamedTuple):
    """Settings of the fusion stream, see :class:`ComFusion`."""

    steps: int = 5
    guidance: float = 1.0
    grad_steps: int | None = None
    recompute: bool = False


class Coarse(NamedTuple):
    """Clean latents (B, C, h, w) by a few steps, the picture (B, 3, H, W) in [0, 1], and the share of its values that had to be clamped."""

    latents: Tensor
    picture: Tensor
    clamped: Tensor


def coarse_pictures(model: Denoising, vae: Any, noised: Tensor, timestep: int, text: Tensor, empty: Tensor, fusion: Fusion) -> Coarse:
    """What the subject in the scene looks like after a few denoising steps, differentiable.

    Args:
        noised: (B, C, h, w), latents at ``timestep``.
        text: (B, L, D), states of "a V c s".
        empty: (L, D), for guidance.
    """
    latents = denoised(model, noised, timestep, text, empty, fusion.steps, fusion.guidance, fusion.grad_steps)
    with torch.autocast(latents.device.type, enabled=False):  # half precision overflows in some autoencoders
        again = fusion.recompute and latents.requires_grad
        picture = checkpoint(decoded, vae, latents.float(), use_reentrant=False) if again else decoded(vae, latents)
    outside = ((picture < 0) | (picture > 1)).float().mean()
    return Coarse(latents, picture.clamp(0, 1), outside)


def matching(features: Tensor, wanted: Tensor) -> Tensor:
    """Mean of 1 - cosine: (B, D), (B, D) or (1, D) -> scalar; the form is ours."""
    return (1 - F.cosine_similarity(features, wanted, dim=1)).mean()
