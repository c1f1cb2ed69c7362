"""What a run will take, before it begins: one pass of the network is measured, and multiplied."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class StageCost:
    """A part of a run, in pictures that go through the UNet.

    Args:
        name: Of the part.
        steps: How many.
        trained: A step's with gradients; all are held until the backward pass.
        plain: A step's without.
    """

    name: str
    steps: int
    trained: float
    plain: float


class Pass(NamedTuple):
    """One picture through the UNet: seconds without gradients and with (forward and backward), and bytes held in between."""

    plain: float
    trained: float
    held: int | None
    """``None`` where gradient checkpointing leaves nothing to count: that is done on CUDA alone."""


def measure_pass(unet: nn.Module, latents: Tensor, states: Tensor, trained: Sequence[Tensor]) -> Pass:
    """Runs it, leaving no gradients behind.

    Args:
        latents: (1, C, h, w).
        states: (1, L, D), with gradients where the text is trained.
        trained: Parameters to train.
    """
    network, cuda = cast(Any, unet), latents.device.type == "cuda"
    at = torch.full((1,), 500, device=latents.device)
    seconds = []
    with torch.no_grad():
        for _ in range(2):  # the first one warms up
            seconds.append(_clock(latents.device))
            network(latents, at, states)
    seconds.append(_clock(latents.device))
    storages: dict[int, int] = {}
    known = {parameter.data_ptr() for parameter in unet.parameters()}

    def seen(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return value

    if cuda:
        torch.cuda.reset_peak_memory_stats(latents.device)
    before = torch.cuda.memory_allocated(latents.device) if cuda else 0
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(seen, lambda value: value):
        output = network(latents, at, states).sample
    torch.autograd.grad(output.square().mean(), list(trained), allow_unused=True)
    end = _clock(latents.device)
    checkpointing = bool(getattr(network, "is_gradient_checkpointing", False))
    held = torch.cuda.max_memory_allocated(latents.device) - before if cuda else None if checkpointing else sum(storages.values())
    return Pass(seconds[2] - seconds[1], end - seconds[2], held)


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def estimate_table(one: Pass, module: nn.Module, stages: Sequence[StageCost], state_bytes: int) -> str:
    """Lines of memory and time.

    Args:
        one: Measured; of larger batches a picture takes less on a GPU, so that times are upper bounds there.
        module: All networks.
        stages: Of the run.
        state_bytes: Of the optimizer, for each trained parameter.
    """
    parameters = list(module.parameters())
    count = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    most = max((stage.trained for stage in stages), default=0.0)
    sizes = {
        "weights": sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        f"gradients and AdamW of {count:,} trained": count * (4 + state_bytes),
    }
    activations = None if one.held is None else int(most * one.held)
    lines = [f"  {name:<42}{_size(value):>10}" for name, value in sizes.items()]
    lines.append(f"  {'activations':<42}{'few, by gradient checkpointing' if activations is None else _size(activations):>10}")
    lines.append(f"  {'memory':<42}{_size(sum(sizes.values()) + (activations or 0)):>10}")
    total = 0.0
    for stage in stages:
        seconds = stage.steps * (stage.trained * one.trained + stage.plain * one.plain)
        total += seconds
        lines.append(f"  {f'{stage.name}: {stage.steps:,} steps':<42}{_duration(seconds):>10}")
    lines.append(f"  {'time':<42}{_duration(total):>10}")
    head = f"estimate, of one picture measured ({1000 * one.plain:.0f} ms without gradients, {1000 * one.trained:.0f} ms with):"
    return "\n".join([head, *lines])


def _size(value: float) -> str:
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
