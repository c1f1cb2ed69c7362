"""Pictures that a plain model makes before it is tuned, in a folder: as many as are missing, shared out over processes, and kept."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from genlab.files import write_bytes


def picture_name(number: int) -> str:
    """Of the file of a picture."""
    return f"{number:05d}.png"


def missing_pictures(folder: Path, count: int) -> list[int]:
    """Numbers below ``count`` whose picture is not there."""
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
    return [number for number in range(count) if picture_name(number) not in there]


def read_pictures(folder: Path, count: int) -> Tensor:
    """The first ``count`` of them, (count, 3, H, W) in [0, 1].

    Raises:
        OSError: One is not there.
    """
    found = []
    for number in range(count):
        with Image.open(folder / picture_name(number)) as picture:
            found.append(torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255)
    return torch.stack(found)


def fill_folder(
    folder: Path, count: int, draw: Callable[[Sequence[int]], Tensor], batch_size: int, rank: int = 0, world_size: int = 1
) -> int:
    """Makes the pictures 0 to ``count`` - 1 that are missing; each file is written whole or not at all, so a stopped call goes on.

    Args:
        folder: Named after all that the pictures depend on.
        draw: Numbers -> pictures (B, 3, H, W) in [0, 1]; the same number gives the same picture.
        batch_size: Pictures a call. A call is always for the same numbers, since in other company the last bits of a picture differ.
        rank: This process takes every ``world_size``-th call.
        world_size: Processes.

    Returns:
        How many were made here.
    """
    missing = set(missing_pictures(folder, count))
    calls = [list(range(first, first + batch_size)) for first in range(0, count, batch_size)]
    mine = [numbers for place, numbers in enumerate(calls) if place % world_size == rank and missing.intersection(numbers)]
    made = 0
    with tqdm(desc=f"drawing {folder.name}", total=sum(map(len, mine)), unit="picture", disable=not mine or rank > 0) as bar:
        for numbers in mine:
            pixels = (draw(numbers).permute(0, 2, 3, 1).float().cpu().numpy() * 255 + 0.5).astype(np.uint8)
            for number, picture in zip(numbers, pixels):
                path = folder / picture_name(number)
                if number >= count or path.exists():  # another run may have been faster, and be reading it
                    continue
                buffer = io.BytesIO()
                Image.fromarray(picture).save(buffer, "PNG")
                write_bytes(path, buffer.getvalue(), sync=False)
                made += 1
            bar.update(len(numbers))
    return made
