"""Quality and diversity of generated pictures from few real ones: KID, and the spread within clusters (intra-cluster LPIPS).

Features and distances come from networks that are handed in; numbers of one network say nothing about those of another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

Distance = Callable[[Tensor, Tensor], Tensor]
"""Pictures (B, 3, H, W) twice, in [0, 1] -> (B,)."""


def kernel_distance(real: Tensor, made: Tensor) -> Tensor:
    """Unbiased squared MMD with k(x, y) = (x y / d + 1)^3, over all rows: (N, d), (M, d) -> scalar (Binkowski et al., arXiv 1801.01401).

    Raises:
        ValueError: One side has fewer than two rows.
    """
    n, m, width = len(real), len(made), real.shape[1]
    if min(n, m) < 2:
        raise ValueError(f"{n} real and {m} made pictures; the distance needs two or more of each.")
    x, y = real.double(), made.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / width + 1) ** 3

    within = [(k.sum() - k.diagonal().sum()) / (size * (size - 1)) for k, size in ((kernel(x, x), n), (kernel(y, y), m))]
    return within[0] + within[1] - 2 * kernel(x, y).mean()


def kid(real: Tensor, made: Tensor, subsets: int = 100, size: int | None = None, seed: int = 0) -> tuple[float, float]:
    """Mean and deviation of `kernel_distance` over random subsets.

    Args:
        real: (N, d).
        made: (M, d).
        subsets: How many.
        size: Of each on both sides; left out, min(N, M, 1000), as in few-shot work: all of the few real ones every time.
        seed: Of the subsets.
    """
    count = size or min(len(real), len(made), 1000)
    generator = torch.Generator().manual_seed(seed)
    values = torch.stack([
        kernel_distance(*(side[torch.randperm(len(side), generator=generator)[:count].to(side.device)] for side in (real, made)))
        for _ in range(subsets)
    ])  # fmt: skip
    return float(values.mean()), float(values.std(correction=0))


@dataclass(frozen=True)
class Spread:
    """Diversity of generated pictures, cluster by cluster.

    Args:
        counts: Pictures nearest to each real one.
        members: Of each cluster, those that were compared.
        means: Mean distance within each; NaN where there are fewer than two.
        ignoring_small: Mean over clusters of two and more; the intra-cluster LPIPS.
        small_as_zero: Mean over all clusters, small ones counting 0.
        balanced: Sum over clusters of -q log10(q) times their mean, q their share (+ 1e-5).
    """

    counts: list[int]
    members: list[list[int]]
    means: list[float]
    ignoring_small: float
    small_as_zero: float
    balanced: float


def cluster_spread(to_real: Tensor, between: Callable[[int, int], float], cap: int = 50) -> Spread:
    """Intra-cluster LPIPS (Ojha et al., CVPR 2021; DomainGallery, arXiv 2411.04571, Sec. 4) and its variants.

    Args:
        to_real: (N, R) distances of generated to real pictures.
        between: Distance of two generated ones, by their numbers.
        cap: Members of a cluster that are compared, the first ones.
    """
    nearest, real = to_real.argmin(1).tolist(), to_real.shape[1]
    clusters = [[i for i, place in enumerate(nearest) if place == r] for r in range(real)]
    members = [own[:cap] for own in clusters]
    means = []
    for own in members:
        pairs = [between(a, b) for k, a in enumerate(own) for b in own[k + 1 :]]
        means.append(sum(pairs) / len(pairs) if pairs else math.nan)
    known = [mean for mean in means if not math.isnan(mean)]
    shares = [len(own) / max(len(nearest), 1) + 1e-5 for own in clusters]
    balanced = sum(-q * math.log10(q) * mean for q, mean in zip(shares, means) if not math.isnan(mean))
    counts = [len(own) for own in clusters]
    return Spread(counts, members, means, sum(known) / len(known) if known else math.nan, sum(known) / real, balanced)


class FewShotQuality(Metric):
    """KID to the real pictures, and intra-cluster distance, of generated ones.

    ``kid_x1000`` and its deviation over subsets, in thousandths; lower is better. ``intra`` (and ``intra_small_as_zero``), higher is more
    diverse. NaN before two pictures.

    Args:
        features: Pictures (B, 3, H, W) in [0, 1] -> (B, d).
        distance: See above.
        real: (R, 3, H, W), the few real pictures.
        cap: See `cluster_spread`.
    """

    real: Tensor
    pictures: list[Tensor]
    numbers: list[Tensor]
    full_state_update = False

    def __init__(self, features: Callable[[Tensor], Tensor], distance: Distance, real: Tensor, cap: int = 50) -> None:
        super().__init__()
        self.features, self.distance, self.cap = features, distance, cap
        self.register_buffer("real", real, persistent=False)
        self.add_state("pictures", [], dist_reduce_fx="cat")
        self.add_state("numbers", [], dist_reduce_fx="cat")

    def update(self, pictures: Tensor, numbers: Tensor) -> None:
        """Generated pictures (B, 3, H, W) in [0, 1], kept as uint8, and their numbers (B,), whose order decides which are compared."""
        self.pictures.append((pictures * 255 + 0.5).byte())
        self.numbers.append(numbers)

    @torch.no_grad()
    def compute(self) -> dict[str, Tensor]:
        names = ("kid_x1000", "kid_x1000_std", "intra", "intra_small_as_zero")
        if not self.numbers or len(dim_zero_cat(self.numbers)) < 2:
            return {name: torch.tensor(math.nan) for name in names}
        order = dim_zero_cat(self.numbers).argsort(stable=True)
        made = dim_zero_cat(self.pictures)[order].float() / 255
        real = self.real.to(made.device)
        mean, deviation = kid(self._batched(real), self._batched(made))
        to_real = torch.stack([self.distance(made, each[None].expand_as(made)) for each in real], 1)
        spread = cluster_spread(to_real, lambda a, b: float(self.distance(made[a][None], made[b][None])), self.cap)
        values = (1000 * mean, 1000 * deviation, spread.ignoring_small, spread.small_as_zero)
        return {name: torch.tensor(value) for name, value in zip(names, values)}

    def _batched(self, pictures: Tensor) -> Tensor:
        return torch.cat([self.features(some) for some in pictures.split(64)])
