"""Random parts of a pipeline in the real classes, small enough for a test."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from genlab.methods.pretraining.autoencoder import fresh_autoencoder

LENGTH = 8  # tokens of a prompt
CHANNELS = 4  # of the latents, which have half the pictures' side


def write_parts(folder: Path, seed: int = 0) -> Path:
    """``vae/``, ``text_encoder/`` and ``tokenizer/`` of a pipeline; words are tokens: red, blue, circle, star."""
    torch.manual_seed(seed)
    words = ["red", "blue", "circle", "star"]
    letters = sorted({letter for word in words for letter in word})
    vocabulary = {token: i for i, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters, *(f"{each}</w>" for each in letters)])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=LENGTH)
    tokenizer.save_pretrained(folder / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    vae = fresh_autoencoder([8, 8], CHANNELS, 1)
    vae.quant_conv.bias.data[CHANNELS:] = -20  # latents without noise: where a pipeline draws them, it draws what we take
    vae.save_pretrained(folder / "vae")
    return folder


def write_inpainting_pipeline(folder: Path, seed: int = 0) -> Path:
    """A whole pipeline of ``StableDiffusionInpaintPipeline``, whose UNet sees latents, hole and what is known (9 channels)."""
    from diffusers import AutoencoderKL, StableDiffusionInpaintPipeline, UNet2DConditionModel

    from genlab.diffusion.components import pipeline_options, stable_diffusion_scheduler

    write_parts(folder, seed)
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=2 * CHANNELS + 1, out_channels=CHANNELS, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=2,
    )  # fmt: skip
    pipeline = StableDiffusionInpaintPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"), text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"), unet=unet, scheduler=stable_diffusion_scheduler("epsilon"),
        **pipeline_options(),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder
