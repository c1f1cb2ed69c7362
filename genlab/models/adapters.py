"""Bottleneck adapters beside the blocks of two transformer towers, tied together by a projection that both share (MSTA, arXiv 2411.11223).

Blocks count from 1, as in the paper, and carry the text tower's numbers; names of parameters are ``vision.<k>``, ``text.<k>`` and
``shared.<k>``. What the paper leaves open is marked in docs/msta.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError

Branches = Literal["both", "text", "vision"]


class VisionAdapter(nn.Module):
    """A_v(x) = W_us h + TConv(h), h = ReLU(W_s ReLU(W_d x)): (B, 1 + G*G * T', D) -> the same shape.

    TConv runs along time over each patch by itself; class tokens, of which a clip may have several, get nothing from it.

    Args:
        width: D.
        bottleneck: r.
        temporal_kernel: Steps of time that TConv sees, odd; ``None`` leaves it out.
    """

    def __init__(self, width: int, bottleneck: int, temporal_kernel: int | None = 3) -> None:
        super().__init__()
        self.down, self.up_spatial = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        self.up_temporal: nn.Conv3d | None = None
        if temporal_kernel is not None:
            if temporal_kernel < 1 or temporal_kernel % 2 == 0:
                raise UserError(f"model.temporal_kernel: {temporal_kernel} is not odd; use 1, 3 or 5, or null for none.")
            self.up_temporal = nn.Conv3d(
                bottleneck, width, (temporal_kernel, 1, 1), padding=(temporal_kernel // 2, 0, 0), groups=math.gcd(bottleneck, width)
            )

    def temporal(self, h: Tensor, grid: int, first: int = 1) -> Tensor:
        """(B, first + G*G * T', r) -> (B, first + G*G * T', D); token first + n * T' + t is patch n at time t, those before it get 0."""
        assert self.up_temporal is not None
        patches = h[:, first:].unflatten(1, (grid, grid, -1)).permute(0, 4, 3, 1, 2)  # (B, r, T', G, G)
        moved = self.up_temporal(patches).permute(0, 3, 4, 2, 1).flatten(1, 3)
        return F.pad(moved, (0, 0, first, 0))

    def forward(self, x: Tensor, shared: nn.Linear, grid: int, first: int = 1) -> Tensor:
        h = F.relu(shared(F.relu(self.down(x))))
        out = self.up_spatial(h)
        return out if self.up_temporal is None else out + self.temporal(h, grid, first)


class TextAdapter(nn.Module):
    """A_t(x) = W_u ReLU(W_s ReLU(W_d x)): (C, L, D) -> the same shape."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)

    def forward(self, x: Tensor, shared: nn.Linear) -> Tensor:
        return self.up(F.relu(shared(F.relu(self.down(x)))))


class Adapters(nn.Module):
    """Adapters in some blocks of both towers.

    Args:
        vision_width: D of the video tower.
        text_width: D of the text tower.
        bottleneck: r.
        blocks: Numbers of the adapted blocks.
        share: One W_s for both towers, rather than one each.
        branches: Towers that are adapted.
        temporal_kernel: See :class:`VisionAdapter`.
        zero_init_up: Start as the plain backbone: all projections up are zero. Else Kaiming, which with a small lambda is nearly so.
    """

    def __init__(
        self,
        vision_width: int,
        text_width: int,
        bottleneck: int,
        blocks: Iterable[int],
        share: bool = True,
        branches: Branches = "both",
        temporal_kernel: int | None = 3,
        zero_init_up: bool = False,
    ) -> None:
        super().__init__()
        numbers = [str(k) for k in blocks]
        self.vision, self.text, self.shared, self.shared_text = (nn.ModuleDict() for _ in range(4))
        for k in numbers:
            if branches != "text":
                self.vision[k] = VisionAdapter(vision_width, bottleneck, temporal_kernel)
            if branches != "vision":
                self.text[k] = TextAdapter(text_width, bottleneck)
            self.shared[k] = nn.Linear(bottleneck, bottleneck)
            if not share:
                self.shared_text[k] = nn.Linear(bottleneck, bottleneck)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if zero_init_up:
            for name, parameter in self.named_parameters():
                if ".up" in name:
                    nn.init.zeros_(parameter)

    def of_video(self, k: int, x: Tensor, grid: int, first: int = 1) -> Tensor:
        """A_v of block k, which must be in ``vision``."""
        return cast(VisionAdapter, self.vision[str(k)])(x, cast(nn.Linear, self.shared[str(k)]), grid, first)

    def of_text(self, k: int, x: Tensor) -> Tensor:
        """A_t of block k, which must be in ``text``."""
        key = str(k)
        shared = self.shared_text[key] if key in self.shared_text else self.shared[key]
        return cast(TextAdapter, self.text[key])(x, cast(nn.Linear, shared))
