"""What tuning shares: LoRA files that diffusers reads, prior pictures that go on, prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genlab.diffusion.components import encode_text, pipeline_options, stable_diffusion_scheduler
from genlab.diffusion.export import DIFFUSERS, KOHYA, save_diffusers, save_kohya
from genlab.diffusion.lora import attach_lora, load_lora_state, lora_state
from genlab.diffusion.prior_images import fill_folder, missing_pictures, picture_name
from genlab.diffusion.prompts import render
from genlab.diffusion.tokens import PlaceholderTokens
from genlab.errors import UserError
from tests.diffusion.tiny_parts import CHANNELS, write_parts


def unet() -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=CHANNELS, out_channels=CHANNELS, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16,
        attention_head_dim=2, norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def tuned(alpha: float) -> Any:
    network = unet()
    attach_lora(network, 3, alpha)
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


@pytest.mark.parametrize("alpha", [3.0, 6.0])
def test_diffusers_loads_both_files(tmp_path: Path, alpha: float) -> None:
    """Also where the update is scaled."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from transformers import CLIPTextModel, CLIPTokenizer

    network = tuned(alpha)
    save_diffusers(tmp_path, network, {"base": "tiny"})
    save_kohya(tmp_path, network, {"base": "tiny"})
    parts = write_parts(tmp_path / "parts")
    x, text = torch.randn(2, CHANNELS, 8, 8), torch.randn(2, 8, 16)
    with torch.no_grad():
        expected, plain = network(x, 5, text).sample, unet()(x, 5, text).sample
    assert not torch.allclose(expected, plain, atol=1e-3)
    for file in (DIFFUSERS, KOHYA):
        pipe = StableDiffusionPipeline(
            vae=AutoencoderKL.from_pretrained(parts / "vae"), text_encoder=CLIPTextModel.from_pretrained(parts / "text_encoder"),
            tokenizer=CLIPTokenizer.from_pretrained(parts / "tokenizer"), unet=unet(), scheduler=stable_diffusion_scheduler("epsilon"),
            **pipeline_options(),
        )  # fmt: skip
        pipe.load_lora_weights(str(tmp_path), weight_name=file)
        with torch.no_grad():
            assert torch.allclose(pipe.unet(x, 5, text).sample, expected, atol=1e-5), file


def test_a_state_goes_into_another_network_or_is_refused() -> None:
    one, other = tuned(3.0), unet()
    attach_lora(other, 3)
    load_lora_state(other, lora_state(one))
    assert all(torch.equal(a, b) for a, b in zip(lora_state(one).values(), lora_state(other).values()))
    wrong = unet()
    attach_lora(wrong, 2)
    with pytest.raises(UserError, match="do not fit"):
        load_lora_state(wrong, lora_state(one))


def test_prior_pictures_are_drawn_once_by_whoever_is_asked(tmp_path: Path) -> None:
    asked: list[int] = []

    def draw(numbers: Sequence[int]) -> Tensor:
        asked.extend(numbers)
        return torch.stack([torch.full((3, 4, 4), number / 10) for number in numbers])

    assert fill_folder(tmp_path / "x", 5, draw, 2, rank=1, world_size=2) == 2 and asked == [2, 3]
    assert missing_pictures(tmp_path / "x", 5) == [0, 1, 4]
    (tmp_path / "x" / picture_name(3)).unlink()
    (tmp_path / "x" / picture_name(2)).write_bytes(b"being read")
    asked.clear()
    assert fill_folder(tmp_path / "x", 6, draw, 2) == 5
    assert asked == [0, 1, 2, 3, 4, 5], "a picture is drawn in the same company, whatever is missing"
    assert (tmp_path / "x" / picture_name(2)).read_bytes() == b"being read", "what is there stays"
    assert fill_folder(tmp_path / "x", 6, draw, 2) == 0 and len(list((tmp_path / "x").iterdir())) == 6


def test_new_words_learn_alone_and_load_into_diffusers(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from transformers import CLIPTextModel, CLIPTokenizer

    parts = write_parts(tmp_path / "parts")
    tokenizer, tower = CLIPTokenizer.from_pretrained(parts / "tokenizer"), CLIPTextModel.from_pretrained(parts / "text_encoder")
    tower.requires_grad_(False).eval()
    table, plain = tower.get_input_embeddings().weight.clone(), encode_text(tokenizer, tower, ["red star"])
    words = PlaceholderTokens(tokenizer, tower, "<it>", 2, "star")
    assert torch.equal(encode_text(tokenizer, tower, ["red star"]), plain), "other prompts stay as they were"
    states = encode_text(tokenizer, tower, [words.spelled("red <it>")])
    states.square().sum().backward()
    assert words.embeds.grad is not None and (words.embeds.grad.abs().sum(1) > 0).all()
    torch.nn.init.normal_(words.embeds)
    expected = encode_text(tokenizer, tower, [words.spelled("red <it>")]).detach()
    assert torch.equal(tower.get_input_embeddings().weight, table)
    words.export(tmp_path / "it.safetensors")
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(parts / "vae"), text_encoder=CLIPTextModel.from_pretrained(parts / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(parts / "tokenizer"), unet=unet(), scheduler=stable_diffusion_scheduler("epsilon"),
        **pipeline_options(),
    )  # fmt: skip
    pipe.load_textual_inversion(str(tmp_path / "it.safetensors"))
    prompt = pipe.maybe_convert_prompt("red <it>", pipe.tokenizer)
    assert torch.allclose(encode_text(pipe.tokenizer, pipe.text_encoder, [prompt]), expected, atol=1e-5)
    there = next(word for word in tokenizer.get_vocab() if word.endswith("</w>") and word[:-4].isalpha()).removesuffix("</w>")
    for word in ("<it>", there, there.upper()):  # one of its own, and one that prompts mean something by
        with pytest.raises(UserError, match="is a token of the text tower already"):
            PlaceholderTokens(tokenizer, tower, word)


def test_prompts() -> None:
    assert render("a {V} {N}", V="sks", N="face") == "a sks face"
    with pytest.raises(UserError, match=r"use \{V\}, \{N\}"):
        render("a {what}", V="sks", N="face")
