"""Features of a UNet's encoder: what feeds its skip connections, without running the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


def unet_encoder_features(unet: UNet2DConditionModel, latents: Tensor, timesteps: Tensor, states: Tensor) -> list[Tensor]:
    """The output of ``conv_in`` and of every layer of the way down, in order; 12 of Stable Diffusion's. Adapters of the network take part.

    Args:
        unet: Without class labels or other conditions than text.
        latents: (B, C, h, w).
        timesteps: (B,) or a scalar.
        states: (B, L, D), of the text.
    """
    network = cast(Any, unet)
    time = network.time_embedding(network.get_time_embed(sample=latents, timestep=timesteps.expand(len(latents))), None)
    text = network.process_encoder_hidden_states(encoder_hidden_states=states, added_cond_kwargs={})
    x = network.conv_in(latents)
    found = [x]
    for block in network.down_blocks:
        more = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
        x, residuals = block(hidden_states=x, temb=time, **more)
        found += residuals
    return found
