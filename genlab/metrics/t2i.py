"""Quality and diversity of generated pictures from few real ones: KID, and the spread within clusters (intra-cluster LPIPS).

Features and distances come from networks that are handed in; numbers of one network say nothing about those of another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
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


def frechet_distance(real: Tensor, made: Tensor) -> Tensor:
    """FID: |m - n|^2 + tr(S + T - 2 (S T)^1/2) of the means m, n and covariances S, T of features (N, d), (M, d) (Heusel et al.,
    arXiv 1706.08500, Eq. 6). In fp64.

    Raises:
        ValueError: One side has fewer than two rows.
    """
    if min(len(real), len(made)) < 2:
        raise ValueError(f"{len(real)} real and {len(made)} made pictures; the distance needs two or more of each.")
    x, y = real.double(), made.double()
    shift = (x.mean(0) - y.mean(0)).square().sum()
    s, t = torch.cov(x.T), torch.cov(y.T)
    root = torch.linalg.eigvals(s @ t).sqrt().real.sum()  # of S T, whose eigenvalues are real and not negative but for rounding
    return shift + s.trace() + t.trace() - 2 * root


class FewShotQuality(Metric):
    """KID, FID and diversity of generated pictures, by one network.

    ``kid_x1000`` and its deviation over subsets, in thousandths, and with a reference ``fid``; lower is better. ``intra`` (and
    ``intra_small_as_zero``), intra-cluster distance: higher is more diverse. ``nearest``: mean distance to the nearest of the few real
    pictures, 0 for copies. NaN before two pictures.

    Args:
        features: Pictures (B, 3, H, W) in [0, 1] -> (B, d); ``None`` leaves KID and FID out.
        distance: See above; ``None`` leaves diversity out.
        real: (R, 3, H, W), the few real pictures.
        cap: See `cluster_spread`.
        reference: (N, 3, H, W) many more of the domain, for FID and KID; left out, KID is to the few ones and there is no FID, as in papers
            of domains that have no more.
        side: Pixels that pictures are reduced to for the distance. Few-shot work: 256.
    """

    real: Tensor
    features_of_made: list[Tensor]
    pictures: list[Tensor]
    numbers: list[Tensor]
    full_state_update = False

    def __init__(
        self,
        features: Callable[[Tensor], Tensor] | None,
        distance: Distance | None,
        real: Tensor,
        cap: int = 50,
        reference: Tensor | None = None,
        side: int = 256,
    ) -> None:
        super().__init__()
        self.features, self.distance, self.cap, self.side = features, distance, cap, side
        self.register_buffer("real", real, persistent=False)
        self.reference = reference
        for name in ("features_of_made", "pictures", "numbers"):
            self.add_state(name, [], dist_reduce_fx="cat")

    @torch.no_grad()
    def update(self, pictures: Tensor, numbers: Tensor) -> None:
        """Generated pictures (B, 3, H, W) in [0, 1], seen as uint8, and their numbers (B,), whose order decides which are compared."""
        pixels = (pictures * 255 + 0.5).byte()
        if self.features is not None:
            self.features_of_made.append(self.features(pixels.float() / 255))
        if self.distance is not None:
            self.pictures.append((self._reduced(pixels.float() / 255) * 255 + 0.5).byte())
        self.numbers.append(numbers)

    @torch.no_grad()
    def compute(self) -> dict[str, Tensor]:
        names = ["kid_x1000", "kid_x1000_std"] * (self.features is not None)
        names += ["fid"] * (self.features is not None and self.reference is not None)
        names += ["intra", "intra_small_as_zero", "nearest"] * (self.distance is not None)
        if not self.numbers or len(dim_zero_cat(self.numbers)) < 2:
            return {name: torch.tensor(math.nan) for name in names}
        order = dim_zero_cat(self.numbers).argsort(stable=True)
        values: list[float] = []
        if self.features is not None:
            made = dim_zero_cat(self.features_of_made)[order]
            wanted = self.real if self.reference is None else self.reference
            real = torch.cat([self.features(some.to(made.device)) for some in wanted.split(64)])
            values += [1000 * value for value in kid(real, made)]
            values += [float(frechet_distance(real, made))] * (self.reference is not None)
        if self.distance is not None:
            values += self._spread(dim_zero_cat(self.pictures)[order].float() / 255)
        return {name: torch.tensor(value) for name, value in zip(names, values, strict=True)}

    def _spread(self, made: Tensor) -> list[float]:
        assert self.distance is not None
        far = self.distance
        real = self._reduced(self.real.to(made.device))
        to_real = torch.stack([torch.cat([far(some, each[None].expand_as(some)) for some in made.split(64)]) for each in real], 1)
        spread = cluster_spread(to_real, lambda a, b: float(far(made[a][None], made[b][None])), self.cap)
        return [spread.ignoring_small, spread.small_as_zero, float(to_real.amin(1).mean())]

    def _reduced(self, pictures: Tensor) -> Tensor:
        if max(pictures.shape[-2:]) <= self.side:
            return pictures
        return F.interpolate(pictures, (self.side, self.side), mode="bilinear", antialias=True).clamp(0, 1)


class MeanCosine(Metric):
    """Mean cosine of generated pictures to all real ones, in [-1, 1] (DreamBooth's CLIP-I and DINO). NaN before the first.

    Args:
        features: Pictures (B, 3, H, W) in [0, 1] -> unit vectors (B, D).
        real: (R, 3, H, W).
    """

    real: Tensor
    total: Tensor
    count: Tensor
    full_state_update = False

    def __init__(self, features: Callable[[Tensor], Tensor], real: Tensor) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("real", real, persistent=False)
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0), dist_reduce_fx="sum")
        self._vectors: Tensor | None = None

    def update(self, pictures: Tensor) -> None:
        """(B, 3, H, W) in [0, 1]."""
        if self._vectors is None:
            self._vectors = torch.cat([self.features(some) for some in self.real.split(64)])
        cosines = (self.features(pictures) @ self._vectors.T).mean(1)
        self.total, self.count = self.total + cosines.sum(), self.count + len(cosines)

    def compute(self) -> Tensor:
        return self.total / self.count


class PromptCosine(Metric):
    """Mean cosine of generated pictures to their prompts, in [-1, 1] (CLIP-T). NaN before the first.

    Args:
        image: Pictures (B, 3, H, W) in [0, 1] -> unit vectors (B, D).
        text: Prompts -> likewise.
    """

    total: Tensor
    count: Tensor
    full_state_update = False

    def __init__(self, image: Callable[[Tensor], Tensor], text: Callable[[Sequence[str]], Tensor]) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, pictures: Tensor, prompts: Sequence[str]) -> None:
        """(B, 3, H, W) in [0, 1], and as many prompts."""
        cosines = (self.image(pictures) * self.text(prompts)).sum(1)
        self.total, self.count = self.total + cosines.sum(), self.count + len(cosines)

    def compute(self) -> Tensor:
        return self.total / self.count
