"""DomainGallery's two stages learn what they are for, on the reference's tiny network (some tens of seconds of a core)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from genlab.diffusion.denoising import Denoising
from genlab.diffusion.lora import attach_lora, lora_disabled
from genlab.diffusion.schedule import add_noise, scaled_linear
from genlab.methods.domaingallery.losses import Texts, erasure_losses, finetuning_losses, mse
from tests.golden_files import golden_files, load_golden

pytestmark = [pytest.mark.slow, pytest.mark.golden]
PATHS = golden_files("domaingallery", "cases")


def fresh(path: Path) -> tuple[Denoising, Texts, torch.optim.Optimizer]:
    from diffusers import UNet2DConditionModel

    meta, given = load_golden(path)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**meta["config"]["unet"])
    unet.load_state_dict(load_file(path.with_name("tiny_unet.safetensors")))
    attach_lora(unet, meta["config"]["rank"])
    texts = Texts(*(given[f"emb_{name}"][0] for name in ("tgt", "src", "uncond")))
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], 1e-2, weight_decay=1e-2)
    return Denoising(unet, scaled_linear(), "epsilon"), texts, optimizer


def step(model: Denoising, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.unet.parameters() if p.requires_grad], 1.0)
    optimizer.step()


def noised(model: Denoising, clean: Tensor, timestep: int) -> tuple[Tensor, Tensor]:
    noise = torch.randn_like(clean)
    return add_noise(clean, noise, torch.full((len(clean),), timestep), model.alphas), noise


def base_of(model: Denoising) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.unet.state_dict().items() if "lora_" not in name}


@pytest.mark.parametrize("path", PATHS)
def test_erasure_makes_the_identifier_mean_nothing(path: Path) -> None:
    model, texts, optimizer = fresh(path)
    before, erase = base_of(model), []
    for _ in range(200):
        losses = erasure_losses(model, *noised(model, 0.9 * torch.randn(4, 4, 8, 8), t := int(torch.randint(1000, ()))), t, texts)
        erase.append(float(losses["erase"].detach()))
        step(model, optimizer, losses["prior"] + 10 * losses["disen"] + 10 * losses["erase"])
    first, last = sum(erase[:10]) / 10, sum(erase[-20:]) / 20
    assert last <= 0.1 * first, f"L_erase {first:.4f} -> {last:.4f}"
    after = base_of(model)
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "the base stays bit for bit"


@pytest.mark.parametrize("path", PATHS)
def test_finetuning_learns_the_targets_and_disentanglement_keeps_the_rest(path: Path) -> None:
    shift = torch.tensor([2.0, -2.0, 1.0, -1.0])[:, None, None]
    found: dict[float, tuple[float, float]] = {}
    for weight in (10.0, 0.0):
        model, texts, optimizer = fresh(path)
        targets = 0.3 * torch.randn(10, 4, 8, 8) + shift
        probes = [(t, *noised(model, targets[:4], t)) for t in (100, 300, 500, 700, 900)]

        def errors(model: Denoising = model, probes: Any = probes, texts: Texts = texts) -> tuple[float, float]:
            with torch.no_grad():
                target = [mse(model(x, t, texts.target), noise) for t, x, noise in probes]
                tuned = [model(x, t, texts.source) for t, x, _ in probes]
                with lora_disabled(model.unet):
                    leak = [mse(each, model(x, t, texts.source)) for each, (t, x, _) in zip(tuned, probes)]
            return float(torch.stack(target).mean()), float(torch.stack(leak).mean())

        initial = errors()[0]
        for _ in range(150):
            t = int(torch.randint(1000, ()))
            target, source = noised(model, targets[torch.randperm(10)[:4]], t), noised(model, 0.9 * torch.randn(4, 4, 8, 8), t)
            losses = finetuning_losses(model, target, source, t, texts, disentangle=weight > 0)
            step(model, optimizer, losses["target"] + losses["prior"] + weight * losses.get("disen", 0))
        target_error, leak = errors()
        found[weight] = (target_error / initial, leak)
    assert found[10.0][0] <= 0.85 and found[10.0][1] <= 0.02, found
    assert found[0.0][1] > 0.1, found
