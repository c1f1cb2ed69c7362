"""L_CC of MSTA: reference numbers, its range, and whom it moves."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
import torch.nn.functional as F

from genlab.losses.description_consistency import Averaging, consistency_per_class, description_consistency, description_means
from genlab.models.video_text import cosine_logits
from tests.golden_files import assert_close, golden_files, load_golden


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("msta", "loss"))
def test_losses_of_the_reference(path: Path) -> None:
    meta, given = load_golden(path)
    tol, counts = meta["tol"], meta["config"]
    for name in ("normalized", "raw"):
        averaging = cast(Averaging, name)
        spatial = description_means(given["spatial_embed"], counts["counts_spatial"], averaging)
        temporal = description_means(given["temporal_embed"], counts["counts_temporal"], averaging)
        assert_close(spatial, given[f"out.{name}.spatial_mean"], tol, f"{name} spatial")
        assert_close(temporal, given[f"out.{name}.temporal_mean"], tol, f"{name} temporal")
        w = given["text_embed"].clone().requires_grad_(True)
        assert_close(consistency_per_class(w, spatial, temporal), given[f"out.{name}.per_class"], tol, f"{name} per class")
        loss = description_consistency(w, spatial, temporal)
        assert_close(loss[None], given[f"out.{name}.loss_cc"], tol, f"{name} L_CC")
        loss.backward()
        assert w.grad is not None
        assert_close(w.grad, given[f"grad.{name}.text_embed"], tol, f"{name} gradient")
    logits = cosine_logits(given["video_embed"], given["text_embed"], 100.0)
    assert_close(logits, given["out.logits"], tol, "logits")
    assert_close(F.cross_entropy(logits, given["label"].long())[None], given["out.loss_ce"], tol, "L_CE")
    views = torch.stack([cosine_logits(view, given["text_embed"], 100.0).softmax(1) for view in given["view_video_embed"]]).mean(0)
    assert_close(views, given["out.view_probs_mean"], tol, "views")
    assert torch.equal(views.argmax(1), given["out.view_top1"].long())


def test_from_nought_to_four_whatever_the_length() -> None:
    d = torch.randn(3, 8)
    assert description_consistency(5 * d, d, 0.1 * d).abs() < 1e-6 and (description_consistency(-d, d, d) - 4).abs() < 1e-6
    w, spatial = torch.randn(3, 8), d.clone().requires_grad_(True)
    assert torch.allclose(consistency_per_class(w, d, d), consistency_per_class(7 * w, d, d), atol=1e-6)
    description_consistency(w.requires_grad_(True), spatial, d).backward()
    assert spatial.grad is None and w.grad is not None and w.grad.abs().sum() > 0
