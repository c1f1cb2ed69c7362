"""DomainGallery's losses (arXiv 2411.04571, Eqs. 1 to 5), of noised latents; notation as in the method's file."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.diffusion.denoising import Denoising, denoised
from genlab.diffusion.features import unet_encoder_features
from genlab.diffusion.lora import lora_disabled
from genlab.diffusion.losses import as_fine
from genlab.losses.similarity_consistency import Direction, Reduction, similarity_consistency


class Texts(NamedTuple):
    """States (L, D) of the prompts: target "a V N", source "a N", and the empty one."""

    target: Tensor
    source: Tensor
    empty: Tensor


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over all elements, in fp32 or finer."""
    return F.mse_loss(as_fine(output), as_fine(target))


def erasure_losses(model: Denoising, noised: Tensor, target: Tensor, timestep: int, texts: Texts) -> dict[str, Tensor]:
    """L_prior, L_disen and L_erase of noised source latents (Eqs. 2, 3, 5).

    Args:
        noised: (B, C, h, w).
        target: y, likewise.
    """
    source = model(noised, timestep, texts.source)
    turned = model(noised, timestep, texts.target)
    return {
        "prior": mse(source, target),
        "disen": disentanglement(model, source, noised, timestep, texts),
        "erase": mse(turned, source.detach()),
    }


def disentanglement(model: Denoising, source: Tensor, noised: Tensor, timestep: int, texts: Texts) -> Tensor:
    """L_disen: under the source prompt the network stays what it was (Eq. 3)."""
    with torch.no_grad(), lora_disabled(model.unet):
        plain = model(noised, timestep, texts.source)
    return mse(source, plain)


class Similarity(NamedTuple):
    """Settings of L_sim, see :class:`DomainGallery`."""

    steps: int = 5
    guidance: float = 1.0
    reduction: Reduction = "mean"
    direction: Direction = "source"


def finetuning_losses(
    model: Denoising,
    target: tuple[Tensor, Tensor],
    source: tuple[Tensor, Tensor],
    timestep: int,
    texts: Texts,
    disentangle: bool = True,
    similarity: Similarity | None = None,
) -> dict[str, Tensor]:
    """L_target, L_prior, L_disen and L_sim (Eqs. 1 to 4).

    Args:
        target: Noised latents of the domain's pictures (B, C, h, w), and what is to be predicted of them.
        source: Likewise of the plain model's pictures.
        disentangle: With L_disen.
        similarity: ``None`` leaves L_sim out.
    """
    both = torch.cat([target[0], source[0]])
    states = torch.cat([each.expand(len(noised), -1, -1) for each, (noised, _) in ((texts.target, target), (texts.source, source))])
    mine, plain = model(both, timestep, states).split([len(target[0]), len(source[0])])
    losses = {"target": mse(mine, target[1]), "prior": mse(plain, source[1])}
    if disentangle:
        losses["disen"] = disentanglement(model, plain, source[0], timestep, texts)
    if similarity is not None:
        turned, kept = similar_pictures(model, source[0], timestep, texts, similarity)
        losses["sim"] = similarity_consistency(turned.features, kept.features, similarity.reduction, similarity.direction)[0]
    return losses


class Pictures(NamedTuple):
    """Clean latents, and the UNet's encoder features of them."""

    latents: Tensor
    features: list[Tensor]


def similar_pictures(model: Denoising, noised: Tensor, timestep: int, texts: Texts, settings: Similarity) -> tuple[Pictures, Pictures]:
    """The source pictures turned into the domain, and as they are (without gradient), by a few steps from the same noised latents."""

    def pictures(text: Tensor) -> Pictures:
        clean = denoised(model, noised, timestep, text, texts.empty, settings.steps, settings.guidance)
        at = torch.zeros(len(clean), dtype=torch.long, device=clean.device)
        return Pictures(clean, unet_encoder_features(model.unet, clean, at, text.expand(len(clean), -1, -1)))

    turned = pictures(texts.target)
    with torch.no_grad():
        return turned, pictures(texts.source)
