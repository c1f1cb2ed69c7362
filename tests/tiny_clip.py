"""A small CLIP with random weights and a tokenizer, in a folder as transformers saves it."""

from __future__ import annotations

from pathlib import Path

WORDS = "a photo of a red blue green yellow square circle star cross ring texture . a centered satellite type pet food flower person doing"


def tiny_clip(folder: Path, image_size: int = 64, max_length: int = 40, seed: int = 0) -> Path:
    """Writes it: D 16, W 16, two blocks in the text tower, one in the image tower."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from genlab.methods.pretraining.tokenizer import learn_tokenizer

    torch.manual_seed(seed)
    tokenizer = learn_tokenizer(WORDS.split(), 700, max_length)
    part = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "hidden_act": "quick_gelu"}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = part | ids | {"num_hidden_layers": 2, "max_position_embeddings": max_length, "vocab_size": len(tokenizer)}
    vision = part | {"num_hidden_layers": 1, "image_size": image_size, "patch_size": 16}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16, logit_scale_init_value=4.605170186))
    model.text_model.embeddings.token_embedding.weight.data.normal_(std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
