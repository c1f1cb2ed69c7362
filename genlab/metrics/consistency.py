"""Re-inpainting self-consistency (Chen et al., arXiv 2405.16263): how far is a filled picture from what a second filling makes of it?

D(F1) = 1/K sum_k d(X1, X2_k), where X1 is what the judged inpainter F1 made of a picture with a hole, and X2_k what F2 makes of X1 when
other parts of it are hidden. No reference picture is needed. Holes are 1 where something is hidden (the paper writes masks, 1 - hole).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure

from genlab.errors import UserError
from genlab.holes import Avoid, patch_count, patch_seed, second_hole
from genlab.metrics.lpips import load_lpips
from genlab.training.randomness import fold_key

Distance = Literal["l1", "mse", "psnr", "ssim", "lpips_alex", "lpips_vgg", "lpips_squeeze"]
Region = Literal["full", "second_hole"]
HIGHER_IS_BETTER = ("psnr", "ssim")
MAX_PSNR = 100.0
"""PSNR of equal pictures, which would be infinite, in dB; a mean over pairs is a mean of values that end here."""


def higher_is_better(name: str) -> bool:
    """Whether a larger value of ``name``, a distance with or without ``_hole``, means that two pictures are nearer."""
    return name.removesuffix("_hole") in HIGHER_IS_BETTER


class Distances(nn.Module):
    """Several distances between pairs of pictures, each pair on its own: a pair's numbers do not depend on the batch that it is in.

    ``l1`` and ``mse`` are means over pixels and channels, ``psnr`` = 10 log10(1 / mse) in dB, at most ``MAX_PSNR``; ``ssim`` with a
    Gaussian window of 11 pixels, sigma 1.5; ``lpips_<net>`` as in Zhang et al., arXiv 1801.03924. Of ``psnr`` and ``ssim`` higher is
    nearer.

    Args:
        names: Which.
        regions: ``full``, the whole picture (paper); ``second_hole`` adds ``l1_hole``, ``mse_hole`` and ``psnr_hole``, over the pixels
            that were hidden the second time.
        backbone_weights: File with torchvision's weights of the LPIPS network; left out, see :func:`genlab.metrics.lpips.load_lpips`.

    Raises:
        MissingPath: LPIPS is asked for, and its network is not on this machine.
        UserError: An unknown name, or none.
    """

    def __init__(
        self, names: Sequence[Distance], regions: Sequence[Region] = ("full",), backbone_weights: Path | str | None = None
    ) -> None:
        super().__init__()
        known = (*HIGHER_IS_BETTER, "l1", "mse", "lpips_alex", "lpips_vgg", "lpips_squeeze")
        if not names or (unknown := [name for name in names if name not in known]):
            raise UserError(f"distances: {', '.join(unknown) if names else 'none'} is no choice; there are {', '.join(sorted(known))}.")
        self.names, self.in_hole = list(names), "second_hole" in regions
        self.networks = nn.ModuleDict(
            {name: load_lpips(name.removeprefix("lpips_"), backbone_weights) for name in names if "lpips" in name}
        )

    @property
    def columns(self) -> list[str]:
        """Names of all that :meth:`forward` returns."""
        inside = [f"{name}_hole" for name in self.names if name in ("l1", "mse", "psnr")] if self.in_hole else []
        return [*self.names, *inside]

    @torch.no_grad()
    def forward(self, first: Tensor, second: Tensor, holes: Tensor | None = None) -> dict[str, Tensor]:
        """Distances of N pairs, (N,) float64 each.

        Args:
            first: (N, 3, H, W) in [0, 1], the target.
            second: Likewise, the prediction.
            holes: (N, 1, H, W), 1 = hidden; for ``second_hole``. A pair without a hole has NaN there.
        """
        found: dict[str, list[Tensor]] = {name: [] for name in self.columns}
        for number in range(len(first)):
            x, y = first[number : number + 1].float(), second[number : number + 1].float()
            hole = holes[number] if holes is not None and self.in_hole else None
            for name, value in self._pair(x, y, hole).items():
                found[name].append(value.double().reshape(()))
        empty = torch.empty(0, dtype=torch.float64, device=first.device)
        return {name: torch.stack(values) if values else empty for name, values in found.items()}

    def _pair(self, x: Tensor, y: Tensor, hole: Tensor | None) -> dict[str, Tensor]:
        difference = x - y
        values = _pixelwise(difference)
        if "ssim" in self.names:
            values["ssim"] = cast(Tensor, structural_similarity_index_measure(y, x, data_range=1.0))
        for name, network in self.networks.items():
            values[name] = network(2 * x - 1, 2 * y - 1)
        if self.in_hole:
            hidden = difference.new_empty(0) if hole is None else difference[0].masked_select(hole.to(difference.device) > 0.5)
            values |= {f"{name}_hole": value for name, value in _pixelwise(hidden).items()}
        return {name: values[name] for name in self.columns}


def _pixelwise(difference: Tensor) -> dict[str, Tensor]:
    mse = difference.pow(2).mean()
    return {"l1": difference.abs().mean(), "mse": mse, "psnr": (-10 * torch.log10(mse)).clamp(max=MAX_PSNR)}


# ---- filling twice


class Fills(Protocol):
    """What can be judged, or judge: see :class:`genlab.models.inpainters.Inpainter`."""

    def fill(
        self, images: Tensor, holes: Tensor, *, seeds: list[int], prompts: list[str] | None = None, ids: list[str] | None = None
    ) -> Tensor: ...


class Filled(NamedTuple):
    """What an inpainter made of pictures."""

    images: Tensor
    """(B, 3, H, W) in [0, 1]."""
    leak: Tensor
    """(B,) mean absolute change of the pixels that were known, before they were put back."""


def fill_holes(
    inpainter: Fills,
    images: Tensor,
    holes: Tensor,
    seeds: list[int],
    prompts: list[str] | None = None,
    ids: list[str] | None = None,
    composite: bool = True,
) -> Filled:
    """Hides the holes and lets the inpainter fill them: y = x (1 - h) + F(x (1 - h), h) h.

    Args:
        images: (B, 3, H, W) in [0, 1].
        holes: (B, 1, H, W), 1 = hidden; the inpainter never sees what is there.
        composite: Put the known pixels back; without, what the inpainter changed there counts too.
    """
    hidden = holes > 0.5
    made = inpainter.fill(images.masked_fill(hidden, 0.0), hidden.to(images.dtype), seeds=seeds, prompts=prompts, ids=ids).to(images)
    if made.shape != images.shape:
        raise ValueError(f"{type(inpainter).__name__}: filled {tuple(images.shape)} and gave {tuple(made.shape)}.")
    known = ~hidden
    change = ((made - images).abs() * known).flatten(1).sum(1) / (3 * known.flatten(1).sum(1)).clamp(min=1)
    return Filled(torch.where(hidden, made, images) if composite else made, change)


class ReInpainted(NamedTuple):
    """Both fillings of B pictures, the second one K times."""

    first: Tensor
    """X1, (B, 3, H, W)."""
    second: Tensor
    """X2, (B, K, 3, H, W); X1 itself where there was nothing to hide."""
    second_holes: Tensor
    """(B, K, 1, H, W) bool."""
    valid: Tensor
    """(B, K) bool, whether something was hidden the second time (or nothing was to be)."""


def reinpaint(
    f1: Fills,
    f2: Fills,
    images: Tensor,
    holes: Tensor,
    k: int = 10,
    *,
    ratio: float = 0.4,
    patch: int | None = None,
    avoid: Avoid = "pixel",
    base_seed: int = 0,
    indices: Sequence[int] | None = None,
    k_offset: int = 0,
    prompts: list[str] | None = None,
    ids: list[str] | None = None,
    composite: bool = True,
) -> ReInpainted:
    """Fills pictures with F1, hides other parts of the result K times, and fills those with F2 (the paper's algorithm).

    Args:
        images: (B, 3, H, W) in [0, 1].
        holes: (B, 1, H, W), 1 = hole.
        k: K; ``k_offset`` is the number of the first repeat.
        ratio, patch, avoid: See :func:`genlab.holes.second_hole`; without ``patch``, the grid has 16 cells on the shorter side.
        base_seed: Keys the second holes and what the inpainters draw.
        indices: Places of the pictures in their list; left out, 0 to B - 1.
    """
    height, width = images.shape[-2:]
    patch = patch or default_patch(height, width)
    places = list(range(len(images))) if indices is None else list(indices)
    first = fill_holes(f1, images, holes, [fill_seed(base_seed, i) for i in places], prompts, ids, composite).images
    second, hidden, valid = [], [], []
    for repeat in range(k_offset, k_offset + k):
        seeds = [patch_seed(base_seed, i, repeat) for i in places]
        found = [second_hole(hole[0] > 0.5, patch, ratio, seed, avoid) for hole, seed in zip(holes, seeds)]
        nothing = torch.zeros(height, width, dtype=torch.bool)
        mask = torch.stack([nothing if each is None else each for each in found])[:, None].to(images.device)
        draws = [fill_seed(base_seed, i, repeat) for i in places]
        second.append(fill_holes(f2, first, mask, draws, prompts, ids, composite).images)
        hidden.append(mask)
        valid.append(torch.tensor([each is not None for each in found]))
    return ReInpainted(first, torch.stack(second, 1), torch.stack(hidden, 1), torch.stack(valid, 1).to(images.device))


def fill_seed(base_seed: int, index: int, k: int | None = None) -> int:
    """What an inpainter's draws are keyed by for the picture at ``index``: when it is filled first, or (``k``) the k-th second time."""
    return fold_key("fill", base_seed, index, "first" if k is None else k) % 2**63


def default_patch(height: int, width: int) -> int:
    """Side of a cell: 16 cells on the shorter side, 32 pixels at 512. The paper does not state it."""
    return max(min(height, width) // 16, 1)


# ---- the score


class ReInpaintingConsistency(Metric):
    """D(F1) and what helps to read it, from filled and refilled pictures.

    ``compute`` returns float64 scalars: for each distance d its mean over the repeats and then over the pictures, under its own name, and
    ``<d>_std``, the standard deviation over the repeats (ddof 1) averaged over the pictures that have two or more; with ``original``,
    ``original_first/<d>`` and ``original_second/<d>``; ``n_images``, ``n_pairs``, ``n_invalid``. With ``per_image``, also ``ids`` and
    ``per_image/<d>`` (N,), sorted by id, each id once. NaN before the first update. Of ``psnr`` and ``ssim`` higher is better, of the
    others lower.

    Args:
        distances, regions, backbone_weights: Of :class:`Distances`.
        per_image: Keep the value of every picture.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    sums: Tensor
    deviations: Tensor
    n_deviations: Tensor
    originals: Tensor
    n_originals: Tensor
    n_images: Tensor
    n_pairs: Tensor
    n_invalid: Tensor
    kept: list[Tensor]

    def __init__(
        self,
        distances: Sequence[Distance] = ("l1", "ssim", "psnr"),
        regions: Sequence[Region] = ("full",),
        per_image: bool = False,
        backbone_weights: Path | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.distances, self.per_image = Distances(distances, regions, backbone_weights), per_image
        width = len(self.distances.columns)
        shapes = {"sums": (width,), "deviations": (width,), "originals": (2, width), "n_deviations": (), "n_originals": (2,)}
        for name, shape in (shapes | {"n_images": (), "n_pairs": (), "n_invalid": ()}).items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("kept", [], dist_reduce_fx="cat")

    def update(
        self,
        first: Tensor,
        second: Tensor,
        *,
        original: Tensor | None = None,
        first_holes: Tensor | None = None,
        second_holes: Tensor | None = None,
        valid: Tensor | None = None,
        ids: Sequence[int] | Tensor | None = None,
    ) -> None:
        """Adds B pictures.

        Args:
            first: X1, (B, 3, H, W) in [0, 1].
            second: X2, (B, K, 3, H, W) or (B * K, 3, H, W).
            original: X, (B, 3, H, W), where it is known.
            first_holes: (B, 1, H, W); pictures without a hole are not counted.
            second_holes: (B, K, 1, H, W) or (B * K, 1, H, W), for the region ``second_hole``.
            valid: (B, K) bool, pairs that count; all, if left out.
            ids: B numbers that name the pictures, for ``per_image``; without, they are counted through on this process.

        Raises:
            ValueError: Shapes that do not fit.
        """
        size = len(first)
        if size == 0 or second.shape[-3:] != first.shape[1:] or second[..., 0, 0, 0].numel() % size:
            raise ValueError(f"first {tuple(first.shape)}, second {tuple(second.shape)}; need (B, 3, H, W) and (B, K, 3, H, W).")
        second = second.reshape(size, -1, *first.shape[1:])
        repeats = second.shape[1]
        holes = None if second_holes is None else second_holes.reshape(size, repeats, 1, *first.shape[-2:])
        counts = torch.ones(size, repeats, dtype=torch.bool) if valid is None else valid.reshape(size, repeats).cpu()
        names = list(range(int(self.n_images), int(self.n_images) + size)) if ids is None else [int(each) for each in ids]
        for i in range(size):
            if first_holes is not None and not first_holes[i].any():
                continue
            chosen = counts[i].nonzero().flatten().to(first.device)
            self.n_invalid += repeats - len(chosen)
            if len(chosen):
                hole = None if holes is None else holes[i, chosen]
                self._add(names[i], first[i], second[i, chosen], None if original is None else original[i], hole)

    def _add(self, name: int, first: Tensor, second: Tensor, original: Tensor | None, holes: Tensor | None) -> None:
        values = self._stacked(first.expand_as(second), second, holes)  # (D, K)
        mean = values.mean(1)
        self.sums += mean
        self.n_images += 1
        self.n_pairs += len(second)
        if len(second) > 1:
            self.deviations += values.std(1)
            self.n_deviations += 1
        if original is not None:
            self.originals[0] += self._stacked(original[None], first[None], None)[:, 0]
            self.originals[1] += self._stacked(original.expand_as(second), second, holes).mean(1)
            self.n_originals += 1
        if self.per_image:
            self.kept.append(torch.cat([mean.new_tensor([name]), mean])[None])

    def _stacked(self, first: Tensor, second: Tensor, holes: Tensor | None) -> Tensor:
        return torch.stack(list(self.distances(first, second, holes).values()))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gathers the states of all ranks; one that saw no picture takes part with an empty list of the right type."""
        if not self.kept:
            self.kept = [torch.empty(0, 1 + len(self.distances.columns), dtype=torch.float64, device=self.device)]
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """All numbers, see the class."""
        columns = self.distances.columns
        found: dict[str, Tensor] = {}
        for name, total, deviation in zip(columns, self.sums / self.n_images, self.deviations / self.n_deviations):
            found |= {name: total, f"{name}_std": deviation}
        for which, totals, n in zip(("original_first", "original_second"), self.originals, self.n_originals):
            if n:
                found |= {f"{which}/{name}": value for name, value in zip(columns, totals / n) if not math.isnan(float(value))}
        found |= {"n_images": self.n_images, "n_pairs": self.n_pairs, "n_invalid": self.n_invalid}
        if self.per_image:
            rows = self.kept if isinstance(self.kept, Tensor) else torch.cat([*self.kept, self.sums.new_empty(0, 1 + len(columns))])
            order = rows[:, 0].argsort(stable=True)
            rows = rows[order]
            once = torch.cat([rows.new_ones(min(len(rows), 1), dtype=torch.bool), rows[1:, 0] != rows[:-1, 0]])
            found |= {"ids": rows[once, 0].long()} | {f"per_image/{name}": rows[once, 1 + n] for n, name in enumerate(columns)}
        return found


def hidden_share(height: int, width: int, patch: int, ratio: float) -> float:
    """Share of the grid's cells that a second hole hides before those of the first one are given back."""
    cells = math.ceil(height / patch) * math.ceil(width / patch)
    return patch_count(height, width, patch, ratio) / cells


def detail(images: Tensor, holes: Tensor) -> Tensor:
    """How much goes on in the hole compared with the rest of the picture, without a reference: ratio of mean absolute differences of
    neighbouring pixels. (B, 3, H, W), (B, 1, H, W) -> (B,) float64; 0 for a flat filling, 1 for one as lively as its surroundings.

    A flat filling is easily foretold, so a score of consistency likes it; this number shows such winners.
    """
    steps = F.pad((images[..., :, 1:] - images[..., :, :-1]).abs(), (0, 1)) + F.pad(
        (images[..., 1:, :] - images[..., :-1, :]).abs(), (0, 0, 0, 1)
    )
    inside = F.max_pool2d(1 - (holes > 0.5).to(images), 3, 1, 1) < 0.5  # not at the edge of the hole, where a step is the seam
    outside = F.max_pool2d((holes > 0.5).to(images), 3, 1, 1) < 0.5
    steps = steps.double().mean(1, keepdim=True)
    means = [(steps * part).flatten(1).sum(1) / part.flatten(1).sum(1) for part in (inside, outside)]
    return means[0] / means[1]
