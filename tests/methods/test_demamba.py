"""DeMamba against the official model's numbers, its own promises, and two toy tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.methods.demamba import DeMamba, DeMambaHead, PoolHead
from genlab.models.backbones import Backbone, TinyPatch, VideoBackbone
from genlab.models.clip import CLIPTokens
from genlab.models.mamba import MambaOptions
from genlab.models.official_demamba import FromOfficial, from_official
from genlab.models.xclip import XCLIPTokens
from genlab.models.zones import column_snake, row_snake, token_order
from tests.golden_files import assert_close, golden_files, load_golden


def mamba_options(case: dict[str, Any], direction: str) -> MambaOptions:
    options = dict(case.get("mamba", {}))
    both = options.pop("bimamba", True)
    return MambaOptions(**options, bidirectional=direction if both else "none", drop_path=0.0)


def build(case: dict[str, Any], backbone: VideoBackbone, preset: str) -> tuple[VideoBackbone, DeMambaHead]:
    order, direction = ("official", "channel") if preset == "official" else ("paper", "time")
    frames = case.get("num_frames") or case["T"]
    options = mamba_options(case, direction)
    return backbone, DeMambaHead(
        backbone.width, backbone.grid, frames, case["R"], order, mamba=options, feature_norms=backbone.feature_norms
    ).eval()


def official_weights(tensors: dict[str, Tensor], case: str) -> FromOfficial:
    prefix = f"{case}/sd/"
    return from_official({key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)})


def load(module: nn.Module, official: FromOfficial, prefix: str) -> None:
    module.load_state_dict({key.removeprefix(prefix): value for key, value in official.weights.items() if key.startswith(prefix)})


def xclip(case: dict[str, Any], official: FromOfficial) -> XCLIPTokens:
    from transformers import XCLIPVisionConfig, XCLIPVisionModel

    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "image_size", "patch_size", "num_frames")
    backbone = XCLIPTokens(XCLIPVisionModel(XCLIPVisionConfig(**{name: case[name] for name in names}, drop_path_rate=0.0))).eval()
    load(backbone, official, "backbone.")
    return backbone


def clip(case: dict[str, Any], official: FromOfficial) -> CLIPTokens:
    from transformers import CLIPConfig, CLIPModel

    width, layers = case["width"], case["layers"]
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64, "num_hidden_layers": layers}
    vision |= {"image_size": case["image_size"], "patch_size": case["patch_size"], "hidden_act": "quick_gelu"}
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8, "bos_token_id": 0, "eos_token_id": 1}
    backbone = CLIPTokens(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=case["embed_dim"]))).eval()
    load(backbone, official, "backbone.")
    return backbone


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("demamba", "regions"))
def test_token_order(path: Path) -> None:
    meta, tensors = load_golden(path)
    assert meta["cases"]
    for case in meta["cases"]:
        b, t, g, r = case["B"], case["T"], case["G"], case["R"]
        orders = {}
        for mode in ("official", "paper", "zone_colsnake_posmajor"):
            order = token_order(g, r, t, mode)
            orders[mode] = torch.cat([order + i * t * g * g for i in range(b)])
            assert torch.equal(orders[mode], tensors[f"{mode}/{case['key']}"].long()), (mode, case["key"])
            assert torch.equal(orders[mode].flatten().sort().values, torch.arange(b * t * g * g))
        assert torch.equal(orders["official"], orders["zone_colsnake_posmajor"]) == case["official_equals_correct_zones"]
    for key, value in tensors.items():
        if key.startswith("snake"):
            snake = column_snake if "official" in key else row_snake
            assert torch.equal(snake(int(key.split("/")[1])), value.long()), key


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("demamba", "xclip_demamba"))
def test_xclip_model(path: Path) -> None:
    meta, tensors = load_golden(path)
    assert meta["cases"]
    for name, case in meta["cases"].items():
        weights, x, tol = official_weights(tensors, name), tensors[f"{name}/x"], meta["tol"]["forward"]
        backbone, head = build(case, xclip(case, weights), "official")
        load(head, weights, "head.")
        tokens, global_vector = backbone(x)
        zone_mean = head.local_features(tokens).zone_mean
        assert_close(head.fc_norm2(global_vector), tensors[f"{name}/global_feat"], tol, f"{name} global_feat")
        assert_close(zone_mean.flatten(0, 1), tensors[f"{name}/zone_mean"], tol, f"{name} zone_mean")
        logits = head(tokens, global_vector)
        assert_close(logits[:, None], tensors[f"{name}/logits"], tol, f"{name} logits")
        loss = F.binary_cross_entropy_with_logits(logits, tensors[f"{name}/target"].squeeze(1).float())
        assert_close(loss, tensors[f"{name}/loss"].reshape(()), tol, f"{name} loss")
        loss.backward()
        own = {f"encoder.{k}": p for k, p in backbone.encoder.named_parameters()} | dict(head.named_parameters())
        gradients = {k.split("/grad/")[1]: v for k, v in tensors.items() if k.startswith(f"{name}/grad/")}
        assert gradients
        for key, expected in gradients.items():
            assert_close(own[key.replace(".vision_model.", ".")].grad, expected, meta["tol"]["grad"], f"{name} grad {key}")
        assert all(p.grad is not None for p in own.values()), "every parameter takes part"
        _, paper = build(case, backbone, "paper")
        load(paper, weights, "head.")
        assert_close(paper(tokens, global_vector)[:, None], tensors[f"{name}/logits_paper"], tol, f"{name} logits_paper")


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("demamba", "clip_demamba"))
@torch.no_grad()
def test_clip_model(path: Path) -> None:
    meta, tensors = load_golden(path)
    assert meta["cases"]
    for name, case in meta["cases"].items():
        weights, x = official_weights(tensors, name), tensors[f"{name}/x"]
        backbone = clip(case, weights)
        tokens, global_vector = backbone(x)
        assert_close(tokens.flatten(2, 3).flatten(0, 1), tensors[f"{name}/patch_tokens"], meta["tol"], f"{name} patch_tokens")
        for preset, key in (("official", "logits"), ("paper", "logits_paper")):
            _, head = build(case, backbone, preset)
            load(head, weights, "head.")
            assert_close(head(tokens, global_vector)[:, None], tensors[f"{name}/{key}"], meta["tol"], f"{name} {key}")


def test_parameter_counts_are_the_papers() -> None:
    """Table 10 of the paper: 125.37 M with zones of 2 x 2 and two directions, of which 7,680 are a convolution that is never used."""
    from transformers import XCLIPVisionConfig, XCLIPVisionModel

    with torch.device("meta"):
        config = XCLIPVisionConfig(patch_size=16, num_frames=8)
        backbone = XCLIPTokens(XCLIPVisionModel(config))
        counts = {}
        for r in (1, 2):
            head = DeMambaHead(768, 14, 8, zone_size=r)
            counts[r] = sum(p.numel() for m in (backbone, head) for p in m.parameters())
    assert sum(p.numel() for p in backbone.parameters()) == 121_253_376
    assert counts == {1: 125_710_849 - 7_680, 2: 125_364_481}


@pytest.fixture(scope="module")
def head() -> DeMambaHead:
    torch.manual_seed(0)
    return DeMambaHead(16, 6, 4, zone_size=2, mamba=MambaOptions(d_state=4, drop_path=0.5)).eval()


def test_clips_do_not_know_each_other(head: DeMambaHead) -> None:
    tokens, vectors = torch.randn(5, 4, 6, 6, 16), torch.randn(5, 16)
    logits = head(tokens, vectors)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(head(tokens[order], vectors[order]), logits[order])
    torch.testing.assert_close(head(tokens[:1], vectors[:1]), logits[:1])
    changed = tokens.clone()
    changed[1] += 1
    assert torch.equal(head(changed, vectors)[0], logits[0]) and not torch.equal(head(changed, vectors)[1], logits[1])


def test_a_token_changes_its_own_zone_only(head: DeMambaHead) -> None:
    tokens = torch.randn(1, 4, 6, 6, 16)
    before = head.local_features(tokens).zone_mean
    tokens[0, 2, 3, 5] += 1  # row 3, column 5: zone (1, 2), number 1 * 3 + 2
    changed = (head.local_features(tokens).zone_mean - before).abs().sum(-1)[0]
    assert changed.nonzero().flatten().tolist() == [5]


def test_drop_path_tells_zones_apart_in_training_only(head: DeMambaHead) -> None:
    tokens = torch.zeros(1, 4, 6, 6, 16) + torch.randn(16)
    means = head.local_features(tokens).zone_mean
    torch.testing.assert_close(means, means[:, :1].expand_as(means))
    torch.manual_seed(0)
    training = head.train().local_features(tokens).zone_mean
    head.eval()
    assert (training - training[:, :1]).abs().max() > 1e-3


def test_evidence_is_gradient_times_zone_mean(head: DeMambaHead) -> None:
    tokens, vectors = torch.randn(2, 4, 6, 6, 16), torch.randn(2, 16)
    sequences, zone_mean = head.local_features(tokens)
    zone_mean = zone_mean.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(head.classify(zone_mean, vectors).sum(), zone_mean)
    evidence = head.evidence(sequences, vectors)
    zones = evidence.view(2, 4, 3, 2, 3, 2).sum((1, 3, 5)).flatten(1)
    torch.testing.assert_close(zones, (gradient * zone_mean).sum(-1).detach(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("zone_size", [4, 5, 0])
def test_zones_must_divide_the_grid(zone_size: int) -> None:
    with pytest.raises(UserError, match="does not divide the token grid of 6 x 6; use one of"):
        token_order(6, zone_size, 4)


def tiny(**options: Any) -> DeMamba:
    settings = {"backbone": TinyPatch(32, 48, 8), "num_frames": 4, "zone_size": 2, "mamba": MambaOptions(d_state=4), "lr": 3e-3} | options
    model = DeMamba(**settings)
    model.configure_model()
    return model


def test_partial_tuning_leaves_the_backbone_alone(tmp_path: Path) -> None:
    model = tiny(train_backbone=False).train()
    assert not model.backbone.training and model.head.training
    model(torch.randn(2, 4, 3, 48, 48)).sum().backward()
    assert all(p.grad is None for p in model.backbone.parameters()) and all(p.grad is not None for p in model.head.parameters())
    assert [group["name"] for group in model.configure_optimizers()["optimizer"].param_groups] == ["head"]
    full = tiny().train()
    full(torch.randn(2, 4, 3, 48, 48)).sum().backward()
    assert all(p.grad is not None for p in full.parameters())


def toy_clips(task: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """3 x 3 smooth brightness cells. A fake has a checkerboard in one cell, or redraws one cell's brightness every frame."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(count) % 2
    cells = torch.rand(count, 1, 3, 3, generator=generator).expand(-1, 4, -1, -1).clone()
    zi, zj = (torch.randint(0, 3, (count,), generator=generator) for _ in range(2))
    rows = torch.arange(count)
    if task == "temporal":
        redrawn = torch.rand(count, 4, generator=generator)
        cells[rows, :, zi, zj] = torch.where(label[:, None] == 1, redrawn, cells[rows, :, zi, zj])
    video = cells.repeat_interleave(16, 2).repeat_interleave(16, 3)[:, :, None].expand(-1, -1, 3, -1, -1).clone()
    if task == "spatial":
        board = ((torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2 - 1) * 0.15
        for i in torch.nonzero(label).flatten().tolist():
            r, c = int(zi[i]) * 16, int(zj[i]) * 16
            video[i, :, :, r : r + 16, c : c + 16] += board
    return (video + 0.02 * torch.randn(video.shape, generator=generator)) * 2 - 1, label


def test_bf16_autocast_keeps_the_ranking() -> None:
    """Backbone and projections in bf16, scan and last layer in fp32: logits close to fp32's, and as finely graded."""
    from transformers import XCLIPVisionConfig, XCLIPVisionModel

    torch.manual_seed(0)
    config = XCLIPVisionConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128, image_size=32, patch_size=8, num_frames=4
    )
    backbone = XCLIPTokens(XCLIPVisionModel(config)).eval()
    for head in (DeMambaHead(64, 4, 4, 2).eval(), PoolHead(64).eval()):
        video = torch.randn(48, 4, 3, 32, 32)
        with torch.no_grad():
            exact = head(*backbone(video))
            with torch.autocast("cpu", torch.bfloat16):
                tokens, vector = backbone(video)
                rough = head(tokens, vector)
        assert rough.dtype == torch.float32 and len(rough.unique()) == 48
        assert (rough - exact).abs().max() < 0.05 * exact.std(), type(head).__name__
    double = DeMambaHead(64, 4, 4, 2).double()
    assert double(tokens.double(), vector.double()).dtype == torch.float64


def learn(task: str, steps: int, seed: int, precision: torch.dtype = torch.float32, **options: Any) -> float:
    torch.manual_seed(seed)
    model = tiny(**options).train()
    video, label = toy_clips(task, 2048, 10 * seed)
    optimizer = model.configure_optimizers()["optimizer"]
    shuffle = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        picked = torch.randint(0, len(video), (32,), generator=shuffle)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            logits = model(video[picked])
        F.binary_cross_entropy_with_logits(logits, label[picked].float()).backward()
        optimizer.step()
    model.eval()
    video, label = toy_clips(task, 512, 10 * seed + 1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        return ((model(video) > 0) == label.bool()).double().mean().item()


@pytest.mark.slow
def test_learns_what_one_frame_shows() -> None:
    assert learn("spatial", 150, seed=0) >= 0.97


@pytest.mark.slow
def test_learns_in_bf16_too() -> None:
    assert learn("temporal", 500, seed=0, precision=torch.bfloat16) >= 0.90


@pytest.mark.slow
def test_learns_what_only_time_shows_and_the_official_grouping_does_not() -> None:
    assert learn("temporal", 500, seed=0) >= 0.90
    assert learn("temporal", 500, seed=0, zone_order="official") <= 0.6


def test_a_backbone_of_ones_own() -> None:
    """What docs/backbones.md promises: two classes, nothing to register."""

    class Means(VideoBackbone):
        width, grid = 3, 2

        def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
            tokens = F.adaptive_avg_pool2d(video.flatten(0, 1), 2).permute(0, 2, 3, 1).unflatten(0, video.shape[:2])
            return tokens, tokens.mean((1, 2, 3))

    class Own(Backbone):
        def build(self) -> VideoBackbone:
            return Means()

    assert tiny(backbone=Own(), zone_size=1)(torch.randn(2, 4, 3, 8, 8)).shape == (2,)
