"""What a method cannot do under a distributed strategy, said before anything starts; read from source, without importing torch."""

from __future__ import annotations

import ast
import importlib.util
from typing import Any

from genlab.config.composing import Composed
from genlab.config.interpolation import interpolate
from genlab.errors import UserError
from genlab.signatures import constructible, derives_from, mro
from genlab.source import Definition

STRATEGIES = "lightning.pytorch.strategies"
DEEPSPEED, FSDP = f"{STRATEGIES}.DeepSpeedStrategy", f"{STRATEGIES}.FSDPStrategy"
FOR_GPUS = (DEEPSPEED, FSDP, "genlab.training.sharding.DeepSpeed")
NAMES = {
    "fsdp": "FSDP", "fsdp_cpu_offload": "FSDP", "deepspeed": "ZeRO-2", "deepspeed_stage_1": "ZeRO-1", "deepspeed_stage_2": "ZeRO-2",
    "deepspeed_stage_3": "ZeRO-3", "deepspeed_stage_1_offload": "ZeRO-1", "deepspeed_stage_2_offload": "ZeRO-2",
    "deepspeed_stage_3_offload": "ZeRO-3", "deepspeed_stage_3_offload_nvme": "ZeRO-3",
}  # fmt: skip
EXCLUDES = "cannot_run_under"
"""Class attribute of a method: a literal dict, from ``FSDP``, ``ZeRO-1``, ``ZeRO-2``, ``ZeRO-3`` or ``DDP`` to the reason."""


def sharding(composed: Composed) -> str:
    """What the configuration's strategy is: ``DDP``, ``FSDP``, ``ZeRO-1`` ... or ``""`` for one process, or a class of one's own."""
    written = composed.get("trainer.strategy")
    if isinstance(written, dict):
        definition = _class(str(written.get("class_path")))
        if definition is None:
            return ""
        if derives_from(definition, constructible(FSDP)):
            return "FSDP"
        if derives_from(definition, constructible(DEEPSPEED)):
            return f"ZeRO-{(written.get('init_args') or {}).get('stage', 2)}"
        return "DDP" if derives_from(definition, constructible(f"{STRATEGIES}.DDPStrategy")) else ""
    name = str(written or "auto")
    return NAMES.get(name, "DDP" if name.startswith("ddp") or (name == "auto" and _processes(composed)) else "")


def refusal(composed: Composed) -> str | None:
    """Why this configuration cannot run under its strategy, and what to do; ``None`` where it can."""
    kind, model = sharding(composed), composed.get("model")
    path = model.get("class_path") if isinstance(model, dict) else model
    excluded = _excluded(str(path)) if path else {}
    if kind in excluded:
        instead = next(name for name in ("DDP", "ZeRO-2", "ZeRO-1", "one process") if name not in excluded)
        return f"trainer.strategy: {str(path).rsplit('.', 1)[-1]} cannot run under {kind}: {excluded[kind]} Use {instead}."
    if kind.startswith("ZeRO") and importlib.util.find_spec("deepspeed") is None:
        return f"trainer.strategy: {kind} needs DeepSpeed, which is not installed: pip install -e '.[deepspeed]'."
    own_class = isinstance(written := composed.get("trainer.strategy"), dict) and written.get("class_path") not in FOR_GPUS
    accelerator = interpolate(composed.get("trainer.accelerator"), composed)
    if (kind == "FSDP" or kind.startswith("ZeRO")) and accelerator == "cpu" and not own_class:
        return f"trainer.strategy: {kind} needs GPUs, and trainer.accelerator is cpu. Use ddp, or leave the strategy out for one process."
    return None


def _processes(composed: Composed) -> bool:
    """Whether more than one is asked for in so many words."""
    values = [interpolate(composed.get(f"trainer.{key}"), composed) for key in ("devices", "num_nodes")]
    return any(isinstance(value, int) and value > 1 for value in values)


def _class(path: str) -> Definition | None:
    try:
        return constructible(path)
    except UserError:  # the check of the configuration names it
        return None


def _excluded(path: str) -> dict[str, str]:
    """The method's ``cannot_run_under``, its parents' included."""
    definition, found = _class(path), dict[str, str]()
    if definition is None or not isinstance(definition.node, ast.ClassDef):
        return found
    for parent in reversed(mro(definition)):
        if parent is not None and isinstance(parent.node, ast.ClassDef):
            for statement in parent.node.body:
                targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
                if any(isinstance(target, ast.Name) and target.id == EXCLUDES for target in targets):
                    value: Any = getattr(statement, "value", None)
                    found |= ast.literal_eval(value) if value is not None else {}
    return found
