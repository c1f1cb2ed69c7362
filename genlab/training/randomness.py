"""Random numbers that depend on what they are for, never on who draws them.

A sample's augmentation is drawn from ``keyed_rng(seed, "augment", epoch, sample_id, occurrence)``; a method's noise from
``keyed_torch_generator(seed, "noise", step, sample_id, occurrence)``. Any number of workers, ranks or restarts gives the same
draws, and a sample that is repeated within an epoch (its ``occurrence`` counts up) differs from itself.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Key = int | str


def fold_key(*keys: Key) -> int:
    """128-bit integer that names the key; stable over machines and Python versions, ``1`` and ``"1"`` differ."""
    digest = hashlib.blake2b(digest_size=16)
    for key in keys:
        text = f"{type(key).__name__}:{key}".encode()
        digest.update(len(text).to_bytes(4, "big") + text)
    return int.from_bytes(digest.digest(), "big")


def keyed_rng(*keys: Key) -> np.random.Generator:
    """NumPy generator for one purpose; the same keys give the same stream everywhere."""
    return np.random.Generator(np.random.Philox(key=fold_key(*keys)))


def keyed_torch_generator(*keys: Key, device: str = "cpu") -> torch.Generator:
    """torch generator for one purpose; the same keys and device type give the same stream."""
    import torch

    return torch.Generator(device=device).manual_seed(fold_key(*keys) % 2**63)
