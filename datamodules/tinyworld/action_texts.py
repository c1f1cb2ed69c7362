"""Sentences about actions in the forms of ETL4Video's description files (Chen et al., CVPR 2025), which a language model wrote there.

Spatial ones say what a single frame may show, temporal ones what happens one after the other.
"""

from __future__ import annotations

import string
from typing import Literal

SPATIAL: dict[str, tuple[str, ...]] = {  # what one would see in a single frame: four phrases per action
    "slide_right": (
        "on the left side at first",
        "on the right side at the end",
        "in the middle of the wall",
        "with its place to the right",
    ),
    "slide_left": ("on the right side at first", "on the left side at the end", "in the middle of the wall", "with its place to the left"),
    "rise": ("near the bottom at first", "near the top at the end", "in the middle of the sky", "with its place going up"),
    "sink": ("near the top at first", "near the bottom at the end", "in the middle of the sea", "with its place going down"),
    "spin_cw": ("in one place", "tilted to the right", "with its top to the right", "on its side"),
    "spin_ccw": ("in one place", "tilted to the left", "with its top to the left", "on its side"),
    "orbit_cw": ("away from the middle", "on a circle", "first on the left, then at the top", "at the edge of a circle"),
    "orbit_ccw": ("away from the middle", "on a circle", "first on the left, then at the bottom", "at the edge of a circle"),
    "approach": ("small at first", "large at the end", "in front of everything", "close to the camera"),
    "recede": ("large at first", "small at the end", "far behind", "away from the camera"),
    "speed_up": ("on the left side for long", "on the right side at the end", "alone on the left", "with much room to the right"),
    "brake": ("on the left side at first", "on the right side for long", "alone on the right", "with little room to the right"),
    "sway": ("left and right of the middle", "at the same height", "on both sides", "back in the middle"),
    "bounce": ("on the floor", "high above the floor", "between the top and the bottom", "on the floor again"),
    "rock": ("in one place", "tilted to both sides", "like a pendulum", "upright again"),
    "pulse": ("small and large", "in one place", "with a changing size", "of its first size again"),
}
TEMPORAL: dict[str, tuple[str, ...]] = {  # what one would see over time: four steps per action
    "slide_right": ("it starts on the left", "it goes right", "it keeps its speed", "it ends on the right"),
    "slide_left": ("it starts on the right", "it goes left", "it keeps its speed", "it ends on the left"),
    "rise": ("it starts at the bottom", "it moves up", "it keeps its speed", "it ends at the top"),
    "sink": ("it starts at the top", "it moves down", "it keeps its speed", "it ends at the bottom"),
    "spin_cw": ("it turns clockwise", "it turns to the right", "it keeps turning in one place", "its top goes to the right"),
    "spin_ccw": ("it turns counterclockwise", "it turns to the left", "it keeps turning in one place", "its top goes to the left"),
    "orbit_cw": ("it goes round clockwise", "it moves up on the left", "it moves down on the right", "it comes back to where it was"),
    "orbit_ccw": (
        "it goes round counterclockwise", "it moves down on the left", "it moves up on the right", "it comes back to where it was",
    ),
    "approach": ("it is small and far away", "it comes closer", "it gets bigger", "it is large and close"),
    "recede": ("it is large and close", "it goes away", "it gets smaller", "it is small and far away"),
    "speed_up": ("it starts slowly on the left", "it goes right", "it gets faster and faster", "it ends fast on the right"),
    "brake": ("it starts fast on the left", "it goes right", "it gets slower and slower", "it ends slowly on the right"),
    "sway": ("it goes right", "it comes back", "it goes left", "it comes back to the middle"),
    "bounce": ("it falls to the floor", "it jumps up", "it falls again", "it jumps up again"),
    "rock": ("it tilts to the right", "it comes back", "it tilts to the left", "it comes back again"),
    "pulse": ("it grows", "it shrinks", "it grows again", "it shrinks again"),
}  # fmt: skip


def spoken(name: str) -> str:
    """A class name in lower-case words: "MovingUp" and "moving_up" are "moving up"."""
    spaced = "".join(f" {c}" if c in string.ascii_uppercase else c for c in name.replace("_", " "))
    return " ".join(spaced.lower().split())


def descriptions(name: str, action: str, kind: Literal["s", "t"], count: int) -> list[str]:
    """``count`` sentences (2, 4 or 8) about a class; ``kind`` is "s", what it looks like, or "t", what happens one after the other."""
    if kind == "s":
        return [f"A video about {who} {where}." for who in ("an object", "a shape") for where in SPATIAL[action]][:count]
    steps = [*TEMPORAL[action], *(step.replace("it ", "the object ", 1) for step in TEMPORAL[action])][:count]
    return [f"A video of {spoken(name)} generally involves the following step: {step}, which is a sub-step." for step in steps]
