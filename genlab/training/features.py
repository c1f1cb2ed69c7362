"""Features of a frozen network: computed once before a fit, over all ranks, and read by the loaders in place of the data.

The method brings the network, the datamodule the samples, the store knows neither. A store is named after the content of the weights, of
the data and after everything that a sample is made by, so that it is found again by whoever asks for the same, and by nobody else.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from genlab.batches import VideoBatch
from genlab.errors import UserError
from genlab.files import cache_folder
from genlab.store import FeatureReader, FeatureStore, content_key

log = logging.getLogger(__name__)

VERSION = 1  # of what a row holds


@runtime_checkable
class FeatureSource(Protocol):
    """A datamodule whose clips can be replaced by features of them."""

    def feature_draws(self, split: str, views: int) -> Sequence[Any]:
        """What the coming fit reads of a split, each draw once, the same list on every rank; they name themselves by ``feature_id``."""

    def feature_id(self, split: str, draw: Any) -> str:
        """Names a draw within the store."""

    def feature_key(self, split: str) -> dict[str, Any]:
        """All that the pixels of a split's draws depend on."""

    def feature_loader(self, split: str, draws: Sequence[Any]) -> DataLoader[Any]:
        """Batches of these draws in this order."""

    def use_features(self, split: str, reader: FeatureReader, views: int) -> None:
        """From now on loaders of this split read features."""


Compute = Callable[[VideoBatch], dict[str, Tensor]]


def cache_features(
    trainer: Trainer, views: Mapping[str, int], compute: Compute, key: Mapping[str, Any], folder: Path | None = None
) -> None:
    """Makes the datamodule read features from now on; computes and stores what is missing of them first.

    Stopped anywhere and called again, it goes on. Every rank computes its share; all of them must see the folder.

    Args:
        trainer: Of the fit that is about to start.
        views: Splits, and into how many views of a sample their epochs are folded.
        compute: Batch on the device -> features by name, each (W, ...), a row per clip, kept in the type given.
        key: All that the features depend on besides the samples: weights, settings.
        folder: Of the stores; ``None`` is ``features`` in the cache.

    Raises:
        UserError: The datamodule has no such clips, the disk is too small, or ranks do not share the folder.
    """
    source = getattr(trainer, "datamodule", None)
    if not isinstance(source, FeatureSource):
        raise UserError("model.cached_views: this datamodule cannot read features in place of its clips; leave cached_views out.")
    for split, number in views.items():
        parts = {"version": VERSION, "precision": str(trainer.precision), **key, "samples": source.feature_key(split)}
        store = FeatureStore(cache_folder() / "features" if folder is None else folder, content_key(parts))
        draws = {source.feature_id(split, draw): draw for draw in source.feature_draws(split, number)}
        todo = store.missing(list(draws)[trainer.global_rank :: trainer.world_size])
        if todo:
            _fill(trainer, store, source.feature_loader(split, [draws[name] for name in todo]), todo, compute, split)
        trainer.strategy.barrier(f"features of {split}")
        if absent := store.missing(draws):
            raise UserError(
                f"model.cached_views: {len(absent)} of {len(draws)} features are missing in {store.folder} although every rank has stored "
                "its share. Set GENLAB_CACHE to a folder that all machines share."
            )
        log.info("features: %d %s samples, %d of them computed now by this rank, in %s", len(draws), split, len(todo), store.folder)
        source.use_features(split, store.reader(), number)


def _fill(trainer: Trainer, store: FeatureStore, loader: DataLoader[Any], todo: Sequence[str], compute: Compute, split: str) -> None:
    batches = iter(loader)
    room_checked = False
    with tqdm(desc=f"features of {split}", total=len(todo), unit="clip", disable=not trainer.is_global_zero) as bar:

        def rows(some: list[str]) -> dict[str, np.ndarray]:
            nonlocal room_checked
            batch = trainer.strategy.batch_to_device(next(batches))
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                found = compute(batch)
            arrays = _per_sample(batch, found)
            if not room_checked:  # after the first batch it is known how large a sample is
                room_checked = True
                _check_room(store.folder, sum(array.nbytes for array in arrays.values()) / len(some) * len(todo))
            bar.update(len(some))
            return arrays

        store.fill(todo, rows, loader.batch_size or 1)


def _per_sample(batch: VideoBatch, found: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Rows of a store: windows of a video side by side, (B, K, ...), and what else a sample holds besides its pixels."""
    windows = batch["windows"].tolist()
    most = max(windows)
    arrays: dict[str, np.ndarray] = {}
    for name, values in {**found, "num_frames": batch["num_frames"], "start": batch["start"]}.items():
        if name in found and not bool(values.isfinite().all()):
            raise UserError(f"model.cached_views: the backbone's {name} are not finite in {values.dtype}; leave it out.")
        padded = values.new_zeros(len(windows), most, *values.shape[1:])
        for row, part in zip(padded, values.split(windows)):
            row[: len(part)] = part
        arrays[name] = padded.cpu().numpy()
    for name in ("windows", "index", "readable", "substituted"):
        arrays[name] = batch[name].cpu().numpy()  # type: ignore[literal-required]
    return arrays


def _check_room(folder: Path, needed: float) -> None:
    at = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(at).free
    if needed > free:
        raise UserError(
            f"model.cached_views: the features need {needed / 1e9:.1f} GB, {at} has {free / 1e9:.1f} GB left. Set GENLAB_CACHE to a larger "
            "disk, or use fewer views."
        )


def weights_key(module: nn.Module) -> str:
    """Names the content of a network: its parameters and buffers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
