"""What ``data check hyspefas`` looks for."""

from __future__ import annotations

import hashlib

import numpy as np

from datamodules.checks import Facts, Item
from datamodules.hyspefas_index import Sample, UnreadableCube, load_cube
from datamodules.listfiles import some


def overlaps(index: dict[str, list[Sample]]) -> list[str]:
    """What it means that lists of two splits name the same pictures."""
    found: list[str] = []
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        both = {each.id for each in index.get(one, [])} & {each.id for each in index.get(other, [])}
        if both:
            means = (
                "the threshold, chosen there, and validation ACER say nothing about new faces"
                if other == "val"
                else "its test ACER is void"
            )
            found.append(
                f"{len(both)} of {len(index[other])} {other} pictures are in the {one} list as well ({some(sorted(both))}): {means}."
            )
    return found


def read_facts(item: Item, whole: bool) -> Facts:
    """A cube and its picture, for ``data check``."""
    try:
        cube = load_cube(item.path)
    except UnreadableCube as error:
        return Facts("missing" if error.reason == "not there" else "unreadable", error.reason)
    if not np.isfinite(cube).all():
        return Facts("unreadable", "has values that are not finite")
    digest = hashlib.blake2b(cube.tobytes(), digest_size=16).hexdigest() if whole else ""
    measures: dict[str, float | str] = {"size": f"{cube.shape[1]}x{cube.shape[0]}", "bands": str(cube.shape[2])}
    return Facts(digest=digest, measures=measures)
