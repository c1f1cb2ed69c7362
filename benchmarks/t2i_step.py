"""A step of DreamBooth with kept latents and texts, against one that encodes pictures and prompts anew as diffusers' example does.

    python benchmarks/t2i_step.py     # Stable Diffusion 1.5's shapes, random weights, 256 pixels, batch 1 + 1; 8 GB, a few minutes

Both train the same LoRA (rank 4) with AdamW on the same pictures, in turns. The ratio is of processor time, since other work may share the
cores; with LoRA both need little memory, and the whole network (12 GB with AdamW) would take longer a step and make the ratio smaller.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from genlab.diffusion.components import encode_image
from genlab.diffusion.lora import attach_lora
from genlab.diffusion.losses import prior_preservation_loss
from genlab.diffusion.schedule import add_noise, scaled_linear, training_target

WANTED = 1.3
SIDE, TOKENS = 256, 77


def networks() -> tuple[Any, Any, Any]:
    """UNet with LoRA, autoencoder and text tower in the shapes of Stable Diffusion 1.5."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=SIDE // 8)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, sample_size=SIDE,
    )  # fmt: skip
    shape = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu"}
    text = CLIPTextModel(CLIPTextConfig(**shape, projection_dim=768))
    vae.decoder = None  # type: ignore[assignment]  # nothing is decoded
    for network in (unet, vae, text):
        network.requires_grad_(False).eval()
    attach_lora(unet, 4)
    return unet, vae, text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="of each, after one to warm up")
    steps = parser.parse_args().steps
    unet, vae, text = networks()
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], 1e-4)
    alphas = scaled_linear()
    pictures, ids = torch.rand(2, 3, SIDE, SIDE), torch.randint(0, 49000, (2, TOKENS))
    kept = encode_image(vae, pictures)
    with torch.no_grad():
        kept_states = text(ids)[0]

    def encoded() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            latents = vae.encode(2 * pictures - 1).latent_dist.sample() * vae.config.scaling_factor
            return latents, text(ids)[0]

    def from_memory() -> tuple[Tensor, Tensor]:
        mean, std = kept
        return mean + std * torch.randn_like(mean), kept_states

    def step(inputs: Callable[[], tuple[Tensor, Tensor]]) -> float:
        began = time.process_time()
        latents, states = inputs()
        noise, at = torch.randn_like(latents), torch.randint(0, 1000, (2,))
        output = unet(add_noise(latents, noise, at, alphas), at, states).sample
        loss = prior_preservation_loss(output, training_target(latents, noise, at, alphas, "epsilon"), 1.0)[0]
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in unet.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - began

    taken: dict[str, list[float]] = {"encoding": [], "kept": []}
    for number in range(steps + 1):
        for name, inputs in (("encoding", encoded), ("kept", from_memory)):
            seconds = step(inputs)
            if number:  # the first one warms up
                taken[name].append(seconds)
                print(f"{name}: {seconds:.1f} s", flush=True)
    ratios = [a / b for a, b in zip(taken["encoding"], taken["kept"])]
    means = {name: statistics.fmean(values) for name, values in taken.items()}
    ratio = means["encoding"] / means["kept"]
    print(f"a step that encodes {means['encoding']:.1f} s, one with kept inputs {means['kept']:.1f} s of processor time")
    print(f"{ratio:.2f} x (pairs {min(ratios):.2f} to {max(ratios):.2f}), wanted {WANTED}: {'met' if ratio >= WANTED else 'MISSED'}")


if __name__ == "__main__":
    main()
