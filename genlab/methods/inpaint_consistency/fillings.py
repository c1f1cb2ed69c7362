"""What a step handles: a picture with its hole, a second filling that is still to be done, and first results kept on the disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.batches import InpaintingBatch
from genlab.files import write_bytes
from genlab.models.inpainters import Degraded, Inpainter, fill_in_batches
from genlab.store import content_key


@dataclass(frozen=True)
class Picture:
    """A picture with its hole."""

    image: Tensor
    hole: Tensor
    """(1, H, W) bool."""
    prompt: str
    group: str
    id: str
    index: int
    key: str

    @classmethod
    def of(cls, batch: InpaintingBatch, i: int, base_seed: int) -> Picture:
        image, hole, index = batch["image"][i], batch["hole"][i], int(batch["index"][i])
        key = content_key(digest(image), hole.cpu().numpy().tobytes(), list(image.shape), index, base_seed)
        return cls(image, hole, batch["prompt"][i], batch["group"][i], batch["id"][i], index, key)

    @property
    def share(self) -> float:
        return float(self.hole.float().mean())

    @property
    def facts(self) -> dict[str, Any]:
        return {"id": self.id, "index": self.index, "group": self.group, "hole1": self.share, "picture": self.key}


@dataclass(frozen=True)
class Pair:
    """A second filling that is still to be done."""

    picture: int
    k: int
    key: str
    hole: Tensor
    draw: int


@dataclass(frozen=True)
class Batched:
    """Fills in batches of the inpainter's own size."""

    inpainter: Inpainter

    def fill(
        self, images: Tensor, holes: Tensor, *, seeds: list[int], prompts: list[str] | None = None, ids: list[str] | None = None
    ) -> Tensor:
        return fill_in_batches(self.inpainter, images, holes, seeds=seeds, prompts=prompts, ids=ids)


@dataclass(frozen=True)
class Spoiler:
    """Spoils results that are there already, instead of having them made again."""

    degraded: Degraded
    finished: Tensor

    def fill(
        self, images: Tensor, holes: Tensor, *, seeds: list[int], prompts: list[str] | None = None, ids: list[str] | None = None
    ) -> Tensor:
        return self.degraded.spoil(self.finished, holes, seeds)


class FirstStore:
    """First results on the disk, in full precision: another F2 or distance, and a run that goes on, find them.

    Args:
        folder: Of one inpainter.
        composite: Known pixels are the picture's own, so that those of the hole are enough.
    """

    def __init__(self, folder: Path, composite: bool) -> None:
        self.folder, self.composite = folder, composite

    def put(self, key: str, image: Tensor, hole: Tensor, facts: dict[str, float]) -> None:
        from safetensors.torch import save

        values = image[:, hole[0]] if self.composite else image
        content = save({"values": values.float().cpu().contiguous(), "facts": torch.tensor(list(facts.values()), dtype=torch.float64)})
        write_bytes(self.folder / f"{key}.safetensors", content, sync=False)

    def get(self, key: str, original: Tensor, hole: Tensor) -> tuple[Tensor, dict[str, float]] | None:
        from safetensors.torch import load_file

        path = self.folder / f"{key}.safetensors"
        if not path.is_file():
            return None
        held = load_file(path)
        image = original.clone() if self.composite else held["values"].to(original)
        if self.composite:
            image[:, hole[0]] = held["values"].to(original)
        leak, seconds = held["facts"].tolist()
        return image, {"leak": leak, "seconds": seconds}


def digest(image: Tensor) -> str:
    return content_key(image.float().cpu().contiguous().numpy().tobytes())


def file_name(name: str) -> str:
    """A name as a harmless file name; different ones stay different."""
    plain = re.sub(r"[^\w.+-]+", "_", name)[:60]
    return plain if plain == name else f"{plain}-{content_key(name)[:8]}"
