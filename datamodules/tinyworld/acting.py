"""Sixteen actions of the tiny world, and clips in which one object performs one of them.

Ten of them are five pairs of opposites: the same frames, played backwards. `speed_up`, `brake` and `slide_right` lead through the same
places at other times; `sway`, `rock` and `pulse` come back to where they began. No single frame tells what happens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from datamodules.tinyworld.scene import SceneObject, Style
from datamodules.tinyworld.video import REACH, Clip, Motion, random_clip
from genlab.training.randomness import keyed_rng

ROUND = ("circle", "ring")  # whose turning shows only with a texture
SHOWING = ("striped", "checked")
STILL = Motion("slide_right", 0.0)
STANDING = "standing still"


@dataclass(frozen=True)
class Action:
    """What it is called, and how far it goes.

    Args:
        words: Wordings of the same thing, the usual one first. None is part of one of another action.
        reach: Factor on the reach of its motion. A spin is slowed down, so that eight frames show which way it goes: a square turned by
            45 degrees from frame to frame would not.
        opposite: The action that is this one played backwards.
    """

    words: tuple[str, ...]
    reach: float = 1.0
    opposite: str | None = None


ACTIONS: dict[str, Action] = {  # by the name of their motion
    "slide_right": Action(("sliding to the right", "moving from left to right", "going right"), opposite="slide_left"),
    "slide_left": Action(("sliding to the left", "moving from right to left", "going left"), opposite="slide_right"),
    "rise": Action(("rising", "moving up", "climbing"), opposite="sink"),
    "sink": Action(("sinking", "moving down", "falling"), opposite="rise"),
    "spin_cw": Action(("spinning clockwise", "turning clockwise", "rotating clockwise"), 0.5, "spin_ccw"),
    "spin_ccw": Action(("spinning counterclockwise", "turning counterclockwise", "rotating counterclockwise"), 0.5, "spin_cw"),
    "orbit_cw": Action(("circling clockwise", "going round clockwise", "running in a circle clockwise"), opposite="orbit_ccw"),
    "orbit_ccw": Action(
        ("circling counterclockwise", "going round counterclockwise", "running in a circle counterclockwise"), opposite="orbit_cw"
    ),
    "approach": Action(("coming closer", "growing", "getting bigger"), opposite="recede"),
    "recede": Action(("going away", "shrinking", "getting smaller"), opposite="approach"),
    "speed_up": Action(("speeding up to the right", "moving faster and faster to the right")),
    "brake": Action(("braking to the right", "moving slower and slower to the right")),
    "sway": Action(("swaying from side to side", "moving left and right")),
    "bounce": Action(("bouncing", "jumping up and down")),
    "rock": Action(("rocking like a pendulum", "tilting back and forth")),
    "pulse": Action(("pulsing", "breathing in and out")),
}


def acting_clip(key: str, style: Style, action: str, frames: int, fps: int = 8, objects: int = 1, cast: SceneObject | None = None) -> Clip:
    """The clip named ``key``: its first object performs the action, a second one stands still.

    Args:
        cast: Whose shape, colour, texture and size the first object has; left out, they are random.
    """
    rng = keyed_rng("acting", style, key)
    clip = random_clip(key, style, frames, fps, objects)
    actor, *rest = clip.scene.objects
    if cast is not None:
        actor = replace(cast, x=actor.x, y=actor.y, angle=actor.angle)
    actor = replace(actor, texture=showing(actor, rng), x=round(actor.x * 0.5, 4), y=round(actor.y * 0.5, 4))
    motion = Motion(action, round(rng.uniform(*REACH[style]) * ACTIONS[action].reach, 4))
    return replace(clip, scene=replace(clip.scene, objects=(actor, *rest)), motions=(motion, *(STILL for _ in rest)))


def showing(thing: SceneObject, rng: np.random.Generator) -> str:
    """Its texture, or one that shows how it turns."""
    return str(rng.choice(SHOWING)) if thing.shape in ROUND and thing.texture not in SHOWING else thing.texture
