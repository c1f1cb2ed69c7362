"""Parts of a pipeline folder: networks of a given size, wider inputs for inpainting, and files that tiny models share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from genlab.files import write_json
from genlab.weights import TINY_MODELS

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


def fresh_unet(
    channels: list[int],
    layers: int,
    heads: int,
    groups: int,
    latent_channels: int,
    extra_channels: int,
    text_width: int,
    size: int,
    plain_levels: int = 0,
) -> UNet2DConditionModel:
    """A UNet with attention to text on every level but the first ``plain_levels``.

    Args:
        channels: Width of each level, from the latents' own size down; each but the last one halves it.
        layers: Residual blocks with attention per level on the way down; one more on the way up.
        heads: Of each attention.
        groups: Of the group norms; divides all widths.
        latent_channels: In and out.
        extra_channels: In only: mask and masked picture, for inpainting.
        text_width: D of the text states.
        size: Side of the latents, which pipelines take their default from.
    """
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=size,
        in_channels=latent_channels + extra_channels,
        out_channels=latent_channels,
        block_out_channels=tuple(channels),
        down_block_types=("DownBlock2D",) * plain_levels + ("CrossAttnDownBlock2D",) * (len(channels) - plain_levels),
        up_block_types=("CrossAttnUpBlock2D",) * (len(channels) - plain_levels) + ("UpBlock2D",) * plain_levels,
        layers_per_block=layers,
        attention_head_dim=heads,  # the number of heads, whatever diffusers calls it
        norm_num_groups=groups,
        cross_attention_dim=text_width,
    )


def fresh_text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModel:
    """CLIP's text tower for a tokenizer's vocabulary and length, with heads of 32 channels."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(width // 32, 1),
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def widen_input(unet: UNet2DConditionModel, extra: int) -> UNet2DConditionModel:
    """The network with ``extra`` further input channels, which it ignores until it has learnt to use them."""
    from diffusers import UNet2DConditionModel

    inputs = unet.config.in_channels
    wider = UNet2DConditionModel.from_config(unet.config, in_channels=inputs + extra)
    state = unet.state_dict()
    weight = torch.zeros_like(wider.conv_in.weight)
    weight[:, :inputs] = state["conv_in.weight"]
    wider.load_state_dict(state | {"conv_in.weight": weight})
    return wider


def share_parts(folder: Path, vae: str, text_encoder: str | None) -> None:
    """Takes files out of a pipeline folder that tiny models ship anyway, and says in ``parts.json`` where they are."""
    parts: dict[str, dict[str, str]] = {}
    if vae.startswith("tiny:"):
        for file in (folder / "vae").iterdir():
            parts[f"vae/{file.name}"] = {"from": f"{vae.removeprefix('tiny:')}/vae/{file.name}"}
    if text_encoder is not None and text_encoder.startswith("tiny:"):
        source = text_encoder.removeprefix("tiny:")
        pipeline = (TINY_MODELS / source / "text_encoder").is_dir()  # else a CLIP, both towers in one file
        for file in (folder / "tokenizer").iterdir():
            parts[f"tokenizer/{file.name}"] = {"from": f"{source}/tokenizer/{file.name}" if pipeline else f"{source}/{file.name}"}
        tower = {"from": f"{source}/text_encoder/model.safetensors"}
        if not pipeline:
            tower = {"from": f"{source}/model.safetensors", "prefix": "text_model."}
        parts["text_encoder/model.safetensors"] = tower
    for name in parts:
        (folder / name).unlink()
    if parts:
        write_json(folder / "parts.json", parts)
