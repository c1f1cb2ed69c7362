"""The noise schedule of a diffusion model as pure functions (Ho et al., arXiv 2006.11239; Song et al., arXiv 2010.02502).

Everything follows from a_t = ``alphas_cumprod[t]``, which falls from almost 1 at t = 0 to almost 0 at the last step:

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e            noised latents, e ~ N(0, 1)
    v_t = sqrt(a_t) e   - sqrt(1 - a_t) x_0          "velocity" (Salimans and Ho, arXiv 2202.00512)

Latents have shape (B, ...), timesteps (B,) or a scalar; a timestep below 0 stands for the end of the schedule, whose a is
``alphas_cumprod[0]``, as in Stable Diffusion (``set_alpha_to_one=False``). All is differentiable, and vectorised over timesteps.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction"]


def scaled_linear(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """``alphas_cumprod`` (steps,) of Stable Diffusion, fp32: sqrt(beta) is linear in t, and a_t is the product of the 1 - beta."""
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
    return torch.cumprod(1 - betas, 0)


def at(alphas_cumprod: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
    """a_t, shaped to multiply ``like`` (B, ...), in its device and dtype."""
    values = alphas_cumprod.to(like.device)[timesteps.to(like.device).clamp_min(0)].to(like.dtype)
    return values.reshape(values.shape + (1,) * (like.dim() - values.dim()))


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x_t of clean latents and noise. (B, ...)."""
    a = at(alphas_cumprod, timesteps, latents)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def velocity(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """v_t of clean latents and noise. (B, ...)."""
    a = at(alphas_cumprod, timesteps, latents)
    return a.sqrt() * noise - (1 - a).sqrt() * latents


def training_target(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor, prediction: Prediction) -> Tensor:
    """What the network is to predict: the noise, or the velocity. (B, ...)."""
    return noise if prediction == "epsilon" else velocity(latents, noise, timesteps, alphas_cumprod)


def predict_x0(output: Tensor, noised: Tensor, timesteps: Tensor, alphas_cumprod: Tensor, prediction: Prediction) -> Tensor:
    """The clean latents that a prediction at x_t amounts to. (B, ...).

    epsilon: (x_t - sqrt(1 - a_t) e) / sqrt(a_t).  v_prediction: sqrt(a_t) x_t - sqrt(1 - a_t) v.
    """
    a = at(alphas_cumprod, timesteps, noised)
    if prediction == "epsilon":
        return (noised - (1 - a).sqrt() * output) / a.sqrt()
    return a.sqrt() * noised - (1 - a).sqrt() * output


def predict_noise(output: Tensor, noised: Tensor, timesteps: Tensor, alphas_cumprod: Tensor, prediction: Prediction) -> Tensor:
    """The noise that a prediction at x_t amounts to: itself, or sqrt(a_t) v + sqrt(1 - a_t) x_t. (B, ...)."""
    if prediction == "epsilon":
        return output
    a = at(alphas_cumprod, timesteps, noised)
    return a.sqrt() * output + (1 - a).sqrt() * noised


def ddim_step(
    output: Tensor, noised: Tensor, timesteps: Tensor, previous: Tensor, alphas_cumprod: Tensor, prediction: Prediction
) -> tuple[Tensor, Tensor]:
    """A deterministic DDIM step (eta = 0) from ``timesteps`` down to ``previous``, without clipping.

    Returns:
        x at ``previous``, sqrt(a_p) x_0 + sqrt(1 - a_p) e, and the predicted x_0. (B, ...) each.
    """
    clean = predict_x0(output, noised, timesteps, alphas_cumprod, prediction)
    noise = predict_noise(output, noised, timesteps, alphas_cumprod, prediction)
    return add_noise(clean, noise, previous, alphas_cumprod), clean


def sub_schedule(timestep: int, steps: int) -> list[int]:
    """At most ``steps`` timesteps from ``timestep`` down, to reach clean latents in few DDIM steps.

    All of ``timestep`` ... 0 where that many suffice; else ``steps + 1`` points evenly from ``timestep`` to 0, rounded half to even,
    without the 0 itself: the last step then leads to the end of the schedule.

    >>> sub_schedule(999, 5)
    [999, 799, 599, 400, 200]
    """
    if timestep <= steps - 1:
        return list(range(timestep, -1, -1))
    return [int(t) for t in np.rint(np.linspace(timestep, 0, steps + 1))[:-1]]


def offset_noise(noise: Tensor, offset: Tensor, scale: float) -> Tensor:
    """Noise with a random shift per picture and channel, which lets a model learn to make dark and bright pictures as a whole.

    Args:
        noise: (B, C, h, w), N(0, 1).
        offset: (B, C, 1, 1), N(0, 1).
        scale: 0 changes nothing.
    """
    return noise + scale * offset
