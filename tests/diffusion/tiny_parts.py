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
