"""Supervised contrastive loss, its memory, and the region-independence loss: golden numbers and invariances."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from genlab.losses.region_independence import RegionIndependence
from genlab.losses.supcon import CrossBatchMemory, mean_of_counted, supervised_contrastive
from tests.golden_files import assert_close, golden_files, load_golden


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("spectral_fas", "supcon"))
def test_supcon_golden(path: Path) -> None:
    meta, golden = load_golden(path)
    tol = meta["tol"]
    for case in meta["cases"]:
        x = golden[f"{case}.embeddings"].clone().requires_grad_()
        labels = golden[f"{case}.labels"].long()
        own = torch.arange(len(x))
        losses, counted = supervised_contrastive(x, labels, x, labels, own, meta["tau"])
        loss = mean_of_counted(losses, counted)
        assert_close(loss, golden[f"{case}.loss"], tol, case)
        if f"{case}.per_anchor" not in golden:
            continue
        assert_close(losses, golden[f"{case}.per_anchor"], tol, f"{case}.per_anchor")
        assert_close(torch.autograd.grad(loss, x, retain_graph=True)[0], golden[f"{case}.grad"], tol, f"{case}.grad")
        weighted = mean_of_counted(losses, counted, golden[f"{case}.anchor_weight"])
        assert_close(weighted, golden[f"{case}.loss_weighted"], tol, f"{case}.loss_weighted")
        assert_close(torch.autograd.grad(weighted, x)[0], golden[f"{case}.grad_weighted"], tol, f"{case}.grad_weighted")


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("spectral_fas", "xbm"))
def test_xbm_golden(path: Path) -> None:
    meta, golden = load_golden(path)
    memory = CrossBatchMemory(meta["memory_size"], meta["dim"], meta["tau"])
    for step in range(meta["steps"]):
        labels = golden[f"s{step}.labels"].long()
        for write, name in ((True, ""), (False, "second_pass_")):
            x = golden[f"s{step}.{name}embeddings"].clone().requires_grad_()
            loss, _ = memory(x, labels, write=write)
            loss.backward()
            assert x.grad is not None
            assert_close(loss, golden[f"s{step}.{name}loss"], meta["tol"], f"s{step}.{name}loss")
            assert_close(x.grad, golden[f"s{step}.{name}grad"], meta["tol"], f"s{step}.{name}grad")
        state = meta["state"][step]
        assert (int(memory.position), int(memory.filled) == memory.size) == (state["queue_idx"], state["filled"])
    assert_close(memory.embeddings, golden["memory_embeddings"], meta["tol"], "memory")
    assert torch.equal(memory.labels, golden["memory_labels"].long())


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("spectral_fas", "region_independence"))
def test_region_independence_golden(path: Path) -> None:
    meta, golden = load_golden(path)
    maps, width = golden["s0.centers_before"].shape
    loss_of = RegionIndependence(maps, width, meta["alpha"], meta["margin"], tuple(meta["inner_margin_by_label"]))
    loss_of.centres.copy_(golden["s0.centers_before"])
    step = 0
    while f"s{step}.features" in golden:
        features = golden[f"s{step}.features"].clone().requires_grad_()
        loss = loss_of(features, golden[f"s{step}.attention"], golden[f"s{step}.labels"] == 1)
        loss.backward()
        assert features.grad is not None
        assert_close(loss, golden[f"s{step}.loss"], meta["tol"], f"s{step}.loss")
        assert_close(features.grad, golden[f"s{step}.grad_features"], meta["tol"], f"s{step}.grad")
        assert_close(loss_of.centres, golden[f"s{step}.centers_after"], meta["tol"], f"s{step}.centres")
        step += 1
    assert step


def test_lengths_and_the_order_of_the_memory_do_not_matter_and_it_gets_no_gradient() -> None:
    torch.manual_seed(0)
    x, memory = torch.randn(6, 8), torch.randn(20, 8, requires_grad=True)
    labels, kept = torch.arange(6) % 2, torch.arange(20) % 2
    loss = mean_of_counted(*supervised_contrastive(x, labels, memory.detach(), kept, None))
    order = torch.randperm(20)
    assert torch.allclose(
        loss, mean_of_counted(*supervised_contrastive(7 * x, labels, memory.detach()[order], kept[order], None)), atol=1e-5
    )
    ring = CrossBatchMemory(20, 8)
    ring(x.requires_grad_(), labels)[0].backward()
    assert not ring.embeddings.requires_grad and x.grad is not None


def test_classes_that_are_one_point_each_reach_the_least_loss() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    x = F.one_hot(labels, 4).float() * torch.tensor([1.0, -1.0])[labels][:, None]
    losses, counted = supervised_contrastive(x, labels, x, labels, torch.arange(7))
    assert bool(counted.all())
    for loss, label in zip(losses.tolist(), labels.tolist()):
        assert loss == pytest.approx(math.log((2, 3)[label]), abs=1e-4)


def test_a_ring_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="larger than a batch"):
        CrossBatchMemory(4, 8)(torch.randn(6, 8), torch.arange(6) % 2)
