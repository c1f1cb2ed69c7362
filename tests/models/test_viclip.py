"""ViCLIP: reference embeddings, the order of its tokens, other numbers of frames, tiny settings, and official files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from genlab.errors import UserError
from genlab.models.viclip import ViCLIP, ViCLIPConfig, attention, load_viclip
from tests.golden_files import assert_close, golden_files, load_golden

TINY = ViCLIPConfig(
    image_size=16, patch_size=8, num_frames=4, vision_width=128, vision_layers=2, vision_heads=2, text_width=64, text_layers=2,
    text_heads=1, context_length=8, vocab_size=50, embed_dim=24,
)  # fmt: skip


def tiny(config: ViCLIPConfig = TINY) -> ViCLIP:
    torch.manual_seed(0)
    model = ViCLIP(config).eval()
    torch.nn.init.normal_(model.vision_encoder.temporal_positional_embedding, std=0.1)
    return model


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("msta", "model"))
def test_embeddings_of_the_reference(path: Path) -> None:
    sidecar, tensors = load_golden(path)
    sizes, tol = sidecar["config"], sidecar["tol"]
    model = ViCLIP(
        ViCLIPConfig(
            image_size=sizes["image"],
            patch_size=sizes["patch"],
            num_frames=sizes["num_frames"],
            vision_width=sizes["vision_width"],
            vision_layers=sizes["vision_layers"],
            vision_heads=sizes["vision_heads"],
            text_width=sizes["text_width"],
            text_layers=sizes["text_layers"],
            text_heads=sizes["text_heads"],
            context_length=sizes["context"],
            vocab_size=sizes["vocab"],
            embed_dim=sizes["embed_dim"],
        )
    )
    own = {key: value for key, value in tensors.items() if key.startswith(("vision_encoder.", "text_encoder.")) or key == "temp"}
    model.load_state_dict(own)
    assert_close(model.encode_video(tensors["in.video"]), tensors["out.video_embed_frozen"], tol, "video")
    assert_close(model.encode_text(tensors["in.class_tokens"]), tensors["out.text_embed_frozen"], tol, "text")
    for kind in ("spatial", "temporal"):
        sentences = F.normalize(model.encode_text(tensors[f"in.{kind}_tokens"]), dim=-1)
        means = sentences.unflatten(0, (sizes["classes"], sizes["n_desc"])).mean(1)
        assert_close(means, tensors[f"out.{kind}_mean"], tol, f"{kind} descriptions")


def test_a_token_is_one_patch_at_one_time() -> None:
    """Token 1 + n * T + t: changing patch 2 of frame 1 changes that token alone."""
    model = tiny()
    video = torch.randn(1, 4, 3, 16, 16)
    other = video.clone()
    other[0, 1, :, 8:, :8] += 1
    changed = (model.vision_encoder.embed(other) - model.vision_encoder.embed(video)).abs().sum(-1)[0] > 1e-4
    assert changed.nonzero().flatten().tolist() == [1 + 2 * 4 + 1]


def test_walking_the_blocks_is_the_forward_pass() -> None:
    model, video, tokens = tiny(), torch.randn(2, 4, 3, 16, 16), torch.tensor([[48, 5, 49, 0, 0, 0, 0, 0], [48, 7, 9, 8, 49, 0, 0, 0]])
    seen, said = model.vision_encoder.embed(video), model.text_encoder.embed(tokens)
    for block in model.vision_encoder.blocks:
        seen = block(seen)
    for block in model.text_encoder.blocks:
        said = block(said)
    v, w = model.vision_encoder.project(seen), model.text_encoder.project(said, tokens)
    assert torch.equal(model(video, tokens), model.logits(v, w)) and model.logits(v, w).abs().max() <= 1 / 0.01


def test_padding_and_cutting_change_no_text() -> None:
    """Padding with zeros, padding with the end token as Hugging Face does, or none at all."""
    model = tiny()
    zeros, ends, none = ([48, 7, 9, 49, *rest] for rest in ([0] * 4, [49] * 4, []))
    embeds = [model.encode_text(torch.tensor([text])) for text in (zeros, ends, none)]
    assert torch.allclose(embeds[0], embeds[1], atol=1e-6) and torch.allclose(embeds[0], embeds[2], atol=1e-6)


def test_other_numbers_of_frames() -> None:
    tower = tiny().vision_encoder
    table = tower.temporal_positional_embedding
    assert torch.equal(tower.temporal_positions(4), table) and torch.equal(tower.temporal_positions(1), table.mean(1, keepdim=True))
    double = tower.temporal_positions(8)
    assert torch.allclose(double[0, 1], 0.75 * table[0, 0] + 0.25 * table[0, 1]) and torch.equal(double[0, 0], table[0, 0])
    for frames in (1, 2, 8):
        assert tower(torch.randn(1, frames, 3, 16, 16)).shape == (1, 24)


def test_only_positions_tell_the_order_of_frames() -> None:
    model, video = tiny(), torch.randn(1, 4, 3, 16, 16)
    back = video.flip(1)
    assert not torch.allclose(model.encode_video(back), model.encode_video(video), atol=1e-3)
    torch.nn.init.zeros_(model.vision_encoder.temporal_positional_embedding)
    assert torch.allclose(model.encode_video(back), model.encode_video(video), atol=1e-5)


def test_tubelets_and_differences_show_motion_in_a_token() -> None:
    config = replace(TINY, tubelet=2, frame_differences=True)
    model = tiny(config)
    still = torch.randn(1, 1, 3, 16, 16).expand(1, 4, 3, 16, 16)
    assert model.vision_encoder.embed(still).shape == (1, 1 + 4 * 2, 128)
    seen: list[torch.Tensor] = []
    model.vision_encoder.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    moving = still + torch.arange(4.0).view(1, 4, 1, 1, 1)
    model.encode_video(moving)
    assert seen[0].shape == (1, 6, 4, 16, 16)
    assert torch.equal(seen[0][:, 3:].amax((0, 1, 3, 4)).round(), torch.tensor([0.0, 4, 4, 4]))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_written_out_is_the_fused_one(causal: bool) -> None:
    q, k, v = (torch.randn(2, 3, 7, 16, requires_grad=True) for _ in range(3))
    fused = attention(q, k, v, causal)
    written = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), causal)
    assert torch.allclose(written.float(), fused, atol=0.03)


def test_official_names_and_sizes_load_without_our_config(tmp_path: Path) -> None:
    """As the hub has it (64 channels a head, a config of other keys, half precision), and as the .pth release nests it."""
    model = tiny(replace(TINY, vision_heads=2, text_heads=1))
    half = {key: value.half() for key, value in model.state_dict().items()}
    save_file(half, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "tokenizer_path": "./bpe.txt.gz"}))
    torch.save({"model": half}, tmp_path / "ViCLIP.pth")
    for source in (tmp_path, tmp_path / "ViCLIP.pth"):
        loaded = load_viclip(str(source))
        assert loaded.config == model.config and not loaded.training
        assert all(torch.equal(value, half[key].float()) for key, value in loaded.state_dict().items())


def test_saved_models_come_back(tmp_path: Path) -> None:
    config = replace(TINY, vision_heads=8, text_heads=4, tubelet=2, frame_differences=True)
    model = tiny(config)
    model.save_pretrained(tmp_path)
    again = load_viclip(str(tmp_path))
    assert again.config == config and all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters()))


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    model = tiny()
    state = model.state_dict()
    with pytest.raises(UserError, match=r"Set data\.image_size to 16"):
        model.encode_video(torch.zeros(1, 4, 3, 32, 32))
    with pytest.raises(UserError, match="reads 8 tokens, a text has 9"):
        model.encode_text(torch.zeros(1, 9, dtype=torch.long))
    with pytest.raises(UserError, match="image_size 16 must be a multiple of patch_size 5"):
        replace(TINY, patch_size=5)
    del state["text_encoder.ln_final.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"parameters are missing \(text_encoder.ln_final.bias"):
        load_viclip(str(tmp_path))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="does not hold a ViCLIP"):
        load_viclip(str(tmp_path))
    with pytest.raises(UserError, match="is not on this machine"):
        load_viclip("OpenGVLab/ViCLIP-B-16-hf")
