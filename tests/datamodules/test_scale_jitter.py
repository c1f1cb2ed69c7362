"""Custom Diffusion's augmentation: pictures, masks and words of the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.scale_jitter import draw_scale, jittered, placed, prefixes
from tests.golden_files import assert_close, golden_files, load_golden


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("multimodal_prompt", "custom_diffusion_aug"))
def test_pictures_masks_and_words_of_the_reference(path: Path) -> None:
    meta, given = load_golden(path)
    size, grid = meta["size"], meta["mask_size"]
    picture = given["image_uint8"].permute(2, 0, 1)
    group = {name: tuple(words) for name, words in meta["prefix_group"].items()}
    for case in meta["cases"]:
        found, mask = placed(picture, case["scale"], case["top"], case["left"], size, grid)
        expected, outside = given[f"out_{case['k']}"].float(), given[f"mask_{case['k']}"]
        scaled = found.permute(1, 2, 0).float() / 127.5 - 1
        inside = expected.abs().sum(2, keepdim=True) > 0  # there grey is 0, which 8 bits have no value for
        assert_close(scaled * inside, expected * inside, meta["tol"]["out"], f"picture {case['k']}")
        assert (scaled[~inside.squeeze(2)].abs() < 0.005).all()
        assert torch.equal(mask[0].to(torch.uint8), outside) and int(mask.sum()) == case["mask_ones"]
        assert prefixes(case["scale"], size) == group[case["prefix_group"]]
    for case in meta["full_size_512_64"]:
        _, mask = placed(torch.zeros(3, 8, 8, dtype=torch.uint8), case["scale"], case["top"], case["left"], 512, 64)
        rows, columns = (mask[0].any(axis).nonzero().flatten() for axis in (1, 0))
        assert [int(rows[0]), int(rows[-1]) + 1] == case["mask_rows"] and [int(columns[0]), int(columns[-1]) + 1] == case["mask_cols"]
        assert int(mask.sum()) == case["mask_ones"] and prefixes(case["scale"], 512) == group[case["prefix_group"]]


def test_any_draw_has_a_place_that_counts() -> None:
    rng, picture = np.random.default_rng(0), torch.full((3, 20, 30), 200, dtype=torch.uint8)
    for _ in range(200):
        scale = draw_scale(64, rng)
        assert 21 <= scale <= 64 or 76 <= scale < 89
        found = jittered(picture, 64, rng)
        assert found.picture.shape == (3, 64, 64) and found.mask.shape == (1, 8, 8) and found.mask.any()
