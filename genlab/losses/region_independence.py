"""Region-independence loss of the multi-attention detector (Zhao et al., arXiv 2103.02406, Sec. 3.4): each attention map keeps to a
texture of its own in genuine pictures."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class RegionIndependence(nn.Module):
    """Pulls what a map sees in genuine pictures to a centre that follows it, and the centres of different maps apart.

    Args:
        maps: M.
        width: N, channels of the texture.
        alpha: How fast centres follow. Official code: 0.05, times 0.9 per epoch; here it stays.
        margin: Least distance between two centres.
        inner_margins: Of genuine and fake pictures: a negative one is how far a fake's must at least be away.
    """

    centres: Tensor

    def __init__(
        self, maps: int, width: int, alpha: float = 0.05, margin: float = 0.5, inner_margins: tuple[float, float] = (0.1, -2.0)
    ) -> None:
        super().__init__()
        self.alpha, self.margin, self.inner_margins = alpha, margin, inner_margins
        self.register_buffer("centres", torch.zeros(maps, width))

    def forward(self, features: Tensor, attention: Tensor, fake: Tensor) -> Tensor:
        """(B, N, h, w) standardised over space, (B, M, h, w), (B,) bool -> scalar. Training moves the centres."""
        seen = F.normalize(torch.einsum("bmhw,bnhw->bmn", attention, features), dim=-1)
        genuine = (~fake).to(seen)[:, None, None]
        centres = self.centres + self.alpha * (genuine * (seen - self.centres)).mean(0)
        margins = torch.where(fake, self.inner_margins[1], self.inner_margins[0]).to(seen)
        distance = (seen - centres).flatten(1).norm(dim=1)
        intra = F.relu(distance * margins.sign() - margins).mean()
        j, k = torch.triu_indices(len(centres), len(centres), 1)
        inter = F.relu(self.margin - (centres[j] - centres[k]).norm(dim=-1)).sum() / (len(centres) * self.alpha)
        if self.training:
            with torch.no_grad():
                moved = centres.detach().clone()
                if dist.is_available() and dist.is_initialized():
                    dist.all_reduce(moved)
                    moved /= dist.get_world_size()
                self.centres.copy_(moved)
        return intra + inter
