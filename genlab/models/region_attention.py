"""Region attention: learned latents of image regions look at their region, and give what they know back to its tokens alone.

A reconstruction of InterAnimate's Region-aware Interaction System (arXiv 2504.10905), of which neither code nor formulas are public. That
there are spatial and temporal latents which a region attention injects around hand and face is the paper's; all that is written here is
ours.

B clips, F frames, R regions, N = h w tokens (row by row), C channels, L latents of D channels per region. Rows are clip after clip, frame
after frame. The module changes nothing at the start, and never a token outside all regions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError

FLOOR = 1e-4  # of a mask, in the logarithm that keeps latents on their region


def region_tokens(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (B, R, F, H, W) in [0, 1] -> weights of tokens (B * F, R, h * w), by averages over their area: thin fingers do not get lost."""
    batch, regions, frames = masks.shape[:3]
    small = F.adaptive_avg_pool2d(masks.flatten(0, 2)[:, None].float(), size)
    return small.view(batch, regions, frames, -1).transpose(1, 2).flatten(0, 1)


def frame_positions(frames: int, width: int) -> Tensor:
    """Sinusoids (F, C): even columns sine, odd ones cosine of frame * exp(-ln(10000) i / C), i the even column's number."""
    rates = torch.exp(-math.log(10000.0) * torch.arange(0, width, 2) / width)
    angles = torch.arange(frames)[:, None] * rates
    table = torch.zeros(frames, width)
    table[:, 0::2], table[:, 1::2] = angles.sin(), angles.cos()[:, : width // 2]
    return table


class RegionLatentAttention(nn.Module):
    """x + W_out sum_r m_r attention(x, z_r), after each z_r has looked at its region (``gather``).

    Args:
        width: C.
        latent_width: D.
        heads: Of both attentions; divides C and D.
        gather: Let latents look at the tokens first.
        frame_positions: Add sinusoids of the frame to the normalised tokens; for temporal layers.
    """

    def __init__(self, width: int, latent_width: int, heads: int = 8, gather: bool = True, frame_positions: bool = False) -> None:
        super().__init__()
        if width % heads or latent_width % heads:
            raise UserError(f"region attention: {heads} heads do not divide {width} and {latent_width} channels.")
        self.heads, self.gather, self.frame_positions = heads, gather, frame_positions
        self.norm, self.norm_latent = nn.LayerNorm(width), nn.LayerNorm(latent_width)
        self.to_q, self.to_out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = nn.Linear(latent_width, width, bias=False), nn.Linear(latent_width, width, bias=False)
        nn.init.zeros_(self.to_out.weight)
        if gather:
            self.g_q, self.g_out = nn.Linear(latent_width, latent_width, bias=False), nn.Linear(latent_width, latent_width)
            self.g_k, self.g_v = nn.Linear(width, latent_width, bias=False), nn.Linear(width, latent_width, bias=False)

    def forward(self, x: Tensor, weights: Tensor, latents: Tensor, frames: int = 1) -> Tensor:
        """Tokens (B * F, N, C), their weights (B * F, R, N), latents (B * F, R, L, D) -> tokens.

        Args:
            frames: F, of which the rows of a clip are made.
        """
        tokens = self.norm(x)
        if self.frame_positions:
            table = frame_positions(frames, x.shape[-1]).to(tokens)
            tokens = tokens + table.repeat(len(x) // frames, 1)[:, None]
        if self.gather:
            bias = weights.float().clamp_min(FLOOR).log().to(x.dtype)[:, :, None]  # (B*F, R, 1, N); in fp32, else thin regions vanish
            keys, values = (self._split(layer(tokens))[:, None] for layer in (self.g_k, self.g_v))
            queries = self._split(self.g_q(self.norm_latent(latents)))
            count = latents.shape[1]
            looked = F.scaled_dot_product_attention(
                queries, keys.expand(-1, count, -1, -1, -1), values.expand(-1, count, -1, -1, -1), attn_mask=bias[:, :, None]
            )
            latents = latents + self.g_out(looked.transpose(-2, -3).flatten(-2))
        known = self.norm_latent(latents)
        queries, keys, values = self._split(self.to_q(tokens))[:, None], self._split(self.to_k(known)), self._split(self.to_v(known))
        told = F.scaled_dot_product_attention(queries.expand(-1, keys.shape[1], -1, -1, -1), keys, values).transpose(-2, -3).flatten(-2)
        return x + self.to_out((weights[..., None].to(told) * told).sum(1))

    def _split(self, x: Tensor) -> Tensor:
        """(..., n, C) -> (..., heads, n, C / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)
