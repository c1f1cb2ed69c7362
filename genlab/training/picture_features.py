"""Features of pictures by a frozen network: computed once per weights, pictures and transform, kept on the disk, read memory-mapped.

Several processes may ask for the same at once: files are named after the pictures whose features they hold and appear whole, so that the
worst is that something is computed twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file, save
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from genlab.errors import UserError
from genlab.files import cache_folder, write_bytes
from genlab.store import FeatureStore, content_key

log = logging.getLogger(__name__)

VERSION = 1  # of what a row holds


def picture_features(
    trainer: Trainer,
    name: str,
    ids: Sequence[str],
    loader: Callable[[Sequence[int]], DataLoader[Any]],
    compute: Callable[[Any], Tensor],
    key: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """Features (N, D) float32 in the order of the ids, and which pictures could be read (N,).

    Args:
        trainer: Whose ranks share the work, and whose precision is used; stopped anywhere and called again, it goes on.
        name: Of the set, for the progress bar.
        ids: Names the pictures within what ``key`` describes.
        loader: Positions -> batches of these pictures in this order, with ``readable``.
        compute: Batch on the device -> (B, D).
        key: All that features depend on besides the ids.

    Raises:
        UserError: Ranks do not share the folder of the cache.
    """
    parts = {"version": VERSION, "precision": str(trainer.precision), **key}
    store = FeatureStore(cache_folder() / "features", content_key(parts))
    whole = store.folder / "whole" / f"{content_key(list(ids))}.safetensors"
    if not whole.is_file():
        _fill(trainer, store, name, ids, loader, compute)
        trainer.strategy.barrier(f"features of {name}")
        if absent := store.missing(ids):
            raise UserError(
                f"features: {len(absent)} of {len(ids)} are missing in {store.folder} although every rank has stored its share. Set "
                "GENLAB_CACHE to a folder that all machines share."
            )
        if trainer.is_global_zero:
            _write_whole(store, ids, whole)
        trainer.strategy.barrier(f"features of {name} in one file")
    found = load_file(whole)  # maps the file: pages are read when they are looked at, and shared by all processes
    log.info("features: %d of %s in %s", len(ids), name, whole)
    return found["feature"], found["readable"]


def _write_whole(store: FeatureStore, ids: Sequence[str], path: Path) -> None:
    arrays = store.load(ids)
    write_bytes(path, save({name: torch.from_numpy(arrays[name]) for name in ("feature", "readable")}))


def _fill(
    trainer: Trainer,
    store: FeatureStore,
    name: str,
    ids: Sequence[str],
    loader: Callable[[Sequence[int]], DataLoader[Any]],
    compute: Callable[[Any], Tensor],
) -> None:
    missing = set(store.missing(ids))
    position = {each: number for number, each in enumerate(ids)}
    todo = [each for each in position if each in missing][trainer.global_rank :: trainer.world_size]
    if not todo:
        return
    source = loader([position[each] for each in todo])
    batches = iter(source)
    with tqdm(desc=f"features of {name}", total=len(todo), unit="picture", disable=not trainer.is_global_zero) as bar:

        def rows(some: list[str]) -> dict[str, Any]:
            batch = trainer.strategy.batch_to_device(next(batches))
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                features = compute(batch).float()
            bar.update(len(some))
            readable = batch["readable"]
            return {"feature": (features * readable[:, None]).cpu().numpy(), "readable": readable.cpu().numpy()}

        store.fill(todo, rows, source.batch_size or 1)
