"""Both towers of CLIP: three libraries' networks give the same features, and shared prefixes and cut prompts change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genlab.errors import MissingPath, UserError
from genlab.models.clip import ClipBackbone
from genlab.models.clip_loading import OpenClip, OpenClipWords, TransformersClip, load_clip, openai_to_transformers
from genlab.models.prompts import name_tokens

TEXTS = ["a photo of a yellow lady's slipper.", "forest.", "2012 Acura RL Sedan"]


def open_clip_model(vision: dict[str, Any], quick: bool = True) -> Any:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(0)
    text = CLIPTextCfg(context_length=77, vocab_size=49408, width=64, heads=1, layers=2)
    model = CLIP(embed_dim=24, vision_cfg=CLIPVisionCfg(**vision), text_cfg=text, quick_gelu=quick).eval()
    torch.nn.init.normal_(model.token_embedding.weight, std=0.5)
    return model.half().float()  # as OpenAI's files, which hold half precision


VIT = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16}
RESNET = {"image_size": 64, "layers": (1, 1, 1, 1), "width": 64}


def transformers_twin(model: Any) -> TransformersClip:
    from transformers import CLIPConfig, CLIPModel

    shared = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1, "hidden_act": "quick_gelu"}
    text, vision = shared | {"bos_token_id": 49406, "eos_token_id": 49407}, shared | {"image_size": 32, "patch_size": 16}
    twin = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    missing, unexpected = twin.load_state_dict(openai_to_transformers(model.state_dict()), strict=False)
    assert not unexpected and all("position_ids" in key for key in missing)
    return TransformersClip(twin.eval(), OpenClipWords())


@pytest.fixture(scope="module")
def backbones() -> dict[str, ClipBackbone]:
    vit = open_clip_model(VIT)
    return {
        "open_clip": OpenClip(vit, OpenClipWords()),
        "transformers": transformers_twin(vit),
        "resnet": OpenClip(open_clip_model(RESNET), OpenClipWords()),
    }


@torch.no_grad()
def test_libraries_agree(backbones: dict[str, ClipBackbone]) -> None:
    ours, theirs = backbones["open_clip"], backbones["transformers"]
    ids, pixels = ours.tokenize(TEXTS), torch.randn(2, 3, 32, 32)
    assert (ours.width, ours.text_width, ours.context_length, ours.image_size) == (24, 64, 77, 32)
    assert (theirs.width, theirs.text_width, theirs.context_length, theirs.image_size) == (24, 64, 77, 32)
    for name in ("encode_image", "encode_text"):
        given: Tensor = pixels if name == "encode_image" else ids
        torch.testing.assert_close(getattr(ours, name)(given), getattr(theirs, name)(given), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.encode_text(ids), ours.model.encode_text(torch.nn.functional.pad(ids, (0, 77 - ids.shape[1]))))
    assert backbones["resnet"].encode_image(torch.randn(2, 3, 64, 64)).shape == (2, 24)


@pytest.mark.parametrize("name", ["open_clip", "transformers", "resnet"])
@torch.no_grad()
def test_cutting_and_sharing_change_nothing(backbones: dict[str, ClipBackbone], name: str) -> None:
    """The whole 77 tokens in one pass, and a shared prefix with chunks of two prompts."""
    clip = backbones[name]
    names, ctx = name_tokens(clip, ["cat", "yellow lady's slipper", "dog", "sea or lake", "owl"]), torch.randn(2, 16, 64)
    for ends in ("0", "the end token"):
        filled = 0 if ends == "0" else clip.words.end
        fill = clip.embed_tokens(torch.full((5, 77), filled))
        for g in range(2):
            whole = torch.cat([names.start.expand(5, 1, -1), ctx[g].expand(5, -1, -1), names.embeds, fill], 1)[:, :77].clone()
            for row, end in zip(whole, (names.end + 17).tolist()):
                row[end + 1 :] = fill[0, 0]
            plain = clip.encode_prompts(whole, names.end + 17)[0]
            uncut = clip.encode_prompts(torch.cat([whole, whole[:1]]), torch.cat([names.end + 17, torch.tensor([76])]))[0, :5]
            torch.testing.assert_close(uncut, plain, atol=1e-5, rtol=0)
            prefix = torch.cat([names.start.expand(2, 1, -1), ctx], 1)
            shared = clip.encode_prompts(names.embeds, names.end, prefix, rows_at_once=4)
            torch.testing.assert_close(shared[g], plain, atol=1e-5, rtol=0)


def test_chunks_have_the_gradients_of_the_whole(backbones: dict[str, ClipBackbone]) -> None:
    clip, gradients = backbones["transformers"], []
    names = name_tokens(clip, ["cat", "dog", "owl", "seal"])
    for rows in (256, 1):
        ctx = torch.full((4, 64), 0.1, requires_grad=True)
        prefix = torch.cat([names.start, ctx])[None]
        clip.encode_prompts(names.embeds, names.end, prefix, rows_at_once=rows).square().sum().backward()
        gradients.append(ctx.grad)
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


def test_long_texts(backbones: dict[str, ClipBackbone]) -> None:
    clip = backbones["open_clip"]
    ids = clip.tokenize(["word " * 100])
    assert ids.shape == (1, 77) and ids[0, -1] == clip.words.end
    with pytest.raises(UserError, match="has 100 tokens; the text tower reads 75"):
        clip.tokenize(["word " * 100], truncate=False)


def test_openai_files(backbones: dict[str, ClipBackbone], tmp_path: Path) -> None:
    """A state dict with OpenAI's names, of a ViT and of a ResNet; a file of something else."""
    for name, size in (("open_clip", 32), ("resnet", 64)):
        clip = backbones[name]
        torch.save({key: value for key, value in clip.model.state_dict().items() if key != "attn_mask"}, tmp_path / f"{name}.pt")
        loaded, pixels = load_clip(f"openai:{tmp_path / name}.pt"), torch.randn(1, 3, size, size)
        with torch.no_grad():
            torch.testing.assert_close(loaded.encode_image(pixels), clip.encode_image(pixels), atol=1e-5, rtol=0)
            torch.testing.assert_close(
                loaded.encode_text(loaded.tokenize(TEXTS)), clip.encode_text(clip.tokenize(TEXTS)), atol=1e-5, rtol=0
            )
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="is no CLIP of OpenAI's"):
        load_clip(f"openai:{tmp_path / 'other.pt'}")
    with pytest.raises(MissingPath, match="does not exist"):
        load_clip("openai:nowhere.pt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:RN50/openai", "trained with QuickGELU, RN50 has GELU.*open_clip:RN50-quickgelu/openai"),
        ("open_clip:ViT-B-16/openai", "open_clip:ViT-B-16-quickgelu/openai"),
        ("open_clip:RN5O-quickgelu/openai", "did you mean 'RN50-quickgelu'"),
        ("open_clip:RN50-quickgelu", "has no weights; write"),
        ("open_clip:RN50-quickgelu/laion", "no weights 'laion' for RN50-quickgelu; there are"),
        ("open_clip:RN50-quickgelu/openai", r"timm/resnet50_clip.openai\) is not on this machine.*GENLAB_DOWNLOAD=1"),
    ],
)
def test_wrong_names(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("GENLAB_DOWNLOAD", raising=False)
    with pytest.raises(UserError, match=message):
        load_clip(name)


def test_activations_must_fit(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "hidden_act": "gelu"}
    vision = small | {"image_size": 16, "patch_size": 8}
    folder = tmp_path / "openai" / "clip-vit-base-patch16"
    CLIPModel(CLIPConfig(text_config=small, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    plain = load_clip(str(folder))
    with pytest.raises(UserError, match="holds no tokenizer"):
        plain.tokenize(["cat"])
    CLIPModel(CLIPConfig(text_config=small, vision_config=vision | {"hidden_act": "quick_gelu"}, projection_dim=8)).save_pretrained(folder)
    with pytest.raises(UserError, match="text tower has gelu, its image tower quick_gelu"):
        load_clip(str(folder))
