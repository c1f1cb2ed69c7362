"""The small base of all methods: frozen parts, lean checkpoints that say whose they are, and the loss terms in the log.

It owns no loop. A method overrides Lightning's own hooks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import lightning as L
from torch import Tensor, nn

from genlab.batches import Shown
from genlab.errors import UserError
from genlab.training.sharding import refuse_statistics_of_their_own, writes_shards_of_all


class Method(L.LightningModule):
    """A LightningModule whose checkpoints hold what was trained, and nothing that can be had elsewhere.

    Evaluation and prediction steps return a :class:`genlab.batches.Evaluated` dict, which callbacks write down and draw.
    """

    strict_loading = False  # frozen weights are not in the file; ``on_load_checkpoint`` proves that nothing else is missing
    needs_checkpoint = True
    """Whether evaluating without a checkpoint would be evaluating random weights. Zero-shot methods say ``False``."""
    cannot_run_under: ClassVar[dict[str, str]] = {}
    """Strategies (``FSDP``, ``ZeRO-3`` ..., see :mod:`genlab.strategies`) under which the method gives wrong results or none, with the
    reason as a sentence. A literal: it is read from the source and refused before the job."""

    shown: ClassVar[Shown] = Shown()
    """The two classes in plots of the scores."""

    resumable_evaluation = False
    """Whether all that an evaluation gathers is in torchmetrics objects of this module and in the rows that steps return; then a killed
    one goes on where it was."""

    failed_check = ""
    """Set by a run that checks a limit and finds it exceeded: what is said at its end, with exit code 1."""

    def __init__(self) -> None:
        super().__init__()
        self._frozen: list[str] = []

    @property
    def hparams(self) -> Any:
        """The constructor's arguments by name (Lightning types this as a plain mapping)."""
        return super().hparams

    def freeze_part(self, name: str) -> None:
        """Makes the submodule ``name`` a constant: no gradients, always in eval mode, never in a checkpoint."""
        self.get_submodule(name).requires_grad_(False).eval()
        self._frozen.append(name)

    def train(self, mode: bool = True) -> Method:
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self

    def on_fit_start(self) -> None:
        """``from_pretrained`` hands out networks in eval mode, and Lightning would leave them so."""
        self.train()
        refuse_statistics_of_their_own(self)

    def log_losses(self, losses: Mapping[str, Tensor], batch_size: int) -> Tensor:
        """Logs ``train/loss`` and, for every other name, ``train/loss_<term>``; returns ``losses["loss"]``."""
        names = {name: "train/loss" if name == "loss" else f"train/loss_{name}" for name in losses}
        self.log_dict({names[name]: value for name, value in losses.items()}, batch_size=batch_size, prog_bar=True)
        return losses["loss"]

    def is_frozen(self, key: str) -> bool:
        """Whether a key of the state dict belongs to a frozen submodule."""
        return any(key.startswith(f"{name}.") for name in self._frozen)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves frozen weights out, and makes the hyperparameters plain, so that ``torch.load(weights_only=True)`` reads them."""
        if not (self._trainer is not None and writes_shards_of_all(self.trainer)):
            checkpoint["state_dict"] = {key: value for key, value in checkpoint["state_dict"].items() if not self.is_frozen(key)}
        checkpoint["method"] = class_path(type(self))
        if "hyper_parameters" in checkpoint:
            plain = {key: to_plain(value) for key, value in checkpoint["hyper_parameters"].items()}
            checkpoint["hyper_parameters"] = plain | {"_instantiator": "lightning.pytorch.cli.instantiate_module"}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses the checkpoint of another method or of another configuration.

        Raises:
            UserError: With the names of what differs.
        """
        mine, found = class_path(type(self)), checkpoint.get("method")
        if found is not None and found != mine:
            raise UserError(
                f"ckpt_path: the checkpoint was trained by {found}, the config asks for {mine}. Use the config it was trained with."
            )
        if "state_dict" not in checkpoint:  # DeepSpeed keeps the weights beside it, and compares them itself
            return
        own = {key: value.shape for key, value in self.state_dict().items() if not self.is_frozen(key)}
        given = {key: value.shape for key, value in checkpoint["state_dict"].items() if not self.is_frozen(key)}
        missing, extra = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
        other = sorted(key for key in own.keys() & given.keys() if own[key] != given[key])
        if not missing and not extra and not other:
            return
        parts = [f"{len(missing)} parameters are missing ({', '.join(missing[:3])})"] if missing else []
        parts += [f"{len(extra)} are unknown ({', '.join(extra[:3])})"] if extra else []
        parts += [f"{key} is {tuple(given[key])}, the config makes it {tuple(own[key])}" for key in other[:3]]
        saved = {key: to_plain(value) for key, value in checkpoint.get("hyper_parameters", {}).items()}
        now = {key: to_plain(value) for key, value in self.hparams.items()}
        differing = [
            f"model.{key} was {saved[key]!r}, is {now[key]!r}" for key in sorted(saved.keys() & now.keys()) if saved[key] != now[key]
        ]
        hint = f" What differs: {'; '.join(differing)}." if differing else ""
        raise UserError(f"ckpt_path: the checkpoint does not fit this model: {'; '.join(parts)}.{hint} Use the config it was trained with.")


def class_path(of: type) -> str:
    """``package.module.Class``."""
    return f"{of.__module__}.{of.__qualname__}"


def to_plain(value: Any) -> Any:
    """Settings objects (frozen dataclasses) as ``class_path``/``init_args``, containers likewise; other values unchanged."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        init_args = {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class_path": class_path(type(value)), "init_args": init_args}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def trainable_parameters(module: nn.Module) -> int:
    """Number of scalars that training may change."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
