"""Which few pictures are trained on, exactly as CoOp (Zhou et al., IJCV 2022) and Tip-Adapter draw them, and base and new classes.

Both use Python's Mersenne Twister: with the same list in the same order, the same pictures are drawn here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

Sampler = Literal["coop", "cpr"]
VAL_SHOTS = 4  # at most, per class


class Draw(NamedTuple):
    """Positions in the lists of training and validation pictures."""

    train: list[int]
    val: list[int]


def draws(train: Sequence[int], val: Sequence[int] | None, shots: int, seed: int, sampler: Sampler = "coop", number: int = 1) -> list[Draw]:
    """``number`` draws in a row from one stream of random numbers.

    Args:
        train: Labels of the list of training pictures, in its order.
        val: Likewise of validation pictures; ``None`` where the dataset has none.
        shots: Pictures per class; of validation, as many but no more than four.
        seed: Of the stream, which belongs to the call alone.
        sampler: Of a class with fewer pictures, ``coop`` takes all, ``cpr`` draws with replacement.
    """
    rng = random.Random(seed)
    found = []
    for _ in range(number):
        chosen = _choose(train, shots, rng, sampler)
        found.append(Draw(chosen, [] if val is None else _choose(val, min(shots, VAL_SHOTS), rng, sampler)))
    return found


def _choose(labels: Sequence[int], shots: int, rng: random.Random, sampler: Sampler) -> list[int]:
    members: dict[int, list[int]] = {}  # in the order of first appearance
    for position, label in enumerate(labels):
        members.setdefault(label, []).append(position)
    chosen: list[int] = []
    for own in members.values():
        if len(own) >= shots:
            chosen += rng.sample(own, shots)
        else:
            chosen += own if sampler == "coop" else rng.choices(own, k=shots)
    return chosen


def halves(labels: Sequence[int]) -> tuple[list[int], list[int]]:
    """Base and new classes: the first half of the labels that occur, rounded up, and the rest."""
    known = sorted(set(labels))
    middle = (len(known) + 1) // 2
    return known[:middle], known[middle:]


def subset(labels: Sequence[int], classes: Sequence[int]) -> list[tuple[int, int]]:
    """(position, new label) of what belongs to the classes, whose labels then count from 0."""
    renamed = {label: number for number, label in enumerate(sorted(classes))}
    return [(position, renamed[label]) for position, label in enumerate(labels) if label in renamed]
