"""Sampling latents with DDIM and classifier-free guidance (Ho and Salimans, arXiv 2207.12598)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DDIMScheduler

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Latents (N, C, h, w), timesteps (N,) and text states (N, L, D) -> prediction (N, C, h, w)."""


@torch.no_grad()
def sample_latents(
    denoise: Denoiser, scheduler: DDIMScheduler, noise: Tensor, text: Tensor, empty: Tensor, steps: int, guidance: float
) -> Tensor:
    """Clean latents (B, C, h, w) from noise, deterministically; the same as the stock pipeline gives.

    Args:
        denoise: The network; with guidance it is called on ``[unconditional; conditional]``.
        scheduler: Of the network; its timesteps are set here.
        noise: (B, C, h, w), N(0, 1).
        text: (B, L, D), states of the prompts.
        empty: (1, L, D), states of the empty (or negative) prompt.
        steps: Calls of the network.
        guidance: g of e = e_empty + g (e_text - e_empty); 1 leaves the unconditional half out.
    """
    scheduler.set_timesteps(steps)
    guided, latents = guidance != 1, noise * scheduler.init_noise_sigma
    states = torch.cat([empty.expand_as(text), text]) if guided else text
    for timestep in scheduler.timesteps:
        twice = torch.cat([latents, latents]) if guided else latents
        output = denoise(twice, timestep.expand(len(twice)).to(noise.device), states).to(noise.dtype)
        if guided:
            without, conditional = output.chunk(2)
            output = without + guidance * (conditional - without)
        latents = scheduler.step(output, timestep, latents).prev_sample
    return latents
