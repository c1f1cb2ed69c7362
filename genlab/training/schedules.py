"""Learning rates as a function of the step."""

from __future__ import annotations

import math


def warm_cosine(step: int, warmup: int, steps: int, floor: float = 0.0) -> float:
    """Factor on the peak learning rate: rises linearly over ``warmup`` steps, then falls on half a cosine to ``floor`` at ``steps``."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def warm_flat(step: int, warmup: int, steps: int, cooldown: float) -> float:
    """Factor on the learning rate: rises over ``warmup`` steps, stays 1, and falls linearly to 0 over the last ``cooldown`` of all steps.

    Until the fall begins it does not depend on ``steps``, so that a run can still be made longer.
    """
    return min((step + 1) / (warmup + 1), 1.0, max(steps - step, 0) / max(cooldown * steps, 1))


def warm_unshifted_cosine(step: int, warmup: int, steps: int, floor: float = 0.01) -> float:
    """Factor on the learning rate: step / warmup at first, then half a cosine counted from step 0: it drops a little at ``warmup``."""
    if step < warmup:
        return step / warmup
    return floor + 0.5 * (1 - floor) * (1 + math.cos(math.pi * min(step / steps, 1.0)))


def warm_linear(step: int, warmup: int, steps: int) -> float:
    """Factor on the peak learning rate: rises linearly over ``warmup`` steps, then falls linearly to 0 at ``steps``."""
    return min((step + 1) / (warmup + 1), max(steps - step, 0) / max(steps - warmup, 1))


def epoch_lr(epoch: int, epochs: int, lr: float, floor: float, restart: bool = False) -> float:
    """Half a cosine from ``lr`` over the epochs; with ``restart`` the last one is at ``lr`` again, and the cosine is one epoch shorter."""
    length = max(epochs - restart, 1)
    if epoch >= length:
        return lr if restart else floor
    return floor + (lr - floor) * (1 + math.cos(math.pi * epoch / length)) / 2
