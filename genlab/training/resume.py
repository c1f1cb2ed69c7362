"""A resumed run is the run that was never stopped: random states, and settings that were changed on purpose."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from genlab.errors import UserError
from genlab.training.base import to_plain

log = logging.getLogger(__name__)

TUNABLE = ("lr", "weight_decay", "betas", "momentum", "eps")  # what an optimizer's state would otherwise bring back


class ExactResume(Callback):
    """Saves and restores the global random states of every rank, and lets explicit settings win over the checkpoint's.

    The states come back at the first training batch: until then loaders and sanity checks may still draw. A learning rate (weight
    decay, ...) that differs from the one the checkpoint was started with is scaled into the restored schedule. Every difference in
    settings is said once.
    """

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] | None = None
        self._fresh: list[list[dict[str, Any]]] = []
        self._started_with: list[list[dict[str, Any]]] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The optimizers are new here; the checkpoint's state is restored after this hook."""
        self._fresh = [[_tunable(group) for group in optimizer.param_groups] for optimizer in trainer.optimizers]

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": self._fresh}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._started_with = state_dict["optimizers"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        mine = _random_states()
        states: list[dict[str, Any] | None] = [None] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, mine)
        else:
            states = [mine]
        checkpoint["random_states"] = states

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._states = checkpoint.get("random_states")
        for name, holder, key in (
            ("model", pl_module, "hyper_parameters"),
            ("data", getattr(trainer, "datamodule", None), "datamodule_hyper_parameters"),
        ):
            for line in differences(checkpoint.get(key, {}), getattr(holder, "hparams", {})):
                log.warning("resumed with another setting: %s.%s", name, line)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A method that asks for the number of steps of so many epochs makes Lightning build the loaders before it reads where they were,
        # and then it never tells them: the epoch would begin anew. Does nothing where they know already.
        trainer.fit_loop._load_combined_loader_states()
        self._begin_a_whole_epoch(trainer)
        if self._started_with is None:
            return
        if [len(groups) for groups in self._started_with] != [len(groups) for groups in self._fresh]:
            raise UserError(
                "ckpt_path: the checkpoint's optimizer has other parameter groups than this config's; use the config it was made with."
            )
        for number, (optimizer, old_groups, new_groups) in enumerate(zip(trainer.optimizers, self._started_with, self._fresh)):
            for i, (group, old, new) in enumerate(zip(optimizer.param_groups, old_groups, new_groups)):
                for key in old.keys() & new.keys():
                    if _same(old[key], new[key]):
                        continue
                    where = f"optimizer {number}, group {group.get('name', i)}: {key}"
                    log.warning("resumed with another setting: %s was %s, is %s", where, old[key], new[key])
                    if key == "lr":
                        self._rescale(trainer, optimizer, i, old["lr"], new["lr"])
                    else:
                        group[key] = new[key]
        self._started_with = None

    def _begin_a_whole_epoch(self, trainer: Trainer) -> None:
        """Where ``max_steps`` ended a run at an epoch's end, Lightning would count the batches of that epoch into the next one and cut it
        short. Does nothing within an epoch."""
        epoch, loop = trainer.fit_loop.epoch_progress.current, trainer.fit_loop.epoch_loop
        whole = loop.batch_progress.current.completed >= trainer.num_training_batches
        if trainer.max_steps != -1 and self._states is not None and whole and epoch.ready == epoch.completed:
            loop.batch_progress.reset_on_run()
            loop.scheduler_progress.reset_on_run()
            loop.automatic_optimization.optim_progress.reset_on_run()

    @staticmethod
    def _rescale(trainer: Trainer, optimizer: torch.optim.Optimizer, i: int, old: float, new: float) -> None:
        group = optimizer.param_groups[i]
        factor = new / old if old else None
        group["lr"] = group["lr"] * factor if factor is not None else new
        group["initial_lr"] = new
        for config in trainer.lr_scheduler_configs:
            if config.scheduler.optimizer is optimizer and hasattr(config.scheduler, "base_lrs"):
                config.scheduler.base_lrs[i] = new
                config.scheduler._last_lr = [g["lr"] for g in optimizer.param_groups]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._states is None:
            return
        if len(self._states) != trainer.world_size:
            log.warning("resumed on %d processes, saved on %d: random states start afresh", trainer.world_size, len(self._states))
        else:
            _restore(self._states[trainer.global_rank])
        self._states = None


def _tunable(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(group[key]) if isinstance(group[key], tuple) else group[key] for key in TUNABLE if key in group}


def _same(a: Any, b: Any) -> bool:
    return list(a) == list(b) if isinstance(a, list | tuple) else a == b


def _random_states() -> dict[str, Any]:
    version, python, gauss = random.getstate()
    kind, numpy, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - the global state is what is to be saved
    return {
        "python": [version, list(python), gauss],
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(numpy).astype(np.int64)),
            *[float(r) if isinstance(r, float) else int(r) for r in rest],
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore(states: Mapping[str, Any]) -> None:
    version, python, gauss = states["python"]
    random.setstate((version, tuple(python), gauss))
    kind, numpy, *rest = states["numpy"]
    np.random.set_state((kind, numpy.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``key was a, is b`` for every setting that both know and that differs."""
    before, after = dict(_flatten(to_plain(dict(saved)))), dict(_flatten(to_plain(dict(now))))
    keys = sorted(key for key in before.keys() | after.keys() if not key.startswith("_"))
    absent = "not set"
    return [
        f"{k} was {before.get(k, absent)!r}, is {after.get(k, absent)!r}" for k in keys if before.get(k, absent) != after.get(k, absent)
    ]


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
