"""Holes: patch holes bit for bit, the others with exactly the share that was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from genlab.holes import KINDS, REDRAW_STEP, HoleKind, make_hole, patch_cells, patch_hole, patch_seed, second_hole
from genlab.training.randomness import keyed_rng
from tests.golden_files import golden_files, load_golden


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("inpaint_consistency", "patch_masks"))
def test_patch_holes_equal_the_reference_bit_for_bit(path: Path) -> None:
    golden, masks = load_golden(path)
    assert golden["cases"]
    for case in golden["cases"]:
        cells = patch_cells(case["H"], case["W"], case["patch"], case["ratio"], case["seed"])
        hole = patch_hole(case["H"], case["W"], case["patch"], case["ratio"], case["seed"])
        assert (cells.numel(), int(cells.sum())) == (case["cells"], case["chosen"])
        assert torch.equal(hole, masks[case["name"]].bool()), case["name"]
        assert float(hole.float().mean()) == pytest.approx(case["hole_fraction"], abs=golden["tol"]["hole_fraction"]["atol"])


def test_second_holes_show_what_the_first_one_hid() -> None:
    first = torch.zeros(35, 27, dtype=torch.bool)
    first[3:20, 5:9] = True
    raw = patch_hole(35, 27, 4, 0.4, 5)
    by_pixel, by_cell = (second_hole(first, 4, 0.4, 5, avoid) for avoid in ("pixel", "cell"))
    assert by_pixel is not None and by_cell is not None
    assert torch.equal(by_pixel, raw & ~first) and not (by_cell & first).any() and not (by_cell & ~raw).any()
    cells = raw.clone()
    for top in range(0, 35, 4):
        for left in range(0, 27, 4):
            if first[top : top + 4, left : left + 4].any():
                cells[top : top + 4, left : left + 4] = False
    assert torch.equal(by_cell, cells)
    assert torch.equal(second_hole(first, 4, 0.4, 5, "none"), raw)
    assert second_hole(first, 4, 1.0, 5, "none").all() and not second_hole(first, 4, 0.0, 5).any()


def test_a_second_hole_of_which_nothing_is_left_is_drawn_again() -> None:
    seed = next(s for s in range(100) if patch_cells(8, 8, 4, 0.25, s)[0, 0])
    first = torch.zeros(8, 8, dtype=torch.bool)
    first[:4, :4] = True
    draws = [patch_hole(8, 8, 4, 0.25, seed + n * REDRAW_STEP) & ~first for n in range(9)]
    expected = next(draw for draw in draws if draw.any())
    assert torch.equal(second_hole(first, 4, 0.25, seed), expected)
    assert second_hole(torch.ones(8, 8, dtype=torch.bool), 4, 0.25, seed) is None


def test_seeds_differ_for_pictures_and_repeats() -> None:
    assert len({patch_seed(base, index, k) for base in range(3) for index in range(50) for k in range(10)}) == 1500
    assert patch_seed(2**62, 1, 1) < 2**63


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_takes_exactly_its_share(kind: HoleKind) -> None:
    for number, (height, width, ratio) in enumerate([(64, 64, 0.25), (96, 64, 0.4), (63, 97, 0.07), (64, 64, 0.9)]):
        hole = make_hole(kind, height, width, ratio, keyed_rng("hole", number))
        assert hole.shape == (height, width) and hole.dtype == bool
        if kind == "patch":  # whole cells
            side = -(-max(height, width) // 16)
            assert abs(hole.mean() - ratio) <= 1.5 * side * (height + width) / (height * width)
        else:
            assert hole.sum() == round(ratio * height * width)
        assert np.array_equal(hole, make_hole(kind, height, width, ratio, keyed_rng("hole", number)))
    assert not np.array_equal(make_hole(kind, 64, 64, 0.3, keyed_rng(1)), make_hole(kind, 64, 64, 0.3, keyed_rng(2))) or kind in (
        "border",
        "half",
    )


def test_kinds_look_as_they_are_called() -> None:
    def thickness(kind: HoleKind) -> float:
        """Share of a hole that is left when its edge of 2 pixels is taken away."""
        hole = torch.from_numpy(make_hole(kind, 128, 128, 0.3, keyed_rng("look", kind))).float()[None, None]
        return float((torch.nn.functional.avg_pool2d(hole, 5, 1, 2) > 0.999).float().sum() / hole.sum())

    assert thickness("thin") < thickness("free_form") < thickness("thick") < thickness("half")
    box = make_hole("box", 64, 64, 0.25, keyed_rng("box"))
    rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
    assert box[rows[1] : rows[-1], columns[1] : columns[-1]].all(), "whole, but for the outermost ring"
    border = make_hole("border", 64, 64, 0.4, keyed_rng("border"))
    assert border[0].all() and border[:, -1].all() and not border[20:44, 20:44].any()
