"""Inpainters: what fills the hole of a picture. The interface, classical ones, and lower bounds to compare with.

An inpainter is named in the YAML by its class path; your own is a class with :class:`Inpainter`'s methods, nothing to register. Every item
of a batch comes with a seed of its own, so that what is drawn for it does not depend on the batch, the process or the restart it is in.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.errors import UserError

UNKNOWN = 0.5  # filled in where no pixel of a picture is known


class Inpainter:
    """Fills holes.

    Attributes:
        name: In tables and of files; two of one run need different ones.
        batch_size: Pictures per call, at the most.
        finds: Looks pictures up by their id, and so can only be judged, not judge.
        same_anywhere: Settings that do not change a result, such as the number of threads.
    """

    name: str
    batch_size: int
    finds: ClassVar[bool] = False
    same_anywhere: ClassVar[tuple[str, ...]] = ("name", "batch_size")

    def load(self, device: torch.device) -> None:
        """Makes everything ready that takes long, once, before the first call; raises ``UserError`` where something is missing."""

    def check(self, ids: list[str]) -> None:
        """Raises ``UserError`` where it will not be able to fill one of these pictures."""

    def fill(
        self, images: Tensor, holes: Tensor, *, seeds: list[int], prompts: list[str] | None = None, ids: list[str] | None = None
    ) -> Tensor:
        """Fills a batch.

        Args:
            images: (B, 3, H, W) in [0, 1], 0 in the holes.
            holes: (B, 1, H, W), 1 = hole.
            seeds: B numbers in [0, 2^63): what an item's random draws are keyed by.
            prompts: B texts for those that listen to them; empty ones where nothing is known.
            ids: B names of the pictures.

        Returns:
            (B, 3, H, W) in [0, 1]; only the pixels of the holes count, unless known ones are to be judged too.
        """
        raise NotImplementedError(f"{type(self).__name__} must define fill.")

    def key(self) -> dict[str, Any]:
        """All that a result depends on besides picture, hole, seed and prompt, as JSON values: what stored results are found by."""
        settings = {name: value for name, value in self._settings().items() if name not in self.same_anywhere}
        return {"class": f"{type(self).__module__}.{type(self).__qualname__}"} | settings

    def _settings(self) -> dict[str, Any]:
        if not dataclasses.is_dataclass(self):
            return {name: value for name, value in vars(self).items() if isinstance(value, str | int | float | bool | None)}
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.init}


def generators(seeds: list[int]) -> list[torch.Generator]:
    """A generator on the CPU for each seed: their draws are the same on every device."""
    return [torch.Generator().manual_seed(seed % 2**63) for seed in seeds]


def known_mean(images: Tensor, holes: Tensor) -> Tensor:
    """Mean of the known pixels of each picture and channel, (B, 3, 1, 1); ``UNKNOWN`` where there are none."""
    known = 1 - holes
    count = known.sum((2, 3), keepdim=True)
    return torch.where(count > 0, (images * known).sum((2, 3), keepdim=True) / count.clamp(min=1), UNKNOWN)


@dataclass(eq=False)
class Constant(Inpainter):
    """One grey for all holes. A lower bound.

    Args:
        value: The grey, in [0, 1].
        name: In tables.
        batch_size: Pictures per call.
    """

    value: float = 0.5
    name: str = "constant"
    batch_size: int = 32

    def fill(
        self, images: Tensor, holes: Tensor, *, seeds: list[int], prompts: list[str] | None = None, ids: list[str] | None = None
    ) -> Tensor:
        return images * (1 - holes) + self.value * holes


@dataclass(eq=False)
class Mean(Inpainter):
    """The mean colour of the known pixels. A lower bound, and easily foretold: see docs/inpaint_consistency.md on degenerate winners.

    Args:
        name: In tables.
        batch_size: Pictures per call.
    """

    name: str = "mean"
    batch_size: int = 32

    def fill(
        self, images: Tensor, holes: Tensor, *, seeds: list[int], prompts: list[str] | None = None, ids: list[str] | None = None
    ) -> Tensor:
        return images * (1 - holes) + known_mean(images, holes) * holes


@dataclass(eq=False)
class Noise(Inpainter):
    """Uniform noise, other in every pixel and channel. The lowest bound.

    Args:
        name: In tables.
        batch_size: Pictures per call.
    """

    name: str = "noise"
    batch_size: int = 32

    def fill(
        self, images: Tensor, holes: Tensor, *, seeds: list[int], prompts: list[str] | None = None, ids: list[str] | None = None
    ) -> Tensor:
        noise = torch.stack([torch.rand(images.shape[1:], generator=generator) for generator in generators(seeds)])
        return images * (1 - holes) + noise.to(images) * holes


@dataclass(eq=False)
class Harmonic(Inpainter):
    """Laplace's equation by Jacobi sweeps from the mean colour on: hole pixels become the average of their four neighbours.

    Args:
        iterations: Sweeps. Few leave the middle of a hole at the mean colour.
        name: In tables; left out, ``harmonic<iterations>``.
        batch_size: Pictures per call.
    """

    iterations: int = 200
    name: str = ""
    batch_size: int = 16

    def __post_init__(self) -> None:
        self.name = self.name or f"harmonic{self.iterations}"

    def fill(
        self, images: Tensor, holes: Tensor, *, seeds: list[int], prompts: list[str] | None = None, ids: list[str] | None = None
    ) -> Tensor:
        filled = images * (1 - holes) + known_mean(images, holes) * holes
        hidden = holes > 0.5
        for _ in range(self.iterations):
            around = F.pad(filled, (1, 1, 1, 1), mode="replicate")
            average = (around[..., :-2, 1:-1] + around[..., 2:, 1:-1] + around[..., 1:-1, :-2] + around[..., 1:-1, 2:]) / 4
            filled = torch.where(hidden, average, filled)
        return filled


@dataclass(eq=False)
class OpenCV(Inpainter):
    """Fills from the border inwards with OpenCV, in 8 bits a channel; no weights, no GPU.

    Args:
        method: ``telea`` (Telea 2004) or ``ns`` (Navier-Stokes, Bertalmio et al. 2001).
        radius: Of the neighbourhood that a pixel is made from, in pixels.
        threads: Pictures filled at the same time.
        name: In tables; left out, the method's.
        batch_size: Pictures per call.
    """

    method: Literal["telea", "ns"] = "telea"
    radius: float = 3.0
    threads: int = 2
    name: str = ""
    batch_size: int = 32
    same_anywhere: ClassVar[tuple[str, ...]] = (*Inpainter.same_anywhere, "threads")

    def __post_init__(self) -> None:
        self.name = self.name or self.method
        if self.method not in ("telea", "ns") or self.threads < 1 or self.radius <= 0:
            raise UserError(f"OpenCV: {self.method=} {self.radius=} {self.threads=}; the methods are telea and ns, the others positive.")

    def fill(
        self, images: Tensor, holes: Tensor, *, seeds: list[int], prompts: list[str] | None = None, ids: list[str] | None = None
    ) -> Tensor:
        import cv2  # half a second to import

        flag = cv2.INPAINT_TELEA if self.method == "telea" else cv2.INPAINT_NS
        pixels = to_uint8(images)
        masks = (holes[:, 0] > 0.5).to(torch.uint8).cpu().numpy()

        def fill_one(number: int) -> np.ndarray:
            if not masks[number].any():
                return pixels[number]
            if masks[number].all():
                return np.full_like(pixels[number], round(UNKNOWN * 255))
            return cv2.inpaint(pixels[number], masks[number], self.radius, flag)  # other threads run meanwhile

        with ThreadPoolExecutor(self.threads) as pool:
            filled = list(pool.map(fill_one, range(len(pixels))))
        return from_uint8(np.stack(filled)).to(images)


@dataclass(eq=False)
class Degraded(Inpainter):
    """Another inpainter's result, spoiled inside the hole: what a score should notice (the sanity study).

    Args:
        inner: The inpainter.
        how: ``noise`` of standard deviation ``amount``; ``blur`` with a Gaussian of ``amount`` pixels; ``blend`` of share ``amount`` with
            the mean colour of the known pixels; ``shuffle`` of patches of ``amount`` pixels inside the hole.
        amount: How much.
        name: In tables; left out, ``<inner>+<how><amount>``.
        batch_size: Pictures per call.
    """

    inner: Inpainter
    how: Literal["noise", "blur", "blend", "shuffle"] = "noise"
    amount: float = 0.1
    name: str = ""
    batch_size: int = 32

    def __post_init__(self) -> None:
        self.name = self.name or f"{self.inner.name}+{self.how}{self.amount:g}"

    def load(self, device: torch.device) -> None:
        self.inner.load(device)

    def check(self, ids: list[str]) -> None:
        self.inner.check(ids)

    def key(self) -> dict[str, Any]:
        return super().key() | {"inner": self.inner.key()}

    def fill(
        self, images: Tensor, holes: Tensor, *, seeds: list[int], prompts: list[str] | None = None, ids: list[str] | None = None
    ) -> Tensor:
        return self.spoil(self.inner.fill(images, holes, seeds=seeds, prompts=prompts, ids=ids), holes, seeds)

    def spoil(self, filled: Tensor, holes: Tensor, seeds: list[int]) -> Tensor:
        """Spoils finished pictures (B, 3, H, W) inside their holes."""
        if self.how == "noise":
            draws = [torch.randn(filled.shape[1:], generator=generator) for generator in generators(seeds)]
            other = (filled + self.amount * torch.stack(draws).to(filled)).clamp(0, 1)
        elif self.how == "blur":
            other = _blurred(filled, self.amount)
        elif self.how == "blend":
            other = (1 - self.amount) * filled + self.amount * known_mean(filled, holes)
        else:
            other = torch.stack([_shuffled(*each, int(self.amount)) for each in zip(filled, holes, generators(seeds))])
        return torch.where(holes > 0.5, other, filled)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    reach = max(round(3 * sigma), 1)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device) / sigma) ** 2)
    weights = (weights / weights.sum()).expand(3, 1, 1, -1)
    rows = F.conv2d(F.pad(images, (reach, reach, 0, 0), mode="replicate"), weights, groups=3)
    return F.conv2d(F.pad(rows, (0, 0, reach, reach), mode="replicate"), weights.transpose(2, 3), groups=3)


def _shuffled(image: Tensor, hole: Tensor, generator: torch.Generator, patch: int) -> Tensor:
    """The whole patches that lie in the hole change places; nothing happens where there are fewer than two."""
    height, width = (side // patch * patch for side in hole.shape[1:])
    blocks = (
        image[:, :height, :width].unflatten(1, (-1, patch)).unflatten(3, (-1, patch)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    )  # (N, 3, p, p)
    inside = (hole[0, :height, :width] > 0.5).unflatten(0, (-1, patch)).unflatten(2, (-1, patch)).all(3).all(1).flatten()
    places = inside.nonzero().flatten()
    blocks = blocks.clone()
    blocks[places] = blocks[places[torch.randperm(len(places), generator=generator).to(places.device)]]
    mixed = blocks.unflatten(0, (height // patch, -1)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    found = image.clone()
    found[:, :height, :width] = mixed
    return found


SANITY: tuple[tuple[Literal["noise", "blur", "blend", "shuffle"], float], ...] = (
    ("noise", 0.05),
    ("noise", 0.1),
    ("noise", 0.2),
    ("blur", 2.0),
    ("blend", 0.25),
    ("blend", 0.5),
    ("shuffle", 8.0),
)
"""What the sanity study spoils a result with."""


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [0, 1] -> (B, H, W, 3) uint8."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def from_uint8(pixels: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float() / 255


def fill_in_batches(
    inpainter: Inpainter,
    images: Tensor,
    holes: Tensor,
    *,
    seeds: list[int],
    prompts: list[str] | None = None,
    ids: list[str] | None = None,
) -> Tensor:
    """``inpainter.fill`` in batches of its own size; where the GPU's memory runs out, half of that from then on."""
    found: list[Tensor] = []
    start = 0
    while start < len(images):
        part = slice(start, start + inpainter.batch_size)
        try:
            found.append(
                inpainter.fill(images[part], holes[part], seeds=seeds[part], prompts=prompts and prompts[part], ids=ids and ids[part])
            )
        except torch.OutOfMemoryError:
            if inpainter.batch_size == 1:
                raise
            torch.cuda.empty_cache()
            inpainter.batch_size //= 2
            continue
        start += len(found[-1])
    return torch.cat(found)
