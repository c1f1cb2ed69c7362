"""A UNet with its schedule, called on latents of one timestep, and the few DDIM steps that lead from there to clean ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from genlab.diffusion.schedule import Prediction, ddim_step, sub_schedule


class Denoising(NamedTuple):
    """What a step needs of the model.

    Args:
        unet: With LoRA.
        alphas: a_t, (steps,).
        prediction: What the UNet predicts.
    """

    unet: Any
    alphas: Tensor
    prediction: Prediction

    def __call__(self, latents: Tensor, timestep: int, text: Tensor) -> Tensor:
        """e of (B, C, h, w) under one text (L, D) or as many as samples."""
        states = text if text.ndim == 3 else text.expand(len(latents), -1, -1)
        return self.unet(latents, torch.full((len(latents),), timestep, device=latents.device), states, return_dict=False)[0]


def denoised(
    model: Denoising,
    noised: Tensor,
    timestep: int,
    text: Tensor,
    empty: Tensor,
    steps: int,
    guidance: float,
    grad_steps: int | None = None,
) -> Tensor:
    """Clean latents by a few deterministic DDIM steps from ``timestep`` on, differentiable (DomainGallery, arXiv 2411.04571, Sec. 3.4).

    Args:
        noised: (B, C, h, w).
        text: (L, D), or (B, L, D) for a text each.
        empty: (L, D), for guidance.
        steps: n, calls of the network; DomainGallery: 5.
        guidance: Scale of classifier-free guidance; 1 is without (DomainGallery).
        grad_steps: Calls that gradients go through, the last ones; left out, all. Values are the same.
    """
    x, clean = noised, noised
    chain = sub_schedule(timestep, steps)
    first = 0 if grad_steps is None else max(0, len(chain) - grad_steps)
    for place, (t, following) in enumerate(zip(chain, [*chain[1:], -1])):
        with torch.set_grad_enabled(torch.is_grad_enabled() and place >= first):
            if guidance == 1:
                output = model(x, t, text)
            else:
                states = torch.cat([each.expand(len(x), -1, -1) for each in (empty, text)])
                without, conditional = model(torch.cat([x, x]), t, states).chunk(2)
                output = without + guidance * (conditional - without)
            x, clean = ddim_step(output, x, torch.tensor(t), torch.tensor(following), model.alphas, model.prediction)
    return clean
