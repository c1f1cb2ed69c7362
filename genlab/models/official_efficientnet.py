"""EfficientNet weights under the names of the lukemelas PyTorch port, which many official codes use, to timm's names and back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
FIRST |= {"_project_conv": "conv_pw", "_bn2": "bn2"}  # of stage 0, which does not expand
OTHER = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_se_reduce": "se.conv_reduce"}
OTHER |= {"_se_expand": "se.conv_expand", "_project_conv": "conv_pwl", "_bn2": "bn3"}


def to_timm(state: Mapping[str, Tensor], repeats: Sequence[int]) -> dict[str, Tensor]:
    """Flat block numbers become stage and place.

    Args:
        state: Official names; ``_conv_stem.conv.weight``, of a central-difference stem, keeps its last part.
        repeats: Blocks of each stage.

    Raises:
        KeyError: A name that is none of EfficientNet's.
    """
    places = [f"blocks.{stage}.{place}" for stage, count in enumerate(repeats) for place in range(count)]
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.([a-z_0-9]+)\.(.+)", key)
        if block is None:
            outer, _, rest = key.partition(".")
            found[f"{OUTER[outer]}.{rest}"] = value
        else:
            number = int(block[1])
            names = FIRST if number < repeats[0] else OTHER
            found[f"{places[number]}.{names[block[2]]}.{block[3]}"] = value
    return found


def from_timm(state: Mapping[str, Tensor], repeats: Sequence[int]) -> dict[str, Tensor]:
    """The way back."""
    numbers = {(stage, place): sum(repeats[:stage]) + place for stage, count in enumerate(repeats) for place in range(count)}
    outer = {name: official for official, name in OUTER.items()}
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(\d+)\.((?:se\.)?[a-z_0-9]+)\.(.+)", key)
        if block is None:
            first, _, rest = key.partition(".")
            found[f"{outer[first]}.{rest}"] = value
        else:
            names = {name: official for official, name in (FIRST if block[1] == "0" else OTHER).items()}
            found[f"_blocks.{numbers[int(block[1]), int(block[2])]}.{names[block[3]]}.{block[4]}"] = value
    return found
