"""Which tokens of a clip a DeMamba sequence visits, and in what order (paper, Sec. 4.2, and what the official code does instead).

A clip's tokens form a (T, G, G) raster. Zones are squares of R x R tokens, s = G / R a side, P = s * s in all; one sequence is
one zone over all frames, so the order is an integer table of shape (P, T * R * R) with entries ``t * G * G + row * G + col``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from genlab.errors import UserError

ZoneOrder = Literal["paper", "official", "zone_colsnake_posmajor"]
ScanPath = Literal["snake", "sweep"]


def row_snake(size: int) -> Tensor:
    """Positions of a size x size square, row by row, every second row backwards: ``[0, 1, 3, 2]`` for 2."""
    square = torch.arange(size * size).view(size, size)
    square[1::2] = square[1::2].flip(1)
    return square.flatten()


def column_snake(size: int) -> Tensor:
    """Positions of a size x size square, column by column, every second column upwards: ``[0, 2, 3, 1]`` for 2 (official code)."""
    square = torch.arange(size * size).view(size, size).T.clone()
    square[1::2] = square[1::2].flip(1)
    return square.flatten()


def token_order(grid: int, zone_size: int, num_frames: int, order: ZoneOrder = "paper", scan: ScanPath = "snake") -> Tensor:
    """Table of the tokens of each sequence, int64 (P, T * R * R); every token of the clip occurs once.

    Args:
        grid: G, tokens per side of a frame.
        zone_size: R, tokens per side of a zone ("fusing ratio" in the official code, "zone size" in the paper's ablation).
        num_frames: T.
        order: ``paper``: frames outermost, each frame of a zone in the same row-wise snake. ``official``: the released code, which
            reads the grid as (R, s, R, s) and views the permuted memory as zones; unless R * R = G its groups are no zones (at
            G = 14, R <= 2 each holds tokens of one or two frames only). ``zone_colsnake_posmajor``: right zones, but the code's order
            within them: column-wise snake, positions outermost, frames innermost.
        scan: ``snake`` (paper: "continuous scan") or ``sweep``, the plain raster of the published ablation (``paper`` order only).

    Raises:
        UserError: R does not divide G, or a sweep is asked for in an order of the official code.
    """
    if zone_size < 1 or grid % zone_size:
        fitting = [r for r in range(1, grid + 1) if grid % r == 0]
        raise UserError(f"zone_size: {zone_size} does not divide the token grid of {grid} x {grid}; use one of {fitting}.")
    if scan == "sweep" and order != "paper":
        raise UserError(f"scan: 'sweep' belongs to zone_order 'paper', not to {order!r}; change one of the two.")
    zones = grid // zone_size
    tokens = torch.arange(num_frames * grid * grid)
    if order == "official":
        grouped = tokens.view(num_frames, zone_size, zones, zone_size, zones).permute(1, 3, 0, 2, 4)
        sequences = grouped.reshape(zones * zones, num_frames, zone_size * zone_size)
    else:
        grouped = tokens.view(num_frames, zones, zone_size, zones, zone_size).permute(1, 3, 0, 2, 4)
        sequences = grouped.reshape(zones * zones, num_frames, zone_size * zone_size)
    if order == "paper":
        path = row_snake(zone_size) if scan == "snake" else torch.arange(zone_size * zone_size)
        return sequences[:, :, path].flatten(1)
    return sequences[:, :, column_snake(zone_size)].transpose(1, 2).flatten(1)
