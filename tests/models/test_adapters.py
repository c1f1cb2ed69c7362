"""Adapters of MSTA: reference numbers, the paper's parameter counts, and what the temporal convolution sees."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from genlab.models.adapters import Adapters
from tests.golden_files import assert_close, golden_files, load_golden


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("msta", "adapter"))
def test_one_block_of_the_reference(path: Path) -> None:
    meta, given = load_golden(path)
    sizes, tol = meta["config"], meta["tol"]
    adapters = Adapters(sizes["vision_width"], sizes["text_width"], sizes["bottleneck"], [1])
    own = {name.removeprefix("adapters."): value for name, value in given.items() if name.startswith("adapters.")}
    adapters.load_state_dict(own)
    grid = sizes["grid_h"]
    norms = {side: lambda x, s=side: F.layer_norm(x, x.shape[-1:], given[f"ln_{s}.weight"], given[f"ln_{s}.bias"]) for side in "vt"}
    x_v, x_t = given["x_v"], given["x_t"]
    y = norms["v"](x_v)
    vision, shared = adapters.vision["1"], adapters.shared["1"]
    h1 = F.relu(vision.down(y))
    h = F.relu(shared(h1))
    assert_close(h1, given["out.h1_v"], tol, "down")
    assert_close(h, given["out.h_v"], tol, "shared")
    assert_close(vision.up_spatial(h), given["out.spatial"], tol, "spatial")
    assert_close(vision.temporal(h, grid), given["out.temporal"], tol, "temporal")
    a_v, a_t = adapters.of_video(1, y, grid), adapters.of_text(1, norms["t"](x_t))
    assert_close(a_v, given["out.adapter_v"], tol, "A_v")
    assert_close(a_t, given["out.adapter_t"], tol, "A_t")
    assert_close(adapters.of_video(1, x_v, grid), given["out.adapter_v_nonorm"], tol, "A_v without norm")
    assert_close(adapters.of_text(1, x_t), given["out.adapter_t_nonorm"], tol, "A_t without norm")
    y_v, y_t = given["block_out_v"] + sizes["lambda"] * a_v, given["block_out_t"] + sizes["lambda"] * a_t
    assert_close(y_v, given["out.y_v"], tol, "video block")
    assert_close(y_t, given["out.y_t"], tol, "text block")
    ((y_v * given["cot_v"]).sum() + (y_t * given["cot_t"]).sum()).backward()
    for name, parameter in adapters.named_parameters():
        assert parameter.grad is not None
        assert_close(parameter.grad, given[f"grad.adapters.{name}"], tol, name)


@pytest.mark.parametrize(
    ("bottleneck", "first", "expected"), [(128, 8, 1_744_000), (128, 1, 4_185_600), (256, 8, 3_630_080), (256, 1, 8_712_192)]
)
def test_as_many_parameters_as_the_paper_and_the_logs_say(bottleneck: int, first: int, expected: int) -> None:
    with torch.device("meta"):
        adapters = Adapters(768, 512, bottleneck, range(first, 13))
    assert sum(parameter.numel() for parameter in adapters.parameters()) == expected


def test_a_bottleneck_that_does_not_divide_the_width_has_fewer_groups() -> None:
    with torch.device("meta"):
        adapters = Adapters(768, 512, 512, [1])
    assert sum(parameter.numel() for parameter in adapters.parameters()) == 1_581_056


def test_time_is_seen_patch_by_patch_and_not_by_class_tokens() -> None:
    torch.manual_seed(0)
    adapters, grid, steps = Adapters(12, 8, 4, [1]), 2, 6
    vision = adapters.vision["1"]
    for first in (1, steps):  # ViCLIP has one class token, CLIP one a frame
        h = torch.randn(1, first + grid**2 * steps, 4)
        before = vision.temporal(h, grid, first)
        assert (before[:, :first] == 0).all() and before[:, first:].abs().min(-1).values.max() > 0
        changed = h.clone()
        patch, at = 2, 3
        changed[0, first + patch * steps + at] += 1
        moved = (vision.temporal(changed, grid, first) - before).abs().sum(-1)[0].nonzero().flatten()
        assert moved.tolist() == [first + patch * steps + t for t in (at - 1, at, at + 1)]


def test_initialisation() -> None:
    torch.manual_seed(0)
    kaiming, zero = Adapters(64, 64, 64, [3]), Adapters(64, 64, 64, [3], zero_init_up=True)
    assert abs(kaiming.vision["3"].down.weight.std() - math.sqrt(2 / 64)) < 0.02 and (kaiming.vision["3"].down.bias == 0).all()
    x = torch.randn(1, 1 + 4 * 3, 64)
    assert (zero.of_video(3, x, 2) == 0).all() and (zero.of_text(3, x) == 0).all() and kaiming.of_text(3, x).abs().max() > 0.1
